"""conv2d_max_pool2d on the CPU: which kernel runs, and on what memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.conv2d import geometry, winograd
from kernels.conv2d import numba_cpu as convolutions
from kernels.conv2d.few_channels import FEW_OUTPUTS
from kernels.conv2d.numba_cpu import dense, fresh
from kernels.conv2d_max_pool2d.bands import windows_of
from kernels.conv2d_max_pool2d.gathered import run_gathered
from kernels.conv2d_max_pool2d.op import BYTE_TAPS, CONV2D_MAX_POOL2D, Conv2dMaxPool2dProblem
from kernels.conv2d_max_pool2d.reference import taps_of_indices
from kernels.conv2d_max_pool2d.windows_cpu import Results
from kernels.conv2d_max_pool2d.winograd import run_winograd
from kernels.op import Implementation
from kernels.pool2d import numba_cpu as poolings
from kernels.runtime.numba_cpu import contiguous, empty, thread_count, zeros

Array = np.ndarray[Any, Any]


def kernel_name(p: Conv2dMaxPool2dProblem) -> str:
    """Which kernel runs a problem: "gather", "winograd", or "" where conv2d and max_pool2d run one after the other."""
    if convolutions.is_depthwise(p.convolution) or p.weight.shape[0] // p.groups <= FEW_OUTPUTS:
        return ""  # too few channels to fill vectors of them
    if p.pool_kernel_size[0] * p.pool_kernel_size[1] > BYTE_TAPS:
        return ""
    channels = p.seen[1]
    last, dtype = p.convolution.channels_last, np.dtype(p.x.dtype)
    return "winograd" if winograd.serves(_plan(p), p.x.shape[0], p.groups, channels, dtype, last) else "gather"


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


def _one_after_the_other(
    p: Conv2dMaxPool2dProblem, x: Array, weight: Array, bias: Array | None
) -> tuple[Array | None, ...]:
    y, sums = convolutions.conv2d(p.convolution, x, weight, bias)
    assert y is not None
    output, indices = poolings.max_pool2d(p.pooling, y)
    if indices is None:
        return output, None, None
    kept = None
    if sums is not None:
        flat = sums.reshape(*sums.shape[:2], -1)
        kept = np.take_along_axis(flat, indices.reshape(*indices.shape[:2], -1), -1).reshape(indices.shape)
    return p.lay_out((output, taps_of_indices(p, indices).astype(p.results()[1].dtype), kept), p.results())


def conv2d_max_pool2d(
    p: Conv2dMaxPool2dProblem, x: Array, weight: Array, bias: Array | None
) -> tuple[Array | None, ...]:
    """output, winners, sums of the winners."""
    name = kernel_name(p)
    if not name:
        return _one_after_the_other(p, x, weight, bias)
    last = p.convolution.channels_last
    x, weight = dense(x, last), contiguous(weight)
    shift = zeros(p.seen[1], x.dtype) if bias is None else contiguous(bias)
    shape = p.output_shape
    results = Results(
        fresh(shape, x.dtype, last),
        fresh(shape, np.uint8, True) if p.trains else empty((0, 0, 0, 0), np.uint8),
        fresh(shape, x.dtype, last) if p.keeps_sums else empty((0, 0, 0, 0), x.dtype),
    )
    w = windows_of(p)
    plan = _plan(p)
    direct = name == "gather" or not run_winograd(plan, w, shape[0], weight, x, shift, results, p.activation)
    if direct:  # also what Winograd's sums lost: where one is not finite, direct sums say which others are
        run_gathered(
            plan, w, shape[0], p.groups, p.convolution.kernel, weight, x, shift, results, p.activation, last
        )
    return results.output, results.winners if p.trains else None, results.sums if p.keeps_sums else None


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
    raise NotImplementedError


def describe(p: Conv2dMaxPool2dProblem) -> str:
    """Which kernel runs, for `explain`."""
    name = kernel_name(p)
    if not name:
        return f"conv2d ({convolutions.describe(p.convolution)}), then max_pool2d"
    return f"{name} kernel, pooled in cache, up to {thread_count()} threads"


Implementation(CONV2D_MAX_POOL2D, "numba", conv2d_max_pool2d, None, describe=describe)
