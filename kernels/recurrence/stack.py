"""rnn, lstm and gru: layers one after the other, in one or both directions, with dropout between them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kernels import arrays, checks
from kernels.dropout.op import as_seed, probability
from kernels.dropout.op import dropout as apply_dropout
from kernels.recurrence.op import gru_layer, lstm_layer, rnn_layer
from kernels.recurrence.problem import SUFFIXES, Weights

#: Names of a tuple of `params` in each direction, as the layers have them.
_NAMES = tuple(tuple(name + suffix for name in Weights._fields) for suffix in SUFFIXES)


class _Settings(NamedTuple):
    """What the three functions have in common beside arrays."""

    num_layers: int
    bidirectional: bool
    batch_first: bool
    dropout: float
    training: bool
    lengths: Any
    seed: Any
    return_last: bool
    device: Any
    backend: str | None


def _joined(parts: list[Any]) -> Any:
    """Arrays of one kind, one after the other along the first dimension."""
    if len(parts) == 1:
        return parts[0]
    kind = arrays.kind(parts[0])
    if kind == "torch":
        return arrays.loaded_torch().cat(parts)
    return np.concatenate(parts) if kind == "numpy" else sys.modules["cupy"].concatenate(parts)


def _as_lengths(op: str, lengths: Any, x: Any) -> Any:
    """`lengths` as an array of x's kind; lists and tuples of ints are taken too."""
    if lengths is None or arrays.kind(lengths) is not None:
        return lengths
    if hasattr(lengths, "__dlpack_device__"):
        return arrays.from_dlpack(lengths)
    if not isinstance(lengths, (list, tuple)):
        checks.fail_type(op, "lengths", "must be an array or a list of ints", lengths)
    numbers = [checks.integer(op, "lengths", n) for n in lengths]
    kind = arrays.kind(x)
    if kind == "torch":
        torch = arrays.loaded_torch()
        return torch.tensor(numbers, dtype=torch.int64, device=x.device)
    return np.array(numbers, np.int64) if kind == "numpy" else sys.modules["cupy"].array(numbers, "int64")


@lru_cache(256, typed=True)
def _check_settings(
    op: str, num_layers: Any, bidirectional: Any, batch_first: Any, dropout: Any, training: Any, return_last: Any
) -> tuple[int, float]:
    """The number of layers and dropout's probability, of settings that keep the rules."""
    layers = checks.integer(op, "num_layers", num_layers, 1)
    checks.boolean(op, "bidirectional", bidirectional)
    checks.boolean(op, "batch_first", batch_first)
    checks.boolean(op, "training", training)
    checks.boolean(op, "return_last", return_last)
    return layers, probability(op, "dropout", dropout)


def _settings_of(op: str, s: _Settings) -> tuple[int, float]:
    given = (op, s.num_layers, s.bidirectional, s.batch_first, s.dropout, s.training, s.return_last)
    try:
        return _check_settings(*given)
    except TypeError:  # Of a check, or something unhashable, which a check names.
        return _check_settings.__wrapped__(*given)


def _check_params(op: str, params: Any, count: int, projects: bool) -> None:
    """`params` has one tuple for each layer and direction."""
    size, form = (5, "(w_ih, w_hh, b_ih, b_hh, w_hr)") if projects else (4, "(w_ih, w_hh, b_ih, b_hh)")
    is_sequence = isinstance(params, (list, tuple))
    for one in params if is_sequence else ():
        is_sequence = is_sequence and isinstance(one, (list, tuple))
    if not is_sequence:
        checks.fail_type_name(op, "params", f"must be a sequence of tuples {form}", type(params).__name__)
    if len(params) != count:
        checks.fail(op, "params", f"must hold {count} tuples, one for each layer and direction", len(params))
    for i, one in enumerate(params):
        if len(one) != size:
            checks.fail(op, f"params[{i}]", f"must be {form}", f"{len(one)} entries")


def _check_state(op: str, name: str, state: Any, x: Any, count: int, batched: bool) -> Any:
    """A state's first dimension; the layers check the rest, but would not miss what is cut off."""
    if state is None:
        return None
    if arrays.kind(state) is None:
        checks.fail_type_name(op, name, "must be an array of the kind of x", type(state).__name__)
    rank = 3 if batched else 2
    if state.ndim != rank or state.shape[0] != count:
        rule = f"must have shape ({count}, {'rows of x, ' if batched else ''}size of the state)"
        checks.fail(op, name, rule, tuple(state.shape))
    return state if batched else state[:, None]


