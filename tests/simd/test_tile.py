"""The register tile against NumPy: sizes, offsets of either sign, strides, accumulation; and nothing else written."""

import itertools

import numpy as np
import pytest
from numba import njit

from kernels.simd import (
    TILE_ROWS,
    TILE_VECTORS,
    VECTOR_BYTES,
    dot_tile,
    multiply_gathered,
    multiply_tile,
    multiply_tile_onto,
    multiply_tile_part,
    pointer,
)
from kernels.simd.target import describe
from kernels.simd.tile_panels import multiply_panels


@njit(nogil=True, error_model="numpy")
def run_largest(a, start, rows, taps, count, b, out, row_stride, vector_stride, accumulate):
    multiply_tile(
        TILE_ROWS, TILE_VECTORS, pointer(a, start), pointer(rows), pointer(taps), count, pointer(b),
        pointer(out), row_stride, vector_stride, accumulate,
    )  # fmt: skip


@njit(nogil=True, error_model="numpy")
def run_1x1(a, start, rows, taps, count, b, out, row_stride, vector_stride, accumulate):
    multiply_tile(
        1, 1, pointer(a, start), pointer(rows), pointer(taps), count, pointer(b),
        pointer(out), row_stride, vector_stride, accumulate,
    )  # fmt: skip


@njit(nogil=True, error_model="numpy")
def run_3x4(a, start, rows, taps, count, b, out, row_stride, vector_stride, accumulate):
    multiply_tile(
        3, 4, pointer(a, start), pointer(rows), pointer(taps), count, pointer(b),
        pointer(out), row_stride, vector_stride, accumulate,
    )  # fmt: skip


@njit(nogil=True, error_model="numpy")
def run_part_5x2(a, start, rows, taps, count, b, out, row_stride, accumulate):
    multiply_tile_part(
        5, 2, 3, pointer(a, start), pointer(rows), pointer(taps), count, pointer(b), pointer(out), row_stride,
        accumulate,
    )  # fmt: skip


@njit(nogil=True, error_model="numpy")
def run_gathered_2x3(a, start, rows, taps, b, b_places, count, out, out_places, vector_stride, accumulate):
    multiply_gathered(
        2, 3, pointer(a, start), pointer(rows), pointer(taps), pointer(b, start), pointer(b_places), count,
        pointer(out), pointer(out_places), vector_stride, accumulate,
    )  # fmt: skip


@njit(nogil=True, error_model="numpy")
def run_onto_4x2(a, rows, taps, count, b, old, old_start, old_stride, out, out_start, out_stride, left, adds, rectify):
    multiply_tile_onto(
        4, 2, pointer(a, 500), pointer(rows), pointer(taps), count, pointer(b), pointer(b), 8, pointer(old, old_start),
        old_stride, pointer(out, out_start), out_stride, left, adds, rectify,
    )  # fmt: skip


def dots_of(rows, columns):
    @njit(nogil=True, error_model="numpy")
    def run(a, row_stride, step, b, b_start, b_stride, b_count, taps, out, out_stride, accumulate):
        start = pointer(b, b_start)
        dot_tile(
            rows, columns, 1, pointer(a), row_stride, step, start, b_stride, b_count, taps, pointer(out), out_stride,
            accumulate, start,
        )  # fmt: skip

    return run


DOTS = {(2, 3): dots_of(2, 3), (1, 2): dots_of(1, 2), (3, 8): dots_of(3, 8), (8, 2): dots_of(8, 2)}


@njit(nogil=True, error_model="numpy")
def run_panels_3x2(a, taps, b, stride, count, out, out_stride, accumulate):
    multiply_panels(3, 2, pointer(a), taps, pointer(b), stride, count, 64, pointer(out), out_stride, accumulate)


SIZES = {(TILE_ROWS, TILE_VECTORS): run_largest, (1, 1): run_1x1, (3, 4): run_3x4}


def in_order(a, b):
    """Row r, column c: the sum over k in order. Longer than the element type, for fma has one rounding."""
    return a.astype(np.longdouble) @ b.astype(np.longdouble)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
