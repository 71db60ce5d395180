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
from numba.np.unsafe.ndarray import to_fixed_tuple

from kernels.conv2d.geometry import Gather
from kernels.conv2d.image_pass import GRAIN, MOVE_GRAIN
from kernels.conv2d.launch import APART, in_lines
from kernels.conv2d.moves import apply_activation, copy_run
from kernels.conv2d.winograd import SMALL_ROWS, Tiles, filter_order, multiply_all
from kernels.conv2d.winograd_transforms import GROUP, column_sums, filter_parts, output_row, transform_rows
from kernels.conv2d_max_pool2d.bands import BOTTOM, IMAGES, TOP, Bands, Windows, plan_bands
from kernels.conv2d_max_pool2d.windows_cpu import (
    PoolRun,
    Target,
    at_least,
    choose,
    floor_of,
    pool_band,
    target_of,
    write_pooled,
)
from kernels.runtime.by_address import LIKE, by_threads
from kernels.runtime.numba_cpu import address, empty, jit, scratch, threaded, threads_for
from kernels.simd import (
    TILE_ROWS,
    VECTOR_BYTES,
    advance,
    any_lane,
    array_at,
    as_integers,
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

#: Bytes of the transformed source of a band: half of L2.
BAND_BYTES = 1 << 19


class PooledTiles(NamedTuple):
    """Sizes of a pass beside those in `Tiles`."""

    carried: int  # pixels that are carried over from band to band
    tiles_are_windows: int
    # Where in scratch begin the panels and the memory of the parts, and that of the next part; the filters are the
    # first.
    at_panels: int
    at_parts: int
    part_size: int
    # Where in a part's begin the products, the sums, pooled, kept and carried ones, and the tables; the transformed
    # source is the first.
    at_products: int
    at_sums: int
    at_pooled: int
    at_kept: int
    at_carries: int
    at_tables: int


FIELDS, POOLED_FIELDS = len(Tiles._fields), len(PooledTiles._fields)
WINDOW_FIELDS, TARGET_FIELDS = len(Windows._fields), len(Target._fields)


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
    first, last, settings, bands, part_starts, bytes_like, x, bias, late_bias, y, winners, before, scratch, failed
):
    """Parts [first, last) of a pass.

    settings: int64, the fields of Tiles, PooledTiles, Windows and Target. bands, part_starts: see bands.py. bytes_like:
    any array of uint8. x, bias .. before: addresses. x, bias, failed: as of `kernels.conv2d.winograd`. late_bias:
    zeros. y, winners, before: see `pool_band`. scratch: the filters that `filter_parts` put there; and from s.at_parts
    on for each part, s.part_size apart, the transformed source [16, p.step]; products [16, p.room, tile width]; sums
    [pixels of a band and those carried over, tile width]; pooled, kept [windows of a band, tile width]; carries
    [blocks, s.carried, tile width]; tables, int64 [p.pitch + p.inputs].
    """
    p = Tiles(*to_fixed_tuple(settings, FIELDS))
    s = PooledTiles(*to_fixed_tuple(settings[FIELDS:], POOLED_FIELDS))
    w = Windows(*to_fixed_tuple(settings[FIELDS + POOLED_FIELDS :], WINDOW_FIELDS))
    t = Target(*to_fixed_tuple(settings[FIELDS + POOLED_FIELDS + WINDOW_FIELDS :], TARGET_FIELDS))
    # Their lengths are not looked at.
    x, y, before = array_at(scratch, x, 1), array_at(scratch, y, 1), array_at(scratch, before, 1)
    bias, late_bias = array_at(scratch, bias, 1), array_at(scratch, late_bias, 1)
    winners = array_at(bytes_like, winners, 1)
    lanes = lanes_of(x)
    width = 2 * lanes
    blocks = (p.outputs + width - 1) // width
    for part in range(first, last):
        band_part = part // p.block_parts
        block_part = part - band_part * p.block_parts
        transformed = pointer(scratch, s.at_parts + part * s.part_size)
        product, totals = advance(transformed, s.at_products), advance(transformed, s.at_sums)
        out, known = advance(transformed, s.at_pooled), advance(transformed, s.at_kept)
        carries, row_table = advance(transformed, s.at_carries), as_integers(advance(transformed, s.at_tables))
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
                panel = pointer(scratch, block * 16 * p.filter_step)
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
                carry = advance(carries, block * s.carried * width)
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


