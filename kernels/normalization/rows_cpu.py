"""The compiled kernels of layer_norm and rms_norm on rows of n contiguous elements; rms_norm is the mean kept at 0.

Everything about a row is found in passes over it while it is in the first-level cache. Sums run in four vectors, so
that no addition waits for the one before, and what is one number a row is worked out in float64.
"""

from __future__ import annotations

import math

from kernels.runtime.numba_cpu import jit
from kernels.simd import (
    broadcast,
    fma,
    full,
    lane_mask,
    lanes_of,
    load,
    load_masked,
    pointer_at,
    poke,
    reduce_add,
    reduce_max,
    store,
    store_masked,
    zeros_like,
)

#: Rows whose shares of the gradients of weight and bias are added in registers.
BLOCK = 8


@jit
def load_part(p, i, whole, mask):
    """Vector at p[i]: all of it, or the lanes of the mask with 0 in the rest."""
    if whole:
        return load(p, i)
    return load_masked(p, i, mask, 0.0)


@jit
def store_part(p, i, v, whole, mask):
    """Store v at p[i]: all of it, or the lanes of the mask."""
    if whole:
        store(p, i, v)
    else:
        store_masked(p, i, v, mask)


@jit
def _row_sum(p, start, n):
    """The sum of the n elements from p[start]."""
    lanes = lanes_of(p)
    a = zeros_like(p)
    i = start
    end = start + n
    if n >= 4 * lanes:
        b, c, d = a, a, a
        while i + 4 * lanes <= end:
            a = a + load(p, i)
            b = b + load(p, i + lanes)
            c = c + load(p, i + 2 * lanes)
            d = d + load(p, i + 3 * lanes)
            i += 4 * lanes
        a = (a + b) + (c + d)
    while i + lanes <= end:
        a = a + load(p, i)
        i += lanes
    if i < end:
        a = a + load_masked(p, i, lane_mask(p, 0, end - i), 0.0)
    return reduce_add(a)


@jit
def _row_square_sum(p, start, n):
    """The sum of the squares of the n elements from p[start]."""
    lanes = lanes_of(p)
    a = zeros_like(p)
    i = start
    end = start + n
    if n >= 4 * lanes:
        b, c, d = a, a, a
        while i + 4 * lanes <= end:
            e, f, g, h = load(p, i), load(p, i + lanes), load(p, i + 2 * lanes), load(p, i + 3 * lanes)
            a, b, c, d = fma(e, e, a), fma(f, f, b), fma(g, g, c), fma(h, h, d)
            i += 4 * lanes
        a = (a + b) + (c + d)
    while i + lanes <= end:
        e = load(p, i)
        a = fma(e, e, a)
        i += lanes
    if i < end:
        e = load_masked(p, i, lane_mask(p, 0, end - i), 0.0)
        a = fma(e, e, a)
    return reduce_add(a)


@jit
def _row_differences(p, start, n, mean):
    """(sum of x - mean, sum of its square) over the n elements from p[start]; the first one is what mean lacks."""
    lanes = lanes_of(p)
    a = zeros_like(p)
    s = a
    i = start
    end = start + n
    if n >= 4 * lanes:
        b, c, d = a, a, a
        t, u, v = a, a, a
        while i + 4 * lanes <= end:
            e, f = load(p, i) - mean, load(p, i + lanes) - mean
            g, h = load(p, i + 2 * lanes) - mean, load(p, i + 3 * lanes) - mean
            a, b, c, d = a + e, b + f, c + g, d + h
            s, t, u, v = fma(e, e, s), fma(f, f, t), fma(g, g, u), fma(h, h, v)
            i += 4 * lanes
        a = (a + b) + (c + d)
        s = (s + t) + (u + v)
    while i + lanes <= end:
        e = load(p, i) - mean
        a = a + e
        s = fma(e, e, s)
        i += lanes
    if i < end:
        mask = lane_mask(p, 0, end - i)
        e = load_masked(p, i, mask, mean) - mean
        a = a + e
        s = fma(e, e, s)
    return reduce_add(a), reduce_add(s)


@jit
def _statistics(p, start, n, share, eps, centred):
    """(mean in each lane, what that lacks by rounding, 1 / sqrt(variance + eps)) of the n elements from p[start]."""
    if not centred:
        squares = _row_square_sum(p, start, n) * share
        return full(p, 0.0), 0.0, 1.0 / math.sqrt(squares + eps)
    mean = full(p, _row_sum(p, start, n) * share)
    missed, squares = _row_differences(p, start, n, mean)
    rest = missed * share
    total = squares * 1.0
    # The squares about the mean proper (Chan, Golub and LeVeque, Algorithms for computing the sample variance, 1983).
    excess = rest * missed
    if excess < math.inf:
        total = max(total - excess, 0.0)
    return mean, rest, 1.0 / math.sqrt(total * share + eps)


