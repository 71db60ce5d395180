"""After backward through time: the gradients of weights, biases and x, as products over all steps at once.

The sums' gradients of all steps lie one below the other, [sum of lengths, width] for each direction, and so do the
states before each step. A weight's gradient is the product of the one, transposed, with the other or with x; x's
gradient is their product with the input's weights. All run on the tiles of panels.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kernels.recurrence.forward import BLOCK_ROWS, panels_of, stride_of
from kernels.recurrence.panels import LARGE_ROWS, PANEL_VECTORS, copy_row, multiply_rows
from kernels.recurrence.sequence import Walk
from kernels.runtime.numba_cpu import empty, jit, scratch, threaded, threads_for
from kernels.simd import VECTOR_BYTES, advance, lanes_of, load_first, pointer, store, store_first, zeros_like

Array = np.ndarray[Any, Any]
#: Blocks of gates: (first column of the sums' gradients, how many, first row of the weight).
Blocks = tuple[tuple[int, int, int], ...]

#: Elements of a pass over memory that are worth a thread.
_GRAIN = 1 << 15
#: Rows whose values are added up before they join the sum of a column.
_SUM_ROWS = 128


@jit
def _fill_places(time, row, order, counts, starts, places):
    for t in range(counts.size):
        for r in range(counts[t]):
            places[starts[t] + r] = t * time + order[r] * row


def places_of(way: Walk, time: int, row: int) -> Array:
    """int64 [sum of lengths]: where each row's steps lie, steps `time` and rows `row` apart, in the order of a walk."""
    places = empty(way.total, np.int64)
    _fill_places(time, row, way.order, way.counts, way.starts, places)
    return places


@jit
def _pack_steps(first, last, features, places, x, packed):
    """Panels [first, last) of packed [panels, taps, PANEL_VECTORS * lanes], whose tap k is x's row at places[k]."""
    lanes = lanes_of(x)
    width = PANEL_VECTORS * lanes
    for panel in range(first, last):
        for k in range(places.size):
            target = pointer(packed, (panel * places.size + k) * width)
            for j in range(0, width, lanes):
                column = panel * width + j
                store(target, j, load_first(pointer(x), places[k] + column, features - column))


_pack = threaded(_pack_steps)


