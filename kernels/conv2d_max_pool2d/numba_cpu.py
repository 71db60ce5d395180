"""conv2d_max_pool2d on the CPU: which kernel runs, and on what memory."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kernels.activation.functions import FROM_OUTPUT
from kernels.conv2d import geometry
from kernels.conv2d import numba_cpu as convolutions
from kernels.conv2d.few_channels import FEW_OUTPUTS
from kernels.conv2d.image_pass import launch
from kernels.conv2d.launch import Job
from kernels.conv2d.numba_cpu import dense, fresh
from kernels.conv2d.weight_gradient import launch as weight_launch
from kernels.conv2d_max_pool2d import composed
from kernels.conv2d_max_pool2d.bands import Windows, windows_of
from kernels.conv2d_max_pool2d.gathered import run_gathered
from kernels.conv2d_max_pool2d.op import BYTE_TAPS, CONV2D_MAX_POOL2D, Conv2dMaxPool2dProblem
from kernels.conv2d_max_pool2d.routing import route_gradient
from kernels.conv2d_max_pool2d.windows_cpu import Results
from kernels.conv2d_max_pool2d.winograd import run_winograd
from kernels.op import Implementation
from kernels.runtime.numba_cpu import address, contiguous, empty, thread_count, zeros
from kernels.simd import VECTOR_BYTES

Array = np.ndarray[Any, Any]


def kernel_name(p: Conv2dMaxPool2dProblem) -> str:
    """Which kernel runs a problem: "gather", "winograd", or "" where conv2d and max_pool2d run one after the other."""
    c = p.convolution
    outputs = p.weight.shape[0] // p.groups
    if convolutions.is_depthwise(c) or p.pool_kernel_size[0] * p.pool_kernel_size[1] > BYTE_TAPS:
        return ""
    name = convolutions.kernel_of(c, p.x.shape, p.seen, transposed=False)
    if name not in ("few channels", "one plane", "pointwise"):
        return name
    # Few products, and vectors of channels that stay half empty: conv2d's vectors of pixels do better.
    return "gather" if outputs > FEW_OUTPUTS and outputs >= VECTOR_BYTES // p.x.itemsize else ""


def _plan(p: Conv2dMaxPool2dProblem) -> geometry.Gather:
    """The geometry of the part of the convolution that the windows see."""
    return geometry.forward_gather(
        p.x.shape[1],
        (p.x.shape[2], p.x.shape[3]),
        p.seen[1],
        (p.seen[2], p.seen[3]),
        p.convolution.kernel,
        (p.stride[0], p.stride[1]),
        (p.dilation[0], p.dilation[1]),
        (p.padding[0], p.padding[2]),
        p.groups,
        p.convolution.channels_last,
    )


class Way(NamedTuple):
    """How a problem runs: see `kernel_name`, `_plan` and `windows_of`."""

    kernel: str
    plan: geometry.Gather
    windows: Windows
    shape: tuple[int, int, int, int]
    channels_last: bool


def way_of(p: Conv2dMaxPool2dProblem) -> Way:
    """How `p` runs; kept in it, since working it out takes as long as a small call."""
    found: Way | None = vars(p).get("_way")
    if found is None:
        found = Way(kernel_name(p), _plan(p), windows_of(p), p.output_shape, p.convolution.channels_last)
        vars(p)["_way"] = found
    return found


def conv2d_max_pool2d(
    p: Conv2dMaxPool2dProblem, x: Array, weight: Array, bias: Array | None
) -> tuple[Array | None, ...]:
    """output, winners, sums of the winners."""
    name, plan, w, shape, last = way_of(p)
    if not name:
        return composed.forward(p, x, weight, bias)
    x, weight = dense(x, last), contiguous(weight)
    shift = zeros(shape[1], x.dtype) if bias is None else contiguous(bias)
    trains = p.trains
    keeps_sums = trains and p.keeps_sums
    results = Results(
        fresh(shape, x.dtype, last),
        fresh(shape, np.uint8, True) if trains else empty((0, 0, 0, 0), np.uint8),
        fresh(shape, x.dtype, last) if keeps_sums else empty((0, 0, 0, 0), x.dtype),
    )
    direct = name == "gather" or not run_winograd(plan, w, shape[0], weight, x, shift, results, p.activation)
    if direct:  # also what Winograd's sums lost: where one is not finite, direct sums say which others are
        run_gathered(plan, w, shape[0], p.groups, p.convolution.kernel, weight, x, shift, results, p.activation, last)
    return results.output, results.winners if trains else None, results.sums if keeps_sums else None


def conv2d_max_pool2d_backward(
    p: Conv2dMaxPool2dProblem,
    grad_output: Array,
    x: Array,
    weight: Array,
    winners: Array,
    bias: Array | None = None,
    output: Array | None = None,
    preactivation: Array | None = None,
) -> tuple[Array | None, ...]:
    """Gradients of x, weight, bias."""
    known = None
    if p.activation is not None:
        known = output if p.activation in FROM_OUTPUT else preactivation
        assert known is not None
    if winners.dtype != np.uint8:
        return composed.backward(p, grad_output, x, weight, winners, known)  # taps that no byte can number
    c, last = p.convolution, p.convolution.channels_last
    wants_x, wants_weight, wants_bias = p.needs_grad
    # Channels-last the gradient is as the winners lie, and as the kernels' panels are: it stays so where that serves.
    turns = not last and _reads_planes(p)
    grad, bias_gradient = route_gradient(
        way_of(p).windows,
        dense(grad_output, last),
        None if known is None else dense(known, last),
        dense(winners, True),
        p.activation,
        last,
        not turns,
    )
    dx = dw = None
    if last or turns:
        dx = convolutions.image_pass(c, grad, weight, None, x.shape, True)[0] if wants_x else None
        dw = convolutions.weight_gradient_of(c, x, grad, weight.shape) if wants_weight else None
    else:
        dx = _image_gradient(p, grad, contiguous(weight)) if wants_x else None
        if wants_weight:
            dw, x = empty(weight.shape, grad.dtype), contiguous(x)
            run = weight_launch(way_of(p).plan, len(x), weight.shape, p.groups, grad.dtype, False, True)
            run(address(x), address(grad.transpose(0, 2, 3, 1)), address(dw))
    return dx, dw, bias_gradient if wants_bias else None


def _reads_planes(p: Conv2dMaxPool2dProblem) -> bool:
    """Whether backward's passes into planes also read planes, and not pixels: all but the gather kernel's."""
    c = p.convolution
    if convolutions.is_depthwise(c):
        return True
    return p.needs_grad[0] and convolutions.kernel_of(c, p.seen, p.x.shape, transposed=True) != "gather"


@lru_cache(1024)
def _into_planes(plan: geometry.Gather, channels: int, height: int, width: int) -> geometry.Gather:
    """A plan between channels-last images, with its output in planes."""
    return replace(plan, output=geometry.layout(channels, height, width, False))


def _image_gradient(p: Conv2dMaxPool2dProblem, grad: Array, weight: Array) -> Array:
    """The gradient of x, in planes, from that of the convolution, channels-last, by the gather kernel."""
    c = p.convolution
    n, channels, height, width = p.x.shape
    plan = _into_planes(convolutions.geometry_of(c, True, grad.shape, p.x.shape, True), channels, height, width)
    outputs, inputs, taps = weight.shape[0], weight.shape[1], c.kernel[0] * c.kernel[1]
    steps = (taps, inputs * taps, outputs // p.groups * inputs * taps)
    dx = empty(p.x.shape, grad.dtype)
    no_bias = zeros(channels, grad.dtype)
    out = address(dx)
    job = Job(plan, n, p.groups, inputs, c.kernel, steps, grad.dtype, None, False, True)
    launch(job)(address(grad.transpose(0, 2, 3, 1)), address(weight), address(no_bias), out, out)
    return dx


def describe(p: Conv2dMaxPool2dProblem) -> str:
    """Which kernel runs, for `explain`."""
    name = kernel_name(p)
    if not name:
        return f"conv2d ({convolutions.describe(p.convolution)}), then max_pool2d"
    return f"{name} kernel, pooled in cache, up to {thread_count()} threads"


Implementation(CONV2D_MAX_POOL2D, "numba", conv2d_max_pool2d, conv2d_max_pool2d_backward, describe=describe)
