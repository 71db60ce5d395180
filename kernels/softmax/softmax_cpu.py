"""The compiled kernels of softmax and log_softmax; see rows.py for the two forms that each has."""

from __future__ import annotations

import math

from kernels.runtime.numba_cpu import jit
from kernels.simd import (
    GROUP,
    exp_nonpositive,
    full,
    lane_mask,
    lanes_of,
    load,
    load_first,
    load_group,
    log,
    maximum,
    pointer_at,
    reduce_add,
    stack_room,
    store,
    store_first,
    sum_of_group,
    zeros_group,
    zeros_like,
)
from kernels.softmax.rows import (
    MEDIUM,
    ROOM,
    SHORT,
    columns_of_rows,
    load_four,
    load_part,
    row_maximum,
    row_power_sum,
    rows_of_columns,
    store_four,
    store_part,
)


@jit
def _powers(p, q, i, n, largest):
    """exp(x - largest) of a row, from p to q, and their sum."""
    lanes = lanes_of(p)
    end = i + n
    total = zeros_like(p)
    if GROUP > 1 and n >= 2 * GROUP * lanes:
        sums = zeros_group(p)
        while i + GROUP * lanes <= end:
            several = exp_nonpositive(load_group(p, i) - largest)
            store(q, i, several)
            sums = sums + several
            i += GROUP * lanes
        total = sum_of_group(sums, p)
    while i + lanes <= end:
        powers = exp_nonpositive(load(p, i) - largest)
        store(q, i, powers)
        total = total + powers
        i += lanes
    if i < end:
        powers = exp_nonpositive(load_first(p, i, end - i, -math.inf) - largest)
        store_first(q, i, powers, end - i)
        total = total + powers
    return reduce_add(total)


@jit
def _divide(q, i, n, total):
    """A row of q divided by its total."""
    lanes = lanes_of(q)
    end = i + n
    factor = full(q, 1 / total)
    while i + 4 * lanes <= end:
        a, b, c, d = load_four(q, i)
        store_four(q, i, (a * factor, b * factor, c * factor, d * factor))
        i += 4 * lanes
    while i + lanes <= end:
        store(q, i, load(q, i) * factor)
        i += lanes
    if i < end:
        store_first(q, i, load_first(q, i, end - i) * factor, end - i)


@jit
def _subtract(p, q, i, n, largest, total):
    """x - largest - total of a row, from p to q: in this order of subtraction large logits lose nothing."""
    lanes = lanes_of(p)
    end = i + n
    while i + lanes <= end:
        store(q, i, load(p, i) - largest - total)
        i += lanes
    if i < end:
        store_first(q, i, load_first(p, i, end - i) - largest - total, end - i)


@jit
def _row(p, q, i, n, is_log):
    largest = row_maximum(p, i, n)
    if is_log:
        _subtract(p, q, i, n, largest, log(full(p, row_power_sum(p, i, n, largest))))
    else:
        _divide(q, i, n, _powers(p, q, i, n, largest))


@jit
def _four_rows(p, q, i, n, is_log):
    """Four rows together, so that what is one number a row does not wait for the one before."""
    a, b = row_maximum(p, i, n), row_maximum(p, i + n, n)
    c, d = row_maximum(p, i + 2 * n, n), row_maximum(p, i + 3 * n, n)
    if is_log:
        e, f = row_power_sum(p, i, n, a), row_power_sum(p, i + n, n, b)
        g, h = row_power_sum(p, i + 2 * n, n, c), row_power_sum(p, i + 3 * n, n, d)
        _subtract(p, q, i, n, a, log(full(p, e)))
        _subtract(p, q, i + n, n, b, log(full(p, f)))
        _subtract(p, q, i + 2 * n, n, c, log(full(p, g)))
        _subtract(p, q, i + 3 * n, n, d, log(full(p, h)))
    else:
        e, f = _powers(p, q, i, n, a), _powers(p, q, i + n, n, b)
        g, h = _powers(p, q, i + 2 * n, n, c), _powers(p, q, i + 3 * n, n, d)
        _divide(q, i, n, e)
        _divide(q, i + n, n, f)
        _divide(q, i + 2 * n, n, g)
        _divide(q, i + 3 * n, n, h)


