"""torch's own activations, to compare with and as a last resort; their backward is differentiable once more."""

from __future__ import annotations

import torch
import torch.nn.functional as F

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
    if name == "relu":
        return torch.where(x > 0, grad_output, torch.zeros_like(grad_output))
    if name in ("gelu", "gelu_tanh"):
        approximate = "tanh" if name == "gelu_tanh" else "none"
        found: Tensor = torch.ops.aten.gelu_backward(grad_output, x, approximate=approximate)
        return found
    if name == "silu":
        s = torch.sigmoid(x)
        return grad_output * s * (1 + x * (1 - s))
    y = activate(name, x)
    return grad_output * (1 - y * y) if name == "tanh" else grad_output * y * (1 - y)
