"""lp_pool2d on the CPU: powers around a mean, or for p of infinity the extremum of the absolute values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.pool2d import planes, powers
from kernels.pool2d.op import LpPool2dProblem
from kernels.pool2d.passes_cpu import gather_sliding, is_known, slide_max, slide_mean, spread, threads
from kernels.runtime.by_address import LIKE, Run
from kernels.runtime.numba_cpu import address, scratch

Array = np.ndarray[Any, Any]


def prepare_lp(p: LpPool2dProblem) -> Run:
    """x -> output, indices of the extrema."""
    size, count, outputs = float(math.prod(p.kernel_size)), p.x.size, math.prod(p.output_shape)
    like, dtype = LIKE[p.x.dtype], np.dtype(p.x.dtype)
    number = dtype.type
    if p.is_extremum:
        slide, sign, one = slide_max(p, p, (1, 1)), number(math.copysign(1, p.norm_type)), number(1)

        def of_sizes(x: int, y: int, indices: int) -> None:
            sizes = scratch(count, dtype)
            powers.take_sizes(count, threads(p), like, x, sign, address(sizes))
            slide(address(sizes), y, indices)
            powers.take_sizes(outputs, threads(p), like, y, one, y)

        return of_sizes
    if p.norm_type == 2 and not p.x.channels_last and is_known(p.kernel_size, p.stride):
        root = slide_mean(p, planes.ROOT_OF_SQUARES, size)
        return lambda x, y, _: root(x, y)
    mean = slide_mean(p, planes.MEAN, 1.0)

    def run(x: int, y: int, _: int) -> None:
        if p.norm_type != 1:
            raised = scratch(count, dtype)  # Its name keeps it alive to the end.
            powers.raise_to(count, threads(p), like, x, number(p.norm_type), address(raised))
            x = address(raised)
        mean(x, y)
        powers.take_root(outputs, threads(p), like, y, number(size), number(1 / p.norm_type))

    return run


def prepare_lp_backward(p: LpPool2dProblem) -> Run:
    """grad_output, x, output (or indices) -> gradient of x."""
    count, outputs, like, dtype = p.x.size, math.prod(p.output_shape), LIKE[p.x.dtype], np.dtype(p.x.dtype)
    number = dtype.type
    if p.is_extremum:
        back = spread(p)

        def of_sizes(dy: int, x: int, indices: int, dx: int) -> None:
            back(dy, indices, dx)
            powers.sign_gradient(count, threads(p), like, x, dx)

        return of_sizes
    back = gather_sliding(p)
    of_root = (
        number(math.prod(p.kernel_size)), number(1 - p.norm_type), number(0 if p.norm_type > 0 else math.inf)
    )  # fmt: skip
    exponent = number(p.norm_type - 1)

    def run(dy: int, x: int, y: int, dx: int) -> None:
        means = scratch(outputs, dtype)
        powers.root_gradient(outputs, threads(p), like, dy, y, *of_root, address(means))
        back(address(means), dx)
        powers.power_gradient(count, threads(p), like, x, exponent, dx)

    return run
