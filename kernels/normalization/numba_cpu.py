"""layer_norm and rms_norm on the CPU: which kernel runs, on which arrays, in how many threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.normalization import rows_cpu
from kernels.normalization.op import LAYER_NORM, RMS_NORM, LayerNormProblem, NormProblem, RMSNormProblem
from kernels.op import Implementation, limits
from kernels.runtime.numba_cpu import contiguous, empty, scratch, threaded, threads_for

Array = np.ndarray[Any, Any]

#: Elements a thread, below which another one does not pay.
GRAIN = 16384
#: Gradients of weight and bias are sums of sums over parts of the rows. Their number follows from that of the rows
#: alone, so that every number of threads adds up the same way: at least LEAST_ROWS rows each, at most MOST_PARTS.
LEAST_ROWS, MOST_PARTS = 32, 64

_rows = threaded(rows_cpu.normalise_rows)
_rows_at = threaded(rows_cpu.normalise_rows_at)
_parts = threaded(rows_cpu.gradients_of_parts)
# Shares begin at cache lines: 16 elements are a line of float32 and two of float64.
_sums = threaded(rows_cpu.sum_parts, align=16)

#: What stands in for an array that a kernel does not use, by element type.
_UNUSED = {name: np.empty(0, name) for name in ("float32", "float64")}


def _flat(array: Array | None, unused: Array) -> Array:
    """An array as the kernels take it, 1-d; `unused` for None."""
    if array is None:
        return unused
    array = contiguous(array)
    return array if array.ndim == 1 else array.reshape(-1)


def _normalise(
    p: NormProblem, x: Array, weight: Array | None, bias: Array | None, *, centred: bool
) -> tuple[Array, Array | None, Array | None]:
    """output, mean (None unless centred), rstd."""
    rows, n = p.extents
    dtype, trains = x.dtype, p.trains
    unused = _UNUSED[p.x.dtype]
    out = empty(x.shape, dtype)
    mean = empty(rows, dtype) if trains and centred else None
    rstd = empty(rows, dtype) if trains else None
    arrays = (_flat(x, unused), _flat(weight, unused), _flat(bias, unused), out.reshape(-1))
    kept = (unused if mean is None else mean, unused if rstd is None else rstd)
    options = (n, p.eps, centred, weight is not None, bias is not None, trains)
    _rows(rows, threads_for(rows * n, GRAIN), *arrays, *kept, *options)
    if rstd is None:
        return out, None, None
    return out, None if mean is None else mean.reshape(p.rows_shape), rstd.reshape(p.rows_shape)


def _by_address(p: NormProblem, *, centred: bool) -> Callable[..., Array] | None:
    """The output alone, of contiguous inputs."""
    rows, n = p.extents
    if p.trains or any(s is not None and s.strides is not None for s in (p.x, p.weight, getattr(p, "bias", None))):
        return None
    size, shape, dtype, eps = rows * n, p.x.shape, np.dtype(p.x.dtype), p.eps

    def run(x: Array | int, weight: Array | int | None, bias: Array | int | None = None) -> Array:
        out = empty(size, dtype)
        has_weight, has_bias = weight is not None, bias is not None
        # What stands in for an absent input is of the kind of the others.
        arrays = (x, weight if has_weight else x, bias if has_bias else x, out)
        _rows_at(rows, threads_for(size, GRAIN), *arrays, n, eps, centred, has_weight, has_bias)
        return out.reshape(shape)

    return run


def layer_norm_by_address(p: LayerNormProblem) -> Callable[..., Array] | None:
    """The output of layer_norm."""
    return _by_address(p, centred=True)


def rms_norm_by_address(p: RMSNormProblem) -> Callable[..., Array] | None:
    """The output of rms_norm."""
    return _by_address(p, centred=False)


def _part(rows: int) -> int:
    """How many rows add up their share of the gradients of weight and bias by themselves."""
    return max(LEAST_ROWS, -(-rows // MOST_PARTS))


def _gradients(
    p: NormProblem, grad: Array, x: Array, weight: Array | None, mean: Array | None, rstd: Array
) -> tuple[Array | None, Array | None, Array | None]:
    """Gradients of x, weight and bias, None for those that are not wanted."""
    rows, n = p.extents
    dtype = x.dtype
    unused = _UNUSED[p.x.dtype]
    wants_x, wants_weight, wants_bias = (*p.needs_grad, False)[:3]
    part = _part(rows)
    parts = -(-rows // part)
    grad_x = empty(x.shape, dtype) if wants_x else None
    grad_weight = empty(n, dtype) if wants_weight else None
    grad_bias = empty(n, dtype) if wants_bias else None
    # A part alone is the sum.
    of_weight = scratch(parts * n, dtype) if wants_weight and parts > 1 else grad_weight
    of_bias = scratch(parts * n, dtype) if wants_bias and parts > 1 else grad_bias
    arrays = (
        _flat(grad, unused),
        _flat(x, unused),
        _flat(weight, unused),
        _flat(mean, unused),
        _flat(rstd, unused),
        unused if grad_x is None else grad_x.reshape(-1),
        unused if of_weight is None else of_weight,
        unused if of_bias is None else of_bias,
    )
    options = (rows, n, part, mean is not None, weight is not None, wants_x, wants_weight, wants_bias)
    _parts(parts, threads_for(rows * n, GRAIN), *arrays, *options)
    if parts > 1 and (wants_weight or wants_bias):
        summed = (unused if grad_weight is None else grad_weight, unused if grad_bias is None else grad_bias)
        _sums(n, threads_for(parts * n, GRAIN), *arrays[6:8], *summed, n, parts, wants_weight, wants_bias)
    shape = p.normalized_shape
    return (
        grad_x,
        None if grad_weight is None else grad_weight.reshape(shape),
        None if grad_bias is None else grad_bias.reshape(shape),
    )


def layer_norm(p: LayerNormProblem, x: Array, weight: Array | None, bias: Array | None) -> tuple[Array | None, ...]:
    """output, mean, rstd."""
    return _normalise(p, x, weight, bias, centred=True)


def layer_norm_backward(
    p: LayerNormProblem, grad_output: Array, x: Array, weight: Array | None, mean: Array, rstd: Array
) -> tuple[Array | None, ...]:
    """Gradients of x, weight and bias."""
    return _gradients(p, grad_output, x, weight, mean, rstd)


def rms_norm(p: RMSNormProblem, x: Array, weight: Array | None) -> tuple[Array | None, ...]:
    """output, rstd."""
    output, _, rstd = _normalise(p, x, weight, None, centred=False)
    return output, rstd


def rms_norm_backward(
    p: RMSNormProblem, grad_output: Array, x: Array, weight: Array | None, rstd: Array
) -> tuple[Array | None, ...]:
    """Gradients of x and weight."""
    return _gradients(p, grad_output, x, weight, None, rstd)[:2]


def _describe(p: NormProblem) -> str:
    rows, n = p.extents
    return f"{rows} rows of {n}, lanes along a row"


_torch_below = limits(48_000, 600_000)
Implementation(
    LAYER_NORM, "numba", layer_norm, layer_norm_backward,
    describe=_describe, torch_below=_torch_below, by_address=layer_norm_by_address,
)  # fmt: skip
Implementation(RMS_NORM, "numba", rms_norm, rms_norm_backward, describe=_describe, by_address=rms_norm_by_address)
