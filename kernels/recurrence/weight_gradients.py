"""The gradients of weights, biases and x that a group of steps backward gives, see backward.py.

A weight's gradient is the product of the sums' gradients of all steps, transposed, with the states before each step or
with x; x's gradient is the product of the sums' gradients with the input's weights. All run on the tiles of panels.py,
through tables of offsets. A block's products may be taken in pieces: rows of the weights and rows of x, never a part of
a sum.
"""

from __future__ import annotations

import numpy as np

from kernels.recurrence.backward import steps_back
from kernels.recurrence.forward import BLOCK_ROWS, GRU_BEFORE, rows_at
from kernels.recurrence.panels import LARGE_ROWS, PANEL_VECTORS, RUN_TAPS, multiply_rows
from kernels.runtime.numba_cpu import jit, threaded
from kernels.simd import (
    advance,
    as_integers,
    lanes_of,
    load,
    load_first,
    peek,
    pointer,
    pointer_at,
    poke,
    store,
    store_first,
    zeros_like,
)


@jit
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
def _rows_of_group(g, d, begin, end, counts, row_first, row_last):
    """How many rows of sums' gradients a block has in the group of steps begin to end."""
    total = np.int64(0)
    for number in range(begin, end):
        total += rows_at(counts, number if d else g.steps - 1 - number, row_first, row_last)
    return total


