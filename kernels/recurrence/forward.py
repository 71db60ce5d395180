"""The forward pass of a layer in one compiled call: for each part of the rows, in each direction, all steps.

The input's products come first, for as many steps at a time as make CHUNK_ROWS rows; then step by step the recurrent
products of a block of rows, whose sums stay in L1 or L2, and the cells. A row's states lie in one place and are
overwritten, since no row needs another's.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from kernels.recurrence.cells_cpu import gru_new_rows, gru_reset_rows, gru_rows, lstm_rows, rnn_rows
from kernels.recurrence.panels import LARGE_ROWS, PANEL_VECTORS, copy_row, multiply_rows, pack_panel
from kernels.runtime.numba_cpu import jit, threaded
from kernels.simd import (
    VECTOR_BYTES,
    advance,
    as_integers,
    lanes_of,
    load_first,
    peek,
    pointer,
    pointer_at,
    poke,
    store,
)

Array = np.ndarray[Any, Any]

#: Kinds of cell.
RNN_TANH, RNN_RELU, LSTM, GRU_AFTER, GRU_BEFORE = range(5)
#: Rows whose input products are made at a time, unless a single step has more.
CHUNK_ROWS = 128
#: Rows between whose recurrent products and cells nothing else happens.
BLOCK_ROWS = 72


class Sizes(NamedTuple):
    """Sizes, strides and switches of a forward pass; strides in elements."""

    kind: int
    directions: int
    row_parts: int
    steps: int  # the longest row's
    all_steps: int  # of x
    batch: int
    inputs: int
    units: int
    hidden: int
    gates: int
    kept: int  # numbers that a unit keeps for backward
    # Panels of w_x (all gates), of w_h (all gates; r and z of GRU_BEFORE), and of w_second: the LSTM's projection or
    # n of GRU_BEFORE, 0 for others.
    gate_panels: int
    recurrent_panels: int
    second_panels: int
    x_time: int
    x_row: int
    full_time: int
    full_row: int
    has_full: int  # whether every step's state is written
    has_last: int  # whether the last step's is written by itself
    has_h0: int
    has_c0: int
    keeps: int
    chunk: int  # steps whose input products are made together
    most_rows: int  # of a part
    sum_stride: int
    hidden_stride: int
    unit_stride: int
    scratch: int  # elements for each part
    offsets: int  # int64 for each part
    # Where in the working memory lie: the packed weights of every direction and what is added to the sums, of all gates
    # [D, sum_stride] and, for a GRU's recurrent sum of n, [D, unit_stride]; the parts' scratch; all of it, in elements.
    at_w_h: int
    at_second: int
    at_bias: int
    at_bias_new: int
    at_scratch: int
    work: int

    @property
    def parts(self) -> int:
        """Parts that may run at once."""
        return self.directions * self.row_parts

    @property
    def prepared(self) -> int:
        """Parts that may be prepared at once: each direction's panels, and its biases."""
        return self.directions * (self.gate_panels + self.recurrent_panels + self.second_panels + 1)


@cache
def _structure(names: tuple[str, ...]) -> np.dtype[Any]:
    # One object for all calls: Numba knows the type of an array by it, and compares two field by field in each call.
    return np.dtype([(name, np.int64) for name in names])


def in_memory(sizes: NamedTuple) -> Array:
    """Sizes as one element of a structured array: compiled code takes that much faster than a tuple of many numbers."""
    return np.array([tuple(sizes)], _structure(sizes._fields))


