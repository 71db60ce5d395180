"""Backward of the recurrent layers on the CPU: through time in one compiled call, then products over all steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kernels.recurrence import forward as fw
from kernels.recurrence.backward import BackSizes, run_backward, with_strides
from kernels.recurrence.facts import GRAIN, Facts, facts_of, flat, packed_panels, sequence_memory
from kernels.recurrence.forward import in_memory, panels_of
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
        old: elements [D, total, hidden], the state before each step.
        extra: elements [D, total, units]: the reset states of a GRU that resets first, an LSTM's unprojected states.
        arrived: elements [D, total, hidden], the gradients of an LSTM's projected states.
    """

    sums: Array
    old: Array
    extra: Array
    arrived: Array


class _Run(NamedTuple):
    """How a backward pass runs: the problem with all that follows from it, from the lengths and from what flows in."""

    p: Layer
    facts: Facts
    way: Walk
    threads: int
    total: int  # rows of `Gathered` for each direction: the sum of the lengths, with rows that tiles may read
    columns: Array  # int64, where the columns of a direction's sums begin, and LARGE_ROWS more, the last one again
    per_direction: int  # elements of a direction's sums
    sizes: BackSizes
    memory: Array  # the sizes as compiled code takes them
    # int64 [sum of the lengths]: where the steps lie in the sums, in `old`, in `extra`, in x and in its gradient.
    sums_at: Array
    old_at: Array
    extra_at: Array
    x_at: Array
    dx_at: Array

    @property
    def resets_first(self) -> bool:
        """Whether this is a GRU whose reset gate multiplies before the product."""
        return self.facts.kind == fw.GRU_BEFORE


def _kept_sums(p: Layer, facts: Facts) -> int:
    """How many sums' gradients a unit has: one a gate, and two for n of a GRU that resets after the product."""
    return 4 if facts.kind == fw.GRU_AFTER else p.gates


def _x_blocks(p: Layer, facts: Facts) -> Blocks:
    """Which of a step's sums' gradients belong to which rows of w_ih."""
    units = p.units
    if facts.kind == fw.GRU_AFTER:
        return (0, 2 * units, 0), (3 * units, units, 2 * units)
    return ((0, facts.rows, 0),)


