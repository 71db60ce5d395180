"""Pooling kernels for windows of any shape, from tables of where each one starts and ends along each dimension.

A table is int64 [2, outputs]: row 0 the first input of each window inside the image, row 1 the end (one past the last).
They serve what the kernels of planes.py do not: adaptive windows, wide strides, large windows of a mean, and with
vectors of channels every window of a channels-last image.

In all of them `sizes` is int64, of passes_cpu.sizes_of, `like` any array of the element type, and images and indices
are addresses.
"""

from __future__ import annotations

import numpy as np

from kernels.runtime.numba_cpu import jit, threaded
from kernels.simd import (
    advance,
    any_lane,
    array_at,
    is_nan,
    lane_mask,
    lanes_of,
    load,
    load_first,
    load_masked,
    maximum,
    maximum_nan,
    peek,
    pointer,
    poke,
    reduce_add,
    select,
    splat_integer,
    splat_like,
    store,
    store_first,
    store_int64_first,
    store_int64_masked,
    store_masked,
    zeros_like,
)

#: Additions in a row of one lane of a whole plane's mean.
RUN = 16


@jit
def _sum_planes(first, last, sizes, like, x, rows, columns, row_divisors, column_divisors, y):
    """Means of planes [first, last): x (N, C, H, W) -> y (N, C, H_out, W_out); divisors [H_out] and [W_out]."""
    height, width, output_height, output_width = sizes[0], sizes[1], sizes[2], sizes[3]
    x, y = array_at(like, x, 1), array_at(like, y, 1)
    lanes = lanes_of(x)
    for plane in range(first, last):
        image = pointer(x, plane * height * width)
        output = pointer(y, plane * output_height * output_width)
        for i in range(output_height):
            for j in range(output_width):
                start = columns[0, j]
                length = columns[1, j] - start
                count = rows[1, i] - rows[0, i]
                if length == width:
                    # Whole rows lie one behind the other.
                    length *= count
                    count = 1
                total = zeros_like(x)
                for row in range(rows[0, i], rows[0, i] + count):
                    # Every row into a sum of its own: shorter sums, smaller errors.
                    part = zeros_like(x)
                    for k in range(0, length, lanes):
                        part = part + load_first(image, row * width + start + k, length - k)
                    total = total + part
                poke(output, i * output_width + j, reduce_add(total) / (row_divisors[i] * column_divisors[j]))


@jit
def _sum_narrow_planes(first, last, sizes, like, x, rows, columns, row_divisors, column_divisors, y, lines):
    """As `_sum_planes`, for windows narrower than a vector. lines: scratch [planes, W]."""
    height, width, output_height, output_width = sizes[0], sizes[1], sizes[2], sizes[3]
    x, y = array_at(like, x, 1), array_at(like, y, 1)
    lanes = lanes_of(x)
    for plane in range(first, last):
        image = pointer(x, plane * height * width)
        line = pointer(lines, plane * width)
        output = pointer(y, plane * output_height * output_width)
        for i in range(output_height):
            # All windows of an output row have the same rows: these come first, vectors along the width.
            for k in range(0, width, lanes):
                total = zeros_like(x)
                for row in range(rows[0, i], rows[1, i]):
                    total = total + load_first(image, row * width + k, width - k)
                store_first(line, k, total, width - k)
            for j in range(output_width):
                whole = x.dtype.type(0)
                for k in range(columns[0, j], columns[1, j]):
                    whole += peek(line, k)
                poke(output, i * output_width + j, whole / (row_divisors[i] * column_divisors[j]))


@jit
def _mean_planes(first, last, size, like, x, y):
    """Means of whole planes [first, last): x (planes, size) -> y (planes,), addresses."""
    x, y = array_at(like, x, 1), array_at(like, y, 1)
    lanes = lanes_of(x)
    step = 4 * lanes
    for plane in range(first, last):
        image = pointer(x, plane * size)
        total = zeros_like(x)
        i = 0
        while i + step <= size:
            # Every run into sums of its own: shorter sums, smaller errors.
            end = min(i + RUN * step, size)
            a = b = c = d = zeros_like(x)
            while i + step <= end:
                a = a + load(image, i)
                b = b + load(image, i + lanes)
                c = c + load(image, i + 2 * lanes)
                d = d + load(image, i + 3 * lanes)
                i += step
            total = total + ((a + b) + (c + d))
        while i + lanes <= size:
            total = total + load(image, i)
            i += lanes
        if i < size:
            total = total + load_masked(image, i, lane_mask(x, 0, size - i), 0.0)
        y[plane] = reduce_add(total) / size


