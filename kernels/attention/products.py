"""The matrix products of attention's CPU kernels, all on the register tile, and how they are laid out.

The kernels work on tiles of scores that lie transposed: a row for each key, its lanes are queries. So the softmax runs
down the rows and never across lanes, the left operands (keys and values) are read where they lie, whatever their
strides, and what a product makes is what the next one takes as its right operand:

    scores^T [key, query]   = sum over e of key[key, e] * query^T [e, query]
    output^T [column, query] = sum over keys of value[key, column] * weights^T [key, query]

A panel is two vectors of queries.
"""

from __future__ import annotations

import numpy as np

from kernels.runtime.numba_cpu import jit
from kernels.simd import (
    LINE_VECTORS,
    TILE_ROWS,
    TILE_VECTORS,
    advance,
    any_lane,
    broadcast,
    fma,
    is_nan,
    lanes_of,
    load,
    load_first,
    multiply_tile,
    peek,
    poke,
    prefetch,
    select,
    splat_like,
    store,
    store_first,
    zeros_like,
)

#: Rows of the tile for what large ones leave over.
FEW_ROWS = 4


@jit
def _many_rows(a, row_offsets, tap_offsets, taps, b, out, out_stride, accumulate):
    multiply_tile(
        TILE_ROWS, TILE_VECTORS, a, row_offsets, tap_offsets, taps, b, out, out_stride, lanes_of(b), accumulate
    )


@jit
def _few_rows(a, row_offsets, tap_offsets, taps, b, out, out_stride, accumulate):
    multiply_tile(
        FEW_ROWS, TILE_VECTORS, a, row_offsets, tap_offsets, taps, b, out, out_stride, lanes_of(b), accumulate
    )


@jit
def multiply(rows, a, row_offsets, tap_offsets, taps, b, out, accumulate):
    """out[r, :] (+)= sum over k of a[row_offsets[r] + tap_offsets[k]] * b[k, :] for r < rows, in rows of one panel.

    out and row_offsets have room for whole tiles: `padded_rows`; what the rows past the end hold is of no use.
    """
    width = TILE_VECTORS * lanes_of(b)
    r = 0
    while r < rows:
        row, target = advance(row_offsets, r), advance(out, r * width)
        if rows - r > 2 * FEW_ROWS or TILE_ROWS <= FEW_ROWS:
            _many_rows(a, row, tap_offsets, taps, b, target, width, accumulate)
            r += TILE_ROWS
        else:
            _few_rows(a, row, tap_offsets, taps, b, target, width, accumulate)
            r += FEW_ROWS


@jit
def ask_for_rows(source, stride, rows, columns):
    """Ask for rows of memory to come into the cache; anything may lie behind the addresses."""
    line = LINE_VECTORS * lanes_of(source)
    if stride == columns:
        for i in range(0, rows * columns, line):
            prefetch(source, i)
        return
    for r in range(rows):
        for c in range(0, columns, line):
            prefetch(source, r * stride + c)


