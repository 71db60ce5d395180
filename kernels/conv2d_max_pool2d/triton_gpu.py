"""conv2d_max_pool2d on GPUs: the kernels of conv2d and of max_pool2d one after the other.

What is between them is in memory as a whole for as long as the call lasts.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from kernels.activation.functions import FROM_OUTPUT
from kernels.activation.triton_gpu import gradient as activation_gradient
from kernels.conv2d import triton_gpu as convolutions
from kernels.conv2d_max_pool2d.op import CONV2D_MAX_POOL2D, Conv2dMaxPool2dProblem
from kernels.conv2d_max_pool2d.torch_stock import at_indices, indices_of, taps_of
from kernels.op import Implementation
from kernels.pool2d import triton_gpu as poolings
from kernels.pool2d.torch_stock import laid_out
from kernels.runtime.triton_gpu import DTYPES, empty_results, zero_gradients

Tensor = torch.Tensor


def conv2d_max_pool2d(
    p: Conv2dMaxPool2dProblem, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    """output, winners, sums of the winners."""
    if p.empty:
        return empty_results(p, x.device)
    image, sums = convolutions.conv2d(p.convolution, x, weight, bias)
    assert image is not None
    output, indices = poolings.maxima(p.pooling, image)
    _, winners, kept = p.results()
    if winners is None or indices is None:
        return output, None, None
    taps = laid_out(taps_of(p, indices).to(getattr(torch, winners.dtype)), winners)
    return output, taps, None if kept is None or sums is None else laid_out(at_indices(sums, indices), kept)


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
    """Gradients of x, weight, bias."""
    if p.empty:
        return zero_gradients(p, grad_output.device)
    if p.activation is not None:
        known = output if p.activation in FROM_OUTPUT else preactivation
        form = p.results()[0]
        assert known is not None and form is not None
        grad_output = activation_gradient(p.activation, form, grad_output, known)
    image, *_ = poolings.maxima_backward(p.pooling, grad_output, indices_of(p, winners))
    assert image is not None
    return convolutions.conv2d_backward(replace(p.convolution, activation=None), image, x, weight)


def _reasons(p: Conv2dMaxPool2dProblem) -> list[str]:
    return convolutions.reasons(p.convolution)


Implementation(
    CONV2D_MAX_POOL2D, "triton", conv2d_max_pool2d, conv2d_max_pool2d_backward, reasons=_reasons, dtypes=DTYPES,
    describe=lambda p: "conv2d, then max_pool2d",
)  # fmt: skip
