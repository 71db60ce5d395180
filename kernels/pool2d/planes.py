"""Kernels of max_pool2d and avg_pool2d on contiguous planes (N, C, H, W): vectors run along the width.

`pool_planes` serves the shapes that networks use, at memory speed. Its kernel size, stride and kind are known to the
compiler: they arrive as tuples whose length is the number, so that they are part of the type. Each input row is reduced
along the width once and kept while windows below still need it; a stride of 2 takes the even and odd lanes of two
neighbouring vectors. A plain vector maximum loses NaN, so the maximum of a strip of rows is first taken with it while
the inputs are watched for NaN, and only a strip that holds one is done again with a maximum that keeps them.

`argmax_planes` also finds where the maxima are, and takes any kernel, padding and dilation, and strides up to 2 along
the width.

Work is divided into strips: `strips` groups of output rows in each plane, which fit the first-level cache.
"""

from __future__ import annotations

import numpy as np

from kernels.runtime.numba_cpu import jit, threaded
from kernels.simd import (
    any_lane,
    array_at,
    evens,
    iota,
    is_nan,
    lane_mask,
    lanes_of,
    load_first,
    load_masked,
    maximum,
    maximum_nan,
    minimum,
    odds,
    pointer,
    select,
    splat_integer,
    splat_like,
    sqrt,
    store_int64_masked,
    store_masked,
)

MAXIMUM, MEAN, ROOT_OF_SQUARES = 1, 2, 3
"""What becomes of a window: its maximum, its mean, or (Lp with p = 2) the root of its sum of squares."""


@jit(forceinline=True)
def join(kind, keeps_nan, new, old):
    """One more input (or row) joins a window; of equal maxima the old one stays."""
    if kind != MAXIMUM:
        return old + new
    if keeps_nan:
        return maximum_nan(new, old)
    return maximum(new, old)


@jit(forceinline=True)
def _row(kind, keeps_nan, kernel_width, stride, x, start, column, width, nothing, nan):
    """For each lane the window's part in one image row; x[start] lies in `column`, which may be outside the image.

    `nan` gathers the lanes in which a NaN was seen, when they are watched for.
    """
    lanes = lanes_of(x)
    total = nothing
    for tap in range(0, kernel_width, stride):
        left = column + tap
        a = load_masked(x, start + tap, lane_mask(x, -left, width - left), nothing)
        if stride == 1:
            # The first and the last tap together see every column.
            if kind == MAXIMUM and not keeps_nan and (tap == 0 or tap == kernel_width - 1):
                nan = nan | is_nan(a)
            if kind == ROOT_OF_SQUARES:
                a = a * a
            total = join(kind, keeps_nan, a, total)
        else:
            b = load_masked(x, start + tap + lanes, lane_mask(x, -left - lanes, width - left - lanes), nothing)
            if kind == MAXIMUM and not keeps_nan:
                # Of later taps only the upper half is new.
                nan = nan | (is_nan(a) | is_nan(b)) if tap == 0 else nan | is_nan(b)
            if kind == ROOT_OF_SQUARES:
                a = a * a
                b = b * b
            total = join(kind, keeps_nan, evens(a, b), total)
            if tap + 1 < kernel_width:
                total = join(kind, keeps_nan, odds(a, b), total)
    return total, nan


@jit(forceinline=True)
def _row_or_nothing(kind, keeps_nan, kernel_width, stride, x, row, column, height, width, nothing, nan):
    if row < 0 or row >= height:
        return nothing, nan
    return _row(kind, keeps_nan, kernel_width, stride, x, row * width + column, column, width, nothing, nan)


