"""The gather kernel of conv2d (`kernels.conv2d.gather`), whose sums are pooled while they are in cache."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba.np.unsafe.ndarray import to_fixed_tuple

from kernels.conv2d.gather import BLOCK, Ahead, pack_parts, sum_class
from kernels.conv2d.geometry import Gather
from kernels.conv2d.image_pass import GRAIN, MOVE_GRAIN, source_within, tables, tile_width
from kernels.conv2d.launch import APART, in_lines
from kernels.conv2d.moves import Source, add_bias, apply_activation, copy_run, pad_image
from kernels.conv2d.pixels import Meetings, end_class, repeat_last
from kernels.conv2d_max_pool2d.bands import Windows, plan_bands
from kernels.conv2d_max_pool2d.windows_cpu import PoolRun, Target, pool_band, target_of
from kernels.runtime.by_address import LIKE, by_threads
from kernels.runtime.numba_cpu import address, jit, scratch, threaded, threads_for
from kernels.simd import TILE_ROWS, advance, array_at, as_integers, lanes_of, peek, pointer, poke

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
    carried: int  # pixels that are carried over from band to band
    list_size: int
    block_parts: int  # the work falls into the bands' parts * block_parts parts
    # Where in scratch the memory of the parts begins, and that of the next one; before it lie the panels.
    at_parts: int
    part_size: int
    # Where in a part's begin the sums, pooled, kept and carried ones, and the lists with the table of classes.
    at_sums: int
    at_pooled: int
    at_kept: int
    at_carries: int
    at_lists: int


FIELDS, SOURCE_FIELDS = len(PooledPass._fields), len(Source._fields)
WINDOW_FIELDS, TARGET_FIELDS = len(Windows._fields), len(Target._fields)


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
    first, last, settings, meetings, bands, part_starts, bytes_like, x, bias, late_bias, y, winners, before, scratch
):
    """Parts [first, last) of a pass.

    settings: int64, the fields of PooledPass, Source, Windows and Target. meetings: Meetings as a plain tuple. bands,
    part_starts: see bands.py. bytes_like: any array of uint8. x, bias .. before: addresses. x: the source's elements.
    bias, late_bias: elements [outputs]; late_bias is what the windows add, zeros where the bias is added before. y,
    winners, before: see `pool_band`. scratch: panels, elements [blocks, group_inputs, kernel_taps, tile width]; and
    from p.at_parts on for each part, p.part_size apart, padded images [p.slots, padded image]; sums [pixels of a band
    and those carried over and one, tile width]; pooled, kept [windows of a band, tile width]; carries [blocks,
    p.carried, tile width]; and lists, starts, int64 [2, list_size], [2, classes + 1].
    """
    p = PooledPass(*to_fixed_tuple(settings, FIELDS))
    s = Source(*to_fixed_tuple(settings[FIELDS:], SOURCE_FIELDS))
    w = Windows(*to_fixed_tuple(settings[FIELDS + SOURCE_FIELDS :], WINDOW_FIELDS))
    t = Target(*to_fixed_tuple(settings[FIELDS + SOURCE_FIELDS + WINDOW_FIELDS :], TARGET_FIELDS))
    m = Meetings(*meetings)
    # Their lengths are not looked at.
    x, y, before = array_at(scratch, x, 1), array_at(scratch, y, 1), array_at(scratch, before, 1)
    bias, late_bias = array_at(scratch, bias, 1), array_at(scratch, late_bias, 1)
    winners = array_at(bytes_like, winners, 1)
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
        padded = pointer(scratch, p.at_parts + part * p.part_size)
        totals, out, known = advance(padded, p.at_sums), advance(padded, p.at_pooled), advance(padded, p.at_kept)
        carries = advance(padded, p.at_carries)
        band_lists = as_integers(advance(padded, p.at_lists))
        bounds = advance(band_lists, 2 * p.list_size)
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
                panel = p.group_inputs * p.kernel_taps * width
                weights = pointer(scratch, block * panel)
                following = block + 1 if block + 1 < last_block else first_block
                ahead = Ahead(pointer(scratch, following * panel), 0, 0, 0)
                carry = advance(carries, block * p.carried * width)
                copy_run(carry, totals, old * width)
                for k in range(classes):
                    sum_class(
                        p, m.classes[k, 0], peek(bounds, k), peek(bounds, k + 1), inputs, 0, p.group_inputs,
                        m.classes[k, 1], pointer(m.source_taps, m.classes[k, 2]),
                        pointer(m.weight_taps, m.classes[k, 2]), weights, band_lists, fresh, ahead,
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
def launch(
    plan: Gather,
    w: Windows,
    images: int,
    groups: int,
    kernel: tuple[int, int],
    outputs: int,
    dtype: np.dtype[Any],
    activation: str | None,
    channels_last: bool,
    keeps_winners: bool,
    keeps_sums: bool,
) -> PoolRun:
    """A pass, prepared.

    Args:
        plan: the geometry of the part of the convolution that the windows see.
        w: the windows.
        images: N.
        groups: of both sides.
        kernel: (kh, kw) of the weight (C_out, C_in / G, kh, kw).
        outputs: C_out.
        dtype: of all arrays.
        activation: between the sums and the windows.
        channels_last: the layout.
        keeps_winners, keeps_sums: what is wanted beside the output.
    """
    width, kernel_taps, group_inputs = tile_width(dtype), kernel[0] * kernel[1], plan.channels // groups
    blocks = groups * -(-outputs // groups // width)
    steps = (group_inputs * kernel_taps, kernel_taps, outputs // groups * group_inputs * kernel_taps)
    pack = (*steps, outputs // groups, group_inputs, kernel_taps)
    panels = blocks * group_inputs * kernel_taps * width
    # By a size that does not depend on the threads: nor does a pixel's class then, and with it the order of its sum.
    t = tables(plan, images, group_inputs, kernel, width, channels_last)
    meetings, classes = tuple(t.meetings), t.meetings.classes.shape[0]
    source = source_within(plan, t.margin, t.padded, channels_last)
    target = target_of(w, outputs, activation, channels_last, keeps_winners, keeps_sums)
    pixels, no_bias, bytes_like = images * w.map_pixels, np.zeros(outputs, dtype), LIKE["uint8"]

    def make(threads: int) -> PoolRun:
        # Few pixels and many channels: the parts share the pixels and divide the channels.
        shares = blocks >= threads and pixels < threads * 8 * TILE_ROWS
        split = (1, threads) if shares else (min(threads, images * w.rows), 1)
        parts = split[0] * split[1]
        bands = plan_bands(w, images, BAND, split[0])
        room, list_size = bands.carried + bands.block, bands.block + classes * TILE_ROWS
        slots = bands.images if any(t.margin) else 0
        integers = 2 * (list_size + classes + 1)
        sizes = (
            slots * t.padded.image, (room + 1) * width, bands.outputs * width, bands.outputs * width * keeps_sums,
            blocks * bands.carried * width, -(-integers * 8 // dtype.itemsize),
        )  # fmt: skip
        _, *begins, part_size = in_lines((*sizes, APART))
        at_parts = in_lines((panels, APART))[-1]
        p = PooledPass(
            t.padded.image,
            t.padded.channel,
            slots,
            group_inputs,
            outputs // groups,
            kernel_taps,
            bands.block,
            bands.carried,
            list_size,
            split[1],
            at_parts,
            part_size,
            *begins[:5],
        )
        settings, total = np.array((*p, *source, *w, *target), np.int64), at_parts + parts * part_size
        packers = threads_for(panels, MOVE_GRAIN)

        def run(x: int, weight: int, bias: int, y: int, winners: int, before: int) -> bool:
            memory = scratch(total, dtype)
            pack_parts(blocks, packers, weight, *pack, memory, 0)
            late = address(no_bias) if target.activates_sums else bias
            _run_parts(
                parts, parts, settings, meetings, bands.table, bands.parts, bytes_like, x, bias, late, y, winners,
                before, memory,
            )  # fmt: skip
            return True

        return run

    return by_threads(make, pixels * group_inputs * kernel_taps * outputs, GRAIN)
