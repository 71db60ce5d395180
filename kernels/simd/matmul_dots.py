"""Matrix products by dot products: both operands lie along the taps and are read where they lie, without packing.

A tile of whole vectors of taps needs no operand turned, which a tile of broadcasts does; its price is the sum over
lanes at the end of each run of taps. So it serves products of few rows, which read B once, at the speed of memory, and
such of up to `DOT_BLOCK_ROWS` rows, for which packing would take a tenth of the time and more.
"""

from __future__ import annotations

from numba.np.unsafe.ndarray import to_fixed_tuple

from kernels.runtime.numba_cpu import jit
from kernels.simd.matmul_epilogue import finish, split
from kernels.simd.matmul_plan import (
    DOT_ASKED,
    DOT_BLOCK_RUN,
    DOT_BLOCK_TILE_COLUMNS,
    DOT_COLUMNS,
    DOT_ROWS,
    DOT_TILE_COLUMNS,
    DOT_TILE_ROWS,
    FIELDS,
    HAS_ALL_ROWS,
    PASS_TAPS,
    Product,
)
from kernels.simd.memory import advance, aligned, lanes_of, load_first, pointer, pointer_at, store
from kernels.simd.target import TILE_VECTORS
from kernels.simd.tile_dots import dot_tile
from kernels.simd.transpose import transpose


@jit
def _pack_vectors(a, row_stride, rows, taps, tile_rows, packed):
    """packed [ceil(rows / tile_rows), ceil(taps / lanes), tile_rows, lanes]; zeros where A has nothing."""
    lanes = lanes_of(a)
    padded = (taps + lanes - 1) // lanes * lanes
    for m in range(0, rows, tile_rows):
        for k in range(0, taps, lanes):
            for r in range(tile_rows):
                left = taps - k if m + r < rows else 0
                value = load_first(a, (m + r) * row_stride + k, left)
                store(packed, m * padded + k * tile_rows + r * lanes, value)


@jit
def _finish_dots(p, sums, turned, j, columns, c, before, bias):
    """The epilogue of columns [j, j + columns), whose sums are [rows, DOT_COLUMNS]."""
    is_first, full = not p.accumulates, TILE_VECTORS * lanes_of(sums)
    if p.is_transposed:
        transpose(sums, DOT_COLUMNS, p.rows, columns, turned, p.rows)
        at = j * p.c_stride
        finish(p, turned, p.rows, full, columns, p.rows, advance(c, at), advance(before, at), is_first, True, bias)
    else:
        beside = advance(bias, j * max(p.bias_stride, 0))
        out, kept = advance(c, j), advance(before, j)
        finish(p, sums, DOT_COLUMNS, full, p.rows, columns, out, kept, is_first, True, beside)


