"""`pool_planes` of planes.py for targets without AVX-512, where masks cost instructions and masked stores many.

Windows are the same, and so is the order in which inputs join a window; only how vectors come and go differs. The last
vector of a row of windows ends where the row ends, and so overlaps the one before. Vectors whose inputs all lie in the
image are loaded without masks; those at the edges alone have them. A row of windows shorter than a vector is stored as
a whole one where the next row still comes, which then replaces what lies behind.

With a stride of 2 the even and odd lanes of two vectors come in the order of `block_evens`, one shuffle, and are sorted
once a window.
"""

from __future__ import annotations

import numpy as np

from kernels.pool2d.planes import MAXIMUM, ROOT_OF_SQUARES, join
from kernels.runtime.numba_cpu import jit, threaded
from kernels.simd import (
    any_lane,
    array_at,
    block_evens,
    block_odds,
    blocks_in_order,
    is_nan,
    lane_mask,
    lanes_of,
    load,
    load_first,
    load_masked,
    peek,
    pointer,
    select,
    splat_like,
    sqrt,
    store,
    store_first,
    zeros_like,
)


@jit(forceinline=True)
def load_inside(whole, x, start, column, width, nothing):
    """The inputs from x[start] on, which lies in `column`; outside the image `nothing`, where not all are inside."""
    if whole:
        return load(x, start)
    return load_masked(x, start, lane_mask(x, -column, width - column), nothing)


@jit(forceinline=True)
def _row(kind, keeps_nan, kernel_width, stride, whole, x, start, column, width, nothing, seen):
    """For each lane the window's part in one image row; x[start] lies in `column`, which may be outside the image.

    seen: zeros, and something else in lanes in which a NaN was seen, when they are watched for.
    """
    lanes = lanes_of(x)
    a = load_inside(whole, x, start, column, width, nothing)
    if stride == 1:
        b = load_inside(whole, x, start + 1, column + 1, width, nothing)
        if kernel_width == 3:
            c = load_inside(whole, x, start + 2, column + 2, width, nothing)
        else:
            c = b
        # The first and the last tap together see every column.
        strange = is_nan(a) | is_nan(c)
        if kind == ROOT_OF_SQUARES:
            a = a * a
            b = b * b
            c = c * c
    else:
        v = a
        w = load_inside(whole, x, start + lanes, column + lanes, width, nothing)
        strange = is_nan(v) | is_nan(w)
        if kind == ROOT_OF_SQUARES:
            v = v * v
            w = w * w
        a = block_evens(v, w)
        b = block_odds(v, w)
        if kernel_width == 3:
            v = load_inside(whole, x, start + 2, column + 2, width, nothing)
            w = load_inside(whole, x, start + 2 + lanes, column + 2 + lanes, width, nothing)
            # Only the upper half is new.
            strange = strange | is_nan(w)
            if kind == ROOT_OF_SQUARES:
                v = v * v
                w = w * w
            c = block_evens(v, w)
        else:
            c = b
    if kind == MAXIMUM and not keeps_nan:
        # A mask would have to be packed to live from one block of code to the next; a vector need not.
        seen = select(strange, 1.0, seen)
    total = join(kind, keeps_nan, b, a)
    if kernel_width == 3:
        total = join(kind, keeps_nan, c, total)
    return total, seen


@jit(forceinline=True)
def _row_or_nothing(kind, keeps_nan, kernel_width, stride, whole, x, row, column, height, width, nothing, seen):
    if row < 0 or row >= height:
        return nothing, seen
    start = row * width + column
    return _row(kind, keeps_nan, kernel_width, stride, whole, x, start, column, width, nothing, seen)


