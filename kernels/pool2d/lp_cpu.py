"""lp_pool2d on the CPU: powers around a mean, or for p of infinity the extremum of the absolute values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.pool2d import planes, powers
from kernels.pool2d.op import LpPool2dProblem
from kernels.pool2d.passes_cpu import gather_sliding, is_known, native, public, slide_max, slide_mean, spread, threads
from kernels.runtime.numba_cpu import empty

Array = np.ndarray[Any, Any]


def lp_pool2d(p: LpPool2dProblem, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output, indices of the extrema."""
    x = native(p, x)
    size = float(math.prod(p.kernel_size))
    if p.is_extremum:
        sizes = np.abs(x, out=empty(x.shape, x.dtype))
        if p.norm_type < 0:
            np.negative(sizes, out=sizes)
        y, indices = slide_max(p, p, sizes, (1, 1))
        return public(p, np.abs(y, out=y)), None if indices is None else public(p, indices)
    if p.norm_type == 2 and not p.x.channels_last and is_known(p.kernel_size, p.stride):
        return public(p, slide_mean(p, x, planes.ROOT_OF_SQUARES, size)), None
    number = x.dtype.type
    raised = x
    if p.norm_type != 1:
        raised = empty(x.shape, x.dtype)
        powers.raise_to(x.size, threads(p), x.reshape(-1), number(p.norm_type), raised.reshape(-1))
    y = slide_mean(p, raised, planes.MEAN, 1.0)
    powers.take_root(y.size, threads(p), y.reshape(-1), number(size), number(1 / p.norm_type))
    return public(p, y), None


def lp_pool2d_backward(
    p: LpPool2dProblem, grad_output: Array, x: Array, output: Array | None = None, indices: Array | None = None
) -> tuple[Array | None, ...]:
    """grad_output (N, C, H_out, W_out) -> gradient of x."""
    x = native(p, x)
    if p.is_extremum:
        assert indices is not None
        dx = spread(p, grad_output, indices)
        powers.sign_gradient(x.size, threads(p), x.reshape(-1), dx.reshape(-1))
        return (public(p, dx),)
    assert output is not None
    number = x.dtype.type
    dy, y = native(p, grad_output), native(p, output)
    dmeans = empty(dy.shape, dy.dtype)
    powers.root_gradient(
        y.size,
        threads(p),
        dy.reshape(-1),
        y.reshape(-1),
        number(math.prod(p.kernel_size)),
        number(1 - p.norm_type),
        number(0 if p.norm_type > 0 else math.inf),
        dmeans.reshape(-1),
    )
    dx = gather_sliding(p, dmeans)
    powers.power_gradient(x.size, threads(p), x.reshape(-1), number(p.norm_type - 1), dx.reshape(-1))
    return (public(p, dx),)
