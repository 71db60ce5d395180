"""3x3 convolutions of stride 1 with 2.25 times fewer multiplications: Winograd's F(2x2, 3x3).

    output tile 2x2 = A' [ (G g G') * (B' d B) ] A        for a filter g and the 4x4 source tile d around the output

(Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast Algorithms for Convolutional Neural
Networks, 2016.) The product * is elementwise in a tile and a sum over channels, so it is 16 matrix products of tiles x
channels with channels x output channels; they run on the register tile.

Images (N, C, H, W) in blocks of rows of tiles:

1. source[q, c, t] = B' d B, vectors over 16 tiles side by side, read straight from the image, zeros outside it;
2. for 32 output channels: product[q, t, k] = sum over c of source[q, c, t] * filter[q, c, k], with filters that are
   transformed right before, a run of channels at a time: that is cheaper than to fetch transformed ones from afar;
3. A' m A plus the bias in vectors over k, then transposed into the output's planes.

The transforms add and subtract neighbouring values, which costs a bit or so of what a direct sum keeps; sums in runs of
`CHUNK` channels win it back. Measured from 32 to 512 channels, the largest error is 0.5 to 2 times that of PyTorch's
direct sums (3 times where both are a few units in the last place), for numbers of one scale: beside a number far larger
than the rest of its tile, the others lose as many digits. In float64, where the budget leaves no room, it is not used.
The transforms also spread one NaN or infinity over a whole tile: a pass whose result is not finite reports that, and is
done again by the gather kernel.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba.np.unsafe.ndarray import to_fixed_tuple

from kernels.activation.vectors import ACTIVATION_CODES
from kernels.conv2d.gather import CHUNK, LINE
from kernels.conv2d.geometry import Gather, filter_order
from kernels.conv2d.image_pass import GRAIN, direct_products
from kernels.conv2d.launch import Job, Launch, Run, in_lines
from kernels.conv2d.moves import apply_activation, write_sums
from kernels.conv2d.winograd_transforms import GROUP, output_row, transform_filters, transform_rows
from kernels.runtime.numba_cpu import empty, jit, scratch, threaded
from kernels.simd import (
    TILE_ROWS,
    VECTOR_BYTES,
    advance,
    as_integers,
    lanes_of,
    multiply_tile,
    pointer,
    pointer_at,
    poke,
    prefetch,
)

Array = np.ndarray[Any, Any]

#: Channels, in and out, from which the transforms pay.
LEAST_CHANNELS = 32
#: Rows of the tile for what is left of a block, when that is few.
SMALL_ROWS = 4
#: Tiles of a block at most, each of which transforms all filters.
MOST_TILES = 400


class Tiles(NamedTuple):
    """Sizes of a pass; distances in elements."""

    images: int
    inputs: int
    outputs: int
    height: int  # of the source
    width: int
    first_row: int  # source row and column of the first tile's corner, usually below 0
    first_column: int
    tile_rows: int  # of an image
    tile_columns: int
    out_height: int
    out_width: int
    block_rows: int  # rows of tiles in a block
    pitch: int  # tiles in a line of the transformed source
    step: int  # values in one of its 16 parts
    filter_step: int  # and in one of the 16 parts of filters
    room: int  # tiles in one of the 16 products
    activation: int
    block_parts: int  # the work falls into parts of the rows x block_parts parts of the output channels
    row_parts: int


class Spaces(NamedTuple):
    """The rest of a pass's settings: distances in the weight, and where a part's scratch has what."""

    weight_out: int
    weight_in: int
    keeps_sums: int  # the sums before the activation are wanted too
    source: int
    products: int
    pixels: int
    panel: int
    tables: int
    room: int  # elements of all of it


FIELDS, SPACES = len(Tiles._fields), len(Spaces._fields)


def serves(plan: Gather, images: int, groups: int, outputs: int, dtype: np.dtype[Any], channels_last: bool) -> bool:
    """Whether a pass is done this way: where it can be, and is less work than direct sums."""
    if channels_last or groups != 1 or dtype != np.float32 or min(plan.channels, outputs) < LEAST_CHANNELS:
        return False
    return filter_order(plan) is not None and _pays(plan, images, outputs)


#: Cycles of the transform of a filter; with shorter vectors it takes more of them.
_FILTER_CYCLES = 6 if VECTOR_BYTES == 64 else 8


def _source_cycles(plan: Gather, images: int) -> int:
    """Cycles of the transform of the source: 60 for each channel of a vector of tiles."""
    rows, columns = plan.grids[0].size
    tile_rows, tile_columns = -(-rows // 2), -(-columns // 2)
    lanes = VECTOR_BYTES // 4
    if 2 * tile_columns <= lanes:
        return 60 * -(-images * tile_rows // 2) * plan.channels * 5 // 4  # two rows in a vector
    return 60 * images * tile_rows * -(-tile_columns // lanes) * plan.channels


@lru_cache(4096)
def _pays(plan: Gather, images: int, outputs: int) -> bool:
    """Whether the cycles are fewer than those of direct sums, by costs measured with 16 lanes."""
    inputs = plan.channels
    rows, columns = plan.grids[0].size
    tile_rows, tile_columns = -(-rows // 2), -(-columns // 2)
    lanes = VECTOR_BYTES // 4
    # Two multiply-adds of vectors a cycle, at nine tenths of the peak; 90 cycles for a tile of 16 channels. Direct sums
    # of few pixels also take a while for each filter, to pack it.
    product = 1.1 * inputs * outputs / (2 * lanes)
    tiles = images * tile_rows * tile_columns
    filters = (_FILTER_CYCLES - (2 if tiles <= 64 else 0)) * inputs * outputs
    transforms = _source_cycles(plan, images) + 90 * tiles * -(-outputs // lanes) + filters
    return 16 * tiles * product + transforms < direct_products(plan, images) * product


@lru_cache(1024)
def _plan(plan: Gather, images: int, outputs: int, threads: int) -> tuple[int, int, int]:
    """(block_rows, row_parts, block_parts): how the rows of tiles fall into blocks and the work into parts."""
    rows, columns = plan.grids[0].size
    tile_rows, tile_columns = -(-rows // 2), -(-columns // 2)
    total = images * tile_rows
    width = 2 * VECTOR_BYTES // 4
    blocks = -(-outputs // width)
    most = max(tile_columns, MOST_TILES)

    def cost(block_rows: int, row_parts: int, block_parts: int) -> float:
        """Cycles of a part, divided by the channels of both sides: of products, filters and source."""
        tiles = block_rows * tile_columns
        padded = -(-tiles // TILE_ROWS) * TILE_ROWS if tiles % TILE_ROWS > SMALL_ROWS else tiles + SMALL_ROWS / 2
        row_blocks = -(-total // block_rows)
        block = (0.55 * padded + _FILTER_CYCLES) * -(-blocks // block_parts) / blocks
        source = _source_cycles(plan, images) / (plan.channels * outputs)
        return -(-row_blocks // row_parts) * block + source / row_parts

    splits = [(threads, 1)] if total >= threads or blocks < threads else []
    if blocks >= threads > 1:
        splits.append((1, threads))
    choices = [
        (cost(block_rows, row_parts, block_parts), block_rows, row_parts, block_parts)
        for row_parts, block_parts in splits
        for block_rows in range(1, min(total, max(1, most // tile_columns)) + 1)
    ]
    best = min(choices, key=lambda choice: (choice[0], choice[1], choice[3]))
    return best[1], best[2], best[3]


@jit
def multiply_all(p, tiles, transformed, filters, step, first, last, row_table, tap_table, product):
    """product[q, t, :] = sum over channels of transformed[q, channel, t] * filters[q, channel, :], 16 times.

    Channels [first, last), whose filters are [16, channels, tile width], 16 parts `step` apart; they join what the
    channels before them gave.
    """
    lanes = lanes_of(transformed)
    width = 2 * lanes
    for q in range(16):
        a = advance(transformed, q * p.step)
        panel = advance(filters, q * step)
        for chunk in range(first, last, CHUNK):
            taps = min(CHUNK, last - chunk)
            b = advance(panel, (chunk - first) * width)
            table = advance(tap_table, chunk)
            following = advance(b, taps * width)
            if last - chunk <= CHUNK:
                following = advance(filters, min(q + 1, 15) * step)
            lines = taps * width // LINE
            t = 0
            while t < tiles:
                # The panel that comes next, a share of it with each tile.
                for line in range(lines * t // tiles, lines * min(t + TILE_ROWS, tiles) // tiles):
                    prefetch(following, line * LINE)
                out = advance(product, (q * p.room + t) * width)
                rows = advance(row_table, t)
                if tiles - t > SMALL_ROWS:
                    multiply_tile(TILE_ROWS, 2, a, rows, table, taps, b, out, width, lanes, chunk)
                    t += TILE_ROWS
                else:
                    multiply_tile(SMALL_ROWS, 2, a, rows, table, taps, b, out, width, lanes, chunk)
                    t += SMALL_ROWS


@jit
def _winograd_parts(first, last, settings, spaces, x, w, order, bias, y, before, scratch, failed):
    """Parts [first, last) of a pass.

    settings, spaces: int64, the fields of Tiles and of Spaces. x, w, bias, y, before: addresses of elements [N, C, H,
    W], of the weight's, of [outputs], of the output's, and of as many for the sums before the activation, which are
    s.keeps_sums. order: see `transform_filters`. scratch: elements [parts, s.room]: transformed filters [16,
    filter_step]; then at the places that Spaces names the transformed source [16, step], a step holding [inputs,
    pitch]; products [16, room, tile width]; pixels [4 * room, tile width]; a panel [GROUP, 9, tile width]; int64 tables
    [pitch + inputs]. failed: int64 [parts], set to whether a sum is not finite.
    """
    p = Tiles(*to_fixed_tuple(settings, FIELDS))
    s = Spaces(*to_fixed_tuple(spaces, SPACES))
    given, weight, shifts = pointer_at(x, scratch), pointer_at(w, scratch), pointer_at(bias, scratch)
    results, kept = pointer_at(y, scratch), pointer_at(before, scratch)
    lanes = lanes_of(scratch)
    width = 2 * lanes
    blocks = (p.outputs + width - 1) // width
    total = p.images * p.tile_rows
    out_plane = p.out_height * p.out_width
    out_image = p.outputs * out_plane
    row_blocks = (total + p.block_rows - 1) // p.block_rows
    for part in range(first, last):
        row_part = part // p.block_parts
        block_part = part - row_part * p.block_parts
        transformed_filters = pointer(scratch, part * s.room)
        transformed = advance(transformed_filters, s.source)
        product = advance(transformed_filters, s.products)
        sums = advance(transformed_filters, s.pixels)
        panel = advance(transformed_filters, s.panel)
        row_table = as_integers(advance(transformed_filters, s.tables))
        tap_table = advance(row_table, p.pitch)
        for c in range(p.inputs):
            poke(tap_table, c, c * p.pitch)
        finite = True
        for unit in range(row_blocks * row_part // p.row_parts, row_blocks * (row_part + 1) // p.row_parts):
            begin = unit * p.block_rows
            end = min(total, begin + p.block_rows)
            tiles = (end - begin) * p.tile_columns
            for t in range(p.pitch):
                poke(row_table, t, min(t, tiles - 1))
            count = 0
            image = begin // p.tile_rows
            first_pixel = image * out_plane + 2 * (begin - image * p.tile_rows) * p.out_width
            for index in range(begin, end):
                image = index // p.tile_rows
                row = 2 * (index - image * p.tile_rows)
                count += min(2, p.out_height - row) * p.out_width
            transform_rows(given, p, begin, end - begin, p.tile_rows, 0, transformed)
            for block in range(blocks * block_part // p.block_parts, blocks * (block_part + 1) // p.block_parts):
                channel = block * width
                valid = min(width, p.outputs - channel)
                for c in range(0, p.inputs, CHUNK):
                    last_channel = min(c + CHUNK, p.inputs)
                    transform_filters(
                        advance(weight, channel * s.weight_out + c * s.weight_in), s.weight_out, s.weight_in, valid,
                        last_channel - c, p.inputs - last_channel, order, panel, transformed_filters, p.filter_step,
                    )  # fmt: skip
                    multiply_all(
                        p, tiles, transformed, transformed_filters, p.filter_step, c, last_channel, row_table,
                        tap_table, product,
                    )  # fmt: skip
                at = 0
                for index in range(begin, end):
                    rows_here = min(2, p.out_height - 2 * (index % p.tile_rows))
                    found = advance(product, (index - begin) * p.tile_columns * width)
                    is_finite = output_row(
                        found, p, advance(shifts, channel), valid, advance(sums, at * width), rows_here
                    )
                    finite = finite and is_finite
                    at += rows_here * p.out_width
                if s.keeps_sums:
                    target = advance(kept, channel * out_plane)
                    write_sums(sums, count, width, valid, first_pixel, out_plane, target, out_image, out_plane)
                apply_activation(sums, count * width, p.activation)
                target = advance(results, channel * out_plane)
                write_sums(sums, count, width, valid, first_pixel, out_plane, target, out_image, out_plane)
        failed[part] = 0 if finite else 1


_run_parts = threaded(_winograd_parts)


def launch(job: Job) -> Launch:
    """A job that this kernel `serves`, prepared. It fails where a sum is not finite: a direct one may be."""
    order = filter_order(job.plan)
    assert order is not None
    grid, inputs, outputs = job.plan.grids[0], job.plan.channels, job.outputs
    lanes = VECTOR_BYTES // job.dtype.itemsize
    width = 2 * lanes
    tile_columns = -(-grid.size[1] // 2)
    first_row, first_column = min(grid.shifts)

    def make(threads: int) -> Run:
        block_rows, row_parts, block_parts = _plan(job.plan, job.images, outputs, threads)
        tiles = block_rows * tile_columns
        # Room for what a vector and a tile have past the end; odd numbers of lines, so that what is read together
        # spreads over the sets of L1.
        pitch = (tiles // lanes + 2) * lanes
        step = (inputs * pitch // lanes | 1) * lanes
        filter_step = min(inputs, CHUNK) * width + lanes
        room = tiles + TILE_ROWS | 1
        tables = (pitch + inputs) * 8 // job.dtype.itemsize
        sizes = (16 * filter_step, 16 * step, 16 * room * width, 4 * room * width, GROUP * 9 * width, tables)
        starts = in_lines(sizes)
        p = Tiles(
            job.images,
            inputs,
            outputs,
            *job.plan.source,
            first_row,
            first_column,
            -(-grid.size[0] // 2),
            tile_columns,
            *grid.size,
            block_rows,
            pitch,
            step,
            filter_step,
            room,
            ACTIVATION_CODES[job.activation],
            block_parts,
            row_parts,
        )
        settings = np.array(p, np.int64)
        spaces = np.array(Spaces(*job.weight_steps[:2], int(job.keeps_sums), *starts[1:]), np.int64)
        parts, size, dtype = row_parts * block_parts, row_parts * block_parts * starts[-1], job.dtype

        def run(x: int, weight: int, bias: int, y: int, before: int) -> bool:
            failed = empty(parts, np.int64)
            floats = scratch(size, dtype)
            _run_parts(parts, parts, settings, spaces, x, weight, order, bias, y, before, floats, failed)
            return not any(failed.tolist())

        return run

    return Launch(make, job.images * grid.size[0] * grid.size[1] * inputs * outputs * 4, GRAIN)