@jit(forceinline=True)
def _strip(
    kind,
    keeps_nan,
    kernel_height,
    kernel_width,
    stride,
    x,
    height,
    width,
    y,
    top,
    bottom,
    output_width,
    padding_height,
    padding_width,
    row_divisors,
    column_divisors,
    factor,
):
    """Output rows [top, bottom) of one plane; x and y point to its beginning. True when an input was NaN."""
    lanes = lanes_of(x)
    nothing = splat_like(x, -np.inf if kind == MAXIMUM else 0.0)
    nan = lane_mask(x, 0, 0)
    for first in range(0, output_width, lanes):
        column = first * stride - padding_width
        inside = lane_mask(x, 0, output_width - first)
        row = top * stride - padding_height
        # The rows that the first window shares with the one above it.
        r0 = nothing
        r1 = nothing
        if kernel_height > stride:
            r0, nan = _row_or_nothing(
                kind, keeps_nan, kernel_width, stride, x, row, column, height, width, nothing, nan
            )
        if kernel_height > stride + 1:
            r1, nan = _row_or_nothing(
                kind, keeps_nan, kernel_width, stride, x, row + 1, column, height, width, nothing, nan
            )
        for i in range(top, bottom):
            row = i * stride - padding_height
            if kernel_height == stride:
                r0, nan = _row_or_nothing(
                    kind, keeps_nan, kernel_width, stride, x, row, column, height, width, nothing, nan
                )
            if kernel_height <= stride + 1:
                r1, nan = _row_or_nothing(
                    kind, keeps_nan, kernel_width, stride, x, row + 1, column, height, width, nothing, nan
                )
            total = join(kind, keeps_nan, r1, r0)
            last = r1
            if kernel_height == 3:
                last, nan = _row_or_nothing(
                    kind, keeps_nan, kernel_width, stride, x, row + 2, column, height, width, nothing, nan
                )
                total = join(kind, keeps_nan, last, total)
            if stride == 2 or kernel_height == 2:
                r0 = last
            else:
                r0 = r1
                r1 = last
            if kind != MAXIMUM:
                divisor = load_first(column_divisors, first, output_width - first, 1.0) * row_divisors[i]
                total = total / divisor
            if kind == ROOT_OF_SQUARES:
                total = sqrt(total * factor)
            store_masked(y, i * output_width + first, total, inside)
    return any_lane(nan)


@jit
def _pool_planes(
    first,
    last,
    kind,
    kernel_height,
    kernel_width,
    stride,
    sizes,
    like,
    x,
    y,
    strips,
    padding_height,
    padding_width,
    row_divisors,
    column_divisors,
    factor,
):
    """Strips [first, last) of all planes; x (N, C, H, W), y (N, C, H_out, W_out). See above for the tuples.

    sizes: int64, of passes_cpu.sizes_of; like: any array of the element type; x, y: addresses.
    row_divisors [H_out], column_divisors [W_out]: their product divides a sum (not read for maxima).
    factor: multiplies the mean of squares under the root.
    """
    height, width, output_height, output_width = sizes[0], sizes[1], sizes[2], sizes[3]
    x, y = array_at(like, x, 1), array_at(like, y, 1)
    divisors = pointer(column_divisors)
    rows = (output_height + strips - 1) // strips
    for unit in range(first, last):
        plane = unit // strips
        top = (unit - plane * strips) * rows
        bottom = min(top + rows, output_height)
        image = pointer(x, plane * height * width)
        output = pointer(y, plane * output_height * output_width)
        nan = _strip(
            len(kind),
            False,
            len(kernel_height),
            len(kernel_width),
            len(stride),
            image,
            height,
            width,
            output,
            top,
            bottom,
            output_width,
            padding_height,
            padding_width,
            row_divisors,
            divisors,
            factor,
        )
        if len(kind) == MAXIMUM and nan:
            _strip(
                len(kind),
                True,
                len(kernel_height),
                len(kernel_width),
                len(stride),
                image,
                height,
                width,
                output,
                top,
                bottom,
                output_width,
                padding_height,
                padding_width,
                row_divisors,
                divisors,
                factor,
            )


pool_planes = threaded(_pool_planes)


@jit(forceinline=True)
def choose(v, offset, best, at):
    """An input joins the search: it wins when it is larger or NaN."""
    wins = (v > best) | is_nan(v)
    return select(wins, v, best), select(wins, splat_integer(v, offset), at)


