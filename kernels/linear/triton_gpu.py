"""linear on GPUs: torch's own matrix products (cuBLAS), with the activation's kernels in Triton.

The bias goes into the product's epilogue, which torch does for tensors on a GPU. float32 is multiplied as torch is set.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels.activation import triton_gpu as activations
from kernels.activation.functions import FROM_OUTPUT
from kernels.linear.op import LINEAR, LinearProblem
from kernels.op import Implementation
from kernels.runtime.triton_gpu import DTYPES, zero_gradients

Tensor = torch.Tensor


def linear(p: LinearProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, ...]:
    """output, sums before the activation."""
    if weight.ndim == 2 and (bias is None or bias.ndim == 1):
        sums = F.linear(x, weight, bias)
    else:
        sums = torch.matmul(x, weight.t() if weight.ndim == 2 else weight)
        sums = sums if bias is None else sums + bias
    form, kept = p.results()
    assert form is not None
    if p.activation is None or sums.numel() == 0:
        return sums.contiguous(), None if kept is None else sums.contiguous()
    found = activations.activated(p.activation, form, sums)
    return found, None if kept is None else sums.contiguous()


def linear_backward(
    p: LinearProblem,
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    output: Tensor | None = None,
    preactivation: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias."""
    if p.empty:
        return zero_gradients(p, grad_output.device)
    if p.activation is not None:
        known = output if p.activation in FROM_OUTPUT else preactivation
        form = p.results()[0]
        assert known is not None and form is not None
        grad_output = activations.gradient(p.activation, form, grad_output, known)
    rows = grad_output.reshape(p.batch, p.out_features)
    wants_x, wants_weight, wants_bias = p.needs_grad
    of_x = of_weight = of_bias = None
    if wants_x:
        of_x = (rows @ weight.reshape(p.out_features, p.in_features)).reshape(x.shape)
    if wants_weight:
        of_weight = (rows.t() @ x.reshape(p.batch, p.in_features)).reshape(weight.shape)
    if wants_bias:
        assert p.bias is not None
        of_bias = rows.sum() if p.bias.ndim == 0 else rows.sum(0)
    return of_x, of_weight, of_bias


def _describe(p: LinearProblem) -> str:
    after = "" if p.activation is None else f", then {p.activation} in one pass"
    return f"torch's matrix product{after}"


Implementation(LINEAR, "triton", linear, linear_backward, dtypes=DTYPES, describe=_describe)
