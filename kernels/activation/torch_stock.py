"""torch's own activations, to compare with and as a last resort; their backward is differentiable once more."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from kernels.activation.functions import FROM_OUTPUT
from kernels.activation.op import OPS, ActivationProblem
from kernels.op import Implementation

DTYPES = ("float16", "bfloat16", "float32", "float64")
Tensor = torch.Tensor


#: torch's function of each activation; "gelu_tanh" is gelu's tanh approximation.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


def activate(name: str | None, x: Tensor) -> Tensor:
    """act(x); None is the identity."""
    return x if name is None else FUNCTIONS[name](x)


def activation_backward(name: str, grad_output: Tensor, x: Tensor) -> Tensor:
    """grad_output * act'(x), from the input x, by differentiable torch ops."""
    return _backward(name, grad_output, activate(name, x) if name in FROM_OUTPUT else x)


def _backward(name: str, grad_output: Tensor, known: Tensor) -> Tensor:
    """The same; `known` is the output for the activations in FROM_OUTPUT, else the input."""
    if name == "relu":
        return torch.where(known <= 0, torch.zeros_like(grad_output), grad_output)
    if name == "tanh":
        return grad_output * (1 - known * known)
    if name == "sigmoid":
        return grad_output * (1 - known) * known
    if name == "silu":
        s = torch.sigmoid(known)
        return grad_output * s * (1 + known * (1 - s))
    approximate = "tanh" if name == "gelu_tanh" else "none"
    found: Tensor = torch.ops.aten.gelu_backward(grad_output, known, approximate=approximate)
    return found


def forward(p: ActivationProblem, x: Tensor) -> tuple[Tensor]:
    """act(x)."""
    y = activate(p.function, x)
    # Where x is not dense torch keeps the order of its strides, the house does not.
    return (y if p.x.dense else y.contiguous(),)


def direct(p: ActivationProblem) -> Callable[[Tensor], Tensor] | None:
    """torch's function."""
    return FUNCTIONS[p.function] if p.x.dense else None


def backward(
    p: ActivationProblem, grad_output: Tensor, x: Tensor | None = None, output: Tensor | None = None
) -> tuple[Tensor]:
    """The gradient of x."""
    known = x if output is None else output
    assert known is not None
    return (_backward(p.function, grad_output, known),)


for _op in OPS:
    Implementation(_op, "torch", forward, backward, dtypes=DTYPES, direct=direct)
