"""The recurrent layers on the CPU: weights packed into panels, then the whole sequence in one compiled call."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.recurrence import backward as back
from kernels.recurrence import forward as fw
from kernels.recurrence.forward import BLOCK_ROWS, Sizes, panels_of, run_forward, with_strides
from kernels.recurrence.op import GRU_LAYER, LSTM_LAYER, RNN_LAYER, implement
from kernels.recurrence.panels import LARGE_ROWS, PANEL_VECTORS, add_biases, pack
from kernels.recurrence.problem import SUFFIXES, GruProblem, Layer, RnnProblem, Weights
from kernels.recurrence.sequence import Walk, row_parts, walk
from kernels.recurrence.weight_gradients import (
    Blocks,
    column_sums,
    input_gradient,
    pack_steps,
    places_of,
    weight_gradient,
)
from kernels.runtime.numba_cpu import contiguous, empty, scratch, threads_for, zeros
from kernels.simd import VECTOR_BYTES

Array = np.ndarray[Any, Any]

#: Multiply-adds that are worth a thread.
GRAIN = 1 << 18


def kind_of(p: Layer) -> int:
    """The kind of cell, one of forward.RNN_TANH and so on."""
    if isinstance(p, RnnProblem):
        return fw.RNN_TANH if p.nonlinearity == "tanh" else fw.RNN_RELU
    if isinstance(p, GruProblem):
        return fw.GRU_AFTER if p.reset_after else fw.GRU_BEFORE
    return fw.LSTM


def sequence_memory(p: Layer, x: Any) -> tuple[Array, int, int]:
    """x flat in the order in which it lies, and the distances of its steps and rows; copied only where it must be."""
    if p.batch_first:
        x = x.swapaxes(0, 1)
    steps, batch, features = x.shape
    turned = x.swapaxes(0, 1)
    if turned.flags.c_contiguous and not x.flags.c_contiguous:
        return contiguous(turned).reshape(-1), features, steps * features
    return contiguous(x).reshape(-1), batch * features, features


def _panels(parts: list[tuple[Array, int, int, int, int]], dtype: Any, threads: int) -> Array:
    """Packed weights one after the other; each part is (matrix, first element, outputs, taps, is_turned)."""
    width = PANEL_VECTORS * VECTOR_BYTES // dtype.itemsize
    sizes = [panels_of(outputs, dtype.itemsize) * taps * width for _, _, outputs, taps, _ in parts]
    packed = scratch(sum(sizes), dtype)
    at = 0
    for (matrix, start, outputs, taps, is_turned), size in zip(parts, sizes):
        flat, target = contiguous(matrix).reshape(-1), packed[at : at + size]
        pack(panels_of(outputs, dtype.itemsize), threads, outputs, taps, start, is_turned, flat, target)
        at += size
    return packed


def _biases(facts: _Facts, sizes: Sizes, directions: tuple[Weights, ...]) -> tuple[Array, Array]:
    """What is added to the sums of all gates, [D, sum_stride], and to a GRU's recurrent sum of n, [D, unit_stride]."""
    wide, narrow = sizes.sum_stride, sizes.unit_stride
    common, apart = empty(len(directions) * wide, facts.dtype), empty(len(directions) * narrow, facts.dtype)
    together = facts.rows if facts.kind != fw.GRU_AFTER else 2 * sizes.units
    for d, w in enumerate(directions):
        b_ih, b_hh = (common[:1] if b is None else contiguous(b) for b in (w.b_ih, w.b_hh))
        to, to_apart = common[d * wide : (d + 1) * wide], apart[d * narrow : (d + 1) * narrow]
        add_biases(facts.rows, together, b_ih, w.b_ih is not None, b_hh, w.b_hh is not None, to, to_apart)
    return common, apart


