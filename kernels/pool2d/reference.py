"""The poolings as equations in NumPy: the oracle that every kernel is held to.

A window (i, j) is a slice of rows and a slice of columns; with W(i, j) the inputs x inside the image,

    max      y = max W,                        dx[argmax] += dy
    average  y = sum W / divisor,              dx[W] += dy / divisor
    Lp       y = (K * mean(W ** p)) ** (1/p),  dx[W] += dy * K * y ** (1 - p) / |W| * x ** (p - 1)

where K is the size of the full window. In Lp's derivative the factors p and 1/p have cancelled.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels.op import Implementation
from kernels.pool2d import windows
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
from kernels.pool2d.pooling import Extremum

if TYPE_CHECKING:
    from collections.abc import Iterator

Array = np.ndarray[Any, Any]
Grid = tuple[list[slice], list[slice]]
DTYPES = ("float16", "float32", "float64")


def _wide(x: Array) -> Array:
    """x contiguous, in the type that sums are made in: float32 for float16, else its own."""
    return np.ascontiguousarray(x, np.float32 if x.dtype == np.float16 else x.dtype)


def _slices(starts: Array, ends: Array, step: int = 1) -> list[slice]:
    return [slice(start, end, step) for start, end in zip(starts, ends, strict=True)]


def _windows(grid: Grid) -> Iterator[tuple[int, int, slice, slice]]:
    """(i, j, rows, columns) of each output."""
    for i, rows in enumerate(grid[0]):
        for j, columns in enumerate(grid[1]):
            yield i, j, rows, columns


# ----- maximum -----------------------------------------------------------------------------------------------------


def _last_nan_or_first_max(values: Array) -> Array:
    """Position along the last axis of the last NaN, else of the first of the largest values."""
    largest = values.argmax(-1)
    if values.dtype.kind != "f":
        return largest
    nan = np.isnan(values)
    last_nan = values.shape[-1] - 1 - nan[..., ::-1].argmax(-1)
    return np.where(nan.any(-1), last_nan, largest)


def maxima(x: Array, grid: Grid) -> tuple[Array, Array]:
    """x (N, C, H, W) -> the maximum of each window and its index in the plane: (N, C, H_out, W_out) both."""
    shape = (*x.shape[:2], len(grid[0]), len(grid[1]))
    output = np.empty(shape, x.dtype)
    indices = np.empty(shape, np.int64)
    plane = np.arange(x.shape[2] * x.shape[3]).reshape(x.shape[2:])
    for i, j, rows, columns in _windows(grid):
        values = x[:, :, rows, columns].reshape(*x.shape[:2], -1)
        if values.shape[2] == 0:  # all taps of a dilated window miss the image
            output[:, :, i, j] = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
            indices[:, :, i, j] = plane[rows.start, columns.start]
            continue
        at = _last_nan_or_first_max(values)
        output[:, :, i, j] = np.take_along_axis(values, at[..., None], -1)[..., 0]
        indices[:, :, i, j] = plane[rows, columns].reshape(-1)[at]
    return output, indices


def spread_to_indices(dy: Array, indices: Array, plane: tuple[int, ...]) -> Array:
    """dx[n, c, indices[n, c, i, j]] += dy[n, c, i, j]: (N, C, H_out, W_out) -> (N, C, *plane)."""
    n, c = dy.shape[:2]
    dx = np.zeros((n * c, plane[0] * plane[1]), _wide(dy).dtype)
    np.add.at(dx, (np.arange(n * c)[:, None], indices.reshape(n * c, -1)), dy.reshape(n * c, -1))
    return dx.reshape(n, c, *plane).astype(dy.dtype)


def max_grid(p: MaxPool2dProblem) -> Grid:
    """The windows of a max_pool2d."""
    image = p.x.shape[2:]
    sides = (
        windows.taps(image[d], p.output_plane[d], p.kernel_size[d], p.stride[d], p.padding[d], p.dilation[d])
        for d in (0, 1)
    )
    rows, columns = (_slices(*side, p.dilation[d]) for d, side in enumerate(sides))
    return rows, columns


def _adaptive_grid(p: AdaptiveMaxPool2dProblem | AdaptiveAvgPool2dProblem) -> Grid:
    rows, columns = (_slices(*windows.adaptive(p.x.shape[2 + d], p.output_size[d])) for d in (0, 1))
    return rows, columns


def _output_and_indices(p: Extremum, found: tuple[Array, Array]) -> tuple[Array | None, ...]:
    output, indices = found
    return p.lay_out((output, indices if p.keeps_indices else None), p.results())


def max_pool2d(p: MaxPool2dProblem, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output, indices."""
    return _output_and_indices(p, maxima(x, max_grid(p)))


