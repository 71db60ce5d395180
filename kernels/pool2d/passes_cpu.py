"""Passes over images on the CPU, which the poolings share: which kernel runs, with which tables and memory.

Kernels see contiguous arrays: planes (N, C, H, W), or (N, H, W, C) for channels-last images.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.pool2d import any_window, column_planes, gradients, narrow_planes, planes, tables
from kernels.pool2d.op import AvgPool2dProblem, LpPool2dProblem, MaxPool2dProblem
from kernels.pool2d.pooling import Extremum, Pooling
from kernels.runtime.numba_cpu import contiguous, empty, threads_for
from kernels.simd import VECTOR_BYTES

Array = np.ndarray[Any, Any]
Pair = tuple[int, ...]

#: Inputs that make it worth starting one more thread (about 20 microseconds of work).
GRAIN = 1 << 16
#: Bytes of input in a strip: what a first-level cache holds beside the output.
STRIP_BYTES = 1 << 15
#: Channels that one thread takes at least in backward: a cache line of the gradient.
CHANNELS = 16
#: Kernels of planes.py that the compiler specialises: (kernel size, stride).
KNOWN = (((2, 2), (2, 2)), ((3, 3), (2, 2)), ((3, 3), (1, 1)), ((2, 2), (1, 1)))

#: An int that is part of a compiled kernel's type: the length of a tuple.
LITERAL = ((), (0,), (0, 0), (0, 0, 0))
NO_INDICES: Array = np.zeros((1, 1, 1, 1), np.int64)


def native(p: Pooling, array: Array) -> Array:
    """`array` as the kernels see it."""
    return contiguous(array.transpose(0, 2, 3, 1) if p.x.channels_last else array)


def fresh(p: Pooling, shape: Pair, dtype: Any) -> Array:
    """A new array for (N, C, H, W), as the kernels see it."""
    n, c, h, w = shape
    return empty((n, h, w, c) if p.x.channels_last else (n, c, h, w), dtype)


def public(p: Pooling, array: Array) -> Array:
    """An array of the kernels as (N, C, H, W)."""
    return array.transpose(0, 3, 1, 2) if p.x.channels_last else array


def _strips(p: Pooling) -> int:
    """Groups of output rows in a plane, each with inputs that fit the cache."""
    size = p.x.shape[2] * p.x.shape[3] * p.x.itemsize
    return min(max(size // STRIP_BYTES, 1), p.output_plane[0])


def threads(p: Pooling) -> int:
    """Threads that a pass is worth."""
    return threads_for(max(p.x.size, math.prod(p.output_shape)), GRAIN)


def is_known(kernel: Pair, stride: Pair, dilation: Pair = (1, 1)) -> bool:
    """Whether planes.py has these windows specialised."""
    return (kernel, stride) in KNOWN and dilation == (1, 1)


def is_narrow(p: Pooling, kernel: Pair, stride: Pair) -> bool:
    """Whether narrow_planes.py takes such windows without dilation: inside the image, two rows of them in a vector."""
    height, width = p.output_plane
    inside = 2 * height <= p.x.shape[2] and 2 * width <= p.x.shape[3] and getattr(p, "padding", (0, 0)) == (0, 0)
    fits = 2 * width * p.x.itemsize <= VECTOR_BYTES
    return kernel == stride == (2, 2) and inside and fits and not p.x.channels_last and _strips(p) == 1


def is_column(p: Pooling, kernel: Pair, stride: Pair, padding: Pair) -> bool:
    """Whether column_planes.py takes such windows."""
    return kernel[1] == stride[1] == 1 and padding[1] == 0 and not p.x.channels_last


def slide_max(p: Extremum, form: MaxPool2dProblem | LpPool2dProblem, x: Array, dilation: Pair) -> tuple[Any, ...]:
    """Maxima and indices of sliding windows; `x` as the kernels see it."""
    kernel, stride, padding = form.kernel_size, form.stride, form.padding
    y = fresh(p, p.output_shape, x.dtype)
    indices = fresh(p, p.output_shape, np.int64) if p.keeps_indices else None
    if p.x.channels_last or stride[1] > 2:
        rows, columns = (
            tables.sliding(p.x.shape[2 + d], p.output_plane[d], kernel[d], stride[d], padding[d], dilation[d])
            for d in (0, 1)
        )
        return max_of_windows(p, x, rows, columns, dilation, y, indices)
    plane_count = p.x.shape[0] * p.x.shape[1]
    if indices is None and is_column(p, kernel, stride, padding):
        column_planes.max_columns(plane_count, threads(p), kernel[0], stride[0], padding[0], dilation[0], x, y)
        return y, None
    if indices is None and dilation == (1, 1) and is_narrow(p, kernel, stride):
        narrow_planes.pool_pairs(plane_count, threads(p), LITERAL[planes.MAXIMUM], x, y, 1.0)
        return y, None
    strips = _strips(p)
    total = plane_count * strips
    if not is_known(kernel, stride, dilation):
        found = NO_INDICES if indices is None else indices
        planes.argmax_planes(
            total, threads(p), kernel, stride, padding, dilation, x, y, found, indices is not None, strips
        )
        return y, indices
    literal = (LITERAL[kernel[0]], LITERAL[kernel[1]], LITERAL[stride[0]])
    if indices is not None:
        planes.argmax_planes_known(total, threads(p), *literal, x, y, indices, strips, *padding)
    else:
        none = tables.constant(1, 1, p.x.dtype)
        kind = LITERAL[planes.MAXIMUM]
        planes.pool_planes(total, threads(p), kind, *literal, x, y, strips, *padding, none, none, 1.0)
    return y, indices


def max_of_windows(
    p: Extremum, x: Array, rows: Array, columns: Array, steps: Pair, y: Array, indices: Array | None
) -> tuple[Any, ...]:
    """Maxima of windows from tables (see any_window.py) into `y`, and their places into `indices`; returns both."""
    n, c = p.x.shape[:2]
    if not p.x.channels_last:
        lines = empty((n * c, p.x.shape[3]), x.dtype)
        if indices is None:
            any_window.max_planes(n * c, threads(p), x, rows, columns, steps, y, lines)
        else:
            places = empty(lines.shape, np.int64)
            any_window.argmax_planes(n * c, threads(p), x, rows, columns, steps, y, indices, lines, places)
    elif indices is None:
        any_window.max_channels(n * p.output_plane[0], threads(p), x, rows, columns, steps, y)
    else:
        any_window.argmax_channels(n * p.output_plane[0], threads(p), x, rows, columns, steps, y, indices)
    return y, indices


def spread(p: Extremum, dy: Array, indices: Array) -> Array:
    """The gradient of x as the kernels see it."""
    dx = fresh(p, p.x.shape, dy.dtype)
    n, c = p.x.shape[:2]
    if p.x.channels_last:
        blocks = max(c // CHANNELS, 1)
        gradients.spread_channels(n * blocks, threads(p), native(p, dy), native(p, indices), dx, blocks)
    else:
        gradients.spread_planes(n * c, threads(p), contiguous(dy), contiguous(indices), dx)
    return dx


def _divisors(p: AvgPool2dProblem | LpPool2dProblem) -> tuple[Array, Array]:
    """Two tables whose product divides each window's sum."""
    height, width = p.output_plane
    override = getattr(p, "divisor_override", None)
    if override is not None:
        return tables.constant(height, 1, p.x.dtype), tables.constant(width, override, p.x.dtype)
    counts = getattr(p, "count_include_pad", True)
    rows, columns = (
        tables.extents(
            p.x.shape[2 + d], p.output_plane[d], p.kernel_size[d], p.stride[d], p.padding[d], counts, p.x.dtype
        )
        for d in (0, 1)
    )
    return rows, columns