class _Facts:
    """What every run of a problem needs and is slow to derive."""

    def __init__(self, p: Layer) -> None:
        op = {"rnn": RNN_LAYER, "lstm": LSTM_LAYER, "gru": GRU_LAYER}[p.cell]
        self.dtype = np.dtype(p.x.dtype)
        self.inputs, self.forms = op.inputs, dict(zip(op.results, p.results()))
        self.work = p.flops() // 2
        self.kind = kind = kind_of(p)
        #: Outputs of the first recurrent product, and of the one that needs its result.
        self.rows = p.gates * p.units
        self.recurrent = 2 * p.units if kind == fw.GRU_BEFORE else self.rows
        self.second = p.units if kind == fw.GRU_BEFORE else p.hidden if p.projects else 0
        #: Walks and sizes of calls without lengths by number of threads.
        self.plans: dict[int, tuple[Walk, Sizes]] = {}

    def plan(self, p: Layer, lengths: Array | None, threads: int, x_strides: tuple[int, int]) -> tuple[Walk, Sizes]:
        """The walk and the sizes of a call."""
        known = self.plans.get(threads) if lengths is None else None
        if known is None:
            way = walk(p, lengths, threads)
            known = way, self._sizes(p, way, x_strides)
            if lengths is None:
                self.plans[threads] = known
        return known

    def _sizes(self, p: Layer, way: Walk, x_strides: tuple[int, int]) -> Sizes:
        item, forms = self.dtype.itemsize, self.forms
        width = p.directions * p.hidden
        time, row = (width, p.steps * width) if p.batch_first else (p.batch * width, width)
        sizes = Sizes(
            kind=self.kind,
            directions=p.directions,
            row_parts=way.row_parts,
            steps=way.steps,
            all_steps=p.steps,
            batch=p.batch,
            inputs=p.inputs,
            units=p.units,
            hidden=p.hidden,
            gates=p.gates,
            kept=p.kept_gates,
            gate_panels=panels_of(self.rows, item),
            recurrent_panels=panels_of(self.recurrent, item),
            second_panels=panels_of(self.second, item),
            x_time=x_strides[0],
            x_row=x_strides[1],
            full_time=time,
            full_row=row,
            has_full=int(not p.return_last or forms["hidden"] is not None),
            has_last=int(p.return_last),
            has_h0=int(p.h0 is not None),
            has_c0=int(getattr(p, "c0", None) is not None),
            keeps=int(forms.get("gate_values") is not None),
            chunk=0,
            most_rows=way.most_rows,
            sum_stride=0,
            hidden_stride=0,
            unit_stride=0,
            scratch=0,
            offsets=0,
        )
        return with_strides(sizes, item)


def _facts(p: Layer) -> _Facts:
    # Kept on the problem itself, which lives as long as the plan of a call; its hash would cost more than all this.
    known: _Facts | None = p.__dict__.get("_numba_facts")
    if known is None:
        known = p.__dict__["_numba_facts"] = _Facts(p)
    return known


def _flat(array: Array | None, instead: Array) -> Array:
    return instead if array is None else contiguous(array).reshape(-1)


def forward(p: Layer, *inputs: Array | None) -> tuple[Array | None, ...]:
    """The op's inputs -> its results."""
    facts = _facts(p)
    named = dict(zip(facts.inputs, inputs))
    dtype, lengths = facts.dtype, named["lengths"]
    threads = threads_for(facts.work, GRAIN)
    x, x_time, x_row = sequence_memory(p, named["x"])
    way, sizes = facts.plan(p, lengths, threads, (x_time, x_row))
    directions = p.weights(named)
    inputs_of_x, hidden = p.inputs, p.hidden
    w_x = _panels([(w.w_ih, 0, facts.rows, inputs_of_x, 0) for w in directions], dtype, threads)
    w_h = _panels([(w.w_hh, 0, facts.recurrent, hidden, 0) for w in directions], dtype, threads)
    nothing = w_second = empty(1, dtype)
    if facts.kind == fw.GRU_BEFORE:
        start = 2 * hidden * hidden
        w_second = _panels([(w.w_hh, start, hidden, hidden, 0) for w in directions], dtype, threads)
    elif facts.second:
        w_second = _panels([(w.w_hr, 0, hidden, sizes.units, 0) for w in directions], dtype, threads)
    bias_x, bias_h = _biases(facts, sizes, directions)
    make = empty if lengths is None else zeros  # Past a row's length there are zeros.
    made = {name: None if form is None else make(form.shape, dtype) for name, form in facts.forms.items()}
    run_forward(
        sizes.parts, threads, sizes, way.bounds, way.order, way.ends, way.counts, x, w_x, w_h, w_second,
        bias_x, bias_h, _flat(named["h0"], nothing), _flat(named.get("c0"), nothing),
        _flat(made["hidden"] if p.return_last else made["output"], nothing),
        _flat(made["output"] if p.return_last else None, nothing),
        _flat(made["h_n"], nothing), _flat(made.get("c_n"), nothing),
        _flat(made.get("gate_values"), nothing), _flat(made.get("cells"), nothing),
        scratch(sizes.parts * sizes.scratch, dtype), empty(sizes.parts * sizes.offsets, np.int64),
    )  # fmt: skip
    return tuple(made.values())


