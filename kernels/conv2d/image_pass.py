"""Running the gather kernel: from a geometry and arrays to scratch, parts and calls."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from kernels.activation.vectors import ACTIVATION_CODES
from kernels.conv2d import geometry
from kernels.conv2d.gather import (
    BLOCK,
    CHUNK,
    COLLECTED_BLOCK,
    FEW_ROWS,
    Meetings,
    Pass,
    Source,
    gather_parts,
    pack_parts,
)
from kernels.conv2d.geometry import Gather
from kernels.runtime.numba_cpu import scratch, threads_for
from kernels.simd import TILE_ROWS, VECTOR_BYTES

Array = np.ndarray[Any, Any]

#: Multiply-adds that are worth a thread of their own (some ten microseconds).
GRAIN = 1_000_000
#: Values moved that are worth a thread of their own.
MOVE_GRAIN = 100_000


def tile_width(dtype: np.dtype[Any]) -> int:
    """Channels of a tile: two vectors."""
    return 2 * VECTOR_BYTES // dtype.itemsize


def flat(array: Array) -> Array:
    """The elements of a dense 4-d array in memory order, as one dimension, without a copy."""
    if not array.flags.c_contiguous:
        array = array.transpose(0, 2, 3, 1)
    return array.reshape(-1)


def source_of(plan: Gather, channels_last: bool) -> Source:
    """Sizes and distances of the plan's source image, with all of its margin."""
    return source_within(plan, plan.margin, plan.padded, channels_last)


def source_within(
    plan: Gather, margin: tuple[int, int, int, int], padded: geometry.Layout, channels_last: bool
) -> Source:
    """Sizes and distances of the plan's source image, with so much of its margin."""
    top, bottom, left, _ = margin
    height, width = plan.source
    return Source(
        plan.channels,
        height,
        width,
        int(channels_last),
        top,
        left,
        height + top + bottom,
        padded.row,
        padded.channel,
        plan.given.image,
    )


