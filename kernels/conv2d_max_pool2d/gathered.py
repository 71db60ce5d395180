"""The gather kernel of conv2d (`kernels.conv2d.gather`), whose sums are pooled while they are in cache."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kernels.conv2d.gather import BLOCK, Ahead, sum_class
from kernels.conv2d.geometry import Gather
from kernels.conv2d.image_pass import GRAIN, Tables, flat, pack_weight, source_within, tables, tile_width
from kernels.conv2d.moves import Source, add_bias, apply_activation, copy_run, pad_image
from kernels.conv2d.pixels import end_class, repeat_last
from kernels.conv2d_max_pool2d.bands import Bands, Windows, plan_bands
from kernels.conv2d_max_pool2d.windows_cpu import Results, elements, pool_band, target_of
from kernels.runtime.numba_cpu import jit, scratch, threaded, threads_for, zeros
from kernels.simd import TILE_ROWS, advance, lanes_of, peek, pointer, poke

Array = np.ndarray[Any, Any]

#: Pixels of a band: their sums for one tile of channels stay in L2 beside the source. As many as of a block of conv2d,
#: by whose size pixels are classed.
BAND = BLOCK


class PooledPass(NamedTuple):
    """Sizes and distances of a pass; all in elements and pixels."""

    padded_image: int
    padded_channel: int
    slots: int  # padded images that a part keeps at once; 0: the source is read where it lies
    group_inputs: int  # source channels of a group
    group_outputs: int  # output channels of a group
    kernel_taps: int  # taps of a whole filter
    block: int  # pixels of the maps that a band computes at most
    room: int  # pixels of the sums in scratch
    carried: int  # pixels that are carried over from band to band
    pooled: int  # windows of a band at most
    list_size: int
    block_parts: int  # the work falls into the bands' parts * block_parts parts


@jit
def _sort_band(p, m, columns, images, top, bottom, width, lists, starts):
    """Lists of a band's pixels by class, places relative to its first image; as `conv2d.pixels.sort_pixels`."""
    classes = m.classes.shape[0]
    if classes == 1:  # what most are, and nothing to sort
        q = 0
        for n in range(images):
            for i in range(top, bottom):
                row = n * p.padded_image + m.row_place[i]
                for j in range(columns):
                    poke(lists, q, row + m.column_place[j])
                    poke(lists, p.list_size + q, q * width)
                    q += 1
        end = end_class(p, lists, width, 0, q)
        repeat_last(lists, q, end)
        poke(starts, 0, 0)
        poke(starts, 1, end)
        return
    for k in range(classes + 1):
        poke(starts, k, 0)
    for i in range(top, bottom):
        for j in range(columns):
            kind = m.row_class[i] + m.column_class[j]
            poke(starts, kind, peek(starts, kind) + images)
    following = advance(starts, classes + 1)
    position = 0
    for k in range(classes):
        size = peek(starts, k)
        poke(starts, k, position)
        poke(following, k, position)
        position = end_class(p, lists, width, position, size)
    poke(starts, classes, position)
    q = 0
    for n in range(images):
        for i in range(top, bottom):
            for j in range(columns):
                kind = m.row_class[i] + m.column_class[j]
                at = peek(following, kind)
                poke(following, kind, at + 1)
                poke(lists, at, n * p.padded_image + m.row_place[i] + m.column_place[j])
                poke(lists, p.list_size + at, q * width)
                q += 1
    for k in range(classes):
        repeat_last(lists, peek(following, k), peek(starts, k + 1))


@jit
def _gather_parts(
    first, last, p, s, m, w, t, bands, part_starts, x, slots, panels, bias, late_bias, y, winners, before, sums, pooled,
    kept, carries, lists, starts,
):  # fmt: skip
    """Parts [first, last) of a pass.

    p, s, m, w, t: PooledPass, Source, Meetings, Windows and Target. bands, part_starts: see bands.py. x: the source's
    elements. slots: scratch elements [parts, p.slots, padded image], or [1]. panels: elements [blocks, group_inputs,
    kernel_taps, tile width]. bias, late_bias: elements [outputs]; late_bias is what the windows add, zeros where the
    bias is added before. y, winners, before: see `pool_band`. sums: scratch elements [parts, room + 1, tile width];
    pooled, kept: [parts, p.pooled, tile width]; carries: [parts, blocks, p.carried, tile width]. lists, starts: scratch
    int64 [parts, 2, list_size], [parts, 2, classes + 1].
    """
    lanes = lanes_of(x)
    width = 2 * lanes
    group_blocks = (p.group_outputs + width - 1) // width
    blocks = t.outputs // p.group_outputs * group_blocks
    classes = m.classes.shape[0]
    columns = w.map_columns
    for part in range(first, last):
        band_part = part // p.block_parts
        block_part = part - band_part * p.block_parts
        first_block = blocks * block_part // p.block_parts
        last_block = blocks * (block_part + 1) // p.block_parts
        totals = pointer(sums, part * (p.room + 1) * width)
        out = pointer(pooled, part * p.pooled * width)
        known = pointer(kept, part * p.pooled * width if t.keeps_sums else 0)
        band_lists = pointer(lists, part * 2 * p.list_size)
        bounds = pointer(starts, part * 2 * (classes + 1))
        padded = pointer(slots, part * p.slots * p.padded_image)
        listed_images = listed_top = listed_bottom = -1
        ready = -1  # the image that alone is in the slots
        for index in range(part_starts[band_part], part_starts[band_part + 1]):
            band = bands[index]
            image, images, top, bottom, base, keep = band[0], band[1], band[2], band[3], band[6], band[7]
            if images != listed_images or top != listed_top or bottom != listed_bottom:
                _sort_band(p, m, columns, images, top, bottom, width, band_lists, bounds)
                listed_images, listed_top, listed_bottom = images, top, bottom
            source = pointer(x, image * s.given_image)
            if p.slots:
                source = padded
                if images > 1 or image != ready:
                    for n in range(images):
                        target = advance(padded, n * p.padded_image)
                        pad_image(pointer(x, (image + n) * s.given_image), s, 0, s.channels, target)
                    ready = image if images == 1 else -1
            old = (top - base) * columns
            fresh = advance(totals, old * width)
            count = images * (bottom - top) * columns
            for block in range(first_block, last_block):
                group = block // group_blocks
                channel = (block - group * group_blocks) * width
                inputs = advance(source, group * p.group_inputs * p.padded_channel)
                weights = pointer(panels, block * p.group_inputs * p.kernel_taps * width)
                carry = pointer(carries, (part * blocks + block) * p.carried * width)
                copy_run(carry, totals, old * width)
                for k in range(classes):
                    sum_class(
                        p, m.classes[k, 0], peek(bounds, k), peek(bounds, k + 1), inputs, 0, p.group_inputs,
                        m.classes[k, 1], pointer(m.source_taps, m.classes[k, 2]),
                        pointer(m.weight_taps, m.classes[k, 2]), weights, band_lists, fresh, Ahead(weights, 0, 0, 0),
                    )  # fmt: skip
                valid = min(width, p.group_outputs - channel)
                channel += group * p.group_outputs
                if t.activates_sums:
                    add_bias(fresh, count, width, valid, pointer(bias, channel))
                    apply_activation(fresh, count * width, t.activation)
                copy_run(advance(totals, (keep - base) * columns * width), carry, (bottom - keep) * columns * width)
                pool_band(t, w, band, totals, width, valid, channel, late_bias, out, known, y, winners, before)


