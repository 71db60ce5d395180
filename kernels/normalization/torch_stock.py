"""torch's own layer_norm and rms_norm; their backward is differentiable once more."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from kernels.normalization.op import LAYER_NORM, RMS_NORM, LayerNormProblem, NormProblem, RMSNormProblem
from kernels.op import Implementation

Tensor = torch.Tensor
DTYPES = ("float16", "bfloat16", "float32", "float64")


def layer_norm(p: LayerNormProblem, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, ...]:
    """output, mean, rstd."""
    # torch's second derivative forgets a bias that comes without a weight.
    alone = None if weight is not None else bias
    output, mean, rstd = torch.native_layer_norm(x, p.normalized_shape, weight, bias if alone is None else None, p.eps)
    output = output.contiguous() if alone is None else output + alone
    if not p.trains:
        return output, None, None
    wide = getattr(torch, p.of_rows.dtype)
    return output, mean.reshape(p.rows_shape).to(wide), rstd.reshape(p.rows_shape).to(wide)


def direct_layer_norm(p: LayerNormProblem) -> Callable[..., Tensor] | None:
    """torch's function where its second derivative is right and its output contiguous."""
    if p.x.strides is not None or (p.weight is None and p.bias is not None):
        return None
    shape, eps = p.normalized_shape, p.eps
    return lambda x, weight, bias: torch.layer_norm(x, shape, weight, bias, eps)


def layer_norm_backward(
    p: LayerNormProblem, grad_output: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight and bias; torch's formula for the second derivative knows what mean and rstd depend on."""
    ones = (*p.rows_shape, *[1] * len(p.normalized_shape))
    # On the CPU torch's op wants them in x's dtype, on a GPU in float32.
    kept = mean.dtype if x.is_cuda else x.dtype
    wants_x, wants_weight, wants_bias = p.needs_grad
    dx, dw, _ = torch.ops.aten.native_layer_norm_backward(
        grad_output,
        x,
        list(p.normalized_shape),
        mean.reshape(ones).to(kept),
        rstd.reshape(ones).to(kept),
        weight,
        None,
        [wants_x, wants_weight, False],
    )
    db = _sum_of_rows(p, grad_output) if wants_bias else None
    return dx if wants_x else None, dw if wants_weight else None, db


def _sum_of_rows(p: NormProblem, values: Tensor) -> Tensor:
    leading = tuple(range(len(p.rows_shape)))
    return values.sum(leading) if leading else values.clone()


def rms_norm(p: RMSNormProblem, x: Tensor, weight: Tensor | None) -> tuple[Tensor | None, ...]:
    """output, rstd."""
    output = F.rms_norm(x, p.normalized_shape, weight, p.eps).contiguous()
    if not p.trains:
        return output, None
    return output, _rstd(p, x).reshape(p.rows_shape).detach().to(getattr(torch, p.of_rows.dtype))


def direct_rms_norm(p: RMSNormProblem) -> Callable[..., Tensor] | None:
    """torch's function where its output is contiguous."""
    if p.x.strides is not None:
        return None
    shape, eps = list(p.normalized_shape), p.eps
    return lambda x, weight: torch.rms_norm(x, shape, weight, eps)


def _rstd(p: RMSNormProblem, x: Tensor) -> Tensor:
    last = tuple(range(-len(p.normalized_shape), 0))
    return (x.square().mean(last, keepdim=True) + p.eps).rsqrt()


def rms_norm_backward(
    p: RMSNormProblem, grad_output: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of x and weight. Computed from x, not rstd, so that autograd sees the dependence."""
    last = tuple(range(-len(p.normalized_shape), 0))
    r = _rstd(p, x)
    h = x * r
    dx = dw = None
    if p.needs_grad[0]:
        g = grad_output if weight is None else grad_output * weight
        dx = r * (g - h * (g * h).mean(last, keepdim=True))
    if p.needs_grad[1]:
        dw = _sum_of_rows(p, grad_output * h)
    return dx, dw


Implementation(LAYER_NORM, "torch", layer_norm, layer_norm_backward, dtypes=DTYPES, direct=direct_layer_norm)
Implementation(RMS_NORM, "torch", rms_norm, rms_norm_backward, dtypes=DTYPES, direct=direct_rms_norm)
