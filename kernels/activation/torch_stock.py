"""torch's own activations, to compare with and as a last resort; their backward is differentiable once more."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels.activation.functions import FROM_OUTPUT
from kernels.activation.op import OPS, ActivationProblem
from kernels.op import Implementation

DTYPES = ("float16", "bfloat16", "float32", "float64")
Tensor = torch.Tensor


def activate(name: str | None, x: Tensor) -> Tensor:
    """act(x); None is the identity, "gelu_tanh" is gelu's tanh approximation."""
    if name is None:
        return x
    if name == "gelu":
        return F.gelu(x)
    if name == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if name == "silu":
        return F.silu(x)
    function: Tensor = getattr(torch, name)(x)
    return function


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


def backward(
    p: ActivationProblem, grad_output: Tensor, x: Tensor | None = None, output: Tensor | None = None
) -> tuple[Tensor]:
    """The gradient of x."""
    known = x if output is None else output
    assert known is not None
    return (_backward(p.function, grad_output, known),)


for _op in OPS:
    Implementation(_op, "torch", forward, backward, dtypes=DTYPES)
