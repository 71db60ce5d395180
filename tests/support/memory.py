"""Memory that tells: fresh arrays full of poison, and arrays that end or begin exactly at a page that traps."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, Literal

import numpy as np

from kernels.runtime import numba_cpu

Array = np.ndarray[Any, Any]
Where = Literal["end", "start"]

PAGE = mmap.PAGESIZE
_PROT_NONE = 0
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


@contextmanager
def allocator(function: Any) -> Iterator[None]:
    """Every output and scratch array of the CPU kernels comes from ``function(shape, dtype)`` inside the block."""
    before = numba_cpu._allocator
    numba_cpu._allocator = function
    try:
        yield
    finally:
        numba_cpu._allocator = before


def poisoned(byte: int) -> Any:
    """An allocator that fills every byte: 0xFF makes NaN of floats and -1 of integers, 0x7E huge numbers of both."""

    def allocate(shape: Any, dtype: np.dtype[Any]) -> Array:
        array = numba_cpu.fresh(shape, dtype)
        if array.size:
            # A view of the bytes, in whatever shape the array has.
            np.ndarray(array.nbytes, np.uint8, array).fill(byte)
        return array

    return allocate


def guarded(shape: Any, dtype: Any, where: Where) -> Array:
    """A C-contiguous array of zeros with a page that traps right behind its last byte, or right before its first."""
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    nbytes = prod(shape) * dtype.itemsize
    pages = max(-(-nbytes // PAGE), 1)
    region = mmap.mmap(-1, (pages + 2) * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(region))
    for guard in (address, address + (pages + 1) * PAGE):
        if _libc.mprotect(guard, PAGE, _PROT_NONE) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    first = PAGE if where == "start" else (pages + 1) * PAGE - nbytes
    return np.ndarray(shape, dtype, region, first)


def guarded_copy(array: Array, where: Where) -> Array:
    """A copy of an array between pages that trap, in the same dense layout."""
    order = sorted(range(array.ndim), key=lambda d: (-abs(array.strides[d]), d))
    packed = array.transpose(order)
    fresh = guarded(packed.shape, packed.dtype, where)
    fresh[...] = packed
    return fresh.transpose(np.argsort(order)) if array.ndim else fresh


def guarded_allocator(where: Where) -> Any:
    """An allocator of guarded arrays full of NaN (integers: -1)."""

    def allocate(shape: Any, dtype: np.dtype[Any]) -> Array:
        array = guarded(shape, dtype, where)
        if array.size:
            np.ndarray(array.nbytes, np.uint8, array).fill(0xFF)
        return array

    return allocate
