"""The gradient of a convolution's weight: sums over pixels, on the same register tile as the forward pass.

    dw[k, c, r, s] = sum over images and pixels of dy[k, pixel] * x[c, pixel * stride + tap (r, s)]

A tile's rows are a dozen taps (c, r, s), its vectors run over output channels k, and its sum goes over pixels: the
image is read by broadcast through offsets of taps and pixels, dy in panels [pixel, channel]. Every sum goes through the
images in order, in pieces of at most CHUNK pixels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba.np.unsafe.ndarray import to_fixed_tuple

from kernels.conv2d.gather import CHUNK
from kernels.conv2d.geometry import Gather
from kernels.conv2d.image_pass import GRAIN, flat, source_of, tile_width
from kernels.conv2d.launch import in_lines
from kernels.conv2d.moves import Source, pad_image
from kernels.runtime.by_address import Run, by_threads
from kernels.runtime.numba_cpu import address, empty, jit, scratch, threaded, threads_for
from kernels.simd import (
    TILE_ROWS,
    advance,
    lanes_of,
    load,
    load_first,
    multiply_tile,
    pointer,
    pointer_at,
    poke,
    reduce_add,
    splat_like,
    store,
    store_first,
    transpose,
)

Array = np.ndarray[Any, Any]

#: Tiles below which the images are split into segments, so that there is work for several threads.
FEW_TILES = 16
#: Segments that the images are then split into; fixed, so that the result does not depend on the threads.
SEGMENTS = 8
#: Bytes of the sums that are in use at a time, half of L2.
_RUN_BYTES = 1 << 19
#: Tiles below which packing dy again for each run would cost too much.
_LEAST_RUN = 16
#: Values to add up that are worth a thread of their own.
SUM_GRAIN = 200_000


class Sums(NamedTuple):
    """Sizes of one weight gradient."""

    images: int
    pixels: int  # of dy, an image
    together: int  # images whose pixels are one sum, so that tiny images make long ones
    segments: int
    run_tiles: int  # tiles whose sums are in use at a time
    padded_image: int
    padded_channel: int
    groups: int
    group_inputs: int
    group_outputs: int
    kernel_taps: int
    outputs: int  # channels of dy
    out_channels_last: int  # dy is [N, pixels, channels] in place of [N, channels, pixels]
    pads: int
    panels: int  # where in scratch these begin
    sums: int


FIELDS, SOURCE_FIELDS = len(Sums._fields), len(Source._fields)


@jit
def _pack_panel(dy, g, image, images, channel, valid, panel):
    """panel[image, pixel, :] = dy[image, channel : channel + valid, pixel], zero past `valid`, for a few images."""
    lanes = lanes_of(dy)
    width = 2 * lanes
    for n in range(images):
        place = (image + n) * g.pixels * g.outputs
        target = advance(panel, n * g.pixels * width)
        if g.out_channels_last:
            for q in range(g.pixels):
                for j in range(0, width, lanes):
                    values = load_first(dy, place + q * g.outputs + channel + j, valid - j)
                    store(target, q * width + j, values)
        else:
            if valid < width:
                for i in range(0, g.pixels * width, lanes):
                    store(target, i, splat_like(target, 0.0))
            transpose(advance(dy, place + channel * g.pixels), g.pixels, valid, g.pixels, target, width)


@jit
def _write_taps(sums, g, group, block, tap, taps, dw):
    """dw[group, output, tap] of a block of outputs and taps [tap, tap + taps); sums: elements [taps, tile width]."""
    width = 2 * lanes_of(sums)
    group_taps = g.group_inputs * g.kernel_taps
    valid = min(width, g.group_outputs - block * width)
    start = (group * g.group_outputs + block * width) * group_taps + tap
    transpose(sums, width, min(taps, group_taps - tap), valid, advance(dw, start), group_taps)


@jit
def _sum_parts(first, last, parts, settings, taps, pixels, x, dy, dw, scratch):
    """Parts [first, last) of all tiles: dw, or, with several segments, their sums.

    settings: int64, the fields of Sums and Source. taps: int64 [groups, tiles * TILE_ROWS], where in a padded image a
    tap finds pixel 0 (a group's last tap repeated). pixels: int64 [together * pixels], places of pixels relative to
    pixel 0. x, dy, dw: addresses of the images' elements, of dy's, and of dw's. scratch: padded images, elements
    [parts, together, padded image] where there is padding; from g.panels on, [parts, together * pixels, tile width];
    from g.sums on, sums [segments, groups, blocks, tiles, TILE_ROWS, tile width], or, with one segment, [parts, blocks,
    run_tiles, TILE_ROWS, tile width].
    """
    g = Sums(*to_fixed_tuple(settings, FIELDS))
    s = Source(*to_fixed_tuple(settings[FIELDS:], SOURCE_FIELDS))
    images, gradients, target = pointer_at(x, scratch), pointer_at(dy, scratch), pointer_at(dw, scratch)
    lanes = lanes_of(images)
    width = 2 * lanes
    blocks = (g.group_outputs + width - 1) // width
    group_taps = g.group_inputs * g.kernel_taps
    tiles = (group_taps + TILE_ROWS - 1) // TILE_ROWS
    total = g.segments * g.groups * tiles
    size = TILE_ROWS * width
    for part in range(first, last):
        begin = total * part // parts
        end = total * (part + 1) // parts
        panel = pointer(scratch, g.panels + part * g.together * g.pixels * width)
        source = images
        if g.pads:
            source = pointer(scratch, part * g.together * g.padded_image)
        while begin < end:
            # Tiles of this part that belong to one segment and group, and whose sums stay in L2 for all images.
            segment = begin // (g.groups * tiles)
            group = begin // tiles - segment * g.groups
            tile = begin - (segment * g.groups + group) * tiles
            tile_end = min(tiles, tile + end - begin, tile + g.run_tiles)
            if g.segments == 1:
                found = pointer(scratch, g.sums + part * blocks * g.run_tiles * size)
                pitch = g.run_tiles * size
            else:
                found = pointer(scratch, g.sums + ((segment * g.groups + group) * blocks * tiles + tile) * size)
                pitch = tiles * size
            low = tile * TILE_ROWS // g.kernel_taps + group * g.group_inputs
            high = (min(tile_end * TILE_ROWS, group_taps) - 1) // g.kernel_taps + 1 + group * g.group_inputs
            image = g.images * segment // g.segments
            image_end = g.images * (segment + 1) // g.segments
            fresh = 0  # whether to add to what is there
            while image < image_end:
                count = min(g.together, image_end - image)
                writes = g.segments == 1 and image + count == image_end
                base = source
                if g.pads:
                    for n in range(count):
                        given = advance(images, (image + n) * s.given_image)
                        pad_image(given, s, low, high, advance(source, n * g.padded_image))
                else:
                    base = advance(source, image * g.padded_image)
                for block in range(blocks):
                    channel = block * width
                    valid = min(width, g.group_outputs - channel)
                    _pack_panel(gradients, g, image, count, group * g.group_outputs + channel, valid, panel)
                    for start in range(0, count * g.pixels, CHUNK):
                        length = min(CHUNK, count * g.pixels - start)
                        for t in range(tile, tile_end):
                            multiply_tile(
                                TILE_ROWS,
                                2,
                                base,
                                pointer(taps, (group * tiles + t) * TILE_ROWS),
                                pointer(pixels, start),
                                length,
                                advance(panel, start * width),
                                advance(found, block * pitch + (t - tile) * size),
                                width,
                                lanes,
                                fresh + start,
                            )
                    if writes:
                        done = advance(found, block * pitch)
                        rows = (tile_end - tile) * TILE_ROWS
                        _write_taps(done, g, group, block, tile * TILE_ROWS, rows, target)
                fresh = 1
                image += count
            begin += tile_end - tile


_sum_tiles = threaded(_sum_parts)


@jit
def _add_parts(first, last, settings, scratch, dw):
    """Groups and blocks [first, last) of dw from the sums of several segments, which are added in order in place."""
    g = Sums(*to_fixed_tuple(settings, FIELDS))
    lanes = lanes_of(scratch)
    width = 2 * lanes
    blocks = (g.group_outputs + width - 1) // width
    taps = (g.group_inputs * g.kernel_taps + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
    step = g.groups * blocks * taps * width
    for unit in range(first, last):
        found = pointer(scratch, g.sums + unit * taps * width)
        for i in range(0, taps * width, lanes):
            total = load(found, i)
            for segment in range(1, g.segments):
                total = total + load(found, segment * step + i)
            store(found, i, total)
        _write_taps(found, g, unit // blocks, unit % blocks, 0, taps, pointer_at(dw, scratch))


_add_segments = threaded(_add_parts)


@lru_cache(1024)
def launch(
    plan: Gather,
    images: int,
    weight_shape: tuple[int, ...],
    groups: int,
    dtype: np.dtype[Any],
    channels_last: bool,
    gradient_last: bool | None = None,
) -> Run:
    """What computes dw, prepared: ``run(x, dy, dw)`` with the addresses of arrays.

    Args:
        plan: the forward geometry from x to dy.
        images: N of the dense images x (N, C_in, H, W) and of their gradients dy (N, C_out, OH, OW).
        weight_shape: (C_out, C_in / G, kh, kw), the shape of dw, which is contiguous.
        groups: G.
        dtype: of all arrays.
        channels_last: the layout of both.
        gradient_last: the layout of dy, where it is another one.
    """
    outputs, group_inputs, height, kernel_width = weight_shape
    kernel_taps = height * kernel_width
    grid = plan.grids[0]
    rows, columns = grid.size
    pixels = rows * columns
    width = tile_width(dtype)
    group_taps = group_inputs * kernel_taps
    tiles = -(-group_taps // TILE_ROWS)
    blocks = -(-(outputs // groups) // width)
    together = max(1, min(images, -(-CHUNK // pixels)))
    segments = min(SEGMENTS, -(-images // together)) if groups * tiles < FEW_TILES else 1
    tile_size = TILE_ROWS * width
    run_tiles = min(tiles, max(_LEAST_RUN, _RUN_BYTES // (blocks * tile_size * dtype.itemsize)))
    # A table of taps for each group, filled up to whole tiles with its last tap.
    spread = np.minimum(np.arange(tiles * TILE_ROWS), group_taps - 1)
    starts = np.arange(groups)[:, None] * group_inputs * plan.padded.channel
    taps = (plan.tap_offsets[0][spread][None, :] + starts).reshape(-1).astype(np.int64)
    places = (np.arange(rows) * grid.step[0] * plan.padded.row)[:, None] + np.arange(columns) * (
        grid.step[1] * plan.padded.column
    )
    table = (np.arange(together)[:, None] * plan.padded.image + places.reshape(1, -1)).reshape(-1).astype(np.int64)
    g = Sums(
        images,
        pixels,
        together,
        segments,
        run_tiles,
        plan.padded.image,
        plan.padded.channel,
        groups,
        group_inputs,
        outputs // groups,
        kernel_taps,
        outputs,
        int(channels_last if gradient_last is None else gradient_last),
        int(plan.pads),
        0,
        0,
    )
    source, work = source_of(plan, channels_last), images * pixels * group_taps * outputs

    def make(threads: int) -> Run:
        parts = min(threads, segments * groups * tiles)
        sums = parts * run_tiles if segments == 1 else segments * groups * tiles
        sizes = (
            parts * together * plan.padded.image * plan.pads,
            parts * together * pixels * width,
            sums * blocks * tile_size,
        )
        begins = in_lines(sizes)
        settings = np.array((*g._replace(panels=begins[1], sums=begins[2]), *source), np.int64)
        total = begins[-1]

        def run(x: int, dy: int, dw: int) -> None:
            room = scratch(total, dtype)
            _sum_tiles(parts, parts, parts, settings, taps, table, x, dy, dw, room)
            if segments > 1:
                _add_segments(groups * blocks, threads, settings, room, dw)

        return run

    return by_threads(make, work, GRAIN)


@jit
def _sum_channels(first, last, images, channels, pixels, like, dy, db):
    """db[c] = sum over images and pixels of dy[image, c, pixel], c in [first, last); both addresses."""
    source, target = pointer_at(dy, like), pointer_at(db, like)
    lanes = lanes_of(source)
    for c in range(first, last):
        total = 0.0
        for n in range(images):
            start = (n * channels + c) * pixels
            a = splat_like(source, 0.0)
            b = splat_like(source, 0.0)
            i = 0
            while i + 2 * lanes <= pixels:
                a = a + load(source, start + i)
                b = b + load(source, start + i + lanes)
                i += 2 * lanes
            while i < pixels:
                a = a + load_first(source, start + i, pixels - i)
                i += lanes
            total += reduce_add(a + b)
        poke(target, c, total)


@jit
def _sum_rows(first, last, rows, channels, like, dy, db):
    """db[c] = sum over rows of dy[row, c], for vectors [first, last) of channels; 64 rows in registers at a time."""
    source, target = pointer_at(dy, like), pointer_at(db, like)
    lanes = lanes_of(source)
    for vector in range(first, last):
        c = vector * lanes
        total = splat_like(source, 0.0)
        for row in range(0, rows, 64):
            part = splat_like(source, 0.0)
            for r in range(row, min(rows, row + 64)):
                part = part + load_first(source, r * channels + c, channels - c)
            total = total + part
        store_first(target, c, total, channels - c)


_bias_planes = threaded(_sum_channels)
_bias_rows = threaded(_sum_rows)


def bias_launch(shape: tuple[int, ...], dtype: np.dtype[Any], channels_last: bool) -> Run:
    """What sums dense dy (N, C, H, W) over everything but channels, each sum in a fixed order: ``run(dy, db)``."""
    images, channels, height, width = shape
    pixels, work, like = height * width, images * channels * height * width, np.empty(0, dtype)
    if channels_last:
        vectors = -(-channels // (tile_width(dtype) // 2))
        return lambda dy, db: _bias_rows(vectors, threads_for(work, SUM_GRAIN), images * pixels, channels, like, dy, db)
    return lambda dy, db: _bias_planes(channels, threads_for(work, SUM_GRAIN), images, channels, pixels, like, dy, db)


def bias_gradient(dy: Array, channels_last: bool) -> Array:
    """db (C,) of dense dy (N, C, H, W)."""
    db, elements = empty(dy.shape[1], dy.dtype), flat(dy)
    bias_launch(dy.shape, dy.dtype, channels_last)(address(elements), address(db))
    return db
