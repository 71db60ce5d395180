"""Matrix products with few rows, columns or taps: as fast as B can be read once.

`stream_parts` has B along the columns: up to `DOT_ROWS` rows of C gather multiples of B's rows, or many rows of C those
of a few. B along the taps is for matmul_dots.py.
`panel_parts` has B packed: up to `PANEL_ROWS` rows go through several of its panels at once.
"""

from __future__ import annotations

from numba.np.unsafe.ndarray import to_fixed_tuple

from kernels.runtime.numba_cpu import jit
from kernels.simd.arithmetic import fma
from kernels.simd.matmul_epilogue import finish, split
from kernels.simd.matmul_plan import (
    DOT_ROWS,
    FIELDS,
    PANELS_AHEAD,
    PANELS_OF_EIGHT,
    PANELS_OF_FOUR,
    PANELS_OF_ONE,
    PANELS_OF_TWO,
    PASS_TAPS,
    STREAM_COLUMNS,
    Product,
)
from kernels.simd.memory import (
    advance,
    aligned,
    broadcast,
    lanes_of,
    load,
    load_first,
    peek,
    pointer,
    pointer_at,
    poke,
    store,
    store_first,
    zeros_like,
)
from kernels.simd.target import TILE_ROWS, TILE_VECTORS
from kernels.simd.tile_panels import multiply_panels
from kernels.simd.transpose import transpose