def pack_steps(x: Array, places: Array, features: int) -> Array:
    """x's rows at `places`, each of `features` elements, as the panels of a product over them."""
    panels = panels_of(features, x.itemsize)
    packed = scratch(panels * places.size * PANEL_VECTORS * VECTOR_BYTES // x.itemsize, x.dtype)
    _pack(panels, threads_for(packed.size, _GRAIN), features, places, x, packed)
    return packed


@jit
def _weight_rows(first, last, parts, rows, stride, column, features, row, taps, columns, sums, packed, work, out):
    """Parts [first, last) of the rows of a block of a weight's gradient; see `weight_gradient`.

    taps int64: where each step's sums begin; columns int64: 0, 1, 2, ... work: elements [parts, rows of a part and a
    tile, stride].
    """
    width = PANEL_VECTORS * lanes_of(work)
    for part in range(first, last):
        low, high = rows * part // parts, rows * (part + 1) // parts
        made = pointer(work, part * (rows // parts + 1 + LARGE_ROWS) * stride)
        multiply_rows(pointer(sums, column + low), pointer(columns), pointer(taps), high - low, taps.size,
                      pointer(packed), (features + width - 1) // width, made, stride, 0, 0)  # fmt: skip
        for r in range(high - low):
            copy_row(advance(made, r * stride), pointer(out, (row + low + r) * features), features)


_run_weight = threaded(_weight_rows)


def weight_gradient(
    sums: Array, width: int, steps: int, blocks: Blocks, packed: Array, features: int, out: Array, threads: int
) -> None:
    """out[row of a block, :] = sum over steps of sums[step, column of the block] * other[step, :].

    sums: elements [steps, width]. packed: the other, of `pack_steps`, of `features` features. out: elements
    [.., features].
    """
    stride = stride_of(features, out.itemsize)
    taps = np.arange(steps, dtype=np.int64) * width
    for column, count, row in blocks:
        parts = min(threads, -(-count // LARGE_ROWS))
        work = scratch(parts * (count // parts + 1 + LARGE_ROWS) * stride, out.dtype)
        columns = np.arange(count + LARGE_ROWS, dtype=np.int64)
        _run_weight(
            parts, threads, parts, count, stride, column, features, row, taps, columns, sums, packed, work, out
        )  # fmt: skip


class InputSizes(NamedTuple):
    """Sizes of a gradient of x, from the sums' gradients in `first` columns and in `second` from `second_column` on."""

    parts: int
    steps: int
    directions: int
    total: int  # rows from one direction to the next
    width: int
    first: int
    second: int
    second_column: int
    features: int
    stride: int


@jit
def _input_rows(first, last, g, places, rows, taps, sums, packed, work, out):
    """Parts [first, last) of the steps of a gradient of x; see `input_gradient`.

    rows int64: 0, width, 2 * width, ...; taps int64: 0, 1, 2, ... packed: for each direction the panels of the first
    columns' weights, then of the second ones'. work: elements [parts, BLOCK_ROWS and a tile, stride].
    """
    lines = PANEL_VECTORS * lanes_of(work)
    panels = (g.features + lines - 1) // lines
    for part in range(first, last):
        made = pointer(work, part * (BLOCK_ROWS + LARGE_ROWS) * g.stride)
        end = g.steps * (part + 1) // g.parts
        for low in range(g.steps * part // g.parts, end, BLOCK_ROWS):
            count = min(BLOCK_ROWS, end - low)
            for block in range(2 * g.directions):
                d, is_second = block // 2, block % 2
                columns = g.second if is_second else g.first
                if columns:
                    a = pointer(sums, (d * g.total + low) * g.width + is_second * g.second_column)
                    weights = pointer(packed, (d * (g.first + g.second) + is_second * g.first) * panels * lines)
                    multiply_rows(a, pointer(rows), pointer(taps), count, columns, weights, panels,
                                  made, g.stride, block, 0)  # fmt: skip
            for r in range(count):
                copy_row(advance(made, r * g.stride), pointer(out, places[low + r]), g.features)


_run_input = threaded(_input_rows)


def input_gradient(
    sums: Array, width: int, total: int, blocks: Blocks, packed: Array, features: int, places: Array, out: Array,
    directions: int, threads: int,
) -> None:  # fmt: skip
    """out[places[step], :] = sum over directions and columns of the blocks of sums[step, column] * w_ih[row, :].

    sums: elements [directions, total, width]. packed: for each direction and block the block's rows of w_ih as panels.
    out: elements, rows of `features` at `places`.
    """
    (_, first, _), (column, second, _) = blocks if len(blocks) == 2 else (*blocks, (0, 0, 0))
    stride, steps = stride_of(features, out.itemsize), places.size
    parts = min(threads, -(-steps // LARGE_ROWS))
    g = InputSizes(parts, steps, directions, total, width, first, second, column, features, stride)
    rows = np.arange(BLOCK_ROWS + LARGE_ROWS, dtype=np.int64) * width
    taps = np.arange(max(first, second), dtype=np.int64)
    work = scratch(parts * (BLOCK_ROWS + LARGE_ROWS) * stride, out.dtype)
    _run_input(parts, threads, g, places, rows, taps, sums, packed, work, out)


@jit
def _column_vectors(first, last, rows, stride, a, sums):
    """sums[j] of a [rows, stride] for columns [first, last): groups of rows in order, then the groups in order."""
    source, out = pointer(a), pointer(sums)
    for j in range(first, last, lanes_of(source)):
        left = last - j
        total = zeros_like(source)
        for group in range(0, rows, _SUM_ROWS):
            even = odd = zeros_like(source)
            for r in range(group, min(group + _SUM_ROWS, rows)):
                value = load_first(source, r * stride + j, left)
                if r % 2:
                    odd = odd + value
                else:
                    even = even + value
            total = total + (even + odd)
        store_first(out, j, total, left)


_sum_columns = threaded(_column_vectors, align=16)


def column_sums(a: Array, rows: int, columns: int, stride: int) -> Array:
    """[columns], the sums of the first columns of a [rows, stride]."""
    sums = empty(columns, a.dtype)
    _sum_columns(columns, threads_for(rows * columns, _GRAIN), rows, stride, a, sums)
    return sums