@jit
def normalise_rows(
    first, last, like, x, weight, bias, out, means, scales, n, eps, centred, has_weight, has_bias, keeps
):  # fmt: skip
    """Rows first to last of out (rows, n) = (x - mean) / sqrt(variance + eps) * weight + bias.

    Args (addresses of elements of the type of `like`): x, out: rows * n; weight, bias: n, unused unless has_weight,
    has_bias; means, scales: rows, the mean and 1 / sqrt(variance + eps) of each row, written where `keeps`, means only
    where `centred`; centred: False takes the mean for 0.
    """
    p, q = pointer_at(x, like), pointer_at(out, like)
    w, b = pointer_at(weight, like), pointer_at(bias, like)
    m, r = pointer_at(means, like), pointer_at(scales, like)
    lanes = lanes_of(p)
    share = 1.0 / n
    whole = n - n % lanes
    mask = lane_mask(p, 0, n - whole)
    for row in range(first, last):
        start = row * n
        mean, rest, scale = _statistics(p, start, n, share, eps, centred)
        if keeps:
            poke(r, row, scale)
            if centred:
                poke(m, row, reduce_max(mean) + rest)  # any lane of the mean
        factor = full(p, scale)
        shift = full(p, -rest * scale)
        # One loop for each form, so that the choice is made once a row.
        if has_weight and has_bias:
            for j in range(0, whole, lanes):
                y = fma(load(p, start + j) - mean, factor, shift)
                store(q, start + j, fma(y, load(w, j), load(b, j)))
        elif has_weight:
            for j in range(0, whole, lanes):
                y = fma(load(p, start + j) - mean, factor, shift)
                store(q, start + j, y * load(w, j))
        else:
            for j in range(0, whole, lanes):
                y = fma(load(p, start + j) - mean, factor, shift)
                store(q, start + j, y + load(b, j) if has_bias else y)
        if whole < n:
            y = fma(load_masked(p, start + whole, mask, 0.0) - mean, factor, shift)
            if has_weight:
                y = y * load_masked(w, whole, mask, 0.0)
            if has_bias:
                y = y + load_masked(b, whole, mask, 0.0)
            store_masked(q, start + whole, y, mask)


@jit
def _gradient_at(g, w, i, j, has_weight):
    """A vector of the gradient of the normalised row."""
    gradient = load(g, i)
    return gradient * load(w, j) if has_weight else gradient


@jit
def _last_gradient(g, w, i, j, mask, has_weight):
    """The same of what is left of a vector."""
    gradient = load_masked(g, i, mask, 0.0)
    return gradient * load_masked(w, j, mask, 0.0) if has_weight else gradient


@jit
def _gradient_of_row(p, g, w, q, start, n, mean, factor, share, centred, has_weight):
    """q[start:start + n], the gradient of a row of x: see reference.py for the equation."""
    lanes = lanes_of(p)
    a, b, c, d = zeros_like(p), zeros_like(p), zeros_like(p), zeros_like(p)
    j = 0
    while j + 2 * lanes <= n:
        i = start + j
        e, f = _gradient_at(g, w, i, j, has_weight), _gradient_at(g, w, i + lanes, j + lanes, has_weight)
        a, b = a + e, b + f
        c = fma(e, (load(p, i) - mean) * factor, c)
        d = fma(f, (load(p, i + lanes) - mean) * factor, d)
        j += 2 * lanes
    while j < n:
        mask = lane_mask(p, 0, n - j)
        e = _last_gradient(g, w, start + j, j, mask, has_weight)
        a = a + e
        c = fma(e, (load_masked(p, start + j, mask, mean) - mean) * factor, c)
        j += lanes
    level = full(p, reduce_add(a + b) * share if centred else 0.0)
    along = full(p, -reduce_add(c + d) * share)
    whole = n - n % lanes
    for j in range(0, whole, lanes):
        i = start + j
        normal = (load(p, i) - mean) * factor
        store(q, i, (fma(normal, along, _gradient_at(g, w, i, j, has_weight)) - level) * factor)
    if whole < n:
        mask = lane_mask(p, 0, n - whole)
        i = start + whole
        normal = (load_masked(p, i, mask, 0.0) - mean) * factor
        gradient = _last_gradient(g, w, i, whole, mask, has_weight)
        store_masked(q, i, (fma(normal, along, gradient) - level) * factor, mask)