@jit(forceinline=True)
def _add_scaled(sums, columns, a, a_step, b, b_step, taps):
    """sums[:columns] += the sum over k < taps of a[k * a_step] * b[k * b_step + :columns], four k at a time."""
    lanes = lanes_of(sums)
    whole = columns // lanes * lanes
    left = columns - whole
    for k in range(0, taps - 3, 4):
        first, second = broadcast(a, k * a_step), broadcast(a, (k + 1) * a_step)
        third, fourth = broadcast(a, (k + 2) * a_step), broadcast(a, (k + 3) * a_step)
        b_0 = advance(b, k * b_step)
        b_1, b_2, b_3 = advance(b_0, b_step), advance(b_0, 2 * b_step), advance(b_0, 3 * b_step)
        for j in range(0, whole, lanes):
            total = fma(second, load(b_1, j), fma(first, load(b_0, j), load(sums, j)))
            store(sums, j, fma(fourth, load(b_3, j), fma(third, load(b_2, j), total)))
        if left:
            total = fma(first, load_first(b_0, whole, left), load_first(sums, whole, left))
            total = fma(second, load_first(b_1, whole, left), total)
            total = fma(third, load_first(b_2, whole, left), total)
            store_first(sums, whole, fma(fourth, load_first(b_3, whole, left), total), left)
    for k in range(taps // 4 * 4, taps):
        factor, row = broadcast(a, k * a_step), advance(b, k * b_step)
        for j in range(0, columns, lanes):
            total = fma(factor, load_first(row, j, columns - j), load_first(sums, j, columns - j))
            store_first(sums, j, total, columns - j)


@jit(forceinline=True)
def _add_scaled_twice(sums, sums_step, columns, a, a_row_step, a_step, b, b_step):
    """As `_add_scaled` with four taps, for two rows that share what is read of b: their sums, each the same."""
    lanes = lanes_of(sums)
    whole = columns // lanes * lanes
    other = advance(a, a_row_step)
    first, second = broadcast(a, 0), broadcast(a, a_step)
    third, fourth = broadcast(a, 2 * a_step), broadcast(a, 3 * a_step)
    fifth, sixth = broadcast(other, 0), broadcast(other, a_step)
    seventh, eighth = broadcast(other, 2 * a_step), broadcast(other, 3 * a_step)
    b_1, b_2, b_3 = advance(b, b_step), advance(b, 2 * b_step), advance(b, 3 * b_step)
    below = advance(sums, sums_step)
    for j in range(0, whole, lanes):
        v_0, v_1, v_2, v_3 = load(b, j), load(b_1, j), load(b_2, j), load(b_3, j)
        total = fma(second, v_1, fma(first, v_0, load(sums, j)))
        another = fma(sixth, v_1, fma(fifth, v_0, load(below, j)))
        store(sums, j, fma(fourth, v_3, fma(third, v_2, total)))
        store(below, j, fma(eighth, v_3, fma(seventh, v_2, another)))
    if whole < columns:
        left = columns - whole
        v_0, v_1 = load_first(b, whole, left), load_first(b_1, whole, left)
        v_2, v_3 = load_first(b_2, whole, left), load_first(b_3, whole, left)
        total = fma(second, v_1, fma(first, v_0, load_first(sums, whole, left)))
        another = fma(sixth, v_1, fma(fifth, v_0, load_first(below, whole, left)))
        store_first(sums, whole, fma(fourth, v_3, fma(third, v_2, total)), left)
        store_first(below, whole, fma(eighth, v_3, fma(seventh, v_2, another)), left)


@jit
def _stream_part(p, row_first, row_last, column_first, column_last, taps, a, b, c, before, bias, scratch):
    """Rows and columns of one part for few rows or few taps: B is read in order, where it lies, four rows at a time.

    scratch: sums of all runs of taps, and of one, each [DOT_ROWS, STREAM_COLUMNS].
    """
    lanes = lanes_of(a)
    full = TILE_VECTORS * lanes
    zero = zeros_like(a)
    is_plain = p.bias_stride < 0 and p.activation == 0 and p.keeps_sums == 0 and p.accumulates == 0
    for i in range(row_first, row_last, DOT_ROWS):
        rows = min(DOT_ROWS, row_last - i)
        for j in range(column_first, column_last, STREAM_COLUMNS):
            columns = min(STREAM_COLUMNS, column_last - j)
            place = i * p.c_stride + j
            for start in range(0, max(taps, 1), PASS_TAPS):
                count = min(PASS_TAPS, taps - start)
                # Without an epilogue the sums gather in C itself.
                sums, stride = advance(scratch, DOT_ROWS * STREAM_COLUMNS if start else 0), STREAM_COLUMNS
                if is_plain and taps <= PASS_TAPS:
                    sums, stride = advance(c, place), p.c_stride
                for m in range(rows):
                    for n in range(0, columns, lanes):
                        store_first(sums, m * stride + n, zero, columns - n)
                # Few rows share what is read of B; few taps stay in L1 for all rows.
                group = 4 if rows > 1 else count
                for k in range(0, count, max(group, 1)):
                    source = advance(b, (start + k) * p.b_tap_stride + j)
                    many = min(group, count - k)
                    pairs = rows // 2 * 2 if many == 4 else 0
                    for m in range(0, pairs, 2):
                        factors = advance(a, (i + m) * p.a_row_stride + (start + k) * p.a_tap_stride)
                        out = advance(sums, m * stride)
                        _add_scaled_twice(
                            out, stride, columns, factors, p.a_row_stride, p.a_tap_stride, source, p.b_tap_stride
                        )
                    for m in range(pairs, rows):
                        factors = advance(a, (i + m) * p.a_row_stride + (start + k) * p.a_tap_stride)
                        out = advance(sums, m * stride)
                        _add_scaled(out, columns, factors, p.a_tap_stride, source, p.b_tap_stride, many)
                if start:
                    for m in range(rows):
                        for n in range(m * STREAM_COLUMNS, m * STREAM_COLUMNS + columns, lanes):
                            store(scratch, n, load(scratch, n) + load(sums, n))
            if not (is_plain and taps <= PASS_TAPS):
                beside = advance(bias, j * max(p.bias_stride, 0))
                out, kept = advance(c, place), advance(before, place)
                is_first = not p.accumulates
                finish(p, scratch, STREAM_COLUMNS, full, rows, columns, out, kept, is_first, True, beside)


@jit
def stream_parts(first, last, settings, a, b, c, before, bias, scratch):
    """As `multiply_parts` of matmul.py, B read where it lies: the parts divide the columns or the rows."""
    p = Product(*to_fixed_tuple(settings, FIELDS))
    start_a, start_b, out = pointer_at(a, scratch), pointer_at(b, scratch), pointer_at(c, scratch)
    kept, beside = pointer_at(before, scratch), pointer_at(bias, scratch)
    for part in range(first, last):
        columns = split(p.columns, p.column_parts, part % p.column_parts, TILE_VECTORS * lanes_of(start_a))
        rows = split(p.rows, p.row_parts, part // p.column_parts, TILE_ROWS)
        work = aligned(pointer(scratch, part * p.scratch_size))
        _stream_part(p, rows[0], rows[1], columns[0], columns[1], p.taps, start_a, start_b, out, kept, beside, work)


@jit
def _panel_part(p, column_first, column_last, a, b, c, before, bias, scratch):
    """Every row and the columns of one part, from packed panels of B.

    scratch: sums [rows, panels, full] of a group of panels, and the rows of A side by side [taps, rows].
    """
    lanes = lanes_of(a)
    full = TILE_VECTORS * lanes
    along, down = p.a_tap_stride, p.a_row_stride
    height, group = 1, PANELS_OF_ONE
    if p.rows > 4:
        height, group = 8, max(PANELS_OF_EIGHT, 1)
    elif p.rows > 2:
        height, group = 4, PANELS_OF_FOUR
    elif p.rows > 1:
        height, group = 2, PANELS_OF_TWO
    side = a
    if p.rows > 1 or along != 1:
        side = advance(scratch, DOT_ROWS * PANELS_OF_ONE * full)
        if along == 1:
            transpose(a, down, p.rows, p.taps, side, height)
        else:
            for k in range(p.taps):
                for r in range(p.rows):
                    poke(side, k * height + r, peek(a, r * down + k * along))
    stride, size, ahead = group * full, full * p.taps, PANELS_AHEAD // group
    # The last panel is one vector wide where no more is left.
    narrow = (p.columns - 1) // full * full if (p.columns - 1) % full < lanes else p.columns
    for j in range(column_first, column_last, stride):
        columns = min(stride, column_last - j)
        count = (min(columns, narrow - j) + full - 1) // full
        for k in range(0, max(p.taps, 1) if count > 0 else 0, PASS_TAPS):
            taps = min(PASS_TAPS, p.taps - k)
            left, right = advance(side, k * height), advance(b, j * p.taps + k * full)
            if p.rows == 1:
                multiply_panels(1, PANELS_OF_ONE, left, taps, right, size, count, ahead, scratch, stride, k)
            elif p.rows == 2:
                multiply_panels(2, PANELS_OF_TWO, left, taps, right, size, count, ahead, scratch, stride, k)
            elif p.rows <= 4:
                multiply_panels(4, PANELS_OF_FOUR, left, taps, right, size, count, ahead, scratch, stride, k)
            elif PANELS_OF_EIGHT:
                multiply_panels(8, PANELS_OF_EIGHT, left, taps, right, size, count, ahead, scratch, stride, k)
        if j + count * full < column_last and count < group:
            _narrow_panel(p, side, height, advance(b, narrow * p.taps), advance(scratch, count * full), stride)
        out, kept, beside = advance(c, j), advance(before, j), advance(bias, j * max(p.bias_stride, 0))
        is_first = not p.accumulates
        finish(p, scratch, stride, full, p.rows, columns, out, kept, is_first, True, beside)


@jit
def _narrow_panel(p, a, height, panel, sums, stride):
    """sums[rows, :lanes] = the rows of A, side by side [taps, height], times a panel [taps, lanes]."""
    lanes = lanes_of(a)
    for r in range(p.rows):
        total = zeros_like(a)
        for start in range(0, p.taps, PASS_TAPS):
            part = zeros_like(a)
            for k in range(start, min(start + PASS_TAPS, p.taps)):
                part = fma(broadcast(a, k * height + r), load(panel, k * lanes), part)
            total = total + part
        store(sums, r * stride, total)


@jit
def panel_parts(first, last, settings, a, b, c, before, bias, scratch):
    """As `multiply_parts` of matmul.py, for few rows and B packed: the parts divide the columns."""
    p = Product(*to_fixed_tuple(settings, FIELDS))
    start_a, start_b, out = pointer_at(a, scratch), pointer_at(b, scratch), pointer_at(c, scratch)
    kept, beside = pointer_at(before, scratch), pointer_at(bias, scratch)
    for part in range(first, last):
        columns = split(p.columns, p.column_parts, part, TILE_VECTORS * lanes_of(start_a))
        work = aligned(pointer(scratch, part * p.scratch_size))
        _panel_part(p, columns[0], columns[1], start_a, start_b, out, kept, beside, work)
