"""The recurrent layers on the CPU: weights packed into panels, then the whole sequence in one compiled call."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.recurrence.columns import column_groups, place_states, run_columns
from kernels.recurrence.facts import GRAIN, PACK_GRAIN, facts_of, sequence_memory
from kernels.recurrence.forward import BLOCK_ROWS, prepare, run_forward
from kernels.recurrence.gradients_cpu import backward
from kernels.recurrence.op import GRU_LAYER, LSTM_LAYER, RNN_LAYER, implement
from kernels.recurrence.panels import LARGE_ROWS, PANEL_VECTORS
from kernels.recurrence.problem import Layer
from kernels.recurrence.sequence import row_parts, walk
from kernels.runtime.numba_cpu import empty, has_teams, scratch, threads_for, zeros

Array = np.ndarray[Any, Any]


def forward(p: Layer, *inputs: Array | None) -> tuple[Array | None, ...]:
    """The op's inputs -> its results."""
    facts = facts_of(p)
    dtype, lengths, nothing = facts.dtype, inputs[-1], facts.nothing
    threads = threads_for(facts.work, GRAIN)
    x, x_time, x_row = sequence_memory(p, inputs[0])
    plan = facts.plan(p, lengths, threads, (x_time, x_row))
    way, sizes = plan.way, plan.sizes
    # The weights as panels and the biases, the parts' scratch, and their tables of offsets.
    table_elements = sizes.parts * sizes.offsets * 8 // dtype.itemsize
    memory_of_call = scratch(sizes.work + table_elements, dtype)
    work, table = memory_of_call[: sizes.work], memory_of_call[sizes.work :].view(np.int64)
    # Not more than will read them: what another core has written comes from its cache at every step.
    parts = sizes.parts if plan.columns is None else plan.columns.parts
    packers = min(parts, threads_for(sizes.at_bias, PACK_GRAIN))
    prepare(sizes.prepared, packers, plan.memory, *[facts.take(inputs, place) for place in facts.weights], work)
    make = empty if lengths is None else zeros  # Past a row's length there are zeros.
    made = tuple([None if shape is None else make(shape, dtype) for shape in facts.shapes])
    flats = dict(zip(facts.forms, [nothing if a is None else a.reshape(-1) for a in made]))
    results = (
        flats["hidden" if p.return_last else "output"], flats["output"] if p.return_last else nothing,
        flats["h_n"], flats.get("c_n", nothing), flats.get("gate_values", nothing), flats.get("cells", nothing),
    )  # fmt: skip
    if plan.columns is not None:
        sums = scratch(plan.columns.sizes.each * sizes.directions, dtype)
        states = tuple([None if place is None else inputs[place] for place in (facts.h0, facts.c0)])
        place_states(plan.columns, sizes, states, sums)
        run_columns(
            sizes.steps, parts, parts, plan.memory, plan.columns.memory, way.order, x, *results, work, sums,
            plan.columns.table,
        )  # fmt: skip
        return made
    run_forward(
        sizes.parts, threads, plan.memory, way.bounds, way.order, way.ends, way.counts, x,
        facts.take(inputs, facts.h0), facts.take(inputs, facts.c0), *results, work, table, plan.steady,
    )  # fmt: skip
    return made


def describe(p: Layer) -> str:
    """The tile, and how the rows or the units are shared out."""
    facts = facts_of(p)
    threads = threads_for(facts.work, GRAIN)
    parts = p.directions * row_parts(p, threads) if p.batch else 0
    tile = f"tile {LARGE_ROWS} rows x {PANEL_VECTORS} vectors, {min(p.batch, BLOCK_ROWS)} rows a block"
    if p.lengths is None and p.batch and p.steps and has_teams():
        groups = column_groups(
            facts.sizes(p, walk(p, None, row_parts(p, threads)), (0, 0)), facts.dtype.itemsize, threads
        )
        if groups > 1:
            return f"whole sequence in one call, {tile}, {groups} groups of units on {threads} threads, a region a step"
    return f"whole sequence in one call, {tile}, {parts} part{'s' if parts != 1 else ''} on {threads} threads"


for _op in (RNN_LAYER, LSTM_LAYER, GRU_LAYER):
    implement(_op, "numba", forward, backward, describe=describe)
