"""Calls whose values (indices, lengths) can be wrong, for the backends that look at them on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import kernels


def _numbers(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _lstm(a: Callable[[Any], Any], values: Any, backend: str) -> Any:
    weights = (a(_numbers(20, 4)), a(_numbers(20, 5)))
    return kernels.lstm_layer(a(_numbers(6, 3, 4)), *weights, lengths=a(values), backend=backend)[0]


def _attention(a: Callable[[Any], Any], values: Any, backend: str) -> Any:
    query, key = a(_numbers(3, 2, 4, 8)), a(_numbers(3, 2, 6, 8))
    return kernels.attention(query, key, key, lengths=a(values), backend=backend)


def _linear_cross_entropy(a: Callable[[Any], Any], values: Any, backend: str) -> Any:
    matrices = a(_numbers(3, 8)), a(_numbers(7, 8))
    return kernels.linear_cross_entropy(*matrices, a(values), reduction="none", backend=backend)


@dataclass(frozen=True)
class Call:
    """A call of three values, of which each must lie in [0, 6].

    Attributes:
        op: its name.
        run: ``run(as_array, values, backend)``; `as_array` makes what the backend takes of a NumPy array.
        error: what a wrong value raises.
        message: its beginning, without the value.
        marks: whether the results of the wrong row are NaN.
    """

    op: str
    run: Callable[[Callable[[Any], Any], Any, str], Any]
    error: type[Exception]
    message: str
    marks: bool


CALLS = (
    Call(
        "cross_entropy",
        lambda a, v, backend: kernels.cross_entropy(a(_numbers(3, 7)), a(v), reduction="none", backend=backend),
        IndexError,
        "cross_entropy: target must lie in [0, 6] or be ignore_index (-100)",
        True,
    ),
    Call(
        "linear_cross_entropy",
        _linear_cross_entropy,
        IndexError,
        "linear_cross_entropy: target must lie in [0, 6] or be ignore_index (-100)",
        True,
    ),
    Call(
        "embedding",
        lambda a, v, backend: kernels.embedding(a(v), a(_numbers(7, 4)), backend=backend),
        IndexError,
        "embedding: input must lie in [0, 6] (the rows of weight)",
        True,
    ),
    Call("attention", _attention, ValueError, "attention: lengths must lie in [0, 6] (the keys there are)", False),
    Call("lstm_layer", _lstm, ValueError, "lstm_layer: lengths must lie in [0, 6], the number of steps of x", False),
)

#: What a message of an earlier call ends with.
EARLIER = " (in an earlier call: those with values on a GPU do not wait for them)"


def labels(shape: tuple[int, ...], wrong: dict[tuple[int, ...], int]) -> Any:
    """Class indices in [0, 5) of a shape, wrong ones at some places."""
    found = np.random.default_rng(1).integers(0, 5, shape)
    for place, value in wrong.items():
        found[place] = value
    return found


#: Views of arrays of labels, by what they are: what makes them of a (40, 30, 4) array.
VIEWS: dict[str, Callable[[Any], Any]] = {
    "contiguous": lambda a: a,
    "behind the first": lambda a: a[:, 1:, 0],
    "every second": lambda a: a[::2, :, ::2],
    "turned": lambda a: a.transpose(0, 2) if hasattr(a, "is_cuda") else a.transpose(2, 1, 0),
    "one": lambda a: a[3, 4, 1],
}


def check_gradients(call: Call, backend: str) -> None:
    """Backward of a call with wrong values has a gradient of its shape for each input of numbers."""
    leaves: list[torch.Tensor] = []

    def as_leaf(array: Any) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if tensor.is_floating_point():
            leaves.append(tensor.requires_grad_())
        return tensor

    found = call.run(as_leaf, np.array([2, 10**9, -(10**9)]), backend)
    gradients = torch.autograd.grad(found.sum(), leaves, allow_unused=True)
    assert all(g is not None and g.shape == x.shape for g, x in zip(gradients, leaves))
