"""The Triton kernels of embedding: rows looked up and shortened, their gradients added up in order without atomics."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _named(indices, place, places, rows):
    """(row of the weight or 0, it is one) for some places; what is no row is never used as an address."""
    row = tl.load(indices + place, mask=place < places, other=0).to(tl.int64)
    sound = (row >= 0) & (row < rows)
    return tl.where(sound, row, 0), sound


@triton.jit
def gather_rows(
    weight, indices, factors, out, places, rows, n, weight_row, weight_n,
    SHORTENS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """out (places, n) = those rows of weight (rows, n) that indices (places,) name, times factors (places,) if any.

    Programs: blocks of columns, then blocks of places. A row that is none is NaN.
    """
    blocks = tl.cdiv(n, BLOCK)
    program = tl.program_id(0)
    place = (program // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = program % blocks * BLOCK + tl.arange(0, BLOCK)
    row, sound = _named(indices, place, places, rows)
    mask = (place < places)[:, None] & (c < n)[None, :]
    source = row[:, None] * weight_row + c[None, :].to(tl.int64) * weight_n
    found = tl.load(weight + source, mask=mask & sound[:, None], other=float("nan"))
    if SHORTENS:
        factor = tl.load(factors + place, mask=place < places, other=1.0)
        found = (found.to(COMPUTED) * factor[:, None]).to(out.dtype.element_ty)
    tl.store(out + place[:, None] * n + c[None, :], found, mask=mask)


@triton.jit
def factors_of_rows(
    weight, indices, factors, places, rows, n, weight_row, weight_n,
    LARGEST: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """factors (places,): min(1, LARGEST / KIND-norm) of the rows that indices name."""
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row, sound = _named(indices, place, places, rows)
    total = tl.zeros((ROWS, BLOCK), COMPUTED)
    for first in range(0, n, BLOCK):
        c = first + tl.arange(0, BLOCK)
        source = row[:, None] * weight_row + c[None, :].to(tl.int64) * weight_n
        mask = ((place < places) & sound)[:, None] & (c < n)[None, :]
        size = tl.abs(tl.load(weight + source, mask=mask, other=0.0).to(COMPUTED))
        if KIND == 2.0:
            total += size * size
        elif KIND == 1.0:
            total += size
        elif KIND == float("inf"):
            total = tl.maximum(total, size, propagate_nan=tl.PropagateNan.ALL)
        else:
            power = tl.exp2(tl.log2(size.to(tl.float64)) * KIND)
            total += tl.where(mask, power, 0.0).to(COMPUTED)
    if KIND == float("inf"):
        norm = tl.max(total, 1)
        nan = tl.sum((total != total).to(tl.int32), 1) > 0
        norm = tl.where(nan, float("nan"), norm)
    elif KIND == 2.0:
        norm = tl.sqrt(tl.sum(total, 1))
    elif KIND == 1.0:
        norm = tl.sum(total, 1)
    else:
        norm = tl.exp2(tl.log2(tl.sum(total, 1).to(tl.float64)) / KIND).to(COMPUTED)
    factor = tl.where(norm > LARGEST, LARGEST / (norm + 1e-7), 1.0)
    tl.store(factors + place, factor.to(factors.dtype.element_ty), mask=place < places)


@triton.jit
def add_rows(
    grad, order, bounds, out, n, grad_place, grad_n, padding,
    BY_COUNT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """out (rows, n): for each row the sum of grad (places, n) over its places, always in the same order.

    order (places,): the places, those of a row behind each other. bounds (rows + 1,): where in `order` each row begins.
    padding: a row whose sum is 0; -1 for none. BY_COUNT: divided by how many places there are. Programs: blocks of
    columns, then rows.
    """
    blocks = tl.cdiv(n, BLOCK)
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    c = program % blocks * BLOCK + tl.arange(0, BLOCK)
    begin = tl.load(bounds + row)
    end = tl.where(row == padding, begin, tl.load(bounds + row + 1))
    total = tl.zeros((ROWS, BLOCK), COMPUTED)
    for first in range(begin, end, ROWS):
        at = first + tl.arange(0, ROWS)
        place = tl.load(order + at, mask=at < end, other=0)
        source = place[:, None] * grad_place + c[None, :].to(tl.int64) * grad_n
        total += tl.load(grad + source, mask=(at < end)[:, None] & (c < n)[None, :], other=0.0).to(COMPUTED)
    found = tl.sum(total, 0)
    if BY_COUNT:
        found = found / tl.maximum(end - begin, 1).to(COMPUTED)
    tl.store(out + row * n + c, found.to(out.dtype.element_ty), mask=c < n)
