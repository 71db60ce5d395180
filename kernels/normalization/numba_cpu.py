"""layer_norm and rms_norm on the CPU: which kernel runs, on which arrays, in how many threads."""

from __future__ import annotations

import numpy as np

from kernels.normalization import rows_cpu
from kernels.normalization.op import LAYER_NORM, RMS_NORM, LayerNormProblem, NormProblem, RMSNormProblem
from kernels.op import Implementation, limits
from kernels.runtime.by_address import LIKE, Run, backward_through, forward_through, if_plain
from kernels.runtime.numba_cpu import address, scratch, threaded, threads_for

#: Elements a thread, below which another one does not pay.
GRAIN = 16384
#: Gradients of weight and bias are sums of sums over parts of the rows. Their number follows from that of the rows
#: alone, so that every number of threads adds up the same way: at least LEAST_ROWS rows each, at most MOST_PARTS.
LEAST_ROWS, MOST_PARTS = 32, 64

_rows = threaded(rows_cpu.normalise_rows)
_parts = threaded(rows_cpu.gradients_of_parts)
# Shares begin at cache lines: 16 elements are a line of float32 and two of float64.
_sums = threaded(rows_cpu.sum_parts, align=16)


def _prepare(p: NormProblem, *, centred: bool) -> Run:
    """``run(x, weight, bias, out, mean, rstd)`` of contiguous arrays; mean and rstd are written where p trains."""
    rows, n = p.extents
    work, like = rows * n, LIKE[p.x.dtype]
    options = (n, p.eps, centred, p.weight is not None, getattr(p, "bias", None) is not None, p.trains)
    return lambda *places: _rows(rows, threads_for(work, GRAIN), like, *places, *options)


def layer_norm_by_address(p: LayerNormProblem) -> Run:
    """x, weight, bias -> output, mean, rstd."""
    return _prepare(p, centred=True)


def rms_norm_by_address(p: RMSNormProblem) -> Run:
    """x, weight -> output, rstd."""
    run = _prepare(p, centred=False)
    return lambda x, weight, out, rstd: run(x, weight, 0, out, 0, rstd)


def _part(rows: int) -> int:
    """How many rows add up their share of the gradients of weight and bias by themselves."""
    return max(LEAST_ROWS, -(-rows // MOST_PARTS))


def _prepare_backward(p: NormProblem, *, centred: bool) -> Run:
    """``run(grad, x, weight, mean, rstd, grad_x, grad_weight, grad_bias)`` of contiguous arrays."""
    rows, n = p.extents
    work, like, dtype = rows * n, LIKE[p.x.dtype], np.dtype(p.x.dtype)
    wants_x, wants_weight, wants_bias = (*p.needs_grad, False)[:3]
    part = _part(rows)
    parts = -(-rows // part)
    options = (rows, n, part, centred, p.weight is not None, wants_x, wants_weight, wants_bias)
    if parts == 1 or not (wants_weight or wants_bias):
        # A part alone is the sum.
        return lambda *places: _parts(parts, threads_for(work, GRAIN), like, *places, *options)

    def run(*places: int) -> None:
        *arrays, grad_x, grad_weight, grad_bias = places
        sums = scratch(2 * parts * n, dtype)
        shares = address(sums), address(sums) + parts * n * dtype.itemsize
        _parts(parts, threads_for(work, GRAIN), like, *arrays, grad_x, *shares, *options)
        summed = (grad_weight, grad_bias, n, parts, wants_weight, wants_bias)
        _sums(n, threads_for(parts * n, GRAIN), like, *shares, *summed)

    return run


def layer_norm_backward_by_address(p: LayerNormProblem) -> Run:
    """grad_output, x, weight, mean, rstd -> gradients of x, weight and bias."""
    return _prepare_backward(p, centred=True)


def rms_norm_backward_by_address(p: RMSNormProblem) -> Run:
    """grad_output, x, weight, rstd -> gradients of x and weight."""
    run = _prepare_backward(p, centred=False)
    return lambda grad, x, weight, rstd, grad_x, grad_weight: run(grad, x, weight, 0, rstd, grad_x, grad_weight, 0)


def _describe(p: NormProblem) -> str:
    rows, n = p.extents
    return f"{rows} rows of {n}, lanes along a row"


_TORCH_BELOW = {LAYER_NORM: limits(48_000, 600_000), RMS_NORM: limits(0, 0)}
for _op, _forward, _backward in (
    (LAYER_NORM, layer_norm_by_address, layer_norm_backward_by_address),
    (RMS_NORM, rms_norm_by_address, rms_norm_backward_by_address),
):
    Implementation(
        _op, "numba", forward_through(_op, _forward), backward_through(_op, _backward), describe=_describe,
        torch_below=_TORCH_BELOW[_op], by_address=if_plain(_forward), backward_by_address=if_plain(_backward),
    )  # fmt: skip