@jit
def products_back(g, part, slot, piece, pieces, begin, end, bounds, counts, columns, x_columns, row_taps, state_taps,
                  work, dx):  # fmt: skip
    """A piece of `pieces` of the products of a part's group of steps begin to end, which lies in the memory of `slot`.

    g, bounds, counts, columns, row_taps, state_taps, work: see backward.steps_back. x_columns: as columns, of the sums
    of the input's product. dx: the address of elements, rows of inputs at the places that lie in work.
    """
    no = np.int64(0)
    lanes = lanes_of(work)
    width = PANEL_VECTORS * lanes
    d, block = part // g.blocks, part % g.blocks
    steps = _rows_of_group(g, d, begin, end, counts, bounds[block], bounds[block + 1])
    own, gathered = pointer(work, slot * g.each), pointer(work, part * g.each)
    if g.wants_x:
        places = advance(as_integers(pointer(work, g.at_places)), slot * g.group_rows)
        x_tiles = (steps + LARGE_ROWS - 1) // LARGE_ROWS
        made = advance(own, g.at_pieces + piece * (BLOCK_ROWS + LARGE_ROWS) * g.x_stride)
        high = min(x_tiles * (piece + 1) // pieces * LARGE_ROWS, steps)
        for row in range(x_tiles * piece // pieces * LARGE_ROWS, high, BLOCK_ROWS):
            rows = min(BLOCK_ROWS, high - row)
            multiply_rows(advance(own, row * lanes), pointer(row_taps), pointer(x_columns), rows, g.x_taps,
                          pointer(work, g.at_w_x + d * g.x_panels * g.x_taps * width), g.inputs, made, g.x_stride,
                          no, no)  # fmt: skip
            for r in range(rows):
                source = advance(made, r * g.x_stride)
                target = advance(pointer_at(dx, work), peek(places, row + r))
                for j in range(0, g.inputs, lanes):
                    value = load(source, j)
                    if g.directions == 2:
                        value = load_first(target, j, g.inputs - j) + value
                    store_first(target, j, value, g.inputs - j)
    for weight in range(4):
        # A row of the weight for each column of a; b as panels [panels, group rows, width]; made [rows and a tile,
        # panels * width] gathers over the groups.
        a, columns_of, taps = own, pointer(columns), pointer(row_taps)
        if weight == 0:
            is_wanted, rows, panels, outputs = g.wants_w_ih, g.x_taps, g.x_panels, g.inputs
            columns_of, b, made = pointer(x_columns), advance(own, g.at_x), advance(gathered, g.at_w_ih)
        elif weight == 1:
            is_wanted, rows, panels, outputs = g.wants_w_hh, g.taps, g.recurrent_panels, g.hidden
            b, made = advance(own, g.at_old), advance(gathered, g.at_w_hh)
        else:
            rows, panels, outputs = g.second_taps, g.unit_panels, g.units
            b, made = advance(own, g.at_extra), advance(gathered, g.at_second)
            if weight == 2:
                is_wanted, columns_of = np.int64(g.kind == GRU_BEFORE) * g.wants_w_hh, pointer(columns, g.taps)
            else:
                # Rows of the projected states lie side by side: element k of one is what a column is of the sums.
                is_wanted, a = g.wants_w_hr, advance(own, g.at_arrived)
                columns_of, taps = pointer(state_taps, g.group_rows + LARGE_ROWS), pointer(state_taps)
        if not is_wanted:
            continue
        # Whole tiles but for the last, which may write past the rows.
        tiles = (rows + LARGE_ROWS - 1) // LARGE_ROWS
        low = tiles * piece // pieces * LARGE_ROWS
        high = min(tiles * (piece + 1) // pieces * LARGE_ROWS, rows)
        if low >= high:
            continue
        if begin == 0 and steps == 0:
            # No row of the block is as long: nothing yet.
            for j in range(low * panels * width, high * panels * width, lanes):
                store(made, j, zeros_like(made))
        for run in range(0, steps, RUN_TAPS):
            for panel in range(panels):
                multiply_rows(a, advance(columns_of, low), advance(taps, run), high - low, min(RUN_TAPS, steps - run),
                              advance(b, (panel * g.group_rows + run) * width), min(width, outputs - panel * width),
                              advance(made, (low * panels + panel) * width), panels * width,
                              begin + run, no)  # fmt: skip
    if g.wants_bias:
        _bias_vectors(g.vectors * piece // pieces, g.vectors * (piece + 1) // pieces, steps, g.group_rows * lanes,
                      own, advance(gathered, g.at_bias), begin)  # fmt: skip


@jit
def _blocks_back(first, last, sizes, bounds, order, ends, counts, columns, x_columns, row_taps, state_taps, x, h0, c0,
                 states, kept, cells, grad_output, grad_h, grad_c, nothing, dh0, dc0, dx, work):  # fmt: skip
    """Blocks [first, last) from end to end, one direction after the other, since both add to the gradient of x."""
    g = sizes[0]
    no, one = np.int64(0), np.int64(1)
    for block in range(first, last):
        for d in range(g.directions):
            part = d * g.blocks + block
            for begin in range(0, g.steps, g.group_steps):
                end = min(begin + g.group_steps, g.steps)
                steps_back(g, part, first, begin, end, bounds, order, ends, counts, columns, row_taps, state_taps, x,
                           h0, c0, states, kept, cells, grad_output, grad_h, grad_c, nothing, dh0, dc0,
                           work)  # fmt: skip
                products_back(g, part, first, no, one, begin, end, bounds, counts, columns, x_columns, row_taps,
                              state_taps, work, dx)  # fmt: skip


@jit
def _steps_back(first, last, begin, end, sizes, bounds, order, ends, counts, columns, row_taps, state_taps, x, h0, c0,
                states, kept, cells, grad_output, grad_h, grad_c, nothing, dh0, dc0, work):  # fmt: skip
    """Parts [first, last) of a group of steps alone."""
    for part in range(first, last):
        steps_back(sizes[0], part, part, begin, end, bounds, order, ends, counts, columns, row_taps, state_taps, x, h0,
                   c0, states, kept, cells, grad_output, grad_h, grad_c, nothing, dh0, dc0, work)  # fmt: skip


@jit
def _pieces_back(first, last, d, begin, end, sizes, bounds, counts, columns, x_columns, row_taps, state_taps, work,
                 dx):  # fmt: skip
    """Pieces [first, last) of the products of a group in one direction, those of a block one after the other."""
    g = sizes[0]
    for number in range(first, last):
        part, piece = d * g.blocks + number // g.pieces, number % g.pieces
        products_back(g, part, part, piece, g.pieces, begin, end, bounds, counts, columns, x_columns, row_taps,
                      state_taps, work, dx)  # fmt: skip


@jit
def _add_bias(g, source, places, bias):
    """A bias' gradient, at an address: the sums of the blocks, which lie at places of `source`."""
    out = pointer_at(bias, source)
    for i in range(places.size):
        total = peek(source, places[i])
        for block in range(1, g.blocks):
            total += peek(source, block * g.each + places[i])
        poke(out, i, total)


@jit
def _add_blocks(first, last, d, sizes, work, x_places, places, w_ih, w_hh, b_ih, b_hh, w_hr):
    """Rows [first, last) of a direction's gradients of w_ih [x_taps, inputs], w_hh and w_hr: the sums of the blocks.

    Rows are counted through w_ih, w_hh, and what w_second met; one more stands for the biases. All five are addresses,
    0 of what is not wanted. x_places, places: int64, where the sums of b_ih and b_hh lie among the bias sums.
    """
    g = sizes[0]
    lanes = lanes_of(work)
    width = PANEL_VECTORS * lanes
    own = pointer(work, d * g.blocks * g.each)
    for number in range(first, last):
        row, to, begin = number, w_ih, np.int64(0)
        place, panels, features = g.at_w_ih, g.x_panels, g.inputs
        if number >= g.x_taps:
            row, to = number - g.x_taps, w_hh
            place, panels, features = g.at_w_hh, g.recurrent_panels, g.hidden
        if number >= g.x_taps + g.taps:
            row, to = number - g.x_taps - g.taps, w_hr
            place, panels, features = g.at_second, g.unit_panels, g.units
            if row == g.second_taps * (g.second_panels > 0):
                if b_ih != 0:
                    _add_bias(g, advance(own, g.at_bias), x_places, b_ih)
                if b_hh != 0:
                    _add_bias(g, advance(own, g.at_bias), places, b_hh)
                continue
            if g.kind == GRU_BEFORE:
                to, begin = w_hh, g.taps * g.hidden
        if to == 0:
            continue
        source, out = advance(own, place + row * panels * width), advance(pointer_at(to, work), begin)
        for j in range(0, features, lanes):
            total = load(source, j)
            for block in range(1, g.blocks):
                total = total + load(source, block * g.each + j)
            store_first(out, row * features + j, total, features - j)


run_blocks = threaded(_blocks_back)
run_steps = threaded(_steps_back)
run_pieces = threaded(_pieces_back)
add_blocks = threaded(_add_blocks)
