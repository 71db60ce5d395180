"""Activations by Keras' names, as kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch

from nnlib import ops
from nnlib.names import look_up

ActivationFunction = Callable[[torch.Tensor], torch.Tensor]

# Keras' name -> the op in kernels; None is the identity.
_OPS: dict[str, str | None] = {
    "linear": None,
    "relu": "relu",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "softmax": "softmax",
    "log_softmax": "log_softmax",
}
# Those that conv2d and linear apply in their epilogue.
FUSED = frozenset({"relu", "gelu", "silu", "tanh", "sigmoid"})


class ActivationChoice:
    """The activation argument of a layer, looked up once.

    choice: None, a name (linear, relu, gelu, silu, swish, tanh, sigmoid, softmax, log_softmax), or a function from a
    tensor to a tensor of the same shape. Raises ValueError for an unknown name, TypeError for another kind.

    fused: the name that a kernel takes as its `activation=`, or None.
    is_softmax: True for the softmax, which a loss on logits can leave out. is_identity: True for none.
    is_function: True for one that was given as such.
    """

    def __init__(self, choice: str | ActivationFunction | None) -> None:
        self._op: str | None = None
        self._function: ActivationFunction | None = None
        if isinstance(choice, str):
            self._op = look_up("activation", choice, _OPS)
            self.name = choice.lower()
        elif choice is None:
            self.name = "linear"
        elif callable(choice):
            self._function = choice
            self.name = getattr(choice, "__name__", type(choice).__name__)
        else:
            raise TypeError(f"activation: None, a name or a function is expected, got {choice!r}")
        self.fused = self._op if self._op in FUSED else None
        self.is_softmax = self._op == "softmax"
        self.is_function = self._function is not None
        self.is_identity = self._op is None and not self.is_function

    def apply(self, caller: str, x: torch.Tensor, *, axis: int, backend: str | None) -> torch.Tensor:
        """The activation of x, a tensor of any shape; softmax and log_softmax run along `axis`."""
        if self._function is not None:
            return self._function(x)
        if self._op is None:
            return x
        if self._op in ("softmax", "log_softmax"):
            return ops.call(caller, self._op, x, dim=axis, backend=backend)
        return ops.call(caller, self._op, x, backend=backend)
