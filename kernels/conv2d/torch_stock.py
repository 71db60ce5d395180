"""torch's own convolutions, to compare with and as a last resort; their backward is differentiable once more."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from kernels.activation.torch_stock import activate, activation_backward
from kernels.arrays import ArraySpec
from kernels.conv2d.op import CONV2D, CONV_TRANSPOSE2D, Conv2dProblem, ConvTranspose2dProblem
from kernels.op import Implementation

Tensor = torch.Tensor
DTYPES = ("float16", "bfloat16", "float32", "float64")
#: Horizontally, in other types than float64; of torch 2.13.
LARGEST_STRIDE = 2**12


def _padded(p: Conv2dProblem, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """x and the symmetric padding that torch's op adds; uneven padding is added beforehand."""
    top, bottom, left, right = p.padding
    if top == bottom and left == right:
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom)), (0, 0)


def stride_of(p: Conv2dProblem) -> tuple[int, int]:
    """The strides that torch is told: of a single output the least that leaves it so.

    oneDNN, which computes the gradient of x, takes memory and time for what a stride leaps over.
    """
    found = []
    for d in (0, 1):
        room = p.x.shape[2 + d] + p.padding[2 * d] + p.padding[2 * d + 1] - p.dilation[d] * (p.kernel[d] - 1) - 1
        found.append(min(p.stride[d], room + 1))
    return found[0], found[1]


def _crashes(x: ArraySpec, stride: int) -> bool:
    """Whether oneDNN's gradient of an image, conv_transpose2d too, would crash the process: seen from 9,000 on."""
    return x.device == "cpu" and x.dtype != "float64" and stride > LARGEST_STRIDE


def reasons(p: Conv2dProblem) -> list[str]:
    """Why torch cannot run it."""
    if p.needs_grad and p.needs_grad[0] and _crashes(p.x, stride_of(p)[1]):
        return [f"on the CPU torch crashes in gradients of horizontal strides above {LARGEST_STRIDE}"]
    return []


def transposed_reasons(p: ConvTranspose2dProblem) -> list[str]:
    """The same of conv_transpose2d."""
    if _crashes(p.x, p.stride[1]):
        return [f"on the CPU torch crashes in horizontal strides above {LARGEST_STRIDE}"]
    return []


def sums(p: Conv2dProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution with bias, before its activation."""
    x, padding = _padded(p, x)
    return F.conv2d(x, weight, bias, stride_of(p), padding, p.dilation, p.groups)


def conv2d(p: Conv2dProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, ...]:
    """output, sums before the activation."""
    before = sums(p, x, weight, bias)
    return activate(p.activation, before), before if p.results()[1] is not None else None


def conv2d_backward(
    p: Conv2dProblem,
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    output: Tensor | None = None,
    preactivation: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias. The sums are computed anew, so that autograd sees how they depend on the inputs."""
    if p.activation is not None:
        grad_output = activation_backward(p.activation, grad_output, sums(p, x, weight, bias))
    return sums_backward(p, grad_output, x, weight)


def sums_backward(p: Conv2dProblem, grad_sums: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias from that of `sums`."""
    top, bottom, left, right = p.padding
    padded, padding = _padded(p, x)
    dx, dw, db = torch.ops.aten.convolution_backward(
        grad_sums,
        padded,
        weight,
        [weight.shape[0]],
        list(stride_of(p)),
        list(padding),
        list(p.dilation),
        False,
        [0, 0],
        p.groups,
        list(p.needs_grad),
    )
    if dx is not None and padded is not x:
        layout = torch.channels_last if p.channels_last else torch.contiguous_format
        dx = dx[:, :, top : top + x.shape[2], left : left + x.shape[3]].contiguous(memory_format=layout)
    return dx, dw, db


def conv_transpose2d(
    p: ConvTranspose2dProblem, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    """output."""
    padding = (p.padding[0], p.padding[2])
    y = F.conv_transpose2d(x, weight, bias, p.stride, padding, p.output_padding, p.groups, p.dilation)
    return (y,)


def conv_transpose2d_backward(
    p: ConvTranspose2dProblem, grad_output: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias."""
    found: tuple[Any, ...] = torch.ops.aten.convolution_backward(
        grad_output,
        x,
        weight,
        [weight.shape[1] * p.groups],
        list(p.stride),
        [p.padding[0], p.padding[2]],
        list(p.dilation),
        True,
        list(p.output_padding),
        p.groups,
        list(p.needs_grad),
    )
    return found


Implementation(CONV2D, "torch", conv2d, conv2d_backward, reasons=reasons, dtypes=DTYPES)
Implementation(
    CONV_TRANSPOSE2D, "torch", conv_transpose2d, conv_transpose2d_backward, reasons=transposed_reasons, dtypes=DTYPES
)
