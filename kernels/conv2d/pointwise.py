"""1x1 convolutions on (N, C, H, W): products of the weight, where it lies, with columns of pixels.

Vectors run over pixels. For three vectors of them a run of channels is copied together, which stays in L1 while all
output channels pass over it: tiles of output channels x 3 vectors, whose weights are broadcast from their own place.
Neither the weight is packed nor the output transposed. What is left of an image behind its last whole vectors, up to
`MOST_ODD` pixels, is summed along the channels instead: a vector of them would be nearly empty.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.np.unsafe.ndarray import to_fixed_tuple

from kernels.activation.vectors import ACTIVATION_CODES
from kernels.conv2d.few_channels import write_rows
from kernels.conv2d.gather import CHUNK, LINE
from kernels.conv2d.geometry import Gather
from kernels.conv2d.launch import Job, Launch, Run
from kernels.runtime.numba_cpu import jit, scratch, threaded
from kernels.simd import (
    TILE_ROWS,
    VECTOR_BYTES,
    advance,
    as_integers,
    broadcast,
    dot_tile,
    lanes_of,
    load,
    load_first,
    multiply_tile,
    peek,
    pointer,
    pointer_at,
    poke,
    prefetch,
    select,
    splat_like,
    store,
    zeros_like,
)

Array = np.ndarray[Any, Any]

#: Output channels of a tile: 8 x 3 sums fill the registers as 12 x 2 do.
ROWS = TILE_ROWS * 2 // 3
#: Rows of dot products that are summed together.
DOTS = 4
#: Pixels behind whole vectors that are summed along the channels.
MOST_ODD = 4
#: Pixels of all images that make a weight's packing dear, and otherwise the channels that a sum has here.
FEW_PIXELS = 128
LEAST_INPUTS, MOST_INPUTS = 8, 160
#: Bytes between a weight's inputs up to which a sum may have any number of channels. With few registers the gather
#: kernel is the slower one (by a fifth to a half with AVX2), as its pixels are of many pages; but not where the weights
#: are.
NEAR = 0 if TILE_ROWS >= 12 else 1024
#: Outputs of a group that make it worth while to pick the pixels of a stride.
PICKING_OUTPUTS = 16
#: Weights of a group from which on they do not stay in L2 beside the rest.
FAR = 1 << 16
#: Multiply-adds that are worth a thread of their own.
GRAIN = 1_000_000


class Columns(NamedTuple):
    """Sizes of a pass; distances in elements."""

    images: int
    groups: int
    group_inputs: int
    group_outputs: int
    pixels: int  # of an output image
    odd: int  # of these, summed along the channels
    source_pixels: int  # of a source image: as many, but where a stride leaves some out
    columns: int  # of an output image
    row_step: int  # source pixels from an output row to the next, and from a column to the next
    column_step: int
    weight_out: int  # distances in the weight
    weight_in: int
    weight_group: int
    asks: int  # weights come from afar, and are asked for in time
    activation: int
    keeps_sums: int  # the sums before it are wanted too
    pixel_parts: int  # the work falls into pixel_parts * output_parts parts
    output_parts: int
    panel: int  # scratch elements of a part's panel, and of all that it has
    room: int
    tables: int  # where in them its tables begin


FIELDS = len(Columns._fields)


def _vectors(pixels: int, lanes: int, strides: bool) -> tuple[int, int]:
    """Vectors of an image's pixels, and how many pixels are left behind them to be summed along the channels."""
    odd = pixels % lanes if pixels > lanes and pixels % lanes <= MOST_ODD and not strides else 0
    return -(-(pixels - odd) // lanes), odd


def serves(
    plan: Gather, images: int, group_inputs: int, outputs: int, weight_in: int, itemsize: int, channels_last: bool
) -> bool:
    """Whether this kernel takes a pass, by what was measured beside the gather kernel: where vectors are full and
    either there are few channels, or weights that lie near each other, or few pixels that use each weight."""
    grid = plan.only_grid
    if channels_last or grid is None or plan.pads:
        return False
    strides = grid.step != (1, 1)
    if len(grid.taps) != 1 or (not strides and grid.size != plan.source):
        return False
    # Pixels that lie apart are picked one by one, which has to pay.
    if strides and (grid.spacing != (1, 1) or not NEAR or outputs < PICKING_OUTPUTS):
        return False
    pixels, lanes = grid.size[0] * grid.size[1], VECTOR_BYTES // itemsize
    vectors, odd = _vectors(pixels, lanes, strides)
    if 4 * (pixels - odd) < 3 * vectors * lanes:
        return False
    few = weight_in == 1 and images * pixels <= FEW_PIXELS
    takes_all = weight_in * itemsize <= NEAR
    return few or LEAST_INPUTS <= group_inputs and (takes_all or group_inputs <= MOST_INPUTS)


@jit
def _copy_columns(planes, pixels, channels, first, count, vectors, panel):
    """panel[c, :] = pixels [first, first + count) of plane c, with zeros up to whole vectors."""
    lanes = lanes_of(planes)
    whole = count == vectors * lanes
    for c in range(channels):
        source = advance(planes, c * pixels + first)
        target = advance(panel, c * vectors * lanes)
        if whole and vectors == 3:
            # The next ones of a plane are asked for: too few at a time for the processor to see them coming.
            for at in range(3 * lanes, 6 * lanes, LINE):
                prefetch(source, at)
            store(target, 0, load(source, 0))
            store(target, lanes, load(source, lanes))
            store(target, 2 * lanes, load(source, 2 * lanes))
            continue
        for at in range(0, vectors * lanes, lanes):
            store(target, at, load_first(source, at, count - at))


@jit
def _pick_columns(planes, distance, channels, places, count, vectors, panel):
    """panel[c, t] = plane c at places[t] for t < count, planes `distance` apart, with zeros up to whole vectors."""
    lanes = lanes_of(planes)
    for c in range(channels):
        source = advance(planes, c * distance)
        target = advance(panel, c * vectors * lanes)
        for t in range(count // lanes * lanes, vectors * lanes, lanes):
            store(target, t, zeros_like(target))
        for t in range(count):
            poke(target, t, peek(source, peek(places, t)))


@jit
def _fetch_rows(w, rows, channels):
    """Ask for the weights of a tile of output channels, which lie together."""
    for r in range(ROWS):
        for k in range(0, channels, LINE):
            prefetch(w, peek(rows, r) + k)


@jit
def _list_rows(p, o, last, rows):
    """Where the weights of output channels [o, o + ROWS) lie; those past the last one repeat it."""
    for r in range(ROWS):
        poke(rows, r, min(o + r, last - 1) * p.weight_out)


@jit
def _sum_columns(p, planes, w, first, count, vectors, first_output, last_output, panel, sums, tables):
    """sums[output - first_output, :] of pixels [first, first + count) for output channels of a group.

    planes: its source planes. w: its weight. panel: scratch elements [CHUNK, vectors, lanes]. sums: scratch elements
    [outputs and a tile, vectors, lanes]. tables: int64 [CHUNK + 2 * ROWS + 3 * lanes], which begins with the channels'
    places and ends with room for those of pixels.
    """
    lanes = lanes_of(planes)
    width = vectors * lanes
    rows = advance(tables, CHUNK)
    following = advance(rows, ROWS)
    places = advance(following, ROWS)
    strides = p.source_pixels != p.pixels
    if strides:
        for t in range(count):
            row = (first + t) // p.columns
            poke(places, t, row * p.row_step + (first + t - row * p.columns) * p.column_step)
    for c in range(0, p.group_inputs, CHUNK):
        channels = min(CHUNK, p.group_inputs - c)
        source = advance(planes, c * p.source_pixels)
        if strides:
            _pick_columns(source, p.source_pixels, channels, places, count, vectors, panel)
        else:
            _copy_columns(source, p.pixels, channels, first, count, vectors, panel)
        a = advance(w, c * p.weight_in)
        for o in range(first_output, last_output, ROWS):
            _list_rows(p, o, last_output, rows)
            if p.asks and o + ROWS < last_output:
                _list_rows(p, o + ROWS, last_output, following)
                _fetch_rows(a, following, channels)
            out = advance(sums, (o - first_output) * width)
            if vectors == 3:
                multiply_tile(ROWS, 3, a, rows, tables, channels, panel, out, width, lanes, c)
            elif vectors == 2:
                multiply_tile(ROWS, 2, a, rows, tables, channels, panel, out, width, lanes, c)
            else:
                multiply_tile(ROWS, 1, a, rows, tables, channels, panel, out, width, lanes, c)


@jit
def _sum_odd(p, planes, w, first_output, last_output, column, sums):
    """sums[output - first_output, lane] of the last `odd` pixels, a vector of lanes for each output channel.

    column: scratch elements [group_inputs, rounded up to lines, and a line].
    """
    lanes = lanes_of(planes)
    found = advance(column, (p.group_inputs + LINE - 1) // LINE * LINE)
    for odd in range(p.odd):
        source = advance(planes, p.pixels - p.odd + odd)
        for c in range(p.group_inputs):
            poke(column, c, peek(source, c * p.pixels))
        for o in range(first_output, last_output, DOTS):
            left = last_output - o
            rows = advance(w, o * p.weight_out)
            dot_tile(1, DOTS, 0, column, 0, lanes, rows, p.weight_out, left, p.group_inputs, found, DOTS, 0, rows)
            for r in range(min(DOTS, left)):
                poke(sums, (o + r - first_output) * lanes + odd, peek(found, r))


@jit
def _write(p, sums, width, image, group, first, count, first_output, last_output, bias, y, before):
    """Finish the sums of some pixels, [outputs, width], and store them."""
    free = advance(sums, (last_output - first_output) * width)
    lanes = lanes_of(sums)
    if count == width and not p.keeps_sums and p.activation <= 1:
        floor = splat_like(sums, 0.0 if p.activation else -np.inf)
        for o in range(first_output, last_output):
            channel = group * p.group_outputs + o
            found = advance(sums, (o - first_output) * width)
            shift = broadcast(bias, channel)
            target = advance(y, (image * p.groups * p.group_outputs + channel) * p.pixels + first)
            for at in range(0, width, lanes):
                v = load(found, at) + shift
                store(target, at, select(v < floor, floor, v))
        return
    for o in range(first_output, last_output):
        channel = group * p.group_outputs + o
        found = advance(sums, (o - first_output) * width)
        shift = broadcast(bias, channel)
        place = (image * p.groups * p.group_outputs + channel) * p.pixels + first
        if p.keeps_sums:
            write_rows(found, 0, 1, count, shift, 0, advance(before, place), 0, 1, free)
        write_rows(found, 0, 1, count, shift, p.activation, advance(y, place), 0, 1, free)


@jit
def _column_parts(first, last, settings, x, w, bias, y, before, scratch):
    """Parts [first, last) of a pass.

    settings: int64, the fields of Columns. x, w, bias, y, before: addresses of elements [N, groups * group_inputs,
    source_pixels], of the weight's, of [channels], of [N, channels, pixels], and of as many for the sums before the
    activation, which are p.keeps_sums. scratch: elements [parts, p.room]: a panel and sums, see `_sum_columns` and
    `_sum_odd`, and int64 tables.
    """
    p = Columns(*to_fixed_tuple(settings, FIELDS))
    images, weights, shifts = pointer_at(x, scratch), pointer_at(w, scratch), pointer_at(bias, scratch)
    results, kept = pointer_at(y, scratch), pointer_at(before, scratch)
    lanes = lanes_of(scratch)
    whole = p.pixels - p.odd
    blocks = (whole + 3 * lanes - 1) // (3 * lanes) + (1 if p.odd else 0)
    units = p.images * p.groups * blocks
    for part in range(first, last):
        pixel_part = part // p.output_parts
        output_part = part - pixel_part * p.output_parts
        tiles = (p.group_outputs + ROWS - 1) // ROWS
        first_output = tiles * output_part // p.output_parts * ROWS
        last_output = min(p.group_outputs, tiles * (output_part + 1) // p.output_parts * ROWS)
        panel = pointer(scratch, part * p.room)
        totals = advance(panel, p.panel)
        table = as_integers(advance(panel, p.tables))
        for k in range(CHUNK):
            poke(table, k, k * p.weight_in)
        for unit in range(units * pixel_part // p.pixel_parts, units * (pixel_part + 1) // p.pixel_parts):
            plane = unit // blocks
            block = unit - plane * blocks
            image = plane // p.groups
            group = plane - image * p.groups
            planes = advance(images, plane * p.group_inputs * p.source_pixels)
            weight = advance(weights, group * p.weight_group)
            start = block * 3 * lanes
            if start < whole:
                count = min(3 * lanes, whole - start)
                vectors = (count + lanes - 1) // lanes
                _sum_columns(p, planes, weight, start, count, vectors, first_output, last_output, panel, totals, table)
            else:
                start, count, vectors = whole, p.odd, 1
                _sum_odd(p, planes, weight, first_output, last_output, panel, totals)
            width = vectors * lanes
            _write(p, totals, width, image, group, start, count, first_output, last_output, shifts, results, kept)


_run_parts = threaded(_column_parts)


def launch(job: Job) -> Launch:
    """A job that this kernel `serves`, prepared."""
    lanes = VECTOR_BYTES // job.dtype.itemsize
    grid, width = job.plan.grids[0], job.plan.source[1]
    pixels, source_pixels = grid.size[0] * grid.size[1], job.plan.source[0] * width
    # Dot products run along a weight's own row.
    odd = _vectors(pixels, lanes, source_pixels != pixels)[1] if job.weight_steps[1] == 1 else 0
    units = job.images * job.groups * -(-pixels // (3 * lanes))
    asks = job.weight_steps[1] == 1 and job.group_inputs * job.group_outputs >= FAR
    panel = max(CHUNK * 3 * lanes, -(-job.group_inputs // LINE) * LINE + LINE)
    sums = (job.group_outputs + ROWS + 1) * 3 * lanes
    tables = (CHUNK + 2 * ROWS + 3 * lanes) * 8 // job.dtype.itemsize
    room = -(-(panel + sums + tables) // LINE) * LINE

    def make(threads: int) -> Run:
        splits_pixels = units >= 8 * threads or job.group_outputs < threads * ROWS
        pixel_parts, output_parts = (min(threads, units), 1) if splits_pixels else (1, threads)
        parts = pixel_parts * output_parts
        p = Columns(
            job.images,
            job.groups,
            job.group_inputs,
            job.group_outputs,
            pixels,
            odd,
            source_pixels,
            grid.size[1],
            grid.step[0] * width,
            grid.step[1],
            *job.weight_steps,
            int(asks),
            ACTIVATION_CODES[job.activation],
            int(job.keeps_sums),
            pixel_parts,
            output_parts,
            panel,
            room,
            panel + sums,
        )
        settings, size, dtype = np.array(p, np.int64), parts * room, job.dtype

        def run(x: int, weight: int, bias: int, y: int, before: int) -> bool:
            _run_parts(parts, parts, settings, x, weight, bias, y, before, scratch(size, dtype))
            return True

        return run

    return Launch(make, job.images * pixels * job.plan.channels * job.group_outputs, GRAIN)
