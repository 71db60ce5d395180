"""torch's own linear, to compare with and as a last resort; its backward is differentiable once more."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from kernels.activation.torch_stock import FUNCTIONS, activate, activation_backward
from kernels.linear.op import LINEAR, LinearProblem
from kernels.op import Implementation

Tensor = torch.Tensor
DTYPES = ("float16", "bfloat16", "float32", "float64")


def _sums(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.ndim == 2:
        return F.linear(x, weight, bias)
    # F.linear refuses a bias beside a weight of one dimension when x is a matrix.
    sums = torch.matmul(x, weight)
    return sums if bias is None else sums + bias


def linear(p: LinearProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, ...]:
    """output, sums before the activation."""
    sums = _sums(x, p.plain_weight(weight), bias)
    return activate(p.activation, sums), sums if p.results()[1] is not None else None


def direct(p: LinearProblem) -> Callable[..., Tensor] | None:
    """torch's function where it takes the same arguments, with the activation's behind it."""
    is_plain = p.x.strides is None and p.weight.strides is None and p.weight.ndim == 2  # 1 when packed
    if not is_plain or (p.bias is not None and p.bias.ndim == 0):
        return None
    if p.activation is None:
        return F.linear
    follow = FUNCTIONS[p.activation]
    return lambda x, weight, bias: follow(F.linear(x, weight, bias))


def linear_backward(
    p: LinearProblem,
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    output: Tensor | None = None,
    preactivation: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias. The sums are computed anew, so that autograd sees how they depend on the inputs."""
    if p.activation is not None:
        grad_output = activation_backward(p.activation, grad_output, _sums(x, weight, bias))
    rows = grad_output.reshape(p.batch, p.out_features)
    wants_x, wants_weight, wants_bias = p.needs_grad
    dx = dw = db = None
    if wants_x:
        dx = (rows @ weight.reshape(p.out_features, p.in_features)).reshape(x.shape)
    if wants_weight:
        dw = (rows.t() @ x.reshape(p.batch, p.in_features)).reshape(weight.shape)
    if wants_bias:
        assert p.bias is not None
        db = rows.sum() if p.bias.ndim == 0 else rows.sum(0)
    return dx, dw, db


Implementation(LINEAR, "torch", linear, linear_backward, dtypes=DTYPES, direct=direct)
