"""Matrix products of the CuPy backend: on NumPy arrays, and what cuBLAS would be asked for, played by NumPy."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kernels.runtime import cupy_products
from kernels.runtime.cupy_gpu import numpy_dtype
from kernels.runtime.cupy_products import matrix_product, operand

Array = np.ndarray[Any, Any]


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float64)


#: The same numbers lying in memory in every way.
LAYOUTS = {
    "rows": lambda a: np.ascontiguousarray(a),
    "columns": lambda a: np.asfortranarray(a),
    "parts of rows": lambda a: np.concatenate([a, a], axis=1)[:, : a.shape[1]],
    "parts of columns": lambda a: np.asfortranarray(np.concatenate([a, a], axis=0))[: a.shape[0]],
    "every second": lambda a: np.repeat(np.repeat(a, 2, 0), 2, 1)[::2, ::2],
    "backwards": lambda a: np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1],
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_numpy_arrays(dtype: str):
    a, b = (numbers(*s).astype(numpy_dtype(dtype)) for s in ((5, 7), (7, 3)))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    for wanted in {dtype, "float64" if dtype == "float64" else "float32"}:
        out = np.empty((5, 3), numpy_dtype(wanted))
        assert matrix_product(a, b, out) is out
        assert np.array_equal(out.astype(np.float64), exact)


def test_no_terms_and_no_columns():
    out = np.full((2, 3), np.nan)
    assert not matrix_product(np.empty((2, 0)), np.empty((0, 3)), out).any()
    assert matrix_product(np.empty((2, 4)), np.empty((4, 0)), np.empty((2, 0))).shape == (2, 0)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_products_are_added(dtype: str):
    wide = "float64" if dtype == "float64" else "float32"
    a, b, before = numbers(5, 7), numbers(7, 3), numbers(5, 3, seed=2)
    out = before.astype(wide)
    assert matrix_product(a.astype(dtype), b.astype(dtype), out, add=True) is out
    assert np.array_equal(out, before + a @ b)
    assert np.array_equal(matrix_product(np.empty((5, 0)), np.empty((0, 3)), before.copy(), add=True), before)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("sizes", [(5, 7, 3), (1, 7, 3), (5, 1, 3), (5, 7, 1), (1, 1, 1)])
@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("first", LAYOUTS)
def test_what_cublas_is_asked_for(first: str, second: str, sizes: tuple[int, int, int], add: bool, monkeypatch: Any):
    """A cuBLAS of NumPy, which sees pointers, sizes, transpositions and distances alone."""
    rows, terms, columns = sizes
    a, b = LAYOUTS[first](numbers(rows, terms)), LAYOUTS[second](numbers(terms, columns, seed=1))
    memory = np.full((rows, columns + 2), np.nan)
    out = memory[:, :columns]
    before = numbers(rows, columns, seed=2)
    out[...] = before if add else np.nan

    def matrix(at: int, down: int, across: int, distance: int) -> Array:
        """What lies at an address column after column."""
        assert distance >= down
        flat = (np.ctypeslib.ctypes.c_double * (distance * (across - 1) + down)).from_address(at)
        return np.lib.stride_tricks.as_strided(np.frombuffer(flat), (down, across), (8, 8 * distance))

    def gemm_ex(_: Any, op_a: int, op_b: int, m: int, n: int, k: int, alpha: int, at_a: int, type_a: int, lda: int,
                at_b: int, type_b: int, ldb: int, beta: int, at_c: int, type_c: int, ldc: int,
                *rest: int) -> None:  # fmt: skip
        assert (type_a, type_b, type_c, rest) == (1, 1, 1, (70, -1))
        assert (matrix(alpha, 1, 1, 1), matrix(beta, 1, 1, 1)) == (1, add)
        left = matrix(at_a, k, m, lda).T if op_a else matrix(at_a, m, k, lda)
        right = matrix(at_b, n, k, ldb).T if op_b else matrix(at_b, k, n, ldb)
        to = matrix(at_c, m, n, ldc)
        to[...] = left @ right + (to if add else 0)

    played = SimpleNamespace(
        gemmEx=gemm_ex,
        CUBLAS_OP_N=0,
        CUBLAS_OP_T=1,
        CUBLAS_COMPUTE_64F=70,
        CUBLAS_COMPUTE_32F=68,
        CUBLAS_GEMM_DEFAULT=-1,
    )
    pointing = SimpleNamespace(get_cublas_handle=lambda: 0)
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs", SimpleNamespace(cublas=played))
    monkeypatch.setitem(
        sys.modules, "cupy.cuda", SimpleNamespace(device=pointing, runtime=SimpleNamespace(CUDA_R_64F=1))
    )

    def as_cupy(o: Any) -> Any:
        """With the address where CuPy's arrays have it."""
        data = SimpleNamespace(ptr=o.array.ctypes.data)
        array = SimpleNamespace(data=data, dtype=o.array.dtype, alive=o.array)
        return cupy_products.Operand(array, o.turned, o.distance)

    operands = (as_cupy(operand(each)) for each in (a, b, out))
    cupy_products._by_cublas(*operands, (rows, columns, terms), add)
    assert np.array_equal(out, a @ b + before if add else a @ b)
    assert np.isnan(memory[:, columns:]).all()


def test_what_lies_in_rows_or_columns_is_not_copied():
    a = numbers(6, 8)
    for seen in (a, a.T, a[:, :3], a[:4].T, a[:1], a[:, :1]):
        assert operand(seen).array is seen
    for seen in (a[:, ::2], a[::-1], np.broadcast_to(a[:1], (6, 8))):
        assert operand(seen).array is not seen


def test_wrong_arguments():
    a, b = np.zeros((2, 3)), np.zeros((3, 4))
    with pytest.raises(ValueError, match=r"^matrix_product: out must be a @ b, got \(2, 3\) @ \(3, 4\) for \(4, 2\)$"):
        matrix_product(a, b, np.empty((4, 2)))
    message = "^matrix_product: a and b must have one dtype, out that or float64, got float64 @ float32 for float64$"
    with pytest.raises(TypeError, match=message):
        matrix_product(a, b.astype(np.float32), np.empty((2, 4)))
    with pytest.raises(ValueError, match=r"^matrix_product: out must lie row by row, got strides \(1, 2\)$"):
        matrix_product(a, b, np.empty((4, 2)).T)
