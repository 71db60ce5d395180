"""The poolings on the CPU: what each is made of, and what runs it where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.arrays import channels_last_strides
from kernels.op import Implementation, limits
from kernels.pool2d import any_window, gradients, planes, tables
from kernels.pool2d.adaptive import (
    ADAPTIVE_AVG_POOL2D,
    ADAPTIVE_MAX_POOL2D,
    AdaptiveAvgPool2dProblem,
    AdaptiveMaxPool2dProblem,
)
from kernels.pool2d.lp_cpu import prepare_lp, prepare_lp_backward
from kernels.pool2d.op import (
    AVG_POOL2D,
    INTEGERS,
    LP_POOL2D,
    MAX_POOL2D,
    AvgPool2dProblem,
    LpPool2dProblem,
    MaxPool2dProblem,
)
from kernels.pool2d.passes_cpu import (
    gather,
    gather_sliding,
    is_column,
    is_known,
    is_narrow,
    max_of_windows,
    mean_of_known,
    mean_of_windows,
    run_on,
    slide_max,
    slide_mean,
    spread,
    threads,
)
from kernels.pool2d.pooling import Extremum, Pooling
from kernels.runtime.by_address import LIKE, Run
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


def _prepare_max(p: MaxPool2dProblem) -> Run:
    """x -> output, indices."""
    return slide_max(p, p, p.dilation)


def _prepare_adaptive_max(p: AdaptiveMaxPool2dProblem) -> Run:
    """x -> output, indices."""
    rows, columns = (tables.adaptive(p.x.shape[2 + d], p.output_size[d]) for d in (0, 1))
    return max_of_windows(p, rows, columns, (1, 1))


def _prepare_avg(p: AvgPool2dProblem) -> Run:
    """x -> output."""
    return slide_mean(p, planes.MEAN, 1.0)


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


def _prepare_adaptive_avg(p: AdaptiveAvgPool2dProblem) -> Run:
    """x -> output."""
    if p.output_plane == (1, 1) and not p.x.channels_last:
        count, size, like = p.x.shape[0] * p.x.shape[1], p.x.shape[2] * p.x.shape[3], LIKE[p.x.dtype]
        return lambda x, y: any_window.mean_planes(count, threads(p), size, like, x, y)
    same = _same_windows(p)
    if same is not None:
        return mean_of_known(p, planes.MEAN, same, same, (0, 0), _adaptive_divisors(p), 1.0)
    rows, columns = (tables.adaptive(p.x.shape[2 + d], p.output_size[d]) for d in (0, 1))
    return mean_of_windows(p, rows, columns, _widest(p), *_adaptive_divisors(p))


def _prepare_adaptive_avg_backward(p: AdaptiveAvgPool2dProblem) -> Run:
    """grad_output -> gradient of x."""
    if p.output_plane == (1, 1) and not p.x.channels_last:
        count, size, like = p.x.shape[0] * p.x.shape[1], p.x.shape[2] * p.x.shape[3], LIKE[p.x.dtype]
        return lambda dy, dx: gradients.fill_planes(count, threads(p), size, like, dy, dx)
    above, beside = (tables.holders(p.x.shape[2 + d], tables.adaptive, p.output_size[d]) for d in (0, 1))
    return gather(p, above, beside, *_adaptive_divisors(p))


def _if_dense(prepare: Callable[[Any], Run]) -> Callable[[Any], Run | None]:
    """`prepare` for images that lie as the kernels see them."""

    def by_address(p: Pooling) -> Run | None:
        last = channels_last_strides(p.x.shape) if p.x.channels_last else None
        return prepare(p) if p.x.strides == last else None

    return by_address


def _kept(p: Pooling, way: str, prepare: Callable[[Any], Run]) -> Run:
    # On the problem itself, which lives as long as the plan of a call.
    found: Run | None = p.__dict__.get(way)
    if found is None:
        found = p.__dict__[way] = prepare(p)
    return found


def max_pool2d(p: MaxPool2dProblem, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output, indices."""
    return run_on(p, _kept(p, "_forward_run", _prepare_max), (x,), p.results())


def adaptive_max_pool2d(p: AdaptiveMaxPool2dProblem, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output, indices."""
    return run_on(p, _kept(p, "_forward_run", _prepare_adaptive_max), (x,), p.results())


def max_backward(p: Extremum, grad_output: Array, indices: Array) -> tuple[Array | None, ...]:
    """grad_output, indices (N, C, H_out, W_out) -> gradient of x."""
    return run_on(p, _kept(p, "_backward_run", spread), (grad_output, indices), p.gradients())


def avg_pool2d(p: AvgPool2dProblem, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output."""
    return run_on(p, _kept(p, "_forward_run", _prepare_avg), (x,), p.results())


def avg_pool2d_backward(p: AvgPool2dProblem, grad_output: Array) -> tuple[Array | None, ...]:
    """grad_output (N, C, H_out, W_out) -> gradient of x."""
    return run_on(p, _kept(p, "_backward_run", gather_sliding), (grad_output,), p.gradients())


def adaptive_avg_pool2d(p: AdaptiveAvgPool2dProblem, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output."""
    return run_on(p, _kept(p, "_forward_run", _prepare_adaptive_avg), (x,), p.results())


def adaptive_avg_pool2d_backward(p: AdaptiveAvgPool2dProblem, grad_output: Array) -> tuple[Array | None, ...]:
    """grad_output (N, C, H_out, W_out) -> gradient of x."""
    return run_on(p, _kept(p, "_backward_run", _prepare_adaptive_avg_backward), (grad_output,), p.gradients())


def lp_pool2d(p: LpPool2dProblem, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output, indices of the extrema."""
    return run_on(p, _kept(p, "_forward_run", prepare_lp), (x,), p.results())


def lp_pool2d_backward(
    p: LpPool2dProblem, grad_output: Array, x: Array, output: Array | None = None, indices: Array | None = None
) -> tuple[Array | None, ...]:
    """grad_output (N, C, H_out, W_out) -> gradient of x."""
    known = indices if p.is_extremum else output
    assert known is not None
    return run_on(p, _kept(p, "_backward_run", prepare_lp_backward), (grad_output, x, known), p.gradients())


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
    MAX_POOL2D, "numba", max_pool2d, max_backward, _max_reasons, describe=_describe, torch_below=limits(14000, 20000),
    by_address=_if_dense(_prepare_max), backward_by_address=_if_dense(spread),
)  # fmt: skip
Implementation(
    ADAPTIVE_MAX_POOL2D, "numba", adaptive_max_pool2d, max_backward, _max_reasons, describe=_describe,
    by_address=_if_dense(_prepare_adaptive_max), backward_by_address=_if_dense(spread),
)  # fmt: skip
Implementation(
    AVG_POOL2D, "numba", avg_pool2d, avg_pool2d_backward, _reasons, describe=_describe,
    torch_below=limits(16000, 25000), by_address=_if_dense(_prepare_avg), backward_by_address=_if_dense(gather_sliding),
)  # fmt: skip
Implementation(
    ADAPTIVE_AVG_POOL2D, "numba", adaptive_avg_pool2d, adaptive_avg_pool2d_backward, describe=_describe,
    torch_below=_adaptive_below, by_address=_if_dense(_prepare_adaptive_avg),
    backward_by_address=_if_dense(_prepare_adaptive_avg_backward),
)  # fmt: skip
Implementation(
    LP_POOL2D, "numba", lp_pool2d, lp_pool2d_backward, _max_reasons, describe=_describe,
    by_address=_if_dense(prepare_lp), backward_by_address=_if_dense(prepare_lp_backward),
)  # fmt: skip
