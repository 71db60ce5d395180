"""Matrix products on the register tile: C = A B for any strides of A and B, in blocks that stay in cache.

    C[m, n] = act(bias[n] + sum over k of A[m, k] B[k, n])        or  C[m, n] += that sum, without bias and activation

A caller plans a product for its sizes (`plan` of matmul_plan.py, a pure function), allocates C and runs it with
`run_product`, or with its `launcher` again and again. Nothing is allocated in compiled code.

The blocks are Goto's and van de Geijn's (Anatomy of High-Performance Matrix Multiplication, 2008): B is packed into
panels as wide as a tile, a block of rows of A passes a panel in runs of at most `PASS_TAPS` taps, whose part of the
panel stays in L1. They differ in that the sums gather in scratch, so that C is touched once per `BLOCK_TAPS` taps: the
last run adds them to its own and writes C, with the bias and relu done. What a tile cannot write (columns that do not
fill a panel, other activations, sums that are kept, C transposed) goes through an epilogue. A product with few rows,
columns or taps has no panels (matmul_few.py), nor has one of up to some rows whose operands both lie along the taps
(matmul_dots.py).

A sum has a fixed form: fma in order within a run, runs in order within a block of taps, blocks in order, segments in
order (or for dot products, by lane within a run); a tile that writes C begins with the bias and goes through all runs,
an epilogue ends with it. The form follows from the sizes of the product alone, so the bits do not depend on threads;
and rounding errors grow with the length of a run rather than that of the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numba.np.unsafe.ndarray import to_fixed_tuple

from kernels.activation.vectors import ACTIVATION_CODES
from kernels.runtime.numba_cpu import SMALLEST_POOLED, address, empty, jit, small, threaded
from kernels.simd.matmul_dots import dot_block_parts, dot_parts
from kernels.simd.matmul_epilogue import finish, split
from kernels.simd.matmul_few import panel_parts, stream_parts
from kernels.simd.matmul_plan import (
    BLOCK_TAPS,
    DOT_ROWS,
    FIELDS,
    PACKED_TAPS,
    PASS_TAPS,
    SMALL_ROWS,
    Product,
    plan,
)
from kernels.simd.memory import (
    advance,
    aligned,
    as_integers,
    lanes_of,
    load_first,
    peek,
    pointer,
    pointer_at,
    poke,
    prefetch,
    store,
    store_first,
    zeros_like,
)
from kernels.simd.target import TILE_ROWS, TILE_VECTORS, VECTOR_BYTES
from kernels.simd.tile import multiply_tile_onto
from kernels.simd.transpose import transpose, transpose_tile_rows

RELU = ACTIVATION_CODES["relu"]
"""The one activation that a tile applies itself."""


@jit
def _pack_panel(b, tap_stride, column_stride, taps, columns, width, panel):
    lanes = lanes_of(b)
    if column_stride == 1:
        for k in range(taps):
            for j in range(0, width, lanes):
                store(panel, k * width + j, load_first(b, k * tap_stride + j, columns - j))
        return
    if columns < width:
        zero = zeros_like(b)
        for i in range(0, taps * width, lanes):
            store(panel, i, zero)
    if tap_stride == 1:
        transpose(b, column_stride, columns, taps, panel, width)
        return
    for k in range(taps):
        for j in range(columns):
            poke(panel, k * width + j, peek(b, k * tap_stride + j * column_stride))


@jit
def pack_columns(first, last, b, tap_stride, column_stride, taps, columns, panels):
    """Columns [first, last) of B as panels of a product that takes it packed; first: a multiple of a tile's width.

    b: pointer to B[0, 0]; panels: pointer to all of them, [taps, width] one after another. The width is a tile's, but
    for a last panel of no more columns than a vector has lanes a vector's.
    """
    lanes = lanes_of(b)
    full = TILE_VECTORS * lanes
    for n in range(first, last, full):
        width, count = full if columns - n > lanes else lanes, min(full, columns - n)
        there, panel = advance(b, n * column_stride), advance(panels, n * taps)
        _pack_panel(there, tap_stride, column_stride, taps, count, width, panel)


@jit
def _pack_rows(a, row_stride, tap_stride, rows, taps, packed):
    lanes = lanes_of(a)
    if row_stride == 1:
        # A few taps at a time, all rows of them: each tap is a page of its own perhaps, and what is near is in L1.
        for start in range(0, taps, PACKED_TAPS):
            stop = min(start + PACKED_TAPS, taps)
            for r in range(0, rows, TILE_ROWS):
                count = min(TILE_ROWS, rows - r)
                block = advance(packed, r * taps)
                for i in range(0, count, lanes):
                    left = count - i
                    for k in range(start, stop):
                        at = k * tap_stride + r + i
                        prefetch(a, at + PACKED_TAPS * tap_stride)
                        store_first(block, k * TILE_ROWS + i, load_first(a, at, left), left)
        return
    for r in range(0, rows, TILE_ROWS):
        count = min(TILE_ROWS, rows - r)
        block = advance(packed, r * taps)
        if tap_stride == 1:
            source = advance(a, r * row_stride)
            whole = taps // lanes * lanes if count == TILE_ROWS else 0
            for k in range(0, whole, lanes):
                transpose_tile_rows(advance(source, k), row_stride, advance(block, k * TILE_ROWS))
            if whole < taps:
                rest = advance(block, whole * TILE_ROWS)
                transpose(advance(source, whole), row_stride, count, taps - whole, rest, TILE_ROWS)
            continue
        for k in range(taps):
            at = r * row_stride + k * tap_stride
            for i in range(count):
                poke(block, k * TILE_ROWS + i, peek(a, at + i * row_stride))


@jit
def _multiply_panel(
    a, row_offsets, tap_offsets, rows, taps, panel, width, sums, old, old_stride, has_old, out, out_stride, rectify
):
    """out[rows, width] = (old +) the sums over the taps of A times a panel of B.

    sums [rows, width]: working memory, or out itself. old: read where has_old says so. rectify: whether negative
    results become 0.
    """
    lanes = lanes_of(a)
    full = TILE_VECTORS * lanes
    runs = max((taps + PASS_TAPS - 1) // PASS_TAPS, 1)
    length = (taps + runs - 1) // runs
    tiles = (rows + TILE_ROWS - 1) // TILE_ROWS
    # Each tile asks for its share of the next run's part of the panel.
    step = (width + tiles - 1) // tiles
    for run in range(runs):
        first = run * length
        count = min(length, taps - first)
        b = advance(panel, first * width)
        tap = advance(tap_offsets, first)
        before, before_stride, adds = sums, full, 1
        if run == 0:
            before, before_stride, adds = old, old_stride, has_old
        target, target_stride, bounds = sums, full, 0
        if run == runs - 1:
            target, target_stride, bounds = out, out_stride, rectify
        r = 0
        ahead = advance(b, count * width)
        while r < rows:
            row, left = advance(row_offsets, r), rows - r
            start, end = advance(before, r * before_stride), advance(target, r * target_stride)
            if width < full:
                multiply_tile_onto(
                    TILE_ROWS, 1, a, row, tap, count, b, ahead, step, start, before_stride, end, target_stride, left,
                    adds, bounds,
                )  # fmt: skip
                r += TILE_ROWS
            elif left > (2 * SMALL_ROWS if TILE_ROWS >= 2 * SMALL_ROWS else SMALL_ROWS):
                multiply_tile_onto(
                    TILE_ROWS, TILE_VECTORS, a, row, tap, count, b, ahead, step, start, before_stride, end,
                    target_stride, left, adds, bounds,
                )  # fmt: skip
                r += TILE_ROWS
            else:
                multiply_tile_onto(
                    SMALL_ROWS, TILE_VECTORS, a, row, tap, count, b, ahead, step, start, before_stride, end,
                    target_stride, left, adds, bounds,
                )  # fmt: skip
                r += SMALL_ROWS
            ahead = advance(ahead, count * step)


@jit
def _tile_part(
    p, row_first, row_last, column_first, column_last, tap_first, taps_all, a, b, c, before, bias, scratch, offsets
):
    """Rows and columns of one part by tiles.

    scratch: sums of a panel [rows, full], packed B [columns / full, taps, full], the transposed sums [full, rows]
    where C is transposed, and packed A [rows / TILE_ROWS, taps, TILE_ROWS], all of one block.
    """
    lanes = lanes_of(a)
    full = TILE_VECTORS * lanes
    rows_padded = (p.block_rows + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
    sums = scratch
    packed_b = advance(sums, rows_padded * full)
    turned = advance(packed_b, 0 if p.is_packed else p.block_columns * min(p.taps, BLOCK_TAPS))
    packed_a = advance(turned, rows_padded * full if p.is_transposed else 0)
    row_offsets, tap_offsets = offsets, advance(offsets, rows_padded)
    blocks = max((taps_all + BLOCK_TAPS - 1) // BLOCK_TAPS, 1)
    length = (taps_all + blocks - 1) // blocks
    for k in range(length):
        poke(tap_offsets, k, k * (TILE_ROWS if p.packs_a else p.a_tap_stride))
    for block in range(blocks):
        k = block * length
        taps = min(length, taps_all - k)
        is_first, is_last = block == 0 and not p.accumulates, block == blocks - 1
        # Whole panels go straight to C where all that is to be done to the sums is a bias per column and relu.
        is_plain = not p.is_transposed and (not is_last or (p.activation <= RELU and p.keeps_sums == 0))
        rectify = 1 if is_last and p.activation == RELU else 0
        has_bias = block == 0 and p.bias_stride == 1
        is_plain = is_plain and p.bias_stride != 0
        for j in range(column_first, column_last, p.block_columns):
            columns = min(p.block_columns, column_last - j)
            for i in range(row_first, row_last, p.block_rows):
                rows = min(p.block_rows, row_last - i)
                source = advance(a, i * p.a_row_stride + k * p.a_tap_stride)
                for r in range(rows_padded):
                    # Past the last row, that one again: a tile may read it any number of times.
                    row = min(r, rows - 1)
                    at = row // TILE_ROWS * TILE_ROWS * taps + row % TILE_ROWS if p.packs_a else row * p.a_row_stride
                    poke(row_offsets, r, at)
                if p.packs_a:
                    _pack_rows(source, p.a_row_stride, p.a_tap_stride, rows, taps, packed_a)
                    source = packed_a
                # One panel alone: rows of A come once and from afar, so let each be read from end to end.
                step = rows if columns > full else TILE_ROWS
                for n in range(0, columns, full):
                    width, count = full if columns - n > lanes else lanes, min(full, columns - n)
                    if p.is_packed:
                        panel = advance(b, (j + n) * p.taps + (tap_first + k) * width)
                    else:
                        panel = advance(packed_b, n * taps)
                    if i == row_first and p.is_packed == 0:
                        there = advance(b, k * p.b_tap_stride + (j + n) * p.b_column_stride)
                        _pack_panel(there, p.b_tap_stride, p.b_column_stride, taps, count, width, panel)
                    place = i * p.c_stride + j + n
                    is_direct = is_plain and count == full
                    out, out_stride, old, old_stride = sums, full, sums, 0
                    has_old = 0
                    if is_direct:
                        out, out_stride = advance(c, place), p.c_stride
                        if not is_first:
                            old, old_stride, has_old = out, out_stride, 1
                        elif has_bias:
                            old, has_old = advance(bias, j + n), 1
                    for r in range(0, rows, step):
                        table, start = advance(row_offsets, r), advance(old, r * old_stride)
                        part, end = advance(sums, r * full), advance(out, r * out_stride)
                        _multiply_panel(
                            source, table, tap_offsets, min(step, rows - r), taps, panel, width, part, start,
                            old_stride, has_old, end, out_stride, rectify if is_direct else 0,
                        )  # fmt: skip
                    if not is_direct:
                        found, height, across, down, feature = sums, rows, count, full, j + n
                        if p.is_transposed:
                            transpose(sums, full, rows, count, turned, rows_padded)
                            found, height, across, down, feature = turned, count, rows, rows_padded, i
                            place = (j + n) * p.c_stride + i
                        out, kept = advance(c, place), advance(before, place)
                        beside = advance(bias, feature * max(p.bias_stride, 0))
                        finish(p, found, down, full, height, across, out, kept, is_first, is_last, beside)


@jit
def multiply_parts(first, last, settings, a, b, c, before, bias, scratch):
    """Parts [first, last) of a planned product by tiles.

    settings [FIELDS] int64: the fields of the Product; arrays and numbers cost a call less than tuples do.
    a, b, c: addresses of A[0, 0], B[0, 0], C[0, 0], elements of the type of scratch. With segments, c has one
        C [rows, columns] after another.
    before: of the sums before the activation, laid out as C, or c where none are kept.
    bias: of [features], or one element, or c where there is none.
    scratch [parts * scratch_size + one vector]: working memory, contents irrelevant.
    The caller owns all of it; a, b and bias are only read.
    """
    p = Product(*to_fixed_tuple(settings, FIELDS))
    source_a, source_b, target = pointer_at(a, scratch), pointer_at(b, scratch), pointer_at(c, scratch)
    kept, beside = pointer_at(before, scratch), pointer_at(bias, scratch)
    for part in range(first, last):
        segment, place = part // (p.row_parts * p.column_parts), part % (p.row_parts * p.column_parts)
        length = (p.taps + p.segments - 1) // p.segments
        k = segment * length
        taps = min(length, p.taps - k)
        start_a, start_b = advance(source_a, k * p.a_tap_stride), advance(source_b, k * p.b_tap_stride)
        out = advance(target, segment * p.rows * p.columns)
        work = aligned(pointer(scratch, part * p.scratch_size))
        table = advance(as_integers(advance(work, p.scratch_size)), -p.offsets_size)
        columns = split(p.columns, p.column_parts, place % p.column_parts, TILE_VECTORS * lanes_of(start_a))
        rows = split(p.rows, p.row_parts, place // p.column_parts, TILE_ROWS)
        _tile_part(
            p, rows[0], rows[1], columns[0], columns[1], k, taps, start_a, start_b, out, kept, beside, work, table
        )


@jit
def _add_segments(first, last, settings, partial, c, before, bias):
    """Rows [first, last) of C as it lies in memory: the segments' sums in order, then the epilogue."""
    p = Product(*to_fixed_tuple(settings, FIELDS))
    width = p.rows if p.is_transposed else p.columns
    size = p.rows * p.columns
    for r in range(first, last):
        for segment in range(p.segments):
            source = pointer(partial, segment * size + r * width)
            out = advance(pointer_at(c, partial), r * p.c_stride)
            kept = advance(pointer_at(before, partial), r * p.c_stride)
            is_first, is_last = segment == 0 and not p.accumulates, segment == p.segments - 1
            full = TILE_VECTORS * lanes_of(source)
            finish(p, source, width, full, 1, width, out, kept, is_first, is_last, pointer_at(bias, partial))