@jit
def _two_columns(p, g, m, r, pw, pb, at, j, first, last, n, fresh, centred, wants_weight, wants_bias):
    """Add to two vectors of sums, from column j, what rows first to last give to the gradients of weight and bias.

    The sums are pw[at + j] and pb[at + j] and what follows; `fresh`: what was there counts as 0.
    """
    lanes = lanes_of(p)
    a, b, c, d = zeros_like(p), zeros_like(p), zeros_like(p), zeros_like(p)
    if not fresh:
        if wants_weight:
            a, b = load(pw, at + j), load(pw, at + j + lanes)
        if wants_bias:
            c, d = load(pb, at + j), load(pb, at + j + lanes)
    i = first * n + j
    for row in range(first, last):
        mean = broadcast(m, row) if centred else zeros_like(p)
        factor = broadcast(r, row)
        e, f = load(g, i), load(g, i + lanes)
        a = fma(e, (load(p, i) - mean) * factor, a)
        b = fma(f, (load(p, i + lanes) - mean) * factor, b)
        c, d = c + e, d + f
        i += n
    if wants_weight:
        store(pw, at + j, a)
        store(pw, at + j + lanes, b)
    if wants_bias:
        store(pb, at + j, c)
        store(pb, at + j + lanes, d)


@jit
def _last_columns(p, g, m, r, pw, pb, at, j, first, last, n, fresh, centred, wants_weight, wants_bias):
    """The same for one vector of columns, or what is left of it."""
    mask = lane_mask(p, 0, n - j)
    a, c = zeros_like(p), zeros_like(p)
    if not fresh:
        if wants_weight:
            a = load_masked(pw, at + j, mask, 0.0)
        if wants_bias:
            c = load_masked(pb, at + j, mask, 0.0)
    i = first * n + j
    for row in range(first, last):
        mean = broadcast(m, row) if centred else zeros_like(p)
        e = load_masked(g, i, mask, 0.0)
        a = fma(e, (load_masked(p, i, mask, 0.0) - mean) * broadcast(r, row), a)
        c = c + e
        i += n
    if wants_weight:
        store_masked(pw, at + j, a, mask)
    if wants_bias:
        store_masked(pb, at + j, c, mask)


@jit
def gradients_of_parts(
    first, last, like, grad, x, weight, means, scales, out, of_weight, of_bias, rows, n, part,
    centred, has_weight, wants_x, wants_weight, wants_bias
):  # fmt: skip
    """Of parts first to last, `part` rows each: the gradient of x, and the parts' own sums for weight and bias.

    Args (addresses of elements of the type of `like`): grad, x, out: rows * n; weight: n where has_weight; means: rows
    where centred; scales: rows; of_weight, of_bias: parts * n. out, of_weight and of_bias are written where wanted.
    """
    p, g, w, q = pointer_at(x, like), pointer_at(grad, like), pointer_at(weight, like), pointer_at(out, like)
    m, r = pointer_at(means, like), pointer_at(scales, like)
    pw, pb = pointer_at(of_weight, like), pointer_at(of_bias, like)
    lanes = lanes_of(p)
    share = 1.0 / n
    paired = n - n % (2 * lanes)
    for number in range(first, last):
        begin = number * part
        finish = min(begin + part, rows)
        for block in range(begin, finish, BLOCK):
            end = min(block + BLOCK, finish)
            if wants_x:
                for row in range(block, end):
                    mean = broadcast(m, row) if centred else zeros_like(p)
                    factor = broadcast(r, row)
                    _gradient_of_row(p, g, w, q, row * n, n, mean, factor, share, centred, has_weight)
            if wants_weight or wants_bias:
                # While the rows are in cache.
                at, fresh = number * n, block == begin
                for j in range(0, paired, 2 * lanes):
                    _two_columns(p, g, m, r, pw, pb, at, j, block, end, n, fresh, centred, wants_weight, wants_bias)
                for j in range(paired, n, lanes):
                    _last_columns(p, g, m, r, pw, pb, at, j, block, end, n, fresh, centred, wants_weight, wants_bias)


@jit
def sum_parts(first, last, like, of_weight, of_bias, weight, bias, n, parts, wants_weight, wants_bias):
    """Elements first to last of weight and bias (n,): the sums over the parts of of_weight and of_bias, in order."""
    pw, pb = pointer_at(of_weight, like), pointer_at(of_bias, like)
    w, b = pointer_at(weight, like), pointer_at(bias, like)
    lanes = lanes_of(pw)
    for j in range(first, last, lanes):
        whole = j + lanes <= last
        mask = lane_mask(pw, 0, last - j)
        if wants_weight:
            a = load_part(pw, j, whole, mask)
            for number in range(1, parts):
                a = a + load_part(pw, number * n + j, whole, mask)
            store_part(w, j, a, whole, mask)
        if wants_bias:
            a = load_part(pb, j, whole, mask)
            for number in range(1, parts):
                a = a + load_part(pb, number * n + j, whole, mask)
            store_part(b, j, a, whole, mask)
