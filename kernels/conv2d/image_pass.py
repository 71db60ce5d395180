"""Running the gather kernel: from a geometry and arrays to scratch, parts and calls."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.activation.vectors import ACTIVATION_CODES
from kernels.conv2d.gather import BLOCK, Pass, Source, gather_parts, pack_parts
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
    """Sizes and distances of the plan's source image."""
    top, _, left, _ = plan.margin
    return Source(
        plan.channels,
        *plan.source,
        int(channels_last),
        top,
        left,
        plan.source[0] + top + plan.margin[1],
        plan.padded.row,
        plan.padded.channel,
        plan.given.image,
    )


def pack_weight(
    weight: Array,
    out_step: int,
    in_step: int,
    group_step: int,
    groups: int,
    group_outputs: int,
    group_inputs: int,
    kernel_taps: int,
    tap_index: Array,
) -> Array:
    """Panels [groups * blocks, group_inputs, taps, tile width] of a contiguous weight; see `pack_parts`."""
    width = tile_width(weight.dtype)
    blocks = groups * -(-group_outputs // width)
    panels = scratch(blocks * group_inputs * tap_index.size * width, weight.dtype)
    turned = scratch(blocks * kernel_taps * width, weight.dtype)
    pack_parts(
        blocks,
        threads_for(panels.size, MOVE_GRAIN),
        weight.reshape(-1),
        out_step,
        in_step,
        group_step,
        group_outputs,
        group_inputs,
        kernel_taps,
        tap_index,
        panels,
        turned,
    )
    return panels


def run_pass(
    plan: Gather,
    images: int,
    groups: int,
    group_outputs: int,
    kernel_taps: int,
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
        kernel_taps: kh * kw of the weight.
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
    source = source_of(plan, channels_last)
    for grid, taps, index in zip(plan.grids, plan.tap_offsets, plan.tap_index, strict=True):
        pixels = images * grid.size[0] * grid.size[1]
        panels = pack_weight(weight, *weight_steps, groups, group_outputs, group_inputs, kernel_taps, index)
        threads = threads_for(pixels * taps.size * groups * group_outputs, GRAIN)
        # Few pixels and many channels: the parts share the pixels and divide the channels.
        divides_pixels = pixels >= threads * 8 * TILE_ROWS or blocks < threads
        pixel_parts, block_parts = (threads, 1) if divides_pixels else (1, threads)
        # A block of pixels touches this many images, and the next block begins in the last of them.
        slots = min(images, (BLOCK - 2) // (grid.size[0] * grid.size[1]) + 2) if plan.pads else 0
        # One tap, every source pixel an output pixel, planes apart: a tile would touch a page for each channel.
        one_to_one = grid.step == (1, 1) and grid.size == plan.source and grid.shifts == ((0, 0),)
        collects = one_to_one and not channels_last and not plan.pads
        if collects:
            taps = np.arange(group_inputs, dtype=np.int64) * BLOCK
        room = plan.channels * BLOCK if collects else slots * plan.padded.image
        step = Pass(
            images,
            *grid.size,
            grid.step[0] * plan.padded.row,
            grid.step[1] * plan.padded.column,
            plan.padded.image,
            plan.padded.channel,
            slots,
            int(collects),
            grid.place[0] * plan.output.row + grid.place[1] * plan.output.column,
            grid.spacing[0] * plan.output.row,
            grid.spacing[1] * plan.output.column,
            plan.output.image,
            plan.output.channel,
            groups,
            group_inputs,
            group_outputs,
            ACTIVATION_CODES[activation],
            pixel_parts,
            block_parts,
        )
        gather_parts(
            threads,
            threads,
            step,
            source,
            flat(x),
            scratch(threads * room, x.dtype),
            taps,
            panels,
            bias,
            flat(y),
            flat(before) if before.size else before.reshape(-1),
            scratch(threads * BLOCK * width, x.dtype),
            scratch(threads * BLOCK, np.int64),
            scratch(threads * BLOCK, np.int64),
        )
