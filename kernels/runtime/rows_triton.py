"""What Triton's row kernels share: where the rows of a program's tile are, and their elements in and out."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.runtime.triton_gpu import computed, launch

#: Columns and rows of the tiles that add up parts.
SUM_COLUMNS, SUM_ROWS = 128, 16


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


@triton.jit
def sum_parts(parts_of, out, parts, n, ROWS: tl.constexpr, BLOCK: tl.constexpr, COMPUTED: tl.constexpr):
    """out (n,): the sums of parts_of (parts, n) over the parts, always in the same order."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((ROWS, BLOCK), COMPUTED)
    for first in range(0, parts, ROWS):
        part = first + tl.arange(0, ROWS)
        total += load_rows(parts_of, part.to(tl.int64) * n, 1, c, n, part < parts, 0.0, COMPUTED)
    tl.store(out + c, tl.sum(total, 0).to(out.dtype.element_ty), mask=c < n)


def add_parts(of_parts: torch.Tensor, out: torch.Tensor) -> None:
    """out = the sums of of_parts (parts, n) over the parts, in the order of out's memory; out dense, of n elements."""
    parts, n = of_parts.shape
    launch(
        sum_parts, (triton.cdiv(n, SUM_COLUMNS),), of_parts, out, parts, n,
        ROWS=SUM_ROWS, BLOCK=SUM_COLUMNS, COMPUTED=computed(out.dtype), num_warps=4,
    )  # fmt: skip
