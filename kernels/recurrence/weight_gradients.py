"""After backward through time: the gradients of weights, biases and x, as products over all steps at once.

A weight's gradient is the product of the sums' gradients of all steps, transposed, with the states before each step or
with x; x's gradient is the product of the sums' gradients with the input's weights. All run on the tiles of panels.py,
through tables of offsets: `columns` says where the columns of the left operand begin, whatever its layout.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kernels.recurrence.forward import BLOCK_ROWS, panels_of, stride_of
from kernels.recurrence.panels import LARGE_ROWS, PANEL_VECTORS, RUN_TAPS, copy_row, multiply_rows
from kernels.recurrence.sequence import Walk
from kernels.runtime.numba_cpu import jit, scratch, threaded, threads_for
from kernels.simd import VECTOR_BYTES, advance, lanes_of, load, load_first, pointer, store, zeros_like

Array = np.ndarray[Any, Any]
#: Blocks of gates: (first of the sums' gradients, how many, first row of the weight).
Blocks = tuple[tuple[int, int, int], ...]

#: Elements of a pass over memory that are worth a thread.
_GRAIN = 1 << 15
#: Steps whose values are added up before they join the sum of a column.
_SUM_STEPS = 128


def places_of(way: Walk, time: int, row: int) -> Array:
    """int64 [sum of lengths]: where each row's steps lie, steps `time` and rows `row` apart, in the order of a walk."""
    steps = np.repeat(np.arange(way.steps, dtype=np.int64), way.counts)
    rows = np.arange(way.total, dtype=np.int64) - np.repeat(way.starts, way.counts)
    return steps * time + way.order[rows] * row


@jit
def _pack_steps(first, last, panels, features, places, x, packed):
    """Panels [first, last) of runs of RUN_TAPS taps, each run [panels, its taps, PANEL_VECTORS * lanes].

    Tap k of all runs is x's row at places[k].
    """
    lanes = lanes_of(x)
    width = PANEL_VECTORS * lanes
    for panel in range(first, last):
        for begin in range(0, places.size, RUN_TAPS):
            count = min(RUN_TAPS, places.size - begin)
            target = pointer(packed, (begin * panels + panel * count) * width)
            for k in range(count):
                for j in range(0, width, lanes):
                    column = panel * width + j
                    value = load_first(pointer(x), places[begin + k] + column, features - column)
                    store(target, k * width + j, value)


_pack = threaded(_pack_steps)


