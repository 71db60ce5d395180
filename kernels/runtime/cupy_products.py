"""Matrix products by cuBLAS, for what its library does best: whole layers of linear maps and of recurrences.

Half precision is multiplied on tensor cores and summed in float32, which may be kept. float32 stays float32: tf32 is
not taken. On NumPy arrays (in the tests) NumPy multiplies, in the type that numbers are computed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.runtime.cupy_gpu import computed_dtype, dtype_name, element_strides

#: cuBLAS takes sizes and distances of 32 bits.
LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Operand:
    """A matrix as cuBLAS reads it, column after column.

    Attributes:
        array: whose first element is the matrix's.
        turned: whether what lies there column after column must be transposed: the matrix lies row after row.
        distance: from a column (row) to the next one, in elements.
    """

    array: Any
    turned: bool
    distance: int


def operand(matrix: Any) -> Operand:
    """A two-dimensional array as an operand; copied only where neither rows nor columns lie without gaps."""
    rows, columns = matrix.shape
    down, across = element_strides(matrix)
    if (columns == 1 or across == 1) and (rows == 1 or down >= columns):
        return Operand(matrix, True, max(down, columns, 1))
    if (rows == 1 or down == 1) and (columns == 1 or across >= rows):
        return Operand(matrix, False, max(across, rows, 1))
    return Operand(matrix.copy(order="C"), True, max(columns, 1))


def matrix_product(a: Any, b: Any, out: Any, add: bool = False) -> Any:
    """out = a @ b, or out += a @ b.

    Args:
        a: (M, K), any strides.
        b: (K, N), of a's dtype, any strides.
        out: (M, N), of that dtype, or of the one that it is computed in (float32 for half precision); written. Its
            elements of a row are neighbours. It shares no memory with a and b.
        add: the product is added to what is in out.

    Returns:
        out.

    Raises:
        ValueError, TypeError: shapes, dtypes or strides are not these.
    """
    dtype = dtype_name(a)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or out.shape != (a.shape[0], b.shape[1]):
        raise ValueError(f"matrix_product: out must be a @ b, got {a.shape} @ {b.shape} for {out.shape}")
    if dtype_name(b) != dtype or dtype_name(out) not in (dtype, computed_dtype(dtype)):
        found = f"{dtype} @ {dtype_name(b)} for {dtype_name(out)}"
        raise TypeError(
            f"matrix_product: a and b must have one dtype, out that or {computed_dtype(dtype)}, got {found}"
        )
    if out.size == 0:
        return out
    to = operand(out)
    if to.array is not out or not to.turned:
        raise ValueError(f"matrix_product: out must lie row by row, got strides {element_strides(out)}")
    if a.shape[1] == 0:
        if not add:
            out.fill(0)
        return out
    if isinstance(out, np.ndarray):
        _by_numpy(a, b, out, add)
    else:
        _by_cublas(operand(a), operand(b), to, (*out.shape, a.shape[1]), add)
    return out


def _by_numpy(a: Any, b: Any, out: Any, add: bool) -> None:
    wide = np.dtype(computed_dtype(dtype_name(a)))
    with np.errstate(all="ignore"):
        product = a.astype(wide) @ b.astype(wide)
        out[...] = out.astype(wide) + product if add else product


def _by_cublas(a: Operand, b: Operand, out: Operand, sizes: tuple[int, int, int], add: bool) -> None:
    """The transposed product, column after column: what lies in out row after row; `add`: and what was there."""
    from cupy.cuda import device
    from cupy_backends.cuda.libs import cublas

    rows, columns, terms = sizes
    if max(*sizes, a.distance, b.distance, out.distance) > LARGEST:
        raise ValueError(f"matrix_product: sizes and strides must be at most {LARGEST}, got {sizes}")
    wide = np.dtype(computed_dtype(dtype_name(out.array)))
    factor, kept = np.ones((), wide), np.full((), add, wide)
    compute = cublas.CUBLAS_COMPUTE_64F if wide == np.float64 else cublas.CUBLAS_COMPUTE_32F
    # Column after column, what lies row after row is its own transpose already.
    flags = [cublas.CUBLAS_OP_N if each.turned else cublas.CUBLAS_OP_T for each in (b, a)]
    cublas.gemmEx(
        device.get_cublas_handle(), *flags, columns, rows, terms, factor.ctypes.data,
        b.array.data.ptr, _cuda_type(b), b.distance, a.array.data.ptr, _cuda_type(a), a.distance,
        kept.ctypes.data, out.array.data.ptr, _cuda_type(out), out.distance, compute, cublas.CUBLAS_GEMM_DEFAULT,
    )  # fmt: skip


def _cuda_type(matrix: Operand) -> int:
    """cudaDataType of an operand."""
    from cupy.cuda import runtime

    names = {"float32": "CUDA_R_32F", "float64": "CUDA_R_64F", "float16": "CUDA_R_16F", "bfloat16": "CUDA_R_16BF"}
    kind: int = getattr(runtime, names[dtype_name(matrix.array)])
    return kind
