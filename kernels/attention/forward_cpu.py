"""The forward pass on the CPU: a panel of queries stays, keys and values stream by.

For each block of keys: scores on the register tile, their terms, the running maximum and sum of every lane, and the
block's share of the output, which is rescaled where the maximum has changed (Milakov and Gimelshein, Online normalizer
calculation for softmax, 2018). Nothing of the size of the scores exists.
"""

from __future__ import annotations

import math

import numpy as np

from kernels.attention.layout import DISTANCE, SHAW, Given, read_sizes, read_terms
from kernels.attention.products import add_seen, clear, multiply, multiply_scores, row_table, scale_all
from kernels.attention.scores import adjust, drop_factors, fill_extra, mark_seen, skew_rows
from kernels.attention.vectors import weight_of
from kernels.runtime.numba_cpu import jit, threaded
from kernels.simd import (
    TILE_VECTORS,
    advance,
    any_lane,
    fma,
    full,
    is_nan,
    lanes_of,
    load,
    log,
    maximum,
    pointer,
    pointer_at,
    select,
    store,
    store_first,
    transpose,
    zeros_like,
)

#: How far the maximum may grow before weights are taken relative to the new one: e**8 of them leave room for any sum.
SLACK = 8.0


@jit
def balanced(i, count):
    """0, count - 1, 1, count - 2, ...: so causal panels cost the same in each half of a row of parts."""
    return i // 2 if i % 2 == 0 else count - 1 - i // 2


@jit
def multiply_shaw(s, t, table, query_panel, table_rows, columns, spare, skewed):
    """Each query's product with Shaw's table, skewed: see `skew_rows`. spare: elements [padded clip, panel]."""
    multiply(2 * t.clip + 1, table, table_rows, columns, s.width, query_panel, spare, np.int64(0))
    skew_rows(spare, t.clip, skewed)


@jit
def load_panel(source, stride, queries, columns, factor, panel):
    """panel[c, lane] = factor * source[lane * stride + c], 0 past the queries."""
    width = TILE_VECTORS * lanes_of(panel)
    if queries < width:
        clear(panel, columns * width)
    transpose(source, stride, queries, columns, panel, width)
    if factor != 1.0:
        scale_all(panel, columns * width, factor)


@jit
def _weigh_tile(scores, keys, unit, reference, total, scale):
    """Scores become weights relative to a reference near the running maximum, in place.

    unit: what differences of scores are multiplied with. reference, total: elements [panel], a score and the sum of the
    weights so far; scale: [panel], what older weights are worth now. The reference follows the maximum only when that
    has grown by SLACK / unit, which happens seldom after the first keys. Returns whether any lane's has changed.
    """
    lanes = lanes_of(scores)
    width = TILE_VECTORS * lanes
    changed = False
    for j in range(0, width, lanes):
        m = other = full(scores, -math.inf)
        for k in range(0, keys - 1, 2):
            # In this order a NaN is passed over.
            m = maximum(load(scores, k * width + j), m)
            other = maximum(load(scores, (k + 1) * width + j), other)
        if keys % 2:
            m = maximum(load(scores, (keys - 1) * width + j), m)
        old = load(reference, j)
        m = maximum(other, m)
        m = select((m - old) * unit > SLACK, m, old)
        # While a lane has seen nothing, its weights are exp(-inf), not exp(-inf + inf).
        shift = select(m == -math.inf, zeros_like(m), m)
        first = second = zeros_like(m)
        for k in range(0, keys - 1, 2):
            a = weight_of(load(scores, k * width + j) - shift, unit)
            b = weight_of(load(scores, (k + 1) * width + j) - shift, unit)
            store(scores, k * width + j, a)
            store(scores, (k + 1) * width + j, b)
            first, second = first + a, second + b
        if keys % 2:
            a = weight_of(load(scores, (keys - 1) * width + j) - shift, unit)
            store(scores, (keys - 1) * width + j, a)
            first = first + a
        if any_lane(m != old):
            changed = True
            factor = weight_of(old - shift, unit)
            store(reference, j, m)
            store(scale, j, factor)
            store(total, j, fma(load(total, j), factor, first + second))
        else:
            store(scale, j, full(scores, 1.0))
            store(total, j, load(total, j) + (first + second))
    return changed


