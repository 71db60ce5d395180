"""The Triton kernels of cross_entropy: the loss of every row, their sum, and the gradients.

Names as in cross_entropy_cpu.py: u are a row's targets made smooth and weighted; a dense part (hard * t_c + even) *
w_c, left out where it is zero, and for class indices one term hard * w_t at the class t, with hard = 1 - SMOOTHING and
even = SMOOTHING / n. A class index that is neither a class nor ignore_index is never used as an address and makes its
row NaN.

Arguments that they take: x (outer, n, inner); target, class indices (outer, inner) where INDEXED, else probabilities
(outer, n, inner), each with its strides; weight (n,) with its stride, None unless WEIGHTED; maxima, log_sums, losses:
one number for each row, contiguous. SIDE, WHOLE, ROWS, BLOCK: the tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.runtime.rows_triton import load_rows, rows_of_program, store_rows
from kernels.softmax.softmax_triton import row_statistics


@triton.jit
def class_weights(weight, weight_n, c, n, WEIGHTED: tl.constexpr, COMPUTED: tl.constexpr):
    """The weights of classes c (BLOCK,), as (1, BLOCK)."""
    if WEIGHTED:
        found = tl.load(weight + c.to(tl.int64) * weight_n, mask=c < n, other=0.0).to(COMPUTED)
        return found[None, :]
    else:
        return tl.where(c < n, 1.0, 0.0).to(COMPUTED)[None, :]


@triton.jit
def _dense(
    target, begin, target_n, c, n, rows, weights,
    SMOOTHING: tl.constexpr, INDEXED: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """The dense part of u at classes c of some rows: (ROWS or 1, BLOCK); 0 behind the last class."""
    even = tl.full((), SMOOTHING, COMPUTED) / n
    if INDEXED:
        return weights * even
    else:
        hard = load_rows(target, begin, target_n, c, n, rows, 0.0, COMPUTED) * (1.0 - SMOOTHING)
        return (hard + even) * weights


@triton.jit
def class_terms(target, place, weight, weight_n, n, rows, ignore_index, WEIGHTED: tl.constexpr, COMPUTED: tl.constexpr):
    """(class index or 0, its weight, whether the row counts) of rows, each (ROWS,); weight NaN for no class at all."""
    index = tl.load(target + place, mask=rows, other=0).to(tl.int64)
    counts = index != ignore_index
    inside = (index >= 0) & (index < n)
    index = tl.where(inside, index, 0)
    if WEIGHTED:
        found = tl.load(weight + index * weight_n, mask=rows & inside, other=0.0).to(COMPUTED)
    else:
        found = tl.full(index.shape, 1.0, COMPUTED)
    return index, tl.where(inside, found, float("nan")), counts


@triton.jit
def losses_of_rows(
    x, target, weight, losses, maxima, log_sums, outer, n, inner, x_outer, x_n, x_inner,
    target_outer, target_n, target_inner, weight_n, ignore_index,
    SMOOTHING: tl.constexpr, INDEXED: tl.constexpr, WEIGHTED: tl.constexpr, KEEPS: tl.constexpr,
    SIDE: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """losses; and where KEEPS maxima and log_sums, the logarithms of the sums of exp(x - maximum)."""
    o, i, rows = rows_of_program(tl.program_id(0), outer, inner, SIDE, ROWS)
    begin = o * x_outer + i * x_inner
    target_begin = o * target_outer + i * target_inner
    number = o * inner + i
    lane = tl.arange(0, BLOCK)
    loss = tl.zeros((ROWS,), COMPUTED)
    if WHOLE:
        logits = load_rows(x, begin, x_n, lane, n, rows, -float("inf"), COMPUTED)
        largest = tl.max(logits, 1)
        powers = tl.where(lane[None, :] < n, tl.exp(logits - largest[:, None]), 0.0)
        log_sum = tl.log(tl.sum(powers, 1))
    else:
        largest, total = row_statistics(x, begin, x_n, n, rows, COMPUTED, ROWS, BLOCK)
        log_sum = tl.log(total)
    if SMOOTHING != 0 or not INDEXED:
        for first in range(0, n, BLOCK):
            c = first + lane
            if not WHOLE:
                logits = load_rows(x, begin, x_n, c, n, rows, 0.0, COMPUTED)
            weights = class_weights(weight, weight_n, c, n, WEIGHTED, COMPUTED)
            u = _dense(target, target_begin, target_n, c, n, rows, weights, SMOOTHING, INDEXED, COMPUTED)
            terms = u * (largest[:, None] - logits + log_sum[:, None])
            loss += tl.sum(tl.where(c[None, :] < n, terms, 0.0), 1)
    if INDEXED:
        index, of_class, counts = class_terms(
            target, target_begin, weight, weight_n, n, rows, ignore_index, WEIGHTED, COMPUTED
        )
        found = tl.load(x + begin + index * x_n, mask=rows, other=0.0).to(COMPUTED)
        loss += of_class * (1.0 - SMOOTHING) * ((largest - found) + log_sum)
        loss = tl.where(counts, loss, 0.0)
    tl.store(losses + number, loss.to(losses.dtype.element_ty), mask=rows)
    if KEEPS:
        tl.store(maxima + number, largest.to(maxima.dtype.element_ty), mask=rows)
        tl.store(log_sums + number, log_sum.to(log_sums.dtype.element_ty), mask=rows)


@triton.jit
def sum_losses(
    losses, target, weight, sums, counts, rows, n, inner, target_outer, target_inner, weight_n, ignore_index, each,
    INDEXED: tl.constexpr, WEIGHTED: tl.constexpr, MEAN: tl.constexpr, BLOCK: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """sums (parts,): of the losses of `each` rows in turn; counts (parts,): of what the mean divides by."""
    part = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), COMPUTED)
    count = tl.zeros((BLOCK,), COMPUTED)
    for first in range(0, each, BLOCK):
        row = part * each + first + tl.arange(0, BLOCK)
        here = row < rows
        total += tl.load(losses + row, mask=here, other=0.0)
        if MEAN:
            if INDEXED:
                place = row // inner * target_outer + row % inner * target_inner
                _, of_class, counted = class_terms(
                    target, place, weight, weight_n, n, here, ignore_index, WEIGHTED, COMPUTED
                )
                count += tl.where(here & counted, of_class, 0.0)
            else:
                count += tl.where(here, 1.0, 0.0)
    tl.store(sums + part, tl.sum(total, 0))
    if MEAN:
        tl.store(counts + part, tl.sum(count, 0))


@triton.jit
def finish_loss(
    sums, counts, loss, divisor, parts,
    MEAN: tl.constexpr, KEEPS: tl.constexpr, BLOCK: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """loss, 0-d: the sum of the sums, for the mean divided by that of the counts, which is divisor."""
    lane = tl.arange(0, BLOCK)
    total = tl.sum(tl.load(sums + lane, mask=lane < parts, other=0.0), 0)
    if MEAN:
        count = tl.sum(tl.load(counts + lane, mask=lane < parts, other=0.0), 0)
        total = total / count
        if KEEPS:
            tl.store(divisor, count.to(divisor.dtype.element_ty))
    tl.store(loss, total.to(loss.dtype.element_ty))


@triton.jit
def gradient_of_rows(
    grad, x, target, weight, maxima, log_sums, divisor, grad_x, grad_soft, outer, n, inner,
    grad_outer, grad_inner, x_outer, x_n, x_inner, target_outer, target_n, target_inner, weight_n, ignore_index,
    SMOOTHING: tl.constexpr, INDEXED: tl.constexpr, WEIGHTED: tl.constexpr, MEAN: tl.constexpr,
    WANTS_X: tl.constexpr, WANTS_SOFT: tl.constexpr,
    SIDE: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """grad_x and grad_soft, the gradients of x and of probabilities. grad (outer, inner), with strides 0 for one."""
    o, i, rows = rows_of_program(tl.program_id(0), outer, inner, SIDE, ROWS)
    begin = o * x_outer + i * x_inner
    target_begin = o * target_outer + i * target_inner
    written = o * n * inner + i
    number = o * inner + i
    lane = tl.arange(0, BLOCK)
    g = tl.load(grad + o * grad_outer + i * grad_inner, mask=rows, other=0.0).to(COMPUTED)
    if MEAN:
        g = g / tl.load(divisor).to(COMPUTED)
    largest = tl.load(maxima + number, mask=rows, other=0.0).to(COMPUTED)
    log_sum = tl.load(log_sums + number, mask=rows, other=0.0).to(COMPUTED)
    counts = rows
    u_sum = tl.zeros((ROWS,), COMPUTED)
    if INDEXED:
        index, of_class, counts = class_terms(
            target, target_begin, weight, weight_n, n, rows, ignore_index, WEIGHTED, COMPUTED
        )
        here = of_class * (1.0 - SMOOTHING)
        u_sum += here
    if WANTS_X and (SMOOTHING != 0 or not INDEXED):
        for first in range(0, n, BLOCK):
            weights = class_weights(weight, weight_n, first + lane, n, WEIGHTED, COMPUTED)
            u = _dense(target, target_begin, target_n, first + lane, n, rows, weights, SMOOTHING, INDEXED, COMPUTED)
            u_sum += tl.sum(u, 1)
    for first in range(0, n, BLOCK):
        c = first + lane
        log_p = load_rows(x, begin, x_n, c, n, rows, 0.0, COMPUTED) - largest[:, None] - log_sum[:, None]
        weights = class_weights(weight, weight_n, c, n, WEIGHTED, COMPUTED)
        if WANTS_X:
            found = tl.exp(log_p) * u_sum[:, None]
            if SMOOTHING != 0 or not INDEXED:
                found -= _dense(target, target_begin, target_n, c, n, rows, weights, SMOOTHING, INDEXED, COMPUTED)
            if INDEXED:
                found -= tl.where(c[None, :] == index[:, None], here[:, None], 0.0)
            found = tl.where(counts[:, None], found * g[:, None], 0.0)
            store_rows(grad_x, written, inner, c, n, rows, found)
        if WANTS_SOFT:
            found = log_p * weights * (-(1.0 - SMOOTHING) * g)[:, None]
            store_rows(grad_soft, written, inner, c, n, rows, found)