@jit
def _column(p, q, start, classes, step, whole, mask, is_log):
    """A vector of columns, from p to q, which may be the same: at start + c * step the class c of each."""
    stop = start + classes * step
    largest = full(p, -math.inf)
    for i in range(start, stop, step):
        largest = maximum(load_part(p, i, whole, mask, 0.0), largest)
    total = zeros_like(p)
    for i in range(start, stop, step):
        powers = exp_nonpositive(load_part(p, i, whole, mask, 0.0) - largest)
        total = total + powers
        if not is_log:
            store_part(q, i, powers, whole, mask)
    if is_log:
        total = log(total)
        for i in range(start, stop, step):
            store_part(q, i, load_part(p, i, whole, mask, 0.0) - largest - total, whole, mask)
    else:
        factor = full(p, 1.0) / total
        for i in range(start, stop, step):
            store_part(q, i, load_part(q, i, whole, mask, 0.0) * factor, whole, mask)


@jit
def _four_columns(p, q, start, classes, step, is_log):
    """Four vectors of columns side by side."""
    stop = start + classes * step
    a = full(p, -math.inf)
    b, c, d = a, a, a
    for i in range(start, stop, step):
        v = load_four(p, i)
        a, b, c, d = maximum(v[0], a), maximum(v[1], b), maximum(v[2], c), maximum(v[3], d)
    e = zeros_like(p)
    f, g, h = e, e, e
    for i in range(start, stop, step):
        v = load_four(p, i)
        powers = (
            exp_nonpositive(v[0] - a),
            exp_nonpositive(v[1] - b),
            exp_nonpositive(v[2] - c),
            exp_nonpositive(v[3] - d),
        )
        e, f, g, h = e + powers[0], f + powers[1], g + powers[2], h + powers[3]
        if not is_log:
            store_four(q, i, powers)
    if is_log:
        e, f, g, h = log(e), log(f), log(g), log(h)
        for i in range(start, stop, step):
            v = load_four(p, i)
            store_four(q, i, (v[0] - a - e, v[1] - b - f, v[2] - c - g, v[3] - d - h))
    else:
        one = full(p, 1.0)
        e, f, g, h = one / e, one / f, one / g, one / h
        for i in range(start, stop, step):
            v = load_four(q, i)
            store_four(q, i, (v[0] * e, v[1] * f, v[2] * g, v[3] * h))


@jit
def softmax_rows(first, last, like, x, out, n, is_log):
    """Rows first to last of out (rows, n) from x (rows, n): softmax, or log_softmax where is_log.

    All arrays here are addresses of elements of the type of `like`.
    """
    p, q = pointer_at(x, like), pointer_at(out, like)
    lanes = lanes_of(p)
    if n > SHORT * lanes:
        row = first
        while row < last:
            if row + 4 <= last and n <= MEDIUM * lanes:
                _four_rows(p, q, row * n, n, is_log)
                row += 4
            else:
                _row(p, q, row * n, n, is_log)
                row += 1
        return
    columns = stack_room(p, ROOM)
    mask = lane_mask(p, 0, lanes)
    for row in range(first, last, lanes):
        rows = min(lanes, last - row)
        columns_of_rows(p, row * n, rows, n, columns)
        _column(columns, columns, 0, n, lanes, True, mask, is_log)
        rows_of_columns(columns, q, row * n, rows, n)


@jit
def softmax_columns(first, last, like, x, out, classes, inner, is_log):
    """Vectors first to last of columns of out (outer, classes, inner) from x: softmax along the classes.

    Each (inner) is cut into ceil(inner / lanes) vectors; they are counted through all of outer.
    """
    p, q = pointer_at(x, like), pointer_at(out, like)
    lanes = lanes_of(p)
    vectors = (inner + lanes - 1) // lanes
    number = first
    while number < last:
        column = number % vectors * lanes
        start = number // vectors * classes * inner + column
        if number + 4 <= last and column + 4 * lanes <= inner:
            _four_columns(p, q, start, classes, inner, is_log)
            number += 4
        else:
            mask = lane_mask(p, 0, inner - column)
            _column(p, q, start, classes, inner, column + lanes <= inner, mask, is_log)
            number += 1