def pack_weight(
    weight: Array,
    weight_steps: tuple[int, int, int],
    groups: int,
    group_outputs: int,
    group_inputs: int,
    kernel_taps: int,
) -> Array:
    """Panels [groups * blocks, group_inputs, kernel_taps, tile width] of a contiguous weight; see `pack_parts`."""
    width = tile_width(weight.dtype)
    blocks = groups * -(-group_outputs // width)
    panels = scratch(blocks * group_inputs * kernel_taps * width, weight.dtype)
    threads = threads_for(panels.size, MOVE_GRAIN)
    pack_parts(blocks, threads, weight.reshape(-1), *weight_steps, group_outputs, group_inputs, kernel_taps, panels)
    return panels


def direct_products(plan: Gather, images: int) -> int:
    """Products of one output channel with one input channel that the gather kernel computes."""
    rows, columns = geometry.sides(plan, images, BLOCK, TILE_ROWS, FEW_ROWS)
    return images * rows.meetings * columns.meetings


@dataclass(frozen=True)
class Tables:
    """What a geometry, a batch size and a lane count determine of a pass."""

    meetings: Meetings
    margin: tuple[int, int, int, int]
    padded: geometry.Layout
    pads: bool
    collects: bool
    block: int
    slots: int
    list_size: int
    products: int  # see `direct_products`


@lru_cache(1024)
def tables(
    plan: Gather,
    images: int,
    group_inputs: int,
    kernel: tuple[int, int],
    width: int,
    last: bool,
    block: int | None = None,
) -> Tables:
    """The tables of a pass, arguments as of `run_pass`; blocks are of `block` pixels, which are then not collected."""
    plane = sum(grid.size[0] * grid.size[1] for grid in plan.grids)
    one_to_one = len(plan.grids) == 1 and plan.grids[0].shifts == ((0, 0),) and plan.grids[0].step == (1, 1)
    # One tap, every source pixel an output pixel, planes apart: a tile would touch a page for each channel.
    collects = block is None and one_to_one and plan.grids[0].size == plan.source and not last
    if block is None:
        block = COLLECTED_BLOCK if collects else BLOCK
    rows, columns = geometry.sides(plan, images, block, TILE_ROWS, FEW_ROWS)
    (top, bottom), (left, right) = (
        (max(0, -side.reach[0]), max(0, side.reach[1] - size + 1))
        for side, size in zip((rows, columns), plan.source, strict=True)
    )
    height, breadth = plan.source
    padded = geometry.layout(plan.channels, height + top + bottom, breadth + left + right, last)
    channel_step = block if collects else padded.channel
    classes, source_taps, weight_taps = [], [], []
    start = 0
    for row_taps, row_shifts in zip(rows.taps, rows.shifts, strict=True):
        for column_taps, column_shifts in zip(columns.taps, columns.shifts, strict=True):
            taps = len(row_taps) * len(column_taps)
            # Chunks of equal size, as near to CHUNK taps as whole channels come.
            chunks = max(1, round(group_inputs * taps / CHUNK))
            chunk = -(-group_inputs // min(chunks, group_inputs))
            channels = np.arange(chunk, dtype=np.int64)[:, None]
            places = [a * padded.row + b * padded.column for a in row_shifts for b in column_shifts]
            index = [r * kernel[1] + s for r in row_taps for s in column_taps]
            source_taps.append((channels * channel_step + np.asarray(places, np.int64)).reshape(-1))
            weight_taps.append(((channels * (kernel[0] * kernel[1]) + np.asarray(index, np.int64)) * width).reshape(-1))
            classes.append((taps, chunk, start))
            start += chunk * taps
    meetings = Meetings(
        np.asarray(rows.kinds, np.int64) * len(columns.taps),
        (np.asarray(rows.places, np.int64) + top) * padded.row,
        np.asarray(columns.kinds, np.int64),
        (np.asarray(columns.places, np.int64) + left) * padded.column,
        np.asarray(classes, np.int64),
        np.concatenate(source_taps),
        np.concatenate(weight_taps),
    )
    pads = any((top, bottom, left, right))
    # A block of pixels touches this many images, and the next block begins in the last of them.
    slots = min(images, (block - 2) // plane + 2) if pads else 0
    list_size = block + len(classes) * TILE_ROWS
    return Tables(
        meetings,
        (top, bottom, left, right),
        padded,
        pads,
        collects,
        block,
        slots,
        list_size,
        direct_products(plan, images),
    )


def run_pass(
    plan: Gather,
    images: int,
    groups: int,
    group_outputs: int,
    kernel: tuple[int, int],
    weight: Array,
    weight_steps: tuple[int, int, int],
    x: Array,
    bias: Array,
    y: Array,
    before: Array,
    activation: str | None,
    channels_last: bool,
) -> None:
    """Fill `y` (and `before`, the sums before the activation, unless its size is 0) from dense `x`.

    Args:
        plan: the geometry.
        images: N.
        groups, group_outputs: output channels are groups * group_outputs.
        kernel: (kh, kw) of the weight.
        weight: contiguous.
        weight_steps: its distances between output channels, summed channels and groups.
        x, y, before: dense images in the layout of the plan.
        bias: one value for each output channel.
        activation: applied to the sums.
        channels_last: the layout.
    """
    width = tile_width(x.dtype)
    group_inputs = plan.channels // groups
    blocks = groups * -(-group_outputs // width)
    kernel_taps = kernel[0] * kernel[1]
    t = tables(plan, images, group_inputs, kernel, width, channels_last)
    panels = pack_weight(weight, weight_steps, groups, group_outputs, group_inputs, kernel_taps)
    rows, columns = y.shape[2:]
    pixels = images * rows * columns
    threads = threads_for(t.products * group_inputs * groups * group_outputs, GRAIN)
    # Few pixels and many channels: the parts share the pixels and divide the channels.
    divides_pixels = pixels >= threads * 8 * TILE_ROWS or blocks < threads
    pixel_parts, block_parts = (threads, 1) if divides_pixels else (1, threads)
    room = plan.channels * t.block if t.collects else t.slots * t.padded.image
    classes = t.meetings.classes.shape[0]
    p = Pass(
        images,
        rows,
        columns,
        t.padded.image,
        t.padded.channel,
        t.slots,
        int(t.collects),
        plan.output.image,
        plan.output.channel,
        groups,
        group_inputs,
        group_outputs,
        kernel_taps,
        t.block,
        t.list_size,
        ACTIVATION_CODES[activation],
        pixel_parts,
        block_parts,
    )
    gather_parts(
        threads,
        threads,
        p,
        source_within(plan, t.margin, t.padded, channels_last),
        t.meetings,
        flat(x),
        scratch(threads * room, x.dtype),
        panels,
        bias,
        flat(y),
        flat(before) if before.size else before.reshape(-1),
        scratch(threads * (t.block + 1) * width, x.dtype),
        scratch(threads * 3 * t.list_size, np.int64),
        scratch(threads * 2 * (classes + 1), np.int64),
    )
