"""`argmax_planes_known` of planes.py for targets without AVX-512: vectors come and go as in whole_planes.py."""

from __future__ import annotations

import numpy as np

from kernels.pool2d.planes import choose
from kernels.pool2d.whole_planes import load_inside, rows_inside
from kernels.runtime.numba_cpu import jit, threaded
from kernels.simd import (
    array_at,
    block_evens,
    block_odds,
    blocks_in_order,
    iota,
    lanes_of,
    minimum,
    pointer,
    select,
    splat_integer,
    splat_like,
    store,
    store_first,
    store_int64_first,
)


@jit(forceinline=True)
def _tap_row(kernel_width, stride, whole, x, start, column, width, down, lowest, best, at):
    """A row of inputs, `down` behind the window's first in the plane, joins the search; x[start] lies in `column`."""
    lanes = lanes_of(x)
    for tap in range(0, kernel_width, stride):
        v = load_inside(whole, x, start + tap, column + tap, width, lowest)
        if stride == 1:
            best, at = choose(v, down + tap, best, at)
        else:
            w = load_inside(whole, x, start + tap + lanes, column + tap + lanes, width, lowest)
            best, at = choose(block_evens(v, w), down + tap, best, at)
            if tap + 1 < kernel_width:
                best, at = choose(block_odds(v, w), down + tap + 1, best, at)
    return best, at


@jit(forceinline=True)
def _column(kernel_height, kernel_width, stride, whole, image, windows, first):
    """A vector of windows, from `first` on, in output rows [top, bottom); see whole_planes.py."""
    x, height, width, column, padding_height = image
    y, indices, top, bottom, end, output_width = windows
    lanes = lanes_of(x)
    lowest = splat_like(x, -np.inf)
    columns = iota(x, column, 1)
    if stride == 2:
        columns = block_evens(columns, iota(x, column + lanes, 1))
    # Where a window begins inside the image, counted from its first tap: what a window of -inf alone answers.
    begin = splat_integer(x, 0)
    for tap in range(kernel_width):
        if column + tap >= 0:
            break
        begin = select(columns + tap < 0, splat_integer(x, tap + 1), begin)
    begin = minimum(begin, splat_integer(x, width - 1) - columns)
    for i in range(top, bottom):
        row = i * stride - padding_height
        best = lowest
        at = begin + (min(max(row, 0), height - 1) - row) * width
        for vertical in range(kernel_height):
            if row + vertical >= 0 and row + vertical < height:
                start = (row + vertical) * width + column
                down = vertical * width
                best, at = _tap_row(kernel_width, stride, whole, x, start, column, width, down, lowest, best, at)
        found = at + columns + row * width
        if stride == 2:
            best = blocks_in_order(best)
            found = blocks_in_order(found)
        place = i * output_width + first
        if place + lanes <= end:
            store(y, place, best)
            store_int64_first(indices, place, found, lanes)
        else:
            store_first(y, place, best, output_width - first)
            store_int64_first(indices, place, found, output_width - first)


@jit
def _argmax_planes_known(
    first, last, kernel_height, kernel_width, stride, sizes, like, x, y, indices, strips, padding_height, padding_width
):
    """As `planes.argmax_planes_known`."""
    indices = array_at(sizes, indices, 1)
    height, width, output_height, output_width = sizes[0], sizes[1], sizes[2], sizes[3]
    x, y = array_at(like, x, 1), array_at(like, y, 1)
    lanes = lanes_of(x)
    kernel = (len(kernel_height), len(kernel_width), len(stride))
    rows = (output_height + strips - 1) // strips
    for unit in range(first, last):
        plane = unit // strips if strips > 1 else unit
        top = (unit - plane * strips) * rows
        bottom = min(top + rows, output_height)
        image, output = pointer(x, plane * height * width), plane * output_height * output_width
        targets = (pointer(y, output), pointer(indices, output))
        end = bottom * output_width
        for start in range(0, output_width, lanes):
            begin = max(min(start, output_width - lanes), 0)
            column = begin * len(stride) - padding_width
            given = (image, height, width, column, padding_height)
            middle = rows_inside(*kernel, *given, padding_width, begin, top, bottom, output_width)
            if middle > top:
                _column(*kernel, True, given, (*targets, top, middle, end, output_width), begin)
            if middle < bottom:
                _column(*kernel, False, given, (*targets, middle, bottom, end, output_width), begin)


argmax_planes_known = threaded(_argmax_planes_known)
