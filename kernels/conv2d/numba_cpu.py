"""conv2d and conv_transpose2d on the CPU: which kernel runs, and on what memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.conv2d import geometry
from kernels.conv2d.image_pass import run_pass
from kernels.conv2d.op import CONV2D, CONV_TRANSPOSE2D, Conv2dProblem, ConvTranspose2dProblem
from kernels.op import Implementation
from kernels.runtime.numba_cpu import contiguous, empty, zeros

Array = np.ndarray[Any, Any]
Problem = Conv2dProblem | ConvTranspose2dProblem


def dense(x: Array, channels_last: bool) -> Array:
    """`x` dense in the wanted layout; itself where it is so already."""
    if channels_last:
        return contiguous(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    return contiguous(x)


def fresh(shape: tuple[int, ...], dtype: Any, channels_last: bool) -> Array:
    """A new array in the wanted layout."""
    if channels_last:
        n, c, h, w = shape
        return empty((n, h, w, c), dtype).transpose(0, 3, 1, 2)
    return empty(shape, dtype)


def _geometry(p: Problem, forward: bool, source: Array, target: tuple[int, ...]) -> geometry.Gather:
    make = geometry.forward_gather if forward else geometry.transposed_gather
    return make(
        source.shape[1],
        (source.shape[2], source.shape[3]),
        target[1],
        (target[2], target[3]),
        p.kernel,
        (p.stride[0], p.stride[1]),
        (p.dilation[0], p.dilation[1]),
        (p.padding[0], p.padding[2]),
        p.groups,
        p.channels_last,
    )


def correlate(
    p: Problem, x: Array, weight: Array, bias: Array | None, target: tuple[int, ...], relu: bool, keep_sums: bool
) -> tuple[Array, Array]:
    """conv2d's map: x (N, C, H, W) -> `target` (N, K, OH, OW), and the sums before the activation (or size 0)."""
    x, weight = dense(x, p.channels_last), contiguous(weight)
    y = fresh(target, x.dtype, p.channels_last)
    before = fresh(target, x.dtype, p.channels_last) if keep_sums else empty(0, x.dtype)
    outputs, inputs, height, width = weight.shape
    taps = height * width
    group_outputs = outputs // p.groups
    run_pass(
        _geometry(p, True, x, target),
        x.shape[0],
        p.groups,
        group_outputs,
        taps,
        weight,
        (inputs * taps, taps, group_outputs * inputs * taps),
        x,
        zeros(outputs, x.dtype) if bias is None else contiguous(bias),
        y,
        before,
        relu,
        p.channels_last,
    )
    return y, before


def spread(p: Problem, dy: Array, weight: Array, bias: Array | None, target: tuple[int, ...]) -> Array:
    """conv2d's transpose: dy (N, K, OH, OW) -> `target` (N, C, H, W)."""
    dy, weight = dense(dy, p.channels_last), contiguous(weight)
    y = fresh(target, dy.dtype, p.channels_last)
    outputs, inputs, height, width = weight.shape
    taps = height * width
    run_pass(
        _geometry(p, False, dy, target),
        dy.shape[0],
        p.groups,
        inputs,
        taps,
        weight,
        (taps, inputs * taps, outputs // p.groups * inputs * taps),
        dy,
        zeros(target[1], dy.dtype) if bias is None else contiguous(bias),
        y,
        empty(0, dy.dtype),
        False,
        p.channels_last,
    )
    return y


def conv2d(p: Conv2dProblem, x: Array, weight: Array, bias: Array | None) -> tuple[Array | None, ...]:
    """output, and the sums before the activation where backward needs them."""
    y, before = correlate(p, x, weight, bias, p.output_shape, p.activation == "relu", False)
    return y, None


Implementation(CONV2D, "numba", conv2d)
