"""Transposes: every block up to the lane count, whole matrices, rows in registers; nothing outside is touched."""

import numpy as np
import pytest
from numba import njit

from kernels.simd import (
    TILE_ROWS,
    VECTOR_BYTES,
    load,
    pointer,
    store,
    transpose,
    transpose_block,
    transpose_tile_rows,
    transpose_vectors,
)

DTYPES = [np.float32, np.float64]


@njit(nogil=True, error_model="numpy")
def run_block(src, start, src_stride, rows, columns, dst, dst_start, dst_stride):
    transpose_block(pointer(src, start), src_stride, rows, columns, pointer(dst, dst_start), dst_stride)


@njit(nogil=True, error_model="numpy")
def run_matrix(src, src_stride, rows, columns, dst, dst_stride):
    transpose(pointer(src), src_stride, rows, columns, pointer(dst), dst_stride)


@njit(nogil=True, error_model="numpy")
def run_tile_rows(src, start, src_stride, dst, dst_start):
    transpose_tile_rows(pointer(src, start), src_stride, pointer(dst, dst_start))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tile_rows(dtype):
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    src = np.arange(5 + TILE_ROWS * (lanes + 3)).astype(dtype)
    dst = np.full(7 + TILE_ROWS * lanes + 9, np.nan, dtype)
    expected = dst.copy()
    for c, r in np.ndindex(lanes, TILE_ROWS):
        expected[7 + c * TILE_ROWS + r] = src[5 + r * (lanes + 3) + c]
    run_tile_rows(src, 5, lanes + 3, dst, 7)
    np.testing.assert_array_equal(dst, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_block(dtype):
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    for rows in range(lanes + 1):
        for columns in range(lanes + 1):
            src_stride, dst_stride = columns + 3, rows + 2
            src = np.arange(5 + rows * src_stride).astype(dtype)
            dst = np.full(7 + lanes * dst_stride + lanes, np.nan, dtype)
            expected = dst.copy()
            for c in range(columns):
                for r in range(rows):
                    expected[7 + c * dst_stride + r] = src[5 + r * src_stride + c]
            run_block(src, 5, src_stride, rows, columns, dst, 7, dst_stride)
            np.testing.assert_array_equal(dst, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (37, 50), (64, 48), (33, 1), (0, 5)])
def test_matrix(shape, dtype):
    rows, columns = shape
    src = np.random.default_rng(0).normal(size=(rows, columns + 2)).astype(dtype)
    dst = np.full((columns, rows + 3), np.nan, dtype)
    run_matrix(src, columns + 2, rows, columns, dst, rows + 3)
    np.testing.assert_array_equal(dst[:, :rows], src[:, :columns].T)
    assert np.isnan(dst[:, rows:]).all()


def _run_vectors(lanes):
    """A kernel with `lanes` rows written out: a tuple's length is part of its type."""
    rows = ", ".join(f"load(p, {r * lanes})" for r in range(lanes))
    stores = "\n".join(f"    store(q, {c * lanes}, columns[{c}])" for c in range(lanes))
    source = (
        f"def run(x, out):\n    p, q = pointer(x), pointer(out)\n    columns = transpose_vectors(({rows},))\n{stores}"
    )
    names = {"pointer": pointer, "load": load, "store": store, "transpose_vectors": transpose_vectors}
    exec(source, names)
    return njit(nogil=True)(names["run"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_in_registers(dtype):
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    x = np.arange(lanes * lanes).astype(dtype).reshape(lanes, lanes)
    out = np.zeros_like(x)
    _run_vectors(lanes)(x, out)
    np.testing.assert_array_equal(out, x.T)
