"""The forward pass of fewer rows than threads through a wide layer: every step's units are shared out.

A single row's step reads all recurrent weights once. Shared out, each thread reads its units' part of them, which stays
in its own cache from step to step. Every thread needs the whole state of the step before, so a step ends for all at
once: a region of threads for each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kernels.recurrence.cells_cpu import gru_rows, lstm_rows, rnn_rows
from kernels.recurrence.forward import CHUNK_ROWS, GRU_AFTER, GRU_BEFORE, LSTM, RNN_RELU, Sizes, in_memory, stride_of
from kernels.recurrence.panels import LARGE_ROWS, PANEL_VECTORS, copy_row, multiply_rows
from kernels.runtime.numba_cpu import has_teams, jit, stepped
from kernels.simd import VECTOR_BYTES, advance, lanes_of, pointer, pointer_at

Array = np.ndarray[Any, Any]

#: Multiply-adds of a step that are worth a thread: a region of one or two microseconds comes with each step.
STEP_GRAIN = 1 << 16


class ColumnSizes(NamedTuple):
    """Sizes, strides and switches of run_step, and where things lie in its working memory, in elements.

    Each direction has the sums of the inputs of a chunk of steps [chunk * batch + LARGE_ROWS, sum_stride], those of the
    recurrence [batch + LARGE_ROWS, sum_stride], two states, of even and odd steps [batch + LARGE_ROWS, hidden_stride],
    and the cells [batch, hidden_stride].
    """

    groups: int  # of units in a direction
    chunk: int  # steps whose input products are made together
    hidden_stride: int
    at_sums: int
    at_states: int
    at_cells: int
    each: int  # of a direction
    x_rows: int  # int64 of a direction in the table of rows


class ColumnPlan(NamedTuple):
    """How a call runs by columns."""

    sizes: ColumnSizes
    memory: Array
    parts: int
    #: int64: for each direction where the rows of x lie, step by step in its order; rows of states; 0, 1, 2, ...
    table: Array


def column_groups(sizes: Sizes, itemsize: int, threads: int) -> int:
    """Into how many groups the units of a direction fall; 1 where it is better to go by rows."""
    width = PANEL_VECTORS * VECTOR_BYTES // itemsize
    each = threads // sizes.directions
    # Panels must not hold the units of two groups, so neither of two gates.
    if sizes.parts >= threads or sizes.second_panels or sizes.kind == GRU_BEFORE or sizes.units % width:
        return 1
    work = sizes.gates * sizes.units * sizes.hidden * sizes.batch
    return max(1, min(each, sizes.units // width, work // STEP_GRAIN))


def column_plan(sizes: Sizes, itemsize: int, threads: int) -> ColumnPlan | None:
    """How a call without lengths runs by columns; None where it is to go by rows."""
    groups = column_groups(sizes, itemsize, threads)
    if groups == 1 or not has_teams():
        return None
    chunk = max(1, min(sizes.steps, CHUNK_ROWS // sizes.batch))
    hidden_stride = stride_of(sizes.hidden, itemsize)
    rows = sizes.batch + LARGE_ROWS
    at_sums = (chunk * sizes.batch + LARGE_ROWS) * sizes.sum_stride
    at_states = at_sums + rows * sizes.sum_stride
    at_cells = at_states + 2 * rows * hidden_stride
    steps = np.arange(sizes.steps)
    of_directions = []
    for order in (steps, steps[::-1])[: sizes.directions]:
        places = (order[:, None] * sizes.x_time + np.arange(sizes.batch) * sizes.x_row).reshape(-1)
        # A tile reads past the last row: that one again.
        of_directions.append(np.append(places, np.full(LARGE_ROWS, places[-1])))
    taps = np.arange(max(sizes.inputs, sizes.hidden))
    table = np.concatenate([*of_directions, np.arange(rows) * hidden_stride, taps]).astype(np.int64)
    found = ColumnSizes(
        groups=groups,
        chunk=chunk,
        hidden_stride=hidden_stride,
        at_sums=at_sums,
        at_states=at_states,
        at_cells=at_cells,
        each=at_cells + sizes.batch * hidden_stride,
        x_rows=len(of_directions[0]),
    )
    return ColumnPlan(found, in_memory(found), groups * sizes.directions, table)


def place_states(plan: ColumnPlan, sizes: Sizes, states: tuple[Array | None, ...], work: Array) -> None:
    """Write h0 and c0 [D, B, units], or zeros, to where the first step reads them; work [directions * each]."""
    of_directions = work.reshape(sizes.directions, plan.sizes.each)
    for start, initial in zip((plan.sizes.at_states, plan.sizes.at_cells), states):
        end = start + sizes.batch * plan.sizes.hidden_stride
        # A slice of each row, so a view.
        rows = of_directions[:, start:end].reshape(sizes.directions, sizes.batch, -1)[..., : sizes.units]
        rows[...] = 0 if initial is None else initial


@jit
def _run_step(
    first, last, step, sizes, columns, order, x, full, last_only, h_n, c_n, kept, cells, weights, work, table
):
    """Parts [first, last) of one step; part numbers run through the groups of units of each direction.

    sizes, columns: one Sizes and one ColumnSizes, of in_memory. weights: working memory with what prepare_parts put
    there. work: elements, see ColumnSizes. table: int64, see ColumnPlan. The rest: as forward.run_parts has it, x ..
    cells addresses.
    """
    g, n = sizes[0], columns[0]
    width = PANEL_VECTORS * lanes_of(work)
    sequence, every_h, last_h = pointer_at(x, work), pointer_at(full, work), pointer_at(last_only, work)
    final_h, final_c = pointer_at(h_n, work), pointer_at(c_n, work)
    all_kept, all_cells = pointer_at(kept, work), pointer_at(cells, work)
    # A literal 0 would have Numba compile what it is passed to once more.
    no = np.int64(0)
    h_rows = pointer(table, g.directions * n.x_rows)
    taps = advance(h_rows, g.batch + LARGE_ROWS)
    for part in range(first, last):
        d, group = part // n.groups, part % n.groups
        panels = g.units // width
        panel = panels * group // n.groups
        count = panels * (group + 1) // n.groups - panel
        low, high = panel * width, (panel + count) * width
        t = g.steps - 1 - step if d else step
        x_sums = pointer(work, d * n.each)
        h_sums = advance(x_sums, n.at_sums)
        distance = (g.batch + LARGE_ROWS) * n.hidden_stride
        before = advance(x_sums, n.at_states + (step & 1) * distance)
        after = advance(x_sums, n.at_states + (1 - (step & 1)) * distance)
        c = advance(x_sums, n.at_cells)
        bias, bias_new = (
            pointer(weights, g.at_bias + d * g.sum_stride),
            pointer(weights, g.at_bias_new + d * g.unit_stride),
        )
        weights_x = pointer(weights, d * g.gate_panels * g.inputs * width)
        weights_h = pointer(weights, g.at_w_h + d * g.recurrent_panels * g.hidden * width)
        inside = step % n.chunk
        for gate in range(g.gates):
            at = gate * panels + panel
            if inside == 0:
                rows = min(n.chunk, g.steps - step) * g.batch
                multiply_rows(sequence, pointer(table, d * n.x_rows + step * g.batch), taps, rows, g.inputs,
                              advance(weights_x, at * g.inputs * width), high - low,
                              advance(x_sums, at * width), g.sum_stride, no, no)  # fmt: skip
            multiply_rows(before, h_rows, taps, g.batch, g.hidden, advance(weights_h, at * g.hidden * width),
                          high - low, advance(h_sums, at * width), g.sum_stride, no, step & 1)  # fmt: skip
        sums = advance(x_sums, inside * g.batch * g.sum_stride)
        kept_to = advance(all_kept, (d * g.all_steps + t) * g.batch * g.kept * g.units * g.keeps)
        cells_to = advance(all_cells, (d * g.all_steps + t) * g.batch * g.units * g.keeps)
        who = pointer(order)
        if g.kind == LSTM:
            lstm_rows(g.batch, low, high, g.units, sums, h_sums, g.sum_stride, bias, c, n.hidden_stride,
                      after, n.hidden_stride, g.keeps, who, kept_to, cells_to)  # fmt: skip
        elif g.kind == GRU_AFTER:
            for r in range(g.batch):
                at = r * n.hidden_stride + low
                copy_row(advance(before, at), advance(after, at), high - low)
            gru_rows(g.batch, low, high, g.units, sums, h_sums, g.sum_stride, bias, bias_new, after, n.hidden_stride,
                     g.keeps, who, kept_to)  # fmt: skip
        else:
            rnn_rows(g.batch, low, high, g.kind == RNN_RELU, sums, h_sums, g.sum_stride, bias,
                     after, n.hidden_stride)  # fmt: skip
        for r in range(g.batch):
            source, size = advance(after, r * n.hidden_stride + low), high - low
            if g.has_full:
                copy_row(source, advance(every_h, t * g.full_time + r * g.full_row + d * g.hidden + low), size)
            if g.has_last and t == g.steps - 1:
                copy_row(source, advance(last_h, (r * g.directions + d) * g.hidden + low), size)
            if step == g.steps - 1:
                at = (d * g.batch + r) * g.units + low
                copy_row(source, advance(final_h, at), size)
                if g.kind == LSTM:
                    copy_row(advance(c, r * n.hidden_stride + low), advance(final_c, at), size)


run_columns = stepped(_run_step)
