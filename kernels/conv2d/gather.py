"""The gather kernel: every pass of a convolution that makes an image, in any layout, stride and dilation.

Vectors run over output channels. The register tile (`kernels.simd.multiply_gathered`) takes a dozen output pixels,
wherever they lie, and two vectors of channels; a pixel's inputs are read by broadcast straight from the (padded) image
through tables of offsets, so nothing is unfolded (no im2col), tiny images share a tile across the batch, and one
compiled function serves every shape. 128 taps are summed in registers before they join the total, which keeps the error
below that of one long sum.

Pixels that meet the same taps form a class, and a tile takes pixels of one class: the remainders under the stride of a
transposed pass, and the edges of an image where leaving out what lies in the padding pays (`geometry.sides`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kernels.activation.vectors import activate
from kernels.conv2d.geometry import Table
from kernels.runtime.numba_cpu import jit, threaded
from kernels.simd import (
    TILE_ROWS,
    advance,
    lanes_of,
    load,
    load_first,
    multiply_gathered,
    peek,
    pointer,
    poke,
    splat_like,
    store,
    store_first,
    transpose,
)

#: Taps summed in registers before they join the total in memory: about so many, and at most twice.
CHUNK = 128
#: Rows of the tile for what is left of a class of pixels, when that is few.
FEW_ROWS = 4
#: Output pixels whose totals stay in cache while all taps and channels pass over them.
BLOCK = 144 * TILE_ROWS
#: The same where pixels are collected, so that all their channels stay there too.
COLLECTED_BLOCK = 16 * TILE_ROWS


class Pass(NamedTuple):
    """Sizes and distances of a pass; all in elements and pixels."""

    images: int
    rows: int  # of the output
    columns: int
    padded_image: int
    padded_channel: int
    slots: int  # padded images that a part keeps at once; 0: the source is read where it lies
    collects: int  # 1: pixels and taps of a block lie apart in large steps; they are brought together first
    out_image: int
    out_channel: int
    groups: int
    group_inputs: int  # source channels of a group
    group_outputs: int  # output channels of a group
    kernel_taps: int  # taps of a whole filter
    block: int  # output pixels of a block
    list_size: int  # entries of a block's lists of pixels, each class filled up to whole tiles
    activation: int  # its code in ACTIVATION_CODES
    pixel_parts: int  # the work falls into pixel_parts * block_parts parts
    block_parts: int


class Meetings(NamedTuple):
    """Which source pixels and taps each output pixel meets, as int64 tables.

    Pixels fall into classes that share their taps: the class of (i, j) is row_class[i] + column_class[j], and its
    place in the source row_place[i] + column_place[j].
    """

    row_class: Table
    row_place: Table
    column_class: Table
    column_place: Table
    classes: np.ndarray[Any, np.dtype[np.int64]]  # [classes, 3]: taps, channels of a chunk, start in the tap tables
    source_taps: Table  # a chunk of channels x taps: where the source has them, from a pixel's place
    weight_taps: Table  # and where a panel has them


class Source(NamedTuple):
    """Sizes and distances of the source image and of its padded copy."""

    channels: int
    height: int
    width: int
    channels_last: int
    top: int
    left: int
    padded_height: int
    padded_row: int
    padded_channel: int
    given_image: int


@jit
def copy_run(src, dst, count):
    """dst[:count] = src[:count]."""
    lanes = lanes_of(src)
    i = 0
    while i + lanes <= count:
        store(dst, i, load(src, i))
        i += lanes
    if i < count:
        store_first(dst, i, load_first(src, i, count - i), count - i)


@jit
def clear(dst, count):
    """dst[:count] = 0."""
    lanes = lanes_of(dst)
    zero = splat_like(dst, 0.0)
    i = 0
    while i + lanes <= count:
        store(dst, i, zero)
        i += lanes
    if i < count:
        store_first(dst, i, zero, count - i)


@jit
def pad_image(image, s, first_channel, last_channel, padded):
    """Copy channels [first, last) of one image into its place in `padded`, with zeros around.

    image: elements [C, H, W], or [H, W, C] when channels-last (then all channels are copied, as one wide plane).
    """
    planes_from, planes_to, thick = first_channel, last_channel, 1
    if s.channels_last:
        planes_from, planes_to, thick = 0, 1, s.channels
    run = s.width * thick
    before = s.left * thick
    after = s.padded_row - before - run
    for c in range(planes_from, planes_to):
        plane = advance(padded, c * s.padded_channel)
        clear(plane, s.top * s.padded_row)
        for h in range(s.height):
            row = advance(plane, (h + s.top) * s.padded_row)
            clear(row, before)
            copy_run(advance(image, (c * s.height + h) * run), advance(row, before), run)
            clear(advance(row, before + run), after)
        below = s.top + s.height
        clear(advance(plane, below * s.padded_row), (s.padded_height - below) * s.padded_row)


@jit
def add_bias(sums, rows, width, valid, bias):
    """sums[row, :width] += bias for every row; bias: [valid <= width] elements."""
    lanes = lanes_of(sums)
    for j in range(0, width, lanes):
        shift = load_first(bias, j, valid - j)
        for r in range(rows):
            store(sums, r * width + j, load(sums, r * width + j) + shift)


@jit
def apply_activation(sums, count, code):
    """sums[:count] = act(sums[:count]); count is a multiple of the lanes, code one of ACTIVATION_CODES."""
    lanes = lanes_of(sums)
    if code == 1:
        for i in range(0, count, lanes):
            store(sums, i, activate(1, load(sums, i)))
    elif code != 0:
        for i in range(0, count, lanes):
            store(sums, i, activate(code, load(sums, i)))


@jit
def write_sums(sums, rows, width, valid, first, plane, y, out_image, out_channel):
    """y at pixel first + row and channel c = sums[row, c] for c < valid; pixels are counted through all images.

    plane: pixels of an image. y: begins at the first of the channels. Channels next to each other are stored as they
    are; else pixels next to each other, up to an image's end, are turned by transposes.
    """
    lanes = lanes_of(sums)
    if out_channel == 1:
        step = out_image // plane
        for r in range(rows):
            for j in range(0, valid, lanes):
                store_first(y, (first + r) * step + j, load(sums, r * width + j), valid - j)
        return
    r = 0
    while r < rows:
        image = (first + r) // plane
        pixel = first + r - image * plane
        run = min(rows - r, plane - pixel)
        target = advance(y, image * out_image + pixel)
        transpose(advance(sums, r * width), width, run, valid, target, out_channel)
        r += run


@jit
def _sort_pixels(p, m, begin, count, x, s, source, ready, lists, starts):
    """Lists of a block's pixels by class; pads the images that they need, or collects their channels.

    lists: int64 [3, list_size]: places in the source by class, places in the totals by class, scratch. starts: int64
    [2, classes + 1]: where a class begins, scratch. Returns the first image that is not padded yet.
    """
    classes = m.classes.shape[0]
    kinds = advance(lists, 2 * p.list_size)
    for k in range(classes + 1):
        poke(starts, k, 0)
    plane = p.rows * p.columns
    image = begin // plane
    i = (begin - image * plane) // p.columns
    j = begin - image * plane - i * p.columns
    for q in range(count):
        if p.slots and image >= ready:
            target = advance(source, image % p.slots * p.padded_image)
            pad_image(pointer(x, image * s.given_image), s, 0, s.channels, target)
            ready = image + 1
        if p.collects and (q == 0 or (i == 0 and j == 0)):
            # Pixels up to the image's end lie side by side, in every channel.
            run = min(count - q, plane - i * p.columns - j)
            for c in range(s.channels):
                here = image * s.given_image + c * p.padded_channel + i * p.columns + j
                copy_run(pointer(x, here), advance(source, c * p.block + q), run)
        kind = m.row_class[i] + m.column_class[j]
        poke(kinds, q, kind)
        poke(starts, kind, peek(starts, kind) + 1)
        j += 1
        if j == p.columns:
            j = 0
            i += 1
            if i == p.rows:
                i = 0
                image += 1
    # From counts to starts; a class ends in a whole tile of either size.
    width = 2 * lanes_of(source)
    following = advance(starts, classes + 1)
    position = 0
    for k in range(classes):
        size = peek(starts, k)
        poke(starts, k, position)
        poke(following, k, position)
        rest = size % TILE_ROWS
        end = position + size - rest + (0 if rest == 0 else FEW_ROWS if rest <= FEW_ROWS else TILE_ROWS)
        for at in range(position + size, end):
            poke(lists, p.list_size + at, p.block * width)  # totals that nobody reads
        position = end
    poke(starts, classes, position)
    image = begin // plane
    i = (begin - image * plane) // p.columns
    j = begin - image * plane - i * p.columns
    for q in range(count):
        kind = peek(kinds, q)
        at = peek(following, kind)
        poke(following, kind, at + 1)
        place = q
        if not p.collects:
            slot = image % p.slots if p.slots else image
            place = slot * p.padded_image + m.row_place[i] + m.column_place[j]
        poke(lists, at, place)
        poke(lists, p.list_size + at, q * width)
        j += 1
        if j == p.columns:
            j = 0
            i += 1
            if i == p.rows:
                i = 0
                image += 1
    for k in range(classes):
        for at in range(peek(following, k), peek(starts, k + 1)):
            poke(lists, at, peek(lists, peek(following, k) - 1))  # rows past the end repeat the last one
    return ready


@jit
def sum_class(
    p, taps, begin, end, inputs, chunk_inputs, source_taps, weight_taps, weights, lists, totals, channel_step
):
    """Totals of one class of a block's pixels, entries [begin, end) of the lists, over all channels of a group."""
    lanes = lanes_of(inputs)
    width = 2 * lanes
    accumulate = 0
    for c in range(0, p.group_inputs, chunk_inputs):
        count = min(chunk_inputs, p.group_inputs - c) * taps
        a = advance(inputs, c * channel_step)
        b = advance(weights, c * p.kernel_taps * width)
        start = 0
        while True:
            length = count - start
            if length > 2 * CHUNK:
                length = CHUNK
            a_table, b_table = advance(source_taps, start), advance(weight_taps, start)
            q = begin
            while q < end:
                rows, outs = advance(lists, q), advance(lists, p.list_size + q)
                if end - q > FEW_ROWS:
                    multiply_gathered(
                        TILE_ROWS, 2, a, rows, a_table, b, b_table, length, totals, outs, lanes, accumulate
                    )
                    q += TILE_ROWS
                else:
                    multiply_gathered(
                        FEW_ROWS, 2, a, rows, a_table, b, b_table, length, totals, outs, lanes, accumulate
                    )
                    q += FEW_ROWS
            accumulate = 1
            start += length
            if start >= count:
                break