def _run(
    op: str,
    layer: Callable[..., Any],
    x: Any,
    params: Any,
    states: dict[str, Any],
    s: _Settings,
    projects: bool = False,
    **arguments: Any,
) -> tuple[Any, ...]:
    """output and the final states (num_layers * D, B, size), one for each of `states`."""
    layers, p = _settings_of(op, s)
    directions = 2 if s.bidirectional else 1
    if arrays.kind(x) is None:
        x, states = arrays.from_dlpack(x), {n: arrays.from_dlpack(a) for n, a in states.items()}
    if arrays.kind(x) is None:
        checks.fail_type_name(op, "x", "must be a NumPy, torch or CuPy array", type(x).__name__)
    batched = x.ndim != 2
    if x.ndim not in (2, 3):
        shape = "(B, T, I)" if s.batch_first else "(T, B, I)"
        checks.fail(op, "x", f"must have shape {shape} or (T, I)", f"{x.ndim} dimensions {tuple(x.shape)}")
    if not batched and s.lengths is not None:
        checks.fail(op, "lengths", "must be None for a single sequence (T, I)", "lengths")
    _check_params(op, params, layers * directions, projects)
    states = {name: _check_state(op, name, a, x, layers * directions, batched) for name, a in states.items()}
    lengths = _as_lengths(op, s.lengths, x)
    if not batched:
        x = x[None] if s.batch_first else x[:, None]
    drops = s.training and p > 0 and layers > 1
    seed = as_seed(op, s.seed, x) if drops else None
    finals: list[list[Any]] = [[] for _ in states]
    for i in range(layers):
        given = states
        if layers > 1:
            first = i * directions
            given = {n: None if a is None else a[first : first + directions] for n, a in states.items()}
        weights: dict[str, Any] = {}
        for d in range(directions):
            # A tuple has no w_hr where nothing is projected, and zip ends with it.
            weights.update(zip(_NAMES[d], params[i * directions + d]))
        is_last = i == layers - 1
        x, *ends = layer(
            x, **weights, **given, lengths=lengths, batch_first=s.batch_first, return_last=s.return_last and is_last,
            device=s.device, backend=s.backend, **arguments,
        )  # fmt: skip
        for kept, end in zip(finals, ends):
            kept.append(end)
        if drops and not is_last:
            x = apply_dropout(x, p, seed=seed, stream=i, device=s.device, backend=s.backend)
    found = [_joined(kept) for kept in finals]
    if not batched:
        x = x[0] if s.batch_first or s.return_last else x[:, 0]
        found = [end[:, 0] for end in found]
    return (x, *found)


def lstm(
    x: Any,
    params: Sequence[tuple[Any, ...]],
    state: tuple[Any, Any] | None = None,
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Any = None,
    seed: Any = None,
    proj_size: int = 0,
    return_last: bool = False,
    device: Any = None,
    backend: str | None = None,
) -> tuple[Any, tuple[Any, Any]]:
    """Long short-term memory over whole sequences: torch.nn.LSTM as a function; the equations are at `lstm_layer`.

    Args:
        x: (T, B, I), (B, T, I) with batch_first, or one sequence (T, I); any strides. T is at least 1.
        params: one tuple for each layer and direction (layer 0, its reverse, layer 1, ...): w_ih (4 H, I or D P), w_hh
            (4 H, P), b_ih (4 H,) or None, b_hh (4 H,) or None, and with proj_size w_hr (P, H); gates i, f, g, o one
            below the other. Converters from other orders are in kernels.recurrence.gates.
        state: (h0 (L D, B, P), c0 (L D, B, H)), also with batch_first, (L D, P) and (L D, H) for one sequence; either
            may be None, zeros.
        num_layers: L.
        bidirectional: D = 2 directions, whose outputs lie side by side.
        batch_first: x and output have the batch first.
        dropout: probability with which each output of a layer but the last is zeroed, in training only, see `dropout`.
        training: whether `dropout` applies.
        lengths: (B,) int64 or int32, or a list: how many steps of each row are real, each in [0, T], in any order. A
            row's final states are taken at its own last step, the reverse direction begins there, x past it is never
            read (NaN does not matter there, in backward neither), and outputs past it are 0. A row of length 0 keeps
            its initial states. The cost is that of the real steps.
        seed: of dropout: an int, or a 0-d int64 array; None draws one from torch's or NumPy's global generator.
        proj_size: P, size of the projected hidden state; 0 for none, P = H.
        return_last: output is (B, D P), of each row's own last step alone (0 for length 0); without gradients the last
            layer's other steps are never stored.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        (output (T, B, D P) or (B, T, D P), (h_n (L D, B, P), c_n (L D, B, H))), without B for one sequence.

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above. Of values of lengths on a GPU a later call
            raises it, or `check_device_errors`, and this call takes the nearest length that there is.
        BackendError: the wanted backend cannot run this call.
    """
    if state is not None and not (isinstance(state, (tuple, list)) and len(state) == 2):
        checks.fail_type_name("lstm", "state", "must be a pair (h0, c0) or None", type(state).__name__)
    h0, c0 = (None, None) if state is None else state
    size = checks.integer("lstm", "proj_size", proj_size, 0)
    settings = _Settings(
        num_layers, bidirectional, batch_first, dropout, training, lengths, seed, return_last, device, backend
    )
    output, h_n, c_n = _run("lstm", lstm_layer, x, params, {"h0": h0, "c0": c0}, settings, projects=size > 0)
    if size and h_n.shape[-1] != size:
        checks.fail("lstm", "proj_size", f"must be the {h_n.shape[-1]} rows of w_hr", size)
    return output, (h_n, c_n)


