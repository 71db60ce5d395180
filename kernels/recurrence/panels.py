"""Matrix products of rows with packed weights, whose bits depend on nothing but the row and the weights.

A general product chooses how to sum by its sizes; here every element of the result is a sum over the taps in the same
form whether a row comes alone or among many, so that a single step gives the bits of the sequence and a row those of
the batch.

Packed weights are panels [taps, PANEL_VECTORS, lanes]: as many outputs side by side as a tile is wide, the last panel
filled up with zeros.
"""

from __future__ import annotations

from kernels.runtime.numba_cpu import jit, threaded
from kernels.simd import (
    TILE_ROWS,
    VECTOR_BYTES,
    advance,
    broadcast,
    fma,
    lanes_of,
    load,
    load_first,
    multiply_tile,
    multiply_tile_part,
    peek,
    pointer,
    pointer_at,
    prefetch,
    store,
    store_first,
    transpose,
    zeros_like,
)

#: Vectors in a row of the tile: wider than the house's usual one, since a recurrence often has a single row, which has
#: to keep that many sums in flight.
PANEL_VECTORS = 4
#: Where at most so many vectors of a panel are outputs, the others are left out, and more rows take their registers.
PART_VECTORS = PANEL_VECTORS // 2
#: Rows of the tiles. SUMMED_VECTORS times as many sums and what they are made from fit the registers: with few of those
#: a panel's halves come one after the other.
LARGE_ROWS, MEDIUM_ROWS, SMALL_ROWS = 6, 4, 2
SUMMED_VECTORS = PANEL_VECTORS if TILE_ROWS >= 12 else PART_VECTORS
#: Rows of a tile of PART_VECTORS; the rest of the rows comes by HALF_ROWS.
DOUBLE_ROWS, HALF_ROWS = (12, 6) if TILE_ROWS >= 12 else (6, 4)
#: Taps that a register sums before it is added to memory: they bound the rounding error, and with them a panel's part
#: stays in L1.
RUN_TAPS = 128
#: Bytes of weights from which on a single row's product asks for them ahead: half of the smallest usual L2.
STREAMED_BYTES = 1 << 19


@jit
def pack_panel(panel, outputs, taps, source, packed):
    """One panel of weights: pointer to elements [outputs, taps] -> pointer to elements [panels, taps, width]."""
    lanes = lanes_of(source)
    width = PANEL_VECTORS * lanes
    target = advance(packed, panel * taps * width)
    count = min(width, outputs - panel * width)
    if count < width:
        for i in range(0, taps * width, lanes):
            store(target, i, zeros_like(target))
    transpose(advance(source, panel * width * taps), taps, count, taps, target, width)


@jit
def _pack_rows(first, last, outputs, taps, weights, packed, start):
    """Panels [first, last) of weights [taps, outputs], an address, as pack_panel has them, from packed[start] on."""
    w = pointer_at(weights, packed)
    lanes = lanes_of(packed)
    width = PANEL_VECTORS * lanes
    for panel in range(first, last):
        source, target = advance(w, panel * width), pointer(packed, start + panel * taps * width)
        for k in range(taps):
            for j in range(0, width, lanes):
                value = load_first(source, k * outputs + j, outputs - panel * width - j)
                store(target, k * width + j, value)


pack_rows = threaded(_pack_rows)


@jit
def _large_tile(a, row_offsets, tap_offsets, taps, b, out, out_stride, accumulate):
    for j in range(0, PANEL_VECTORS * lanes_of(a), SUMMED_VECTORS * lanes_of(a)):
        multiply_tile_part(
            LARGE_ROWS, SUMMED_VECTORS, PANEL_VECTORS, a, row_offsets, tap_offsets, taps, advance(b, j),
            advance(out, j), out_stride, accumulate,
        )  # fmt: skip


@jit
def _medium_tile(a, row_offsets, tap_offsets, taps, b, out, out_stride, accumulate):
    for j in range(0, PANEL_VECTORS * lanes_of(a), SUMMED_VECTORS * lanes_of(a)):
        multiply_tile_part(
            MEDIUM_ROWS, SUMMED_VECTORS, PANEL_VECTORS, a, row_offsets, tap_offsets, taps, advance(b, j),
            advance(out, j), out_stride, accumulate,
        )  # fmt: skip


@jit
def _small_tile(a, row_offsets, tap_offsets, taps, b, out, out_stride, accumulate):
    multiply_tile(
        SMALL_ROWS, PANEL_VECTORS, a, row_offsets, tap_offsets, taps, b, out, out_stride, lanes_of(a), accumulate
    )


@jit
def _one_row_tile(a, row_offsets, tap_offsets, taps, b, out, out_stride, accumulate):
    multiply_tile(1, PANEL_VECTORS, a, row_offsets, tap_offsets, taps, b, out, out_stride, lanes_of(a), accumulate)


@jit
def _double_tile(a, row_offsets, tap_offsets, taps, b, out, out_stride, accumulate):
    multiply_tile_part(
        DOUBLE_ROWS, PART_VECTORS, PANEL_VECTORS, a, row_offsets, tap_offsets, taps, b, out, out_stride, accumulate
    )


@jit
def _half_tile(a, row_offsets, tap_offsets, taps, b, out, out_stride, accumulate):
    multiply_tile_part(
        HALF_ROWS, PART_VECTORS, PANEL_VECTORS, a, row_offsets, tap_offsets, taps, b, out, out_stride, accumulate
    )


@jit
def _add_or_store(out, i, v, accumulate):
    if accumulate:
        v = load(out, i) + v
    store(out, i, v)


