"""3x3 filters of stride 1 over one plane each, (N, C, H, W): straight from the image, with nothing between.

A column of vectors goes down the plane: each row is read once, as three vectors a column apart, under masks that are
empty outside the image, and serves the three rows of sums around it; a row of sums leaves finished. It is what
depthwise networks have most, and, with many filters on one plane, a network's first layer on grey images.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kernels.activation.vectors import ACTIVATION_CODES, activate
from kernels.conv2d.geometry import Gather, filter_order
from kernels.runtime.numba_cpu import jit, threaded, threads_for
from kernels.simd import (
    advance,
    broadcast,
    fma,
    lane_mask,
    lanes_of,
    load_masked,
    pointer,
    store,
    store_masked,
    zeros_like,
)

Array = np.ndarray[Any, Any]

#: Multiply-adds that are worth a thread of their own: about ten microseconds.
GRAIN = 500_000


class Plane(NamedTuple):
    """Sizes of a pass."""

    planes: int  # of the output, all images
    targets: int  # channels of the output
    share: int  # output planes, neighbours, that read one source plane
    height: int  # of the source
    width: int
    first_row: int  # source row and column of the first output's first tap
    first_column: int
    rows: int  # of the output
    columns: int
    activation: int


def serves(plan: Gather, group_inputs: int, channels_last: bool) -> bool:
    """Whether this kernel takes a pass with so many source planes for an output plane."""
    return group_inputs == 1 and not channels_last and filter_order(plan) is not None


@jit(inline="always")
def _read(row, w, first, second, third, inside):
    """Three columns of a row of the image from w on, zeros outside it."""
    if not inside:
        zero = zeros_like(row)
        return zero, zero, zero
    a = load_masked(row, w, first, 0.0)
    return a, load_masked(row, w + 1, second, 0.0), load_masked(row, w + 2, third, 0.0)


@jit(inline="always")
def _write(target, values, whole, mask):
    if whole:
        store(target, 0, values)
    else:
        store_masked(target, 0, values, mask)


@jit
def _filter_plane(plane, p, weight, order, shift, keeps, before, y):
    """One output plane [rows, columns] from a source plane [H, W]; before: the sums before the activation, if keeps."""
    lanes = lanes_of(plane)
    w0, w1, w2 = broadcast(weight, order[0]), broadcast(weight, order[1]), broadcast(weight, order[2])
    w3, w4, w5 = broadcast(weight, order[3]), broadcast(weight, order[4]), broadcast(weight, order[5])
    w6, w7, w8 = broadcast(weight, order[6]), broadcast(weight, order[7]), broadcast(weight, order[8])
    for start in range(0, p.columns, lanes):
        # The last vector begins early where it can, and does some columns again: a whole store is quicker.
        column = max(min(start, p.columns - lanes), 0)
        w = p.first_column + column
        first = lane_mask(plane, -w, p.width - w)
        second = lane_mask(plane, -w - 1, p.width - w - 1)
        third = lane_mask(plane, -w - 2, p.width - w - 2)
        whole = column + lanes <= p.columns
        mask = lane_mask(plane, 0, p.columns - column)
        h = p.first_row
        row = advance(plane, h * p.width)
        a0, a1, a2 = _read(row, w, first, second, third, 0 <= h < p.height)
        b0, b1, b2 = _read(advance(row, p.width), w, first, second, third, 0 <= h + 1 < p.height)
        for i in range(p.rows):
            h = p.first_row + i + 2
            c0, c1, c2 = _read(advance(plane, h * p.width), w, first, second, third, 0 <= h < p.height)
            upper = fma(b0, w3, fma(a2, w2, fma(a1, w1, fma(a0, w0, shift))))
            lower = fma(c2, w8, fma(c1, w7, fma(c0, w6, fma(b2, w5, b1 * w4))))
            values = upper + lower
            place = i * p.columns + column
            if keeps:
                _write(advance(before, place), values, whole, mask)
            if p.activation == 1:
                values = activate(1, values)
            elif p.activation:
                values = activate(p.activation, values)
            _write(advance(y, place), values, whole, mask)
            a0, a1, a2 = b0, b1, b2
            b0, b1, b2 = c0, c1, c2


@jit
def _plane_parts(first, last, p, x, weight, order, bias, y, before):
    """Output planes [first, last).

    p: Plane. x: elements [N, targets / share, H, W]. weight: elements [targets, 9]. order: int64 [9], a filter's taps
    by row and column. bias: elements [targets]. y: elements [N, targets, rows, columns]. before: as y, for the sums
    before the activation, or of size 0.
    """
    keeps = before.size > 0
    for unit in range(first, last):
        target = unit % p.targets
        source = pointer(x, unit // p.share * p.height * p.width)
        place = unit * p.rows * p.columns
        shift = broadcast(pointer(bias), target)
        kept = pointer(before, place if keeps else 0)
        _filter_plane(source, p, pointer(weight, target * 9), order, shift, keeps, kept, pointer(y, place))


_run_planes = threaded(_plane_parts)


def run_planes(
    plan: Gather, share: int, weight: Array, x: Array, bias: Array, y: Array, before: Array, activation: str | None
) -> None:
    """Fill contiguous `y` (N, targets, OH, OW) (and `before`, unless its size is 0) from contiguous `x`.

    Args:
        plan: the geometry.
        share: output planes (neighbours) that read one source plane.
        weight: one contiguous filter of 9 values for each output channel.
        x: (N, targets / share, H, W).
        bias: one value for each output channel.
        y, before: the output, and the sums before the activation.
        activation: applied to the sums.
    """
    order = filter_order(plan)
    assert order is not None
    planes = y.shape[0] * y.shape[1]
    first_row, first_column = min(plan.grids[0].shifts)
    code = ACTIVATION_CODES[activation]
    p = Plane(planes, y.shape[1], share, *plan.source, first_row, first_column, y.shape[2], y.shape[3], code)
    threads = threads_for(y.size * 10, GRAIN)
    _run_planes(planes, threads, p, x.reshape(-1), weight.reshape(-1), order, bias, y.reshape(-1), before.reshape(-1))
