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


@jit(inner=True)
def _bias_vectors(first, last, steps, stride, a, sums, adds):
    """Vectors [first, last) of sums [vectors, lanes] (+)= the sums over steps of a [vectors, stride], in one order."""
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
    sums = pointer(work, d * g.vectors * g.group_rows * lanes)
    x_tiles = (steps + LARGE_ROWS - 1) // LARGE_ROWS
    for part in range(first, last):
        if g.wants_x:
            made = pointer(work, g.at_pieces + part * (BLOCK_ROWS + LARGE_ROWS) * g.x_stride)
            high = min(x_tiles * (part + 1) // g.pieces * LARGE_ROWS, steps)
            for row in range(x_tiles * part // g.pieces * LARGE_ROWS, high, BLOCK_ROWS):
                rows = min(BLOCK_ROWS, high - row)
                multiply_rows(advance(sums, row * lanes), pointer(row_taps), pointer(x_columns), rows, g.x_taps,
                              pointer(w_x, d * g.x_panels * g.x_taps * width), g.x_panels, made, g.x_stride,
                              no, no)  # fmt: skip
                for r in range(rows):
                    source = advance(made, r * g.x_stride)
                    target = pointer(dx, places[d * g.group_rows + row + r])
                    for j in range(0, g.inputs, lanes):
                        value = load(source, j)
                        if g.directions == 2:
                            value = load_first(target, j, g.inputs - j) + value
                        store_first(target, j, value, g.inputs - j)
        for weight in range(4):
            # A row of the weight for each column of a; b as panels [panels, steps, width]; made [rows and a tile,
            # panels * width] gathers over the groups; out [rows, features] is written with the last one.
            a, columns_of, taps, out = sums, pointer(columns), pointer(row_taps), pointer(w_hh)
            if weight == 0:
                is_wanted, rows, features, panels = g.wants_w_ih, g.x_taps, g.inputs, g.x_panels
                columns_of, out = pointer(x_columns), pointer(w_ih)
                b = pointer(work, g.at_x + d * panels * g.group_rows * width)
                made = pointer(work, g.at_w_ih + d * (rows + LARGE_ROWS) * panels * width)
            elif weight == 1:
                is_wanted, rows, features, panels = g.wants_w_hh, g.taps, g.hidden, g.recurrent_panels
                b = pointer(work, g.at_old + d * panels * g.group_rows * width)
                made = pointer(work, g.at_w_hh + d * (rows + LARGE_ROWS) * panels * width)
            else:
                rows, features, panels = g.second_taps, g.units, g.unit_panels
                b = pointer(work, g.at_extra + d * panels * g.group_rows * width)
                made = pointer(work, g.at_second + d * (rows + LARGE_ROWS) * panels * width)
                if weight == 2:
                    is_wanted = np.int64(g.kind == GRU_BEFORE) * g.wants_w_hh
                    columns_of, out = pointer(columns, g.taps), pointer(w_hh, g.taps * g.hidden)
                else:
                    # Rows of the projected states lie side by side: element k of one is what a column is of the sums.
                    is_wanted, out = g.wants_w_hr, pointer(w_hr)
                    a = pointer(work, g.at_arrived + d * g.group_rows * g.hidden)
                    columns_of, taps = pointer(state_taps, g.group_rows + LARGE_ROWS), pointer(state_taps)
            if not is_wanted:
                continue
            # Whole tiles but for the last, which may write past the rows.
            tiles = (rows + LARGE_ROWS - 1) // LARGE_ROWS
            low = tiles * part // g.pieces * LARGE_ROWS
            high = min(tiles * (part + 1) // g.pieces * LARGE_ROWS, rows)
            if low >= high:
                continue
            for run in range(0, steps, RUN_TAPS):
                for panel in range(panels):
                    multiply_rows(a, advance(columns_of, low), advance(taps, run), high - low,
                                  min(RUN_TAPS, steps - run), advance(b, (panel * steps + run) * width), np.int64(1),
                                  advance(made, (low * panels + panel) * width), panels * width,
                                  begin + run, no)  # fmt: skip
            if end == g.steps:
                for r in range(low, high):
                    copy_row(advance(made, r * panels * width), advance(out, r * features), features)
        if g.wants_bias:
            _bias_vectors(g.vectors * part // g.pieces, g.vectors * (part + 1) // g.pieces, steps, g.group_rows * lanes,
                          sums, pointer(work, g.at_bias + d * g.vectors * lanes), begin)  # fmt: skip


run_products = threaded(run_products_back)