def test_tile(size, dtype):
    rows, vectors = size
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    rng = np.random.default_rng(0)
    a = rng.normal(size=1000).astype(dtype)
    for taps in (0, 1, 2, 7, 64):
        # Integers make every order of summation exact, so that results have to agree to the bit.
        for values in (a, rng.integers(-9, 9, a.size).astype(dtype)):
            is_exact = values is not a
            b = rng.integers(-9, 9, (taps, vectors * lanes)) if is_exact else rng.normal(size=(taps, vectors * lanes))
            b = b.astype(dtype)
            row_offsets = rng.integers(-200, 200, rows)
            tap_offsets = rng.integers(-200, 200, taps)
            if rows > 1:
                row_offsets[1] = row_offsets[0]
            product = in_order(values[500 + row_offsets[:, None] + tap_offsets], b).reshape(rows, vectors, lanes)
            for row_stride, vector_stride in ((vectors * lanes, lanes), (lanes + 1, rows * (lanes + 1) + 2)):
                for accumulate in (0, 1, -3):
                    old = rng.integers(-9, 9, 3000).astype(dtype) if accumulate else np.full(3000, np.nan, dtype)
                    out, expected = old.copy(), old.astype(np.longdouble)
                    for r in range(rows):
                        for j in range(vectors):
                            place = slice(start := r * row_stride + j * vector_stride, start + lanes)
                            expected[place] = product[r, j] + (old[place] if accumulate else 0)
                    arguments = (row_offsets, tap_offsets, taps, b, out, row_stride, vector_stride, accumulate)
                    SIZES[size](values, 500, *arguments)
                    tolerance = 0 if is_exact else 20 * np.finfo(dtype).eps * max(taps, 1)
                    np.testing.assert_allclose(out, expected.astype(dtype), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("accumulate", [0, 1])
def test_part_of_a_tile(dtype, accumulate):
    """Two of B's three vectors; integers, so that results have to agree to the bit. Nothing else is read or written."""
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    rng = np.random.default_rng(0)
    a = rng.integers(-9, 9, 1000).astype(dtype)
    for taps in (0, 1, 7, 64):
        b = rng.integers(-9, 9, (taps, 3 * lanes)).astype(dtype)
        b[:, 2 * lanes :] = np.nan
        row_offsets, tap_offsets = rng.integers(-200, 200, 5), rng.integers(-200, 200, taps)
        out = rng.integers(-9, 9, (5, 2 * lanes + 3)).astype(dtype)
        expected = out.copy()
        product = a[500 + row_offsets[:, None] + tap_offsets] @ b[:, : 2 * lanes]
        expected[:, : 2 * lanes] = product + (out[:, : 2 * lanes] if accumulate else 0)
        flat = out.reshape(-1)
        run_part_5x2(a, 500, row_offsets, tap_offsets, taps, b, flat, 2 * lanes + 3, accumulate)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("accumulate", [0, 1])
def test_gathered_tile(dtype, accumulate):
    """B's rows and the output's rows anywhere; integers, so that results have to agree to the bit."""
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-9, 9, 1000).astype(dtype) for _ in range(2))
    for taps in (0, 1, 9):
        rows, tap_places, b_places = (rng.integers(-200, 200, n) for n in (2, taps, taps))
        out_places = np.array([500, 3])
        old = rng.integers(-9, 9, 1000).astype(dtype) if accumulate else np.full(1000, np.nan, dtype)
        out, expected = old.copy(), old.copy()
        spread = b[500 + b_places[:, None] + np.arange(3 * lanes)]
        product = (a[500 + rows[:, None] + tap_places] @ spread).reshape(2, 3, lanes)
        for r in range(2):
            for j in range(3):
                place = slice(start := out_places[r] + j * (lanes + 1), start + lanes)
                expected[place] = product[r, j] + (old[place] if accumulate else 0)
        run_gathered_2x3(a, 500, rows, tap_places, b, b_places, taps, out, out_places, lanes + 1, accumulate)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rectify", [0, 1])
@pytest.mark.parametrize("adds", [0, 1])
def test_tile_onto(dtype, adds, rectify):
    """Old values from elsewhere, one row of them for all, or those of the output; any number of rows."""
    width = 2 * VECTOR_BYTES // np.dtype(dtype).itemsize
    rng = np.random.default_rng(3)
    for taps, left, form in itertools.product((0, 5), (1, 3, 4), ("elsewhere", "one for all", "in place")):
        a, b = rng.integers(-9, 9, 1000).astype(dtype), rng.integers(-9, 9, (taps, width)).astype(dtype)
        rows, tap_places = rng.integers(-200, 200, 4), rng.integers(-200, 200, taps)
        rows[left:] = rows[left - 1]
        stride = 0 if form == "one for all" else width + 3
        out = np.full(5 + 4 * (width + 1) + width, np.nan, dtype)
        old = out if form == "in place" else rng.integers(-99, 99, 2 + 4 * (width + 3)).astype(dtype)
        old_start = 2
        if form == "in place":
            old_start, stride = 5, width + 1
            out[5 : 5 + left * stride] = rng.integers(-99, 99, left * stride)
        expected = out.copy()
        for r in range(left):
            total = a[500 + rows[r] + tap_places] @ b
            if adds:
                total = total + old[old_start + r * stride :][:width]
            expected[5 + r * (width + 1) :][:width] = np.maximum(total, 0) if rectify else total
        run_onto_4x2(a, rows, tap_places, taps, b, old, old_start, stride, out, 5, width + 1, left, adds, rectify)
        np.testing.assert_array_equal(out, expected)


