"""The poolings on the CPU: which kernel runs, with which tables and memory.

Kernels see contiguous arrays: planes (N, C, H, W), or (N, H, W, C) for channels-last images.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.op import Implementation, limits
from kernels.pool2d import any_window, gradients, planes, powers, tables
from kernels.pool2d.adaptive import (
    ADAPTIVE_AVG_POOL2D,
    ADAPTIVE_MAX_POOL2D,
    AdaptiveAvgPool2dProblem,
    AdaptiveMaxPool2dProblem,
)
from kernels.pool2d.op import (
    AVG_POOL2D,
    INTEGERS,
    LP_POOL2D,
    MAX_POOL2D,
    AvgPool2dProblem,
    LpPool2dProblem,
    MaxPool2dProblem,
)
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


# ----- layouts -----------------------------------------------------------------------------------------------------


def _native(p: Pooling, array: Array) -> Array:
    """`array` as the kernels see it."""
    return contiguous(array.transpose(0, 2, 3, 1) if p.x.channels_last else array)


def _fresh(p: Pooling, shape: Pair, dtype: Any) -> Array:
    n, c, h, w = shape
    return empty((n, h, w, c) if p.x.channels_last else (n, c, h, w), dtype)


def _public(p: Pooling, array: Array) -> Array:
    """An array of the kernels as (N, C, H, W)."""
    return array.transpose(0, 3, 1, 2) if p.x.channels_last else array


def _strips(p: Pooling) -> int:
    """Groups of output rows in a plane, each with inputs that fit the cache."""
    size = p.x.shape[2] * p.x.shape[3] * p.x.itemsize
    return min(max(size // STRIP_BYTES, 1), p.output_plane[0])


def _threads(p: Pooling) -> int:
    return threads_for(max(p.x.size, math.prod(p.output_shape)), GRAIN)


# ----- maximum -----------------------------------------------------------------------------------------------------


def _reasons(p: Pooling) -> list[str]:
    if p.x.dtype in INTEGERS:
        return [f"x has dtype {p.x.dtype}; it takes float32, float64"]
    return []


def _max_reasons(p: Extremum) -> list[str]:
    found = _reasons(p)
    if p.keeps_indices and p.x.dtype == "float32" and p.x.shape[2] * p.x.shape[3] > 2**31 - 1:
        found.append(f"planes of {p.x.shape[2]} x {p.x.shape[3]} have more inputs than 32-bit indices count")
    return found


def _is_known(kernel: Pair, stride: Pair, dilation: Pair = (1, 1)) -> bool:
    return (kernel, stride) in KNOWN and dilation == (1, 1)


def _slide_max(p: Extremum, form: MaxPool2dProblem | LpPool2dProblem, x: Array, dilation: Pair) -> tuple[Any, ...]:
    """Maxima and indices of sliding windows; `x` as the kernels see it."""
    kernel, stride, padding = form.kernel_size, form.stride, form.padding
    y = _fresh(p, p.output_shape, x.dtype)
    indices = _fresh(p, p.output_shape, np.int64) if p.keeps_indices else None
    if p.x.channels_last or stride[1] > 2:
        rows, columns = (
            tables.sliding(p.x.shape[2 + d], p.output_plane[d], kernel[d], stride[d], padding[d], dilation[d])
            for d in (0, 1)
        )
        return _max_of_windows(p, x, rows, columns, dilation, y, indices)
    strips = _strips(p)
    total = p.x.shape[0] * p.x.shape[1] * strips
    if not _is_known(kernel, stride, dilation):
        found = NO_INDICES if indices is None else indices
        planes.argmax_planes(
            total, _threads(p), kernel, stride, padding, dilation, x, y, found, indices is not None, strips
        )
        return y, indices
    literal = (LITERAL[kernel[0]], LITERAL[kernel[1]], LITERAL[stride[0]])
    if indices is not None:
        planes.argmax_planes_known(total, _threads(p), *literal, x, y, indices, strips, *padding)
    else:
        none = tables.constant(1, 1, p.x.dtype)
        kind = LITERAL[planes.MAXIMUM]
        planes.pool_planes(total, _threads(p), kind, *literal, x, y, strips, *padding, none, none, 1.0)
    return y, indices


def _max_of_windows(
    p: Extremum, x: Array, rows: Array, columns: Array, steps: Pair, y: Array, indices: Array | None
) -> tuple[Any, ...]:
    n, c = p.x.shape[:2]
    if not p.x.channels_last:
        lines = empty((n * c, p.x.shape[3]), x.dtype)
        if indices is None:
            any_window.max_planes(n * c, _threads(p), x, rows, columns, steps, y, lines)
        else:
            places = empty(lines.shape, np.int64)
            any_window.argmax_planes(n * c, _threads(p), x, rows, columns, steps, y, indices, lines, places)
    elif indices is None:
        any_window.max_channels(n * p.output_plane[0], _threads(p), x, rows, columns, steps, y)
    else:
        any_window.argmax_channels(n * p.output_plane[0], _threads(p), x, rows, columns, steps, y, indices)
    return y, indices


def _both(p: Extremum, y: Array, indices: Array | None) -> tuple[Array | None, ...]:
    return _public(p, y), None if indices is None else _public(p, indices)


def max_pool2d(p: MaxPool2dProblem, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output, indices."""
    return _both(p, *_slide_max(p, p, _native(p, x), p.dilation))


