"""What every CPU kernel uses: `jit`, `threaded` and the thread policy, `empty`, `zeros`, `contiguous`.

Importing this module imports numba; where that fails, or ``NUMBA_DISABLE_JIT`` is set, `missing` says so and the rest
still imports, so that other backends are not taken along.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import addressof, c_char
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kernels.runtime import compile_cache
from kernels.runtime.compile_cache import CacheState, cache_state, jit
from kernels.runtime.threads import Threaded, thread_count, threaded, threading_layer, threads_for

__all__ = [
    "ALIGNMENT",
    "CacheState",
    "Threaded",
    "cache_state",
    "contiguous",
    "empty",
    "info",
    "jit",
    "missing",
    "thread_count",
    "threaded",
    "threading_layer",
    "threads_for",
    "zeros",
]

ALIGNMENT = 64
"""Every array of `empty` and `zeros` begins at a multiple of this: a cache line, and the widest vector."""

Shape = int | tuple[int, ...]


def missing() -> str | None:
    """Why compiled CPU kernels cannot run in this process, or None."""
    return compile_cache.unavailable()


def info() -> dict[str, object]:
    """Versions, threads, processor and cache of the CPU kernels, for ``kernels.info()``."""
    why = missing()
    if compile_cache.numba is None:
        return {"missing": why}
    import llvmlite

    name, features = compile_cache.processor()
    enabled = {feature[1:] for feature in features.split(",") if feature.startswith("+")}
    return {
        "missing": why,
        "numba": compile_cache.numba.__version__,
        "llvmlite": llvmlite.__version__,
        "threading_layer": threading_layer() or "not started",
        "threads": thread_count(),
        "processor": name,
        "features": tuple(f for f in ("avx512f", "avx2", "fma", "neon", "sve") if f in enabled),
        "cache": cache_state(),
    }


# ---------------------------------------------------------------------------------------------------------------
# Memory


_BYTE = np.dtype(np.uint8)
_first_byte: Callable[[Any], c_char] = c_char.from_buffer


def _place(buffer: NDArray[np.uint8], shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array at the first aligned byte of `buffer`, which is ALIGNMENT bytes larger than the array."""
    # addressof is a quarter of the time of buffer.ctypes.data and of __array_interface__.
    return np.ndarray(shape, dtype, buffer, -addressof(_first_byte(buffer)) % ALIGNMENT)


def _allocate(shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    # _place written out: this runs in every kernel call, and a function call is a tenth of its time.
    count = shape if isinstance(shape, int) else prod(shape)
    buffer = np.empty(count * dtype.itemsize + ALIGNMENT, _BYTE)
    return np.ndarray(shape, dtype, buffer, -addressof(_first_byte(buffer)) % ALIGNMENT)


_allocator: Callable[[Shape, np.dtype[Any]], NDArray[Any]] = _allocate
"""Where all memory comes from. Tests put one here that fills it with NaN, or ends it at a page that traps."""


def empty(shape: Shape, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """A new C-contiguous array at a multiple of 64 bytes, contents unspecified: outputs and scratch of all kernels."""
    return _allocator(shape, np.dtype(dtype))


def zeros(shape: Shape, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """As `empty`, filled with zeros."""
    dtype = np.dtype(dtype)
    if _allocator is not _allocate:
        array = _allocator(shape, dtype)
        array.fill(0)
        return array
    # np.zeros, since large blocks come zeroed from the system, untouched until used.
    count = shape if isinstance(shape, int) else prod(shape)
    return _place(np.zeros(count * dtype.itemsize + ALIGNMENT, _BYTE), shape, dtype)


class _WritableAlias:
    """Lends the memory of a read-only array as writable, and keeps the array alive as the alias's base."""

    __slots__ = ("__array_interface__", "array")

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def contiguous(array: NDArray[Any]) -> NDArray[Any]:
    """`array` as compiled kernels take it: C-contiguous, aligned, writable, native byte order.

    The array itself where it is so already. Where it is only read-only, a writable alias of the same memory, since
    Numba types read-only arrays differently and would compile every kernel again; kernels do not write their inputs.
    Else a copy from `empty`.
    """
    if type(array) is not np.ndarray:
        array = np.asarray(array)
    flags = array.flags
    dtype = array.dtype
    if dtype.isnative:
        if flags.carray:
            return array
        if flags.c_contiguous and flags.aligned:
            alias = np.asarray(_WritableAlias(array))
            # The interface says "void" for extension types such as bfloat16.
            return alias if alias.dtype == dtype else alias.view(dtype)
    copy = empty(array.shape, dtype.newbyteorder("="))
    copy[...] = array
    return copy
