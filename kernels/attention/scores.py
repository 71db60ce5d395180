"""What happens to a tile of scores between the two matrix products: bias, relative term, cap, everything that hides.

A tile has a row for each key and a lane for each query (see products.py). A hidden score is -inf.
"""

from __future__ import annotations

import math

import numpy as np

from kernels.attention.layout import DISTANCE, NONE, SHAW
from kernels.attention.vectors import weight_of
from kernels.random import keep_factors
from kernels.runtime.numba_cpu import jit
from kernels.simd import (
    TILE_VECTORS,
    advance,
    broadcast,
    fma,
    lane_mask,
    lanes_of,
    load,
    load_first,
    peek,
    pointer,
    poke,
    reduce_add,
    select,
    splat_like,
    store,
    store_first,
    tanh,
    transpose,
    zeros_like,
)


@jit
def fill_rows(t, given, batch, head, query, queries, key, keys, rows, stride):
    """rows[q, k] = the bias of a pair, or -inf where the mask hides it; [queries, stride] elements, a row a query.

    Returns whether any pair is left to see.
    """
    bias = pointer(given.bias)
    seen = not t.has_mask
    for q in range(queries):
        row = advance(rows, q * stride)
        # Without a bias this is the one zero.
        at = batch * t.bias_batch + head * t.bias_head + (query + q) * t.bias_query + key * t.bias_key
        for k in range(keys):
            poke(row, k, peek(bias, at + k * t.bias_key))
        if t.has_mask:
            at = batch * t.mask_batch + head * t.mask_head + (query + q) * t.mask_query + key * t.mask_key
            if t.mask_key:
                # A slice, whose indices need no check against negative ones: so this becomes vectors.
                inside = given.mask[at : at + keys]
                any_seen = np.uint8(0)
                for k in range(keys):
                    any_seen |= inside[k]
                    poke(row, k, peek(row, k) if inside[k] else -math.inf)
                seen = seen or any_seen != 0
            elif given.mask[at]:
                seen = True
            else:
                for k in range(keys):
                    poke(row, k, -math.inf)
    return seen


@jit
def fill_extra(t, given, batch, head, query, queries, key, keys, rows, stride, extra):
    """extra[k, :] = bias and mask of a tile's pairs as in `fill_rows`; whether any pair is left to see.

    rows: scratch elements [panel, stride]. extra: elements [keys, panel].
    """
    lanes = lanes_of(extra)
    width = TILE_VECTORS * lanes
    if t.bias_query == 0 and t.mask_query == 0:
        # The same for all queries.
        left = fill_rows(t, given, batch, head, query, min(queries, 1), key, keys, rows, stride)
        for k in range(keys):
            for j in range(0, width, lanes):
                store(extra, k * width + j, broadcast(rows, k))
        return left
    source, distance = rows, stride
    if t.has_mask or t.bias_key == 0:
        if not fill_rows(t, given, batch, head, query, queries, key, keys, rows, stride):
            return False
    else:
        at = batch * t.bias_batch + head * t.bias_head + query * t.bias_query + key
        source, distance = pointer(given.bias, at), t.bias_query
    if queries < width:
        for i in range(0, keys * width, lanes):
            store(extra, i, zeros_like(extra))
    transpose(source, distance, queries, keys, extra, width)
    return True


@jit
def drop_factors(t, seed, start, keys_all, queries, keys, rows, stride, factors):
    """factors[k, q] = dropout's factor of a pair; 0 past the queries.

    start: index of the tile's first pair among all scores; keys_all: keys in a row of them. rows: scratch elements
    [panel, stride]. factors: elements [keys, panel].
    """
    lanes = lanes_of(factors)
    width = TILE_VECTORS * lanes
    for q in range(queries):
        keep_factors(start + q * keys_all, keys, t.threshold, seed, 0, t.kept, advance(rows, q * stride))
    if queries < width:
        for i in range(0, keys * width, lanes):
            store(factors, i, zeros_like(factors))
    transpose(rows, stride, queries, keys, factors, width)


