"""The Triton kernels of softmax and log_softmax. A tile is (rows, elements of a row), see kernels.runtime.row_tiles.

Arguments that they take: arrays of (outer, n, inner), each with its strides in that order, results contiguous; IS_LOG;
SIDE, WHOLE, ROWS, BLOCK: the tile. Half precision is computed in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.runtime.rows_triton import load_rows, rows_of_program, store_rows


@triton.jit
def row_statistics(pointer, start, step, n, rows, COMPUTED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """(maximum, sum of exp(x - maximum)) of rows in one pass (Milakov and Gimelshein, 2018), each (ROWS,).

    NaN and +inf make the sum NaN; of nothing but -inf it is 0.
    """
    lane = tl.arange(0, BLOCK)
    largest = tl.full((ROWS,), -float("inf"), COMPUTED)
    total = tl.zeros((ROWS,), COMPUTED)
    for first in range(0, n, BLOCK):
        x = load_rows(pointer, start, step, first + lane, n, rows, -float("inf"), COMPUTED)
        found = tl.maximum(largest, tl.max(x, 1))
        # With nothing above -inf so far there is no difference to it.
        shift = tl.where(found == -float("inf"), 0.0, found)
        total = total * tl.exp(largest - shift) + tl.sum(tl.exp(x - shift[:, None]), 1)
        largest = found
    return largest, total


@triton.jit
def softmax_rows(
    x, out, outer, n, inner, x_outer, x_n, x_inner,
    IS_LOG: tl.constexpr, SIDE: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    COMPUTED: tl.constexpr,
):  # fmt: skip
    """out = softmax or log_softmax of x along n."""
    o, i, rows = rows_of_program(tl.program_id(0), outer, inner, SIDE, ROWS)
    begin = o * x_outer + i * x_inner
    written = o * n * inner + i
    lane = tl.arange(0, BLOCK)
    if WHOLE:
        shifted = load_rows(x, begin, x_n, lane, n, rows, -float("inf"), COMPUTED)
        shifted -= tl.max(shifted, 1)[:, None]
        powers = tl.exp(shifted)
        # What is behind a row's end is no NaN, though its row be nothing but -inf.
        total = tl.sum(tl.where(lane[None, :] < n, powers, 0.0), 1)
        if IS_LOG:
            found = shifted - tl.log(total)[:, None]
        else:
            found = powers / total[:, None]
        store_rows(out, written, inner, lane, n, rows, found)
    else:
        largest, total = row_statistics(x, begin, x_n, n, rows, COMPUTED, ROWS, BLOCK)
        if IS_LOG:
            total = tl.log(total)
        for first in range(0, n, BLOCK):
            # In this order of subtraction large logits lose nothing.
            found = load_rows(x, begin, x_n, first + lane, n, rows, 0.0, COMPUTED) - largest[:, None]
            if IS_LOG:
                found = found - total[:, None]
            else:
                found = tl.exp(found) / total[:, None]
            store_rows(out, written, inner, first + lane, n, rows, found)


@triton.jit
def softmax_gradient_rows(
    grad, y, out, outer, n, inner, grad_outer, grad_n, grad_inner, y_outer, y_n, y_inner,
    IS_LOG: tl.constexpr, SIDE: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    COMPUTED: tl.constexpr,
):  # fmt: skip
    """out = the gradient of x, from that of the output y and y; see reference.py for the equation."""
    o, i, rows = rows_of_program(tl.program_id(0), outer, inner, SIDE, ROWS)
    grad_begin = o * grad_outer + i * grad_inner
    y_begin = o * y_outer + i * y_inner
    written = o * n * inner + i
    lane = tl.arange(0, BLOCK)
    if WHOLE:
        g = load_rows(grad, grad_begin, grad_n, lane, n, rows, 0.0, COMPUTED)
        output = load_rows(y, y_begin, y_n, lane, n, rows, 0.0, COMPUTED)
        if IS_LOG:
            found = g - tl.exp(output) * tl.sum(g, 1)[:, None]
        else:
            found = output * (g - tl.sum(g * output, 1)[:, None])
        store_rows(out, written, inner, lane, n, rows, found)
    else:
        total = tl.zeros((ROWS,), COMPUTED)
        for first in range(0, n, BLOCK):
            g = load_rows(grad, grad_begin, grad_n, first + lane, n, rows, 0.0, COMPUTED)
            if not IS_LOG:
                g = g * load_rows(y, y_begin, y_n, first + lane, n, rows, 0.0, COMPUTED)
            total += tl.sum(g, 1)
        for first in range(0, n, BLOCK):
            g = load_rows(grad, grad_begin, grad_n, first + lane, n, rows, 0.0, COMPUTED)
            output = load_rows(y, y_begin, y_n, first + lane, n, rows, 0.0, COMPUTED)
            if IS_LOG:
                found = g - tl.exp(output) * total[:, None]
            else:
                found = output * (g - total[:, None])
            store_rows(out, written, inner, first + lane, n, rows, found)
