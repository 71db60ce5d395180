"""The gather kernel: every pass of a convolution that makes an image, in any layout, stride and dilation.

Vectors run over output channels. The register tile (`kernels.simd.multiply_tile`) takes a dozen output pixels, wherever
they lie, and two vectors of channels; a pixel's inputs are read by broadcast straight from the (padded) image through
tables of offsets, so nothing is unfolded (no im2col), tiny images share a tile across the batch, and one compiled
function serves every shape. 128 taps are summed in registers before they join the total, which keeps the error below
that of one long sum.
"""

from __future__ import annotations

from typing import NamedTuple

from kernels.activation.vectors import activate
from kernels.runtime.numba_cpu import jit, threaded
from kernels.simd import (
    TILE_ROWS,
    advance,
    lanes_of,
    load,
    load_first,
    multiply_tile,
    peek,
    pointer,
    poke,
    splat_like,
    store,
    store_first,
    transpose,
)

#: Taps summed in registers before they join the total in memory.
CHUNK = 128
#: Rows of the tile for what is left of a block, when that is few.
FEW_ROWS = 4
#: Output pixels whose totals stay in cache while all taps and channels pass over them.
BLOCK = 16 * TILE_ROWS


class Pass(NamedTuple):
    """Sizes and distances of one grid of a pass; all in elements and pixels."""

    images: int
    rows: int  # of the grid
    columns: int
    step_row: int  # source rows between pixels, times the padded row distance
    step_column: int
    padded_image: int
    padded_channel: int
    slots: int  # padded images that a part keeps at once; 0: the source is read where it lies
    collects: int  # 1: pixels and taps of a block lie apart in large steps; they are brought together first
    out_start: int  # output place of pixel (0, 0)
    out_row: int  # output distance between rows of the grid
    out_column: int
    out_image: int
    out_channel: int
    groups: int
    group_inputs: int  # source channels of a group
    group_outputs: int  # output channels of a group
    activation: int  # its code in ACTIVATION_CODES
    pixel_parts: int  # the work falls into pixel_parts * block_parts parts
    block_parts: int


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
def write_sums(sums, rows, width, valid, places, y, out_channel):
    """y[places[row] + c * out_channel] = sums[row, c] for c < valid.

    Channels next to each other are stored as they are; else pixels next to each other are turned by transposes.
    """
    lanes = lanes_of(sums)
    if out_channel == 1:
        for r in range(rows):
            place = peek(places, r)
            for j in range(0, valid, lanes):
                store_first(y, place + j, load(sums, r * width + j), valid - j)
        return
    r = 0
    while r < rows:
        place = peek(places, r)
        run = 1
        while r + run < rows and peek(places, r + run) == place + run:
            run += 1
        transpose(advance(sums, r * width), width, run, valid, advance(y, place), out_channel)
        r += run