@jit
def adjust(t, scores, keys, position, key, edge, has_extra, extra, by_distance, skewed):
    """All terms of a tile: scores[k, :] of key `key + k` and the queries at `position + lane`, in place.

    What hides a score makes it -inf; the rest is there when `t.adjusts`, and then the scale is applied here. edge:
    whether a query's reach ends within the tile.

    by_distance: elements, where the distance 0 of this head is. skewed: elements [2 * clip + panel, panel], see
    `skew_rows`.
    """
    lanes = lanes_of(scores)
    width = TILE_VECTORS * lanes
    inverse = 1.0 / t.softcap if t.softcap != 0.0 else 0.0
    if has_extra and t.relative == NONE and t.softcap == 0.0 and not edge:
        # A bias or mask alone, which is common.
        for i in range(0, keys * width, lanes):
            hides = load(extra, i)
            s = fma(load(scores, i), t.inside, hides)
            store(scores, i, select(hides == -math.inf, hides, s))
        return
    for k in range(keys):
        ahead = key + k - position  # distance of the key from lane 0
        for j in range(0, width, lanes):
            at = k * width + j
            s = load(scores, at)
            hides = zeros_like(scores)
            if has_extra:
                hides = load(extra, at)
            if t.adjusts:
                if t.relative == SHAW:
                    row = min(max(ahead + t.clip, 0), 2 * t.clip + width - 1)
                    s = s + load(skewed, row * width + j)
                s = fma(s, t.inside, hides)
                if t.relative == DISTANCE:
                    s = s + load(by_distance, j - ahead)
            if t.softcap != 0.0:
                s = tanh(s * inverse) * t.softcap
            sees = (hides != -math.inf) & lane_mask(scores, ahead - t.right - j, ahead + t.left + 1 - j)
            store(scores, at, select(sees, s, -math.inf))


@jit
def skew_rows(table_scores, clip, skewed):
    """skewed[u, lane] = table_scores[clip(u - lane, 0, 2 * clip), lane]: what a key u - clip ahead of lane 0 adds.

    table_scores: elements [2 * clip + 1, panel], each query's product with the table. skewed: elements
    [2 * clip + panel, panel].
    """
    width = TILE_VECTORS * lanes_of(skewed)
    for u in range(2 * clip + width):
        for lane in range(width):
            row = min(max(u - lane, 0), 2 * clip)
            poke(skewed, u * width + lane, peek(table_scores, row * width + lane))


@jit
def unskew_rows(skewed, clip, table_scores):
    """The transpose of `skew_rows`: sums what belongs to the same row of the table."""
    width = TILE_VECTORS * lanes_of(skewed)
    for i in range((2 * clip + 1) * width):
        poke(table_scores, i, 0.0)
    for u in range(2 * clip + width):
        for lane in range(width):
            at = min(max(u - lane, 0), 2 * clip) * width + lane
            poke(table_scores, at, peek(table_scores, at) + peek(skewed, u * width + lane))


@jit
def mark_seen(scores, count, seen):
    """seen[i] = 0 where a score is hidden, else 1; count is a multiple of the lanes."""
    lanes = lanes_of(scores)
    for i in range(0, count, lanes):
        hidden = load(scores, i) == -math.inf
        store(seen, i, select(hidden, zeros_like(seen), 1.0))


# ----- gradients of the terms --------------------------------------------------------------------------------------


