"""The three transforms of Winograd's F(2x2, 3x3): of filters, of source tiles, and back to output pixels.

`p` is a `Tiles` of winograd.py, where the matrices and the memory layouts are explained.
"""

from __future__ import annotations

from kernels.conv2d.gather import LINE, pack_panel
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
    pointer_at,
    prefetch,
    store,
    store_masked,
    zeros_like,
)

#: Channels whose filters are packed together, before they are transformed.
GROUP = 16


@jit
def _edges(top, middle, low):
    """G's product with three numbers: rows (1, 0, 0), (1, 1, 1) / 2, (1, -1, 1) / 2, (0, 0, 1)."""
    outer = (top + low) * 0.5
    half = middle * 0.5
    return top, outer + half, outer - half, low


@jit
def _filter_row(out, step, row, left, middle, right):
    a, b, c, d = _edges(left, middle, right)
    store(out, 4 * row * step, a)
    store(out, (4 * row + 1) * step, b)
    store(out, (4 * row + 2) * step, c)
    store(out, (4 * row + 3) * step, d)


@jit(inline="always")
def transform_filters(w, out_step, in_step, outputs, channels, soon, order, panel, out, step):
    """G g G' of up to a tile width of outputs and some channels: out [16, channels, tile width], 16 parts step apart.

    w: elements of the weight from the first of both on; out_step, in_step: distances between output channels and
    between summed channels. soon: channels whose turn comes next, up to these of which are asked for. order: int64
    [9], a filter's taps by row and column. panel: scratch elements [GROUP, 9, tile width], which stays in L1.
    """
    lanes = lanes_of(w)
    width = 2 * lanes
    for first in range(0, channels, GROUP):
        count = min(GROUP, channels - first)
        following = min(GROUP, channels + soon - first - count)
        if following and in_step == 9:
            # Rows of filters are too short for the processor to see them coming.
            for k in range(outputs):
                for at in range(0, 9 * following, LINE):
                    prefetch(w, k * out_step + (first + count) * 9 + at)
        pack_panel(advance(w, first * in_step), out_step, in_step, outputs, count, order.size, panel)
        for i in range(count):
            for j in range(0, width, lanes):
                g = advance(panel, i * 9 * width + j)
                u0, u1, u2, u3 = _edges(load(g, order[0] * width), load(g, order[3] * width), load(g, order[6] * width))
                v0, v1, v2, v3 = _edges(load(g, order[1] * width), load(g, order[4] * width), load(g, order[7] * width))
                z0, z1, z2, z3 = _edges(load(g, order[2] * width), load(g, order[5] * width), load(g, order[8] * width))
                target = advance(out, (first + i) * width + j)
                _filter_row(target, step, 0, u0, v0, z0)
                _filter_row(target, step, 1, u1, v1, z1)
                _filter_row(target, step, 2, u2, v2, z2)
                _filter_row(target, step, 3, u3, v3, z3)


@jit
def _filter_parts(first, last, parts, w, out_step, in_step, outputs, inputs, step, order, filters, panels):
    """Parts [first, last) of the filters of all blocks of outputs.

    w: the address of the weight's elements. filters: elements [blocks, 16, step], a step holding [inputs, tile width];
    from filters[panels] on scratch [parts, GROUP, 9, tile width]. Others as of `transform_filters`.
    """
    weight = pointer_at(w, filters)
    width = 2 * lanes_of(filters)
    groups = (inputs + GROUP - 1) // GROUP
    units = (outputs + width - 1) // width * groups
    for part in range(first, last):
        panel = pointer(filters, panels + part * GROUP * 9 * width)
        # Runs of groups of one block, which find what they asked for.
        unit, end = units * part // parts, units * (part + 1) // parts
        while unit < end:
            block = unit // groups
            begin = (unit - block * groups) * GROUP
            stop = min(inputs, begin + (end - unit) * GROUP)
            source = advance(weight, block * width * out_step + begin * in_step)
            target = pointer(filters, block * 16 * step + begin * width)
            valid = min(width, outputs - block * width)
            transform_filters(source, out_step, in_step, valid, stop - begin, 0, order, panel, target, step)
            unit += (stop - begin + GROUP - 1) // GROUP


filter_parts = threaded(_filter_parts)


@jit
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


@jit
def _store_rows(out, step, row, a, b, c, d):
    store(out, 4 * row * step, a - c)
    store(out, (4 * row + 1) * step, b + c)
    store(out, (4 * row + 2) * step, c - b)
    store(out, (4 * row + 3) * step, b - d)