def slide_mean(p: AvgPool2dProblem | LpPool2dProblem, x: Array, kind: int, factor: float) -> Array:
    """Means of sliding windows (see planes.py for other kinds); `x` as the kernels see it."""
    divisors = _divisors(p)
    kernel, stride, padding = p.kernel_size, p.stride, p.padding
    if p.x.channels_last or not is_known(kernel, stride):
        rows, columns = (
            tables.sliding(p.x.shape[2 + d], p.output_plane[d], kernel[d], stride[d], padding[d], 1) for d in (0, 1)
        )
        return mean_of_windows(p, x, rows, columns, kernel[1], *divisors)
    return mean_of_known(p, x, kind, kernel, stride, padding, divisors, factor)


def mean_of_known(
    p: Pooling,
    x: Array,
    kind: int,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    divisors: tuple[Array, Array],
    factor: float,
) -> Array:
    """Of sliding windows that planes.py knows; arguments as of `slide_mean`."""
    y = fresh(p, p.output_shape, x.dtype)
    if getattr(p, "divisor_override", None) is None and is_narrow(p, kernel, stride):
        narrow_planes.pool_pairs(x.shape[0] * x.shape[1], threads(p), LITERAL[kind], x, y, factor)
        return y
    strips = _strips(p)
    total = p.x.shape[0] * p.x.shape[1] * strips
    literal = (LITERAL[kind], LITERAL[kernel[0]], LITERAL[kernel[1]], LITERAL[stride[0]])
    planes.pool_planes(total, threads(p), *literal, x, y, strips, *padding, *divisors, factor)
    return y


def mean_of_windows(
    p: Pooling, x: Array, rows: Array, columns: Array, widest: int, row_divisors: Array, column_divisors: Array
) -> Array:
    """Of any windows, the widest of so many columns."""
    y = fresh(p, p.output_shape, x.dtype)
    n, c = p.x.shape[:2]
    arguments = (x, rows, columns, row_divisors, column_divisors, y)
    if p.x.channels_last:
        any_window.sum_channels(n * p.output_plane[0], threads(p), *arguments)
    elif widest * p.x.itemsize < VECTOR_BYTES:
        any_window.sum_narrow_planes(n * c, threads(p), *arguments, empty((n * c, p.x.shape[3]), x.dtype))
    else:
        any_window.sum_planes(n * c, threads(p), *arguments)
    return y


def gather(p: Pooling, dy: Array, above: Array, beside: Array, row_divisors: Array, column_divisors: Array) -> Array:
    """Gradient of a mean; `dy` and the result as the kernels see them."""
    dx = fresh(p, p.x.shape, dy.dtype)
    n, c, h, _ = p.x.shape
    if p.x.channels_last:
        gradients.gather_channels(n * h, threads(p), dy, above, beside, row_divisors, column_divisors, dx)
    else:
        scratch = empty((n * c, p.output_plane[1]), dy.dtype)
        gradients.gather_planes(n * c, threads(p), dy, above, beside, row_divisors, column_divisors, dx, scratch)
    return dx


def gather_sliding(p: AvgPool2dProblem | LpPool2dProblem, dy: Array) -> Array:
    """Gradient of a mean of sliding windows; `dy` and the result as the kernels see them."""
    above, beside = (
        tables.holders(
            p.x.shape[2 + d], tables.sliding, p.output_plane[d], p.kernel_size[d], p.stride[d], p.padding[d], 1
        )
        for d in (0, 1)
    )
    return gather(p, dy, above, beside, *_divisors(p))
