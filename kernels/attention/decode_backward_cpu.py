"""The gradients of few queries against many keys on the CPU: keys are read, and their gradients written, once.

Lanes are keys or columns, as in decode_cpu.py. A part takes segments of a fixed number of keys and makes their
gradients whole; what they give to the queries' gradients is joined in order afterwards. The gradients of the scores
themselves go to memory where a bias or a relative term wants its gradient: for so few queries that is little.
"""

from __future__ import annotations

import math

import numpy as np

from kernels.attention.backward_rows import row_products
from kernels.attention.decode_rows import add_rows, copy_row, outer_rows, row_dots, row_scores
from kernels.attention.layout import DISTANCE, Given, read_sizes, read_terms
from kernels.attention.products import clear
from kernels.attention.scores import fill_rows, weight_again
from kernels.attention.tiles import SEGMENT_KEYS
from kernels.runtime.numba_cpu import jit, threaded
from kernels.simd import (
    advance,
    array_at,
    fma,
    full,
    lanes_of,
    load,
    peek,
    pointer,
    pointer_at,
    poke,
    reduce_add,
    select,
    store,
    store_first,
    zeros_like,
)


@jit
def _fill(target, count, value):
    """target[:count] = value, and up to a whole vector."""
    for i in range(0, count, lanes_of(target)):
        store(target, i, full(target, value))


@jit
def _weights_and_gradients(t, scores, products, keys, shift, delta, whole):
    """Scores and the products dO V^T of a row become its weights and the gradients of its scores, in place.

    A hidden key has weight -1 when `t.hides`, else 0, and gradient 0; so have all up to a whole vector. shift: the
    log-sum-exp. delta: rowsum(dO * O) minus the gradient of the log-sum-exp; with `whole`, when the row's keys are all
    here, the latter alone: see `weights_and_gradients` in scores.py. The gradients stop before the scale.
    """
    lanes = lanes_of(scores)
    inverse = 1.0 / t.softcap if t.softcap != 0.0 else 0.0
    mark = -1.0 if t.hides else 0.0
    norm = 1.0
    if whole:
        total = row = zeros_like(scores)
        for k in range(0, keys, lanes):
            s = load(scores, k)
            hidden = s == -math.inf
            weight = select(hidden, zeros_like(s), weight_again(s, shift))
            # What is hidden, or past the last key, may be no number.
            row = fma(weight, select(hidden, zeros_like(s), load(products, k)), row)
            total = total + weight
        sum_of = reduce_add(total)
        norm = 1.0 / sum_of if sum_of != 0.0 else 0.0
        delta = delta + reduce_add(row) * norm
    for k in range(0, keys, lanes):
        s = load(scores, k)
        hidden = s == -math.inf
        weight = weight_again(s, shift) * norm
        gradient = weight * (load(products, k) - delta)
        if t.softcap != 0.0:
            part = s * inverse
            gradient = gradient * fma(-part, part, full(s, 1.0))
        store(scores, k, select(hidden, full(s, mark), weight))
        store(products, k, select(hidden, zeros_like(s), gradient))


