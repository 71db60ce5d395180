"""The three transforms of Winograd's F(2x2, 3x3): of filters, of source tiles, and back to output pixels.

`p` is a `Tiles` of winograd.py, where the matrices and the memory layouts are explained.
"""

from __future__ import annotations

from kernels.runtime.numba_cpu import jit, threaded
from kernels.simd import (
    advance,
    any_lane,
    evens,
    is_nan,
    lane_mask,
    lanes_of,
    load,
    load_first,
    load_masked,
    odds,
    pointer,
    store,
    zeros_like,
)


@jit
def _filter_parts(first, last, inputs, step, order, panels, filters):
    """Channels [first, last) of all blocks' filters: G g G'.

    order: int64 [9], a filter's taps by row and column. panels: elements [blocks, inputs, 9, tile width]. filters:
    elements [blocks, 16, step], a step holding [inputs, tile width].
    """
    lanes = lanes_of(panels)
    width = 2 * lanes
    for index in range(first, last):
        block = index // inputs
        c = index - block * inputs
        for j in range(0, width, lanes):
            g = pointer(panels, index * 9 * width + j)
            out = pointer(filters, block * 16 * step + c * width + j)
            for column in range(3):
                # Rows of G: (1, 0, 0), (1, 1, 1) / 2, (1, -1, 1) / 2, (0, 0, 1); three columns in place of four.
                top = load(g, order[column] * width)
                middle = load(g, order[3 + column] * width)
                low = load(g, order[6 + column] * width)
                outer = (top + low) * 0.5
                half = middle * 0.5
                store(out, column * step, top)
                store(out, (4 + column) * step, outer + half)
                store(out, (8 + column) * step, outer - half)
                store(out, (12 + column) * step, low)
            for row in range(0, 16, 4):
                left = load(out, row * step)
                middle = load(out, (row + 1) * step)
                right = load(out, (row + 2) * step)
                outer = (left + right) * 0.5
                half = middle * 0.5
                store(out, (row + 1) * step, outer + half)
                store(out, (row + 2) * step, outer - half)
                store(out, (row + 3) * step, right)


transform_filters = threaded(_filter_parts)


@jit(inline="always")
def _columns(row, w, inside, first, second, third, fourth):
    """Even and odd columns from w and from w + 2 of a row of the image, zeros outside it."""
    if inside == 0:
        zero = zeros_like(row)
        return zero, zero, zero, zero
    a = load_masked(row, w, first, 0.0)
    b = load_masked(row, w + lanes_of(row), second, 0.0)
    c = load_masked(row, w + 2, third, 0.0)
    d = load_masked(row, w + 2 + lanes_of(row), fourth, 0.0)
    return evens(a, b), odds(a, b), evens(c, d), odds(c, d)


@jit(inline="always")
def _store_rows(out, step, row, a, b, c, d):
    store(out, 4 * row * step, a - c)
    store(out, (4 * row + 1) * step, b + c)
    store(out, (4 * row + 2) * step, c - b)
    store(out, (4 * row + 3) * step, b - d)


@jit
def transform_row(image, p, h, out):
    """B' d B of a row of tiles, whose first source row is h, for all channels; out: its place in [16, C, pitch]."""
    lanes = lanes_of(image)
    step = p.step
    plane = p.height * p.width
    in_0 = int(0 <= h < p.height)
    in_1 = int(0 <= h + 1 < p.height)
    in_2 = int(0 <= h + 2 < p.height)
    in_3 = int(0 <= h + 3 < p.height)
    for t in range(0, p.tile_columns, lanes):
        w = p.first_column + 2 * t
        first = lane_mask(image, -w, p.width - w)
        second = lane_mask(image, -w - lanes, p.width - w - lanes)
        third = lane_mask(image, -w - 2, p.width - w - 2)
        fourth = lane_mask(image, -w - 2 - lanes, p.width - w - 2 - lanes)
        for c in range(p.inputs):
            row = advance(image, c * plane + h * p.width)
            a0, b0, c0, d0 = _columns(row, w, in_0, first, second, third, fourth)
            a1, b1, c1, d1 = _columns(advance(row, p.width), w, in_1, first, second, third, fourth)
            a2, b2, c2, d2 = _columns(advance(row, 2 * p.width), w, in_2, first, second, third, fourth)
            a3, b3, c3, d3 = _columns(advance(row, 3 * p.width), w, in_3, first, second, third, fourth)
            # What a vector has past the last column is written over by the next row of tiles, or never read.
            target = advance(out, c * p.pitch + t)
            _store_rows(target, step, 0, a0 - a2, b0 - b2, c0 - c2, d0 - d2)
            _store_rows(target, step, 1, a1 + a2, b1 + b2, c1 + c2, d1 + d2)
            _store_rows(target, step, 2, a2 - a1, b2 - b1, c2 - c1, d2 - d1)
            _store_rows(target, step, 3, a1 - a3, b1 - b3, c1 - c3, d1 - d3)


@jit(inline="always")
def column_sums(m, step, column):
    """A' m of one column of the 4x4 product."""
    m0 = load(m, column * step)
    m1 = load(m, (4 + column) * step)
    m2 = load(m, (8 + column) * step)
    m3 = load(m, (12 + column) * step)
    return m0 + m1 + m2, m1 - m2 - m3


@jit
def output_row(products, p, bias, valid, pixels, rows):
    """A' m A + bias of a row of tiles: pixels [rows, out_width, tile width]; returns whether all of it is finite.

    products: its place in [16, room, tile width]; rows: 1 or 2.
    """
    lanes = lanes_of(products)
    width = 2 * lanes
    step = p.room * width
    strange = zeros_like(products)
    for j in range(0, width, lanes):
        shift = load_first(bias, j, valid - j)
        for t in range(p.tile_columns):
            m = advance(products, t * width + j)
            a0, a1 = column_sums(m, step, 0)
            b0, b1 = column_sums(m, step, 1)
            c0, c1 = column_sums(m, step, 2)
            d0, d1 = column_sums(m, step, 3)
            y00 = (a0 + b0 + c0) + shift
            y01 = (b0 - c0 - d0) + shift
            y10 = (a1 + b1 + c1) + shift
            y11 = (b1 - c1 - d1) + shift
            # Not finite times zero is NaN, which the sums keep.
            strange = strange + (y00 + y01) * 0.0 + (y10 + y11) * 0.0
            out = advance(pixels, 2 * t * width + j)
            both = 2 * t + 1 < p.out_width
            store(out, 0, y00)
            if both:
                store(out, width, y01)
            if rows == 2:
                store(out, p.out_width * width, y10)
                if both:
                    store(out, (p.out_width + 1) * width, y11)
    return not any_lane(is_nan(strange))