@jit
def transform_rows(images, p, first, count, per_image, top, out):
    """B' d B of `count` rows of tiles for all channels: out [16, C, pitch].

    images: elements [images, C, H, W]. Rows are counted through the images, `per_image` in each, from `first` on; the
    first of an image begins at source row p.first_row + top.
    """
    whole = p.inputs * p.height * p.width
    # Rows of tiles that fit into half a vector go in pairs.
    pairs = 2 * p.tile_columns <= lanes_of(images)
    row = 0
    while row < count:
        n = (first + row) // per_image
        h = p.first_row + top + 2 * (first + row - n * per_image)
        target = advance(out, row * p.tile_columns)
        if pairs and row + 1 < count:
            m = (first + row + 1) // per_image
            g = p.first_row + top + 2 * (first + row + 1 - m * per_image)
            _transform_pair(advance(images, n * whole), h, advance(images, m * whole), g, p, target)
            row += 2
        else:
            _transform_row(advance(images, n * whole), p, h, target)
            row += 1


@jit
def _column_pair(upper, lower, w, upper_inside, lower_inside, first, third):
    """Even and odd columns from w and from w + 2 of two rows, the upper one's in the lower half of the lanes."""
    a = b = c = d = zeros_like(upper)
    if upper_inside:
        a, c = load_masked(upper, w, first, 0.0), load_masked(upper, w + 2, third, 0.0)
    if lower_inside:
        b, d = load_masked(lower, w, first, 0.0), load_masked(lower, w + 2, third, 0.0)
    return evens(a, b), odds(a, b), evens(c, d), odds(c, d)


@jit
def _store_pairs(out, step, row, columns, high, a, b, c, d):
    """As `_store_rows`, of two rows of tiles; high: the lanes of the second."""
    base = 4 * row * step
    behind = base + columns - lanes_of(out) // 2
    _store_rows(out, step, row, a, b, c, d)
    store_masked(out, behind, a - c, high)
    store_masked(out, behind + step, b + c, high)
    store_masked(out, behind + 2 * step, c - b, high)
    store_masked(out, behind + 3 * step, b - d, high)


@jit
def _transform_pair(upper, h, lower, g, p, out):
    """As `_transform_row` for two rows of tiles, whose first source rows are h of one image and g of another."""
    half = lanes_of(upper) // 2
    step = p.step
    plane = p.height * p.width
    w = p.first_column
    first = lane_mask(upper, -w, p.width - w)
    third = lane_mask(upper, -w - 2, p.width - w - 2)
    high = lane_mask(upper, half, half + p.tile_columns)
    in_0, on_0 = 0 <= h < p.height, 0 <= g < p.height
    in_1, on_1 = 0 <= h + 1 < p.height, 0 <= g + 1 < p.height
    in_2, on_2 = 0 <= h + 2 < p.height, 0 <= g + 2 < p.height
    in_3, on_3 = 0 <= h + 3 < p.height, 0 <= g + 3 < p.height
    for c in range(p.inputs):
        x = advance(upper, c * plane + h * p.width)
        y = advance(lower, c * plane + g * p.width)
        a0, b0, c0, d0 = _column_pair(x, y, w, in_0, on_0, first, third)
        x, y = advance(x, p.width), advance(y, p.width)
        a1, b1, c1, d1 = _column_pair(x, y, w, in_1, on_1, first, third)
        x, y = advance(x, p.width), advance(y, p.width)
        a2, b2, c2, d2 = _column_pair(x, y, w, in_2, on_2, first, third)
        x, y = advance(x, p.width), advance(y, p.width)
        a3, b3, c3, d3 = _column_pair(x, y, w, in_3, on_3, first, third)
        target = advance(out, c * p.pitch)
        _store_pairs(target, step, 0, p.tile_columns, high, a0 - a2, b0 - b2, c0 - c2, d0 - d2)
        _store_pairs(target, step, 1, p.tile_columns, high, a1 + a2, b1 + b2, c1 + c2, d1 + d2)
        _store_pairs(target, step, 2, p.tile_columns, high, a2 - a1, b2 - b1, c2 - c1, d2 - d1)
        _store_pairs(target, step, 3, p.tile_columns, high, a1 - a3, b1 - b3, c1 - c3, d1 - d3)


@jit
def _transform_row(image, p, h, out):
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