def adaptive_max_pool2d(p: AdaptiveMaxPool2dProblem, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output, indices."""
    rows, columns = (tables.adaptive(p.x.shape[2 + d], p.output_size[d]) for d in (0, 1))
    y = _fresh(p, p.output_shape, x.dtype)
    indices = _fresh(p, p.output_shape, np.int64) if p.keeps_indices else None
    return _both(p, *_max_of_windows(p, _native(p, x), rows, columns, (1, 1), y, indices))


def _spread(p: Extremum, dy: Array, indices: Array) -> Array:
    """The gradient of x as the kernels see it."""
    dx = _fresh(p, p.x.shape, dy.dtype)
    n, c = p.x.shape[:2]
    if p.x.channels_last:
        blocks = max(c // CHANNELS, 1)
        gradients.spread_channels(n * blocks, _threads(p), _native(p, dy), _native(p, indices), dx, blocks)
    else:
        gradients.spread_planes(n * c, _threads(p), contiguous(dy), contiguous(indices), dx)
    return dx


def max_backward(p: Extremum, grad_output: Array, indices: Array) -> tuple[Array | None, ...]:
    """grad_output, indices (N, C, H_out, W_out) -> gradient of x."""
    return (_public(p, _spread(p, grad_output, indices)),)


# ----- average -----------------------------------------------------------------------------------------------------


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


def _slide_mean(p: AvgPool2dProblem | LpPool2dProblem, x: Array, kind: int, factor: float) -> Array:
    """Means of sliding windows (see planes.py for other kinds); `x` as the kernels see it."""
    divisors = _divisors(p)
    kernel, stride, padding = p.kernel_size, p.stride, p.padding
    if p.x.channels_last or not _is_known(kernel, stride):
        rows, columns = (
            tables.sliding(p.x.shape[2 + d], p.output_plane[d], kernel[d], stride[d], padding[d], 1) for d in (0, 1)
        )
        return _mean_of_windows(p, x, rows, columns, kernel[1], *divisors)
    return _mean_of_known(p, x, kind, kernel, stride, padding, divisors, factor)


def _mean_of_known(
    p: Pooling,
    x: Array,
    kind: int,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    divisors: tuple[Array, Array],
    factor: float,
) -> Array:
    """Of sliding windows that planes.py knows."""
    y = _fresh(p, p.output_shape, x.dtype)
    strips = _strips(p)
    total = p.x.shape[0] * p.x.shape[1] * strips
    literal = (LITERAL[kind], LITERAL[kernel[0]], LITERAL[kernel[1]], LITERAL[stride[0]])
    planes.pool_planes(total, _threads(p), *literal, x, y, strips, *padding, *divisors, factor)
    return y


def _mean_of_windows(
    p: Pooling, x: Array, rows: Array, columns: Array, widest: int, row_divisors: Array, column_divisors: Array
) -> Array:
    """Of any windows, the widest of so many columns."""
    y = _fresh(p, p.output_shape, x.dtype)
    n, c = p.x.shape[:2]
    arguments = (x, rows, columns, row_divisors, column_divisors, y)
    if p.x.channels_last:
        any_window.sum_channels(n * p.output_plane[0], _threads(p), *arguments)
    elif widest * p.x.itemsize < VECTOR_BYTES:
        any_window.sum_narrow_planes(n * c, _threads(p), *arguments, empty((n * c, p.x.shape[3]), x.dtype))
    else:
        any_window.sum_planes(n * c, _threads(p), *arguments)
    return y


def _gather(p: Pooling, dy: Array, above: Array, beside: Array, row_divisors: Array, column_divisors: Array) -> Array:
    """Gradient of a mean; `dy` and the result as the kernels see them."""
    dx = _fresh(p, p.x.shape, dy.dtype)
    n, c, h, _ = p.x.shape
    if p.x.channels_last:
        gradients.gather_channels(n * h, _threads(p), dy, above, beside, row_divisors, column_divisors, dx)
    else:
        scratch = empty((n * c, p.output_plane[1]), dy.dtype)
        gradients.gather_planes(n * c, _threads(p), dy, above, beside, row_divisors, column_divisors, dx, scratch)
    return dx


def _gather_sliding(p: AvgPool2dProblem | LpPool2dProblem, dy: Array) -> Array:
    above, beside = (
        tables.holders(
            p.x.shape[2 + d], tables.sliding, p.output_plane[d], p.kernel_size[d], p.stride[d], p.padding[d], 1
        )
        for d in (0, 1)
    )
    return _gather(p, dy, above, beside, *_divisors(p))


def avg_pool2d(p: AvgPool2dProblem, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output."""
    return (_public(p, _slide_mean(p, _native(p, x), planes.MEAN, 1.0)),)


def avg_pool2d_backward(p: AvgPool2dProblem, grad_output: Array) -> tuple[Array | None, ...]:
    """grad_output (N, C, H_out, W_out) -> gradient of x."""
    return (_public(p, _gather_sliding(p, _native(p, grad_output))),)


def _adaptive_divisors(p: AdaptiveAvgPool2dProblem) -> tuple[Array, Array]:
    rows, columns = (tables.lengths(p.x.shape[2 + d], p.output_size[d], p.x.dtype) for d in (0, 1))
    return rows, columns


def _widest(p: AdaptiveAvgPool2dProblem) -> int:
    """Columns that a window has at most."""
    return -(-p.x.shape[3] // max(p.output_plane[1], 1)) + 1


def _same_windows(p: AdaptiveAvgPool2dProblem) -> Pair | None:
    """The size of windows that lie side by side, where planes.py knows it."""
    image, outputs = p.x.shape[2:], p.output_plane
    if p.x.channels_last or 0 in outputs or image[0] % outputs[0] or image[1] % outputs[1]:
        return None
    size = (image[0] // outputs[0], image[1] // outputs[1])
    return size if _is_known(size, size) else None


def adaptive_avg_pool2d(p: AdaptiveAvgPool2dProblem, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output."""
    if p.output_plane == (1, 1) and not p.x.channels_last:
        y = _fresh(p, p.output_shape, x.dtype)
        any_window.mean_planes(y.size, _threads(p), contiguous(x).reshape(y.size, -1), y.reshape(-1))
        return (y,)
    same = _same_windows(p)
    if same is not None:
        return (_mean_of_known(p, contiguous(x), planes.MEAN, same, same, (0, 0), _adaptive_divisors(p), 1.0),)
    rows, columns = (tables.adaptive(p.x.shape[2 + d], p.output_size[d]) for d in (0, 1))
    return (_public(p, _mean_of_windows(p, _native(p, x), rows, columns, _widest(p), *_adaptive_divisors(p))),)


def adaptive_avg_pool2d_backward(p: AdaptiveAvgPool2dProblem, grad_output: Array) -> tuple[Array | None, ...]:
    """grad_output (N, C, H_out, W_out) -> gradient of x."""
    if p.output_plane == (1, 1) and not p.x.channels_last:
        dx = _fresh(p, p.x.shape, grad_output.dtype)
        planes_of_dx = dx.reshape(grad_output.size, -1)
        gradients.fill_planes(grad_output.size, _threads(p), contiguous(grad_output).reshape(-1), planes_of_dx)
        return (dx,)
    above, beside = (tables.holders(p.x.shape[2 + d], tables.adaptive, p.output_size[d]) for d in (0, 1))
    return (_public(p, _gather(p, _native(p, grad_output), above, beside, *_adaptive_divisors(p))),)


# ----- power average -----------------------------------------------------------------------------------------------


def lp_pool2d(p: LpPool2dProblem, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output, indices of the extrema."""
    x = _native(p, x)
    size = float(math.prod(p.kernel_size))
    if p.is_extremum:
        sizes = np.abs(x, out=empty(x.shape, x.dtype))
        if p.norm_type < 0:
            np.negative(sizes, out=sizes)
        y, indices = _slide_max(p, p, sizes, (1, 1))
        return _both(p, np.abs(y, out=y), indices)
    if p.norm_type == 2 and not p.x.channels_last and _is_known(p.kernel_size, p.stride):
        return _public(p, _slide_mean(p, x, planes.ROOT_OF_SQUARES, size)), None
    number = x.dtype.type
    raised = x
    if p.norm_type != 1:
        raised = empty(x.shape, x.dtype)
        powers.raise_to(x.size, _threads(p), x.reshape(-1), number(p.norm_type), raised.reshape(-1))
    y = _slide_mean(p, raised, planes.MEAN, 1.0)
    powers.take_root(y.size, _threads(p), y.reshape(-1), number(size), number(1 / p.norm_type))
    return _public(p, y), None


def lp_pool2d_backward(
    p: LpPool2dProblem, grad_output: Array, x: Array, output: Array | None = None, indices: Array | None = None
) -> tuple[Array | None, ...]:
    """grad_output (N, C, H_out, W_out) -> gradient of x."""
    x = _native(p, x)
    if p.is_extremum:
        assert indices is not None
        dx = _spread(p, grad_output, indices)
        powers.sign_gradient(x.size, _threads(p), x.reshape(-1), dx.reshape(-1))
        return (_public(p, dx),)
    assert output is not None
    number = x.dtype.type
    dy, y = _native(p, grad_output), _native(p, output)
    dmeans = empty(dy.shape, dy.dtype)
    powers.root_gradient(
        y.size,
        _threads(p),
        dy.reshape(-1),
        y.reshape(-1),
        number(math.prod(p.kernel_size)),
        number(1 - p.norm_type),
        number(0 if p.norm_type > 0 else math.inf),
        dmeans.reshape(-1),
    )
    dx = _gather_sliding(p, dmeans)
    powers.power_gradient(x.size, _threads(p), x.reshape(-1), number(p.norm_type - 1), dx.reshape(-1))
    return (_public(p, dx),)


def _describe(p: Pooling) -> str:
    """Which kernel runs."""
    if p.x.channels_last:
        return "any window, vectors of channels"
    if isinstance(p, AdaptiveAvgPool2dProblem) and p.output_plane == (1, 1):
        return "whole planes, vectors along them"
    kernel, stride = getattr(p, "kernel_size", (0, 0)), getattr(p, "stride", (0, 0))
    if isinstance(p, AdaptiveAvgPool2dProblem):
        kernel = stride = _same_windows(p) or (0, 0)
    if _is_known(kernel, stride, getattr(p, "dilation", (1, 1))):
        return f"{kernel[0]} x {kernel[1]} stride {stride[0]}, vectors along the width"
    if isinstance(p, MaxPool2dProblem) and stride[1] <= 2:
        return "any kernel, vectors along the width"
    if isinstance(p, (MaxPool2dProblem, AdaptiveMaxPool2dProblem)):
        return "any window, its rows first, vectors along the width"
    widest = kernel[1]
    if isinstance(p, AdaptiveAvgPool2dProblem):
        widest = _widest(p)
    is_narrow = widest * p.x.itemsize < VECTOR_BYTES
    return "any window, its rows first, vectors along the width" if is_narrow else "any window, one at a time"


def _adaptive_below(p: AdaptiveAvgPool2dProblem) -> int:
    whole = p.output_plane == (1, 1)
    return limits(1500, 40000)(p) if whole else limits(5000, 10000)(p)


Implementation(
    MAX_POOL2D, "numba", max_pool2d, max_backward, _max_reasons, describe=_describe, torch_below=limits(14000, 20000)
)
Implementation(ADAPTIVE_MAX_POOL2D, "numba", adaptive_max_pool2d, max_backward, _max_reasons, describe=_describe)
Implementation(
    AVG_POOL2D,
    "numba",
    avg_pool2d,
    avg_pool2d_backward,
    _reasons,
    describe=_describe,
    torch_below=limits(16000, 25000),
)
Implementation(
    ADAPTIVE_AVG_POOL2D,
    "numba",
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_backward,
    describe=_describe,
    torch_below=_adaptive_below,
)
Implementation(LP_POOL2D, "numba", lp_pool2d, lp_pool2d_backward, _max_reasons, describe=_describe)
