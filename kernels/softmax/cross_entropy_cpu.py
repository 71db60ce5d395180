"""The compiled kernels of cross_entropy; see rows.py for the two forms that each has.

With u the targets of a row (made smooth and weighted, see reference.py), m its maximum and l = log(sum(exp(x - m))),
the loss of the row is sum_c u_c (m - x_c + l). u is split: a dense part (hard * t_c + even) * w_c, left out where it is
zero, and for class indices one term hard * w_t at the class t.

Arguments that all of them take: x (outer, classes, inner), rows = outer * inner; target: class indices, int64, one for
each row, or probabilities in x's shape; weight (classes,), or unused; indexed, weighted: whether target are indices,
and weight is used; hard = 1 - smoothing; even = smoothing / classes. These arrays and what is made are addresses; like,
int64: any arrays of the element type and of int64.
"""

from __future__ import annotations

import math

import numpy as np

from kernels.runtime.indices import any_outside
from kernels.runtime.numba_cpu import jit
from kernels.simd import (
    array_at,
    broadcast,
    exp_nonpositive,
    full,
    lane_mask,
    lanes_of,
    log,
    peek,
    pointer,
    pointer_at,
    poke,
    reduce_add,
    select,
    stack_room,
    store_first,
    zeros_like,
)
from kernels.softmax.rows import (
    ROOM,
    SHORT,
    column_statistics,
    columns_of_rows,
    four_column_statistics,
    load_part,
    row_statistics,
    store_four,
    store_part,
)


@jit
def _weight_sum(w, classes, weighted):
    total = 0.0
    if weighted:
        for c in range(classes):
            total += peek(w, c)
    else:
        total += classes
    return total


@jit
def _class_weight(w, c, weighted):
    return peek(w, c) if weighted else 1.0


@jit
def _dense_row(s, i, w, c, whole, mask, indexed, weighted, hard, even):
    """Lanes of the dense part of u: probabilities at s[i], weights at w[c], both innermost."""
    u = full(s, even)
    if not indexed:
        u = load_part(s, i, whole, mask, 0.0) * hard + u
    if weighted:
        u = u * load_part(w, c, whole, mask, 0.0)
    return u


@jit
def _dense_column(s, i, w, c, whole, mask, indexed, weighted, hard, even):
    """The same across columns, of one class c."""
    u = full(s, even)
    if not indexed:
        u = load_part(s, i, whole, mask, 0.0) * hard + u
    if weighted:
        u = u * broadcast(w, c)
    return u


