"""Backward of the recurrent layers on the CPU: through time in one compiled call, then products over all steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kernels.recurrence import forward as fw
from kernels.recurrence.backward import BackSizes, run_backward, with_strides
from kernels.recurrence.facts import GRAIN, Facts, facts_of, flat, packed_panels, sequence_memory
from kernels.recurrence.forward import panels_of
from kernels.recurrence.panels import LARGE_ROWS
from kernels.recurrence.problem import SUFFIXES, Layer, Weights
from kernels.recurrence.sequence import Walk, walk
from kernels.recurrence.weight_gradients import (
    Blocks,
    column_sums,
    input_gradient,
    pack_steps,
    places_of,
    weight_gradient,
)
from kernels.runtime.numba_cpu import empty, scratch, threads_for, zeros
from kernels.simd import VECTOR_BYTES

Array = np.ndarray[Any, Any]


class Gathered(NamedTuple):
    """What backward through time leaves for the gradients of weights and x, for all steps of each direction.

    Attributes:
        sums: elements [D, columns of vectors, total, lanes], gradients of the sums of a step; see backward.py.
        columns: int64, where the columns of a direction's sums begin.
        old: elements [D, total, hidden], the state before each step.
        extra: elements [D, total, units]: the reset states of a GRU that resets first, an LSTM's unprojected states.
        arrived: elements [D, total, hidden], the gradients of an LSTM's projected states.
    """

    sums: Array
    columns: Array
    old: Array
    extra: Array
    arrived: Array


class _Run(NamedTuple):
    """One backward pass: the problem with what follows from it."""

    p: Layer
    facts: Facts
    way: Walk
    threads: int
    total: int  # rows of `Gathered` for each direction: the sum of the lengths, with rows that tiles may read

    @property
    def resets_first(self) -> bool:
        """Whether this is a GRU whose reset gate multiplies before the product."""
        return self.facts.kind == fw.GRU_BEFORE

    @property
    def taps(self) -> int:
        """Gates whose recurrent product is of the states before a step: all, but for n of a GRU that resets first."""
        return 2 * self.p.units if self.resets_first else self.facts.rows

    @property
    def kept_sums(self) -> int:
        """How many sums' gradients a unit has: one a gate, and two for n of a GRU that resets after the product."""
        return 4 if self.facts.kind == fw.GRU_AFTER else self.p.gates

    @property
    def x_blocks(self) -> Blocks:
        """Which of a step's sums' gradients belong to which rows of w_ih."""
        units = self.p.units
        if self.facts.kind == fw.GRU_AFTER:
            return (0, 2 * units, 0), (3 * units, units, 2 * units)
        return ((0, self.facts.rows, 0),)


