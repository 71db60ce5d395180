"""Few queries against many keys on the CPU: generation with a cache of keys and values, which is bound by memory.

Lanes are keys or columns here, not queries. Keys and values are read once for all queries of a group of heads. Long
caches are cut into segments of a fixed length, so that several threads can work at one head; what the segments found is
joined in order (as in Flash-Decoding: Dao et al., 2023).
"""

from __future__ import annotations

import math

import numpy as np

from kernels.attention.decode_rows import add_rows, copy_row, row_scores
from kernels.attention.layout import DISTANCE, Given, read_sizes, read_terms
from kernels.attention.products import scale_all
from kernels.attention.scores import fill_rows
from kernels.attention.tiles import SEGMENT_KEYS
from kernels.attention.vectors import weight_of
from kernels.runtime.numba_cpu import jit, threaded
from kernels.simd import (
    advance,
    fma,
    full,
    lanes_of,
    load,
    maximum,
    peek,
    pointer,
    pointer_at,
    poke,
    reduce_add,
    reduce_max,
    select,
    store,
    store_first,
    zeros_like,
)


@jit
def _block_weights(t, scores, keys, shift):
    """Scores become weights relative to the largest of the block and of `shift`; -1 where hidden, when `t.hides`.

    Returns that largest and the sum of the weights.
    """
    lanes = lanes_of(scores)
    largest = full(scores, -math.inf)
    for k in range(0, keys, lanes):
        # In this order a NaN is passed over.
        largest = maximum(load(scores, k), largest)
    top = max(reduce_max(largest), shift)
    reference = full(scores, top if top > -math.inf else 0.0)
    mark = full(scores, -1.0 if t.hides else 0.0)
    total = zeros_like(scores)
    for k in range(0, keys, lanes):
        s = load(scores, k)
        weight = weight_of(s - reference, 1.0)
        total = total + weight
        store(scores, k, select(s == -math.inf, mark, weight))
    return top, reduce_add(total)


@jit
def _record(s, work, row):
    """Where an item keeps what it found for a row: the reference, the sum of the weights, and the weighted values."""
    found = advance(work, (s.group * s.queries) * s.padded_width + 2 * s.padded_block)
    return advance(found, row * (s.padded_value_width + lanes_of(work)))


@jit
def _decode_segments(
    first, last, segments, numbers, factors, mask, bias, counts, distances, table, seed, query, key, value, work
):  # fmt: skip
    """Segments [first, last) of all heads of keys; what they find stays in work for `_join_segments`.

    numbers .. value: as in the forward pass. work: scratch elements [batch * kv heads * segments, s.work]. A row is a
    query of a head of the group.
    """
    s, t = read_sizes(numbers), read_terms(numbers, factors)
    given = Given(mask, bias, counts, distances, table, seed)
    all_queries, all_keys, all_values = pointer_at(query, work), pointer_at(key, work), pointer_at(value, work)
    lanes = lanes_of(all_queries)
    rows = s.group * s.queries
    kv_heads = s.heads // s.group
    has_extra = t.has_mask or t.has_bias
    for item in range(first, last):
        unit, segment = item // segments, item % segments
        batch, kv_head = unit // kv_heads, unit % kv_heads
        copied = pointer(work, item * s.work)
        scores = advance(copied, rows * s.padded_width)
        extra = advance(scores, s.padded_block)
        for row in range(rows):
            head = kv_head * s.group + row // s.queries
            source = advance(all_queries, batch * s.query_batch + head * s.query_head + row % s.queries * s.query_row)
            copy_row(source, s.width, s.padded_width, advance(copied, row * s.padded_width))
            record = _record(s, copied, row)
            poke(record, 0, -math.inf)
            poke(record, 1, 0.0)
            for c in range(0, s.padded_value_width, lanes):
                store(record, lanes + c, zeros_like(record))
        there = counts[batch]
        for start in range(segment * SEGMENT_KEYS, min(there, (segment + 1) * SEGMENT_KEYS), s.block):
            stop = min(min(start + s.block, there), (segment + 1) * SEGMENT_KEYS)
            for row in range(rows):
                head = kv_head * s.group + row // s.queries
                at = row % s.queries
                position = at + (there - s.queries if t.from_end else 0)
                k = max(start, position - t.left)
                keys = min(stop, position + t.right + 1) - k
                if keys <= 0:
                    continue
                if has_extra and not fill_rows(t, given, batch, head, at, np.int64(1), k, keys, extra, s.padded_block):
                    continue
                mine = advance(copied, row * s.padded_width)
                key_rows = advance(all_keys, batch * s.key_batch + kv_head * s.key_head + k * s.key_row)
                # Not taken from `given` here: that would count references for every block.
                by_distance = pointer(distances, head * t.span + t.zero + position - k if t.relative == DISTANCE else 0)
                row_scores(s, t, mine, key_rows, keys, has_extra, by_distance, extra, scores)
                record = _record(s, copied, row)
                old, before = peek(record, 0), peek(record, 1)
                top, total = _block_weights(t, scores, keys, old)
                into = advance(record, lanes)
                if top > old:
                    fade = math.exp(old - top)
                    scale_all(into, s.padded_value_width, fade)
                    before = before * fade
                poke(record, 0, top)
                poke(record, 1, before + total)
                value_rows = advance(all_values, batch * s.value_batch + kv_head * s.value_head + k * s.value_row)
                add_rows(scores, scores, value_rows, s.value_row, keys, s.value_width, t.hides, into)


@jit
def _join_segments(first, last, segments, numbers, work, out, lse):
    """Output and log-sum-exp of the heads of keys [first, last), from what their segments found, in order.

    out: elements [batch, heads, queries, value_width]. lse: elements [batch, heads, queries], or nothing, 0. Both are
    addresses.
    """
    s = read_sizes(numbers)
    outputs, all_lse = pointer_at(out, work), pointer_at(lse, work)
    lanes = lanes_of(work)
    rows = s.group * s.queries
    for unit in range(first, last):
        for row in range(rows):
            top = -math.inf
            for segment in range(segments):
                top = max(top, peek(_record(s, pointer(work, (unit * segments + segment) * s.work), row), 0))
            total = 0.0
            for segment in range(segments):
                record = _record(s, pointer(work, (unit * segments + segment) * s.work), row)
                # A segment that saw nothing has a sum of 0, one that saw NaN alone has NaN.
                if peek(record, 1) != 0.0:
                    total += peek(record, 1) * math.exp(peek(record, 0) - top)
            # Heads of a group and their queries follow one another.
            place = unit * rows + row
            for c in range(0, s.value_width, lanes):
                y = zeros_like(work)
                for segment in range(segments):
                    record = _record(s, pointer(work, (unit * segments + segment) * s.work), row)
                    if peek(record, 1) != 0.0:
                        share = math.exp(peek(record, 0) - top) / total
                        y = fma(load(record, lanes + c), full(work, share), y)
                store_first(outputs, place * s.value_width + c, y, s.value_width - c)
            if lse != 0:
                poke(all_lse, place, top + math.log(total) if total != 0.0 else -math.inf)


decode_segments = threaded(_decode_segments)
join_segments = threaded(_join_segments)
