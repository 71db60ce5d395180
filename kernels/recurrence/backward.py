"""Backward through time in one compiled call: the gradients of every step's sums, and of the initial states.

What a step needs of the forward pass are its gates and cells and the hidden states; the products with the weights are
the same as in the forward pass, on the weights as they lie. Gradients of sums and what the weights' gradients need
beside them gather without gaps, in the order of sequence.Walk, so that those are plain matrix products afterwards.

The sums' gradients lie in columns of vectors, [gates * vectors of a gate, total, lanes]: a row of them is what a step
backward multiplies, and their columns are what the weights' gradients multiply; so both are read in whole cache lines
that follow each other. `total` is odd, or the columns of a row would meet in a few sets of the cache.
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
    initial_row,
    rows_at,
    stride_of,
)
from kernels.recurrence.panels import LARGE_ROWS, PANEL_VECTORS, copy_row, multiply_rows
from kernels.runtime.numba_cpu import jit, threaded
from kernels.simd import advance, lanes_of, load, load_first, pointer, poke, store


class BackSizes(NamedTuple):
    """Sizes, strides and switches of a backward pass; strides in elements."""

    kind: int
    directions: int
    row_parts: int
    steps: int  # the longest row's
    all_steps: int  # of x
    batch: int
    units: int
    hidden: int
    kept: int  # numbers that a unit kept
    total: int  # sum of the lengths, with spare rows
    sums: int  # elements of the gradients of sums of a direction
    taps: int  # of these, those of the recurrent product that is undone last
    # Panels of w_h, and of w_second: the LSTM's projection or n of GRU_BEFORE, 0 for others.
    recurrent_panels: int
    second_panels: int
    second_taps: int
    states_time: int
    states_row: int
    grad_time: int
    grad_row: int
    has_grad: int  # of the output
    only_last: int  # the output is the last step's
    has_grad_h: int
    has_grad_c: int
    has_h0: int
    has_c0: int
    most_rows: int  # of a part
    hidden_stride: int
    unit_stride: int
    scratch: int  # elements for each part
    offsets: int  # int64 for each part

    @property
    def parts(self) -> int:
        """Parts that may run at once."""
        return self.directions * self.row_parts


def with_strides(sizes: BackSizes, itemsize: int) -> BackSizes:
    """`sizes` with the working memory worked out."""
    hidden_stride, unit_stride = stride_of(sizes.hidden, itemsize), stride_of(sizes.units, itemsize)
    block = min(BLOCK_ROWS, sizes.most_rows) + LARGE_ROWS
    scratch = sizes.most_rows * (hidden_stride + unit_stride) + block * (2 * hidden_stride + unit_stride) + unit_stride
    return sizes._replace(
        hidden_stride=hidden_stride,
        unit_stride=unit_stride,
        scratch=scratch,
        offsets=2 * block + sizes.second_taps,
    )


@jit
def _add_row(source, target, count):
    """target[:count] += source[:count]; source is not touched past its end, target is in whole vectors."""
    for j in range(0, count, lanes_of(source)):
        store(target, j, load(target, j) + load_first(source, j, count - j))


@jit
def run_parts_back(first, last, sizes, bounds, order, ends, counts, starts, w_h, w_second, h0, c0, states, kept, cells,
                   grad_output, grad_h, grad_c, columns, sums, old, extra, arrived, dh0, dc0, work, table):  # fmt: skip
    """Parts [first, last) of a backward pass; part numbers run through the row parts of each direction.

    sizes: one BackSizes, of in_memory. bounds, order, ends, counts, starts: see sequence.Walk. w_h, w_second: packed
    weights of every direction. h0, grad_h, dh0 [D, B, hidden], c0, grad_c, dc0 [D, B, units]. states: elements, the
    hidden states of every step. kept [D, all steps, B, kept * units], cells [D, all steps, B, units]. grad_output:
    elements, by step and row or of the last step. columns int64: where the columns of a direction's sums begin.

    Written: sums [D, sums]; old [D, total, hidden], the states before each step; extra [D, total, units], r times them
    for GRU_BEFORE, the unprojected states for an LSTM; arrived [D, total, hidden], the gradients of the projected ones.
    Rows of these past the sum of the lengths are scratch. What is not there is an array of one element.
    work [parts, scratch], table int64 [parts, offsets].
    """
    g = sizes[0]
    # A literal 0 would have Numba compile what it is passed to once more.
    no = np.int64(0)
    lanes = lanes_of(w_h)
    width = PANEL_VECTORS * lanes
    block_rows = min(BLOCK_ROWS, g.most_rows)
    for part in range(first, last):
        d, rows_part = part // g.row_parts, part % g.row_parts
        row_first, row_last = bounds[rows_part], bounds[rows_part + 1]
        # Working memory: gradients carried to the step before; a block's arriving ones, and what products make.
        dh = pointer(work, part * g.scratch)
        dc = advance(dh, g.most_rows * g.hidden_stride)
        coming = advance(dc, g.most_rows * g.unit_stride)
        product = advance(coming, (block_rows + LARGE_ROWS) * g.hidden_stride)
        second = advance(product, (block_rows + LARGE_ROWS) * g.hidden_stride)
        zeros = advance(second, (block_rows + LARGE_ROWS) * g.unit_stride)
        sum_rows = pointer(table, part * g.offsets)
        state_rows = advance(sum_rows, block_rows + LARGE_ROWS)
        taps = advance(state_rows, block_rows + LARGE_ROWS)
        for r in range(block_rows + LARGE_ROWS):
            poke(sum_rows, r, r * lanes)
            poke(state_rows, r, r * g.hidden)
        for k in range(g.second_taps):
            poke(taps, k, k)
        initial_row(zeros, no, zeros, g.units)
        for r in range(row_last - row_first):
            at = d * g.batch + order[row_first + r]
            given = pointer(grad_h, at * g.hidden * g.has_grad_h)
            initial_row(given, g.has_grad_h, advance(dh, r * g.hidden_stride), g.hidden)
            if g.kind == LSTM:
                given = pointer(grad_c, at * g.units * g.has_grad_c)
                initial_row(given, g.has_grad_c, advance(dc, r * g.unit_stride), g.units)
        weights_h = pointer(w_h, d * g.recurrent_panels * g.taps * width)
        weights_second = pointer(w_second, d * g.second_panels * g.second_taps * width)

        for number in range(g.steps):
            t = number if d else g.steps - 1 - number
            before = t + 1 if d else t - 1
            active = rows_at(counts, t, row_first, row_last)
            for low in range(0, active, BLOCK_ROWS):
                rows = min(BLOCK_ROWS, active - low)
                place = d * g.total + starts[t] + row_first + low
                ds = pointer(sums, d * g.sums + (starts[t] + row_first + low) * lanes)
                # What arrives at the states of this step, and the states before it.
                for r in range(rows):
                    row = order[row_first + low + r]
                    into = advance(coming, r * g.hidden_stride)
                    copy_row(advance(dh, (low + r) * g.hidden_stride), into, g.hidden)
                    if g.has_grad and (not g.only_last or ends[row_first + low + r] == t + 1):
                        at = t * g.grad_time + row * g.grad_row + d * g.hidden
                        _add_row(pointer(grad_output, at), into, g.hidden)
                    to = pointer(old, (place + r) * g.hidden)
                    if 0 <= before < ends[row_first + low + r]:
                        at = before * g.states_time + row * g.states_row + d * g.hidden
                        copy_row(pointer(states, at), to, g.hidden)
                    else:
                        at = (d * g.batch + row) * g.hidden * g.has_h0
                        initial_row(pointer(h0, at), g.has_h0, to, g.hidden)
                    if g.kind == LSTM and g.second_panels:
                        copy_row(into, pointer(arrived, (place + r) * g.hidden), g.hidden)
                incoming, incoming_stride = coming, g.hidden_stride
                if g.kind == LSTM and g.second_panels:
                    multiply_rows(pointer(arrived, place * g.hidden), state_rows, taps, rows, g.second_taps,
                                  weights_second, g.second_panels, second, g.unit_stride, no, no)  # fmt: skip
                    incoming, incoming_stride = second, g.unit_stride
                for r in range(rows):
                    row = order[row_first + low + r]
                    gradient, to = advance(incoming, r * incoming_stride), advance(ds, r * lanes)
                    carried = advance(dh, (low + r) * g.hidden_stride)
                    step = ((d * g.all_steps + t) * g.batch + row) * g.units
                    gates = pointer(kept, step * g.kept)
                    if g.kind == LSTM:
                        cell_before = zeros
                        if 0 <= before < ends[row_first + low + r]:
                            cell_before = pointer(cells, step + (before - t) * g.batch * g.units)
                        elif g.has_c0:
                            cell_before = pointer(c0, (d * g.batch + row) * g.units)
                        lstm_row_back(g.units, g.total, gradient, advance(dc, (low + r) * g.unit_stride),
                                      gates, pointer(cells, step), cell_before, to,
                                      g.second_panels, pointer(extra, (place + r) * g.units * min(g.second_panels, 1)),
                                      )  # fmt: skip
                    elif g.kind == GRU_AFTER:
                        gru_row_back(
                            g.units, g.total, gradient, carried, gates, pointer(old, (place + r) * g.units), to
                        )
                    elif g.kind == GRU_BEFORE:
                        gru_new_row_back(
                            g.units, g.total, gradient, carried, gates, pointer(old, (place + r) * g.units), to
                        )
                    else:
                        at = t * g.states_time + row * g.states_row + d * g.hidden
                        rnn_row_back(g.units, g.total, g.kind == RNN_RELU, gradient, pointer(states, at), to)
                if g.kind == GRU_BEFORE:
                    multiply_rows(ds, sum_rows, pointer(columns, 2 * g.units), rows, g.second_taps,
                                  weights_second, g.second_panels, second, g.unit_stride, no, no)  # fmt: skip
                    for r in range(rows):
                        row, at = order[row_first + low + r], (place + r) * g.units
                        step = ((d * g.all_steps + t) * g.batch + row) * g.units
                        gru_reset_row_back(g.units, g.total, advance(second, r * g.unit_stride),
                                           advance(dh, (low + r) * g.hidden_stride), pointer(kept, step * g.kept),
                                           pointer(old, at), advance(ds, r * lanes),
                                           pointer(extra, at))  # fmt: skip
                # To the states of the step before.
                multiply_rows(ds, sum_rows, pointer(columns), rows, g.taps, weights_h,
                              g.recurrent_panels, product, g.hidden_stride, no, number & 1)  # fmt: skip
                for r in range(rows):
                    made, carried = advance(product, r * g.hidden_stride), advance(dh, (low + r) * g.hidden_stride)
                    if g.kind == GRU_AFTER or g.kind == GRU_BEFORE:
                        _add_row(made, carried, g.hidden)
                    else:
                        copy_row(made, carried, g.hidden)
        for r in range(row_last - row_first):
            at = d * g.batch + order[row_first + r]
            copy_row(advance(dh, r * g.hidden_stride), pointer(dh0, at * g.hidden), g.hidden)
            if g.kind == LSTM:
                copy_row(advance(dc, r * g.unit_stride), pointer(dc0, at * g.units), g.units)


run_backward = threaded(run_parts_back)
