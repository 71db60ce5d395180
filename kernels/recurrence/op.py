"""One recurrent layer, in one or both directions, as one op: rnn_layer, lstm_layer, gru_layer.

Sizes: T steps, B rows, I inputs, H units, P the size of the hidden state (H, or the LSTM's projection), D directions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kernels.call import call
from kernels.op import Implementation, Op, Problem, input_names, named
from kernels.recurrence.problem import GruProblem, LstmProblem, RnnProblem


def _but_lengths(problem: type[Problem]) -> tuple[str, ...]:
    return tuple(name for name in input_names(problem) if name != "lengths")


RNN_LAYER = Op(
    "rnn_layer",
    RnnProblem,
    family=__package__,
    results=("output", "h_n", "hidden"),
    differentiable=_but_lengths(RnnProblem),
    differentiable_results=2,
)
GRU_LAYER = Op(
    "gru_layer",
    GruProblem,
    family=__package__,
    results=("output", "h_n", "gate_values", "hidden"),
    differentiable=_but_lengths(GruProblem),
    differentiable_results=2,
)
LSTM_LAYER = Op(
    "lstm_layer",
    LstmProblem,
    family=__package__,
    results=("output", "h_n", "c_n", "gate_values", "cells", "hidden"),
    differentiable=_but_lengths(LstmProblem),
    differentiable_results=3,
)


def implement(op: Op, backend: str, forward: Callable[..., Any], backward: Callable[..., Any], **more: Any) -> None:
    """Register a backend that has one function for all three ops.

    Args:
        op: one of the three.
        backend: its name.
        forward: ``forward(problem, *inputs)``, see `Implementation`.
        backward: ``backward(problem, *gradients, **saved)``.
        more: further fields of the `Implementation`.
    """
    incoming = tuple(f"grad_{name}" for name in op.results[: op.differentiable_results])
    kept = tuple(name for name in op.results if name not in ("h_n", "c_n"))
    Implementation(op, backend, named(forward, op.inputs), named(backward, (*incoming, *op.inputs), kept), **more)


def lstm_layer(
    x: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    w_hr: Any = None,
    w_ih_reverse: Any = None,
    w_hh_reverse: Any = None,
    b_ih_reverse: Any = None,
    b_hh_reverse: Any = None,
    w_hr_reverse: Any = None,
    h0: Any = None,
    c0: Any = None,
    lengths: Any = None,
    *,
    batch_first: bool = False,
    return_last: bool = False,
    device: Any = None,
    backend: str | None = None,
) -> Any:
    """One LSTM layer, in one direction or both, as one op: what `lstm` is made of.

    With sums ``s_t = w_ih x_t + b_ih + w_hh h_{t-1} + b_hh`` and gates i, f, g, o (sigmoid, sigmoid, tanh, sigmoid of a
    quarter of s each): ``c_t = f c_{t-1} + i g`` and ``h_t = o tanh(c_t)``, projected to ``w_hr h_t`` where w_hr is
    given (Hochreiter and Schmidhuber, 1997; Gers et al., 2000; projection: Sak et al., 2014).

    Args:
        x: (T, B, I), or (B, T, I) with batch_first; any strides. T is at least 1.
        w_ih: (4 H, I), gates i, f, g, o one below the other.
        w_hh: (4 H, P) with P = H, or P = the projection's size.
        b_ih: (4 H,) or None.
        b_hh: (4 H,) or None; added to b_ih.
        w_hr: (P, H) or None.
        w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, w_hr_reverse: the same for the reverse direction; with
            w_ih_reverse the layer is bidirectional, D = 2.
        h0: (D, B, P), also with batch_first; None is zeros.
        c0: (D, B, H); None is zeros.
        lengths: (B,) int64 or int32, each in [0, T], in any order; None is T everywhere. A row's final states are taken
            at its own last step, the reverse direction begins there, x past it is never read (NaN does not matter
            there, in backward neither) and outputs past it are 0. A row of length 0 keeps its initial states.
        batch_first: x and output have the batch first.
        return_last: output is (B, D P), of each row's own last step alone (0 for length 0). Without gradients the other
            steps are never stored.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        (output (T, B, D P) or (B, T, D P), h_n (D, B, P), c_n (D, B, H)), x's kind of array and dtype.

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above. Of values of lengths on a GPU a later call
            raises it, or `check_device_errors`, and this call takes the nearest length that there is.
        BackendError: the wanted backend cannot run this call.
    """
    forward = (w_ih, w_hh, b_ih, b_hh, w_hr)
    reverse = (w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, w_hr_reverse)
    return call(LSTM_LAYER, (x, *forward, *reverse, h0, c0, lengths), (batch_first, return_last), device, backend)


def gru_layer(
    x: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    w_ih_reverse: Any = None,
    w_hh_reverse: Any = None,
    b_ih_reverse: Any = None,
    b_hh_reverse: Any = None,
    h0: Any = None,
    lengths: Any = None,
    *,
    batch_first: bool = False,
    return_last: bool = False,
    reset_after: bool = True,
    device: Any = None,
    backend: str | None = None,
) -> Any:
    """One GRU layer, in one direction or both, as one op: what `gru` is made of.

    With ``a = w_ih x_t + b_ih`` and ``s = w_hh h_{t-1} + b_hh``, each in thirds r, z, n: ``r = sigmoid(a_r + s_r)``,
    ``z = sigmoid(a_z + s_z)``, ``n = tanh(a_n + r s_n)`` and ``h_t = (1 - z) n + z h_{t-1}`` (Cho et al., 2014, in the
    form that cuDNN and torch use). With reset_after=False ``s_n`` is ``w_hn (r h_{t-1}) + b_hn``, not multiplied by r.

    Args:
        x: (T, B, I), or (B, T, I) with batch_first; any strides. T is at least 1.
        w_ih: (3 H, I), gates r, z, n one below the other.
        w_hh: (3 H, H).
        b_ih: (3 H,) or None.
        b_hh: (3 H,) or None.
        w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse: the same for the reverse direction; with w_ih_reverse
            the layer is bidirectional, D = 2.
        h0: (D, B, H), also with batch_first; None is zeros.
        lengths: (B,), see `lstm_layer`.
        batch_first: x and output have the batch first.
        return_last: see `lstm_layer`.
        reset_after: whether r multiplies after the matrix product (torch, Keras' default) or before it.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        (output (T, B, D H) or (B, T, D H), h_n (D, B, H)), x's kind of array and dtype.

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above. Of values of lengths on a GPU a later call
            raises it, or `check_device_errors`, and this call takes the nearest length that there is.
        BackendError: the wanted backend cannot run this call.
    """
    inputs = (x, w_ih, w_hh, b_ih, b_hh, w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, h0, lengths)
    return call(GRU_LAYER, inputs, (batch_first, return_last, reset_after), device, backend)


def rnn_layer(
    x: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    w_ih_reverse: Any = None,
    w_hh_reverse: Any = None,
    b_ih_reverse: Any = None,
    b_hh_reverse: Any = None,
    h0: Any = None,
    lengths: Any = None,
    *,
    batch_first: bool = False,
    return_last: bool = False,
    nonlinearity: str = "tanh",
    device: Any = None,
    backend: str | None = None,
) -> Any:
    """One layer of a simple (Elman) RNN, in one direction or both, as one op: what `rnn` is made of.

    ``h_t = act(w_ih x_t + b_ih + w_hh h_{t-1} + b_hh)`` (Elman, 1990).

    Args:
        x: (T, B, I), or (B, T, I) with batch_first; any strides. T is at least 1.
        w_ih: (H, I).
        w_hh: (H, H).
        b_ih: (H,) or None.
        b_hh: (H,) or None; added to b_ih.
        w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse: the same for the reverse direction; with w_ih_reverse
            the layer is bidirectional, D = 2.
        h0: (D, B, H), also with batch_first; None is zeros.
        lengths: (B,), see `lstm_layer`.
        batch_first: x and output have the batch first.
        return_last: see `lstm_layer`.
        nonlinearity: "tanh" or "relu".
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        (output (T, B, D H) or (B, T, D H), h_n (D, B, H)), x's kind of array and dtype.

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above. Of values of lengths on a GPU a later call
            raises it, or `check_device_errors`, and this call takes the nearest length that there is.
        BackendError: the wanted backend cannot run this call.
    """
    inputs = (x, w_ih, w_hh, b_ih, b_hh, w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, h0, lengths)
    return call(RNN_LAYER, inputs, (batch_first, return_last, nonlinearity), device, backend)
