"""What Triton's row kernels share: where the rows of a program's tile are, and their elements in and out."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_of_program(program, outer, inner, SIDE: tl.constexpr, ROWS: tl.constexpr):
    """(places in outer, places in inner, which of them exist), each (ROWS,), the first two int64.

    SIDE: the rows of a tile lie side by side in inner; else inner is 1 and they follow each other in outer.
    """
    lane = tl.arange(0, ROWS)
    if SIDE:
        blocks = tl.cdiv(inner, ROWS)
        i = program % blocks * ROWS + lane
        o = tl.zeros((ROWS,), tl.int64) + program // blocks
        return o, i.to(tl.int64), i < inner
    else:
        o = program.to(tl.int64) * ROWS + lane
        return o, tl.zeros((ROWS,), tl.int64), o < outer


@triton.jit
def load_rows(pointer, start, step, c, n, rows, other, COMPUTED: tl.constexpr):
    """Elements c (BLOCK,) of rows that begin at start (ROWS,), `step` apart, as (ROWS, BLOCK)."""
    places = start[:, None] + c[None, :].to(tl.int64) * step
    return tl.load(pointer + places, mask=rows[:, None] & (c[None, :] < n), other=other).to(COMPUTED)


@triton.jit
def store_rows(pointer, start, step, c, n, rows, value):
    """The same places written."""
    places = start[:, None] + c[None, :].to(tl.int64) * step
    tl.store(pointer + places, value.to(pointer.dtype.element_ty), mask=rows[:, None] & (c[None, :] < n))