@jit
def _max_planes(first, last, sizes, like, x, rows, columns, y, lines):
    """Maxima of planes [first, last): x (N, C, H, W) -> y (N, C, H_out, W_out).

    Behind the sizes stand the distances between the inputs of a window, vertical and horizontal. lines: scratch
    [planes, W].
    """
    height, width, output_height, output_width = sizes[0], sizes[1], sizes[2], sizes[3]
    x, y = array_at(like, x, 1), array_at(like, y, 1)
    lanes = lanes_of(x)
    steps = (sizes[5], sizes[6])
    for plane in range(first, last):
        image = pointer(x, plane * height * width)
        line = pointer(lines, plane * width)
        output = pointer(y, plane * output_height * output_width)
        for i in range(output_height):
            # All windows of an output row have the same rows: these come first, vectors along the width.
            for k in range(0, width, lanes):
                best = splat_like(x, -np.inf)
                for row in range(rows[0, i], rows[1, i], steps[0]):
                    best = maximum_nan(load_first(image, row * width + k, width - k), best)
                store_first(line, k, best, width - k)
            for j in range(output_width):
                highest = x.dtype.type(-np.inf)
                for k in range(columns[0, j], columns[1, j], steps[1]):
                    v = peek(line, k)
                    highest = v if v > highest or v != v else highest
                poke(output, i * output_width + j, highest)


@jit
def _argmax_planes(first, last, sizes, like, x, rows, columns, y, indices, lines, places):
    """As `_max_planes`, with the index of each maximum in its H * W plane. places: int64 scratch [planes, W]."""
    height, width, output_height, output_width = sizes[0], sizes[1], sizes[2], sizes[3]
    x, y = array_at(like, x, 1), array_at(like, y, 1)
    lanes = lanes_of(x)
    indices = array_at(sizes, indices, 1)
    steps = (sizes[5], sizes[6])
    for plane in range(first, last):
        image = pointer(x, plane * height * width)
        line, places_of_line = pointer(lines, plane * width), pointer(places, plane * width)
        base = plane * output_height * output_width
        output, positions = pointer(y, base), pointer(indices, base)
        for i in range(output_height):
            for k in range(0, width, lanes):
                best = splat_like(x, -np.inf)
                at = splat_integer(x, rows[0, i])
                for row in range(rows[0, i], rows[1, i], steps[0]):
                    v = load_first(image, row * width + k, width - k)
                    wins = (v > best) | is_nan(v)
                    best = select(wins, v, best)
                    at = select(wins, splat_integer(x, row), at)
                store_first(line, k, best, width - k)
                store_int64_first(places_of_line, k, at, width - k)
            for j in range(output_width):
                # The first of equal maxima in the order of the rows, the last of several NaN.
                highest, row, column = x.dtype.type(-np.inf), rows[0, i], columns[0, j]
                for k in range(columns[0, j], columns[1, j], steps[1]):
                    v, its_row = peek(line, k), peek(places_of_line, k)
                    if v != v:
                        wins = highest == highest or its_row >= row
                    else:
                        wins = v > highest or (v == highest and its_row < row)
                    highest = v if wins else highest
                    row = its_row if wins else row
                    column = k if wins else column
                poke(output, i * output_width + j, highest)
                poke(positions, i * output_width + j, row * width + column)


@jit
def _sum_channels(first, last, sizes, like, x, rows, columns, row_divisors, column_divisors, y):
    """Means of output rows [first, last) of all images: x (N, H, W, C) -> y (N, H_out, W_out, C)."""
    height, width, output_height, output_width, channels = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    x, y = array_at(like, x, 1), array_at(like, y, 1)
    lanes = lanes_of(x)
    for unit in range(first, last):
        image = unit // output_height
        i = unit - image * output_height
        for j in range(output_width):
            divisor = row_divisors[i] * column_divisors[j]
            output = pointer(y, (unit * output_width + j) * channels)
            for c in range(0, channels, lanes):
                inside = lane_mask(x, 0, channels - c)
                total = zeros_like(x)
                for row in range(rows[0, i], rows[1, i]):
                    line = pointer(x, (image * height + row) * width * channels + c)
                    part = zeros_like(x)
                    for column in range(columns[0, j], columns[1, j]):
                        part = part + load_masked(line, column * channels, inside, 0.0)
                    total = total + part
                store_masked(output, c, total / divisor, inside)


