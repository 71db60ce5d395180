"""The recurrent layers on the CPU: weights packed into panels, then the whole sequence in one compiled call."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from kernels.recurrence.columns import column_groups, place_states, run_columns
from kernels.recurrence.facts import (
    GRAIN,
    PACK_GRAIN,
    Facts,
    Plan,
    facts_of,
    lies_plainly,
    sequence_memory,
    x_strides_of,
)
from kernels.recurrence.forward import BLOCK_ROWS, prepare, run_forward
from kernels.recurrence.gradients_cpu import backward, backward_by_address
from kernels.recurrence.op import GRU_LAYER, LSTM_LAYER, RNN_LAYER, implement
from kernels.recurrence.panels import LARGE_ROWS, SUMMED_VECTORS
from kernels.recurrence.problem import Layer
from kernels.recurrence.sequence import row_parts, walk
from kernels.runtime.by_address import Run, array_from
from kernels.runtime.numba_cpu import address, contiguous, empty, has_teams, scratch, threads_for, zeros

Array = np.ndarray[Any, Any]


def _run_of(facts: Facts, plan: Plan, threads: int) -> Run:
    """The pass from the addresses of the op's inputs and of its results; 0 for what is not there."""
    sizes, way, dtype, columns, elements = plan.sizes, plan.way, facts.dtype, plan.columns, plan.elements
    weights_of, arrays_of, nothing_at = facts.weights_of, facts.arrays_of, facts.nothing_at
    # Not more than will read them: what another core has written comes from its cache at every step.
    parts = sizes.parts if columns is None else columns.parts
    packers = min(parts, threads, threads_for(sizes.at_bias, PACK_GRAIN))
    pack = partial(prepare, sizes.prepared, packers, plan.memory)
    if columns is None:
        compute = partial(
            run_forward, sizes.parts, threads, plan.memory, way.bounds, way.order, way.ends, way.counts
        )  # fmt: skip

        def run(*places: int) -> None:
            # The weights as panels and the biases, the parts' scratch, and their tables of offsets.
            work, places = scratch(elements, dtype), (*places, nothing_at)
            pack(*weights_of(places), work)
            compute(*arrays_of(places), work, plan.steady)

        return run
    run_steps = partial(run_columns, sizes.steps, parts, parts, plan.memory, columns.memory, way.order)
    shape = (sizes.directions, sizes.batch, sizes.units)

    def run_by_columns(*places: int) -> None:
        work, places = scratch(elements, dtype), (*places, nothing_at)
        pack(*weights_of(places), work)
        sums = scratch(columns.sizes.each * sizes.directions, dtype)
        states = tuple([None if i < 0 else array_from(places[i], shape, dtype) for i in (facts.h0, facts.c0)])
        place_states(columns, sizes, states, sums)
        x, _, _, *rest = arrays_of(places)
        run_steps(x, *rest, work, sums, columns.table)

    return run_by_columns


def forward(p: Layer, *inputs: Array | None) -> tuple[Array | None, ...]:
    """The op's inputs -> its results."""
    facts = facts_of(p)
    threads = threads_for(facts.work, GRAIN)
    x, *strides = sequence_memory(p, inputs[0])
    plan = facts.plan(p, inputs[-1], threads, (strides[0], strides[1]))
    make = empty if inputs[-1] is None else zeros  # Past a row's length there are zeros.
    made = tuple([None if shape is None else make(shape, facts.dtype) for shape in facts.shapes])
    alive = [x, *[None if a is None else contiguous(a) for a in inputs[1:-1]], None, *made]
    _run_of(facts, plan, threads)(*[0 if a is None else address(a) for a in alive])
    return made


def by_address(p: Layer) -> Run | None:
    """The op's inputs -> its results; x may lie anyhow but for the elements of a row."""
    strides = x_strides_of(p)
    if strides is None or not lies_plainly(p):
        return None
    facts, known = facts_of(p), dict[int, Run]()

    def run(*places: int) -> None:
        threads = threads_for(facts.work, GRAIN)
        found = known.get(threads)
        if found is None:
            found = known[threads] = _run_of(facts, facts.plan(p, None, threads, strides), threads)
        found(*places)

    return run


def describe(p: Layer) -> str:
    """The tile, and how the rows or the units are shared out."""
    facts = facts_of(p)
    threads = threads_for(facts.work, GRAIN)
    parts = p.directions * row_parts(p, threads) if p.batch else 0
    tile = f"tile {LARGE_ROWS} rows x {SUMMED_VECTORS} vectors, {min(p.batch, BLOCK_ROWS)} rows a block"
    if p.lengths is None and p.batch and p.steps and has_teams():
        groups = column_groups(
            facts.sizes(p, walk(p, None, row_parts(p, threads)), (0, 0)), facts.dtype.itemsize, threads
        )
        if groups > 1:
            return f"whole sequence in one call, {tile}, {groups} groups of units on {threads} threads, a region a step"
    return f"whole sequence in one call, {tile}, {parts} part{'s' if parts != 1 else ''} on {threads} threads"


for _op in (RNN_LAYER, LSTM_LAYER, GRU_LAYER):
    implement(
        _op, "numba", forward, backward, describe=describe, by_address=by_address,
        backward_by_address=backward_by_address,
    )  # fmt: skip