@jit
def _two_panels(a, tap_offsets, taps, first, second, ahead, out, out_second, accumulate):
    """One row of two panels: a row of one has too few sums in flight to keep the multipliers busy.

    The sums are those of _one_row_tile bit for bit. Where `ahead` is not 0, the weights are asked for so many taps
    before their turn.
    """
    lanes = lanes_of(a)
    width = PANEL_VECTORS * lanes
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zeros_like(a)
    for k in range(taps):
        at = k * width
        if ahead:
            for j in range(0, width, lanes):
                prefetch(first, at + ahead * width + j)
                prefetch(second, at + ahead * width + j)
        factor = broadcast(a, peek(tap_offsets, k))
        s0 = fma(factor, load(first, at), s0)
        s1 = fma(factor, load(first, at + lanes), s1)
        s2 = fma(factor, load(first, at + 2 * lanes), s2)
        s3 = fma(factor, load(first, at + 3 * lanes), s3)
        s4 = fma(factor, load(second, at), s4)
        s5 = fma(factor, load(second, at + lanes), s5)
        s6 = fma(factor, load(second, at + 2 * lanes), s6)
        s7 = fma(factor, load(second, at + 3 * lanes), s7)
    _add_or_store(out, 0, s0, accumulate)
    _add_or_store(out, lanes, s1, accumulate)
    _add_or_store(out, 2 * lanes, s2, accumulate)
    _add_or_store(out, 3 * lanes, s3, accumulate)
    _add_or_store(out_second, 0, s4, accumulate)
    _add_or_store(out_second, lanes, s5, accumulate)
    _add_or_store(out_second, 2 * lanes, s6, accumulate)
    _add_or_store(out_second, 3 * lanes, s7, accumulate)


@jit
def _multiply_row(a, row_offsets, tap_offsets, taps, packed, panels, out, out_stride, accumulates, backwards):
    """multiply_rows for a single row."""
    width = PANEL_VECTORS * lanes_of(a)
    row = advance(a, peek(row_offsets, 0))
    # A matrix that does not fit the cache next to the multipliers is streamed, faster if it is asked for in time.
    ahead = 8 if panels * taps * PANEL_VECTORS * VECTOR_BYTES > STREAMED_BYTES else 0
    for number in range(0, panels, 2):
        panel = (panels - 1) // 2 * 2 - number if backwards else number
        for tap in range(0, taps, RUN_TAPS):
            count = min(RUN_TAPS, taps - tap)
            b = advance(packed, (panel * taps + tap) * width)
            run = advance(tap_offsets, tap)
            sums = advance(out, panel * width)
            if panel + 1 < panels:
                _two_panels(row, run, count, b, advance(b, taps * width), ahead,
                            sums, advance(sums, width), accumulates + tap)  # fmt: skip
            else:
                _one_row_tile(a, row_offsets, run, count, b, sums, out_stride, accumulates + tap)


@jit
def multiply_rows(a, row_offsets, tap_offsets, rows, taps, packed, outputs, out, out_stride, accumulates, backwards):
    """out[r, :] (+)= sum over k of a[row_offsets[r] + tap_offsets[k]] * weights[k, :] for r in [0, rows).

    a: pointer to elements. row_offsets: int64 [rows and LARGE_ROWS]; of those past `rows` anything that can be read.
    tap_offsets: int64 [taps]. packed: pointer to elements [panels, taps, width], of so many outputs. out: pointer to
    elements [rows and LARGE_ROWS, out_stride], out_stride at least panels * width; what lies past `rows` and `outputs`
    may be overwritten. accumulates: not 0 to add to out. backwards: not 0 to take the panels from the last to the
    first, which finds those in cache that a product just before took last.
    """
    panels = (outputs + PANEL_VECTORS * lanes_of(a) - 1) // (PANEL_VECTORS * lanes_of(a))
    if rows == 1:
        _multiply_row(a, row_offsets, tap_offsets, taps, packed, panels, out, out_stride, accumulates, backwards)
        return
    width = PANEL_VECTORS * lanes_of(a)
    for number in range(panels):
        panel = panels - 1 - number if backwards else number
        is_part = outputs - panel * width <= PART_VECTORS * lanes_of(a)
        for tap in range(0, taps, RUN_TAPS):
            count = min(RUN_TAPS, taps - tap)
            b = advance(packed, (panel * taps + tap) * width)
            run = advance(tap_offsets, tap)
            adds = accumulates + tap
            row = 0
            while row < rows:
                sums = advance(out, row * out_stride + panel * width)
                offsets = advance(row_offsets, row)
                left = rows - row
                if is_part and left > SMALL_ROWS:
                    if left >= DOUBLE_ROWS:
                        _double_tile(a, offsets, run, count, b, sums, out_stride, adds)
                        row += DOUBLE_ROWS
                    else:
                        _half_tile(a, offsets, run, count, b, sums, out_stride, adds)
                        row += HALF_ROWS
                elif left > MEDIUM_ROWS:
                    _large_tile(a, offsets, run, count, b, sums, out_stride, adds)
                    row += LARGE_ROWS
                elif left > SMALL_ROWS:
                    _medium_tile(a, offsets, run, count, b, sums, out_stride, adds)
                    row += MEDIUM_ROWS
                elif left > 1:
                    _small_tile(a, offsets, run, count, b, sums, out_stride, adds)
                    row += SMALL_ROWS
                else:
                    _one_row_tile(a, offsets, run, count, b, sums, out_stride, adds)
                    row += 1


@jit
def copy_row(source, target, count):
    """target[:count] = source[:count], pointers to elements."""
    lanes = lanes_of(source)
    i = 0
    while i + lanes <= count:
        store(target, i, load(source, i))
        i += lanes
    if i < count:
        store_first(target, i, load_first(source, i, count - i), count - i)