def adaptive_max_pool2d(p: AdaptiveMaxPool2dProblem, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output, indices."""
    return _output_and_indices(p, maxima(x, _adaptive_grid(p)))


def max_backward(p: Extremum, grad_output: Array, indices: Array) -> tuple[Array | None, ...]:
    """grad_output, indices (N, C, H_out, W_out) -> gradient of x."""
    return p.lay_out((spread_to_indices(grad_output, indices, p.x.shape[2:]),), p.gradients())


# ----- average -----------------------------------------------------------------------------------------------------


def sums(x: Array, grid: Grid) -> Array:
    """The sum of each window: (N, C, H, W) -> (N, C, H_out, W_out)."""
    output = np.empty((*x.shape[:2], len(grid[0]), len(grid[1])), x.dtype)
    for i, j, rows, columns in _windows(grid):
        output[:, :, i, j] = x[:, :, rows, columns].sum((2, 3))
    return output


def spread_to_windows(dy: Array, grid: Grid, plane: tuple[int, ...]) -> Array:
    """The transpose of :func:`sums`: (N, C, H_out, W_out) -> (N, C, *plane)."""
    dx = np.zeros((*dy.shape[:2], *plane), dy.dtype)
    for i, j, rows, columns in _windows(grid):
        dx[:, :, rows, columns] += dy[:, :, i, j, None, None]
    return dx


def _avg_windows(p: AvgPool2dProblem) -> tuple[Grid, Array]:
    """The windows and their divisors (H_out, W_out)."""
    image = p.x.shape[2:]
    sides = [windows.sliding(image[d], p.output_plane[d], p.kernel_size[d], p.stride[d], p.padding[d]) for d in (0, 1)]
    rows, columns = (_slices(start, end) for start, end, _ in sides)
    if p.divisor_override is not None:
        return (rows, columns), np.full(p.output_plane, p.divisor_override)
    counts = [extent if p.count_include_pad else end - start for start, end, extent in sides]
    return (rows, columns), np.multiply.outer(*counts)


def _divide(total: Array, divisor: Array) -> Array:
    if total.dtype.kind == "f":
        return total / divisor.astype(total.dtype)
    quotient: Array = np.sign(total) * np.sign(divisor) * (np.abs(total) // np.abs(divisor))
    return quotient  # towards 0


def avg_pool2d(p: AvgPool2dProblem, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output."""
    grid, divisor = _avg_windows(p)
    return p.lay_out((_divide(sums(_wide(x), grid), divisor).astype(x.dtype),), p.results())


def avg_pool2d_backward(p: AvgPool2dProblem, grad_output: Array) -> tuple[Array | None, ...]:
    """grad_output (N, C, H_out, W_out) -> gradient of x."""
    grid, divisor = _avg_windows(p)
    dx = spread_to_windows(_divide(_wide(grad_output), divisor), grid, p.x.shape[2:])
    return p.lay_out((dx.astype(grad_output.dtype),), p.gradients())


def _adaptive_windows(p: AdaptiveAvgPool2dProblem) -> tuple[Grid, Array]:
    grid = _adaptive_grid(p)
    counts = [np.array([part.stop - part.start for part in parts]) for parts in grid]
    return grid, np.multiply.outer(*counts)


def adaptive_avg_pool2d(p: AdaptiveAvgPool2dProblem, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output."""
    grid, divisor = _adaptive_windows(p)
    return p.lay_out((_divide(sums(_wide(x), grid), divisor).astype(x.dtype),), p.results())


def adaptive_avg_pool2d_backward(p: AdaptiveAvgPool2dProblem, grad_output: Array) -> tuple[Array | None, ...]:
    """grad_output (N, C, H_out, W_out) -> gradient of x."""
    grid, divisor = _adaptive_windows(p)
    dx = spread_to_windows(_divide(_wide(grad_output), divisor), grid, p.x.shape[2:])
    return p.lay_out((dx.astype(grad_output.dtype),), p.gradients())


# ----- power average -----------------------------------------------------------------------------------------------


def as_average(p: LpPool2dProblem) -> AvgPool2dProblem:
    """The avg_pool2d inside an lp_pool2d."""
    return AvgPool2dProblem(p.x, p.kernel_size, p.stride, p.padding, p.ceil_mode, True, None)


def as_maximum(p: LpPool2dProblem) -> MaxPool2dProblem:
    """The max_pool2d inside an lp_pool2d with p = inf or -inf."""
    return MaxPool2dProblem(p.x, p.kernel_size, p.stride, p.padding, (1, 1), p.ceil_mode, False)


def lp_pool2d(p: LpPool2dProblem, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output, indices of the extrema."""
    if p.is_extremum:
        sign = math.copysign(1, p.norm_type)
        largest, indices = maxima(sign * np.abs(x), max_grid(as_maximum(p)))
        return _output_and_indices(p, (sign * largest, indices))
    grid, divisor = _avg_windows(as_average(p))
    with np.errstate(all="ignore"):
        mean = _divide(sums(_wide(x) ** p.norm_type, grid), divisor)
        # + 0.0: torch's sign(mean) * |mean| makes -0.0 a plain 0.
        output = ((mean + 0.0) * math.prod(p.kernel_size)) ** (1 / p.norm_type)
    return p.lay_out((output.astype(x.dtype), None), p.results())


def lp_pool2d_backward(
    p: LpPool2dProblem, grad_output: Array, x: Array, output: Array | None = None, indices: Array | None = None
) -> tuple[Array | None, ...]:
    """grad_output (N, C, H_out, W_out) -> gradient of x."""
    if p.is_extremum:
        assert indices is not None
        sign = np.where(np.isnan(x), 0, np.sign(x))  # 0 for NaN, as torch has it
        dx = (spread_to_indices(grad_output, indices, x.shape[2:]) * sign).astype(x.dtype)
        return p.lay_out((dx,), p.gradients())
    assert output is not None
    grid, divisor = _avg_windows(as_average(p))
    wide, y = _wide(x), _wide(output)
    none = y == (0.0 if p.norm_type > 0 else math.inf)  # the powers add up to 0
    if p.norm_type == 1:  # torch multiplies by the sign of the sum, 0 for NaN, where no other factor is NaN
        none |= np.isnan(y)
    with np.errstate(all="ignore"):
        dmean = np.where(none, 0, _wide(grad_output) * y ** (1 - p.norm_type) * math.prod(p.kernel_size))
        dpower = spread_to_windows(_divide(dmean.astype(y.dtype), divisor), grid, x.shape[2:])
        dx = dpower * wide ** (p.norm_type - 1)
    return p.lay_out((dx.astype(x.dtype),), p.gradients())


Implementation(MAX_POOL2D, "reference", max_pool2d, max_backward, dtypes=(*DTYPES, *INTEGERS))
Implementation(ADAPTIVE_MAX_POOL2D, "reference", adaptive_max_pool2d, max_backward, dtypes=DTYPES)
Implementation(AVG_POOL2D, "reference", avg_pool2d, avg_pool2d_backward, dtypes=(*DTYPES, "int64"))
Implementation(ADAPTIVE_AVG_POOL2D, "reference", adaptive_avg_pool2d, adaptive_avg_pool2d_backward, dtypes=DTYPES)
Implementation(LP_POOL2D, "reference", lp_pool2d, lp_pool2d_backward, dtypes=DTYPES)
