"""cuBLAS on this processor, for the fake CuPy."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from kernels.runtime import cupy_gpu
from tests.support.fake_gpu import Launch, gpu


class Cublas:
    """Products column after column, of what lies at addresses; nothing else is known of the arrays."""

    CUBLAS_OP_N, CUBLAS_OP_T = 0, 1
    CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_64F, CUBLAS_GEMM_DEFAULT = 68, 70, -1
    #: cudaDataType: its number and what it is.
    TYPES = {"CUDA_R_32F": (0, "float32"), "CUDA_R_64F": (1, "float64"), "CUDA_R_16F": (2, "float16")}
    TYPES |= {"CUDA_R_16BF": (14, "bfloat16")}

    @staticmethod
    def _matrix(at: int, kind: int, down: int, across: int, distance: int) -> Any:
        """What lies there, columns `distance` elements apart."""
        assert distance >= down
        dtype = cupy_gpu.numpy_dtype(next(name for number, name in Cublas.TYPES.values() if number == kind))
        size = (distance * (across - 1) + down) * dtype.itemsize
        flat = np.frombuffer((ctypes.c_char * size).from_address(at), dtype)
        return np.lib.stride_tricks.as_strided(flat, (down, across), (dtype.itemsize, dtype.itemsize * distance))

    def gemmEx(
        self, handle: int, op_a: int, op_b: int, m: int, n: int, k: int, alpha: int, a: int, type_a: int, lda: int,
        b: int, type_b: int, ldb: int, beta: int, c: int, type_c: int, ldc: int, compute: int, algorithm: int,
    ) -> None:  # fmt: skip
        """C = alpha op(A) op(B) + beta C."""
        assert (handle, algorithm) == (gpu().device, -1), "another device's handle"
        wide = np.dtype("float64" if compute == self.CUBLAS_COMPUTE_64F else "float32")
        left = self._matrix(a, type_a, k, m, lda).T if op_a else self._matrix(a, type_a, m, k, lda)
        right = self._matrix(b, type_b, n, k, ldb).T if op_b else self._matrix(b, type_b, k, n, ldb)
        to = self._matrix(c, type_c, m, n, ldc)
        factor, kept = ((ctypes.c_char * wide.itemsize).from_address(at) for at in (alpha, beta))
        factor, kept = np.frombuffer(factor, wide)[0], np.frombuffer(kept, wide)[0]
        product = factor * (left.astype(wide) @ right.astype(wide))
        to[...] = product + kept * to.astype(wide) if kept else product
        gpu().launches.append(Launch("gemmEx", gpu().device, gpu().stream))