@jit
def _row_gradient(g, p, q, start, n, is_log):
    lanes = lanes_of(p)
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
        found = gradient - exp_nonpositive(output) * total if is_log else (gradient - total) * output
        store_part(q, i, found, whole, mask)


@jit
def _column_gradient(g, p, q, start, classes, step, whole, mask, is_log):
    """A vector of columns, as in _column: into q from the gradient g of the output, and the output p."""
    total = zeros_like(p)
    for i in range(start, start + classes * step, step):
        gradient = load_part(g, i, whole, mask, 0.0)
        total = total + (gradient if is_log else gradient * load_part(p, i, whole, mask, 0.0))
    for i in range(start, start + classes * step, step):
        gradient, output = load_part(g, i, whole, mask, 0.0), load_part(p, i, whole, mask, 0.0)
        found = gradient - exp_nonpositive(output) * total if is_log else (gradient - total) * output
        store_part(q, i, found, whole, mask)


@jit
def _four_column_gradients(g, p, q, start, classes, step, is_log):
    """Four vectors of columns side by side."""
    stop = start + classes * step
    e = zeros_like(p)
    f, h, k = e, e, e
    for i in range(start, stop, step):
        a, b, c, d = load_four(g, i)
        if not is_log:
            v = load_four(p, i)
            a, b, c, d = a * v[0], b * v[1], c * v[2], d * v[3]
        e, f, h, k = e + a, f + b, h + c, k + d
    for i in range(start, stop, step):
        (a, b, c, d), v = load_four(g, i), load_four(p, i)
        if is_log:
            found = (
                a - exp_nonpositive(v[0]) * e,
                b - exp_nonpositive(v[1]) * f,
                c - exp_nonpositive(v[2]) * h,
                d - exp_nonpositive(v[3]) * k,
            )
        else:
            found = (a - e) * v[0], (b - f) * v[1], (c - h) * v[2], (d - k) * v[3]
        store_four(q, i, found)


@jit
def softmax_rows_backward(first, last, like, grad, y, out, n, is_log):
    """Rows first to last of the gradient of x (rows, n), from that of the output y (rows, n) and y."""
    g, p, q = pointer_at(grad, like), pointer_at(y, like), pointer_at(out, like)
    lanes = lanes_of(p)
    if n > SHORT * lanes:
        for row in range(first, last):
            _row_gradient(g, p, q, row * n, n, is_log)
        return
    gradients, outputs = stack_room(p, ROOM), stack_room(p, ROOM)
    mask = lane_mask(p, 0, lanes)
    for row in range(first, last, lanes):
        rows = min(lanes, last - row)
        columns_of_rows(g, row * n, rows, n, gradients)
        columns_of_rows(p, row * n, rows, n, outputs)
        _column_gradient(gradients, outputs, outputs, 0, n, lanes, True, mask, is_log)
        rows_of_columns(outputs, q, row * n, rows, n)


@jit
def softmax_columns_backward(first, last, like, grad, y, out, classes, inner, is_log):
    """Vectors first to last of columns, as in softmax_columns, of the gradient of x (outer, classes, inner)."""
    g, p, q = pointer_at(grad, like), pointer_at(y, like), pointer_at(out, like)
    lanes = lanes_of(p)
    vectors = (inner + lanes - 1) // lanes
    number = first
    while number < last:
        column = number % vectors * lanes
        start = number // vectors * classes * inner + column
        if number + 4 <= last and column + 4 * lanes <= inner:
            _four_column_gradients(g, p, q, start, classes, inner, is_log)
            number += 4
        else:
            mask = lane_mask(p, 0, inner - column)
            _column_gradient(g, p, q, start, classes, inner, column + lanes <= inner, mask, is_log)
            number += 1
