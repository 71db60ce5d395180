"""The compiled kernels of softmax and log_softmax; see rows.py for the two forms that each has."""

from __future__ import annotations

import math

from kernels.runtime.numba_cpu import jit
from kernels.simd import (
    exp,
    full,
    lane_mask,
    lanes_of,
    load,
    load_first,
    log,
    maximum,
    pointer,
    reduce_add,
    reduce_max,
    store,
    store_first,
    zeros_like,
)
from kernels.softmax.rows import load_part, row_maximum, row_power_sum, store_part


@jit
def _short_row(p, q, i, n, is_log):
    """A row that fits one vector: read once, written once."""
    x = load_first(p, i, n, -math.inf)
    shifted = x - reduce_max(maximum(x, full(p, -math.inf)))
    powers = exp(shifted)
    total = reduce_add(powers)
    if is_log:
        store_first(q, i, shifted - log(full(p, total)), n)
    else:
        store_first(q, i, powers * (1 / total), n)


@jit
def _long_row(p, q, i, n, is_log):
    lanes = lanes_of(p)
    end = i + n
    largest = row_maximum(p, i, n)
    if is_log:
        total = log(full(p, row_power_sum(p, i, n, largest)))
        while i + lanes <= end:
            # In this order of subtraction large logits lose nothing.
            store(q, i, load(p, i) - largest - total)
            i += lanes
        if i < end:
            store_first(q, i, load_first(p, i, end - i) - largest - total, end - i)
        return
    start = i
    total = zeros_like(p)
    while i + lanes <= end:
        powers = exp(load(p, i) - largest)
        store(q, i, powers)
        total = total + powers
        i += lanes
    if i < end:
        powers = exp(load_first(p, i, end - i, -math.inf) - largest)
        store_first(q, i, powers, end - i)
        total = total + powers
    factor = full(p, 1 / reduce_add(total))
    i = start
    while i + lanes <= end:
        store(q, i, load(q, i) * factor)
        i += lanes
    if i < end:
        store_first(q, i, load_first(q, i, end - i) * factor, end - i)


@jit
def softmax_rows(first, last, x, out, n, is_log):
    """Rows first to last of out (rows, n) from x (rows, n): softmax, or log_softmax where is_log."""
    p, q = pointer(x), pointer(out)
    if n <= lanes_of(p):
        for row in range(first, last):
            _short_row(p, q, row * n, n, is_log)
    else:
        for row in range(first, last):
            _long_row(p, q, row * n, n, is_log)


@jit
def softmax_columns(first, last, x, out, classes, inner, is_log):
    """Vectors first to last of columns of out (outer, classes, inner) from x: softmax along the classes.

    Each (inner) is cut into ceil(inner / lanes) vectors; they are counted through all of outer.
    """
    p, q = pointer(x), pointer(out)
    lanes = lanes_of(p)
    vectors = (inner + lanes - 1) // lanes
    for number in range(first, last):
        column = number % vectors * lanes
        start = number // vectors * classes * inner + column
        whole = column + lanes <= inner
        mask = lane_mask(p, 0, inner - column)
        largest = full(p, -math.inf)
        for i in range(start, start + classes * inner, inner):
            largest = maximum(load_part(p, i, whole, mask, 0.0), largest)
        total = zeros_like(p)
        for i in range(start, start + classes * inner, inner):
            powers = exp(load_part(p, i, whole, mask, 0.0) - largest)
            total = total + powers
            if not is_log:
                store_part(q, i, powers, whole, mask)
        if is_log:
            total = log(total)
            for i in range(start, start + classes * inner, inner):
                store_part(q, i, load_part(p, i, whole, mask, 0.0) - largest - total, whole, mask)
        else:
            factor = full(p, 1.0) / total
            for i in range(start, start + classes * inner, inner):
                store_part(q, i, load_part(q, i, whole, mask, 0.0) * factor, whole, mask)


@jit
def softmax_rows_backward(first, last, grad, y, out, n, is_log):
    """Rows first to last of the gradient of x (rows, n), from that of the output y (rows, n) and y."""
    g, p, q = pointer(grad), pointer(y), pointer(out)
    lanes = lanes_of(p)
    for row in range(first, last):
        start = row * n
        end = start + n
        sums = zeros_like(p)
        for i in range(start, end, lanes):
            whole = i + lanes <= end
            mask = lane_mask(p, 0, end - i)
            gradient = load_part(g, i, whole, mask, 0.0)
            sums = sums + (gradient if is_log else gradient * load_part(p, i, whole, mask, 0.0))
        total = reduce_add(sums)
        for i in range(start, end, lanes):
            whole = i + lanes <= end
            mask = lane_mask(p, 0, end - i)
            gradient, output = load_part(g, i, whole, mask, 0.0), load_part(p, i, whole, mask, 0.0)
            found = gradient - exp(output) * total if is_log else (gradient - total) * output
            store_part(q, i, found, whole, mask)


@jit
def softmax_columns_backward(first, last, grad, y, out, classes, inner, is_log):
    """Vectors first to last of columns, as in softmax_columns, of the gradient of x (outer, classes, inner)."""
    g, p, q = pointer(grad), pointer(y), pointer(out)
    lanes = lanes_of(p)
    vectors = (inner + lanes - 1) // lanes
    for number in range(first, last):
        column = number % vectors * lanes
        start = number // vectors * classes * inner + column
        whole = column + lanes <= inner
        mask = lane_mask(p, 0, inner - column)
        total = zeros_like(p)
        for i in range(start, start + classes * inner, inner):
            gradient = load_part(g, i, whole, mask, 0.0)
            total = total + (gradient if is_log else gradient * load_part(p, i, whole, mask, 0.0))
        for i in range(start, start + classes * inner, inner):
            gradient, output = load_part(g, i, whole, mask, 0.0), load_part(p, i, whole, mask, 0.0)
            found = gradient - exp(output) * total if is_log else (gradient - total) * output
            store_part(q, i, found, whole, mask)