@jit
def _scale_columns(panel, columns, scale):
    """panel[c, :] *= scale for every column of the output."""
    lanes = lanes_of(panel)
    width = TILE_VECTORS * lanes
    for j in range(0, width, lanes):
        by = load(scale, j)
        for c in range(columns):
            store(panel, c * width + j, load(panel, c * width + j) * by)


@jit
def _multiply_tiles(tile, count, factors):
    """tile[:count] *= factors; count is a multiple of the lanes."""
    lanes = lanes_of(tile)
    for i in range(0, count, lanes):
        store(tile, i, load(tile, i) * load(factors, i))


@jit
def _finish(panel, columns, unit, total, reference, queries, lse, wants_lse):
    """The sums become averages, 0 where nothing was seen; returns whether one of them is no number."""
    lanes = lanes_of(panel)
    width = TILE_VECTORS * lanes
    odd = False
    for j in range(0, width, lanes):
        sum_of = load(total, j)
        none = sum_of == 0.0
        inverse = 1.0 / sum_of
        found = zeros_like(sum_of)
        for c in range(columns):
            y = select(none, zeros_like(sum_of), load(panel, c * width + j) * inverse)
            store(panel, c * width + j, y)
            found = fma(y, 0.0, found)
        odd = odd or any_lane(is_nan(found))
        if wants_lse:
            value = select(none, full(panel, -math.inf), load(reference, j) * unit + log(sum_of))
            store_first(lse, j, value, queries - j)
    return odd


