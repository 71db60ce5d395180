"""Depthwise convolution of (N, C, H, W) images, plane by plane: forward and both gradients.

The source plane is copied into a padded one whose columns are sorted by their remainder under the step, so that every
tap reads neighbouring values whatever the stride. Vectors run along a row; four rows share a tap's weight. Filters
three taps high on neighbouring source rows, the most common, also share what they read: six rows for four of sums.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.np.unsafe.ndarray import to_fixed_tuple

from kernels.activation.vectors import ACTIVATION_CODES
from kernels.conv2d.few_channels import write_rows
from kernels.conv2d.geometry import Gather, Grid
from kernels.conv2d.launch import Job, Launch, Run
from kernels.conv2d.moves import copy_run, fill_planes
from kernels.runtime.by_address import Run as AddressRun
from kernels.runtime.numba_cpu import jit, scratch, threaded, threads_for, zeros
from kernels.simd import (
    VECTOR_BYTES,
    advance,
    broadcast,
    fma,
    lanes_of,
    load,
    load_first,
    peek,
    pointer,
    pointer_at,
    poke,
    reduce_add,
    splat_like,
    store,
)

Array = np.ndarray[Any, Any]

#: Multiply-adds that are worth a thread of their own: about ten microseconds.
GRAIN = 100_000


class Planes(NamedTuple):
    """Sizes of a pass over planes (N, C, H, W), and of one grid of it."""

    images: int
    targets: int  # channels of the output
    sources: int  # channels of the source
    fan: int  # source planes that an output plane sums: 1, or the multiplier in the transposed pass
    share: int  # output planes that read one source plane: the multiplier, or 1 in the transposed pass
    height: int  # of the source
    width: int
    top: int  # margins of the padded source
    left: int
    padded_height: int
    pitch: int  # values between rows of the padded source, for one remainder
    step_row: int
    step_column: int
    rows: int  # of the grid
    columns: int
    out_height: int
    out_width: int
    place_row: int
    place_column: int
    space_row: int
    space_column: int
    filter_taps: int  # of the whole filter
    wide: int  # columns of taps, if these are three neighbouring source rows high and rows step by one; else 0
    activation: int
    sums_pitch: int  # whole vectors that hold a row of the grid
    keeps_sums: int  # the sums before the activation are wanted too


FIELDS = len(Planes._fields)


@jit
def sort_plane(plane, p, padded):
    """Copy a plane [H, W] into `padded` [step_column, padded_height, pitch], whose margins are zero already.

    Column w + left goes to place (w + left) // step_column of the rows of its remainder.
    """
    for h in range(p.height):
        row = (h + p.top) * p.pitch
        if p.step_column == 1:
            copy_run(advance(plane, h * p.width), advance(padded, row + p.left), p.width)
        else:
            quotient = p.left // p.step_column
            remainder = p.left - quotient * p.step_column
            for w in range(p.width):
                poke(padded, remainder * p.padded_height * p.pitch + row + quotient, peek(plane, h * p.width + w))
                remainder += 1
                if remainder == p.step_column:
                    remainder = 0
                    quotient += 1


@jit
def _sum_plane(padded, p, taps, index, weight, add, sums, pitch):
    """sums[row, column] (+)= sum over taps of weight[index[t]] * padded[taps[t] + pixel], for the whole grid.

    sums: [rows, pitch], pitch whole vectors; what is past a row's columns is unspecified.
    """
    lanes = lanes_of(padded)
    places = pointer(taps)
    numbers = pointer(index)
    down = p.step_row * p.pitch
    for column in range(0, p.columns, lanes):
        row = 0
        while row < p.rows:
            here = row * down + column
            out = row * pitch + column
            if row + 4 <= p.rows and p.wide:
                a = splat_like(padded, 0.0)
                b = a
                c = a
                d = a
                for s in range(p.wide):
                    at = peek(places, s) + here
                    w = broadcast(weight, peek(numbers, s))
                    second = load(padded, at + down)
                    third = load(padded, at + 2 * down)
                    fourth = load(padded, at + 3 * down)
                    a = fma(load(padded, at), w, a)
                    b = fma(second, w, b)
                    c = fma(third, w, c)
                    d = fma(fourth, w, d)
                    w = broadcast(weight, peek(numbers, p.wide + s))
                    fifth = load(padded, at + 4 * down)
                    a = fma(second, w, a)
                    b = fma(third, w, b)
                    c = fma(fourth, w, c)
                    d = fma(fifth, w, d)
                    w = broadcast(weight, peek(numbers, 2 * p.wide + s))
                    a = fma(third, w, a)
                    b = fma(fourth, w, b)
                    c = fma(fifth, w, c)
                    d = fma(load(padded, at + 5 * down), w, d)
                if add:
                    a = a + load(sums, out)
                    b = b + load(sums, out + pitch)
                    c = c + load(sums, out + 2 * pitch)
                    d = d + load(sums, out + 3 * pitch)
                store(sums, out, a)
                store(sums, out + pitch, b)
                store(sums, out + 2 * pitch, c)
                store(sums, out + 3 * pitch, d)
                row += 4
            elif row + 4 <= p.rows:
                a = splat_like(padded, 0.0)
                b = a
                c = a
                d = a
                for t in range(taps.size):
                    w = broadcast(weight, peek(numbers, t))
                    at = peek(places, t) + here
                    a = fma(load(padded, at), w, a)
                    b = fma(load(padded, at + down), w, b)
                    c = fma(load(padded, at + 2 * down), w, c)
                    d = fma(load(padded, at + 3 * down), w, d)
                if add:
                    a = a + load(sums, out)
                    b = b + load(sums, out + pitch)
                    c = c + load(sums, out + 2 * pitch)
                    d = d + load(sums, out + 3 * pitch)
                store(sums, out, a)
                store(sums, out + pitch, b)
                store(sums, out + 2 * pitch, c)
                store(sums, out + 3 * pitch, d)
                row += 4
            else:
                a = splat_like(padded, 0.0)
                for t in range(taps.size):
                    a = fma(load(padded, peek(places, t) + here), broadcast(weight, peek(numbers, t)), a)
                if add:
                    a = a + load(sums, out)
                store(sums, out, a)
                row += 1


@jit
def _correlate_parts(first, last, parts, settings, padded, taps, index, x, w, bias, y, before, sums):
    """Parts [first, last) of all output planes, for one grid.

    settings: int64, the fields of Planes. padded: zeroed elements [parts, padded plane]. taps: int64 places in a padded
    plane. index: int64 places in a filter. x, w, bias, y, before: addresses of elements [N, sources, H, W], of [sources
    or targets, filter_taps], one filter for each pair, of [targets], of [N, targets, OH, OW], and of as many for the
    sums before the activation, which are p.keeps_sums. sums: scratch elements [parts, rows * sums_pitch and a vector].
    """
    p = Planes(*to_fixed_tuple(settings, FIELDS))
    given, weight, shifts = pointer_at(x, sums), pointer_at(w, sums), pointer_at(bias, sums)
    results, kept = pointer_at(y, sums), pointer_at(before, sums)
    pitch = p.sums_pitch
    for part in range(first, last):
        source_plane = pointer(padded, padded.size // parts * part)
        totals = pointer(sums, sums.size // parts * part)
        begin = p.images * p.targets * part // parts
        for unit in range(begin, p.images * p.targets * (part + 1) // parts):
            image = unit // p.targets
            target = unit - image * p.targets
            for j in range(p.fan):
                source = target * p.fan + j if p.fan > 1 else target // p.share
                if p.share == 1 or target % p.share == 0 or unit == begin:
                    sort_plane(advance(given, (image * p.sources + source) * p.height * p.width), p, source_plane)
                filters = advance(weight, (target * p.fan + j) * p.filter_taps)
                _sum_plane(source_plane, p, taps, index, filters, j, totals, pitch)
            shift = broadcast(shifts, target)
            place = unit * p.out_height * p.out_width + p.place_row * p.out_width + p.place_column
            down, along = p.space_row * p.out_width, p.space_column
            free = advance(totals, p.rows * pitch)
            if p.keeps_sums:
                write_rows(totals, pitch, p.rows, p.columns, shift, 0, advance(kept, place), down, along, free)
            target_plane = advance(results, place)
            write_rows(totals, pitch, p.rows, p.columns, shift, p.activation, target_plane, down, along, free)


_correlate_planes = threaded(_correlate_parts)


def launch(job: Job) -> Launch:
    """A depthwise job on (N, C, H, W), prepared."""
    lanes = VECTOR_BYTES // job.dtype.itemsize
    sources, targets = job.plan.channels, job.outputs
    code, keeps = ACTIVATION_CODES[job.activation], int(job.keeps_sums)
    filter_taps = job.kernel[0] * job.kernel[1]
    grids = []
    for grid, index in zip(job.plan.grids, job.plan.tap_index, strict=True):
        sizes = (job.images, targets, sources, job.fan, job.share, filter_taps)
        p, places = _sizes(job.plan, grid, sizes, lanes, code, keeps)
        order = sorted(range(index.size), key=lambda t, grid=grid: grid.shifts[t])  # type: ignore[misc]
        work = job.images * targets * job.fan * p.rows * p.columns * (index.size + 1)
        grids.append((p, np.array(p, np.int64), places[order], index[order], work))
    planes, dtype = job.images * targets, job.dtype
    leaves_gaps, size, like = job.plan.leaves_gaps, job.plan.output.channel, np.empty(0, dtype)

    def make(_: int) -> Run:
        def run(x: int, weight: int, bias: int, y: int, before: int) -> bool:
            if leaves_gaps:
                fill_planes(job.images, targets, size, bias, y, like)
            for p, settings, taps, index, work in grids:
                parts = min(threads_for(work, GRAIN), planes)
                padded = zeros(parts * p.step_column * p.padded_height * p.pitch, dtype)
                sums = scratch(parts * (p.rows * p.sums_pitch + lanes), dtype)
                _correlate_planes(
                    parts, parts, parts, settings, padded, taps, index, x, weight, bias, y, before, sums
                )  # fmt: skip
            return True

        return run

    return Launch(make, 1, 1)


def _wide(grid: Grid) -> int:
    """Columns of taps, if these are three neighbouring source rows high and the grid's rows step by one; else 0."""
    rows = sorted({a for a, _ in grid.shifts})
    if grid.step[0] != 1 or len(rows) != 3 or rows[2] - rows[0] != 2:
        return 0
    return len(grid.shifts) // 3