@jit
def _gather_parts(first, last, p, s, x, slots, taps, panels, bias, y, before, sums, rows_in, rows_out):
    """Parts [first, last) of one grid.

    p, s: Pass and Source. x: the source's elements. slots: scratch elements [parts, p.slots, padded image], or
    [parts, channels, BLOCK] when p.collects, or [1].
    taps: int64 [group_inputs * taps]. panels: elements [groups * blocks, taps, tile width], zero past a group's
    channels. bias: elements [groups * group_outputs]. y: the output's elements. before: as y for the sums before the
    activation, or of size 0. sums: scratch elements [parts, BLOCK, tile width]. rows_in, rows_out: scratch int64
    [parts, BLOCK].
    """
    lanes = lanes_of(x)
    width = 2 * lanes
    group_blocks = (p.group_outputs + width - 1) // width
    blocks = p.groups * group_blocks
    pixels = p.images * p.rows * p.columns
    tiles = (pixels + TILE_ROWS - 1) // TILE_ROWS
    tap_count = taps.size
    tap_table = pointer(taps)
    for part in range(first, last):
        pixel_part = part // p.block_parts
        block_part = part % p.block_parts
        begin = tiles * pixel_part // p.pixel_parts * TILE_ROWS
        end = min(pixels, tiles * (pixel_part + 1) // p.pixel_parts * TILE_ROWS)
        first_block = blocks * block_part // p.block_parts
        last_block = blocks * (block_part + 1) // p.block_parts
        totals = pointer(sums, part * BLOCK * width)
        ins = pointer(rows_in, part * BLOCK)
        outs = pointer(rows_out, part * BLOCK)
        source = pointer(x)
        if p.slots:
            source = pointer(slots, part * p.slots * p.padded_image)
        elif p.collects:
            source = pointer(slots, part * s.channels * BLOCK)
        ready = begin // (p.rows * p.columns)  # images before this one are padded, or not ours
        while begin < end:
            count = min(BLOCK, end - begin)
            image = begin // (p.rows * p.columns)
            left = begin - image * p.rows * p.columns
            i = left // p.columns
            j = left - i * p.columns
            for q in range(count):
                slot = image % p.slots if p.slots else image
                place = slot * p.padded_image + i * p.step_row + j * p.step_column
                if p.collects:
                    if q == 0 or (i == 0 and j == 0):
                        # Pixels up to the image's end lie side by side, in every channel.
                        run = min(count - q, p.rows * p.columns - i * p.columns - j)
                        for c in range(s.channels):
                            here = pointer(x, place + c * p.padded_channel)
                            copy_run(here, advance(source, c * BLOCK + q), run)
                    place = q
                poke(ins, q, place)
                poke(outs, q, p.out_start + image * p.out_image + i * p.out_row + j * p.out_column)
                if p.slots and image >= ready:
                    pad_image(
                        pointer(x, image * s.given_image), s, 0, s.channels, advance(source, slot * p.padded_image)
                    )
                    ready = image + 1
                j += 1
                if j == p.columns:
                    j = 0
                    i += 1
                    if i == p.rows:
                        i = 0
                        image += 1
            for q in range(count, (count + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS):
                poke(ins, q, peek(ins, count - 1))  # rows past the end repeat the last one
            for block in range(first_block, last_block):
                group = block // group_blocks
                channel = (block - group * group_blocks) * width
                inputs = advance(source, group * p.group_inputs * (BLOCK if p.collects else p.padded_channel))
                chunk = 0
                while True:
                    length = min(CHUNK, tap_count - chunk)
                    weights = pointer(panels, (block * tap_count + chunk) * width)
                    table = advance(tap_table, chunk)
                    q = 0
                    while q < count:
                        row = advance(ins, q)
                        target = advance(totals, q * width)
                        if count - q > FEW_ROWS:
                            multiply_tile(
                                TILE_ROWS, 2, inputs, row, table, length, weights, target, width, lanes, chunk
                            )
                            q += TILE_ROWS
                        else:
                            multiply_tile(FEW_ROWS, 2, inputs, row, table, length, weights, target, width, lanes, chunk)
                            q += FEW_ROWS
                    chunk += CHUNK
                    if chunk >= tap_count:
                        break
                valid = min(width, p.group_outputs - channel)
                channel += group * p.group_outputs
                add_bias(totals, count, width, valid, pointer(bias, channel))
                if before.size:
                    sums_out = pointer(before, channel * p.out_channel)
                    write_sums(totals, count, width, valid, outs, sums_out, p.out_channel)
                apply_activation(totals, count * width, p.activation)
                write_sums(totals, count, width, valid, outs, pointer(y, channel * p.out_channel), p.out_channel)
            begin += count


gather_parts = threaded(_gather_parts)


@jit
def _pack_parts(
    first, last, w, out_step, in_step, group_step, group_outputs, inputs, taps_full, tap_index, panels, turned
):
    """Blocks [first, last) of the weight panels [block, channel, tap, lane], zero past a group's outputs.

    w: the weight's elements; out_step, in_step: distances between output channels and between summed channels;
    group_step: between groups. taps_full: taps of a whole filter, which lie together. tap_index: int64, those wanted.
    turned: scratch elements [blocks, taps_full, tile width].
    """
    lanes = lanes_of(w)
    width = 2 * lanes
    group_blocks = (group_outputs + width - 1) // width
    taps = tap_index.size
    for block in range(first, last):
        group = block // group_blocks
        channel = (block - group * group_blocks) * width
        valid = min(width, group_outputs - channel)
        start = group * group_step + channel * out_step
        panel = pointer(panels, block * inputs * taps * width)
        if valid < width and out_step != 1:
            for i in range(inputs * taps):
                for j in range(0, width, lanes):
                    store(panel, i * width + j, splat_like(panel, 0.0))
        if out_step == 1:
            # Transposed, one tap: the channels of a row lie together.
            for c in range(inputs):
                for j in range(0, width, lanes):
                    store(panel, c * width + j, load_first(pointer(w, start), c * in_step + j, valid - j))
        elif in_step == taps_full and taps == taps_full:
            # Forward: a filter's taps lie together for all its channels, in the order of the panel.
            transpose(pointer(w, start), out_step, valid, inputs * taps, panel, width)
        else:
            scratch = pointer(turned, block * taps_full * width)
            for c in range(inputs):
                transpose(pointer(w, start + c * in_step), out_step, valid, taps_full, scratch, width)
                for t in range(taps):
                    row = (c * taps + t) * width
                    for j in range(0, width, lanes):
                        values = load_first(scratch, tap_index[t] * width + j, valid - j)
                        store(panel, row + j, values)


pack_parts = threaded(_pack_parts)