_run_parts = threaded(_gather_parts)


@lru_cache(1024)
def _prepare(
    plan: Gather,
    w: Windows,
    images: int,
    groups: int,
    kernel: tuple[int, int],
    outputs: int,
    width: int,
    channels_last: bool,
    split: tuple[int, int],
) -> tuple[PooledPass, Source, Bands, Tables]:
    """What is known of a pass before its arrays; `split`: into so many parts of the bands and of the channels."""
    group_inputs = plan.channels // groups
    bands = plan_bands(w, images, BAND, split[0])
    # By a size that does not depend on the threads: nor does a pixel's class then, and with it the order of its sum.
    t = tables(plan, images, group_inputs, kernel, width, channels_last)
    p = PooledPass(
        t.padded.image,
        t.padded.channel,
        bands.images if any(t.margin) else 0,
        group_inputs,
        outputs // groups,
        kernel[0] * kernel[1],
        bands.block,
        bands.carried + bands.block,
        bands.carried,
        bands.outputs,
        bands.block + t.meetings.classes.shape[0] * TILE_ROWS,
        split[1],
    )
    return p, source_within(plan, t.margin, t.padded, channels_last), bands, t


def run_gathered(
    plan: Gather,
    w: Windows,
    images: int,
    groups: int,
    kernel: tuple[int, int],
    weight: Array,
    x: Array,
    bias: Array,
    results: Results,
    activation: str | None,
    channels_last: bool,
) -> None:
    """Fill `results` from dense `x`.

    Args:
        plan: the geometry of the part of the convolution that the windows see.
        w: the windows.
        images: N.
        groups: of both sides.
        kernel: (kh, kw) of the weight.
        weight: contiguous (C_out, C_in / G, kh, kw).
        x: dense images in the layout of the plan.
        bias: one value for each output channel.
        results: where to write.
        activation: between the sums and the windows.
        channels_last: the layout.
    """
    width = tile_width(x.dtype)
    outputs, group_inputs = weight.shape[0], weight.shape[1]
    kernel_taps = kernel[0] * kernel[1]
    blocks = groups * -(-outputs // groups // width)
    panels = pack_weight(
        weight, (group_inputs * kernel_taps, kernel_taps, weight.size // groups), groups, outputs // groups,
        group_inputs, kernel_taps,
    )  # fmt: skip
    pixels = images * w.map_rows * w.map_columns
    threads = threads_for(pixels * group_inputs * kernel_taps * outputs, GRAIN)
    # Few pixels and many channels: the parts share the pixels and divide the channels.
    shares = blocks >= threads and pixels < threads * 8 * TILE_ROWS
    split = (1, threads) if shares else (min(threads, images * w.rows), 1)
    parts = split[0] * split[1]
    p, source, bands, t = _prepare(plan, w, images, groups, kernel, outputs, width, channels_last, split)
    classes = t.meetings.classes.shape[0]
    target = target_of(results, activation, channels_last)
    dtype = x.dtype
    pooled = scratch(parts * p.pooled * width, dtype)
    _run_parts(
        parts,
        parts,
        p,
        source,
        t.meetings,
        w,
        target,
        bands.table,
        bands.parts,
        flat(x),
        scratch(max(parts * p.slots * p.padded_image, 1), dtype),
        panels,
        bias,
        zeros(outputs, dtype) if target.activates_sums else bias,
        *map(elements, results),
        scratch(parts * (p.room + 1) * width, dtype),
        pooled,
        scratch(parts * p.pooled * width, dtype) if target.keeps_sums else pooled,
        scratch(max(parts * blocks * p.carried * width, 1), dtype),
        scratch(parts * 2 * p.list_size, np.int64),
        scratch(parts * 2 * (classes + 1), np.int64),
    )