@jit(forceinline=True)
def _column(kind, keeps_nan, kernel_height, kernel_width, stride, whole, image, windows, first, means, seen):
    """A vector of windows, from `first` on, in output rows [top, bottom) of a strip; arguments as of `_strip`.

    whole: inputs are loaded without masks. end: the outputs of the plane up to that of the strip.
    """
    x, height, width, column, padding_height = image
    y, top, bottom, end, output_width = windows
    row_divisors, column_divisors, factor = means
    lanes = lanes_of(x)
    nothing = splat_like(x, -np.inf if kind == MAXIMUM else 0.0)
    form = (kind, keeps_nan, kernel_width, stride, whole, x)
    divisors = nothing
    if kind != MAXIMUM:
        divisors = load_first(column_divisors, first, output_width - first, 1.0)
    row = top * stride - padding_height
    # The rows that the first window shares with the one above it.
    r0 = nothing
    r1 = nothing
    if kernel_height > stride:
        r0, seen = _row_or_nothing(*form, row, column, height, width, nothing, seen)
    if kernel_height > stride + 1:
        r1, seen = _row_or_nothing(*form, row + 1, column, height, width, nothing, seen)
    for i in range(top, bottom):
        row = i * stride - padding_height
        if kernel_height == stride:
            r0, seen = _row_or_nothing(*form, row, column, height, width, nothing, seen)
        if kernel_height <= stride + 1:
            r1, seen = _row_or_nothing(*form, row + 1, column, height, width, nothing, seen)
        total = join(kind, keeps_nan, r1, r0)
        last = r1
        if kernel_height == 3:
            last, seen = _row_or_nothing(*form, row + 2, column, height, width, nothing, seen)
            total = join(kind, keeps_nan, last, total)
        if stride == 2 or kernel_height == 2:
            r0 = last
        else:
            r0 = r1
            r1 = last
        if stride == 2:
            total = blocks_in_order(total)
        if kind != MAXIMUM:
            total = total / (divisors * peek(row_divisors, i))
        if kind == ROOT_OF_SQUARES:
            total = sqrt(total * factor)
        place = i * output_width + first
        if place + lanes <= end:
            store(y, place, total)
        else:
            store_first(y, place, total, output_width - first)
    return seen


@jit(forceinline=True)
def rows_inside(
    kernel_height,
    kernel_width,
    stride,
    x,
    height,
    width,
    column,
    padding_height,
    padding_width,
    first,
    top,
    bottom,
    output_width,
):
    """Of output rows [top, bottom) the end of those that a vector of windows, from `first` on, loads without masks."""
    lanes = lanes_of(x)
    # Inputs that the vector loads of a row.
    reach = lanes + kernel_width - 1 if stride == 1 else 2 * lanes + (2 if kernel_width == 3 else 0)
    if column < 0 or (min(first + lanes, output_width) - 1) * stride - padding_width + kernel_width > width:
        return top
    # No window reaches out of a row. What is loaded behind them may be of the next row, but in the plane.
    last_row = height - 1
    while last_row * width + column + reach > height * width:
        last_row -= 1
    return max(top, min((last_row + 1 - kernel_height + padding_height + stride) // stride, bottom))


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
    seen = zeros_like(x)
    end = bottom * output_width
    means = (row_divisors, column_divisors, factor)
    sizes = (kernel_height, kernel_width, stride)
    for start in range(0, output_width, lanes):
        first = max(min(start, output_width - lanes), 0)
        column = first * stride - padding_width
        image = (x, height, width, column, padding_height)
        middle = rows_inside(*sizes, *image, padding_width, first, top, bottom, output_width)
        if middle > top:
            windows = (y, top, middle, end, output_width)
            seen = _column(kind, keeps_nan, *sizes, True, image, windows, first, means, seen)
        if middle < bottom:
            windows = (y, middle, bottom, end, output_width)
            seen = _column(kind, keeps_nan, *sizes, False, image, windows, first, means, seen)
    return any_lane(seen != 0.0)


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
    """As `planes.pool_planes`."""
    height, width, output_height, output_width = sizes[0], sizes[1], sizes[2], sizes[3]
    x, y = array_at(like, x, 1), array_at(like, y, 1)
    # Pointers: to count who uses an array costs as much as a row of windows.
    divisors = (pointer(row_divisors), pointer(column_divisors))
    rows = (output_height + strips - 1) // strips
    for unit in range(first, last):
        # A division takes as long as a row of windows.
        plane = unit // strips if strips > 1 else unit
        top = (unit - plane * strips) * rows
        bottom = min(top + rows, output_height)
        image = pointer(x, plane * height * width)
        output = pointer(y, plane * output_height * output_width)
        form = (len(kernel_height), len(kernel_width), len(stride), image, height, width, output, top, bottom)
        rest = (output_width, padding_height, padding_width, *divisors, factor)
        nan = _strip(len(kind), False, *form, *rest)
        if len(kind) == MAXIMUM and nan:
            _strip(len(kind), True, *form, *rest)


pool_planes = threaded(_pool_planes)