def test_rectified_tile_keeps_nan():
    a, b = np.array([np.nan] * 600, "f"), np.ones((1, 2 * VECTOR_BYTES // 4), "f")
    none, out = np.zeros(4, np.int64), np.zeros(2000, "f")
    run_onto_4x2(a, none, none[:1], 1, b, out, 0, 0, out, 0, b.size, 4, 0, 1)
    assert np.isnan(out[: 4 * b.size]).all() and not out[4 * b.size :].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", DOTS)
def test_dot_tile(dtype, size):
    """Every number of taps up to three vectors, A by vectors and by rows; integers, so results agree to the bit."""
    rows, columns = size
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    rng = np.random.default_rng(2)
    a = rng.integers(-9, 9, (rows, 3 * lanes)).astype(dtype)
    b = rng.integers(-9, 9, 600).astype(dtype)
    packed = np.ascontiguousarray(a.reshape(rows, 3, lanes).swapaxes(0, 1)).reshape(-1)
    places = ((0, 55, columns), (500, -50, columns - 1), (3, 60, 1))
    for taps, (start, stride, count) in itertools.product(range(3 * lanes + 1), places):
        out = np.full(8 * 11, np.nan, dtype)
        expected = out.copy()
        for r, c in np.ndindex(rows, columns):
            expected[r * 11 + c] = a[r, :taps] @ b[start + min(c, count - 1) * stride :][:taps]
        for left, row_stride, step in ((packed, lanes, rows * lanes), (a.reshape(-1), 3 * lanes, lanes)):
            found = out.copy()
            for times in (1, 2, 3):
                DOTS[size](left, row_stride, step, b, start, stride, count, taps, found, 11, times - 1)
                np.testing.assert_array_equal(found, times * expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_dot_product_has_the_same_bits_anywhere_in_a_tile(dtype):
    numbers = np.random.default_rng(3).standard_normal(100).astype(dtype)
    sums = set()
    for rows, columns in DOTS:
        out = np.zeros(8 * 11, dtype)
        DOTS[rows, columns](numbers, 0, VECTOR_BYTES // out.itemsize, numbers, 7, 0, columns, 85, out, 11, 0)
        sums |= {out[r * 11 + c] for r, c in np.ndindex(rows, columns)}
    assert len(sums) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_several_panels(dtype):
    """Integers, so that results have to agree to the bit; the second panel may be the first again."""
    width = TILE_VECTORS * VECTOR_BYTES // np.dtype(dtype).itemsize
    rng = np.random.default_rng(5)
    for taps, count in itertools.product((0, 1, 6), (1, 2)):
        a, b = rng.integers(-9, 9, (taps, 3)).astype(dtype), rng.integers(-9, 9, (2, 6, width)).astype(dtype)
        out = np.full(3 * (2 * width + 5), np.nan, dtype)
        expected = out.copy()
        for r, n in np.ndindex(3, 2):
            expected[r * (2 * width + 5) + n * width :][:width] = a[:, r] @ b[min(n, count - 1), :taps]
        for times in (1, 2):
            run_panels_3x2(a.reshape(-1), taps, b.reshape(-1), 6 * width, count, out, 2 * width + 5, times - 1)
            np.testing.assert_array_equal(out, times * expected)


def test_target_of_features():
    assert describe("x86_64-unknown-linux-gnu", "+avx2,+fma,+avx512f").vector_bytes == 64
    assert describe("x86_64-unknown-linux-gnu", "+avx2,+fma,-avx512f").vector_bytes == 32
    assert describe("x86_64-unknown-linux-gnu", "+avx,+sse2").tile_rows == 4
    assert describe("x86_64-unknown-linux-gnu", "").has_fma is False
    assert describe("arm64-apple-darwin", "").tile_rows == 12
    assert describe("aarch64-unknown-linux-gnu", "+neon").vector_bytes == 16
    assert describe("riscv64-unknown-linux-gnu", "").assembly_register is None