@jit(forceinline=True)
def _window_channels(keeps_nan, source, rows, row_step, columns, column_step, like, inside, whole, nan):
    """Maxima of a window of so many rows and columns, the distances in elements, and the lanes in which a NaN was seen.

    Without `keeps_nan` a plain maximum, which loses NaN. inside: of the lanes, where not all of them are `whole`.
    """
    best = splat_like(like, -np.inf)
    for _ in range(rows):
        at = source
        for _ in range(columns):
            v = load(at, 0) if whole else load_masked(at, 0, inside, -np.inf)
            if keeps_nan:
                best = maximum_nan(v, best)
            else:
                nan = nan | is_nan(v)
                best = maximum(v, best)
            at = advance(at, column_step)
        source = advance(source, row_step)
    return best, nan


@jit(forceinline=True)
def _row_channels(keeps_nan, image, width, channels, first_row, row_count, columns, steps, output, output_width):
    """Maxima of a row of windows, of `row_count` rows from `first_row` on; whether one of the inputs was NaN."""
    lanes = lanes_of(image)
    nan = lane_mask(image, 0, 0)
    every = lane_mask(image, 0, lanes)
    row_step, column_step = steps[0] * width * channels, steps[1] * channels
    for j in range(output_width):
        start = columns[0, j]
        column_count = (columns[1, j] - start + steps[1] - 1) // steps[1]
        source = advance(image, (first_row * width + start) * channels)
        target = advance(output, j * channels)
        c = 0
        while c + lanes <= channels:
            best, nan = _window_channels(
                keeps_nan, advance(source, c), row_count, row_step, column_count, column_step, image, every, True, nan
            )
            store(target, c, best)
            c += lanes
        if c < channels:
            inside = lane_mask(image, 0, channels - c)
            best, nan = _window_channels(
                keeps_nan, advance(source, c), row_count, row_step, column_count, column_step, image, inside, False, nan
            )
            store_masked(target, c, best, inside)
    return any_lane(nan)


@jit
def _max_channels(first, last, sizes, like, x, rows, columns, y):
    """Maxima of output rows [first, last) of all images: x (N, H, W, C) -> y (N, H_out, W_out, C)."""
    height, width, output_height, output_width, channels = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    x, y = array_at(like, x, 1), array_at(like, y, 1)
    steps = (sizes[5], sizes[6])
    for unit in range(first, last):
        image = unit // output_height
        i = unit - image * output_height
        source, output = pointer(x, image * height * width * channels), pointer(y, unit * output_width * channels)
        count = (rows[1, i] - rows[0, i] + steps[0] - 1) // steps[0]
        form = (source, width, channels, rows[0, i], count, columns, steps, output, output_width)
        if _row_channels(False, *form):
            _row_channels(True, *form)


@jit
def _argmax_channels(first, last, sizes, like, x, rows, columns, y, indices):
    """As `_max_channels`, with the index of each maximum in its H * W plane."""
    height, width, output_height, output_width, channels = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    x, y = array_at(like, x, 1), array_at(like, y, 1)
    lanes = lanes_of(x)
    indices = array_at(sizes, indices, 1)
    steps = (sizes[5], sizes[6])
    for unit in range(first, last):
        image = unit // output_height
        i = unit - image * output_height
        for j in range(output_width):
            base = (unit * output_width + j) * channels
            output = pointer(y, base)
            positions = pointer(indices, base)
            for c in range(0, channels, lanes):
                inside = lane_mask(x, 0, channels - c)
                best = splat_like(x, -np.inf)
                at = splat_integer(x, rows[0, i] * width + columns[0, j])
                for row in range(rows[0, i], rows[1, i], steps[0]):
                    line = pointer(x, (image * height + row) * width * channels + c)
                    for column in range(columns[0, j], columns[1, j], steps[1]):
                        v = load_masked(line, column * channels, inside, -np.inf)
                        wins = (v > best) | is_nan(v)
                        best = select(wins, v, best)
                        at = select(wins, splat_integer(x, row * width + column), at)
                store_masked(output, c, best, inside)
                store_int64_masked(positions, c, at, inside)


sum_planes = threaded(_sum_planes)
sum_narrow_planes = threaded(_sum_narrow_planes)
mean_planes = threaded(_mean_planes)
max_planes = threaded(_max_planes)
argmax_planes = threaded(_argmax_planes)
sum_channels = threaded(_sum_channels)
max_channels = threaded(_max_channels)
argmax_channels = threaded(_argmax_channels)