def pack_steps(x: Array, places: Array, features: int) -> Array:
    """x's rows at `places`, each of `features` elements, as runs of panels of a product over them."""
    panels = panels_of(features, x.itemsize)
    packed = scratch(panels * places.size * PANEL_VECTORS * VECTOR_BYTES // x.itemsize, x.dtype)
    _pack(panels, threads_for(packed.size, _GRAIN), panels, features, places, x, packed)
    return packed


@jit
def _weight_rows(first, last, parts, rows, stride, features, row, taps, columns, a, packed, work, out):
    """Parts [first, last) of `rows` rows of a weight's gradient; see `weight_gradient`.

    A run of taps goes through all panels before the next one: it is read from afar once and then stays in L2.
    work: elements [parts, rows of a part and a tile, stride].
    """
    width = PANEL_VECTORS * lanes_of(work)
    panels = (features + width - 1) // width
    no = np.int64(0)  # A literal would have Numba compile what it is passed to once more.
    for part in range(first, last):
        low, high = rows * part // parts, rows * (part + 1) // parts
        made = pointer(work, part * (rows // parts + 1 + LARGE_ROWS) * stride)
        for begin in range(0, taps.size, RUN_TAPS):
            run = pointer(packed, begin * panels * width)
            multiply_rows(pointer(a), pointer(columns, low), pointer(taps, begin), high - low,
                          min(RUN_TAPS, taps.size - begin), run, panels, made, stride, begin, no)  # fmt: skip
        for r in range(high - low):
            copy_row(advance(made, r * stride), pointer(out, (row + low + r) * features), features)


_run_weight = threaded(_weight_rows)


def weight_gradient(
    a: Array, columns: Array, count: int, taps: Array, packed: Array, features: int, out: Array, row: int, threads: int
) -> None:
    """out[row + c, :] = sum over steps of a[columns[c] + taps[step]] * other[step, :] for c in [0, count).

    a: elements. columns: int64, LARGE_ROWS more than `count`, which tiles may read. taps: int64. packed: the other, of
    `pack_steps`, of `features` features. out: elements [.., features].
    """
    stride = stride_of(features, out.itemsize)
    parts = min(threads, -(-count // LARGE_ROWS))
    work = scratch(parts * (count // parts + 1 + LARGE_ROWS) * stride, out.dtype)
    _run_weight(parts, threads, parts, count, stride, features, row, taps, columns, a, packed, work, out.reshape(-1))


class InputSizes(NamedTuple):
    """Sizes of a gradient of x, from the sums' gradients in `first` columns and in `second` from `second_column` on."""

    parts: int
    steps: int
    directions: int
    distance: int  # elements from one direction to the next
    first: int
    second: int
    second_column: int
    features: int
    stride: int


@jit
def _input_rows(first, last, g, places, rows, columns, sums, packed, work, out):
    """Parts [first, last) of the steps of a gradient of x; see `input_gradient`.

    rows int64: 0, lanes, 2 * lanes, ... packed: for each direction the panels of the first columns' weights, then of
    the second ones'. work: elements [parts, BLOCK_ROWS and a tile, stride].
    """
    lanes = lanes_of(work)
    width = PANEL_VECTORS * lanes
    panels = (g.features + width - 1) // width
    for part in range(first, last):
        made = pointer(work, part * (BLOCK_ROWS + LARGE_ROWS) * g.stride)
        end = g.steps * (part + 1) // g.parts
        for low in range(g.steps * part // g.parts, end, BLOCK_ROWS):
            count = min(BLOCK_ROWS, end - low)
            for block in range(2 * g.directions):
                d, is_second = block // 2, block % 2
                taps = g.second if is_second else g.first
                if taps:
                    weights = pointer(packed, (d * (g.first + g.second) + is_second * g.first) * panels * width)
                    multiply_rows(pointer(sums, d * g.distance + low * lanes), pointer(rows),
                                  pointer(columns, is_second * g.second_column), count, taps, weights, panels,
                                  made, g.stride, block, np.int64(0))  # fmt: skip
            for r in range(count):
                copy_row(advance(made, r * g.stride), pointer(out, places[low + r]), g.features)


_run_input = threaded(_input_rows)


def input_gradient(
    sums: Array, columns: Array, blocks: Blocks, packed: Array, features: int, places: Array, out: Array,
    directions: int, threads: int,
) -> None:  # fmt: skip
    """out[places[step], :] = sum over directions and columns of the blocks of sums[step, column] * w_ih[row, :].

    sums: elements [directions, columns of vectors, total, lanes]. columns: int64, where its columns begin. packed: for
    each direction and block the block's rows of w_ih as panels. out: elements, rows of `features` at `places`.
    """
    (_, first, _), (column, second, _) = blocks if len(blocks) == 2 else (*blocks, (0, 0, 0))
    stride, steps = stride_of(features, out.itemsize), places.size
    parts = min(threads, -(-steps // LARGE_ROWS))
    g = InputSizes(parts, steps, directions, sums.size // directions, first, second, column, features, stride)
    rows = np.arange(BLOCK_ROWS + LARGE_ROWS, dtype=np.int64) * (VECTOR_BYTES // out.itemsize)
    work = scratch(parts * (BLOCK_ROWS + LARGE_ROWS) * stride, out.dtype)
    _run_input(parts, threads, g, places, rows, columns, sums, packed, work, out)


@jit
def _column_vectors(first, last, steps, total, a, sums):
    """Vectors [first, last) of the sums over steps of a [vectors, total, lanes]: groups of steps in order."""
    source, out = pointer(a), pointer(sums)
    lanes = lanes_of(source)
    for vector in range(first, last):
        column = advance(source, vector * total * lanes)
        sum_all = zeros_like(source)
        for group in range(0, steps, _SUM_STEPS):
            even = odd = zeros_like(source)
            for n in range(group, min(group + _SUM_STEPS, steps)):
                if n % 2:
                    odd = odd + load(column, n * lanes)
                else:
                    even = even + load(column, n * lanes)
            sum_all = sum_all + (even + odd)
        store(out, vector * lanes, sum_all)


_sum_columns = threaded(_column_vectors)


def column_sums(a: Array, steps: int, total: int) -> Array:
    """Elements [vectors, lanes], the sums over the first `steps` of a [vectors, total, lanes]."""
    size = a.size // total
    sums = scratch(size, a.dtype)
    vectors = size * a.itemsize // VECTOR_BYTES
    _sum_columns(vectors, threads_for(a.size, _GRAIN), steps, total, a, sums)
    return sums
