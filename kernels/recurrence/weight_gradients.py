"""The gradients of weights, biases and x that a group of steps backward gives, see backward.py.

A weight's gradient is the product of the sums' gradients of all steps, transposed, with the states before each step or
with x; x's gradient is the product of the sums' gradients with the input's weights. All run on the tiles of panels.py,
through tables of offsets. What a part takes are rows of the weights and rows of x, never a part of a sum.
"""

from __future__ import annotations

import numpy as np

from kernels.recurrence.backward import group_range
from kernels.recurrence.forward import BLOCK_ROWS, GRU_BEFORE
from kernels.recurrence.panels import LARGE_ROWS, PANEL_VECTORS, RUN_TAPS, copy_row, multiply_rows
from kernels.runtime.numba_cpu import jit, threaded
from kernels.simd import advance, lanes_of, load, load_first, pointer, store, store_first, zeros_like


@jit
def _share(part, parts, rows):
    """The rows [low, high) of a part: whole tiles but for the last, which may write past its rows."""
    tiles = (rows + LARGE_ROWS - 1) // LARGE_ROWS
    return min(tiles * part // parts * LARGE_ROWS, rows), min(tiles * (part + 1) // parts * LARGE_ROWS, rows)


@jit
def _weight_rows(part, parts, rows, columns, a, taps, steps, panels, b, made, adds, features, out):
    """A part of `rows` rows of a weight's gradient: made[c, :] (+)= sum over steps of a[columns[c] + taps[step]] b[step, :].

    columns, taps: pointers to int64, LARGE_ROWS more columns than `rows` can be read. b: pointer to elements [panels,
    steps, width]; made: [rows and a tile, panels * width]. out: pointer to elements [rows, features], written when
    `features` is not 0, with what was made.
    """
    width = PANEL_VECTORS * lanes_of(a)
    low, high = _share(part, parts, rows)
    if low == high:
        return
    target = advance(made, low * panels * width)
    for begin in range(0, steps, RUN_TAPS):
        run = min(RUN_TAPS, steps - begin)
        for panel in range(panels):
            # One run of one panel.
            multiply_rows(a, advance(columns, low), advance(taps, begin), high - low, run,
                          advance(b, (panel * steps + begin) * width), np.int64(1), advance(target, panel * width),
                          panels * width, adds + begin, np.int64(0))  # fmt: skip
    for r in range(low, high if features else low):
        copy_row(advance(made, r * panels * width), advance(out, r * features), features)


@jit
def _bias_vectors(first, last, steps, stride, a, sums, adds):
    """Vectors [first, last) of sums [vectors, lanes] (+)= the sums over steps of a [vectors, stride], in a fixed order."""
    lanes = lanes_of(a)
    for vector in range(first, last):
        column = advance(a, vector * stride)
        total = zeros_like(a)
        if adds:
            total = load(sums, vector * lanes)
        for group in range(0, steps, RUN_TAPS):
            even = odd = zeros_like(a)
            end = min(group + RUN_TAPS, steps)
            for n in range(group, end - 1, 2):
                even = even + load(column, n * lanes)
                odd = odd + load(column, (n + 1) * lanes)
            if (end - group) % 2:
                even = even + load(column, (end - 1) * lanes)
            total = total + (even + odd)
        store(sums, vector * lanes, total)


@jit
def run_products_back(first, last, d, begin, end, sizes, counts, starts, columns, x_columns, row_taps, state_taps, w_x,
                      work, places, dx, w_ih, w_hh, w_hr):  # fmt: skip
    """Parts [first, last) of `pieces` of the products of the group of steps begin to end, for direction d.

    sizes, counts, starts, columns, work, places: see backward.run_steps_back. x_columns: as columns, of the sums of the
    input's product. row_taps, state_taps int64: 0, lanes, 2 lanes, ... for each row of a group and a tile more; and
    multiples of the size of the state. w_x: packed input weights of every direction. dx: elements, rows of inputs at
    places; w_ih [x_taps, inputs], w_hh, w_hr: written with the last group.
    """
    g = sizes[0]
    no = np.int64(0)
    lanes = lanes_of(w_x)
    width = PANEL_VECTORS * lanes
    low_step, high_step = group_range(g, d, begin, end)
    steps = starts[high_step - 1] + counts[high_step - 1] - starts[low_step]
    is_last = np.int64(end == g.steps)
    sums = pointer(work, d * g.vectors * g.group_rows * lanes)
    extra = pointer(work, g.at_extra + d * g.unit_panels * g.group_rows * width)
    for part in range(first, last):
        if g.wants_x:
            made = pointer(work, g.at_pieces + part * (BLOCK_ROWS + LARGE_ROWS) * g.x_stride)
            low, high = _share(part, g.pieces, steps)
            for row in range(low, high, BLOCK_ROWS):
                rows = min(BLOCK_ROWS, high - row)
                multiply_rows(advance(sums, row * lanes), pointer(row_taps), pointer(x_columns), rows, g.x_taps,
                              pointer(w_x, d * g.x_panels * g.x_taps * width), g.x_panels, made, g.x_stride,
                              no, no)  # fmt: skip
                for r in range(rows):
                    source = advance(made, r * g.x_stride)
                    target = pointer(dx, places[d * g.group_rows + row + r])
                    if g.directions == 1:
                        copy_row(source, target, g.inputs)
                    else:
                        for j in range(0, g.inputs, lanes):
                            both = load_first(target, j, g.inputs - j) + load(source, j)
                            store_first(target, j, both, g.inputs - j)
        if g.wants_w_ih:
            made = pointer(work, g.at_w_ih + d * (g.x_taps + LARGE_ROWS) * g.x_panels * width)
            panels = pointer(work, g.at_x + d * g.x_panels * g.group_rows * width)
            _weight_rows(part, g.pieces, g.x_taps, pointer(x_columns), sums, pointer(row_taps), steps,
                         g.x_panels, panels, made, begin, is_last * g.inputs, pointer(w_ih))  # fmt: skip
        if g.wants_w_hh:
            made = pointer(work, g.at_w_hh + d * (g.taps + LARGE_ROWS) * g.recurrent_panels * width)
            panels = pointer(work, g.at_old + d * g.recurrent_panels * g.group_rows * width)
            _weight_rows(part, g.pieces, g.taps, pointer(columns), sums, pointer(row_taps), steps,
                         g.recurrent_panels, panels, made, begin, is_last * g.hidden, pointer(w_hh))  # fmt: skip
        made = pointer(work, g.at_second + d * (g.second_taps + LARGE_ROWS) * g.unit_panels * width)
        if g.kind == GRU_BEFORE and g.wants_w_hh:
            _weight_rows(part, g.pieces, g.units, pointer(columns, g.taps), sums, pointer(row_taps), steps,
                         g.unit_panels, extra, made, begin, is_last * g.hidden,
                         pointer(w_hh, g.taps * g.hidden))  # fmt: skip
        if g.wants_w_hr:
            # Rows of the states lie side by side: element k of a row is what `columns` is of the sums.
            _weight_rows(part, g.pieces, g.hidden, pointer(state_taps, g.group_rows + LARGE_ROWS),
                         pointer(work, g.at_arrived + d * g.group_rows * g.hidden), pointer(state_taps), steps,
                         g.unit_panels, extra, made, begin, is_last * g.units, pointer(w_hr))  # fmt: skip
        if g.wants_bias:
            _bias_vectors(g.vectors * part // g.pieces, g.vectors * (part + 1) // g.pieces, steps, g.group_rows * lanes,
                          sums, pointer(work, g.at_bias + d * g.vectors * lanes), begin)  # fmt: skip


run_products = threaded(run_products_back)