def _columns(run: _Run) -> tuple[Array, int]:
    """int64 [kept sums * units]: where the columns of a direction's sums begin; and the size of a direction."""
    lanes, units = VECTOR_BYTES // run.facts.dtype.itemsize, run.p.units
    unit = np.arange(units, dtype=np.int64)
    of_gate = -(-units // lanes) * lanes * run.total
    columns = np.arange(run.kept_sums)[:, None] * of_gate + unit // lanes * lanes * run.total + unit % lanes
    return columns.reshape(-1), run.kept_sums * of_gate


def _sizes(run: _Run, saved: dict[str, Any], incoming: tuple[Array | None, ...], per_direction: int) -> BackSizes:
    p, way, item = run.p, run.way, run.facts.dtype.itemsize
    features = p.directions * p.hidden
    time, row = (features, p.steps * features) if p.batch_first else (p.batch * features, features)
    second_panels, second_taps = 0, 1
    if run.resets_first:
        second_panels, second_taps = panels_of(p.hidden, item), p.units
    elif p.projects:
        second_panels, second_taps = panels_of(p.units, item), p.hidden
    sizes = BackSizes(
        kind=run.facts.kind,
        directions=p.directions,
        row_parts=way.row_parts,
        steps=way.steps,
        all_steps=p.steps,
        batch=p.batch,
        units=p.units,
        hidden=p.hidden,
        kept=p.kept_gates,
        total=run.total,
        sums=per_direction,
        taps=run.taps,
        recurrent_panels=panels_of(p.hidden, item),
        second_panels=second_panels,
        second_taps=second_taps,
        states_time=time,
        states_row=row,
        grad_time=0 if p.return_last else time,
        grad_row=features if p.return_last else row,
        has_grad=int(incoming[0] is not None),
        only_last=int(p.return_last),
        has_grad_h=int(incoming[1] is not None),
        has_grad_c=int(len(incoming) > 2 and incoming[2] is not None),
        has_h0=int(p.h0 is not None),
        has_c0=int(saved.get("c0") is not None),
        most_rows=way.most_rows,
        hidden_stride=0,
        unit_stride=0,
        scratch=0,
        offsets=0,
    )
    return with_strides(sizes, item)


def _through_time(
    run: _Run, saved: dict[str, Any], incoming: tuple[Array | None, ...]
) -> tuple[Gathered, Array, Array]:
    """What the products need, and the gradients of h0 and c0."""
    p, way, dtype = run.p, run.way, run.facts.dtype
    directions, count, units, hidden = p.weights(saved), p.directions, p.units, p.hidden
    columns, per_direction = _columns(run)
    sizes = _sizes(run, saved, incoming, per_direction)
    w_h = packed_panels([(w.w_hh, 0, hidden, run.taps, hidden) for w in directions], dtype, run.threads)
    nothing = w_second = empty(1, dtype)
    if run.resets_first:
        parts = [(w.w_hh, run.taps * hidden, hidden, units, hidden) for w in directions]
        w_second = packed_panels(parts, dtype, run.threads)
    elif p.projects:
        w_second = packed_panels([(w.w_hr, 0, units, hidden, units) for w in directions], dtype, run.threads)
    # A tile may read rows past the last.
    sums = scratch(count * per_direction + LARGE_ROWS * VECTOR_BYTES // dtype.itemsize, dtype)
    old = scratch(count * run.total * hidden, dtype)
    extra = scratch(count * run.total * units, dtype) if sizes.second_panels else nothing
    arrived = scratch(count * run.total * hidden, dtype) if p.projects else nothing
    dh0 = empty((count, p.batch, hidden), dtype)
    dc0 = empty((count, p.batch, units), dtype) if p.cell == "lstm" else nothing
    run_backward(
        sizes.parts, run.threads, sizes, way.bounds, way.order, way.ends, way.counts, way.starts, w_h, w_second,
        flat(saved["h0"], nothing), flat(saved.get("c0"), nothing),
        flat(saved["hidden"] if p.return_last else saved["output"], nothing),
        flat(saved.get("gate_values"), nothing), flat(saved.get("cells"), nothing),
        flat(incoming[0], nothing), flat(incoming[1], nothing),
        flat(incoming[2] if len(incoming) > 2 else None, nothing),
        columns, sums, old, extra, arrived, dh0.reshape(-1), dc0.reshape(-1),
        scratch(sizes.parts * sizes.scratch, dtype), empty(sizes.parts * sizes.offsets, np.int64),
    )  # fmt: skip
    return Gathered(sums[: count * per_direction], columns, old, extra, arrived), dh0, dc0


def _of_weights(run: _Run, g: Gathered, d: int, w: Weights, wanted: Weights, x_rows: Any) -> Weights:
    """The wanted gradients of one direction's weights; x_rows is x as `pack_steps` makes it, where w_ih's is wanted."""
    p, dtype, threads = run.p, run.facts.dtype, run.threads
    units, hidden = p.units, p.hidden
    steps = np.arange(run.way.total, dtype=np.int64)
    sums_at = steps * (VECTOR_BYTES // dtype.itemsize)
    sums = g.sums.reshape(p.directions, -1)[d]
    w_ih, w_hh, b_ih, b_hh, w_hr = (empty(a.shape, dtype) if wants else None for a, wants in zip(w, wanted))
    if w_ih is not None:
        for first, count, row in run.x_blocks:
            mine = g.columns[first : first + count]
            weight_gradient(sums, mine, sums_at, x_rows, p.inputs, w_ih.reshape(-1), row, threads)
    if w_hh is not None:
        out, before = w_hh.reshape(-1), pack_steps(g.old[d * run.total * hidden :], steps * hidden, hidden)
        weight_gradient(sums, g.columns[: run.taps], sums_at, before, hidden, out, 0, threads)
        if run.resets_first:
            reset = pack_steps(g.extra[d * run.total * units :], steps * units, units)
            weight_gradient(sums, g.columns[run.taps :], sums_at, reset, hidden, out, run.taps, threads)
    if w_hr is not None:
        unprojected = pack_steps(g.extra[d * run.total * units :], steps * units, units)
        projected, columns = g.arrived[d * run.total * hidden :], np.arange(hidden, dtype=np.int64)
        weight_gradient(projected, columns, steps * hidden, unprojected, units, w_hr.reshape(-1), 0, threads)
    if b_ih is not None or b_hh is not None:
        of_units = column_sums(sums, run.way.total, run.total).reshape(run.kept_sums, -1)[:, :units].reshape(-1)
        if b_ih is not None:
            for first, count, row in run.x_blocks:
                b_ih[row : row + count] = of_units[first : first + count]
        if b_hh is not None:
            b_hh[:] = of_units[: run.facts.rows]
    return Weights(w_ih, w_hh, b_ih, b_hh, w_hr)


def _of_x(run: _Run, g: Gathered, directions: tuple[Weights, ...]) -> Array:
    """The gradient of x: contiguous, however x lies, and 0 past the rows' lengths."""
    p, features = run.p, run.p.inputs
    shape = (p.batch, p.steps, features) if p.batch_first else (p.steps, p.batch, features)
    dx = (empty if p.lengths is None else zeros)(shape, run.facts.dtype)
    time, row = (features, p.steps * features) if p.batch_first else (p.batch * features, features)
    blocks = [(w.w_ih, to * features, features, count, features) for w in directions for _, count, to in run.x_blocks]
    packed, places = packed_panels(blocks, run.facts.dtype, run.threads), places_of(run.way, time, row)
    out = dx.reshape(-1)
    input_gradient(g.sums, g.columns, run.x_blocks, packed, features, places, out, p.directions, run.threads)
    return dx


def _nothing_but_states(p: Layer, facts: Facts, incoming: tuple[Array | None, ...]) -> tuple[Array | None, ...]:
    """The gradients when every row has length 0: the states' own, and zeros."""
    found: dict[str, Any] = {}
    for name, form, wanted in zip(facts.inputs, p.gradients(), p.needs_grad):
        found[name] = zeros(form.shape, facts.dtype) if form is not None and wanted else None
    for name, gradient in zip(("h0", "c0"), incoming[1:]):
        if gradient is not None and found[name] is not None:
            found[name][...] = gradient
    return tuple(found.values())


def backward(p: Layer, *incoming: Array | None, **saved: Any) -> tuple[Array | None, ...]:
    """Gradients of output, h_n (and c_n), each possibly None -> gradients of the inputs."""
    facts = facts_of(p)
    threads = threads_for(facts.work, GRAIN)
    way = walk(p, saved["lengths"], threads)
    if way.total == 0:
        return _nothing_but_states(p, facts, incoming)
    # An odd number, see backward.py.
    run = _Run(p, facts, way, threads, way.total + LARGE_ROWS | 1)
    gathered, dh0, dc0 = _through_time(run, saved, incoming)
    wanted, directions = dict(zip(facts.inputs, p.needs_grad)), p.weights(saved)
    found: dict[str, Any] = {"h0": dh0, "c0": dc0}
    x_rows = None
    if any(wanted.get(f"w_ih{suffix}") for suffix in SUFFIXES):
        x, time, row = sequence_memory(p, saved["x"])
        x_rows = pack_steps(x, places_of(way, time, row), p.inputs)
    for d, w in enumerate(directions):
        names = [name + SUFFIXES[d] for name in Weights._fields]
        wants = Weights(*(wanted.get(name, False) for name in names))
        found |= dict(zip(names, _of_weights(run, gathered, d, w, wants, x_rows)))
    if wanted["x"]:
        found["x"] = _of_x(run, gathered, directions)
    return tuple(found[name] if wants else None for name, wants in wanted.items())
