"""The recurrences as equations, step by step, forward and backward, for any array library that `Math` describes.

Nothing is written in place, so torch can differentiate all of it, backward included. The gates' order is in gates.py,
and the equations of the cells, with their papers, at the public functions in op.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from kernels.recurrence.problem import GruProblem, Layer, LstmProblem, RnnProblem, Weights


class Math(NamedTuple):
    """What the equations need beside arithmetic, slices and ``.swapaxes``, ``.sum`` and ``@``."""

    sigmoid: Callable[[Any], Any]
    tanh: Callable[[Any], Any]
    where: Callable[[Any, Any, Any], Any]
    #: Joins a list along the last dimension.
    join: Callable[[list[Any]], Any]
    stack: Callable[[list[Any]], Any]
    #: Zeros of a shape, like a given array otherwise.
    zeros: Callable[[tuple[int, ...], Any], Any]


class Trace(NamedTuple):
    """What one direction computed. Lists have an entry for each step, in the order of time, 0 past a row's length."""

    hidden: list[Any]
    """(B, P)."""
    gate_values: list[Any]
    """(B, kept gates * H); None for the RNN."""
    cells: list[Any]
    """(B, H); None but for the LSTM."""
    h: Any
    """Final state (B, P)."""
    c: Any
    """(B, H); None but for the LSTM."""


class StepGradient(NamedTuple):
    """Gradients of one step's inputs."""

    a: Any
    """Of the input's sums w_ih x + b_ih, (B, G H)."""
    s: Any
    """Of the recurrent sums w_hh h + b_hh, (B, G H)."""
    h: Any
    """Of the previous state (B, P)."""
    c: Any
    """Of the previous cell (B, H), or None."""
    w_hh: Any
    w_hr: Any


def _parts(stacked: Any, count: int) -> list[Any]:
    size = stacked.shape[-1] // count
    return [stacked[..., i * size : (i + 1) * size] for i in range(count)]


def _plus(total: Any, more: Any) -> Any:
    return more if total is None else total if more is None else total + more


# ----- steps: input's sums a (B, G H) and states to new state, new cell, values kept for backward -------------------


def _rnn(m: Math, p: RnnProblem, w: Weights, a: Any, h: Any, c: Any) -> tuple[Any, Any, Any]:
    s = _plus(a + h @ w.w_hh.T, w.b_hh)
    return m.tanh(s) if p.nonlinearity == "tanh" else m.where(s < 0, m.zeros(s.shape, s), s), None, None


def _rnn_back(
    m: Math, p: RnnProblem, w: Weights, dh: Any, dc: Any, values: Any, h: Any, c: Any, h_new: Any, c_new: Any
) -> StepGradient:
    ds = dh * (1 - h_new * h_new) if p.nonlinearity == "tanh" else m.where(h_new <= 0, m.zeros(dh.shape, dh), dh)
    return StepGradient(ds, ds, ds @ w.w_hh, None, ds.T @ h, None)


def _lstm(m: Math, p: LstmProblem, w: Weights, a: Any, h: Any, c: Any) -> tuple[Any, Any, Any]:
    s = _parts(_plus(a + h @ w.w_hh.T, w.b_hh), 4)
    i, f, g, o = m.sigmoid(s[0]), m.sigmoid(s[1]), m.tanh(s[2]), m.sigmoid(s[3])
    c = f * c + i * g
    y = o * m.tanh(c)
    return y if w.w_hr is None else y @ w.w_hr.T, c, m.join([i, f, g, o])


def _lstm_back(
    m: Math, p: LstmProblem, w: Weights, dh: Any, dc: Any, values: Any, h: Any, c: Any, h_new: Any, c_new: Any
) -> StepGradient:
    i, f, g, o = _parts(values, 4)
    tanh_c = m.tanh(c_new)
    dw_hr = None
    if w.w_hr is not None:
        dw_hr, dh = dh.T @ (o * tanh_c), dh @ w.w_hr
    dc = dc + dh * o * (1 - tanh_c * tanh_c)
    ds = m.join(
        [dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g), dh * tanh_c * o * (1 - o)],
    )
    return StepGradient(ds, ds, ds @ w.w_hh, dc * f, ds.T @ h, dw_hr)


def _gru(m: Math, p: GruProblem, w: Weights, a: Any, h: Any, c: Any) -> tuple[Any, Any, Any]:
    a_r, a_z, a_n = _parts(a, 3)
    if p.reset_after:
        s_r, s_z, q = _parts(_plus(h @ w.w_hh.T, w.b_hh), 3)
        r, z = m.sigmoid(a_r + s_r), m.sigmoid(a_z + s_z)
        n = m.tanh(a_n + r * q)
        kept = [r, z, n, q]
    else:
        units = h.shape[-1]
        s_r, s_z = _parts(_plus(h @ w.w_hh[: 2 * units].T, None if w.b_hh is None else w.b_hh[: 2 * units]), 2)
        r, z = m.sigmoid(a_r + s_r), m.sigmoid(a_z + s_z)
        n = m.tanh(_plus(a_n + (r * h) @ w.w_hh[2 * units :].T, None if w.b_hh is None else w.b_hh[2 * units :]))
        kept = [r, z, n]
    return (1 - z) * n + z * h, None, m.join(kept)


