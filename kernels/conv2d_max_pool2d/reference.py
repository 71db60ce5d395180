"""conv2d_max_pool2d as equations in NumPy: the oracle that every kernel is held to.

    s = conv2d(x),   y[n, k, i, j] = max over taps t of act(s[n, k, place(i, j, t)]),   winner[n, k, i, j] = that t

and backward ds[n, k, place(i, j, winner)] += dy[n, k, i, j] * act'(s there), from where on it is conv2d's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.activation.functions import FROM_OUTPUT, apply, backward
from kernels.conv2d import reference as convolutions
from kernels.conv2d_max_pool2d.op import CONV2D_MAX_POOL2D, Conv2dMaxPool2dProblem
from kernels.op import Implementation
from kernels.pool2d import reference as poolings

Array = np.ndarray[Any, Any]


def taps_of_indices(p: Conv2dMaxPool2dProblem, indices: Array) -> Array:
    """The taps within their windows of indices (N, C, PH, PW) in the convolution's plane."""
    rows, columns = np.divmod(indices, p.pooling.x.shape[3])
    height, width = indices.shape[2:]
    rows -= (np.arange(height) * p.pool_stride[0] - p.pool_padding[0])[:, None]
    columns -= np.arange(width) * p.pool_stride[1] - p.pool_padding[1]
    return rows * p.pool_kernel_size[1] + columns


def indices_of_taps(p: Conv2dMaxPool2dProblem, taps: Array) -> Array:
    """The reverse of `taps_of_indices`."""
    rows, columns = np.divmod(taps.astype(np.int64), p.pool_kernel_size[1])
    height, width = taps.shape[2:]
    rows += (np.arange(height) * p.pool_stride[0] - p.pool_padding[0])[:, None]
    columns += np.arange(width) * p.pool_stride[1] - p.pool_padding[1]
    return rows * p.pooling.x.shape[3] + columns


def conv2d_max_pool2d(
    p: Conv2dMaxPool2dProblem, x: Array, weight: Array, bias: Array | None
) -> tuple[Array | None, ...]:
    """x (N, C_in, H, W), weight (C_out, C_in / G, kh, kw), bias (C_out,) -> output, winners, sums of the winners."""
    # In order, so that places with equal inputs tie.
    sums = convolutions.correlate(x, weight, p, p.convolution.output_shape[2:], in_order=True)
    if bias is not None:
        sums = sums + bias[:, None, None]
    output, indices = poolings.maxima(apply(p.activation, sums), poolings.max_grid(p.pooling))
    forms = p.results()
    winners = taps_of_indices(p, indices).astype(forms[1].dtype) if forms[1] is not None else None
    kept = None
    if p.keeps_sums:
        flat = sums.reshape(*sums.shape[:2], -1)
        kept = np.take_along_axis(flat, indices.reshape(*indices.shape[:2], -1), -1).reshape(indices.shape)
    return p.lay_out((output, winners, kept), forms)


def conv2d_max_pool2d_backward(
    p: Conv2dMaxPool2dProblem,
    grad_output: Array,
    x: Array,
    weight: Array,
    winners: Array,
    bias: Array | None = None,
    output: Array | None = None,
    preactivation: Array | None = None,
) -> tuple[Array | None, ...]:
    """grad_output (N, C_out, PH, PW) -> gradients of x, weight, bias."""
    ds = grad_output
    if p.activation is not None:
        known = output if p.activation in FROM_OUTPUT else preactivation
        assert known is not None
        ds = backward(p.activation, grad_output, known)
    dy = poolings.spread_to_indices(ds, indices_of_taps(p, winners), p.pooling.x.shape[2:])
    wants_x, wants_weight, wants_bias = p.needs_grad
    found = (
        convolutions.spread(dy, weight, p, x.shape[2:]) if wants_x else None,
        convolutions.weight_gradient(x, dy, p, weight.shape) if wants_weight else None,
        dy.sum((0, 2, 3)) if wants_bias else None,
    )
    return p.lay_out(found, p.gradients())


Implementation(
    CONV2D_MAX_POOL2D, "reference", conv2d_max_pool2d, conv2d_max_pool2d_backward, dtypes=convolutions.DTYPES
)
