"""3x3 filters of stride 1 over one plane each, (N, C, H, W): straight from the image, with nothing between.

A column of vectors goes down the plane: each row is read once, as three vectors a column apart, under masks that are
empty outside the image, and serves the three rows of sums around it; a row of sums leaves finished. It is what
depthwise networks have most, and, with many filters on one plane, a network's first layer on grey images.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.np.unsafe.ndarray import to_fixed_tuple

from kernels.activation.vectors import ACTIVATION_CODES, activate
from kernels.conv2d.geometry import Gather, filter_order
from kernels.conv2d.launch import Job, Launch, Run
from kernels.runtime.numba_cpu import jit, threaded
from kernels.simd import (
    advance,
    broadcast,
    fma,
    lane_mask,
    lanes_of,
    load,
    load_first,
    load_masked,
    pointer_at,
    select,
    splat_like,
    store,
    store_first,
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
    keeps_sums: int  # the sums before it are wanted too


FIELDS = len(Plane._fields)


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


@jit(inline="always")
def _weights(weight, order):
    """The nine numbers of a filter, each in all lanes, by row and column."""
    return (
        broadcast(weight, order[0]), broadcast(weight, order[1]), broadcast(weight, order[2]),
        broadcast(weight, order[3]), broadcast(weight, order[4]), broadcast(weight, order[5]),
        broadcast(weight, order[6]), broadcast(weight, order[7]), broadcast(weight, order[8]),
    )  # fmt: skip


@jit(inline="always")
def _filtered(a0, a1, a2, b0, b1, b2, c0, c1, c2, w, shift, floor):
    """A filter's sum with three rows of three columns, at least `floor`; NaN passes."""
    upper = fma(b0, w[3], fma(a2, w[2], fma(a1, w[1], fma(a0, w[0], shift))))
    lower = fma(c2, w[8], fma(c1, w[7], fma(c0, w[6], fma(b2, w[5], b1 * w[4]))))
    values = upper + lower
    return select(values < floor, floor, values)


@jit(inline="always")
def _columns(plane, p, start):
    """Where a vector of columns begins, in the result and in the source, and which lanes lie in the image, for each of
    three taps; whether the vector is whole, and its lanes that are in the result."""
    lanes = lanes_of(plane)
    # The last vector begins early where it can, and does some columns again: a whole store is quicker.
    column = max(min(start, p.columns - lanes), 0)
    w = p.first_column + column
    first = lane_mask(plane, -w, p.width - w)
    second = lane_mask(plane, -w - 1, p.width - w - 1)
    third = lane_mask(plane, -w - 2, p.width - w - 2)
    return column, w, first, second, third, column + lanes <= p.columns, lane_mask(plane, 0, p.columns - column)


@jit
def _filter_plane(plane, p, weight, order, bias, floor, y):
    """One output plane [rows, columns] from a source plane [H, W]: sums, at least `floor`.

    weight: elements [9]. order: int64 [9], its taps by row and column. bias: one element.
    """
    lanes = lanes_of(plane)
    f, shift = _weights(weight, order), broadcast(bias, 0)
    for start in range(0, p.columns, lanes):
        column, w, first, second, third, whole, mask = _columns(plane, p, start)
        h = p.first_row
        row = advance(plane, h * p.width)
        a0, a1, a2 = _read(row, w, first, second, third, 0 <= h < p.height)
        row = advance(row, p.width)
        b0, b1, b2 = _read(row, w, first, second, third, 0 <= h + 1 < p.height)
        target = advance(y, column)
        for i in range(p.rows):
            h = p.first_row + i + 2
            row = advance(row, p.width)
            c0, c1, c2 = _read(row, w, first, second, third, 0 <= h < p.height)
            _write(target, _filtered(a0, a1, a2, b0, b1, b2, c0, c1, c2, f, shift, floor), whole, mask)
            target = advance(target, p.columns)
            a0, a1, a2 = b0, b1, b2
            b0, b1, b2 = c0, c1, c2


