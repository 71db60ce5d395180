"""What every CPU kernel uses: `jit`, `threaded` and the thread policy, `empty`, `zeros`, `contiguous`.

Importing this module imports numba; where that fails, or ``NUMBA_DISABLE_JIT`` is set, `missing` says so and the rest
still imports, so that other backends are not taken along.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Callable
from ctypes import addressof, c_char
from itertools import islice
from math import prod
from operator import attrgetter
from sys import getrefcount
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kernels.runtime import cache_folder
from kernels.runtime.cache_folder import CacheState, cache_state
from kernels.runtime.compile_cache import jit
from kernels.runtime.threads import Threaded, has_teams, stepped, thread_count, threaded, threading_layer, threads_for

__all__ = [
    "ALIGNMENT",
    "SMALLEST_ALIGNED",
    "SMALLEST_POOLED",
    "CacheState",
    "Threaded",
    "address",
    "cache_state",
    "contiguous",
    "empty",
    "has_teams",
    "info",
    "jit",
    "lasting",
    "missing",
    "release_memory",
    "scratch",
    "small",
    "stepped",
    "thread_count",
    "threaded",
    "threading_layer",
    "threads_for",
    "zeros",
]

ALIGNMENT = 64
"""Arrays of `empty` and `zeros` begin at multiples of this: a cache line, and the widest vector."""

SMALLEST_ALIGNED = 1 << 14
"""Smaller ones, in bytes, lie where NumPy puts them: to place them costs more than their kernels gain."""

SMALLEST_POOLED = 1 << 17
"""From so many bytes on memory comes from the system anew each time, and its pages one by one when they are touched."""

Shape = int | tuple[int, ...]


def missing() -> str | None:
    """Why compiled CPU kernels cannot run in this process, or None."""
    return cache_folder.unavailable()


def info() -> dict[str, object]:
    """Versions, threads, processor and cache of the CPU kernels, for ``kernels.info()``."""
    why = missing()
    if cache_folder.numba is None:
        return {"missing": why}
    import llvmlite

    name, features = cache_folder.processor()
    enabled = {feature[1:] for feature in features.split(",") if feature.startswith("+")}
    return {
        "missing": why,
        "numba": cache_folder.numba.__version__,
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


class _Block(NamedTuple):
    """Memory that arrays lie in."""

    #: Bytes, ALIGNMENT more than an array in it may have.
    size: int
    #: uint8 [size]; arrays refer to it.
    memory: NDArray[np.uint8]
    #: Its first aligned byte.
    start: int


_size_of = attrgetter("size")


def _block(size: int) -> _Block:
    memory = np.empty(size, _BYTE)
    # addressof is a quarter of the time of memory.ctypes.data and of __array_interface__.
    return _Block(size, memory, -addressof(_first_byte(memory)) % ALIGNMENT)


def fresh(shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    """As `empty`, in memory of its own that goes back to the system with it."""
    # _block written out: this runs in every kernel call, and a function call is a tenth of its time.
    count = shape if isinstance(shape, int) else prod(shape)
    memory = np.empty(count * dtype.itemsize + ALIGNMENT, _BYTE)
    return np.ndarray(shape, dtype, memory, -addressof(_first_byte(memory)) % ALIGNMENT)


def _allocate(shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    size = (shape if isinstance(shape, int) else prod(shape)) * dtype.itemsize
    if size < SMALLEST_ALIGNED:
        return np.empty(shape, dtype)
    size += ALIGNMENT
    if size < SMALLEST_POOLED:
        memory = np.empty(size, _BYTE)
        return np.ndarray(shape, dtype, memory, -addressof(_first_byte(memory)) % ALIGNMENT)
    block = _pool.block(size)
    return np.ndarray(shape, dtype, block.memory, block.start)


_allocator: Callable[[Shape, np.dtype[Any]], NDArray[Any]] = _allocate
"""Where all memory comes from. Tests put one here that fills it with NaN, or ends it at a page that traps."""


def empty(shape: Shape, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """A new C-contiguous array, contents unspecified: outputs of all kernels.

    It begins at a multiple of ALIGNMENT bytes from SMALLEST_ALIGNED bytes on. Large ones lie in memory that earlier
    arrays of this thread had, where it is free again; see `release_memory`.
    """
    return _allocator(shape, np.dtype(dtype))


def lasting(shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    """As `empty`, aligned whatever its size, for what outlives a call by far: its memory goes back to the system with
    it, not to those of coming results."""
    return fresh(shape, dtype) if _allocator is _allocate else _allocator(shape, dtype)


def small(shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    """As `empty`, wherever NumPy puts it, in a third of the time: for less than SMALLEST_ALIGNED bytes, and for working
    memory of less than SMALLEST_POOLED that the kernel aligns itself."""
    return np.empty(shape, dtype) if _allocator is _allocate else _allocator(shape, dtype)


def address(array: NDArray[Any]) -> int:
    """Where a contiguous, writable array begins. The caller keeps the array alive while it uses the address."""
    return addressof(_first_byte(array)) if array.size else 0


def place_of(given: NDArray[Any] | int) -> int:
    """The address of an input of a call by address: itself, or where that array begins."""
    return given if isinstance(given, int) else address(given)


def zeros(shape: Shape, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """As `empty`, filled with zeros."""
    array = _allocator(shape, np.dtype(dtype))
    array.fill(0)
    return array


class _Pool(threading.local):
    """Blocks of memory that a thread's arrays had before, for the next ones.

    A block is free when nothing but the pool refers to it: arrays refer to the block they lie in. Fresh blocks of this
    size come from the system page by page, which costs more than many a kernel.

    Attributes:
        scratch: blocks for scratch, which dies with the call, by size; any that is large enough will do.
        results: blocks for results by size class (eight to each power of two), the class used last at the end.
        held: bytes of all blocks for results.
    """

    def __init__(self) -> None:
        self.scratch: list[_Block] = []
        self.results: dict[int, list[_Block]] = {}
        self.held = 0

    def block(self, size: int) -> _Block:
        """A block for a result of `size` bytes."""
        step = max(size.bit_length() - 4, 0)
        size = -(-size >> step) << step
        blocks = self.results.pop(size, [])
        self.results[size] = blocks
        found = _smallest_free(blocks, size, _FREE)
        if found is None:
            found = _block(size)
            if self.held + size <= _RESULTS_BYTES or self._make_room(size):
                blocks.append(found)
                self.held += size
        return found

    def _make_room(self, size: int) -> bool:
        """Let free blocks go, those of the classes that were used longest ago first; whether that was enough."""
        for each, blocks in self.results.items():
            while self.held + size > _RESULTS_BYTES:
                found = _smallest_free(blocks, each, _FREE)
                if found is None:
                    break
                blocks[:] = [block for block in blocks if block is not found]
                self.held -= each
        return self.held + size <= _RESULTS_BYTES


_pool = _Pool()
_POOL_BLOCKS = 16
_POOL_BYTES = 1 << 26
_SMALLEST_POOLED = 1 << 14
_RESULTS_BYTES = 1 << 29


def _smallest_free(blocks: list[_Block], size: int, free: int) -> _Block | None:
    """The smallest block of at least `size` bytes whose memory has just `free` references, as seen from this loop.

    The blocks lie by size: a program of many ops has many, and this is asked in every call.
    """
    for block in islice(blocks, bisect_left(blocks, size, key=_size_of), None):
        if getrefcount(block.memory) == free:
            return block
    return None


# The block's reference and the call's: how many these are is up to the interpreter, so it is tried out.
_FREE = next(n for n in range(1, 8) if _smallest_free([_block(1)], 0, n) is not None)


def release_memory() -> None:
    """Give the memory that this thread keeps for coming arrays back: up to half a gigabyte of results and 64 MB of
    scratch. What arrays still lie in stays with them."""
    _pool.scratch.clear()
    _pool.results.clear()
    _pool.held = 0


def scratch(count: int, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """As `empty`, one-dimensional, for memory that dies with the call: large blocks are used again.

    Not for outputs, which live as long as the caller likes.
    """
    dtype = np.dtype(dtype)
    size = count * dtype.itemsize + ALIGNMENT
    if _allocator is not _allocate:
        return _allocator(count, dtype)
    if size < _SMALLEST_POOLED:
        return np.empty(count, dtype)
    block = _smallest_free(_pool.scratch, size, _FREE)
    if block is None:
        block = _block(size + size // 4)
        if block.size <= _POOL_BYTES:
            _keep(block)
    return np.ndarray(count, dtype, block.memory, block.start)


def _keep(block: _Block) -> None:
    """Put a block into the pool of scratch; the smallest ones leave when it grows too large."""
    blocks = _pool.scratch
    insort(blocks, block, key=_size_of)
    while len(blocks) > _POOL_BLOCKS or (len(blocks) > 1 and sum(map(_size_of, blocks)) > _POOL_BYTES):
        del blocks[0]


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
