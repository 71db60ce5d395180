"""torch's own convolution, activation and pooling one after the other; the backward is differentiable once more."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from kernels.activation.torch_stock import activate, activation_backward
from kernels.conv2d import torch_stock as convolutions
from kernels.conv2d_max_pool2d.op import CONV2D_MAX_POOL2D, Conv2dMaxPool2dProblem
from kernels.op import Implementation
from kernels.pool2d.torch_stock import laid_out, to_indices

Tensor = torch.Tensor


def _starts(p: Conv2dMaxPool2dProblem, like: Tensor) -> tuple[Tensor, Tensor]:
    """First row (PH, 1) and column (PW,) of each window."""
    rows, columns = (
        torch.arange(p.output_shape[2 + d], device=like.device) * p.pool_stride[d] - p.pool_padding[d] for d in (0, 1)
    )
    return rows[:, None], columns


def taps_of(p: Conv2dMaxPool2dProblem, indices: Tensor) -> Tensor:
    """The taps within their windows of indices in the convolution's plane."""
    rows, columns = _starts(p, indices)
    width = p.pooling.x.shape[3]
    return (indices // width - rows) * p.pool_kernel_size[1] + indices % width - columns


def indices_of(p: Conv2dMaxPool2dProblem, taps: Tensor) -> Tensor:
    """The reverse of `taps_of`."""
    rows, columns = _starts(p, taps)
    taps, width = taps.long(), p.pool_kernel_size[1]
    return (taps // width + rows) * p.pooling.x.shape[3] + taps % width + columns


def at_indices(planes: Tensor, indices: Tensor) -> Tensor:
    """planes (N, C, H, W) at indices (N, C, PH, PW) of their planes."""
    return planes.flatten(2).gather(2, indices.flatten(2)).view(indices.shape)


def conv2d_max_pool2d(
    p: Conv2dMaxPool2dProblem, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    """output, winners, sums of the winners."""
    sums = convolutions.sums(p.convolution, x, weight, bias)
    m = p.pooling
    arguments: Any = (m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode)
    output, indices = F.max_pool2d(activate(p.activation, sums), *arguments, return_indices=True)
    form, winners, kept = p.results()
    assert form is not None
    return (
        laid_out(output, form),
        None if winners is None else laid_out(taps_of(p, indices).to(getattr(torch, winners.dtype)), winners),
        None if kept is None else laid_out(at_indices(sums, indices), kept),
    )


def conv2d_max_pool2d_backward(
    p: Conv2dMaxPool2dProblem,
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    winners: Tensor,
    bias: Tensor | None = None,
    output: Tensor | None = None,
    preactivation: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias. The sums are computed anew, so that autograd sees how they depend on the inputs."""
    indices = indices_of(p, winners)
    c = p.convolution
    if p.activation is not None:
        sums = convolutions.sums(c, x, weight, bias)
        grad_output = activation_backward(p.activation, grad_output, at_indices(sums, indices))
    form = p.pooling.x
    dy = laid_out(to_indices(grad_output, indices, form.shape[2:]), form)
    return convolutions.sums_backward(c, dy, x, weight)


Implementation(
    CONV2D_MAX_POOL2D, "torch", conv2d_max_pool2d, conv2d_max_pool2d_backward,
    reasons=lambda p: convolutions.reasons(p.convolution), dtypes=convolutions.DTYPES,
)  # fmt: skip