@jit
def _add_index_terms(first, last, p, indices, w, losses, maxima, logs, classes, inner, ignore_index, weighted, hard):
    """Add to the losses of rows first to last the term of their class; 0 for a row that is ignored, or whose class is
    wrong."""
    for row in range(first, last):
        target = indices[row]
        # As an unsigned number, a negative one is large.
        if target == ignore_index or np.uint64(target) >= np.uint64(classes):
            losses[row] = 0
        else:
            found = peek(p, (row // inner * classes + target) * inner + row % inner)
            losses[row] += hard * _class_weight(w, target, weighted) * ((maxima[row] - found) + logs[row])


@jit
def _short_row_statistics(p, r, v, first, last, classes):
    """Maxima r and logs v of rows first to last of at most SHORT vectors."""
    lanes = lanes_of(p)
    columns = stack_room(p, ROOM)
    mask = lane_mask(p, 0, lanes)
    for row in range(first, last, lanes):
        rows = min(lanes, last - row)
        columns_of_rows(p, row * classes, rows, classes, columns)
        largest, total = column_statistics(columns, 0, classes, lanes, True, mask)
        store_first(r, row, largest, rows)
        store_first(v, row, log(total), rows)


@jit
def losses_of_rows(
    first, last, like, int64, x, target, weight, losses, maxima, logs, rows, classes, ignore_index, indexed, weighted,
    hard, even
):  # fmt: skip
    """losses, maxima and logs (of the sums of exponentials), each (rows,), of rows first to last, inner being 1."""
    p, s, w = pointer_at(x, like), pointer_at(target, like), pointer_at(weight, like)
    losses, maxima, logs = array_at(like, losses, rows), array_at(like, maxima, rows), array_at(like, logs, rows)
    lanes = lanes_of(p)
    dense = not indexed or even != 0
    short = classes <= SHORT * lanes
    if short:
        _short_row_statistics(p, pointer(maxima), pointer(logs), first, last, classes)
    for row in range(first, last):
        start = row * classes
        if not short:
            largest, total = row_statistics(p, start, classes)
            maxima[row] = largest
            logs[row] = math.log(total)
        losses[row] = 0
        if dense:
            sums = zeros_like(p)
            for c in range(0, classes, lanes):
                whole = c + lanes <= classes
                mask = lane_mask(p, 0, classes - c)
                u = _dense_row(s, start + c, w, c, whole, mask, indexed, weighted, hard, even)
                distance = full(p, maxima[row]) - load_part(p, start + c, whole, mask, 0.0) + logs[row]
                sums = sums + select(mask, u * distance, 0.0)
            losses[row] = reduce_add(sums)
    if indexed:
        indices = array_at(int64, target, rows)
        _add_index_terms(first, last, p, indices, w, losses, maxima, logs, classes, 1, ignore_index, weighted, hard)


@jit
def _vectors_together(number, last, column, inner, lanes):
    """How many vectors of columns, from this one, are taken together: 4 where they lie side by side, else 1."""
    return 4 if number + 4 <= last and column + 4 * lanes <= inner else 1


@jit
def losses_of_columns(
    first, last, like, int64, x, target, weight, losses, maxima, logs, rows, classes, inner, ignore_index, indexed,
    weighted, hard, even
):  # fmt: skip
    """The same for vectors first to last of columns, ceil(inner / lanes) of them in each of outer."""
    p, s, w = pointer_at(x, like), pointer_at(target, like), pointer_at(weight, like)
    indices = array_at(int64, target, rows)
    losses, maxima, logs = array_at(like, losses, rows), array_at(like, maxima, rows), array_at(like, logs, rows)
    q, r, v = pointer(losses), pointer(maxima), pointer(logs)
    lanes = lanes_of(p)
    dense = not indexed or even != 0
    vectors = (inner + lanes - 1) // lanes
    number = first
    while number < last:
        column = number % vectors * lanes
        outer = number // vectors
        start = outer * classes * inner + column
        row = outer * inner + column
        count = _vectors_together(number, last, column, inner, lanes)
        whole = column + lanes <= inner
        mask = lane_mask(p, 0, inner - column)
        if count == 4:
            largest, total = four_column_statistics(p, start, classes, inner)
            store_four(r, row, largest)
            store_four(v, row, (log(total[0]), log(total[1]), log(total[2]), log(total[3])))
        else:
            one, sum_of_one = column_statistics(p, start, classes, inner, whole, mask)
            store_part(r, row, one, whole, mask)
            store_part(v, row, log(sum_of_one), whole, mask)
        for j in range(row, row + count * lanes, lanes):
            sums = zeros_like(p)
            if dense:
                level, rest = load_part(r, j, whole, mask, 0.0), load_part(v, j, whole, mask, 0.0)
                for c in range(classes):
                    i = start + j - row + c * inner
                    u = _dense_column(s, i, w, c, whole, mask, indexed, weighted, hard, even)
                    sums = sums + u * (level - load_part(p, i, whole, mask, 0.0) + rest)
            store_part(q, j, sums, whole, mask)
        if indexed:
            end = row + min(count * lanes, inner - column)
            _add_index_terms(
                row, end, p, indices, w, losses, maxima, logs, classes, inner, ignore_index, weighted, hard
            )
        number += count


@jit
def reduce_losses(
    like, int64, losses, target, weight, loss, divisor, rows, classes, ignore_index, indexed, weighted, mean
):
    """loss = the sum of the losses, for the mean divided by that of the rows' weights, which is divisor. True where a
    class is wrong."""
    indices, factors = array_at(int64, target, rows), array_at(like, weight, classes)
    if indexed and any_outside(indices, classes, ignore_index):
        return True
    losses, found = array_at(like, losses, rows), array_at(like, loss, 1)
    # Four sums, always the same four, so that no addition waits for the one before.
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    whole = rows - rows % 4
    for i in range(0, whole, 4):
        a += losses[i]
        b += losses[i + 1]
        c += losses[i + 2]
        d += losses[i + 3]
    for i in range(whole, rows):
        a += losses[i]
    total = (a + b) + (c + d)
    if mean:
        count = 0.0
        if not indexed:
            count += rows if classes > 0 else 0
        elif weighted:
            for i in range(rows):
                if indices[i] != ignore_index:
                    count += factors[indices[i]]
        else:
            kept = 0
            for i in range(rows):
                kept += indices[i] != ignore_index
            count += kept
        # One that nobody wants goes where the loss will be.
        array_at(like, divisor if divisor else loss, 1)[0] = count
        total /= count
    found[0] = total
    return False


@jit
def loss_of_rows(
    like, int64, x, target, weight, room, loss, maxima, logs, divisor, rows, classes, ignore_index, indexed, weighted,
    hard, even, mean
):  # fmt: skip
    """The reduced loss of all rows in one call, inner being 1; True where a class is wrong.

    room: 3 numbers for each row, of which all are used where maxima and logs are 0.
    """
    step = rows * like.itemsize
    if not maxima:
        maxima, logs = room + step, room + 2 * step
    losses_of_rows(
        0, rows, like, int64, x, target, weight, room, maxima, logs, rows, classes, ignore_index, indexed, weighted,
        hard, even,
    )  # fmt: skip
    return reduce_losses(
        like, int64, room, target, weight, loss, divisor, rows, classes, ignore_index, indexed, weighted, mean
    )


@jit
def gradient_of_rows(
    first, last, like, int64, grad, x, target, weight, maxima, logs, divisor, grad_x, grad_soft, rows, classes,
    ignore_index, indexed, weighted, hard, even, each, mean
):  # fmt: skip
    """Gradients of x and soft, rows first to last, inner being 1; grad: one for every row if `each`, else grad[0].

    grad_x may be x. Of the two what is 0 is not wanted.
    """
    p, s, w = pointer_at(x, like), pointer_at(target, like), pointer_at(weight, like)
    q, t = pointer_at(grad_x, like), pointer_at(grad_soft, like)
    wants_x, wants_soft = grad_x != 0, grad_soft != 0
    indices, grad, divisor = array_at(int64, target, rows), array_at(like, grad, rows), array_at(like, divisor, 1)
    maxima, logs = array_at(like, maxima, rows), array_at(like, logs, rows)
    lanes = lanes_of(p)
    dense = not indexed or even != 0
    even_sum = even * _weight_sum(w, classes, weighted)
    for row in range(first, last):
        start = row * classes
        target = indices[row] if indexed else 0
        if indexed and target == ignore_index:
            for c in range(0, classes, lanes):
                store_part(q, start + c, zeros_like(p), c + lanes <= classes, lane_mask(p, 0, classes - c))
            continue
        g = grad[row] if each else grad[0]
        if mean:
            g = g / divisor[0]
        if indexed:
            here = hard * _class_weight(w, target, weighted)
            u_sum = here + even_sum
        else:
            here = 0.0
            sums = zeros_like(p)
            for c in range(0, classes, lanes):
                whole = c + lanes <= classes
                mask = lane_mask(p, 0, classes - c)
                u = _dense_row(s, start + c, w, c, whole, mask, indexed, weighted, hard, even)
                sums = sums + select(mask, u, 0.0)
            u_sum = reduce_add(sums) + 0.0
        factor = full(p, g * u_sum)
        largest, total = full(p, maxima[row]), full(p, logs[row])
        for c in range(0, classes, lanes):
            whole = c + lanes <= classes
            mask = lane_mask(p, 0, classes - c)
            i = start + c
            log_p = load_part(p, i, whole, mask, 0.0) - largest - total
            if wants_x:
                found = exp_nonpositive(log_p) * factor
                if dense:
                    found = found - _dense_row(s, i, w, c, whole, mask, indexed, weighted, hard, even) * g
                store_part(q, i, found, whole, mask)
            if wants_soft:
                found = log_p * (-g * hard)
                if weighted:
                    found = found * load_part(w, c, whole, mask, 0.0)
                store_part(t, i, found, whole, mask)
        if indexed:
            i = start + target
            poke(q, i, peek(q, i) - g * here)


@jit
def gradient_of_columns(
    first, last, like, int64, grad, x, target, weight, maxima, logs, divisor, grad_x, grad_soft, room, rows, classes,
    inner, ignore_index, indexed, weighted, hard, even, each, mean
):  # fmt: skip
    """The same for vectors first to last of columns. room: scratch, two numbers for each row.

    The first are the sums of the targets, then their products with the second ones, which are the rows' gradients.
    """
    p, s, w = pointer_at(x, like), pointer_at(target, like), pointer_at(weight, like)
    q, t = pointer_at(grad_x, like), pointer_at(grad_soft, like)
    wants_x, wants_soft = grad_x != 0, grad_soft != 0
    indices, grad, divisor = array_at(int64, target, rows), array_at(like, grad, rows), array_at(like, divisor, 1)
    row_u, row_g = array_at(like, room, rows), array_at(like, room + rows * like.itemsize, rows)
    r, v, a, b = pointer_at(maxima, like), pointer_at(logs, like), pointer(row_u), pointer(row_g)
    lanes = lanes_of(p)
    dense = not indexed or even != 0
    even_sum = even * _weight_sum(w, classes, weighted)
    vectors = (inner + lanes - 1) // lanes
    number = first
    while number < last:
        column = number % vectors * lanes
        outer = number // vectors
        start = outer * classes * inner + column
        row = outer * inner + column
        count = _vectors_together(number, last, column, inner, lanes)
        end = row + min(count * lanes, inner - column)
        whole = column + lanes <= inner
        mask = lane_mask(p, 0, inner - column)
        for j in range(row, end):
            g = grad[j] if each else grad[0]
            row_g[j] = g / divisor[0] if mean else g
            row_u[j] = 0
            if indexed:
                if indices[j] != ignore_index:
                    row_u[j] = hard * _class_weight(w, indices[j], weighted) + even_sum
        for j in range(row, row + count * lanes, lanes):
            u_sum = load_part(a, j, whole, mask, 0.0)
            if not indexed:
                for c in range(classes):
                    i = start + j - row + c * inner
                    u_sum = u_sum + _dense_column(s, i, w, c, whole, mask, indexed, weighted, hard, even)
            # From here on the factor of the exponentials.
            store_part(a, j, u_sum * load_part(b, j, whole, mask, 0.0), whole, mask)
        for c in range(classes):
            for j in range(row, row + count * lanes, lanes):
                i = start + j - row + c * inner
                gradient = load_part(b, j, whole, mask, 0.0)
                log_p = load_part(p, i, whole, mask, 0.0) - load_part(r, j, whole, mask, 0.0)
                log_p = log_p - load_part(v, j, whole, mask, 0.0)
                if wants_x:
                    found = exp_nonpositive(log_p) * load_part(a, j, whole, mask, 0.0)
                    if dense:
                        found = found - _dense_column(s, i, w, c, whole, mask, indexed, weighted, hard, even) * gradient
                    store_part(q, i, found, whole, mask)
                if wants_soft:
                    found = log_p * gradient * (-hard)
                    if weighted:
                        found = found * broadcast(w, c)
                    store_part(t, i, found, whole, mask)
        if indexed:
            for j in range(row, end):
                i = start + j - row
                if indices[j] == ignore_index:
                    for c in range(classes):
                        poke(q, i + c * inner, 0.0)
                else:
                    i += indices[j] * inner
                    poke(q, i, peek(q, i) - row_g[j] * hard * _class_weight(w, indices[j], weighted))
        number += count