__all__ = ["Product", "launcher", "multiply_parts", "plan", "run_product"]

_run_tiles = threaded(multiply_parts)
_run_dots = threaded(dot_parts)
_run_dot_blocks = threaded(dot_block_parts)
_run_stream = threaded(stream_parts)
_run_panels = threaded(panel_parts)
_run_segments = threaded(_add_segments)


def run_product(p: Product, threads: int, a: Any, b: Any, c: Any, before: Any = None, bias: Any = None) -> None:
    """Run a planned product. A caller that runs the same one again and again keeps its `launcher`.

    Args:
        p: of `plan`.
        threads: as given to `plan`.
        a, b: contiguous, writable arrays that begin at A[0, 0] and B[0, 0]; their length is not looked at, the memory
            that the strides reach must be there.
        c: such an array that begins at C[0, 0].
        before: as c, for the sums before the activation, when the plan keeps them.
        bias: such an array, when the plan has one.
    """
    out = address(c)
    kept, beside = out if before is None else address(before), out if bias is None else address(bias)
    launcher(p, threads, c.dtype)(address(a), address(b), out, kept, beside)


@lru_cache(4096)
def launcher(p: Product, threads: int, dtype: np.dtype[Any]) -> Callable[[int, int, int, int, int], None]:
    """``run(a, b, c, before, bias)`` of a planned product: addresses of arrays that the caller keeps alive.

    As for `run_product`; c stands for what is not there. What does not depend on the arrays is worked out here, once.
    """
    parts = p.segments * p.row_parts * p.column_parts
    if p.segments > 1:
        return partial(_run_in_segments, p, threads, dtype)
    # Kernels of their own, so that a first call compiles one of them.
    if p.is_dot:
        kernel = _run_dots if p.rows <= DOT_ROWS else _run_dot_blocks
    else:
        kernel = _run_stream if p.is_streamed else _run_panels if p.is_few else _run_tiles
    settings = np.array(p, np.int64)
    # One part needs no driver.
    compute = partial(kernel.serial, 0, 1, settings) if parts == 1 else partial(kernel, parts, threads, settings)
    numbers, swaps = parts * p.scratch_size + VECTOR_BYTES // dtype.itemsize, p.is_transposed
    allocate = small if numbers * dtype.itemsize < SMALLEST_POOLED else empty

    def run(a: int, b: int, c: int, before: int, bias: int) -> None:
        if swaps:
            a, b = b, a
        compute(a, b, c, before, bias, allocate(numbers, dtype))

    return run


def _run_in_segments(p: Product, threads: int, dtype: Any, a: int, b: int, c: int, before: int, bias: int) -> None:
    if p.is_transposed:
        a, b = b, a
    parts = p.segments * p.row_parts * p.column_parts
    scratch = empty(parts * p.scratch_size + VECTOR_BYTES // dtype.itemsize, dtype)
    width, height = (p.rows, p.columns) if p.is_transposed else (p.columns, p.rows)
    partial_sums = empty(p.segments * p.rows * p.columns, dtype)
    plain = p._replace(c_stride=width, accumulates=0, bias_stride=-1, activation=0, keeps_sums=0)
    sums = address(partial_sums)
    _run_tiles(parts, threads, np.array(plain, np.int64), a, b, sums, sums, sums, scratch)
    _run_segments(height, 1, np.array(p, np.int64), partial_sums, c, before, bias)