@jit
def _decode_backward_parts(
    first, last, parts, segments, numbers, factors, mask, bias, counts, distances, table, seed, query, key, value,
    output, lse, grad_output, grad_lse, more, wanted, query_sums, grad_key, grad_value, grad_scores, work,
):  # fmt: skip
    """Parts [first, last) of all segments of all heads of keys.

    numbers .. value, output .. more: as in the backward pass for panels. wanted: int64, whether the gradient of query,
    key, value and scores is. query_sums: scratch elements [batch * kv heads * segments, rows, padded_width], for
    `_join_queries`; a row is a query of a head of the group. grad_key, grad_value: elements, contiguous. grad_scores:
    elements [batch, heads, queries, keys], zeros where no pair is seen. work: scratch elements [parts, s.work].
    """
    s, t = read_sizes(numbers), read_terms(numbers, factors)
    given = Given(mask, bias, counts, distances, table, seed)
    has_extra = t.has_mask or t.has_bias
    has_grad_lse = grad_lse != 0
    # Their lengths are not looked at.
    query, key, value = array_at(work, query, 1), array_at(work, key, 1), array_at(work, value, 1)
    output, lse = array_at(work, output, 1), array_at(work, lse, 1)
    grad_output, grad_lse = array_at(work, grad_output, 1), array_at(work, grad_lse, 1)
    grad_key, grad_value = array_at(work, grad_key, 1), array_at(work, grad_value, 1)
    lanes = lanes_of(work)
    rows = s.group * s.queries
    kv_heads = s.heads // s.group
    items = s.batch * kv_heads * segments
    mark = -1.0 if t.hides else 0.0
    for part in range(first, last):
        queries = pointer(work, part * s.work)
        grads = advance(queries, rows * s.padded_width)
        weights = advance(grads, rows * s.padded_value_width)
        gradients = advance(weights, rows * s.padded_block)
        extra = advance(gradients, rows * s.padded_block)
        shifts = advance(extra, s.padded_block)
        deltas = advance(shifts, rows)
        for item in range(items * part // parts, items * (part + 1) // parts):
            unit, segment = item // segments, item % segments
            batch, kv_head = unit // kv_heads, unit % kv_heads
            there = counts[batch]
            whole = there <= s.block
            sums = pointer(query_sums, item * rows * s.padded_width)
            clear(sums, rows * s.padded_width)
            for row in range(rows):
                head, at = kv_head * s.group + row // s.queries, row % s.queries
                place = (batch * s.heads + head) * s.queries + at
                mine, grad = advance(queries, row * s.padded_width), advance(grads, row * s.padded_value_width)
                grad_row = pointer(grad_output, batch * more[3] + head * more[4] + at * more[5])
                query_row = pointer(query, batch * s.query_batch + head * s.query_head + at * s.query_row)
                delta = advance(deltas, row)
                poke(shifts, row, lse[place])
                poke(delta, 0, -grad_lse[place] if has_grad_lse else 0.0)
                if lse[place] == -math.inf:
                    # It sees nothing, and is nothing to others, whatever it holds.
                    _fill(mine, s.padded_width, 0.0)
                    _fill(grad, s.padded_value_width, 0.0)
                    continue
                copy_row(query_row, s.width, s.padded_width, mine)
                copy_row(grad_row, s.value_width, s.padded_value_width, grad)
                if not whole:
                    output_row = pointer(output, batch * more[0] + head * more[1] + at * more[2])
                    row_products(output_row, more[2], grad_row, more[5], 1, s.value_width, delta)
            end = min(s.keys, (segment + 1) * SEGMENT_KEYS)
            stop_all = min(there, end)
            start = segment * SEGMENT_KEYS
            while start < stop_all:
                stop = min(start + s.block, stop_all)
                for row in range(rows):
                    head, at = kv_head * s.group + row // s.queries, row % s.queries
                    position = at + (there - s.queries if t.from_end else 0)
                    k = max(start, position - t.left)
                    keys = min(stop, position + t.right + 1) - k
                    mine = advance(weights, row * s.padded_block)
                    changes = advance(gradients, row * s.padded_block)
                    sees = keys > 0 and peek(shifts, row) != -math.inf
                    if sees and has_extra:
                        sees = fill_rows(t, given, batch, head, at, np.int64(1), k, keys, extra, s.padded_block)
                    if not sees or keys < stop - start:
                        _fill(mine, stop - start, mark)
                        _fill(changes, stop - start, 0.0)
                    if not sees:
                        continue
                    mine, changes = advance(mine, k - start), advance(changes, k - start)
                    key_rows = pointer(key, batch * s.key_batch + kv_head * s.key_head + k * s.key_row)
                    value_rows = pointer(value, batch * s.value_batch + kv_head * s.value_head + k * s.value_row)
                    by_distance = pointer(
                        distances, head * t.span + t.zero + position - k if t.relative == DISTANCE else 0
                    )
                    asker = advance(queries, row * s.padded_width)
                    row_scores(s, t, asker, key_rows, keys, has_extra, by_distance, extra, mine)
                    grad = advance(grads, row * s.padded_value_width)
                    row_dots(grad, value_rows, s.value_row, keys, s.value_width, changes)
                    shift, delta = peek(shifts, row), peek(deltas, row)
                    _weights_and_gradients(t, mine, changes, keys, shift, delta, whole)
                    if wanted[3]:
                        place = ((batch * s.heads + head) * s.queries + at) * s.keys + k
                        for i in range(0, keys, lanes):
                            store_first(pointer(grad_scores, place), i, load(changes, i), keys - i)
                    if wanted[0]:
                        into = advance(sums, row * s.padded_width)
                        add_rows(changes, mine, key_rows, s.key_row, keys, s.width, t.hides, into)
                if wanted[1]:
                    into = pointer(grad_key, (unit * s.keys + start) * s.width)
                    outer_rows(
                        gradients, weights, s.padded_block, rows, queries, s.padded_width, stop - start, s.width,
                        t.hides, t.scale, into,
                    )  # fmt: skip
                if wanted[2]:
                    into = pointer(grad_value, (unit * s.keys + start) * s.value_width)
                    outer_rows(
                        weights, weights, s.padded_block, rows, grads, s.padded_value_width, stop - start,
                        s.value_width, t.hides, 1.0, into,
                    )  # fmt: skip
                start = stop
            # Keys past the row's length.
            if wanted[1]:
                clear(pointer(grad_key, (unit * s.keys + start) * s.width), (end - start) * s.width)
            if wanted[2]:
                clear(pointer(grad_value, (unit * s.keys + start) * s.value_width), (end - start) * s.value_width)


@jit
def _join_queries(first, last, segments, numbers, factors, query_sums, grad_query):
    """The gradients of the queries of the heads of keys [first, last): what their segments gave, in order, scaled.

    grad_query: the address of elements [batch, heads, queries, width].
    """
    s, t = read_sizes(numbers), read_terms(numbers, factors)
    target = pointer_at(grad_query, query_sums)
    lanes = lanes_of(query_sums)
    rows = s.group * s.queries
    for unit in range(first, last):
        for row in range(rows):
            # Heads of a group and their queries follow one another.
            into = advance(target, (unit * rows + row) * s.width)
            for c in range(0, s.width, lanes):
                total = zeros_like(query_sums)
                for segment in range(segments):
                    place = ((unit * segments + segment) * rows + row) * s.padded_width
                    total = total + load(pointer(query_sums, place), c)
                store_first(into, c, total * t.scale, s.width - c)


decode_backward_parts = threaded(_decode_backward_parts)
join_queries = threaded(_join_queries)