def _gru_back(
    m: Math, p: GruProblem, w: Weights, dh: Any, dc: Any, values: Any, h: Any, c: Any, h_new: Any, c_new: Any
) -> StepGradient:
    r, z, n, *after = _parts(values, p.kept_gates)
    dz = dh * (h - n) * z * (1 - z)
    dn = dh * (1 - z) * (1 - n * n)
    if p.reset_after:
        dr = dn * after[0] * r * (1 - r)
        ds = m.join([dr, dz, dn * r])
        return StepGradient(m.join([dr, dz, dn]), ds, dh * z + ds @ w.w_hh, None, ds.T @ h, None)
    units = h.shape[-1]
    d_reset = dn @ w.w_hh[2 * units :]  # of r * h
    d_rz = m.join([d_reset * h * r * (1 - r), dz])
    dh = dh * z + d_reset * r + d_rz @ w.w_hh[: 2 * units]
    # Rows r and z of the gradient of w_hh, then rows n: joined along the first dimension.
    dw_hh = m.join([(d_rz.T @ h).T, (dn.T @ (r * h)).T]).T
    ds = m.join([d_rz, dn])
    return StepGradient(ds, ds, dh, None, dw_hh, None)


_STEPS: dict[str, tuple[Callable[..., Any], Callable[..., StepGradient]]] = {
    "rnn": (_rnn, _rnn_back),
    "lstm": (_lstm, _lstm_back),
    "gru": (_gru, _gru_back),
}


# ----- sequences ---------------------------------------------------------------------------------------------------


class _Sequence:
    """The inputs of a layer, time first, padding replaced by 0."""

    def __init__(self, m: Math, p: Layer, named: dict[str, Any]) -> None:
        self.m, self.p = m, p
        x = named["x"]
        self.x = [x[:, t] if p.batch_first else x[t] for t in range(p.steps)]
        lengths = named["lengths"]
        #: (B, 1) for each step: whether it is inside the row; None without lengths.
        self.inside = None if lengths is None else [(lengths > t)[:, None] for t in range(p.steps)]
        self.last = None if lengths is None else [(lengths == t + 1)[:, None] for t in range(p.steps)]
        self.x = [self.only_inside(t, x) for t, x in enumerate(self.x)]
        self.weights = p.weights(named)
        self.h0 = self._states(named["h0"], p.hidden)
        no_cells: list[Any] = [None] * p.directions
        self.c0 = self._states(named.get("c0"), p.units) if p.cell == "lstm" else no_cells

    def _states(self, given: Any, size: int) -> list[Any]:
        shape = (self.p.batch, size)
        return [self.m.zeros(shape, self.x[0]) if given is None else given[d] for d in range(self.p.directions)]

    def order(self, direction: int) -> Iterable[int]:
        """The steps in the order in which a direction takes them."""
        return range(self.p.steps) if direction == 0 else range(self.p.steps - 1, -1, -1)

    def only_inside(self, t: int, value: Any) -> Any:
        """`value` (B, ...) of step t, 0 past the rows' lengths whatever stands there."""
        return value if self.inside is None else self.m.where(self.inside[t], value, self.m.zeros(value.shape, value))

    def choose(self, t: int, inside: Any, outside: Any) -> Any:
        """`inside` for rows that have step t, `outside` for the others."""
        return inside if self.inside is None or inside is None else self.m.where(self.inside[t], inside, outside)

    def before(self, direction: int, t: int, states: list[Any], initial: Any) -> Any:
        """The state that step t starts from."""
        previous = t - 1 if direction == 0 else t + 1
        if not 0 <= previous < self.p.steps:
            return initial
        # In reverse a row begins at its own end.
        return states[previous] if direction == 0 else self.choose(previous, states[previous], initial)


def run(m: Math, p: Layer, named: dict[str, Any]) -> list[Trace]:
    """Every direction of a layer; `named` holds the op's inputs."""
    seen = _Sequence(m, p, named)
    step = _STEPS[p.cell][0]
    traces = []
    for d, w in enumerate(seen.weights):
        hidden: list[Any] = [None] * p.steps
        values: list[Any] = [None] * p.steps
        cells: list[Any] = [None] * p.steps
        h, c = seen.h0[d], seen.c0[d]
        for t in seen.order(d):
            a = _plus(seen.x[t] @ w.w_ih.T, w.b_ih)
            h_new, c_new, kept = step(m, p, w, a, h, c)
            hidden[t] = seen.only_inside(t, h_new)
            values[t] = None if kept is None else seen.only_inside(t, kept)
            cells[t] = None if c_new is None else seen.only_inside(t, c_new)
            h, c = seen.choose(t, h_new, h), seen.choose(t, c_new, c)
        traces.append(Trace(hidden, values, cells, h, c))
    return traces


