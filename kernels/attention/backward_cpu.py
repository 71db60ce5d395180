"""The backward pass on the CPU: weights are made again from the log-sum-exp, and five products run on the tile.

A unit of work is a head of keys and values with all the queries that use it, or all such heads that share a slice of a
bias that wants its gradient: so nothing that is summed is ever split between threads. Within a unit a few panels of
queries stay while the keys stream by:

    scores^T = K Q^T        products^T = V dO^T         elementwise: weights P and gradients dX of the scores
    dQ^T += K^T dX^T        dV += P^T dO                dK += dX^T Q

(Dao et al., FlashAttention, 2022, algorithm 4, with queries in the outer loop.)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from kernels.attention.backward_room import places_of, room_of
from kernels.attention.backward_rows import blank_rows, copy_rows, row_products, write_rows
from kernels.attention.forward_cpu import load_panel, multiply_shaw
from kernels.attention.layout import DISTANCE, SHAW, Given, read_sizes, read_terms
from kernels.attention.products import (
    add_rows_seen,
    add_seen,
    clear,
    has_no_number,
    multiply,
    multiply_asking,
    multiply_into,
    row_table,
    scale_all,
)
from kernels.attention.scores import (
    add_bias_gradient,
    add_relative_gradient,
    adjust,
    drop_factors,
    fill_extra,
    mark_seen,
    unskew_rows,
    weights_and_gradients,
)
from kernels.attention.tiles import BACKWARD_PANELS
from kernels.runtime.numba_cpu import jit, threaded
from kernels.simd import TILE_VECTORS, advance, array_at, lanes_of, peek, pointer, poke, transpose


class Tile(NamedTuple):
    """The pairs of one panel of queries and one block of keys."""

    batch: int
    head: int
    query: int
    queries: int
    position: int
    key: int
    keys: int


@jit
def _load_queries(s, t, table, at, room, count, query, grad, grad_row, output, output_row, whole):
    """Bring up to P panels of queries and of the output's gradients into the room; the log-sum-exps are there.

    delta must hold minus the gradients of the log-sum-exp, to which rowsum(dO * O) is added unless `whole`: see
    `weights_and_gradients`.
    """
    width = TILE_VECTORS * lanes_of(query)
    most = BACKWARD_PANELS * width
    if not whole:
        row_products(output, output_row, grad, grad_row, count, s.value_width, room.delta)
    for start in range(0, count, width):
        inside = min(width, count - start)
        turned = advance(room.query_turned, start * s.padded_width)
        load_panel(advance(query, start * s.query_row), s.query_row, inside, s.width, t.sign, turned)
        if t.relative == SHAW:
            multiply_shaw(
                s, t, table, turned, at.table, at.columns, room.table_scores, advance(room.skewed, start * s.skewed)
            )
        turned = advance(room.grad_turned, start * s.padded_value_width)
        load_panel(advance(grad, start * grad_row), grad_row, inside, s.value_width, 1.0, turned)
    copy_rows(query, s.query_row, count, s.width, t.scale, room.query_rows, most)
    copy_rows(grad, grad_row, count, s.value_width, 1.0, room.grad_rows, most)
    blank_rows(room.shift, count, most, s.width, room.query_turned, s.padded_width, room.query_rows)
    blank_rows(room.shift, count, most, s.value_width, room.grad_turned, s.padded_value_width, room.grad_rows)
    for q in range(count):
        if peek(room.shift, q) == -math.inf:
            poke(room.delta, q, 0.0)


@jit
def _make_tile(
    s, t, seed, at, room, tile, start, key, value, by_distance, whole, careful, asks_keys, asks_queries, next_query,
    next_grad, grad_row,
):  # fmt: skip
    """Weights and gradients of the scores of the panel that begins at lane `start`, of which some pair is seen.

    What bias and mask add is in room.extra. asks_keys, asks_queries: whether to ask for keys and values, and for the
    next queries and gradients of the output.
    """
    # No arrays come in here: each of them would be counted as used for every tile.
    width = TILE_VECTORS * lanes_of(key)
    scores, products = advance(room.scores, start * s.padded_block), advance(room.products, start * s.padded_block)
    last, last_key = tile.position + tile.queries - 1, tile.key + tile.keys - 1
    has_extra = t.has_mask or t.has_bias
    places, value_places = at.keys, at.values
    if tile.keys < s.block:
        places, value_places = at.last_keys, at.last_values
    turned = advance(room.query_turned, start * s.padded_width)
    # Memory that is far costs more than computing: these values and the next keys come while the scores are made.
    multiply_asking(
        tile.keys, key, places, at.columns, s.width, turned, scores, asks_keys, value, s.value_row, s.value_width,
        advance(key, tile.keys * s.key_row), s.key_row,
    )  # fmt: skip
    edge = tile.key < last - t.left or last_key > tile.position + t.right
    if has_extra or edge or t.adjusts:
        skewed = advance(room.skewed, start * s.skewed)
        adjust(t, scores, tile.keys, tile.position, tile.key, edge, has_extra, room.extra, by_distance, skewed)
    if careful:
        mark_seen(scores, tile.keys * width, advance(room.seen, start * s.padded_block))
    turned = advance(room.grad_turned, start * s.padded_value_width)
    multiply_asking(
        tile.keys, value, value_places, at.value_columns, s.value_width, turned, products, asks_queries, next_query,
        s.query_row, s.width, next_grad, grad_row,
    )  # fmt: skip
    if t.threshold:
        index = ((tile.batch * s.heads + tile.head) * s.queries + tile.query) * s.keys + tile.key
        drop_factors(t, seed, index, s.keys, tile.queries, tile.keys, room.rows, s.padded_block, room.extra)
    shift, delta = advance(room.shift, start), advance(room.delta, start)
    weights_and_gradients(t, scores, products, tile.keys, shift, delta, whole, t.threshold != 0, room.extra)


@jit
def _add_products(careful, rows, a, at, taps, b, panel_rows, columns, out, room):
    """out [rows, panels of columns] += a [rows, taps] times b, panels [columns, panel_rows, W] of which `taps` rows."""
    width = TILE_VECTORS * lanes_of(a)
    across = (columns + width - 1) // width
    for c in range(across):
        panel, into = advance(b, c * panel_rows * width), advance(out, c * width)
        if careful:
            add_rows_seen(rows, a, at.tile, at.lanes, taps, panel, room.seen, into, across * width)
        else:
            multiply_into(rows, a, at.tile, at.lanes, taps, panel, into, across * width, room.spare)


@jit
def _finish_panel(s, t, table, at, room, start, queries, wants_query, wants_table, grad_table, grad_query):
    """Shaw's share of the gradients of a panel, and the queries' gradients to their place."""
    width = TILE_VECTORS * lanes_of(grad_query)
    sums = advance(room.sums_turned, start * s.padded_width)
    if wants_table:
        rows = 2 * t.clip + 1
        unskew_rows(advance(room.grad_skewed, start * s.skewed), t.clip, room.table_scores)
        across = (s.width + width - 1) // width
        for c in range(across):
            panel = advance(room.query_rows, (c * BACKWARD_PANELS * width + start) * width)
            multiply_into(
                rows, room.table_scores, at.skewed, at.lanes, queries, panel, advance(grad_table, c * width),
                across * width, room.spare,
            )  # fmt: skip
        if wants_query:
            multiply(s.width, table, at.columns, at.table, rows, room.table_scores, sums, np.int64(1))
    if wants_query:
        scale_all(sums, s.width * width, t.scale)
        transpose(sums, width, s.width, queries, grad_query, s.width)


@jit
def _backward_parts(
    first, last, parts, numbers, factors, mask, bias, counts, distances, table, seed, query, key, value, output, lse,
    grad_output, grad_lse, more, wanted, grad_query, grad_key, grad_value, grad_bias, grad_distances, grad_table, work,
    tables,
):  # fmt: skip
    """Parts [first, last) of all units.

    numbers, factors, mask .. seed, query, key, value: as in the forward pass. output, grad_output: like query, their
    distances in `more`: int64 (batch, head, row) of output, then of grad_output. lse, grad_lse: elements [batch, heads,
    queries]; grad_lse may be 0. wanted: int64, whether the gradient of query, key, value, bias, relative is.
    grad_query, grad_key, grad_value: contiguous. From query on all but more and wanted are addresses as far as here.
    grad_bias: zeros in bias's shape. grad_distances: zeros [batch, heads, span]. grad_table: zeros [batch, kv heads,
    2 * clip + 1, across * W]. work: scratch elements [parts, s.work]. tables: int64 [parts, s.offsets].
    """
    s, t = read_sizes(numbers), read_terms(numbers, factors)
    given = Given(mask, bias, counts, distances, table, seed)
    has_extra = t.has_mask or t.has_bias
    has_grad_lse = grad_lse != 0
    # Their lengths are not looked at.
    query, key, value = array_at(work, query, 1), array_at(work, key, 1), array_at(work, value, 1)
    output, lse = array_at(work, output, 1), array_at(work, lse, 1)
    grad_output, grad_lse = array_at(work, grad_output, 1), array_at(work, grad_lse, 1)
    grad_query = array_at(work, grad_query, 1)
    grad_key, grad_value = array_at(work, grad_key, 1), array_at(work, grad_value, 1)
    wants_query, wants_key, wants_value = wanted[0], wanted[1], wanted[2]
    wants_bias, wants_relative = wanted[3], wanted[4]
    wants_table = wants_relative and t.relative == SHAW
    width = TILE_VECTORS * lanes_of(query)
    most = BACKWARD_PANELS * width
    kv_heads = s.heads // s.group
    across, value_across = (s.width + width - 1) // width, (s.value_width + width - 1) // width
    # A unit: the rows of the batch and the heads of keys that share a slice of the bias's gradient.
    batch_units = 1 if wants_bias and t.bias_batch == 0 else s.batch
    head_units = 1 if wants_bias and t.bias_head == 0 else kv_heads
    unit_heads = kv_heads // head_units
    units = batch_units * head_units
    for part in range(first, last):
        room = room_of(s, pointer(work, part * s.work))
        at = places_of(s, t, width, pointer(tables, part * s.offsets))
        begin, end = units * part // parts, units * (part + 1) // parts
        # One number counts the pairs (row of the batch, head of keys) of all the part's units.
        pairs = s.batch // batch_units * unit_heads
        for pair in range(begin * pairs, end * pairs):
            unit = pair // pairs
            batch = unit // head_units + pair % pairs // unit_heads
            kv_head = unit % head_units + pair % pairs % unit_heads
            kv_index = batch * kv_heads + kv_head
            keys_there = counts[batch]
            key_start = pointer(key, batch * s.key_batch + kv_head * s.key_head)
            value_start = pointer(value, batch * s.value_batch + kv_head * s.value_head)
            key_out = pointer(grad_key, kv_index * s.keys * s.width if wants_key else 0)
            value_out = pointer(grad_value, kv_index * s.keys * s.value_width if wants_value else 0)
            # Sums gather in the gradients themselves where those are whole panels wide.
            key_sums = room.key_sums if s.width % width else key_out
            value_sums = room.value_sums if s.value_width % width else value_out
            clear(key_sums, s.keys * across * width if wants_key else 0)
            clear(value_sums, s.keys * value_across * width if wants_value else 0)
            careful = t.hides and (
                has_no_number(key_start, s.key_row, keys_there, s.width)
                or has_no_number(value_start, s.value_row, keys_there, s.value_width)
            )
            # And one number for the blocks of queries of all heads of the group.
            blocks = (s.queries + most - 1) // most
            for block in range(s.group * blocks):
                head = kv_head * s.group + block // blocks
                head_index = batch * s.heads + head
                start = block % blocks * most
                count = min(most, s.queries - start)
                query_here = pointer(query, batch * s.query_batch + head * s.query_head + start * s.query_row)
                grad_here = pointer(grad_output, batch * more[3] + head * more[4] + start * more[5])
                output_here = pointer(output, batch * more[0] + head * more[1] + start * more[2])
                careful_here = careful or (
                    t.hides
                    and (
                        has_no_number(query_here, s.query_row, count, s.width)
                        or has_no_number(grad_here, more[5], count, s.value_width)
                    )
                )
                by_distance = pointer(distances, head * t.span + t.zero if t.relative == DISTANCE else 0)
                wants_here = wants_relative and t.relative == DISTANCE
                grad_distance = pointer(grad_distances, head_index * t.span + t.zero if wants_here else 0)
                for q in range(most):
                    # Lanes past the queries have weights 0.
                    poke(room.shift, q, lse[head_index * s.queries + start + q] if q < count else math.inf)
                    poke(room.delta, q, 0.0)
                if has_grad_lse:
                    for q in range(count):
                        poke(room.delta, q, -grad_lse[head_index * s.queries + start + q])
                position = start + (keys_there - s.queries if t.from_end else 0)
                k = max(0, position - t.left)
                stop = min(keys_there, position + count + t.right)
                whole = stop - k <= s.block
                _load_queries(
                    s, t, pointer(table), at, room, count, query_here, grad_here, more[5], output_here, more[2], whole
                )  # fmt: skip
                clear(room.sums_turned, most * s.padded_width)
                clear(room.grad_skewed, most * s.skewed if wants_table else 0)
                next_query, next_grad = advance(query_here, count * s.query_row), advance(grad_here, count * more[5])
                begins = True
                while k < stop:
                    keys = min(s.block, stop - k)
                    if keys < s.block:
                        row_table(at.last_keys, keys, s.key_row)
                        row_table(at.last_values, keys, s.value_row)
                    keys_here, values_here = advance(key_start, k * s.key_row), advance(value_start, k * s.value_row)
                    some = False
                    for lane in range(0, count, width):
                        inside = min(width, count - lane)
                        tile = Tile(batch, head, start + lane, inside, position + lane, k, keys)
                        sees = k <= tile.position + inside - 1 + t.right and k + keys - 1 >= tile.position - t.left
                        if sees and has_extra:
                            sees = fill_extra(
                                t, given, batch, head, start + lane, inside, k, keys, room.rows, s.padded_block,
                                room.extra,
                            )  # fmt: skip
                        gradients = advance(room.products, lane * s.padded_block)
                        if not sees:
                            clear(advance(room.scores, lane * s.padded_block), keys * width)
                            clear(gradients, keys * width)
                            clear(advance(room.seen, lane * s.padded_block), keys * width if careful_here else 0)
                            continue
                        _make_tile(
                            s, t, seed[0], at, room, tile, lane, keys_here, values_here, by_distance, whole,
                            careful_here, block == 0 and lane == 0, begins and lane == 0, next_query, next_grad,
                            more[5],
                        )  # fmt: skip
                        some = True
                        if wants_bias:
                            add_bias_gradient(
                                t, gradients, batch, head, start + lane, inside, k, keys, room.rows, s.padded_block,
                                pointer(grad_bias),
                            )  # fmt: skip
                        if wants_relative:
                            grad_skewed = advance(room.grad_skewed, lane * s.skewed)
                            add_relative_gradient(t, gradients, keys, position + lane, k, grad_distance, grad_skewed)
                        sums = advance(room.sums_turned, lane * s.padded_width)
                        if wants_query and careful_here:
                            seen = advance(room.seen, lane * s.padded_block)
                            add_seen(s.width, keys_here, at.columns, at.keys, keys, gradients, seen, sums)
                        elif wants_query:
                            multiply(s.width, keys_here, at.columns, at.keys, keys, gradients, sums, np.int64(1))
                    if some and wants_value:
                        into = advance(value_sums, k * value_across * width)
                        _add_products(
                            careful_here, keys, room.scores, at, count, room.grad_rows, most, s.value_width, into, room
                        )
                    if some and wants_key:
                        into = advance(key_sums, k * across * width)
                        _add_products(
                            careful_here, keys, room.products, at, count, room.query_rows, most, s.width, into, room
                        )
                    k += keys
                    begins = False
                for lane in range(0, count, width):
                    place = (head_index * s.queries + start + lane) * s.width
                    into = pointer(grad_table, kv_index * (2 * t.clip + 1) * across * width if wants_table else 0)
                    _finish_panel(
                        s, t, pointer(table), at, room, lane, min(width, count - lane), wants_query, wants_table, into,
                        pointer(grad_query, place if wants_query else 0),
                    )  # fmt: skip
            if wants_key and s.width % width:
                write_rows(key_sums, across * width, s.keys, s.width, key_out, s.width)
            if wants_value and s.value_width % width:
                write_rows(value_sums, value_across * width, s.keys, s.value_width, value_out, s.value_width)


backward_parts = threaded(_backward_parts)
