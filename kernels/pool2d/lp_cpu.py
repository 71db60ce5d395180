"""lp_pool2d on the CPU: powers around a mean, or for p of infinity the extremum of the absolute values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.pool2d import planes, powers
from kernels.pool2d.op import LpPool2dProblem
from kernels.pool2d.passes_cpu import (
    gather_sliding,
    is_known,
    native,
    public,
    run_on,
    slide_max,
    slide_mean,
    spread,
    threads,
)
from kernels.runtime.numba_cpu import empty

Array = np.ndarray[Any, Any]


def lp_pool2d(p: LpPool2dProblem, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output, indices of the extrema."""
    image, x = x, native(p, x)
    size = float(math.prod(p.kernel_size))
    if p.is_extremum:
        sizes = np.abs(x, out=empty(x.shape, x.dtype))
        if p.norm_type < 0:
            np.negative(sizes, out=sizes)
        y, indices = run_on(p, slide_max(p, p, (1, 1)), (public(p, sizes),), p.results())
        assert y is not None
        return np.abs(y, out=y), indices
    if p.norm_type == 2 and not p.x.channels_last and is_known(p.kernel_size, p.stride):
        return (*run_on(p, slide_mean(p, planes.ROOT_OF_SQUARES, size), (image,), p.results()[:1]), None)
    number = x.dtype.type
    raised = x
    if p.norm_type != 1:
        raised = empty(x.shape, x.dtype)
        powers.raise_to(x.size, threads(p), x.reshape(-1), number(p.norm_type), raised.reshape(-1))
    (y,) = run_on(p, slide_mean(p, planes.MEAN, 1.0), (public(p, raised),), p.results()[:1])
    assert y is not None
    powers.take_root(y.size, threads(p), native(p, y).reshape(-1), number(size), number(1 / p.norm_type))
    return y, None


def lp_pool2d_backward(
    p: LpPool2dProblem, grad_output: Array, x: Array, output: Array | None = None, indices: Array | None = None
) -> tuple[Array | None, ...]:
    """grad_output (N, C, H_out, W_out) -> gradient of x."""
    x = native(p, x)
    if p.is_extremum:
        assert indices is not None
        (dx,) = run_on(p, spread(p), (grad_output, indices), p.gradients())
        assert dx is not None
        powers.sign_gradient(x.size, threads(p), x.reshape(-1), native(p, dx).reshape(-1))
        return (dx,)
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
    (dx,) = run_on(p, gather_sliding(p), (public(p, dmeans),), p.gradients())
    assert dx is not None
    powers.power_gradient(x.size, threads(p), x.reshape(-1), number(p.norm_type - 1), native(p, dx).reshape(-1))
    return (dx,)