@jit
def _filter_pairs(plane, p, weight, order, bias, pairs, floor, y):
    """As `_filter_plane` for pairs of filters on one source plane, which read it together.

    weight: elements [2 * pairs, 9]. bias: elements [2 * pairs]. y: elements [2 * pairs, rows, columns].
    """
    lanes = lanes_of(plane)
    size = p.rows * p.columns
    for start in range(0, p.columns, lanes):
        column, w, first, second, third, whole, mask = _columns(plane, p, start)
        for pair in range(pairs):
            f, g = _weights(weight, order), _weights(advance(weight, 9), order)
            f_shift, g_shift = broadcast(bias, 2 * pair), broadcast(bias, 2 * pair + 1)
            h = p.first_row
            row = advance(plane, h * p.width)
            a0, a1, a2 = _read(row, w, first, second, third, 0 <= h < p.height)
            row = advance(row, p.width)
            b0, b1, b2 = _read(row, w, first, second, third, 0 <= h + 1 < p.height)
            target = advance(y, 2 * pair * size + column)
            for i in range(p.rows):
                h = p.first_row + i + 2
                row = advance(row, p.width)
                c0, c1, c2 = _read(row, w, first, second, third, 0 <= h < p.height)
                _write(target, _filtered(a0, a1, a2, b0, b1, b2, c0, c1, c2, f, f_shift, floor), whole, mask)
                values = _filtered(a0, a1, a2, b0, b1, b2, c0, c1, c2, g, g_shift, floor)
                _write(advance(target, size), values, whole, mask)
                target = advance(target, p.columns)
                a0, a1, a2 = b0, b1, b2
                b0, b1, b2 = c0, c1, c2
            weight = advance(weight, 18)
        weight = advance(weight, -18 * pairs)


@jit
def _activate(code, sums, count, y):
    """y[:count] = act(sums[:count]); they may be one."""
    lanes = lanes_of(sums)
    i = 0
    while i + lanes <= count:
        store(y, i, activate(code, load(sums, i)))
        i += lanes
    if i < count:
        store_first(y, i, activate(code, load_first(sums, i, count - i)), count - i)


@jit
def _plane_parts(first, last, settings, x, w, order, bias, y, before, like):
    """Output planes [first, last).

    settings: int64, the fields of Plane. x, w, bias, y, before: addresses of elements [N, targets / share, H, W], of
    [targets, 9], of [targets], of [N, targets, rows, columns], and of as many for the sums before the activation, which
    are p.keeps_sums. order: int64 [9], a filter's taps by row and column. like: an array of the elements' type.
    """
    p = Plane(*to_fixed_tuple(settings, FIELDS))
    images, weight, shifts = pointer_at(x, like), pointer_at(w, like), pointer_at(bias, like)
    results, kept = pointer_at(y, like), pointer_at(before, like)
    size = p.rows * p.columns
    # Other activations than relu come after the sums, in a pass of their own: their code would crowd the registers.
    floor = splat_like(images, 0.0 if p.activation == 1 and not p.keeps_sums else -np.inf)
    unit = first
    while unit < last:
        target = unit % p.targets
        source = advance(images, unit // p.share * p.height * p.width)
        output = advance(results, unit * size)
        sums = advance(kept, unit * size) if p.keeps_sums else output
        filters, shift = advance(weight, target * 9), advance(shifts, target)
        # The filters of a source go in pairs; which two makes no difference to either.
        pairs = (min(last, (unit // p.share + 1) * p.share) - unit) // 2
        if pairs:
            _filter_pairs(source, p, filters, order, shift, pairs, floor, sums)
        else:
            _filter_plane(source, p, filters, order, shift, floor, sums)
        done = max(2 * pairs, 1)
        if p.keeps_sums or p.activation > 1:
            _activate(p.activation, sums, done * size, output)
        unit += done


_run_planes = threaded(_plane_parts)


def launch(job: Job) -> Launch:
    """A job that this kernel `serves`, prepared."""
    order = filter_order(job.plan)
    assert order is not None
    rows, columns = job.plan.grids[0].size
    planes = job.images * job.outputs
    first_row, first_column = min(job.plan.grids[0].shifts)
    code, keeps = ACTIVATION_CODES[job.activation], int(job.keeps_sums)
    p = Plane(planes, job.outputs, job.share, *job.plan.source, first_row, first_column, rows, columns, code, keeps)
    settings, like = np.array(p, np.int64), np.empty(0, job.dtype)

    def make(threads: int) -> Run:
        def run(x: int, weight: int, bias: int, y: int, before: int) -> bool:
            _run_planes(planes, threads, settings, x, weight, order, bias, y, before, like)
            return True

        return run

    return Launch(make, planes * rows * columns * 10, GRAIN)
