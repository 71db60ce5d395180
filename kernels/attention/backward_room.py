"""The working memory of the backward pass, and the tables of where its operands lie."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kernels.attention.products import FEW_ROWS, row_table
from kernels.attention.tiles import BACKWARD_PANELS
from kernels.runtime.numba_cpu import jit
from kernels.simd import TILE_VECTORS, advance, lanes_of, poke


class Room(NamedTuple):
    """A part's working memory: pointers to elements, P panels of W queries each."""

    query_turned: Any  # [P, padded_width, W] queries, with the scale's sign
    grad_turned: Any  # [P, padded_value_width, W] gradients of the output
    sums_turned: Any  # [P, padded_width, W] gradients of the queries
    query_rows: Any  # [across, P * W, W] queries, scaled
    grad_rows: Any  # [value_across, P * W, W]
    scores: Any  # [P, padded_block, W]
    products: Any  # [P, padded_block, W]
    seen: Any  # [P, padded_block, W]
    shift: Any  # [P * W] log-sum-exp
    delta: Any  # [P * W] what the gradients of a query's weights have in common
    skewed: Any  # [P, skewed, W]
    grad_skewed: Any  # [P, skewed, W]
    extra: Any  # [padded_block, W]
    rows: Any  # [W, padded_block]
    spare: Any  # [FEW_ROWS, W]
    table_scores: Any  # [padded_table, W]
    key_sums: Any  # [keys, across * W] where keys are not whole panels wide
    value_sums: Any  # [keys, value_across * W] likewise


class Places(NamedTuple):
    """Where rows and columns of left operands are: pointers to int64."""

    keys: Any  # [padded_block] rows of keys
    last_keys: Any  # the same for a last tile
    values: Any
    last_values: Any
    tile: Any  # rows of a tile
    columns: Any  # [padded_width] 0, 1, 2, ...
    value_columns: Any  # [padded_value_width]
    table: Any  # rows of Shaw's table
    skewed: Any  # rows of table_scores
    lanes: Any  # [P * W] the queries' lanes within the panels' tiles


@jit
def room_of(s, work):
    """The room of a part, whose scratch begins at `work`."""
    width = TILE_VECTORS * lanes_of(work)
    most = BACKWARD_PANELS * width
    across, value_across = (s.width + width - 1) // width, (s.value_width + width - 1) // width
    grad_turned = advance(work, s.padded_width * most)
    sums_turned = advance(grad_turned, s.padded_value_width * most)
    query_rows = advance(sums_turned, s.padded_width * most)
    grad_rows = advance(query_rows, across * width * most)
    scores = advance(grad_rows, value_across * width * most)
    products = advance(scores, s.padded_block * most)
    seen = advance(products, s.padded_block * most)
    shift = advance(seen, s.padded_block * most)
    delta = advance(shift, most)
    skewed = advance(delta, most)
    grad_skewed = advance(skewed, s.skewed * most)
    extra = advance(grad_skewed, s.skewed * most)
    rows = advance(extra, s.padded_block * width)
    spare = advance(rows, s.padded_block * width)
    table_scores = advance(spare, FEW_ROWS * width)
    key_sums = advance(table_scores, s.padded_table * width)
    value_sums = advance(key_sums, s.keys * across * width if s.width % width else 0)
    return Room(
        work, grad_turned, sums_turned, query_rows, grad_rows, scores, products, seen, shift, delta, skewed,
        grad_skewed, extra, rows, spare, table_scores, key_sums, value_sums,
    )  # fmt: skip


@jit
def places_of(s, t, width, tables):
    """The places of a part, whose tables begin at `tables`."""
    last_keys = advance(tables, s.padded_block)
    values = advance(last_keys, s.padded_block)
    last_values = advance(values, s.padded_block)
    tile = advance(last_values, s.padded_block)
    columns = advance(tile, s.padded_block)
    value_columns = advance(columns, s.padded_width)
    table = advance(value_columns, s.padded_value_width)
    skewed = advance(table, s.padded_table)
    lanes = advance(skewed, s.padded_table)
    row_table(tables, s.block, s.key_row)
    row_table(values, s.block, s.value_row)
    row_table(tile, s.block, width)
    row_table(columns, s.width, np.int64(1))
    row_table(value_columns, s.value_width, np.int64(1))
    row_table(table, 2 * t.clip + 1, s.width)
    row_table(skewed, 2 * t.clip + 1, width)
    for q in range(BACKWARD_PANELS * width):
        poke(lanes, q, q // width * s.padded_block * width + q % width)
    return Places(tables, last_keys, values, last_values, tile, columns, value_columns, table, skewed, lanes)
