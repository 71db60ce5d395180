"""torch's own softmax, log_softmax and cross_entropy; their backward is differentiable once more."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels.op import Implementation
from kernels.softmax.op import CROSS_ENTROPY, LOG_SOFTMAX, SOFTMAX, CrossEntropyProblem, SoftmaxProblem

Tensor = torch.Tensor
DTYPES = ("float16", "bfloat16", "float32", "float64")


def softmax(p: SoftmaxProblem, x: Tensor) -> tuple[Tensor]:
    """The output."""
    return (F.softmax(x, p.dim).contiguous(),)


def softmax_backward(p: SoftmaxProblem, grad_output: Tensor, output: Tensor) -> tuple[Tensor]:
    """The gradient of x."""
    product = grad_output * output
    return (product - output * product.sum(p.dim, keepdim=True),)


def log_softmax(p: SoftmaxProblem, x: Tensor) -> tuple[Tensor]:
    """The output."""
    return (F.log_softmax(x, p.dim).contiguous(),)


def log_softmax_backward(p: SoftmaxProblem, grad_output: Tensor, output: Tensor) -> tuple[Tensor]:
    """The gradient of x."""
    return (grad_output - output.exp() * grad_output.sum(p.dim, keepdim=True),)


def _indices(p: CrossEntropyProblem, target: Tensor) -> Tensor:
    """The target as torch takes it."""
    return target.long() if p.indexed else target


def _divisor(p: CrossEntropyProblem, input: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """What the mean divides the sum by, 0-d."""
    if not p.indexed:
        return input.new_tensor(float(target.numel() // max(p.classes, 1)))
    kept = target != p.ignore_index
    if weight is None:
        return kept.sum().to(input.dtype)
    return torch.where(kept, weight[torch.where(kept, target.long(), 0)], weight.new_zeros(())).sum()


def cross_entropy(
    p: CrossEntropyProblem, input: Tensor, target: Tensor, weight: Tensor | None
) -> tuple[Tensor | None, ...]:
    """loss, maximum, log_sum, divisor."""
    target = _indices(p, target)
    loss = F.cross_entropy(
        input, target, weight, ignore_index=p.ignore_index, reduction=p.reduction, label_smoothing=p.label_smoothing
    )
    if not p.trains:
        return loss, None, None, None
    with torch.no_grad():
        dim = p.class_dimension
        if p.classes:
            maximum = input.amax(dim)
            log_sum = (input - maximum.unsqueeze(dim)).exp().sum(dim).log()
        else:
            maximum = log_sum = input.new_full(p.rows_shape, -torch.inf)
        divisor = _divisor(p, input, target, weight) if p.reduction == "mean" else None
        kept = (maximum, log_sum, divisor)
        forms = p.results()[1:]
    return (loss, *(k if k is None or f is None else k.to(getattr(torch, f.dtype)) for k, f in zip(kept, forms)))


def cross_entropy_backward(
    p: CrossEntropyProblem,
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    maximum: Tensor,
    log_sum: Tensor,
    divisor: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of input and of target probabilities. Computed from the input, so that autograd sees the dependence."""
    dim = p.class_dimension
    log_p = F.log_softmax(input, dim)
    target = _indices(p, target)
    shape = [1] * input.dim()
    shape[dim] = p.classes
    factors = input.new_ones(shape) if weight is None else weight.view(shape)
    g = grad_loss if p.reduction != "mean" else grad_loss / _divisor(p, input, target, weight)
    if p.reduction == "none":
        g = g.unsqueeze(dim)
    share = p.label_smoothing
    uniform = share / max(p.classes, 1)
    if not p.indexed:
        u = ((1 - share) * target + uniform) * factors
        dx = g * (log_p.exp() * u.sum(dim, keepdim=True) - u) if p.needs_grad[0] else None
        dt = -g * (1 - share) * factors * log_p if p.needs_grad[1] else None
        return dx, dt, None
    if not p.needs_grad[0]:
        return None, None, None
    kept = (target != p.ignore_index).unsqueeze(dim)
    classes = torch.arange(p.classes, device=input.device).view(shape)
    hot = (classes == target.unsqueeze(dim)).to(input.dtype)
    u = ((1 - share) * hot + uniform) * factors
    dx = g * (log_p.exp() * u.sum(dim, keepdim=True) - u)
    return torch.where(kept, dx, torch.zeros_like(dx)), None, None


Implementation(SOFTMAX, "torch", softmax, softmax_backward, dtypes=DTYPES)
Implementation(LOG_SOFTMAX, "torch", log_softmax, log_softmax_backward, dtypes=DTYPES)
Implementation(CROSS_ENTROPY, "torch", cross_entropy, cross_entropy_backward, dtypes=DTYPES)