@jit(forceinline=True)
def _argmax_strip(
    kernel_height,
    kernel_width,
    stride_height,
    stride_width,
    padding_height,
    padding_width,
    dilation_height,
    dilation_width,
    x,
    height,
    width,
    y,
    indices,
    wants_indices,
    top,
    bottom,
    output_width,
):
    """Output rows [top, bottom) of one plane, and the indices of their maxima where they are wanted."""
    lanes = lanes_of(x)
    lowest = splat_like(x, -np.inf)
    for first in range(0, output_width, lanes):
        column = first * stride_width - padding_width
        inside = lane_mask(x, 0, output_width - first)
        columns = iota(x, column, stride_width)
        # Where a window begins inside the image, counted from its first tap: what a window of -inf alone answers.
        begin = splat_integer(x, 0)
        for tap in range(kernel_width):
            shift = tap * dilation_width
            if column + shift >= 0:
                break
            begin = select(columns + shift < 0, splat_integer(x, shift + dilation_width), begin)
        # A dilated window may have no tap inside; its index is a valid one all the same.
        begin = minimum(begin, splat_integer(x, width - 1) - columns)
        for i in range(top, bottom):
            row = i * stride_height - padding_height
            best = lowest
            skipped = 0
            while row + skipped < 0:
                skipped += dilation_height
            at = begin + (min(row + skipped, height - 1) - row) * width
            for vertical in range(kernel_height):
                down = vertical * dilation_height
                if row + down >= 0 and row + down < height:
                    start = (row + down) * width + column
                    pairs = stride_width == 2 and dilation_width == 1
                    for tap in range(0, kernel_width, 2 if pairs else 1):
                        shift = tap * dilation_width
                        left = column + shift
                        v = load_masked(x, start + shift, lane_mask(x, -left, width - left), lowest)
                        if stride_width == 2:
                            mask = lane_mask(x, -left - lanes, width - left - lanes)
                            w = load_masked(x, start + shift + lanes, mask, lowest)
                            best, at = choose(evens(v, w), down * width + shift, best, at)
                            if pairs and tap + 1 < kernel_width:
                                best, at = choose(odds(v, w), down * width + shift + 1, best, at)
                        else:
                            best, at = choose(v, down * width + shift, best, at)
            store_masked(y, i * output_width + first, best, inside)
            if wants_indices:
                found = at + iota(x, row * width + column, stride_width)
                store_int64_masked(indices, i * output_width + first, found, inside)


@jit
def _argmax_planes_known(
    first, last, kernel_height, kernel_width, stride, sizes, like, x, y, indices, strips, padding_height, padding_width
):
    """`argmax_planes` with indices for the shapes that networks use; see above for the tuples."""
    indices = array_at(sizes, indices, 1)
    height, width, output_height, output_width = sizes[0], sizes[1], sizes[2], sizes[3]
    x, y = array_at(like, x, 1), array_at(like, y, 1)
    rows = (output_height + strips - 1) // strips
    for unit in range(first, last):
        plane = unit // strips
        top = (unit - plane * strips) * rows
        _argmax_strip(
            len(kernel_height),
            len(kernel_width),
            len(stride),
            len(stride),
            padding_height,
            padding_width,
            1,
            1,
            pointer(x, plane * height * width),
            height,
            width,
            pointer(y, plane * output_height * output_width),
            pointer(indices, plane * output_height * output_width),
            True,
            top,
            min(top + rows, output_height),
            output_width,
        )


@jit
def _argmax_planes(first, last, sizes, like, x, y, indices, strips):
    """Strips [first, last) of all planes: x (N, C, H, W) -> y, indices (N, C, H_out, W_out).

    sizes: int64, of passes_cpu.sizes_of, then kernel, stride, padding and dilation. x, y, indices: addresses; indices:
    int64, 0 where they are not wanted.
    """
    wants_indices = indices != 0
    indices = array_at(sizes, indices, 1)
    height, width, output_height, output_width = sizes[0], sizes[1], sizes[2], sizes[3]
    x, y = array_at(like, x, 1), array_at(like, y, 1)
    rows = (output_height + strips - 1) // strips
    for unit in range(first, last):
        plane = unit // strips
        top = (unit - plane * strips) * rows
        _argmax_strip(
            sizes[5],
            sizes[6],
            sizes[7],
            sizes[8],
            sizes[9],
            sizes[10],
            sizes[11],
            sizes[12],
            pointer(x, plane * height * width),
            height,
            width,
            pointer(y, plane * output_height * output_width),
            pointer(indices, plane * output_height * output_width if wants_indices else 0),
            wants_indices,
            top,
            min(top + rows, output_height),
            output_width,
        )


argmax_planes_known = threaded(_argmax_planes_known)
argmax_planes = threaded(_argmax_planes)
