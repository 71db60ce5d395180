"""Running the gather kernel: from a geometry to scratch, parts and calls."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from kernels.activation.vectors import ACTIVATION_CODES
from kernels.conv2d import geometry
from kernels.conv2d.gather import BLOCK, CHUNK, FEW_PIXELS, PLAIN_BLOCK, gather_parts, pack_parts
from kernels.conv2d.geometry import Gather
from kernels.conv2d.launch import APART, Job, Launch, Run, in_lines
from kernels.conv2d.moves import Source
from kernels.conv2d.pixels import FEW_ROWS, Meetings, Pass
from kernels.runtime.numba_cpu import address, scratch, threads_for
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
    sizes = (*weight_steps, group_outputs, group_inputs, kernel_taps)
    pack_parts(blocks, threads, address(weight), *sizes, panels, 0)
    return panels


def direct_products(plan: Gather, images: int) -> int:
    """Products of one output channel with one input channel that the gather kernel computes."""
    rows, columns = geometry.sides(plan, images, BLOCK, TILE_ROWS, FEW_ROWS)
    return images * rows.meetings * columns.meetings


@dataclass(frozen=True)
class Tables:
    """The taps of a pass: which pixels meet which, where they are, and the margin that they reach."""

    meetings: Meetings
    margin: tuple[int, int, int, int]
    padded: geometry.Layout


@lru_cache(1024)
def tables(plan: Gather, images: int, group_inputs: int, kernel: tuple[int, int], width: int, last: bool) -> Tables:
    """What a geometry, a batch size and a tile's width determine; arguments as of `Job`."""
    rows, columns = geometry.sides(plan, images, BLOCK, TILE_ROWS, FEW_ROWS)
    (top, bottom), (left, right) = (
        (max(0, -side.reach[0]), max(0, side.reach[1] - size + 1))
        for side, size in zip((rows, columns), plan.source, strict=True)
    )
    height, breadth = plan.source
    padded = geometry.layout(plan.channels, height + top + bottom, breadth + left + right, last)
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
            source_taps.append((channels * padded.channel + np.asarray(places, np.int64)).reshape(-1))
            weight_taps.append(((channels * (kernel[0] * kernel[1]) + np.asarray(index, np.int64)) * width).reshape(-1))
            classes.append((taps, chunk, start))
            start += chunk * taps
    meetings = Meetings(
        rows.kinds * len(columns.taps),
        (rows.places + top) * padded.row,
        columns.kinds,
        (columns.places + left) * padded.column,
        np.asarray(classes, np.int64),
        np.concatenate(source_taps),
        np.concatenate(weight_taps),
    )
    return Tables(meetings, (top, bottom, left, right), padded)


@lru_cache(1024)
def launch(job: Job) -> Launch:
    """A job of the gather kernel, prepared; it takes any."""
    plan, images, last = job.plan, job.images, job.channels_last
    width, kernel_taps = tile_width(job.dtype), job.kernel[0] * job.kernel[1]
    blocks = job.groups * -(-job.group_outputs // width)
    plane = plan.target[0] * plan.target[1]
    t = tables(plan, images, job.group_inputs, job.kernel, width, last)
    classes, padded = t.meetings.classes, t.padded
    block = BLOCK if len(classes) > 1 else PLAIN_BLOCK
    # A block of pixels touches this many images, and the next block begins in the last of them.
    slots = min(images, (block - 2) // plane + 2) if any(t.margin) else 0
    list_size = block + len(classes) * TILE_ROWS
    pixels = images * plane
    # Few pixels use a weight once or twice: then it is packed on the way, a chunk of channels at a time. Which way the
    # sums take depends on this, so it must not depend on the threads.
    panel_inputs = int(classes[:, 1].min()) if pixels <= FEW_PIXELS else 0
    lists = -(-8 * (3 * list_size + 2 * (len(classes) + 1)) // job.dtype.itemsize)
    meetings, source = tuple(t.meetings), source_within(plan, t.margin, padded, last)
    pack = (*job.weight_steps, job.group_outputs, job.group_inputs, kernel_taps)

    def make(threads: int) -> Run:
        # Few pixels and many channels: the parts share the pixels and divide the channels.
        divides_pixels = pixels >= threads * 8 * TILE_ROWS or blocks < threads
        pixel_parts, block_parts = (threads, 1) if divides_pixels else (1, threads)
        # One allocation for everything: the panels, and what each part writes.
        panel = kernel_taps * width
        panels = 0 if panel_inputs else blocks * job.group_inputs * panel
        parts = in_lines((panels, APART))[-1]
        sizes = (slots * padded.image, panel_inputs * panel, (block + 1) * width, lists)
        _, *begins, part_size = in_lines((*sizes, APART))
        p = Pass(
            images,
            len(t.meetings.row_class),
            len(t.meetings.column_class),
            padded.image,
            padded.channel,
            slots,
            plan.output.image,
            plan.output.channel,
            job.groups,
            job.group_inputs,
            job.group_outputs,
            kernel_taps,
            block,
            list_size,
            ACTIVATION_CODES[job.activation],
            pixel_parts,
            block_parts,
            panel_inputs,
            *job.weight_steps,
            int(job.keeps_sums),
            parts,
            part_size,
            *begins[:3],
        )
        settings = np.array((*p, *source), np.int64)
        packers = threads_for(panels, MOVE_GRAIN) if panels else 0
        total, dtype = parts + threads * part_size, job.dtype

        def run(x: int, weight: int, bias: int, y: int, before: int) -> bool:
            room = scratch(total, dtype)
            if packers:
                pack_parts(blocks, packers, weight, *pack, room, 0)
            gather_parts(threads, threads, settings, meetings, x, weight, bias, y, before, room)
            return True

        return run

    work = direct_products(plan, images) * job.group_inputs * job.outputs
    return Launch(make, work, GRAIN)
