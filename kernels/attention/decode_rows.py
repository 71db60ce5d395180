"""What decoding's forward and backward pass do with one query and a block of keys: lanes are keys or columns.

Rows are vectors along memory: of queries, keys, values and gradients. `marks` are weights, -1 where a key is hidden.
"""

from __future__ import annotations

import math

from kernels.attention.layout import DISTANCE
from kernels.attention.row_products import products_of_rows
from kernels.runtime.numba_cpu import jit
from kernels.simd import (
    advance,
    broadcast,
    fma,
    lane_mask,
    lanes_of,
    load,
    load_first,
    peek,
    poke,
    prefetch,
    reduce_add,
    select,
    store,
    store_first,
    tanh,
    zeros_like,
)


@jit
def copy_row(source, width, padded, row):
    """row[:padded] = source[:width] and zeros."""
    for c in range(0, padded, lanes_of(row)):
        store(row, c, load_first(source, c, width - c))


@jit
def row_dots(x, rows, stride, count, width, out):
    """out[r] = sum over e < width of x[e] * rows[r * stride + e] for r < count; x has zeros up to whole vectors."""
    lanes = lanes_of(x)
    r = 0
    while r + lanes <= count:
        store(out, r, products_of_rows(x, advance(rows, r * stride), stride, width))
        r += lanes
    while r < count:
        # In the same order, so that a key's score is the same wherever its block begins.
        total, row = zeros_like(x), advance(rows, r * stride)
        for e in range(0, width, lanes):
            total = fma(load(x, e), load_first(row, e, width - e), total)
        poke(out, r, reduce_add(total))
        r += 1


@jit
def add_rows(factors, marks, rows, stride, count, width, skips, sums):
    """sums[c] += sum over r < count of factors[r] * rows[r * stride + c]; with `skips` without those marked -1.

    sums: elements, `width` up to whole groups of four vectors.
    """
    lanes = lanes_of(factors)
    for c in range(0, width, 4 * lanes):
        here, left = advance(rows, c), width - c
        p = q = r = s = zeros_like(factors)
        for k in range(count):
            if skips and peek(marks, k) == -1.0:
                continue
            x, row = broadcast(factors, k), k * stride
            p = fma(x, load_first(here, row, left), p)
            q = fma(x, load_first(here, row + lanes, left - lanes), q)
            r = fma(x, load_first(here, row + 2 * lanes, left - 2 * lanes), r)
            s = fma(x, load_first(here, row + 3 * lanes, left - 3 * lanes), s)
        into = advance(sums, c)
        store(into, 0, load(into, 0) + p)
        store(into, lanes, load(into, lanes) + q)
        store(into, 2 * lanes, load(into, 2 * lanes) + r)
        store(into, 3 * lanes, load(into, 3 * lanes) + s)


@jit
def outer_rows(factors, marks, padded_count, rows, x, padded_width, count, width, skips, scale, out):
    """out[k, c] = scale * sum over r < rows of factors[r, k] * x[r, c]; with `skips` without those marked -1.

    factors, marks: elements [rows, padded_count]; x: [rows, padded_width], whole groups of four vectors; out: [count,
    width].
    """
    lanes = lanes_of(factors)
    for c in range(0, width, 4 * lanes):
        left = width - c
        for k in range(count):
            for line in range(4):
                prefetch(out, (k + 32) * width + c + line * lanes)
            p = q = r = s = zeros_like(factors)
            for row in range(rows):
                place = row * padded_count + k
                if skips and peek(marks, place) == -1.0:
                    continue
                y, at = broadcast(factors, place), row * padded_width + c
                p, q = fma(y, load(x, at), p), fma(y, load(x, at + lanes), q)
                r, s = fma(y, load(x, at + 2 * lanes), r), fma(y, load(x, at + 3 * lanes), s)
            at = k * width + c
            store_first(out, at, p * scale, left)
            store_first(out, at + lanes, q * scale, left - lanes)
            store_first(out, at + 2 * lanes, r * scale, left - 2 * lanes)
            store_first(out, at + 3 * lanes, s * scale, left - 3 * lanes)


@jit
def row_scores(s, t, query, key_rows, keys, has_extra, by_distance, extra, scores):
    """scores[k] of a query and the rows of `keys` keys: -inf where hidden, and past the last up to a whole vector.

    query: elements [padded width]. by_distance: elements, where the distance of the first key is. extra: elements
    [keys], bias and mask by `fill_rows` when `has_extra`, else scratch.
    """
    lanes = lanes_of(scores)
    row_dots(query, key_rows, s.key_row, keys, s.width, scores)
    inverse = 1.0 / t.softcap if t.softcap != 0.0 else 0.0
    if t.relative == DISTANCE:
        for k in range(keys):
            poke(extra, k, (peek(extra, k) if has_extra else 0.0) + peek(by_distance, -k))
    for k in range(0, keys, lanes):
        hides = zeros_like(scores)
        if has_extra or t.relative == DISTANCE:
            hides = load_first(extra, k, keys - k)
        score = fma(load_first(scores, k, keys - k), t.scale, hides)
        if t.softcap != 0.0:
            score = tanh(score * inverse) * t.softcap
        sees = lane_mask(scores, 0, keys - k) & (hides != -math.inf)
        store(scores, k, select(sees, score, -math.inf))
