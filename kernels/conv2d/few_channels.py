"""The kernel for few channels: vectors of pixels, for outputs that would leave most lanes of a channel vector idle.

Rows of the register tile are output channels, whose weights are read by broadcast where they lie; its vectors are
pixels side by side, loaded from a padded block of image rows at the place of each tap. Nothing is packed or transposed.
The pixels of a block are one run through the padded rows, so the columns of the margin are computed and not written.
It serves steps of 1: convolutions of stride 1 and every transposed pass, whose strides lie on the output's side.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba.np.unsafe.ndarray import to_fixed_tuple

from kernels.activation.vectors import ACTIVATION_CODES, activate
from kernels.conv2d.gather import CHUNK, LINE
from kernels.conv2d.geometry import Gather, Table
from kernels.conv2d.launch import Job, Launch, Run
from kernels.conv2d.moves import clear, copy_run, fill_planes
from kernels.runtime.numba_cpu import jit, scratch, threaded
from kernels.simd import (
    TILE_ROWS,
    TILE_VECTORS,
    VECTOR_BYTES,
    advance,
    as_integers,
    broadcast,
    lane_mask,
    lanes_of,
    load,
    multiply_gathered,
    peek,
    pointer,
    pointer_at,
    poke,
    store,
    store_masked,
)

Array = np.ndarray[Any, Any]

#: Tiles for two or three channels, and for one: as many sums as registers hold.
SOME_ROWS = 3
SOME_VECTORS = TILE_ROWS // 2
ONE_VECTORS = 8
#: Output channels a group up to which this kernel is taken, and products of an output.
FEW_OUTPUTS = 3
FEW_PRODUCTS = 32
#: Multiply-adds that are worth a thread of their own.
GRAIN = 1_000_000
#: Pixels of a block and values of its source, which stay in L2.
_BLOCK_PIXELS = 1024
_BLOCK_SOURCE = 65536


class Rows(NamedTuple):
    """Sizes of a pass; distances in elements."""

    images: int
    groups: int
    group_inputs: int
    group_outputs: int
    height: int  # of the source
    width: int
    top: int  # rows and columns of zeros before it
    left: int
    pitch: int  # values in a padded row
    slot_rows: int  # padded rows that a block reads
    rows: int  # of the largest grid
    block_rows: int
    chunk_inputs: int  # source channels summed in registers
    weight_out: int  # distances in the weight
    weight_in: int
    weight_group: int
    out_row: int  # values in a row of the output, and in a plane
    out_plane: int
    activation: int
    keeps_sums: int  # the sums before it are wanted too
    room: int  # scratch elements of a row of sums
    sums: int  # where in a part's scratch the sums and the lists begin, and its size
    lists: int
    scratch: int


FIELDS = len(Rows._fields)


class Grids(NamedTuple):
    """Tables of the grids: `sizes` [grids, 7] int64 has rows, columns, place, spacing of rows and columns in the
    output, number of taps, and where in the tap tables they start. The tap tables hold one chunk of channels."""

    sizes: np.ndarray[Any, np.dtype[np.int64]]
    source_taps: Table
    weight_taps: Table


@lru_cache(1024)
def _plan(plan: Gather, group_inputs: int, weight_in: int) -> tuple[Grids, tuple[int, ...]]:
    """Tables of a geometry, and (pitch, slot_rows, rows, block_rows, chunk_inputs)."""
    top, _, left, right = plan.margin
    pitch = left + plan.source[1] + right
    rows = max(grid.size[0] for grid in plan.grids)
    reach = max((shift[0] for grid in plan.grids for shift in grid.shifts), default=0)
    extra = top + max(reach, 0)
    fits = _BLOCK_SOURCE // (pitch * group_inputs) - extra
    block_rows = min(rows, max(1, min(_BLOCK_PIXELS // pitch, max(fits, 2 * extra))))
    slot_rows = block_rows + extra
    most = max(len(grid.taps) for grid in plan.grids)
    chunk = max(1, min(group_inputs, CHUNK // max(most, 1)))
    sizes, source_taps, weight_taps = [], [], []
    channels = np.arange(chunk, dtype=np.int64)[:, None]
    start = 0
    for grid, index in zip(plan.grids, plan.tap_index, strict=True):
        places = np.asarray([(a + top) * pitch + b + left for a, b in grid.shifts], np.int64)
        source_taps.append((channels * (slot_rows * pitch) + places).reshape(-1))
        weight_taps.append((channels * weight_in + index).reshape(-1))
        place = grid.place[0] * plan.output.row + grid.place[1]
        sizes.append((*grid.size, place, grid.spacing[0] * plan.output.row, grid.spacing[1], len(places), start))
        start += chunk * len(places)
    found = Grids(np.asarray(sizes, np.int64), np.concatenate(source_taps), np.concatenate(weight_taps))
    return found, (pitch, slot_rows, rows, block_rows, chunk)


def serves(plan: Gather, group_inputs: int, group_outputs: int, channels_last: bool) -> bool:
    """Whether this kernel takes a pass."""
    if channels_last or any(grid.step != (1, 1) for grid in plan.grids):
        return False
    products = group_inputs * max(len(grid.taps) for grid in plan.grids)
    return group_outputs <= FEW_OUTPUTS or products <= FEW_PRODUCTS


@jit
def _pad_rows(planes, p, first_row, block):
    """block[c, h, :] = row first_row + h of plane c with its margins, for the channels of a group; zeros outside."""
    after = p.pitch - p.left - p.width
    for c in range(p.group_inputs):
        for h in range(p.slot_rows):
            row = first_row + h
            target = advance(block, (c * p.slot_rows + h) * p.pitch)
            if row < 0 or row >= p.height:
                clear(target, p.pitch)
            else:
                clear(target, p.left)
                copy_run(advance(planes, (c * p.height + row) * p.width), advance(target, p.left), p.width)
                clear(advance(target, p.left + p.width), after)


@jit(inline="always")
def _finished(values, code):
    if code == 0:
        return values
    return activate(1, values) if code == 1 else activate(code, values)


@jit
def write_rows(totals, pitch, rows, columns, shift, code, plane, down, along, free):
    """plane[i * down + j * along] = act(totals[i * pitch + j] + shift); free: a vector of scratch."""
    lanes = lanes_of(totals)
    whole = columns // lanes * lanes
    last = lane_mask(totals, 0, columns - whole)
    overlap = rows - 1 if down == columns and lanes <= columns and whole < columns else 0
    for i in range(rows):
        source = advance(totals, i * pitch)
        target = advance(plane, i * down)
        if along == 1:
            for j in range(0, whole, lanes):
                store(target, j, _finished(load(source, j) + shift, code))
            if i < overlap:
                # A whole vector: what is past the row's end is overwritten by the next row.
                store(target, whole, _finished(load(source, whole) + shift, code))
            elif whole < columns:
                store_masked(target, whole, _finished(load(source, whole) + shift, code), last)
        else:
            for j in range(0, columns, lanes):
                store(free, 0, _finished(load(source, j) + shift, code))
                for lane in range(min(lanes, columns - j)):
                    poke(target, (j + lane) * along, peek(free, lane))


@jit
def _row_parts(first, last, parts, settings, tables, x, w, bias, y, before, scratch):
    """Parts [first, last) of the images' blocks of rows.

    settings: int64, the fields of Rows. tables: Grids as a plain tuple. x, w, bias, y, before: addresses of elements
    [N, groups * group_inputs, H, W], of the weight's, of [channels], of [N, channels, OH, OW], and of as many for the
    sums before the activation, which are p.keeps_sums. scratch: elements [parts, p.scratch]: a padded block
    [group_inputs * slot_rows * pitch and what a tile reads past it]; from p.sums on, sums [TILE_ROWS, p.room:
    block_rows * pitch and what a tile writes past them]; from p.lists on, int64 [2, TILE_ROWS].
    """
    p = Rows(*to_fixed_tuple(settings, FIELDS))
    grids = Grids(*tables)
    given, weight, shifts = pointer_at(x, scratch), pointer_at(w, scratch), pointer_at(bias, scratch)
    results, kept = pointer_at(y, scratch), pointer_at(before, scratch)
    lanes = lanes_of(scratch)
    blocks = (p.rows + p.block_rows - 1) // p.block_rows
    units = p.images * blocks
    for part in range(first, last):
        source = pointer(scratch, part * p.scratch)
        totals = advance(source, p.sums)
        weight_rows = as_integers(advance(source, p.lists))
        total_rows = advance(weight_rows, TILE_ROWS)
        for r in range(TILE_ROWS):
            poke(total_rows, r, r * p.room)
        for unit in range(units * part // parts, units * (part + 1) // parts):
            image = unit // blocks
            row = (unit - image * blocks) * p.block_rows
            for group in range(p.groups):
                planes = (image * p.groups + group) * p.group_inputs
                _pad_rows(advance(given, planes * p.height * p.width), p, row - p.top, source)
                for g in range(grids.sizes.shape[0]):
                    sizes = grids.sizes[g]
                    rows = min(p.block_rows, sizes[0] - row)
                    pixels = (rows - 1) * p.pitch + sizes[1]
                    source_taps = pointer(grids.source_taps, sizes[6])
                    weight_taps = pointer(grids.weight_taps, sizes[6])
                    o = 0
                    while o < p.group_outputs and rows > 0:
                        left = p.group_outputs - o
                        step = TILE_ROWS if left > SOME_ROWS else (SOME_ROWS if left > 1 else 1)
                        for r in range(step):
                            poke(weight_rows, r, min(r, left - 1) * p.weight_out)
                        c = 0
                        while True:
                            taps = min(p.chunk_inputs, p.group_inputs - c) * sizes[5]
                            a = advance(weight, group * p.weight_group + o * p.weight_out + c * p.weight_in)
                            base = advance(source, c * p.slot_rows * p.pitch)
                            v = 0
                            while v < pixels:
                                b, out = advance(base, v), advance(totals, v)
                                if step == 1:
                                    multiply_gathered(
                                        1, ONE_VECTORS, a, weight_rows, weight_taps,
                                        b, source_taps, taps, out, total_rows, lanes, c,
                                    )  # fmt: skip
                                    v += ONE_VECTORS * lanes
                                elif step == SOME_ROWS:
                                    multiply_gathered(
                                        SOME_ROWS, SOME_VECTORS, a, weight_rows, weight_taps,
                                        b, source_taps, taps, out, total_rows, lanes, c,
                                    )  # fmt: skip
                                    v += SOME_VECTORS * lanes
                                else:
                                    multiply_gathered(
                                        TILE_ROWS, TILE_VECTORS, a, weight_rows, weight_taps,
                                        b, source_taps, taps, out, total_rows, lanes, c,
                                    )  # fmt: skip
                                    v += TILE_VECTORS * lanes
                            c += p.chunk_inputs
                            if c >= p.group_inputs:
                                break
                        for r in range(min(step, left)):
                            channel = group * p.group_outputs + o + r
                            shift = broadcast(shifts, channel)
                            place = (image * p.groups * p.group_outputs + channel) * p.out_plane
                            place += sizes[2] + row * sizes[3]
                            found = advance(totals, r * p.room)
                            free = advance(found, p.room - lanes)
                            if p.keeps_sums:
                                target = advance(kept, place)
                                write_rows(found, p.pitch, rows, sizes[1], shift, 0, target, sizes[3], sizes[4], free)
                            target = advance(results, place)
                            write_rows(
                                found, p.pitch, rows, sizes[1], shift, p.activation, target, sizes[3], sizes[4], free
                            )
                        o += step


_run_rows = threaded(_row_parts)


def launch(job: Job) -> Launch:
    """A job that this kernel `serves`, prepared."""
    plan, inputs = job.plan, job.group_inputs
    grids, (pitch, slot_rows, rows, block_rows, chunk) = _plan(plan, inputs, job.weight_steps[1])
    past = max(ONE_VECTORS, SOME_VECTORS, TILE_VECTORS) * VECTOR_BYTES // job.dtype.itemsize
    slots, room = inputs * slot_rows * pitch + past, block_rows * pitch + past + 2 * VECTOR_BYTES // job.dtype.itemsize
    lists = -(-(slots + TILE_ROWS * room) // LINE) * LINE
    size = lists + -(-2 * TILE_ROWS * 8 // job.dtype.itemsize // LINE) * LINE
    p = Rows(
        job.images,
        job.groups,
        inputs,
        job.group_outputs,
        *plan.source,
        plan.margin[0],
        plan.margin[2],
        pitch,
        slot_rows,
        rows,
        block_rows,
        chunk,
        *job.weight_steps,
        plan.output.row,
        plan.output.channel,
        ACTIVATION_CODES[job.activation],
        int(job.keeps_sums),
        room,
        slots,
        lists,
        size,
    )
    settings, tables, dtype = np.array(p, np.int64), tuple(grids), job.dtype
    blocks = job.images * -(-rows // block_rows)
    leaves_gaps, size_of_plane, like = plan.leaves_gaps, plan.output.channel, np.empty(0, dtype)

    def make(threads: int) -> Run:
        parts = min(threads, blocks)

        def run(x: int, weight: int, bias: int, y: int, before: int) -> bool:
            if leaves_gaps:
                fill_planes(job.images, job.outputs, size_of_plane, bias, y, like)
            _run_rows(parts, parts, parts, settings, tables, x, weight, bias, y, before, scratch(parts * size, dtype))
            return True

        return run

    products = sum(grid.size[0] * grid.size[1] * len(grid.taps) for grid in plan.grids)
    return Launch(make, job.images * inputs * job.outputs * products, GRAIN)
