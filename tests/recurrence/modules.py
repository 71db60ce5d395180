"""torch.nn's recurrent modules beside ours: the same parameters, both ways to run them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import kernels

CELLS = ("rnn", "lstm", "gru")
OURS = {"rnn": kernels.rnn, "lstm": kernels.lstm, "gru": kernels.gru}
MODULES: dict[str, Any] = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}


def module_of(cell: str, inputs: int, units: int, dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    """A module of torch.nn with parameters that are all away from zero, biases too."""
    torch.manual_seed(3)
    return MODULES[cell](inputs, units, dtype=dtype, **settings)


def params_of(module: Any) -> list[tuple[Any, ...]]:
    """A module's parameters as ours take them."""
    found = []
    for layer in range(module.num_layers):
        for suffix in ("", "_reverse")[: 2 if module.bidirectional else 1]:
            names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
            if getattr(module, "proj_size", 0):
                names.append("weight_hr")
            found.append(tuple(getattr(module, f"{name}_l{layer}{suffix}", None) for name in names))
    return found


def settings_of(module: Any) -> dict[str, Any]:
    """A module's settings as keyword arguments of ours."""
    settings = {
        "num_layers": module.num_layers,
        "bidirectional": module.bidirectional,
        "batch_first": module.batch_first,
    }
    if getattr(module, "proj_size", 0):
        settings["proj_size"] = module.proj_size
    if isinstance(module, torch.nn.RNN):
        settings["nonlinearity"] = module.nonlinearity
    return settings


def states_of(module: Any, batch: int | None) -> Any:
    """Random initial states for a module, without batch for None."""
    count = module.num_layers * (2 if module.bidirectional else 1)
    sizes = [getattr(module, "proj_size", 0) or module.hidden_size]
    if isinstance(module, torch.nn.LSTM):
        sizes.append(module.hidden_size)
    dtype = module.weight_ih_l0.dtype
    states = [torch.randn(count, *([] if batch is None else [batch]), size, dtype=dtype) for size in sizes]
    return tuple(states) if len(states) == 2 else states[0]


def flat(value: Any) -> tuple[Any, ...]:
    """(output, h_n) or (output, h_n, c_n)."""
    output, states = value
    return (output, *states) if isinstance(states, tuple) else (output, states)


def in_numpy(params: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Parameters as NumPy arrays."""
    return [tuple(None if p is None else p.detach().numpy() for p in one) for one in params]


def random_params(
    cell: str, inputs: int, units: int, *, layers: int = 1, directions: int = 1, projection: int = 0,
    dtype: str = "float32", bias: bool = True,
) -> list[tuple[Any, ...]]:  # fmt: skip
    """Parameters as NumPy arrays, standard normal over the root of the units."""
    rng = np.random.default_rng(5)
    rows, hidden = {"rnn": 1, "lstm": 4, "gru": 3}[cell] * units, projection or units

    def draw(*shape: int) -> Any:
        return (rng.standard_normal(shape) * units**-0.5).astype(dtype)

    found = []
    for layer in range(layers):
        width = inputs if layer == 0 else directions * hidden
        for _ in range(directions):
            biases = (draw(rows), draw(rows)) if bias else (None, None)
            one = (draw(rows, width), draw(rows, hidden), *biases)
            found.append((*one, draw(projection, units)) if projection else one)
    return found