@jit
def _gather_parts(first, last, p, s, m, x, slots, panels, bias, y, before, sums, lists, starts):
    """Parts [first, last) of a pass.

    p, s, m: Pass, Source and Meetings. x: the source's elements. slots: scratch elements [parts, p.slots, padded
    image], or [parts, channels, block] when p.collects, or [1]. panels: elements [groups * blocks, group_inputs,
    kernel_taps, tile width], zero past a group's channels. bias: elements [groups * group_outputs]. y: the output's
    elements. before: as y for the sums before the activation, or of size 0. sums: scratch elements [parts, block + 1,
    tile width]. lists, starts: scratch int64 [parts, 3, list_size], [parts, 2, classes + 1].
    """
    lanes = lanes_of(x)
    width = 2 * lanes
    group_blocks = (p.group_outputs + width - 1) // width
    blocks = p.groups * group_blocks
    plane = p.rows * p.columns
    pixels = p.images * plane
    tiles = (pixels + TILE_ROWS - 1) // TILE_ROWS
    classes = m.classes.shape[0]
    channel_step = p.block if p.collects else p.padded_channel
    for part in range(first, last):
        pixel_part = part // p.block_parts
        block_part = part % p.block_parts
        begin = tiles * pixel_part // p.pixel_parts * TILE_ROWS
        end = min(pixels, tiles * (pixel_part + 1) // p.pixel_parts * TILE_ROWS)
        first_block = blocks * block_part // p.block_parts
        last_block = blocks * (block_part + 1) // p.block_parts
        totals = pointer(sums, part * (p.block + 1) * width)
        sorted_lists = pointer(lists, part * 3 * p.list_size)
        bounds = pointer(starts, part * 2 * (classes + 1))
        source = pointer(x)
        if p.slots:
            source = pointer(slots, part * p.slots * p.padded_image)
        elif p.collects:
            source = pointer(slots, part * s.channels * p.block)
        ready = begin // plane  # images before this one are padded, or not ours
        while begin < end:
            count = min(p.block, end - begin)
            ready = _sort_pixels(p, m, begin, count, x, s, source, ready, sorted_lists, bounds)
            for block in range(first_block, last_block):
                group = block // group_blocks
                channel = (block - group * group_blocks) * width
                inputs = advance(source, group * p.group_inputs * channel_step)
                weights = pointer(panels, block * p.group_inputs * p.kernel_taps * width)
                for k in range(classes):
                    sum_class(
                        p, m.classes[k, 0], peek(bounds, k), peek(bounds, k + 1), inputs, m.classes[k, 1],
                        pointer(m.source_taps, m.classes[k, 2]), pointer(m.weight_taps, m.classes[k, 2]),
                        weights, sorted_lists, totals, channel_step,
                    )  # fmt: skip
                valid = min(width, p.group_outputs - channel)
                channel += group * p.group_outputs
                add_bias(totals, count, width, valid, pointer(bias, channel))
                if before.size:
                    sums_out = pointer(before, channel * p.out_channel)
                    write_sums(totals, count, width, valid, begin, plane, sums_out, p.out_image, p.out_channel)
                apply_activation(totals, count * width, p.activation)
                out = pointer(y, channel * p.out_channel)
                write_sums(totals, count, width, valid, begin, plane, out, p.out_image, p.out_channel)
            begin += count


gather_parts = threaded(_gather_parts)


@jit
def _pack_parts(first, last, w, out_step, in_step, group_step, group_outputs, inputs, taps, panels):
    """Blocks [first, last) of the weight panels [block, channel, tap, lane], zero past a group's outputs.

    w: the weight's elements; out_step, in_step: distances between output channels and between summed channels;
    group_step: between groups. taps: of a filter, which lie together.
    """
    lanes = lanes_of(w)
    width = 2 * lanes
    group_blocks = (group_outputs + width - 1) // width
    for block in range(first, last):
        group = block // group_blocks
        channel = (block - group * group_blocks) * width
        valid = min(width, group_outputs - channel)
        source = pointer(w, group * group_step + channel * out_step)
        panel = pointer(panels, block * inputs * taps * width)
        if out_step == 1:
            # Transposed, one tap: the channels of a row lie together.
            for c in range(inputs):
                for j in range(0, width, lanes):
                    store(panel, c * width + j, load_first(source, c * in_step + j, valid - j))
            continue
        if valid < width:
            clear(panel, inputs * taps * width)
        if in_step == taps:
            # Forward: a filter's taps lie together for all its channels, in the order of the panel.
            transpose(source, out_step, valid, inputs * taps, panel, width)
        else:
            for c in range(inputs):
                transpose(advance(source, c * in_step), out_step, valid, taps, advance(panel, c * taps * width), width)


pack_parts = threaded(_pack_parts)