@jit
def multiply_scores(
    keys, key, key_row, row_offsets, tap_offsets, width, query_panel, tile, asks, value, value_row, value_width, begins,
    query, query_row, bias, bias_row, bias_rows,
):  # fmt: skip
    """`multiply` for keys times queries, asking for memory meanwhile, which costs more than computing when it is far.

    With `asks` for the next keys and the values of these keys, with `begins` for the next queries, at `query`. And for
    as many columns of `bias_rows` rows of a bias as there are keys.
    """
    panel = TILE_VECTORS * lanes_of(tile)
    r = 0
    while r < keys:
        row, target = advance(row_offsets, r), advance(tile, r * panel)
        if begins and r < panel:
            ask_for_rows(advance(query, r * query_row), query_row, TILE_ROWS, width)
        if asks:
            ask_for_rows(advance(key, (r + TILE_ROWS) * key_row), key_row, TILE_ROWS, width)
            ask_for_rows(advance(value, r * value_row), value_row, TILE_ROWS, value_width)
        if r < 2 * bias_rows:
            ask_for_rows(advance(bias, r // 2 * bias_row), bias_row, TILE_ROWS // 2, keys)
        if keys - r > 2 * FEW_ROWS or TILE_ROWS <= FEW_ROWS:
            _many_rows(key, row, tap_offsets, width, query_panel, target, panel, np.int64(0))
            r += TILE_ROWS
        else:
            _few_rows(key, row, tap_offsets, width, query_panel, target, panel, np.int64(0))
            r += FEW_ROWS


@jit
def multiply_asking(rows, a, row_offsets, tap_offsets, taps, b, out, asks, one, one_row, one_width, other, other_row):
    """`multiply` without accumulation; with `asks` it asks for as many rows of two more matrices meanwhile.

    one: rows of `one_width`; other: rows of `taps`.
    """
    width = TILE_VECTORS * lanes_of(b)
    for r in range(0, rows, TILE_ROWS):
        if asks:
            ask_for_rows(advance(one, r * one_row), one_row, TILE_ROWS, one_width)
            ask_for_rows(advance(other, r * other_row), other_row, TILE_ROWS, taps)
        count, into = min(TILE_ROWS, rows - r), advance(out, r * width)
        multiply(count, a, advance(row_offsets, r), tap_offsets, taps, b, into, np.int64(0))


@jit
def multiply_into(rows, a, row_offsets, tap_offsets, taps, b, out, out_stride, spare):
    """out[r * out_stride + lane] += the same sums for exactly the rows r < rows.

    row_offsets has room for whole tiles. spare: elements [FEW_ROWS, panel].
    """
    lanes = lanes_of(b)
    width = TILE_VECTORS * lanes
    r = 0
    while rows - r >= TILE_ROWS:
        row, target = advance(row_offsets, r), advance(out, r * out_stride)
        _many_rows(a, row, tap_offsets, taps, b, target, out_stride, np.int64(1))
        r += TILE_ROWS
    while rows - r >= FEW_ROWS:
        row, target = advance(row_offsets, r), advance(out, r * out_stride)
        _few_rows(a, row, tap_offsets, taps, b, target, out_stride, np.int64(1))
        r += FEW_ROWS
    if r < rows:
        _few_rows(a, advance(row_offsets, r), tap_offsets, taps, b, spare, width, np.int64(0))
        for left in range(rows - r):
            target = advance(out, (r + left) * out_stride)
            for j in range(0, width, lanes):
                store(target, j, load(target, j) + load(spare, left * width + j))


@jit
def add_seen(columns, a, column_offsets, tap_offsets, taps, b, seen, out):
    """As `multiply` with accumulation, where only the pairs that are seen count: 0 * NaN of a hidden one is left out.

    a: elements; b, seen: elements [taps, panel], seen 0 or 1; out: elements [columns, panel].
    """
    lanes = lanes_of(b)
    width = TILE_VECTORS * lanes
    for k in range(taps):
        for j in range(0, width, lanes):
            factor = load(b, k * width + j)
            counts = load(seen, k * width + j) != 0.0
            for c in range(columns):
                at = c * width + j
                x = broadcast(a, peek(column_offsets, c) + peek(tap_offsets, k))
                old = load(out, at)
                store(out, at, select(counts, fma(x, factor, old), old))


@jit
def add_rows_seen(rows, a, row_offsets, tap_offsets, taps, b, seen, out, out_stride):
    """As `multiply_into`, where only the pairs that are seen count; seen is laid out as a."""
    lanes = lanes_of(b)
    width = TILE_VECTORS * lanes
    for r in range(rows):
        for k in range(taps):
            at = peek(row_offsets, r) + peek(tap_offsets, k)
            if peek(seen, at) != 0.0:
                for j in range(0, width, lanes):
                    place = r * out_stride + j
                    store(out, place, fma(broadcast(a, at), load(b, k * width + j), load(out, place)))


@jit
def row_table(table, count, stride):
    """table[r] = r * stride for r < count, the last one again up to whole tiles."""
    for r in range((count + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS + FEW_ROWS):
        poke(table, r, min(r, count - 1) * stride)


@jit
def clear(target, count):
    """target[:count] = 0."""
    lanes = lanes_of(target)
    i = 0
    while i + lanes <= count:
        store(target, i, zeros_like(target))
        i += lanes
    if i < count:
        store_first(target, i, zeros_like(target), count - i)


@jit
def scale_all(target, count, factor):
    """target[:count] *= factor; count is a multiple of the lanes."""
    lanes = lanes_of(target)
    by = splat_like(target, factor)
    for i in range(0, count, lanes):
        store(target, i, load(target, i) * by)


@jit
def has_no_number(source, stride, rows, columns):
    """Whether a matrix holds NaN or an infinity."""
    lanes = lanes_of(source)
    found = zeros_like(source)
    for r in range(rows):
        for c in range(0, columns, lanes):
            # 0 * NaN and 0 * inf are NaN, and stay so in the sum.
            found = fma(load_first(source, r * stride + c, columns - c), 0.0, found)
    return any_lane(is_nan(found))