@jit
def _forward_parts(
    first, last, parts, numbers, factors, mask, bias, counts, distances, table, seed, query, key, value, out, lse, work,
    tables,
):  # fmt: skip
    """Parts [first, last) of all panels of queries.

    numbers, factors: see layout.py. mask .. seed: Given. query, key, value: the first elements; memory is reached by
    the distances in the sizes. out: elements [batch, heads, queries, value_width]. lse: elements
    [batch, heads, queries], or nothing, 0. All five are addresses. work: scratch elements [parts, s.work]. tables:
    int64 [parts, s.offsets].
    """
    s, t = read_sizes(numbers), read_terms(numbers, factors)
    given = Given(mask, bias, counts, distances, table, seed)
    all_queries, all_keys, all_values = pointer_at(query, work), pointer_at(key, work), pointer_at(value, work)
    all_outputs, all_lse = pointer_at(out, work), pointer_at(lse, work)
    lanes = lanes_of(all_queries)
    width = TILE_VECTORS * lanes
    panels = (s.queries + width - 1) // width
    total = s.batch * s.heads * panels
    wants_lse = lse != 0
    has_extra = t.has_mask or t.has_bias
    for part in range(first, last):
        query_panel = pointer(work, part * s.work)
        tile = advance(query_panel, s.padded_width * width)
        sums = advance(tile, s.padded_block * width)
        extra = advance(sums, s.padded_value_width * width)
        rows = advance(extra, s.padded_block * width)
        seen = advance(rows, s.padded_block * width)
        reference = advance(seen, s.padded_block * width)
        sum_of, scale = advance(reference, width), advance(reference, 2 * width)
        table_scores = advance(reference, 3 * width)
        skewed = advance(table_scores, s.padded_table * width)
        # Where rows and columns of the left operands are.
        key_rows = pointer(tables, part * s.offsets)
        last_rows = advance(key_rows, s.padded_block)
        value_rows = advance(last_rows, s.padded_block)
        columns = advance(value_rows, s.padded_block)
        value_columns = advance(columns, s.padded_width)
        table_rows = advance(value_columns, s.padded_value_width)
        row_table(key_rows, s.block, s.key_row)
        row_table(value_rows, s.block, s.value_row)
        row_table(columns, s.width, np.int64(1))
        row_table(value_columns, s.value_width, np.int64(1))
        if t.relative == SHAW:
            row_table(table_rows, 2 * t.clip + 1, s.width)
        careful = False
        head_before = -1
        item, end = total * part // parts, total * (part + 1) // parts
        while item < end:
            head_of_all = item // panels
            batch = head_of_all // s.heads
            head = head_of_all - batch * s.heads
            start = balanced(item - head_of_all * panels, panels) * width
            count = min(width, s.queries - start)
            kv_head = head // s.group
            here = advance(all_queries, batch * s.query_batch + head * s.query_head + start * s.query_row)
            kv_heads = s.heads // s.group
            asks = batch * kv_heads + kv_head != head_before
            head_before = batch * kv_heads + kv_head
            next_query = advance(here, width * s.query_row)
            load_panel(here, s.query_row, count, s.width, t.sign, query_panel)
            if t.relative == SHAW:
                multiply_shaw(s, t, pointer(table), query_panel, table_rows, columns, table_scores, skewed)
            by_distance = pointer(distances, head * t.span + t.zero if t.relative == DISTANCE else 0)
            for j in range(0, width, lanes):
                store(reference, j, full(reference, -math.inf))
                store(sum_of, j, zeros_like(reference))
            keys_there = counts[batch]
            position = start + (keys_there - s.queries if t.from_end else 0)
            k = max(0, position - t.left)
            stop = min(keys_there, position + count + t.right)
            begun = np.int64(0)
            while k < stop:
                keys = min(s.block, stop - k)
                if has_extra and not fill_extra(
                    t, given, batch, head, start, count, k, keys, rows, s.padded_block, extra
                ):
                    k += keys
                    continue
                places = key_rows
                if keys < s.block:
                    places = last_rows
                    row_table(last_rows, keys, s.key_row)
                keys_here = advance(all_keys, batch * s.key_batch + kv_head * s.key_head + k * s.key_row)
                values_here = advance(all_values, batch * s.value_batch + kv_head * s.value_head + k * s.value_row)
                bias_rows = count if t.bias_key == 1 and t.bias_query else 0
                place = batch * t.bias_batch + head * t.bias_head + start * t.bias_query + (k + keys) * t.bias_key
                next_bias = pointer(bias, place if bias_rows else 0)
                multiply_scores(
                    keys, keys_here, s.key_row, places, columns, s.width, query_panel, tile, asks, values_here,
                    s.value_row, s.value_width, begun == 0, next_query, s.query_row, next_bias, t.bias_query, bias_rows,
                )  # fmt: skip
                edge = k < position + count - 1 - t.left or k + keys - 1 > position + t.right
                if has_extra or edge or t.adjusts:
                    adjust(t, tile, keys, position, k, edge, has_extra, extra, by_distance, skewed)
                if careful:
                    mark_seen(tile, keys * width, seen)
                changed = _weigh_tile(tile, keys, t.unit, reference, sum_of, scale)
                if t.threshold:
                    pair = ((batch * s.heads + head) * s.queries + start) * s.keys + k
                    drop_factors(t, seed[0], pair, s.keys, count, keys, rows, s.padded_block, extra)
                    _multiply_tiles(tile, keys * width, extra)
                if changed and begun:
                    _scale_columns(sums, s.value_width, scale)
                if careful:
                    if not begun:
                        clear(sums, s.value_width * width)
                    add_seen(s.value_width, values_here, value_columns, value_rows, keys, tile, seen, sums)
                else:
                    multiply(s.value_width, values_here, value_columns, value_rows, keys, tile, sums, begun)
                begun = np.int64(1)
                k += keys
            if not begun:
                clear(sums, s.value_width * width)
            at = head_of_all * s.queries + start
            odd = _finish(sums, s.value_width, t.unit, sum_of, reference, count, advance(all_lse, at), wants_lse)
            if odd and t.hides and not careful:
                # Once more, leaving out the products with what is hidden: it may be what is no number.
                careful = True
                continue
            careful = False
            transpose(sums, width, s.value_width, count, advance(all_outputs, at * s.value_width), s.value_width)
            item += 1


forward_parts = threaded(_forward_parts)
