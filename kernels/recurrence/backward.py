"""Backward through time: the gradients of every step's sums, and of the initial states, for a block of rows.

What a step needs of the forward pass are its gates and cells and the hidden states; the products with the weights are
the same as in the forward pass, on the weights as they lie. The rows fall into blocks, and a block is done a group of
steps at a time: the group's gradients of sums, and beside them the inputs and states that they met, gather without gaps
in the order of the work, and what the weights and x get of them is taken while they are in cache, see
weight_gradients.py. Each block has sums of its own for the weights' gradients, which are added up at the end. So a
block is one thread's from end to end, and nothing that one core has just written has to go to another; and which rows
form a block, and which steps a group, depends on no number of threads. Blocks that a thread does one after the other
share the working memory of the first, but for what gathers.

The sums' gradients lie in columns of vectors, [gates * vectors of a gate, group_rows, lanes]: a row of them is what a
step backward multiplies, and their columns are what the weights' gradients multiply; so both are read in whole cache
lines that follow each other. `group_rows` is odd, or the columns of a row would meet in a few sets of the cache.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kernels.recurrence.cells_back_cpu import (
    gru_new_row_back,
    gru_reset_row_back,
    gru_row_back,
    lstm_row_back,
    rnn_row_back,
)
from kernels.recurrence.forward import (
    BLOCK_ROWS,
    GRU_AFTER,
    GRU_BEFORE,
    LSTM,
    RNN_RELU,
    rows_at,
    stride_of,
)
from kernels.recurrence.panels import LARGE_ROWS, PANEL_VECTORS, copy_row, multiply_rows
from kernels.runtime.numba_cpu import jit
from kernels.simd import (
    VECTOR_BYTES,
    advance,
    as_integers,
    lanes_of,
    load,
    load_first,
    pointer,
    pointer_at,
    poke,
    prefetch,
    store,
)

#: Bytes of kept numbers of a step's rows up to which the next step's are asked for: more would push each other out.
AHEAD_BYTES = 1 << 17


class BackSizes(NamedTuple):
    """Sizes, strides and switches of a backward pass; strides in elements."""

    kind: int
    directions: int
    blocks: int  # of rows, in a direction
    pieces: int  # parts that may take the products of a block's group at once
    steps: int  # the longest row's
    all_steps: int  # of x
    group_steps: int
    batch: int
    inputs: int
    units: int
    hidden: int
    kept: int  # numbers that a unit kept
    vectors: int  # of the sums of a row
    taps: int  # sums of the recurrent product that is undone last
    x_taps: int  # sums of the input's product
    # Panels of inputs, hidden states and units; of w_second: the LSTM's projection or n of GRU_BEFORE, 0 for others.
    x_panels: int
    recurrent_panels: int
    unit_panels: int
    second_panels: int
    second_taps: int
    x_time: int
    x_row: int
    dx_time: int
    dx_row: int
    states_time: int
    states_row: int
    grad_time: int
    grad_row: int
    only_last: int  # the output is the last step's
    has_h0: int
    has_c0: int
    wants_x: int
    wants_w_ih: int
    wants_w_hh: int
    wants_w_hr: int
    wants_bias: int
    most_rows: int  # of a block
    group_rows: int = 0
    hidden_stride: int = 0
    unit_stride: int = 0
    x_stride: int = 0
    # Where in the working memory of a block lie the sums' gradients (first); x and the states before each step as
    # panels; what w_second met, as panels; the gradients of an LSTM's projected states. Then what gathers over the
    # groups: sums for the biases and the weights' gradients. Then what steps carry on, what the pieces make of x's
    # gradient, and the end; in elements. A part is a block of a direction. Behind all parts' lie the packed weights of
    # every direction and int64 [parts, group_rows], where the rows of a group lie in the gradient of x.
    at_x: int = 0
    at_old: int = 0
    at_extra: int = 0
    at_arrived: int = 0
    at_bias: int = 0
    at_w_ih: int = 0
    at_w_hh: int = 0
    at_second: int = 0
    at_carried: int = 0
    at_pieces: int = 0
    each: int = 0
    at_w_h: int = 0
    at_w_second: int = 0
    at_w_x: int = 0
    at_places: int = 0
    work: int = 0

    @property
    def parts(self) -> int:
        """Blocks of all directions."""
        return self.directions * self.blocks


def with_memory(sizes: BackSizes, itemsize: int) -> BackSizes:
    """`sizes` with the working memory worked out."""
    lanes = VECTOR_BYTES // itemsize
    width = PANEL_VECTORS * lanes
    hidden_stride, unit_stride = stride_of(sizes.hidden, itemsize), stride_of(sizes.units, itemsize)
    x_stride = stride_of(sizes.inputs, itemsize)
    together = min(BLOCK_ROWS, sizes.most_rows) + LARGE_ROWS
    rows = sizes.group_steps * sizes.most_rows + LARGE_ROWS | 1
    has_second = sizes.second_panels > 0
    # Where each begins, by size; a tile may read and write rows past the last.
    each = (
        sizes.vectors * rows * lanes + LARGE_ROWS * lanes,
        sizes.x_panels * rows * width,
        sizes.recurrent_panels * rows * width,
        sizes.unit_panels * rows * width * has_second,
        (rows + LARGE_ROWS) * hidden_stride * has_second,
        sizes.vectors * lanes,
        (sizes.x_taps + LARGE_ROWS) * sizes.x_panels * width,
        (sizes.taps + LARGE_ROWS) * sizes.recurrent_panels * width,
        (sizes.second_taps + LARGE_ROWS) * sizes.unit_panels * width * has_second,
        (sizes.most_rows + LARGE_ROWS + together) * (hidden_stride + unit_stride),
        sizes.pieces * (BLOCK_ROWS + LARGE_ROWS) * x_stride,
    )
    begins = np.concatenate([[0], np.cumsum(each)]).tolist()
    directions = sizes.directions
    at_w_h = sizes.parts * begins[-1]
    at_w_second = at_w_h + directions * sizes.recurrent_panels * sizes.taps * width
    at_w_x = at_w_second + directions * sizes.second_panels * sizes.second_taps * width
    at_places = at_w_x + directions * sizes.x_panels * sizes.x_taps * width * sizes.wants_x
    return sizes._replace(
        group_rows=rows,
        hidden_stride=hidden_stride,
        unit_stride=unit_stride,
        x_stride=x_stride,
        at_x=begins[1],
        at_old=begins[2],
        at_extra=begins[3],
        at_arrived=begins[4],
        at_bias=begins[5],
        at_w_ih=begins[6],
        at_w_hh=begins[7],
        at_second=begins[8],
        at_carried=begins[9],
        at_pieces=begins[10],
        each=begins[11],
        at_w_h=at_w_h,
        at_w_second=at_w_second,
        at_w_x=at_w_x,
        at_places=at_places,
        work=at_places + sizes.parts * rows * 8 // itemsize,
    )


@jit
def _add_row(source, target, count):
    """target[:count] += source[:count]; source is not touched past its end, target is in whole vectors."""
    for j in range(0, count, lanes_of(source)):
        store(target, j, load(target, j) + load_first(source, j, count - j))


@jit
def _ask_for(source, count):
    """Have source[:count] brought to the cache."""
    for j in range(0, count, lanes_of(source)):
        prefetch(source, j)


@jit
def _row_to_panels(source, count, panels, panel_stride, target):
    """source[:count] as a tap of panels `panel_stride` apart, filled up with zeros."""
    lanes = lanes_of(source)
    for panel in range(panels):
        for j in range(0, PANEL_VECTORS * lanes, lanes):
            at = panel * PANEL_VECTORS * lanes + j
            store(target, panel * panel_stride + j, load_first(source, at, count - at))


@jit
def steps_back(g, part, slot, begin, end, bounds, order, ends, counts, columns, row_taps, state_taps, x, h0, c0, states,
               kept, cells, grad_output, grad_h, grad_c, nothing, dh0, dc0, work):  # fmt: skip
    """The steps begin to end, a group, of one part, in the working memory of the part `slot`.

    g: a BackSizes. bounds, order, ends, counts: see sequence.Walk. columns int64: where the columns of the sums begin,
    and LARGE_ROWS more. row_taps, state_taps int64: 0, lanes, 2 lanes, ... for each row of a group and a tile more; and
    multiples of the size of the state, then 0, 1, 2, ... From x on all but work are addresses, 0 of what is not there
    or not wanted; nothing: zeros, as long as the longest row. x: elements, row r's step t at t * x_time + r * x_row.
    h0, grad_h, dh0 [D, B, hidden], c0, grad_c, dc0 [D, B, units]. states: elements, the hidden states of every step.
    kept [D, all steps, B, kept * units], cells [D, all steps, B, units]. grad_output: elements, by step and row or of
    the last step. work: as `BackSizes` says, with the packed weights.

    Written: the rest of work, also what goes on from group to group; dh0, dc0 with the last group.
    """
    # A literal 0 would have Numba compile what it is passed to once more.
    no = np.int64(0)
    lanes = lanes_of(work)
    width = PANEL_VECTORS * lanes
    block_rows = min(BLOCK_ROWS, g.most_rows)
    sequence, every_h = pointer_at(x, work), pointer_at(states, work)
    all_kept, all_cells = pointer_at(kept, work), pointer_at(cells, work)
    h_first, c_first = pointer_at(h0 if g.has_h0 else nothing, work), pointer_at(c0 if g.has_c0 else nothing, work)
    has_grad, has_grad_h, has_grad_c = grad_output != 0, grad_h != 0, grad_c != 0
    arriving = pointer_at(grad_output, work)
    arriving_h = pointer_at(grad_h if has_grad_h else nothing, work)
    arriving_c = pointer_at(grad_c if has_grad_c else nothing, work)
    places = advance(as_integers(pointer(work, g.at_places)), slot * g.group_rows)
    state_columns = pointer(state_taps, g.group_rows + LARGE_ROWS)
    d, block = part // g.blocks, part % g.blocks
    row_first, row_last = bounds[block], bounds[block + 1]
    own = pointer(work, slot * g.each)
    # Gradients carried to the step before; what products make of a block.
    dh = advance(own, g.at_carried)
    dc = advance(dh, (g.most_rows + LARGE_ROWS) * g.hidden_stride)
    product = advance(dc, (g.most_rows + LARGE_ROWS) * g.unit_stride)
    second = advance(product, (block_rows + LARGE_ROWS) * g.hidden_stride)
    if begin == 0:
        for r in range(row_last - row_first):
            at = d * g.batch + order[row_first + r]
            given = advance(arriving_h, at * g.hidden * has_grad_h)
            copy_row(given, advance(dh, r * g.hidden_stride), g.hidden)
            if g.kind == LSTM:
                given = advance(arriving_c, at * g.units * has_grad_c)
                copy_row(given, advance(dc, r * g.unit_stride), g.units)
    weights_h = pointer(work, g.at_w_h + d * g.recurrent_panels * g.taps * width)
    weights_second = pointer(work, g.at_w_second + d * g.second_panels * g.second_taps * width)
    x_panels, old_panels = advance(own, g.at_x), advance(own, g.at_old)
    extra_panels, arrived = advance(own, g.at_extra), advance(own, g.at_arrived)
    panel_stride = g.group_rows * width
    place = no

    for number in range(begin, end):
        t = number if d else g.steps - 1 - number
        before = t + 1 if d else t - 1
        active = rows_at(counts, t, row_first, row_last)
        for low in range(0, active, BLOCK_ROWS):
            rows = min(BLOCK_ROWS, active - low)
            ds = advance(own, place * lanes)
            asks_ahead = rows * g.units * g.kept * VECTOR_BYTES <= AHEAD_BYTES * lanes
            block_dh = advance(dh, low * g.hidden_stride)
            # What arrives at the states of this step, and what the sums' gradients will meet.
            for r in range(rows):
                row = order[row_first + low + r]
                if has_grad and (not g.only_last or ends[row_first + low + r] == t + 1):
                    at = t * g.grad_time + row * g.grad_row + d * g.hidden
                    _add_row(advance(arriving, at), advance(block_dh, r * g.hidden_stride), g.hidden)
                if g.wants_w_ih:
                    source = advance(sequence, t * g.x_time + row * g.x_row)
                    to = advance(x_panels, (place + r) * width)
                    _row_to_panels(source, g.inputs, g.x_panels, panel_stride, to)
                if g.wants_x:
                    poke(places, place + r, t * g.dx_time + row * g.dx_row)
                if g.kind == LSTM and g.second_panels:
                    to = advance(arrived, (place + r) * g.hidden)
                    copy_row(advance(block_dh, r * g.hidden_stride), to, g.hidden)
            incoming, incoming_stride = block_dh, g.hidden_stride
            if g.kind == LSTM and g.second_panels:
                multiply_rows(advance(arrived, place * g.hidden), pointer(state_taps), state_columns, rows,
                              g.second_taps, weights_second, g.units, second, g.unit_stride,
                              no, no)  # fmt: skip
                incoming, incoming_stride = second, g.unit_stride
            for r in range(rows):
                row = order[row_first + low + r]
                gradient, to = advance(incoming, r * incoming_stride), advance(ds, r * lanes)
                carried = advance(block_dh, r * g.hidden_stride)
                step = ((d * g.all_steps + t) * g.batch + row) * g.units
                gates = advance(all_kept, step * g.kept)
                is_first = not 0 <= before < ends[row_first + low + r]
                old = advance(h_first, (d * g.batch + row) * g.hidden * g.has_h0)
                if not is_first:
                    old = advance(every_h, before * g.states_time + row * g.states_row + d * g.hidden)
                old_to = advance(old_panels, (place + r) * width)
                _row_to_panels(old, g.hidden, g.recurrent_panels, panel_stride, old_to)
                if asks_ahead and not is_first:
                    # What the next step will read of this row: it comes while the products below are made.
                    nearer = step + (before - t) * g.batch * g.units
                    _ask_for(advance(all_kept, nearer * g.kept), g.kept * g.units)
                    if 0 <= 2 * before - t < g.all_steps:
                        further = 2 * before - t
                        at = further * g.states_time + row * g.states_row + d * g.hidden
                        _ask_for(advance(every_h, at), g.hidden)
                        if g.kind == LSTM:
                            _ask_for(advance(all_cells, nearer + (before - t) * g.batch * g.units), g.units)
                    if g.wants_w_ih:
                        _ask_for(advance(sequence, before * g.x_time + row * g.x_row), g.inputs)
                    if has_grad and not g.only_last:
                        at = before * g.grad_time + row * g.grad_row + d * g.hidden
                        _ask_for(advance(arriving, at), g.hidden)
                if g.kind == LSTM:
                    cell_before = advance(c_first, (d * g.batch + row) * g.units * g.has_c0)
                    if not is_first:
                        cell_before = advance(all_cells, step + (before - t) * g.batch * g.units)
                    lstm_row_back(g.units, g.group_rows, gradient, advance(dc, (low + r) * g.unit_stride),
                                  gates, advance(all_cells, step), cell_before, to, g.second_panels,
                                  advance(extra_panels, (place + r) * width), panel_stride)  # fmt: skip
                elif g.kind == GRU_AFTER:
                    gru_row_back(g.units, g.group_rows, carried, gates, old, to)
                elif g.kind == GRU_BEFORE:
                    gru_new_row_back(g.units, g.group_rows, carried, gates, old, to)
                else:
                    at = t * g.states_time + row * g.states_row + d * g.hidden
                    rnn_row_back(g.units, g.group_rows, g.kind == RNN_RELU, gradient, advance(every_h, at), to)
            if g.kind == GRU_BEFORE:
                multiply_rows(ds, pointer(row_taps), pointer(columns, g.taps), rows, g.second_taps,
                              weights_second, g.units, second, g.unit_stride, no, no)  # fmt: skip
                for r in range(rows):
                    step = ((d * g.all_steps + t) * g.batch + order[row_first + low + r]) * g.units
                    gru_reset_row_back(g.units, g.group_rows, advance(second, r * g.unit_stride),
                                       advance(block_dh, r * g.hidden_stride), advance(all_kept, step * g.kept),
                                       advance(old_panels, (place + r) * width), advance(ds, r * lanes),
                                       advance(extra_panels, (place + r) * width), panel_stride)  # fmt: skip
            # To the states of the step before, to which a GRU's gave some already.
            multiply_rows(ds, pointer(row_taps), pointer(columns), rows, g.taps, weights_h,
                          g.hidden, product, g.hidden_stride, no, number & 1)  # fmt: skip
            for r in range(rows):
                made, carried = advance(product, r * g.hidden_stride), advance(block_dh, r * g.hidden_stride)
                if g.kind == GRU_AFTER or g.kind == GRU_BEFORE:
                    _add_row(made, carried, g.hidden)
                else:
                    copy_row(made, carried, g.hidden)
            place += rows
    if end == g.steps:
        for r in range(row_last - row_first):
            at = d * g.batch + order[row_first + r]
            if dh0 != 0:
                copy_row(advance(dh, r * g.hidden_stride), advance(pointer_at(dh0, work), at * g.hidden), g.hidden)
            if dc0 != 0:
                copy_row(advance(dc, r * g.unit_stride), advance(pointer_at(dc0, work), at * g.units), g.units)