@jit
def _few_part(p, column_first, column_last, a, b, c, before, bias, scratch):
    """Up to DOT_ROWS rows and the columns of one part.

    scratch: sums [DOT_ROWS, DOT_COLUMNS], the same transposed where C is, and the rows of A by vectors.
    """
    lanes = lanes_of(a)
    turned = advance(scratch, DOT_ROWS * DOT_COLUMNS)
    packed = advance(turned, DOT_ROWS * DOT_COLUMNS if p.is_transposed else 0)
    takes_all = HAS_ALL_ROWS and p.rows > DOT_TILE_ROWS
    tile_rows = DOT_ROWS if takes_all else DOT_TILE_ROWS
    if p.rows == 1:
        tile_rows, packed = 1, a
    else:
        _pack_vectors(a, p.a_row_stride, p.rows, p.taps, tile_rows, packed)
    block = (p.taps + lanes - 1) // lanes * lanes * tile_rows
    along = p.b_column_stride
    # Runs of taps whose rows of A stay in L1, and as errors grow with the length of a run.
    run = PASS_TAPS * lanes // (1 if p.rows <= DOT_TILE_ROWS else 2)
    for j in range(column_first, column_last, DOT_COLUMNS):
        columns = min(DOT_COLUMNS, column_last - j)
        for k in range(0, p.taps, run):
            count, left = min(run, p.taps - k), advance(packed, k * tile_rows)
            # A tile may reach past the last row and column; scratch has room for those results.
            for n in range(0, columns, DOT_TILE_COLUMNS):
                right, found, many = advance(b, (j + n) * along + k), advance(scratch, n), columns - n
                # A column ends before the processor has seen that it is read in order: the next ones are asked for.
                soon = advance(right, DOT_TILE_COLUMNS * along)
                if p.rows == 1:
                    dot_tile(
                        1, DOT_TILE_COLUMNS, DOT_TILE_COLUMNS, left, 0, lanes, right, along, many, count, found,
                        DOT_COLUMNS, k, soon,
                    )  # fmt: skip
                    continue
                if HAS_ALL_ROWS and takes_all:
                    dot_tile(
                        DOT_ROWS, DOT_TILE_COLUMNS, DOT_TILE_COLUMNS, left, lanes, DOT_ROWS * lanes, right, along, many,
                        count, found, DOT_COLUMNS, k, soon,
                    )  # fmt: skip
                    continue
                for m in range(0, p.rows, DOT_TILE_ROWS):
                    dot_tile(
                        DOT_TILE_ROWS, DOT_TILE_COLUMNS, DOT_TILE_COLUMNS, advance(left, m // DOT_TILE_ROWS * block),
                        lanes, DOT_TILE_ROWS * lanes, right, along, many, count, advance(found, m * DOT_COLUMNS),
                        DOT_COLUMNS, k, right if m else soon,
                    )  # fmt: skip
        _finish_dots(p, scratch, turned, j, columns, c, before, bias)


@jit
def _block_part(p, column_first, column_last, a, b, c, before, bias, scratch):
    """More rows than DOT_ROWS and the columns of one part.

    scratch: sums [rows, DOT_COLUMNS], the same transposed where C is, and the rows of A, each a line longer than its
    whole vectors, where they are copied: their distance then is no multiple of a page, whatever it was.
    """
    lanes = lanes_of(a)
    turned = advance(scratch, p.rows * DOT_COLUMNS)
    rows, row_stride = a, p.a_row_stride
    if p.packs_a:
        rows = advance(turned, p.rows * DOT_COLUMNS if p.is_transposed else 0)
        row_stride = (p.taps + lanes - 1) // lanes * lanes + lanes
        for r in range(p.rows):
            for k in range(0, p.taps, lanes):
                store(rows, r * row_stride + k, load_first(a, r * p.a_row_stride + k, p.taps - k))
    along = p.b_column_stride
    # Tiles of three rows, and of two for what threes leave over: no row is computed in vain.
    twos = (3 - p.rows % 3) % 3
    tiles = (p.rows + twos) // 3
    runs = (p.taps + DOT_BLOCK_RUN * lanes - 1) // (DOT_BLOCK_RUN * lanes)
    run = (p.taps + runs * lanes - 1) // (runs * lanes) * lanes
    for j in range(column_first, column_last, DOT_COLUMNS):
        columns = min(DOT_COLUMNS, column_last - j)
        for k in range(0, p.taps, run):
            count = min(run, p.taps - k)
            for n in range(0, columns, DOT_BLOCK_TILE_COLUMNS):
                right, many = advance(b, (j + n) * along + k), columns - n
                m = 0
                for tile in range(tiles):
                    # Each of the first tiles asks for some of the next columns, once; past the last ones for none.
                    place = DOT_BLOCK_TILE_COLUMNS + tile * DOT_ASKED
                    is_wanted = place < min(2 * DOT_BLOCK_TILE_COLUMNS, column_last - j - n)
                    soon = advance(right, place * along if is_wanted else 0)
                    left, found = advance(rows, m * row_stride + k), advance(scratch, m * DOT_COLUMNS + n)
                    if tile < tiles - twos:
                        dot_tile(
                            3, DOT_BLOCK_TILE_COLUMNS, DOT_ASKED, left, row_stride, lanes, right, along, many, count,
                            found, DOT_COLUMNS, k, soon,
                        )  # fmt: skip
                        m += 3
                    else:
                        dot_tile(
                            2, DOT_BLOCK_TILE_COLUMNS, DOT_ASKED, left, row_stride, lanes, right, along, many, count,
                            found, DOT_COLUMNS, k, soon,
                        )  # fmt: skip
                        m += 2
        _finish_dots(p, scratch, turned, j, columns, c, before, bias)


@jit
def dot_parts(first, last, settings, a, b, c, before, bias, scratch):
    """As `multiply_parts` of matmul.py, by dot products of few rows: the parts divide the columns."""
    p = Product(*to_fixed_tuple(settings, FIELDS))
    start_a, start_b, out = pointer_at(a, scratch), pointer_at(b, scratch), pointer_at(c, scratch)
    kept, beside = pointer_at(before, scratch), pointer_at(bias, scratch)
    for part in range(first, last):
        columns = split(p.columns, p.column_parts, part, TILE_VECTORS * lanes_of(start_a))
        work = aligned(pointer(scratch, part * p.scratch_size))
        _few_part(p, columns[0], columns[1], start_a, start_b, out, kept, beside, work)


@jit
def dot_block_parts(first, last, settings, a, b, c, before, bias, scratch):
    """As `dot_parts`, of more rows."""
    p = Product(*to_fixed_tuple(settings, FIELDS))
    start_a, start_b, out = pointer_at(a, scratch), pointer_at(b, scratch), pointer_at(c, scratch)
    kept, beside = pointer_at(before, scratch), pointer_at(bias, scratch)
    for part in range(first, last):
        columns = split(p.columns, p.column_parts, part, TILE_VECTORS * lanes_of(start_a))
        work = aligned(pointer(scratch, part * p.scratch_size))
        _block_part(p, columns[0], columns[1], start_a, start_b, out, kept, beside, work)