def panels_of(outputs: int, itemsize: int) -> int:
    """How many panels the weights of so many outputs fill."""
    return -(-outputs * itemsize // (PANEL_VECTORS * VECTOR_BYTES))


def stride_of(outputs: int, itemsize: int) -> int:
    """Elements between rows of sums: whole panels, and a vector that may be read past the last gate."""
    lanes = VECTOR_BYTES // itemsize
    return (panels_of(outputs, itemsize) * PANEL_VECTORS + 1) * lanes


def with_strides(sizes: Sizes, itemsize: int) -> Sizes:
    """`sizes` with the working memory worked out."""
    chunk = max(1, min(sizes.steps, CHUNK_ROWS // sizes.most_rows))
    sum_stride = stride_of(sizes.gates * sizes.units, itemsize)
    hidden_stride, unit_stride = stride_of(sizes.hidden, itemsize), stride_of(sizes.units, itemsize)
    block, rows = min(BLOCK_ROWS, sizes.most_rows) + LARGE_ROWS, sizes.most_rows + LARGE_ROWS
    sums = (chunk * sizes.most_rows + LARGE_ROWS + block) * sum_stride
    scratch = sums + rows * (hidden_stride + unit_stride) + block * (unit_stride + hidden_stride)
    width = PANEL_VECTORS * VECTOR_BYTES // itemsize
    at_w_h = sizes.directions * sizes.gate_panels * sizes.inputs * width
    at_second = at_w_h + sizes.directions * sizes.recurrent_panels * sizes.hidden * width
    at_bias = at_second + sizes.directions * sizes.second_panels * sizes.units * width
    at_bias_new = at_bias + sizes.directions * sum_stride
    at_scratch = at_bias_new + sizes.directions * unit_stride
    return sizes._replace(
        chunk=chunk,
        sum_stride=sum_stride,
        hidden_stride=hidden_stride,
        unit_stride=unit_stride,
        scratch=scratch,
        offsets=chunk * sizes.most_rows + LARGE_ROWS,
        at_w_h=at_w_h,
        at_second=at_second,
        at_bias=at_bias,
        at_bias_new=at_bias_new,
        at_scratch=at_scratch,
        work=at_scratch + sizes.parts * scratch,
    )


def steady_offsets(sizes: Sizes) -> Array:
    """int64: where the rows of states and of units of a block and a tile lie, and 0, 1, 2, ... for taps."""
    rows = np.arange(min(BLOCK_ROWS, sizes.most_rows) + LARGE_ROWS)
    taps = np.arange(max(sizes.inputs, sizes.hidden, sizes.units))
    return np.concatenate([rows * sizes.hidden_stride, rows * sizes.unit_stride, taps])


@jit
def _add_biases(rows, together, b_ih, b_hh, common, common_size, apart, apart_size):
    """common = b_ih + b_hh for the first `together` of `rows` gate rows, b_ih for the others, whose b_hh is in apart.

    All are pointers to elements; b_ih, b_hh [rows]; common and apart are 0 from there on.
    """
    lanes = lanes_of(common)
    for i in range(0, common_size, lanes):
        store(common, i, load_first(b_ih, i, rows - i) + load_first(b_hh, i, together - i))
    for i in range(0, apart_size, lanes):
        store(apart, i, load_first(b_hh, together + i, rows - together - i))


@jit
def prepare_parts(first, last, sizes, w_ih, w_hh, b_ih, b_hh, w_hr, w_ih_reverse, w_hh_reverse, b_ih_reverse,
                  b_hh_reverse, w_hr_reverse, work):  # fmt: skip
    """Parts [first, last) of what run_parts needs of the weights: panels, or biases; see Sizes.prepared, Sizes.at_w_h.

    All but work and sizes are addresses; a bias that is not there is so many zeros.
    """
    g = sizes[0]
    width = PANEL_VECTORS * lanes_of(work)
    rows = g.gates * g.units
    recurrent = 2 * g.units if g.kind == GRU_BEFORE else rows
    together = 2 * g.units if g.kind == GRU_AFTER else rows
    each = g.gate_panels + g.recurrent_panels + g.second_panels + 1
    for number in range(first, last):
        d, panel = number // each, number % each
        inputs, states, seconds = pointer_at(w_ih, work), pointer_at(w_hh, work), pointer_at(w_hr, work)
        bias, bias_states = pointer_at(b_ih, work), pointer_at(b_hh, work)
        if d:
            inputs, states = pointer_at(w_ih_reverse, work), pointer_at(w_hh_reverse, work)
            seconds = pointer_at(w_hr_reverse, work)
            bias, bias_states = pointer_at(b_ih_reverse, work), pointer_at(b_hh_reverse, work)
        if panel == each - 1:
            _add_biases(rows, together, bias, bias_states,
                        pointer(work, g.at_bias + d * g.sum_stride), g.sum_stride,
                        pointer(work, g.at_bias_new + d * g.unit_stride), g.unit_stride)  # fmt: skip
            continue
        source, outputs, taps = inputs, rows, g.inputs
        to = pointer(work, d * g.gate_panels * g.inputs * width)
        if panel >= g.gate_panels:
            panel -= g.gate_panels
            source, outputs, taps = states, recurrent, g.hidden
            to = pointer(work, g.at_w_h + d * g.recurrent_panels * g.hidden * width)
            if panel >= g.recurrent_panels:
                panel -= g.recurrent_panels
                source, outputs, taps = seconds, g.hidden, g.units
                if g.kind == GRU_BEFORE:
                    source = advance(states, recurrent * g.hidden)
                to = pointer(work, g.at_second + d * g.second_panels * g.units * width)
        pack_panel(panel, outputs, taps, source, to)


prepare = threaded(prepare_parts)


@jit
def rows_at(counts, t, first, last):
    """How many of the rows [first, last) have step t."""
    return min(max(counts[t] - first, 0), last - first)


@jit
def run_parts(first, last, sizes, bounds, order, ends, counts, x, h0, c0,
              full, last_only, h_n, c_n, kept, cells, work, steady):  # fmt: skip
    """Parts [first, last) of a forward pass; part numbers run through the row parts of each direction.

    sizes: one Sizes, of in_memory. bounds, order, ends, counts: see sequence.Walk. x: elements, row r's step t at
    t * x_time + r * x_row. h0 [D, B, hidden], c0 [D, B, units]. full: as x, the states of every step; last_only
    [B, D * hidden]; h_n, c_n as h0, c0; kept [D, all steps, B, kept * units], cells [D, all steps, B, units]. All from
    x on are addresses; what is not there is so many zeros as the longest row has. work: elements, see Sizes, with the
    weights that prepare_parts put there, and behind them a table, int64 [parts, offsets]; steady int64: of
    `steady_offsets`.
    """
    g = sizes[0]
    width = PANEL_VECTORS * lanes_of(work)
    sequence, h_first, c_first = pointer_at(x, work), pointer_at(h0, work), pointer_at(c0, work)
    every_h, last_h = pointer_at(full, work), pointer_at(last_only, work)
    final_h, final_c = pointer_at(h_n, work), pointer_at(c_n, work)
    all_kept, all_cells = pointer_at(kept, work), pointer_at(cells, work)
    table = as_integers(pointer(work, g.work))
    block_rows = min(BLOCK_ROWS, g.most_rows)
    # A literal 0 would have Numba compile what it is passed to once more.
    no = np.int64(0)
    h_rows = pointer(steady)
    unit_rows = advance(h_rows, block_rows + LARGE_ROWS)
    taps = advance(unit_rows, block_rows + LARGE_ROWS)
    outputs = g.gates * g.units
    recurrent = 2 * g.units if g.kind == GRU_BEFORE else outputs
    for part in range(first, last):
        d, rows_part = part // g.row_parts, part % g.row_parts
        row_first, row_last = bounds[rows_part], bounds[rows_part + 1]
        if row_first == row_last:
            continue
        # Working memory: sums of the inputs, of the recurrence; states; a block's units, what a second product makes.
        x_sums = pointer(work, g.at_scratch + part * g.scratch)
        h_sums = advance(x_sums, (g.chunk * g.most_rows + LARGE_ROWS) * g.sum_stride)
        h = advance(h_sums, (block_rows + LARGE_ROWS) * g.sum_stride)
        c = advance(h, (g.most_rows + LARGE_ROWS) * g.hidden_stride)
        between = advance(c, (g.most_rows + LARGE_ROWS) * g.unit_stride)
        second = advance(between, (block_rows + LARGE_ROWS) * g.unit_stride)
        x_rows = advance(table, part * g.offsets)
        for r in range(row_last - row_first):
            at = d * g.batch + order[row_first + r]
            copy_row(advance(h_first, at * g.hidden * g.has_h0), advance(h, r * g.hidden_stride), g.hidden)
            if g.kind == LSTM:
                copy_row(advance(c_first, at * g.units * g.has_c0), advance(c, r * g.unit_stride), g.units)
        weights_x = pointer(work, d * g.gate_panels * g.inputs * width)
        weights_h = pointer(work, g.at_w_h + d * g.recurrent_panels * g.hidden * width)
        weights_second = pointer(work, g.at_second + d * g.second_panels * g.units * width)
        bias, bias_new = pointer(work, g.at_bias + d * g.sum_stride), pointer(work, g.at_bias_new + d * g.unit_stride)

        for begin in range(0, g.steps, g.chunk):
            end = min(begin + g.chunk, g.steps)
            total = no
            for number in range(begin, end):
                t = g.steps - 1 - number if d else number
                for r in range(rows_at(counts, t, row_first, row_last)):
                    poke(x_rows, total, t * g.x_time + order[row_first + r] * g.x_row)
                    total += 1
            if total == 0:
                continue
            for r in range(LARGE_ROWS):
                poke(x_rows, total + r, peek(x_rows, total - 1))
            multiply_rows(sequence, x_rows, taps, total, g.inputs, weights_x, outputs,
                          x_sums, g.sum_stride, no, no)  # fmt: skip
            sums = x_sums
            for number in range(begin, end):
                t = g.steps - 1 - number if d else number
                active = rows_at(counts, t, row_first, row_last)
                kept_to = advance(all_kept, (d * g.all_steps + t) * g.batch * g.kept * g.units * g.keeps)
                cells_to = advance(all_cells, (d * g.all_steps + t) * g.batch * g.units * g.keeps)
                for low in range(0, active, BLOCK_ROWS):
                    rows = min(BLOCK_ROWS, active - low)
                    state, cell = advance(h, low * g.hidden_stride), advance(c, low * g.unit_stride)
                    who = pointer(order, row_first + low)
                    multiply_rows(state, h_rows, taps, rows, g.hidden, weights_h, recurrent,
                                  h_sums, g.sum_stride, no, number & 1)  # fmt: skip
                    if g.kind == LSTM:
                        to, to_stride = state, g.hidden_stride
                        if g.second_panels:
                            to, to_stride = between, g.unit_stride
                        lstm_rows(rows, no, g.units, g.units, sums, h_sums, g.sum_stride, bias, cell, g.unit_stride,
                                  to, to_stride, g.keeps, who, kept_to, cells_to)  # fmt: skip
                    elif g.kind == GRU_AFTER:
                        gru_rows(rows, no, g.units, g.units, sums, h_sums, g.sum_stride, bias, bias_new,
                                 state, g.hidden_stride, g.keeps, who, kept_to)  # fmt: skip
                    elif g.kind == GRU_BEFORE:
                        gru_reset_rows(rows, g.units, sums, h_sums, g.sum_stride, bias, state, g.hidden_stride,
                                       between, g.unit_stride)  # fmt: skip
                    else:
                        rnn_rows(rows, no, g.units, g.kind == RNN_RELU, sums, h_sums, g.sum_stride, bias,
                                 state, g.hidden_stride)  # fmt: skip
                    if g.second_panels:
                        multiply_rows(between, unit_rows, taps, rows, g.units, weights_second, g.hidden,
                                      second, g.hidden_stride, no, no)  # fmt: skip
                        if g.kind == GRU_BEFORE:
                            gru_new_rows(rows, g.units, sums, h_sums, g.sum_stride, bias, second, g.hidden_stride,
                                         state, g.hidden_stride, g.keeps, who, kept_to)  # fmt: skip
                        else:
                            for r in range(rows):
                                at = r * g.hidden_stride
                                copy_row(advance(second, at), advance(state, at), g.hidden)
                    for r in range(rows):
                        row, source = peek(who, r), advance(state, r * g.hidden_stride)
                        if g.has_full:
                            at = t * g.full_time + row * g.full_row + d * g.hidden
                            copy_row(source, advance(every_h, at), g.hidden)
                        if g.has_last and ends[row_first + low + r] == t + 1:
                            copy_row(source, advance(last_h, (row * g.directions + d) * g.hidden), g.hidden)
                    sums = advance(sums, rows * g.sum_stride)
        for r in range(row_last - row_first):
            at = d * g.batch + order[row_first + r]
            copy_row(advance(h, r * g.hidden_stride), advance(final_h, at * g.hidden), g.hidden)
            if g.kind == LSTM:
                copy_row(advance(c, r * g.unit_stride), advance(final_c, at * g.units), g.units)


run_forward = threaded(run_parts)
