"""Activations by Keras' names: kernels, and for those that have none torch's own functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

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


def _squareplus(x: torch.Tensor) -> torch.Tensor:
    return (x + (x.square() + 4).sqrt()) / 2


def _sparse_plus(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x < 1, (x.clamp(-1, 1) + 1).square() / 4, x)


# Keras' name -> torch's function, of those that have no kernel.
_FUNCTIONS: dict[str, ActivationFunction] = {
    "celu": F.celu,
    "elu": F.elu,
    "exponential": torch.exp,
    "hard_sigmoid": F.hardsigmoid,
    "hard_shrink": F.hardshrink,
    "hard_silu": F.hardswish,
    "hard_swish": F.hardswish,
    "hard_tanh": F.hardtanh,
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.2),
    "log_sigmoid": F.logsigmoid,
    "mish": F.mish,
    "relu6": F.relu6,
    "selu": F.selu,
    "soft_shrink": F.softshrink,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "sparse_plus": _sparse_plus,
    "sparse_sigmoid": lambda x: (x.clamp(-1, 1) + 1) / 2,
    "squareplus": _squareplus,
    "tanh_shrink": F.tanhshrink,
}
#: All names.
ACTIVATIONS: dict[str, str | ActivationFunction | None] = {**_OPS, **_FUNCTIONS}
# Those that conv2d and linear apply in their epilogue.
FUSED = frozenset({"relu", "gelu", "silu", "tanh", "sigmoid"})


class ActivationChoice:
    """The activation argument of a layer, looked up once.

    choice: None, a name (linear, relu, gelu, silu, swish, tanh, sigmoid, softmax and log_softmax have kernels; elu,
    selu, leaky_relu, softplus and others of Keras' are torch's), or a function from a tensor to a tensor of the same
    shape. Raises ValueError for an unknown name, TypeError for another kind.

    fused: the name that a kernel takes as its `activation=`, or None.
    is_softmax: True for the softmax, which a loss on logits can leave out. is_identity: True for none.
    is_function: True for one that was given as such. of_torch: torch's function for a name without a kernel, or None.
    """

    def __init__(self, choice: str | ActivationFunction | None) -> None:
        self._op: str | None = None
        self._function: ActivationFunction | None = None
        self.of_torch: ActivationFunction | None = None
        if isinstance(choice, str):
            found = look_up("activation", choice, ACTIVATIONS)
            self.name = choice.lower()
            if callable(found):
                self.of_torch = found
            else:
                self._op = found
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
        self.is_identity = self._op is None and self.of_torch is None and not self.is_function

    def apply(self, caller: str, x: torch.Tensor, *, axis: int, backend: str | None) -> torch.Tensor:
        """The activation of x, a tensor of any shape; softmax and log_softmax run along `axis`."""
        function = self._function or self.of_torch
        if function is not None:
            return function(x)
        if self._op is None:
            return x
        if self._op in ("softmax", "log_softmax"):
            return ops.call(caller, self._op, x, dim=axis, backend=backend)
        return ops.call(caller, self._op, x, backend=backend)