def results(m: Math, p: Layer, named: dict[str, Any], traces: list[Trace]) -> tuple[Any, ...]:
    """The op's results, in the order of ``p.results()``."""
    steps = [m.join([trace.hidden[t] for trace in traces]) for t in range(p.steps)]
    stacked = m.stack(steps)
    full = stacked.swapaxes(0, 1) if p.batch_first else stacked
    output = full
    if p.return_last:
        output = steps[-1]
        if named["lengths"] is not None:
            ends = _Sequence(m, p, named).last
            assert ends is not None
            output = sum(m.where(end, y, m.zeros(y.shape, y)) for end, y in zip(ends, steps))
    found = [output, m.stack([trace.h for trace in traces])]
    if p.cell == "lstm":
        found.append(m.stack([trace.c for trace in traces]))
    if p.cell != "rnn":
        found.append(m.stack([m.stack(trace.gate_values) for trace in traces]) if p.trains else None)
    if p.cell == "lstm":
        found.append(m.stack([m.stack(trace.cells) for trace in traces]) if p.trains else None)
    found.append(full if p.trains and p.return_last else None)
    return tuple(found)


def traces_of(p: Layer, saved: dict[str, Any]) -> list[Trace]:
    """The traces that ``p.saved()`` holds, without the final states."""
    full = saved["hidden"] if p.return_last else saved["output"]
    if p.batch_first:
        full = full.swapaxes(0, 1)
    found = []
    for d in range(p.directions):
        hidden = [full[t][:, d * p.hidden : (d + 1) * p.hidden] for t in range(p.steps)]
        kept = (saved.get("gate_values"), saved.get("cells"))
        values, cells = ([None if k is None else k[d][t] for t in range(p.steps)] for k in kept)
        found.append(Trace(hidden, values, cells, None, None))
    return found


def gradients(
    m: Math, p: Layer, named: dict[str, Any], traces: list[Trace], incoming: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Gradients of the op's inputs, in their order; None where one is not wanted.

    incoming: of output, h_n and, for the LSTM, c_n; None where nothing flows in.
    """
    seen = _Sequence(m, p, named)
    back = _STEPS[p.cell][1]
    grad_output, grad_h = incoming[:2]
    grad_c = incoming[2] if len(incoming) > 2 else None
    dx: list[Any] = [None] * p.steps
    found: dict[str, Any] = {}
    states: dict[str, list[Any]] = {"h0": [], "c0": []}
    for d, (w, trace) in enumerate(zip(seen.weights, traces)):
        total = Weights(None, None, None, None, None)
        dh = m.zeros(seen.h0[d].shape, seen.h0[d]) if grad_h is None else grad_h[d]
        dc: Any = None
        if p.cell == "lstm":
            dc = m.zeros(seen.c0[d].shape, seen.c0[d]) if grad_c is None else grad_c[d]
        for t in reversed(list(seen.order(d))):
            h, c = seen.before(d, t, trace.hidden, seen.h0[d]), seen.before(d, t, trace.cells, seen.c0[d])
            # A row that is past its end takes no part in the step.
            into_h = seen.only_inside(t, _plus(dh, _output_gradient(m, p, seen, grad_output, d, t)))
            into_c = None if dc is None else seen.only_inside(t, dc)
            g = back(m, p, w, into_h, into_c, trace.gate_values[t], h, c, trace.hidden[t], trace.cells[t])
            dx[t] = _plus(dx[t], g.a @ w.w_ih)
            total = Weights(
                _plus(total.w_ih, g.a.T @ seen.x[t]),
                _plus(total.w_hh, g.w_hh),
                _plus(total.b_ih, g.a.sum(0)),
                _plus(total.b_hh, g.s.sum(0)),
                _plus(total.w_hr, g.w_hr),
            )
            dh, dc = seen.choose(t, g.h, dh), seen.choose(t, g.c, dc)
        for name, value in zip(Weights._fields, total):
            found[name + ("", "_reverse")[d]] = value
        states["h0"].append(dh)
        states["c0"].append(dc)
    stacked = m.stack(dx)
    found["x"] = stacked.swapaxes(0, 1) if p.batch_first else stacked
    found["h0"] = m.stack(states["h0"])
    if p.cell == "lstm":
        found["c0"] = m.stack(states["c0"])
    return tuple(found.get(name) if wanted else None for name, wanted in zip(named, p.needs_grad))


def _output_gradient(m: Math, p: Layer, seen: _Sequence, grad_output: Any, d: int, t: int) -> Any:
    """What flows into direction d's hidden state of step t from the output, (B, P) or None."""
    if grad_output is None:
        return None
    mine = slice(d * p.hidden, (d + 1) * p.hidden)
    if not p.return_last:
        return seen.only_inside(t, (grad_output[:, t] if p.batch_first else grad_output[t])[:, mine])
    if seen.last is None:
        return grad_output[:, mine] if t == p.steps - 1 else None
    last = grad_output[:, mine]
    return m.where(seen.last[t], last, m.zeros(last.shape, last))