def _columns(p: Layer, facts: Facts, total: int) -> tuple[Array, int]:
    """int64 [kept sums * units]: where the columns of a direction's sums begin; and the size of a direction."""
    lanes, units, kept = VECTOR_BYTES // facts.dtype.itemsize, p.units, _kept_sums(p, facts)
    unit = np.arange(units, dtype=np.int64)
    of_gate = -(-units // lanes) * lanes * total
    columns = np.arange(kept)[:, None] * of_gate + unit // lanes * lanes * total + unit % lanes
    columns = columns.reshape(-1)
    return np.concatenate([columns, np.full(LARGE_ROWS, columns[-1])]), kept * of_gate


#: Up to so many steps of all rows the tables of a run are kept for the next one.
_SMALL = 1 << 12


def _run_of(p: Layer, saved: dict[str, Any], incoming: tuple[Array | None, ...], threads: int) -> _Run | None:
    """How this call runs; None where every row has length 0."""
    facts, lengths = facts_of(p), saved["lengths"]
    key = (threads, *[gradient is None for gradient in incoming])
    known: _Run | None = facts.runs.get(key) if lengths is None else None
    if known is not None:
        return known
    way = walk(p, lengths, threads)
    if way.total == 0:
        return None
    # An odd number, see backward.py.
    total = way.total + LARGE_ROWS | 1
    columns, per_direction = _columns(p, facts, total)
    sizes = _sizes(p, facts, way, total, per_direction, incoming)
    steps = np.arange(way.total, dtype=np.int64)
    features = p.inputs
    _, x_time, x_row = sequence_memory(p, saved["x"])
    dx_time, dx_row = (features, p.steps * features) if p.batch_first else (p.batch * features, features)
    run = _Run(
        p, facts, way, threads, total, columns, per_direction, sizes, in_memory(sizes),
        steps * (VECTOR_BYTES // facts.dtype.itemsize), steps * p.hidden, steps * p.units,
        places_of(way, x_time, x_row), places_of(way, dx_time, dx_row),
    )  # fmt: skip
    if lengths is None and way.total <= _SMALL:
        facts.runs[key] = run
    return run


def _sizes(
    p: Layer, facts: Facts, way: Walk, total: int, per_direction: int, incoming: tuple[Array | None, ...]
) -> BackSizes:
    item = facts.dtype.itemsize
    features = p.directions * p.hidden
    time, row = (features, p.steps * features) if p.batch_first else (p.batch * features, features)
    second_panels, second_taps = 0, 1
    if facts.kind == fw.GRU_BEFORE:
        second_panels, second_taps = panels_of(p.hidden, item), p.units
    elif p.projects:
        second_panels, second_taps = panels_of(p.units, item), p.hidden
    sizes = BackSizes(
        kind=facts.kind,
        directions=p.directions,
        row_parts=way.row_parts,
        steps=way.steps,
        all_steps=p.steps,
        batch=p.batch,
        units=p.units,
        hidden=p.hidden,
        kept=p.kept_gates,
        total=total,
        sums=per_direction,
        taps=facts.recurrent,
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
        has_c0=int(getattr(p, "c0", None) is not None),
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
    sizes, per_direction = run.sizes, run.per_direction
    w_h = packed_panels([(w.w_hh, 0, hidden, run.facts.recurrent, hidden) for w in directions], dtype, run.threads)
    nothing = w_second = run.facts.nothing
    if run.resets_first:
        parts = [(w.w_hh, run.facts.recurrent * hidden, hidden, units, hidden) for w in directions]
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
        sizes.parts, run.threads, run.memory, way.bounds, way.order, way.ends, way.counts, way.starts, w_h, w_second,
        flat(saved["h0"], nothing), flat(saved.get("c0"), nothing),
        flat(saved["hidden"] if p.return_last else saved["output"], nothing),
        flat(saved.get("gate_values"), nothing), flat(saved.get("cells"), nothing),
        flat(incoming[0], nothing), flat(incoming[1], nothing),
        flat(incoming[2] if len(incoming) > 2 else None, nothing),
        run.columns, sums, old, extra, arrived, dh0.reshape(-1), dc0.reshape(-1),
        scratch(sizes.parts * sizes.scratch, dtype), empty(sizes.parts * sizes.offsets, np.int64),
    )  # fmt: skip
    return Gathered(sums[: count * per_direction], old, extra, arrived), dh0, dc0


def _of_weights(run: _Run, g: Gathered, d: int, w: Weights, wanted: Weights, x_rows: Any) -> Weights:
    """The wanted gradients of one direction's weights; x_rows is x as `pack_steps` makes it, where w_ih's is wanted."""
    p, facts, threads = run.p, run.facts, run.threads
    units, hidden, recurrent = p.units, p.hidden, facts.recurrent
    sums = g.sums[d * run.per_direction :]
    w_ih, w_hh, b_ih, b_hh, w_hr = (empty(a.shape, facts.dtype) if wants else None for a, wants in zip(w, wanted))
    if w_ih is not None:
        for first, count, row in _x_blocks(p, facts):
            weight_gradient(sums, run.columns[first:], count, run.sums_at, x_rows, p.inputs, w_ih, row, threads)
    if w_hh is not None:
        before = pack_steps(g.old[d * run.total * hidden :], run.old_at, hidden)
        weight_gradient(sums, run.columns, recurrent, run.sums_at, before, hidden, w_hh, 0, threads)
        if run.resets_first:
            reset = pack_steps(g.extra[d * run.total * units :], run.extra_at, units)
            weight_gradient(sums, run.columns[recurrent:], units, run.sums_at, reset, hidden, w_hh, recurrent, threads)
    if w_hr is not None:
        unprojected = pack_steps(g.extra[d * run.total * units :], run.extra_at, units)
        projected, columns = g.arrived[d * run.total * hidden :], np.arange(hidden + LARGE_ROWS, dtype=np.int64)
        weight_gradient(projected, columns, hidden, run.old_at, unprojected, units, w_hr, 0, threads)
    if b_ih is not None or b_hh is not None:
        kept = _kept_sums(p, facts)
        vectors = column_sums(sums[: run.per_direction], run.way.total, run.total)
        of_units = vectors.reshape(kept, -1)[:, :units].reshape(-1)
        if b_ih is not None:
            for first, count, row in _x_blocks(p, facts):
                b_ih[row : row + count] = of_units[first : first + count]
        if b_hh is not None:
            b_hh[:] = of_units[: facts.rows]
    return Weights(w_ih, w_hh, b_ih, b_hh, w_hr)


def _of_x(run: _Run, g: Gathered, directions: tuple[Weights, ...]) -> Array:
    """The gradient of x: contiguous, however x lies, and 0 past the rows' lengths."""
    p, dtype, features = run.p, run.facts.dtype, run.p.inputs
    shape = (p.batch, p.steps, features) if p.batch_first else (p.steps, p.batch, features)
    dx = (empty if p.lengths is None else zeros)(shape, dtype)
    x_blocks = _x_blocks(p, run.facts)
    blocks = [(w.w_ih, to * features, features, count, features) for w in directions for _, count, to in x_blocks]
    packed = packed_panels(blocks, dtype, run.threads)
    input_gradient(
        g.sums, run.columns, x_blocks, packed, features, run.dx_at, dx.reshape(-1), p.directions, run.threads
    )
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
    run = _run_of(p, saved, incoming, threads_for(facts.work, GRAIN))
    if run is None:
        return _nothing_but_states(p, facts, incoming)
    gathered, dh0, dc0 = _through_time(run, saved, incoming)
    wanted, directions = dict(zip(facts.inputs, p.needs_grad)), p.weights(saved)
    found: dict[str, Any] = {"h0": dh0, "c0": dc0}
    x_rows = None
    if any(wanted.get(f"w_ih{suffix}") for suffix in SUFFIXES):
        x_rows = pack_steps(sequence_memory(p, saved["x"])[0], run.x_at, p.inputs)
    for d, w in enumerate(directions):
        names = [name + SUFFIXES[d] for name in Weights._fields]
        wants = Weights(*(wanted.get(name, False) for name in names))
        found |= dict(zip(names, _of_weights(run, gathered, d, w, wants, x_rows)))
    if wanted["x"]:
        found["x"] = _of_x(run, gathered, directions)
    return tuple(found[name] if wants else None for name, wants in wanted.items())
