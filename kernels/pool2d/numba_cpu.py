"""The poolings on the CPU: what each is made of, and what runs it where."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.op import Implementation, limits
from kernels.pool2d import any_window, gradients, planes, tables
from kernels.pool2d.adaptive import (
    ADAPTIVE_AVG_POOL2D,
    ADAPTIVE_MAX_POOL2D,
    AdaptiveAvgPool2dProblem,
    AdaptiveMaxPool2dProblem,
)
from kernels.pool2d.lp_cpu import lp_pool2d, lp_pool2d_backward
from kernels.pool2d.op import AVG_POOL2D, INTEGERS, LP_POOL2D, MAX_POOL2D, AvgPool2dProblem, MaxPool2dProblem
from kernels.pool2d.passes_cpu import (
    fresh,
    gather,
    gather_sliding,
    is_column,
    is_known,
    is_narrow,
    max_of_windows,
    mean_of_known,
    mean_of_windows,
    native,
    public,
    slide_max,
    slide_mean,
    spread,
    threads,
)
from kernels.pool2d.pooling import Extremum, Pooling
from kernels.runtime.numba_cpu import contiguous
from kernels.simd import VECTOR_BYTES

Array = np.ndarray[Any, Any]
Pair = tuple[int, ...]


def _reasons(p: Pooling) -> list[str]:
    if p.x.dtype in INTEGERS:
        return [f"x has dtype {p.x.dtype}; it takes float32, float64"]
    return []


def _max_reasons(p: Extremum) -> list[str]:
    found = _reasons(p)
    if p.keeps_indices and p.x.dtype == "float32" and p.x.shape[2] * p.x.shape[3] > 2**31 - 1:
        found.append(f"planes of {p.x.shape[2]} x {p.x.shape[3]} have more inputs than 32-bit indices count")
    return found


def _both(p: Extremum, y: Array, indices: Array | None) -> tuple[Array | None, ...]:
    return public(p, y), None if indices is None else public(p, indices)


def max_pool2d(p: MaxPool2dProblem, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output, indices."""
    return _both(p, *slide_max(p, p, native(p, x), p.dilation))


def adaptive_max_pool2d(p: AdaptiveMaxPool2dProblem, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output, indices."""
    rows, columns = (tables.adaptive(p.x.shape[2 + d], p.output_size[d]) for d in (0, 1))
    y = fresh(p, p.output_shape, x.dtype)
    indices = fresh(p, p.output_shape, np.int64) if p.keeps_indices else None
    return _both(p, *max_of_windows(p, native(p, x), rows, columns, (1, 1), y, indices))


def max_backward(p: Extremum, grad_output: Array, indices: Array) -> tuple[Array | None, ...]:
    """grad_output, indices (N, C, H_out, W_out) -> gradient of x."""
    return (public(p, spread(p, grad_output, indices)),)


def avg_pool2d(p: AvgPool2dProblem, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output."""
    return (public(p, slide_mean(p, native(p, x), planes.MEAN, 1.0)),)


def avg_pool2d_backward(p: AvgPool2dProblem, grad_output: Array) -> tuple[Array | None, ...]:
    """grad_output (N, C, H_out, W_out) -> gradient of x."""
    return (public(p, gather_sliding(p, native(p, grad_output))),)


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
    return size if is_known(size, size) else None


def adaptive_avg_pool2d(p: AdaptiveAvgPool2dProblem, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output."""
    if p.output_plane == (1, 1) and not p.x.channels_last:
        y = fresh(p, p.output_shape, x.dtype)
        any_window.mean_planes(y.size, threads(p), contiguous(x).reshape(y.size, -1), y.reshape(-1))
        return (y,)
    same = _same_windows(p)
    if same is not None:
        return (mean_of_known(p, contiguous(x), planes.MEAN, same, same, (0, 0), _adaptive_divisors(p), 1.0),)
    rows, columns = (tables.adaptive(p.x.shape[2 + d], p.output_size[d]) for d in (0, 1))
    return (public(p, mean_of_windows(p, native(p, x), rows, columns, _widest(p), *_adaptive_divisors(p))),)


def adaptive_avg_pool2d_backward(p: AdaptiveAvgPool2dProblem, grad_output: Array) -> tuple[Array | None, ...]:
    """grad_output (N, C, H_out, W_out) -> gradient of x."""
    if p.output_plane == (1, 1) and not p.x.channels_last:
        dx = fresh(p, p.x.shape, grad_output.dtype)
        planes_of_dx = dx.reshape(grad_output.size, -1)
        gradients.fill_planes(grad_output.size, threads(p), contiguous(grad_output).reshape(-1), planes_of_dx)
        return (dx,)
    above, beside = (tables.holders(p.x.shape[2 + d], tables.adaptive, p.output_size[d]) for d in (0, 1))
    return (public(p, gather(p, native(p, grad_output), above, beside, *_adaptive_divisors(p))),)


def _describe(p: Pooling) -> str:
    """Which kernel runs."""
    if p.x.channels_last:
        return "any window, vectors of channels"
    if isinstance(p, AdaptiveAvgPool2dProblem) and p.output_plane == (1, 1):
        return "whole planes, vectors along them"
    kernel, stride = getattr(p, "kernel_size", (0, 0)), getattr(p, "stride", (0, 0))
    if isinstance(p, AdaptiveAvgPool2dProblem):
        kernel = stride = _same_windows(p) or (0, 0)
    dilation = getattr(p, "dilation", (1, 1))
    is_max = isinstance(p, Extremum) and not p.keeps_indices
    if is_max and is_column(p, kernel, stride, getattr(p, "padding", (0, 0))):
        return "columns, vectors along the width"
    if is_known(kernel, stride, dilation):
        narrow = is_narrow(p, kernel, stride) and getattr(p, "divisor_override", None) is None
        if narrow and (is_max or not isinstance(p, Extremum)):
            return "2 x 2 stride 2, two rows in a vector"
        return f"{kernel[0]} x {kernel[1]} stride {stride[0]}, vectors along the width"
    if isinstance(p, MaxPool2dProblem) and stride[1] <= 2:
        return "any kernel, vectors along the width"
    if isinstance(p, (MaxPool2dProblem, AdaptiveMaxPool2dProblem)):
        return "any window, its rows first, vectors along the width"
    widest = kernel[1]
    if isinstance(p, AdaptiveAvgPool2dProblem):
        widest = _widest(p)
    if widest * p.x.itemsize < VECTOR_BYTES:
        return "any window, its rows first, vectors along the width"
    return "any window, one at a time"


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