def _sizes(
    plan: Gather, grid: Grid, sizes: tuple[int, ...], lanes: int, code: int, keeps_sums: int
) -> tuple[Planes, Array]:
    """Sizes of a grid's pass, and where its taps lie in the padded, sorted plane.

    sizes: images, targets, sources, fan, share, and taps of the whole filter. code: of the activation.
    """
    images, targets, sources, fan, share, filter_taps = sizes
    top, bottom, left, right = plan.margin
    height, width = plan.source
    step = grid.step[1]
    padded_height = height + top + bottom
    # A vector more than the values of a row: the last vector of a row of outputs may reach past its inputs. And whole
    # vectors, so that a third of the loads of a filter three wide are aligned.
    pitch = (-(-(width + left + right) // step) // lanes + 2) * lanes
    places = [
        (b + left) % step * padded_height * pitch + (a + top) * pitch + (b + left) // step for a, b in grid.shifts
    ]
    p = Planes(
        images,
        targets,
        sources,
        fan,
        share,
        height,
        width,
        top,
        left,
        padded_height,
        pitch,
        *grid.step,
        *grid.size,
        plan.output.channel // plan.output.row,
        plan.output.row,
        *grid.place,
        *grid.spacing,
        filter_taps,
        _wide(grid),
        code,
        -(-grid.size[1] // lanes) * lanes,
        keeps_sums,
    )
    return p, np.asarray(places, np.int64)


@jit
def _sum_three(plane, p, tap, gradient):
    """Sums over the pixels of a plane of gradient * source, for the three taps below each other from `tap`."""
    lanes = lanes_of(plane)
    zero = splat_like(plane, 0.0)
    first = second = third = zero
    for column in range(0, p.columns, lanes):
        left = p.columns - column
        a = b = c = zero
        above = higher = zero  # gradients of one and two rows before
        for row in range(p.rows + 2):
            # Both masked, and no row that is not there: a NaN must not meet a zero.
            x = load_first(plane, tap + row * p.pitch + column, left)
            if row >= 2:
                c = fma(higher, x, c)
            higher = above
            if 1 <= row <= p.rows:
                b = fma(above, x, b)
            if row < p.rows:
                above = load_first(gradient, row * p.columns + column, left)
                a = fma(above, x, a)
        first, second, third = first + a, second + b, third + c
    return reduce_add(first), reduce_add(second), reduce_add(third)


@jit
def _filter_parts(first, last, parts, settings, padded, taps, x, dy, dw):
    """Filters [first, last) of `parts` shares of them: dw[k, t] = sum over images and pixels of dy[k] * x at tap t.

    settings: int64, the fields of Planes. padded: zeroed elements [parts, padded plane]. taps: int64 places in a padded
    plane. x, dy, dw: addresses of elements [N, sources, H, W], [N, targets, rows, columns] and [targets, taps].
    """
    p = Planes(*to_fixed_tuple(settings, FIELDS))
    images, gradients, found = pointer_at(x, padded), pointer_at(dy, padded), pointer_at(dw, padded)
    lanes = lanes_of(padded)
    down = p.step_row * p.pitch
    for part in range(first, last):
        plane = pointer(padded, padded.size // parts * part)
        for target in range(p.targets * part // parts, p.targets * (part + 1) // parts):
            for t in range(taps.size):
                poke(found, target * taps.size + t, 0.0)
            for image in range(p.images):
                source = image * p.sources + target // p.share
                sort_plane(advance(images, source * p.height * p.width), p, plane)
                gradient = advance(gradients, (image * p.targets + target) * p.rows * p.columns)
                if p.wide:
                    for s in range(p.wide):
                        three = _sum_three(plane, p, taps[s], gradient)
                        for r in range(3):
                            at = target * taps.size + r * p.wide + s
                            poke(found, at, peek(found, at) + three[r])
                    continue
                for t in range(taps.size):
                    total = splat_like(plane, 0.0)
                    for row in range(p.rows):
                        here = taps[t] + row * down
                        sums = splat_like(plane, 0.0)
                        column = 0
                        while column + lanes <= p.columns:
                            sums = fma(load(gradient, row * p.columns + column), load(plane, here + column), sums)
                            column += lanes
                        if column < p.columns:
                            # Both masked: a NaN past the row's end must not meet a zero.
                            rest = p.columns - column
                            g = load_first(gradient, row * p.columns + column, rest)
                            sums = fma(g, load_first(plane, here + column, rest), sums)
                        total = total + sums
                    at = target * taps.size + t
                    poke(found, at, peek(found, at) + reduce_add(total))


_sum_filters = threaded(_filter_parts)


def filter_launch(plan: Gather, images: int, weight_shape: tuple[int, ...], dtype: np.dtype[Any]) -> AddressRun:
    """What computes dw of `weight_shape` (C_out, 1, kh, kw): ``run(x, dy, dw)`` with the addresses of contiguous arrays
    (N, C_in, H, W), (N, C_out, OH, OW) and dw."""
    targets, _, height, width = weight_shape
    grid = plan.grids[0]
    sizes = (images, targets, plan.channels, 1, targets // plan.channels, height * width)
    p, places = _sizes(plan, grid, sizes, VECTOR_BYTES // dtype.itemsize, 0, 0)
    settings, each = np.array(p, np.int64), p.step_column * p.padded_height * p.pitch
    work = images * targets * grid.size[0] * grid.size[1] * (height * width + 1)

    def run(x: int, dy: int, dw: int) -> None:
        parts = min(threads_for(work, GRAIN), targets)
        _sum_filters(parts, parts, parts, settings, zeros(parts * each, dtype), places, x, dy, dw)

    return run