@lru_cache(1024)
def launch(
    plan: Gather, w: Windows, images: int, outputs: int, dtype: np.dtype[Any], activation: str | None,
    keeps_winners: bool, keeps_sums: bool,
) -> PoolRun:  # fmt: skip
    """A pass on planes, prepared; arguments as of `gathered.launch`. It fails where a sum is not finite: then the
    results are not what direct sums would give."""
    order = filter_order(plan)
    assert order is not None
    inputs = plan.channels
    lanes = VECTOR_BYTES // dtype.itemsize
    width = 2 * lanes
    blocks = -(-outputs // width)
    tile_columns = -(-w.map_columns // 2)
    filter_step = inputs * width + lanes
    first_row, first_column = min(plan.grids[0].shifts)
    target = target_of(w, outputs, activation, False, keeps_winners, keeps_sums)
    in_registers = w[2:8] == (2, 2, 2, 2, 0, 0) and w.map_rows == 2 * w.rows and w.map_columns == 2 * w.columns
    in_tiles = int(in_registers and target.activation <= 1)
    no_bias, bytes_like = np.zeros(outputs, dtype), LIKE["uint8"]
    makers = (inputs * 9, 9, outputs, inputs, filter_step, order)

    def make(threads: int) -> PoolRun:
        shares = blocks >= threads and images * w.map_pixels // 4 < threads * 8 * TILE_ROWS
        band_parts, block_parts = (1, threads) if shares else (min(threads, images * w.rows), 1)
        parts = band_parts * block_parts
        bands = _plan(plan, w, images, band_parts)
        rows = -(-(bands.table[:, BOTTOM] - bands.table[:, TOP]) // 2)
        tiles = int((bands.table[:, IMAGES] * rows).max()) * tile_columns
        # Room for what a vector and a tile have past the end; odd numbers of lines, so that what is read together
        # spreads over the sets of L1.
        pitch = (tiles // lanes + 2) * lanes
        step = (inputs * pitch // lanes | 1) * lanes
        room = tiles + TILE_ROWS | 1
        transformers = threads_for(outputs * inputs * 9, MOVE_GRAIN)
        _, at_panels, *_, at_parts = in_lines((blocks * 16 * filter_step, transformers * GROUP * 9 * width, APART))
        sizes = (
            16 * step, 16 * room * width, 0 if in_tiles else bands.room * width, (bands.outputs + 1) * width,
            bands.outputs * width * keeps_sums, blocks * bands.carried * width,
            -(-(pitch + inputs) * 8 // dtype.itemsize),
        )  # fmt: skip
        _, *begins, part_size = in_lines((*sizes, APART))
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
            room,
            target.activation,
            block_parts,
            band_parts,
        )
        s = PooledTiles(bands.carried, in_tiles, at_panels, at_parts, part_size, *begins[:6])
        settings, total = np.array((*p, *s, *w, *target), np.int64), at_parts + parts * part_size

        def run(x: int, weight: int, bias: int, y: int, winners: int, before: int) -> bool:
            failed, memory = empty(parts, np.int64), scratch(total, dtype)
            filter_parts(transformers, transformers, transformers, weight, *makers, memory, s.at_panels)
            _run_parts(
                parts, parts, settings, bands.table, bands.parts, bytes_like, x, bias, address(no_bias), y, winners,
                before, memory, failed,
            )  # fmt: skip
            return not any(failed.tolist())

        return run

    return by_threads(make, images * w.map_pixels * inputs * outputs * 4, GRAIN)
