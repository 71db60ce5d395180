"""Passes over images on the CPU, which the poolings share: which kernel runs, with which tables and memory.

Each is prepared for a problem and then runs from addresses of arrays that lie contiguously as planes (N, C, H, W), or
as (N, H, W, C) for channels-last images: all of them in the layout of x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernels.arrays import ArraySpec
from kernels.pool2d import (
    any_window,
    column_planes,
    gradients,
    narrow_planes,
    planes,
    tables,
    whole_argmax,
    whole_planes,
)
from kernels.pool2d.op import AvgPool2dProblem, LpPool2dProblem, MaxPool2dProblem
from kernels.pool2d.pooling import Extremum, Pooling
from kernels.runtime.by_address import LIKE, Run, maker
from kernels.runtime.numba_cpu import contiguous, empty, threads_for
from kernels.simd import VECTOR_BYTES
from kernels.simd.target import TARGET

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

#: Whose pool_planes and argmax_planes_known take KNOWN windows.
_KNOWN_PLANES = planes if TARGET.has_avx512 else whole_planes
_KNOWN_ARGMAX = planes if TARGET.has_avx512 else whole_argmax

#: An int that is part of a compiled kernel's type: the length of a tuple.
LITERAL = ((), (0,), (0, 0), (0, 0, 0))


def native(p: Pooling, array: Array) -> Array:
    """`array` as the kernels see it."""
    return contiguous(array.transpose(0, 2, 3, 1) if p.x.channels_last else array)


def public(p: Pooling, array: Array) -> Array:
    """An array of the kernels as (N, C, H, W)."""
    return array.transpose(0, 3, 1, 2) if p.x.channels_last else array


def run_on(p: Pooling, run: Run, given: Sequence[Array], forms: Sequence[ArraySpec | None]) -> tuple[Array | None, ...]:
    """New arrays (N, C, H, W) of these specs, from a run on others."""
    alive = [native(p, array) for array in given]
    made = [None if m is None else m[0](*m[1:]) for m in map(maker, forms)]
    run(*[0 if a is None else a.ctypes.data for a in (*alive, *made)])
    return tuple(made)


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


def sizes_of(p: Pooling, *more: int) -> Array:
    """int64 (H, W, H_out, W_out, C), and what else a kernel wants."""
    return np.array((*p.x.shape[2:], *p.output_plane, p.x.shape[1], *more), np.int64)


def _planes(p: Pooling) -> int:
    return p.x.shape[0] * p.x.shape[1]


def slide_max(p: Extremum, form: MaxPool2dProblem | LpPool2dProblem, dilation: Pair) -> Run:
    """``run(x, y, indices)``: maxima of sliding windows, and their indices where these are kept."""
    kernel, stride, padding = form.kernel_size, form.stride, form.padding
    like, total = LIKE[p.x.dtype], _planes(p)
    if p.x.channels_last or stride[1] > 2:
        rows, columns = (
            tables.sliding(p.x.shape[2 + d], p.output_plane[d], kernel[d], stride[d], padding[d], dilation[d])
            for d in (0, 1)
        )
        return max_of_windows(p, rows, columns, dilation)
    sizes = sizes_of(p)
    if not p.keeps_indices and is_column(p, kernel, stride, padding):
        column = (kernel[0], stride[0], padding[0], dilation[0], sizes, like)
        return lambda x, y, _: column_planes.max_columns(total, threads(p), *column, x, y)
    if not p.keeps_indices and dilation == (1, 1) and is_narrow(p, kernel, stride):
        kind = LITERAL[planes.MAXIMUM]
        return lambda x, y, _: narrow_planes.pool_pairs(total, threads(p), kind, sizes, like, x, y, 1.0)
    strips = _strips(p)
    total *= strips
    if not is_known(kernel, stride, dilation):
        sizes = sizes_of(p, *kernel, *stride, *padding, *dilation)
        return lambda x, y, indices: planes.argmax_planes(total, threads(p), sizes, like, x, y, indices, strips)
    literal = (LITERAL[kernel[0]], LITERAL[kernel[1]], LITERAL[stride[0]])
    if p.keeps_indices:
        return lambda x, y, indices: _KNOWN_ARGMAX.argmax_planes_known(
            total, threads(p), *literal, sizes, like, x, y, indices, strips, *padding
        )
    kind, none = LITERAL[planes.MAXIMUM], tables.constant(1, 1, p.x.dtype)
    return lambda x, y, _: _KNOWN_PLANES.pool_planes(
        total, threads(p), kind, *literal, sizes, like, x, y, strips, *padding, none, none, 1.0
    )


def max_of_windows(p: Extremum, rows: Array, columns: Array, steps: Pair) -> Run:
    """``run(x, y, indices)``: maxima of windows from tables (see any_window.py), and their places where kept."""
    sizes, like, dtype, total = sizes_of(p, *steps), LIKE[p.x.dtype], np.dtype(p.x.dtype), _planes(p)
    lines = (total, p.x.shape[3])
    along = p.x.shape[0] * p.output_plane[0]
    given = (rows, columns)

    def of_planes(x: int, y: int, indices: int) -> None:
        if indices:
            room = (empty(lines, dtype), empty(lines, np.int64))
            any_window.argmax_planes(total, threads(p), sizes, like, x, *given, y, indices, *room)
        else:
            any_window.max_planes(total, threads(p), sizes, like, x, *given, y, empty(lines, dtype))

    def of_channels(x: int, y: int, indices: int) -> None:
        if indices:
            any_window.argmax_channels(along, threads(p), sizes, like, x, *given, y, indices)
        else:
            any_window.max_channels(along, threads(p), sizes, like, x, *given, y)

    return of_channels if p.x.channels_last else of_planes


def spread(p: Extremum) -> Run:
    """``run(dy, indices, dx)``: the gradient of x."""
    n, c = p.x.shape[:2]
    sizes, like = sizes_of(p), LIKE[p.x.dtype]
    if p.x.channels_last:
        blocks = max(c // CHANNELS, 1)
        return lambda dy, indices, dx: gradients.spread_channels(
            n * blocks, threads(p), sizes, like, dy, indices, dx, blocks
        )
    return lambda dy, indices, dx: gradients.spread_planes(n * c, threads(p), sizes, like, dy, indices, dx)


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


def slide_mean(p: AvgPool2dProblem | LpPool2dProblem, kind: int, factor: float) -> Run:
    """``run(x, y)``: means of sliding windows (see planes.py for other kinds)."""
    divisors = _divisors(p)
    kernel, stride, padding = p.kernel_size, p.stride, p.padding
    if p.x.channels_last or not is_known(kernel, stride):
        rows, columns = (
            tables.sliding(p.x.shape[2 + d], p.output_plane[d], kernel[d], stride[d], padding[d], 1) for d in (0, 1)
        )
        return mean_of_windows(p, rows, columns, kernel[1], *divisors)
    return mean_of_known(p, kind, kernel, stride, padding, divisors, factor)


def mean_of_known(
    p: Pooling, kind: int, kernel: Pair, stride: Pair, padding: Pair, divisors: tuple[Array, Array], factor: float
) -> Run:
    """Of sliding windows that planes.py knows; arguments as of `slide_mean`."""
    sizes, like, total = sizes_of(p), LIKE[p.x.dtype], _planes(p)
    of_kind = LITERAL[kind]
    if getattr(p, "divisor_override", None) is None and is_narrow(p, kernel, stride):
        return lambda x, y: narrow_planes.pool_pairs(total, threads(p), of_kind, sizes, like, x, y, factor)
    strips = _strips(p)
    total *= strips
    literal = (of_kind, LITERAL[kernel[0]], LITERAL[kernel[1]], LITERAL[stride[0]])
    return lambda x, y: _KNOWN_PLANES.pool_planes(
        total, threads(p), *literal, sizes, like, x, y, strips, *padding, *divisors, factor
    )


def mean_of_windows(
    p: Pooling, rows: Array, columns: Array, widest: int, row_divisors: Array, column_divisors: Array
) -> Run:
    """``run(x, y)`` of any windows, the widest of so many columns."""
    sizes, like, dtype, total = sizes_of(p), LIKE[p.x.dtype], np.dtype(p.x.dtype), _planes(p)
    given, lines = (rows, columns, row_divisors, column_divisors), (total, p.x.shape[3])
    if p.x.channels_last:
        along = p.x.shape[0] * p.output_plane[0]
        return lambda x, y: any_window.sum_channels(along, threads(p), sizes, like, x, *given, y)
    if widest * p.x.itemsize < VECTOR_BYTES:
        return lambda x, y: any_window.sum_narrow_planes(
            total, threads(p), sizes, like, x, *given, y, empty(lines, dtype)
        )
    return lambda x, y: any_window.sum_planes(total, threads(p), sizes, like, x, *given, y)


def gather(p: Pooling, above: Array, beside: Array, row_divisors: Array, column_divisors: Array) -> Run:
    """``run(dy, dx)``: gradient of a mean."""
    sizes, like, dtype, total = sizes_of(p), LIKE[p.x.dtype], np.dtype(p.x.dtype), _planes(p)
    given, lines = (above, beside, row_divisors, column_divisors), (total, p.output_plane[1])
    if p.x.channels_last:
        rows = p.x.shape[0] * p.x.shape[2]
        return lambda dy, dx: gradients.gather_channels(rows, threads(p), sizes, like, dy, *given, dx)
    return lambda dy, dx: gradients.gather_planes(total, threads(p), sizes, like, dy, *given, dx, empty(lines, dtype))


def gather_sliding(p: AvgPool2dProblem | LpPool2dProblem) -> Run:
    """``run(dy, dx)``: gradient of a mean of sliding windows."""
    above, beside = (
        tables.holders(
            p.x.shape[2 + d], tables.sliding, p.output_plane[d], p.kernel_size[d], p.stride[d], p.padding[d], 1
        )
        for d in (0, 1)
    )
    return gather(p, above, beside, *_divisors(p))
