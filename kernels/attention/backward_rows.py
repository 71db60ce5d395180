"""Rows of queries and gradients to and from the panels of the backward pass."""

from __future__ import annotations

import math

from kernels.runtime.numba_cpu import jit
from kernels.simd import (
    TILE_VECTORS,
    fma,
    lanes_of,
    load_first,
    peek,
    poke,
    reduce_add,
    store,
    store_first,
    zeros_like,
)


@jit
def copy_rows(source, stride, rows, columns, factor, panels, panel_rows):
    """panels[c // W, row, c % W] = factor * source[row, c], zero past the columns; panels: [across, panel_rows, W]."""
    lanes = lanes_of(panels)
    width = TILE_VECTORS * lanes
    for c in range(0, columns, width):
        for r in range(rows):
            for j in range(0, width, lanes):
                values = load_first(source, r * stride + c + j, columns - c - j)
                store(panels, c * panel_rows + r * width + j, values * factor)


@jit
def write_rows(source, source_stride, rows, columns, target, stride):
    """target[row, :columns] = source[row, :columns]."""
    lanes = lanes_of(source)
    for r in range(rows):
        for c in range(0, columns, lanes):
            store_first(target, r * stride + c, load_first(source, r * source_stride + c, columns - c), columns - c)


@jit
def row_products(a, a_stride, b, b_stride, rows, columns, out):
    """out[row] += sum over c of a[row, c] * b[row, c]."""
    lanes = lanes_of(a)
    for r in range(rows):
        total = zeros_like(a)
        for c in range(0, columns, lanes):
            left = columns - c
            total = fma(load_first(a, r * a_stride + c, left), load_first(b, r * b_stride + c, left), total)
        poke(out, r, peek(out, r) + reduce_add(total))


@jit
def blank_rows(lse, rows, panel_rows, columns, turned, padded_columns, straight):
    """Zero in both forms the rows that see nothing: their weights are 0, whatever the rows hold.

    turned: elements [panels, padded_columns, W]; straight: elements [columns / W, panel_rows, W].
    """
    width = TILE_VECTORS * lanes_of(turned)
    for r in range(rows):
        if peek(lse, r) == -math.inf:
            for c in range(columns):
                poke(turned, (r // width * padded_columns + c) * width + r % width, 0.0)
                poke(straight, (c // width * panel_rows + r) * width + c % width, 0.0)