def gru(
    x: Any,
    params: Sequence[tuple[Any, ...]],
    h0: Any = None,
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Any = None,
    seed: Any = None,
    reset_after: bool = True,
    return_last: bool = False,
    device: Any = None,
    backend: str | None = None,
) -> tuple[Any, Any]:
    """Gated recurrent units over whole sequences: torch.nn.GRU as a function; the equations are at `gru_layer`.

    Args:
        x: see `lstm`.
        params: one tuple for each layer and direction: w_ih (3 H, I or D H), w_hh (3 H, H), b_ih (3 H,) or None, b_hh
            (3 H,) or None; gates r, z, n one below the other.
        h0: (L D, B, H), also with batch_first, (L D, H) for one sequence; None is zeros.
        num_layers, bidirectional, batch_first, dropout, training, lengths, seed, return_last: see `lstm`.
        reset_after: whether the reset gate multiplies after the matrix product (torch's way) or before it.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        (output (T, B, D H) or (B, T, D H), h_n (L D, B, H)), without B for one sequence.

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above. Of values of lengths on a GPU a later call
            raises it, or `check_device_errors`, and this call takes the nearest length that there is.
        BackendError: the wanted backend cannot run this call.
    """
    settings = _Settings(
        num_layers, bidirectional, batch_first, dropout, training, lengths, seed, return_last, device, backend
    )
    output, h_n = _run("gru", gru_layer, x, params, {"h0": h0}, settings, reset_after=reset_after)
    return output, h_n


def rnn(
    x: Any,
    params: Sequence[tuple[Any, ...]],
    h0: Any = None,
    *,
    nonlinearity: str = "tanh",
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Any = None,
    seed: Any = None,
    return_last: bool = False,
    device: Any = None,
    backend: str | None = None,
) -> tuple[Any, Any]:
    """Simple recurrent network over whole sequences: torch.nn.RNN as a function; the equation is at `rnn_layer`.

    Args:
        x: see `lstm`.
        params: one tuple for each layer and direction: w_ih (H, I or D H), w_hh (H, H), b_ih (H,) or None, b_hh (H,) or
            None.
        h0: (L D, B, H), also with batch_first, (L D, H) for one sequence; None is zeros.
        nonlinearity: "tanh" or "relu".
        num_layers, bidirectional, batch_first, dropout, training, lengths, seed, return_last: see `lstm`.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        (output (T, B, D H) or (B, T, D H), h_n (L D, B, H)), without B for one sequence.

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above. Of values of lengths on a GPU a later call
            raises it, or `check_device_errors`, and this call takes the nearest length that there is.
        BackendError: the wanted backend cannot run this call.
    """
    settings = _Settings(
        num_layers, bidirectional, batch_first, dropout, training, lengths, seed, return_last, device, backend
    )
    output, h_n = _run("rnn", rnn_layer, x, params, {"h0": h0}, settings, nonlinearity=nonlinearity)
    return output, h_n