def _blocks(facts: _Facts, units: int) -> tuple[int, Blocks, Blocks]:
    """How many gradients of sums a step has, and which of them belong to w_ih and to w_hh (with the states before)."""
    every: Blocks = ((0, facts.rows, 0),)
    if facts.kind == fw.GRU_AFTER:
        return 4 * units, ((0, 2 * units, 0), (3 * units, units, 2 * units)), every
    if facts.kind == fw.GRU_BEFORE:
        return facts.rows, every, ((0, 2 * units, 0),)
    return facts.rows, every, every


def _nothing_but_states(p: Layer, facts: _Facts, incoming: tuple[Array | None, ...]) -> tuple[Array | None, ...]:
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
    facts = _facts(p)
    dtype, kind, item = facts.dtype, facts.kind, facts.dtype.itemsize
    lengths, wanted = saved["lengths"], dict(zip(facts.inputs, p.needs_grad))
    threads = threads_for(facts.work, GRAIN)
    way = walk(p, lengths, threads)
    if way.total == 0:
        return _nothing_but_states(p, facts, incoming)
    units, hidden, batch = p.units, p.hidden, p.batch
    directions = p.weights(saved)
    columns, x_blocks, h_blocks = _blocks(facts, units)
    taps = 2 * units if kind == fw.GRU_BEFORE else facts.rows
    w_h = _panels([(w.w_hh, 0, hidden, taps, hidden) for w in directions], dtype, threads)
    nothing = w_second = empty(1, dtype)
    second_panels, second_taps = 0, 1
    if kind == fw.GRU_BEFORE:
        second_panels, second_taps = panels_of(hidden, item), units
        w_second = _panels([(w.w_hh, taps * hidden, hidden, units, hidden) for w in directions], dtype, threads)
    elif p.projects:
        second_panels, second_taps = panels_of(units, item), hidden
        w_second = _panels([(w.w_hr, 0, units, hidden, units) for w in directions], dtype, threads)
    features = p.directions * hidden
    time, row = (features, p.steps * features) if p.batch_first else (batch * features, features)
    total = way.total + LARGE_ROWS  # Tiles may read rows past the last.
    # An odd number of cache lines: with a power of two every column would lie in a few sets of the cache.
    width = (-(-columns * item // 64) | 1) * 64 // item
    sizes = back.with_strides(
        back.BackSizes(
            kind=kind,
            directions=p.directions,
            row_parts=way.row_parts,
            steps=way.steps,
            all_steps=p.steps,
            batch=batch,
            units=units,
            hidden=hidden,
            kept=p.kept_gates,
            total=total,
            sums=width,
            taps=taps,
            recurrent_panels=panels_of(hidden, item),
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
        ),
        item,
    )
    sums, old = scratch(p.directions * total * width, dtype), scratch(p.directions * total * hidden, dtype)
    extra = scratch(p.directions * total * units, dtype) if second_panels else nothing
    arrived = scratch(p.directions * total * hidden, dtype) if p.projects else nothing
    dh0 = empty((p.directions, batch, hidden), dtype)
    dc0 = empty((p.directions, batch, units), dtype) if p.cell == "lstm" else nothing
    back.run_backward(
        sizes.parts, threads, sizes, way.bounds, way.order, way.ends, way.counts, way.starts, w_h, w_second,
        _flat(saved["h0"], nothing), _flat(saved.get("c0"), nothing),
        _flat(saved["hidden"] if p.return_last else saved["output"], nothing),
        _flat(saved.get("gate_values"), nothing), _flat(saved.get("cells"), nothing),
        _flat(incoming[0], nothing), _flat(incoming[1], nothing),
        _flat(incoming[2] if len(incoming) > 2 else None, nothing),
        sums, old, extra, arrived, dh0.reshape(-1), dc0.reshape(-1),
        scratch(sizes.parts * sizes.scratch, dtype), empty(sizes.parts * sizes.offsets, np.int64),
    )  # fmt: skip
    found: dict[str, Any] = {"h0": dh0, "c0": dc0}
    if any(wanted[f"w_ih{suffix}"] for suffix in SUFFIXES):
        x, x_time, x_row = sequence_memory(p, saved["x"])
        x_rows = pack_steps(x, places_of(way, x_time, x_row), p.inputs)
    for d, (suffix, w) in enumerate(zip(SUFFIXES, directions)):
        ds, before = sums[d * total * width :], old[d * total * hidden :]
        if wanted[f"w_ih{suffix}"]:
            found[f"w_ih{suffix}"] = made = empty(w.w_ih.shape, dtype)
            weight_gradient(ds, width, way.total, x_blocks, x_rows, p.inputs, made.reshape(-1), threads)
        if wanted[f"w_hh{suffix}"]:
            found[f"w_hh{suffix}"] = made = empty(w.w_hh.shape, dtype)
            flat, places = made.reshape(-1), np.arange(way.total, dtype=np.int64) * hidden
            weight_gradient(ds, width, way.total, h_blocks, pack_steps(before, places, hidden), hidden, flat, threads)
            if kind == fw.GRU_BEFORE:
                last: Blocks = ((taps, units, taps),)
                reset = pack_steps(extra[d * total * units :], places, units)
                weight_gradient(ds, width, way.total, last, reset, hidden, flat, threads)
        if wanted.get(f"w_hr{suffix}"):
            found[f"w_hr{suffix}"] = made = empty(w.w_hr.shape, dtype)
            places = np.arange(way.total, dtype=np.int64) * units
            unprojected = pack_steps(extra[d * total * units :], places, units)
            projected, every = arrived[d * total * hidden :], ((0, hidden, 0),)
            weight_gradient(projected, hidden, way.total, every, unprojected, units, made.reshape(-1), threads)
        if wanted[f"b_ih{suffix}"] or wanted[f"b_hh{suffix}"]:
            sums_of = column_sums(ds, way.total, columns, width)
            found[f"b_ih{suffix}"], found[f"b_hh{suffix}"] = (empty(facts.rows, dtype) for _ in (0, 1))
            for column, count, first in x_blocks:
                found[f"b_ih{suffix}"][first : first + count] = sums_of[column : column + count]
            found[f"b_hh{suffix}"][:] = sums_of[: facts.rows]
    if wanted["x"]:
        # The gradient lies contiguously, however x does.
        time, row = (p.inputs, p.steps * p.inputs) if p.batch_first else (batch * p.inputs, p.inputs)
        found["x"] = dx = (empty if lengths is None else zeros)(saved["x"].shape, dtype)
        blocks = [
            (w.w_ih, first * p.inputs, p.inputs, count, p.inputs) for w in directions for _, count, first in x_blocks
        ]
        packed, places = _panels(blocks, dtype, threads), places_of(way, time, row)
        input_gradient(
            sums, width, total, x_blocks, packed, p.inputs, places, dx.reshape(-1), p.directions, threads
        )  # fmt: skip
    return tuple(found[name] if wants else None for name, wants in wanted.items())


def describe(p: Layer) -> str:
    """The tile, and how the rows are shared out."""
    threads = threads_for(_facts(p).work, GRAIN)
    parts = p.directions * row_parts(p, threads) if p.batch else 0
    tile = f"tile {LARGE_ROWS} rows x {PANEL_VECTORS} vectors, {min(p.batch, BLOCK_ROWS)} rows a block"
    return f"whole sequence in one call, {tile}, {parts} part{'s' if parts != 1 else ''} on {threads} threads"


for _op in (RNN_LAYER, LSTM_LAYER, GRU_LAYER):
    implement(_op, "numba", forward, backward, describe=describe)
