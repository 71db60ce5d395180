"""The recurrent layers on the CPU: weights packed into panels, then the whole sequence in one compiled call."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.recurrence import forward as fw
from kernels.recurrence.facts import GRAIN, Facts, facts_of, flat, packed_panels, sequence_memory
from kernels.recurrence.forward import BLOCK_ROWS, Sizes, run_forward
from kernels.recurrence.gradients_cpu import backward
from kernels.recurrence.op import GRU_LAYER, LSTM_LAYER, RNN_LAYER, implement
from kernels.recurrence.panels import LARGE_ROWS, PANEL_VECTORS, add_biases
from kernels.recurrence.problem import Layer, Weights
from kernels.recurrence.sequence import row_parts
from kernels.runtime.numba_cpu import contiguous, empty, scratch, threads_for, zeros

Array = np.ndarray[Any, Any]


def _biases(facts: Facts, sizes: Sizes, directions: tuple[Weights, ...]) -> tuple[Array, Array]:
    """What is added to the sums of all gates, [D, sum_stride], and to a GRU's recurrent sum of n, [D, unit_stride]."""
    wide, narrow = sizes.sum_stride, sizes.unit_stride
    common, apart = empty(len(directions) * wide, facts.dtype), empty(len(directions) * narrow, facts.dtype)
    together = facts.rows if facts.kind != fw.GRU_AFTER else 2 * sizes.units
    for d, w in enumerate(directions):
        b_ih, b_hh = (common[:1] if b is None else contiguous(b) for b in (w.b_ih, w.b_hh))
        to, to_apart = common[d * wide : (d + 1) * wide], apart[d * narrow : (d + 1) * narrow]
        add_biases(facts.rows, together, b_ih, w.b_ih is not None, b_hh, w.b_hh is not None, to, to_apart)
    return common, apart


def forward(p: Layer, *inputs: Array | None) -> tuple[Array | None, ...]:
    """The op's inputs -> its results."""
    facts = facts_of(p)
    named = dict(zip(facts.inputs, inputs))
    dtype, lengths = facts.dtype, named["lengths"]
    threads = threads_for(facts.work, GRAIN)
    x, x_time, x_row = sequence_memory(p, named["x"])
    way, sizes = facts.plan(p, lengths, threads, (x_time, x_row))
    directions = p.weights(named)
    inputs_of_x, hidden = p.inputs, p.hidden
    w_x = packed_panels([(w.w_ih, 0, facts.rows, inputs_of_x, 0) for w in directions], dtype, threads)
    w_h = packed_panels([(w.w_hh, 0, facts.recurrent, hidden, 0) for w in directions], dtype, threads)
    nothing = w_second = empty(1, dtype)
    if facts.kind == fw.GRU_BEFORE:
        start = 2 * hidden * hidden
        w_second = packed_panels([(w.w_hh, start, hidden, hidden, 0) for w in directions], dtype, threads)
    elif facts.second:
        w_second = packed_panels([(w.w_hr, 0, hidden, sizes.units, 0) for w in directions], dtype, threads)
    bias_x, bias_h = _biases(facts, sizes, directions)
    make = empty if lengths is None else zeros  # Past a row's length there are zeros.
    made = {name: None if form is None else make(form.shape, dtype) for name, form in facts.forms.items()}
    run_forward(
        sizes.parts, threads, sizes, way.bounds, way.order, way.ends, way.counts, x, w_x, w_h, w_second,
        bias_x, bias_h, flat(named["h0"], nothing), flat(named.get("c0"), nothing),
        flat(made["hidden"] if p.return_last else made["output"], nothing),
        flat(made["output"] if p.return_last else None, nothing),
        flat(made["h_n"], nothing), flat(made.get("c_n"), nothing),
        flat(made.get("gate_values"), nothing), flat(made.get("cells"), nothing),
        scratch(sizes.parts * sizes.scratch, dtype), empty(sizes.parts * sizes.offsets, np.int64),
    )  # fmt: skip
    return tuple(made.values())


def describe(p: Layer) -> str:
    """The tile, and how the rows are shared out."""
    threads = threads_for(facts_of(p).work, GRAIN)
    parts = p.directions * row_parts(p, threads) if p.batch else 0
    tile = f"tile {LARGE_ROWS} rows x {PANEL_VECTORS} vectors, {min(p.batch, BLOCK_ROWS)} rows a block"
    return f"whole sequence in one call, {tile}, {parts} part{'s' if parts != 1 else ''} on {threads} threads"


for _op in (RNN_LAYER, LSTM_LAYER, GRU_LAYER):
    implement(_op, "numba", forward, backward, describe=describe)
