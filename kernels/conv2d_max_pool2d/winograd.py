"""Winograd's F(2x2, 3x3) of conv2d (`kernels.conv2d.winograd`), whose sums are pooled while they are in cache.

Its tile of outputs is 2x2: windows of 2x2 with stride 2 are its tiles, and their maximum is taken in registers.

The four sums of a tile round differently. Where the inputs around two places are equal, direct sums tie and the first
wins; here (unless the inputs are 0) the other one may be larger by a rounding and get the gradient, as it may where
max_pool2d follows conv2d's own Winograd kernel.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kernels.conv2d.geometry import Gather
from kernels.conv2d.image_pass import GRAIN, MOVE_GRAIN
from kernels.conv2d.moves import apply_activation, copy_run
from kernels.conv2d.winograd import SMALL_ROWS, Tiles, filter_order, multiply_all
from kernels.conv2d.winograd_transforms import GROUP, column_sums, filter_parts, output_row, transform_rows
from kernels.conv2d_max_pool2d.bands import BOTTOM, IMAGES, TOP, Bands, Windows, plan_bands
from kernels.conv2d_max_pool2d.windows_cpu import (
    Results,
    at_least,
    choose,
    elements,
    floor_of,
    pool_band,
    target_of,
    write_pooled,
)
from kernels.runtime.numba_cpu import jit, scratch, threaded, threads_for, zeros
from kernels.simd import (
    TILE_ROWS,
    VECTOR_BYTES,
    advance,
    any_lane,
    is_nan,
    lane_mask,
    lanes_of,
    load_first,
    maximum_nan,
    pointer,
    poke,
    splat_integer,
    store,
    store_bytes_masked,
    zeros_like,
)

Array = np.ndarray[Any, Any]

#: Bytes of the transformed source of a band: half of L2.
BAND_BYTES = 1 << 19


class PooledTiles(NamedTuple):
    """Sizes of a pass beside those in `Tiles`."""

    room: int  # pixels of the sums in scratch
    carried: int  # pixels that are carried over from band to band
    pooled: int  # windows of a band at most
    tiles_are_windows: int


@lru_cache(1024)
def _plan(plan: Gather, w: Windows, images: int, parts: int) -> Bands:
    """The bands, of the size that leaves the fewest rows of the register tile empty."""
    tile_columns, image_rows = -(-w.map_columns // 2), -(-w.map_rows // 2)
    most = max(tile_columns, min(BAND_BYTES // (64 * plan.channels), 240))
    sizes = [2 * rows * w.map_columns for rows in range(1, min(image_rows, most // tile_columns) + 1)]
    sizes += [count * w.map_pixels for count in range(1, min(images, most // (image_rows * tile_columns)) + 1)]

    def cost(bands: Bands) -> int:
        tiles = bands.table[:, IMAGES] * -(-(bands.table[:, BOTTOM] - bands.table[:, TOP]) // 2) * tile_columns
        rest = tiles % TILE_ROWS
        padded = tiles + np.where(rest == 0, 0, np.where(rest > SMALL_ROWS, TILE_ROWS - rest, SMALL_ROWS / 2))
        # A band also reads all filters, which takes as long as some of its tiles.
        return int((padded + TILE_ROWS).sum())

    return min((plan_bands(w, images, size, parts, 2) for size in sizes), key=cost)


@jit
def _pool_tiles(products, p, bias, valid, t, pooled, winners):
    """pooled[tile, :] = act(the largest of A' m A + bias) for a row of tiles; returns whether all of it is finite.

    products: its place in [16, room, tile width]. winners: bytes [tile, outputs], if they are wanted, else anything.
    """
    lanes = lanes_of(products)
    width = 2 * lanes
    step = p.room * width
    strange = zeros_like(products)
    floor = floor_of(products, t.activation)
    for j in range(0, valid, lanes):
        shift = load_first(bias, j, valid - j)
        inside = lane_mask(products, 0, valid - j)
        for tile in range(p.tile_columns):
            m = advance(products, tile * width + j)
            a0, a1 = column_sums(m, step, 0)
            b0, b1 = column_sums(m, step, 1)
            c0, c1 = column_sums(m, step, 2)
            d0, d1 = column_sums(m, step, 3)
            y00 = (a0 + b0 + c0) + shift
            y01 = (b0 - c0 - d0) + shift
            y10 = (a1 + b1 + c1) + shift
            y11 = (b1 - c1 - d1) + shift
            # Not finite times zero is NaN, which the sums keep.
            strange = strange + (y00 + y01) * 0.0 + (y10 + y11) * 0.0
            if t.keeps_winners:
                best = at_least(y00, floor)
                at = splat_integer(products, 0)
                best, at = choose(at_least(y01, floor), 1, best, at)
                best, at = choose(at_least(y10, floor), 2, best, at)
                best, at = choose(at_least(y11, floor), 3, best, at)
                store_bytes_masked(winners, tile * t.outputs + j, at, inside)
                store(pooled, tile * width + j, best)
            else:
                best = maximum_nan(maximum_nan(y00, y01), maximum_nan(y10, y11))
                store(pooled, tile * width + j, at_least(best, floor))
    return not any_lane(is_nan(strange))


@jit
def _winograd_parts(
    first, last, p, s, w, t, bands, part_starts, x, filters, bias, late_bias, source, products, tables, y, winners,
    before, sums, pooled, kept, carries, failed,
):  # fmt: skip
    """Parts [first, last) of a pass.

    p, s, w, t: Tiles, PooledTiles, Windows and Target. bands, part_starts: see bands.py. x, filters, bias, source,
    products, tables, failed: as of `kernels.conv2d.winograd`. late_bias: zeros. y, winners, before: see `pool_band`.
    sums: scratch elements [parts, s.room, tile width]; pooled, kept: [parts, s.pooled, tile width]; carries: [parts,
    blocks, s.carried, tile width].
    """
    lanes = lanes_of(x)
    width = 2 * lanes
    blocks = (p.outputs + width - 1) // width
    for part in range(first, last):
        band_part = part // p.block_parts
        block_part = part - band_part * p.block_parts
        transformed = pointer(source, part * 16 * p.step)
        product = pointer(products, part * 16 * p.room * width)
        totals = pointer(sums, 0 if s.tiles_are_windows else part * s.room * width)
        out = pointer(pooled, part * s.pooled * width)
        known = pointer(kept, part * s.pooled * width if t.keeps_sums else 0)
        row_table = pointer(tables, part * (p.pitch + p.inputs))
        tap_table = advance(row_table, p.pitch)
        for c in range(p.inputs):
            poke(tap_table, c, c * p.pitch)
        finite = True
        for index in range(part_starts[band_part], part_starts[band_part + 1]):
            band = bands[index]
            image, images, top, bottom, begin, base, keep = (
                band[0], band[1], band[2], band[3], band[4], band[6], band[7],
            )  # fmt: skip
            tile_rows = (bottom - top + 1) // 2
            tiles = images * tile_rows * p.tile_columns
            for tile in range(p.pitch):
                poke(row_table, tile, min(tile, tiles - 1))
            planes = pointer(x, image * p.inputs * p.height * p.width)
            transform_rows(planes, p, 0, images * tile_rows, tile_rows, top, transformed)
            old = (top - base) * p.out_width
            for block in range(blocks * block_part // p.block_parts, blocks * (block_part + 1) // p.block_parts):
                panel = pointer(filters, block * 16 * p.filter_step)
                multiply_all(p, tiles, transformed, panel, p.filter_step, 0, p.inputs, row_table, tap_table, product)
                channel = block * width
                valid = min(width, p.outputs - channel)
                shift = pointer(bias, channel)
                if s.tiles_are_windows:
                    for row in range(images * tile_rows):
                        found = advance(product, row * p.tile_columns * width)
                        place = ((image * w.rows + begin + row) * w.columns) * t.outputs + channel
                        taken = pointer(winners, place if t.keeps_winners else 0)
                        line = advance(out, row * w.columns * width)
                        finite = _pool_tiles(found, p, shift, valid, t, line, taken) and finite
                    first_window = (image * w.rows + begin) * w.columns
                    write_pooled(t, w, first_window, tiles, width, valid, channel, out, y)
                    continue
                carry = pointer(carries, (part * blocks + block) * s.carried * width)
                copy_run(carry, totals, old * width)
                at = old
                for row in range(images * tile_rows):
                    rows_here = min(2, bottom - top - 2 * (row % tile_rows))
                    found = advance(product, row * p.tile_columns * width)
                    line = advance(totals, at * width)
                    finite = output_row(found, p, shift, valid, line, rows_here) and finite
                    at += rows_here * p.out_width
                if t.activates_sums:
                    apply_activation(advance(totals, old * width), (at - old) * width, t.activation)
                line = advance(totals, (keep - base) * p.out_width * width)
                copy_run(line, carry, (bottom - keep) * p.out_width * width)
                pool_band(t, w, band, totals, width, valid, channel, late_bias, out, known, y, winners, before)
        failed[part] = 0 if finite else 1


_run_parts = threaded(_winograd_parts)


def run_winograd(
    plan: Gather,
    w: Windows,
    images: int,
    weight: Array,
    x: Array,
    bias: Array,
    results: Results,
    activation: str | None,
) -> bool:
    """Fill contiguous `results` from contiguous `x`; arguments as of `run_gathered`.

    Returns:
        Whether every sum is finite. If not, the results are not what direct sums would give.
    """
    order = filter_order(plan)
    assert order is not None
    outputs, inputs = weight.shape[:2]
    dtype = x.dtype
    lanes = VECTOR_BYTES // dtype.itemsize
    width = 2 * lanes
    blocks = -(-outputs // width)
    tile_columns = -(-w.map_columns // 2)
    threads = threads_for(images * w.map_pixels * inputs * outputs * 4, GRAIN)
    shares = blocks >= threads and images * w.map_pixels // 4 < threads * 8 * TILE_ROWS
    band_parts, block_parts = (1, threads) if shares else (min(threads, images * w.rows), 1)
    parts = band_parts * block_parts
    bands = _plan(plan, w, images, band_parts)
    tiles = int((bands.table[:, IMAGES] * -(-(bands.table[:, BOTTOM] - bands.table[:, TOP]) // 2)).max()) * tile_columns
    # Room for what a vector and a tile have past the end; odd numbers of lines, so that what is read together spreads
    # over the sets of L1.
    pitch = (tiles // lanes + 2) * lanes
    step = (inputs * pitch // lanes | 1) * lanes
    filter_step = inputs * width + lanes
    filters = scratch(blocks * 16 * filter_step, dtype)
    makers = threads_for(weight.size, MOVE_GRAIN)
    panels = scratch(makers * GROUP * 9 * width, dtype)
    filter_parts(
        makers, makers, makers, weight.reshape(-1), inputs * 9, 9, outputs, inputs, filter_step, order, panels, filters
    )
    first_row, first_column = min(plan.grids[0].shifts)
    target = target_of(results, activation, channels_last=False)
    p = Tiles(
        images,
        inputs,
        outputs,
        *plan.source,
        first_row,
        first_column,
        -(-w.map_rows // 2),
        tile_columns,
        w.map_rows,
        w.map_columns,
        0,
        pitch,
        step,
        filter_step,
        tiles + TILE_ROWS | 1,
        target.activation,
        block_parts,
        band_parts,
    )
    in_registers = w[2:8] == (2, 2, 2, 2, 0, 0) and w.map_rows == 2 * w.rows and w.map_columns == 2 * w.columns
    s = PooledTiles(bands.room, bands.carried, bands.outputs, int(in_registers and target.activation <= 1))
    failed = scratch(parts, np.int64)
    pooled = scratch(parts * (s.pooled + 1) * width, dtype)
    _run_parts(
        parts,
        parts,
        p,
        s,
        w,
        target,
        bands.table,
        bands.parts,
        x.reshape(-1),
        filters,
        bias,
        zeros(outputs, dtype),
        scratch(parts * 16 * step, dtype),
        scratch(parts * 16 * p.room * width, dtype),
        scratch(parts * (pitch + inputs), np.int64),
        *map(elements, results),
        scratch(1 if s.tiles_are_windows else parts * s.room * width, dtype),
        pooled,
        scratch(parts * s.pooled * width, dtype) if target.keeps_sums else pooled,
        scratch(max(parts * blocks * s.carried * width, 1), dtype),
        failed,
    )
    return not failed.any()