@jit
def add_bias_gradient(t, tile, batch, head, query, queries, key, keys, rows, stride, bias_gradient):
    """bias_gradient += the tile's gradients [key, query], summed where the bias broadcasts.

    Lanes past the queries hold zeros. rows: scratch elements [panel, stride].
    """
    lanes = lanes_of(tile)
    width = TILE_VECTORS * lanes
    start = batch * t.bias_batch + head * t.bias_head + query * t.bias_query + key * t.bias_key
    target = advance(bias_gradient, start)
    if t.bias_query == 0:
        for k in range(keys):
            total = zeros_like(tile)
            for j in range(0, width, lanes):
                total = total + load(tile, k * width + j)
            at = k * t.bias_key
            poke(target, at, peek(target, at) + reduce_add(total))
    elif t.bias_key == 0:
        for j in range(0, width, lanes):
            total = zeros_like(tile)
            for k in range(keys):
                total = total + load(tile, k * width + j)
            store(rows, j, total)
        for q in range(queries):
            at = q * t.bias_query
            poke(target, at, peek(target, at) + peek(rows, q))
    else:
        transpose(tile, width, keys, queries, rows, stride)
        for q in range(queries):
            for k in range(0, keys, lanes):
                at = q * t.bias_query + k
                old = load_first(target, at, keys - k)
                store_first(target, at, old + load_first(rows, q * stride + k, keys - k), keys - k)


@jit
def add_relative_gradient(t, tile, keys, position, key, by_distance, skewed):
    """The tile's gradients [key, query] by distance, added where `adjust` took its numbers from."""
    lanes = lanes_of(tile)
    width = TILE_VECTORS * lanes
    for k in range(keys):
        ahead = key + k - position
        for j in range(0, width, lanes):
            gradient = load(tile, k * width + j)
            if t.relative == DISTANCE:
                store(by_distance, j - ahead, load(by_distance, j - ahead) + gradient)
            else:
                row = min(max(ahead + t.clip, 0), 2 * t.clip + width - 1)
                at = row * width + j
                store(skewed, at, load(skewed, at) + gradient)


@jit
def weight_again(score, log_sum):
    """The weight of a score by its row's log-sum-exp, 1 at most; NaN passes.

    Where another backend made the log-sum-exp, sums in another order may leave the score a unit in the last place above
    it, which of large scores is a large number.
    """
    difference = score - log_sum
    return weight_of(select(difference > 0.0, zeros_like(score), difference), 1.0)


@jit
def weights_and_gradients(t, scores, products, keys, lse, delta, whole, dropped, factors):
    """Scores and the products dO V^T of a tile become the weights and the gradients of the scores, in place.

    lse, delta: elements [panel], delta is rowsum(dO * O) minus the gradient of the log-sum-exp. With `whole`, when the
    tile holds all keys that the panel sees, it is the latter alone: weights and products give the rest, and a softmax
    of the tile itself the weights, with fewer rounding errors. factors: dropout's, read when `dropped`. The scores'
    gradients stop before the scale.
    """
    lanes = lanes_of(scores)
    width = TILE_VECTORS * lanes
    inverse = 1.0 / t.softcap if t.softcap != 0.0 else 0.0
    for j in range(0, width, lanes):
        shift, minus = load(lse, j), load(delta, j)
        norm = splat_like(scores, 1.0)
        if whole:
            total, row = zeros_like(scores), zeros_like(scores)
            for k in range(keys):
                at = k * width + j
                s = load(scores, at)
                hidden = s == -math.inf
                weight = select(hidden, zeros_like(scores), weight_again(s * t.unit, shift))
                # What is hidden may be no number.
                product = select(hidden, zeros_like(scores), load(products, at))
                if dropped:
                    product = product * load(factors, at)
                total = total + weight
                row = fma(weight, product, row)
            norm = select(total == 0.0, zeros_like(scores), 1.0 / total)
            minus = fma(row, norm, minus)
        for k in range(keys):
            at = k * width + j
            s = load(scores, at)
            hidden = s == -math.inf
            weight = select(hidden, zeros_like(scores), weight_again(s * t.unit, shift)) * norm
            product = load(products, at)
            if dropped:
                factor = load(factors, at)
                product = product * factor
                store(scores, at, weight * factor)
            else:
                store(scores, at, weight)
            gradient = weight * (product - minus)
            if t.softcap != 0.0:
                part = s * inverse
                gradient = gradient * fma(-part, part, splat_like(scores, 1.0))
            store(products, at, select(hidden, zeros_like(scores), gradient))
