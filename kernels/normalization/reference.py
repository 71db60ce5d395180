"""layer_norm and rms_norm as NumPy equations: the oracle that every kernel is held to.

With r = 1 / sqrt(variance + eps), h = (x - mean) * r and means taken over a row,

    y = h * weight + bias,   g = dy * weight
    dx = r * (g - mean(g) - h * mean(g * h)),   dweight = sum of dy * h over the rows,   dbias = sum of dy

and for rms_norm the same with a mean of 0, whose gradient mean(g) falls away.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.normalization.op import LAYER_NORM, RMS_NORM, LayerNormProblem, NormProblem, RMSNormProblem
from kernels.op import Implementation

Array = np.ndarray[Any, Any]
DTYPES = ("float16", "float32", "float64")
# NaN and infinities are results here like any other.
_quiet = np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore")


def _scaled(p: NormProblem, h: Array, weight: Array | None, bias: Array | None) -> Array:
    """h (rows, n) * weight + bias, in x's shape."""
    y = h if weight is None else h * weight.reshape(-1)
    y = y if bias is None else y + bias.reshape(-1)
    return np.ascontiguousarray(y, p.x.dtype).reshape(p.x.shape)


def _statistic(p: NormProblem, value: Array) -> Array | None:
    """One number a row as backward keeps it."""
    return np.asarray(value, p.of_rows.dtype).reshape(p.rows_shape) if p.trains else None


def _rows(p: NormProblem, array: Array) -> Array:
    """An array of x's shape as rows, half precision as float32."""
    return array.reshape(p.extents).astype(np.result_type(array.dtype, np.float32), copy=False)


@_quiet
def layer_norm(p: LayerNormProblem, x: Array, weight: Array | None, bias: Array | None) -> tuple[Array | None, ...]:
    """output, mean, rstd."""
    rows = _rows(p, x)
    mean = rows.mean(1, keepdims=True)
    apart = rows - mean
    lost = apart.mean(1, keepdims=True)  # what the mean lacks by rounding
    mean, apart = mean + lost, apart - lost
    r = 1 / np.sqrt((apart * apart).mean(1, keepdims=True) + p.eps)
    return _scaled(p, apart * r, weight, bias), _statistic(p, mean), _statistic(p, r)


@_quiet
def rms_norm(p: RMSNormProblem, x: Array, weight: Array | None) -> tuple[Array | None, ...]:
    """output, rstd."""
    rows = _rows(p, x)
    r = 1 / np.sqrt((rows * rows).mean(1, keepdims=True) + p.eps)
    return _scaled(p, rows * r, weight, None), _statistic(p, r)


def _gradients(p: NormProblem, dy: Array, h: Array, r: Array, weight: Array | None, *, centred: bool) -> list[Any]:
    """Gradients of x, weight and bias, None for those that are not wanted."""
    wanted = (*p.needs_grad, False)
    found: list[Any] = [None, None, None]
    if wanted[0]:
        g = dy if weight is None else dy * weight.reshape(-1)
        dx = g - h * (g * h).mean(1, keepdims=True)
        if centred:
            dx = dx - g.mean(1, keepdims=True)
        found[0] = np.ascontiguousarray(r * dx, p.x.dtype).reshape(p.x.shape)
    for i, summed in ((1, dy * h), (2, dy)):
        if wanted[i]:
            found[i] = summed.sum(0).astype(p.x.dtype).reshape(p.normalized_shape)
    return found


@_quiet
def layer_norm_backward(
    p: LayerNormProblem, grad_output: Array, x: Array, weight: Array | None, mean: Array, rstd: Array
) -> tuple[Array | None, ...]:
    """Gradients of x, weight and bias."""
    r = rstd.reshape(-1, 1)
    h = (_rows(p, x) - mean.reshape(-1, 1)) * r
    return tuple(_gradients(p, _rows(p, grad_output), h, r, weight, centred=True))


@_quiet
def rms_norm_backward(
    p: RMSNormProblem, grad_output: Array, x: Array, weight: Array | None, rstd: Array
) -> tuple[Array | None, ...]:
    """Gradients of x and weight."""
    r = rstd.reshape(-1, 1)
    h = _rows(p, x) * r
    return tuple(_gradients(p, _rows(p, grad_output), h, r, weight, centred=False)[:2])


Implementation(LAYER_NORM, "reference", layer_norm, layer_norm_backward, dtypes=DTYPES)
Implementation(RMS_NORM, "reference", rms_norm, rms_norm_backward, dtypes=DTYPES)
