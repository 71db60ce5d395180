"""Single steps of the recurrences: rnn_cell, lstm_cell, gru_cell. T steps give the bits of a sequence of T."""

from __future__ import annotations

from typing import Any

from kernels import arrays, checks
from kernels.recurrence.op import gru_layer, lstm_layer, rnn_layer


def _batched(op: str, x: Any, states: dict[str, Any]) -> tuple[Any, dict[str, Any], bool]:
    """x as (1, B, I), states as (1, B, size), and whether they had a batch."""
    if arrays.kind(x) is None:
        x, states = arrays.from_dlpack(x), {n: arrays.from_dlpack(a) for n, a in states.items()}
    if arrays.kind(x) is None:
        checks.fail_type_name(op, "x", "must be a NumPy, torch or CuPy array", type(x).__name__)
    if x.ndim not in (1, 2):
        checks.fail(op, "x", "must have shape (B, I) or (I,)", f"{x.ndim} dimensions {tuple(x.shape)}")
    for name, state in states.items():
        if state is not None and getattr(state, "ndim", None) != x.ndim:
            rule = "must be an array with as many dimensions as x"
            checks.fail(op, name, rule, tuple(getattr(state, "shape", ())) or type(state).__name__)
    has_batch = x.ndim == 2
    index: tuple[Any, ...] = (None,) if has_batch else (None, None)
    return x[index], {n: None if a is None else a[index] for n, a in states.items()}, has_batch


def rnn_cell(
    x: Any,
    h: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    nonlinearity: str = "tanh",
    device: Any = None,
    backend: str | None = None,
) -> Any:
    """One step of a simple RNN, with the bits that `rnn` has in that step.

    Args:
        x: (B, I) or (I,).
        h: (B, H) or (H,), the state before; None is zeros.
        w_ih: (H, I).
        w_hh: (H, H).
        b_ih: (H,) or None.
        b_hh: (H,) or None.
        nonlinearity: "tanh" or "relu".
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        the new state, (B, H) or (H,).

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above.
        BackendError: the wanted backend cannot run this call.
    """
    x, states, has_batch = _batched("rnn_cell", x, {"h": h})
    output, _ = rnn_layer(
        x, w_ih, w_hh, b_ih, b_hh, h0=states["h"], nonlinearity=nonlinearity, device=device, backend=backend
    )
    return output[0] if has_batch else output[0, 0]


def gru_cell(
    x: Any,
    h: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    reset_after: bool = True,
    device: Any = None,
    backend: str | None = None,
) -> Any:
    """One step of a GRU, with the bits that `gru` has in that step.

    Args:
        x: (B, I) or (I,).
        h: (B, H) or (H,), the state before; None is zeros.
        w_ih: (3 H, I), gates r, z, n one below the other.
        w_hh: (3 H, H).
        b_ih: (3 H,) or None.
        b_hh: (3 H,) or None.
        reset_after: see `gru`.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        the new state, (B, H) or (H,).

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above.
        BackendError: the wanted backend cannot run this call.
    """
    x, states, has_batch = _batched("gru_cell", x, {"h": h})
    output, _ = gru_layer(
        x, w_ih, w_hh, b_ih, b_hh, h0=states["h"], reset_after=reset_after, device=device, backend=backend
    )
    return output[0] if has_batch else output[0, 0]


def lstm_cell(
    x: Any,
    state: tuple[Any, Any] | None,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    w_hr: Any = None,
    *,
    device: Any = None,
    backend: str | None = None,
) -> tuple[Any, Any]:
    """One step of an LSTM, with the bits that `lstm` has in that step.

    Args:
        x: (B, I) or (I,).
        state: (h (B, P), c (B, H)), or (P,) and (H,), the states before; either may be None, zeros.
        w_ih: (4 H, I), gates i, f, g, o one below the other.
        w_hh: (4 H, P).
        b_ih: (4 H,) or None.
        b_hh: (4 H,) or None.
        w_hr: (P, H), a projection, or None, P = H.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        (h, c), the new states.

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above.
        BackendError: the wanted backend cannot run this call.
    """
    if state is not None and not (isinstance(state, (tuple, list)) and len(state) == 2):
        checks.fail_type_name("lstm_cell", "state", "must be a pair (h, c) or None", type(state).__name__)
    h, c = (None, None) if state is None else state
    x, states, has_batch = _batched("lstm_cell", x, {"h": h, "c": c})
    output, _, c_n = lstm_layer(
        x, w_ih, w_hh, b_ih, b_hh, w_hr, h0=states["h"], c0=states["c"], device=device, backend=backend
    )
    return (output[0], c_n[0]) if has_batch else (output[0, 0], c_n[0, 0])
