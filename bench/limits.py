"""This machine's own limits, measured: multiply-adds out of registers, and bytes copied, at a number of threads.

The multiply-add probe runs the register tile that all kernels are built on over operands that stay in the first-level
cache: the most that any of them could reach. The copy probe copies blocks of several sizes, since a case whose numbers
fit into a cache may be faster than main memory: a case is compared with the smallest block that holds its numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from kernels.runtime.numba_cpu import empty, jit, threaded
from kernels.simd import TILE_ROWS, TILE_VECTORS, VECTOR_BYTES, advance, multiply_tile, pointer

_TAPS = 128
_REPEATS = 2000
#: Bytes read and written by one copy, from the second-level cache to main memory.
COPY_BYTES = tuple(1 << n for n in (17, 19, 21, 23, 25, 28))
#: Elements between the tiles' own memory, for each thread: on cache lines, and pages, of its own.
_APART = 8192


@jit
def _tiles(first, last, a, b, out, row_offsets, tap_offsets, width):
    for part in range(first, last):
        mine = part * _APART
        for _ in range(_REPEATS):
            # Added to what is there, so that no repetition can be left out.
            multiply_tile(
                TILE_ROWS,
                TILE_VECTORS,
                advance(pointer(a), mine),
                pointer(row_offsets),
                pointer(tap_offsets),
                _TAPS,
                advance(pointer(b), mine),
                advance(pointer(out), mine),
                width,
                width // TILE_VECTORS,
                1,
            )


@jit
def _copy(first, last, source, destination):
    for i in range(first, last):
        destination[i] = source[i]


_run_tiles, _run_copy = threaded(_tiles), threaded(_copy, 4096)


@dataclass(frozen=True)
class Limits:
    """What this machine can do at most, at one number of threads in one dtype.

    Attributes:
        threads: number of threads.
        dtype: element type of the multiply-adds.
        flops: floating-point operations a second, a multiply-add counted as two.
        copies: bytes read and written a second, by the size of the block in bytes.
    """

    threads: int
    dtype: str
    flops: float
    copies: dict[int, float] = field(default_factory=dict)

    def bandwidth(self, nbytes: int) -> float:
        """Bytes a second for work on so many bytes: of the smallest measured block that is not smaller."""
        return self.copies[next((size for size in sorted(self.copies) if size >= nbytes), max(self.copies))]

    def seconds(self, flops: int, nbytes: int) -> tuple[float, str]:
        """The least time for so many operations on so many bytes, and which of the two takes it: "flops" or "bytes"."""
        by_flops, by_bytes = flops / self.flops, nbytes / self.bandwidth(nbytes)
        return (by_flops, "flops") if by_flops >= by_bytes else (by_bytes, "bytes")


def _best(run: Callable[[], None], seconds: float) -> float:
    """Seconds of the fastest run: a limit is what is possible."""
    run()
    end = time.perf_counter() + seconds
    best = float("inf")
    while True:
        start = time.perf_counter()
        run()
        now = time.perf_counter()
        best = min(best, now - start)
        if now >= end:
            return best


def peak_flops(threads: int, dtype: str = "float32", seconds: float = 0.3) -> float:
    """Floating-point operations a second of the register tile, on `threads` threads."""
    itemsize = np.dtype(dtype).itemsize
    width = TILE_VECTORS * VECTOR_BYTES // itemsize
    memory = [empty(threads * _APART, dtype) for _ in range(3)]
    for array in memory:
        array[:] = 1e-3
    rows = np.arange(TILE_ROWS, dtype=np.int64) * _TAPS
    taps = np.arange(_TAPS, dtype=np.int64)
    best = _best(lambda: _run_tiles(threads, threads, *memory, rows, taps, width), seconds)
    return threads * _REPEATS * 2.0 * TILE_ROWS * width * _TAPS / best


def copy_bandwidth(threads: int, nbytes: int, seconds: float = 0.1) -> float:
    """Bytes read and written a second by copying nbytes / 2 bytes: our own loop or torch's, whichever is faster."""
    count = nbytes // 8
    source, destination = empty(count, np.float32), empty(count, np.float32)
    source[:] = 1
    destination[:] = 0
    ways: list[Callable[[], None]] = [lambda: _run_copy(count, threads, source, destination)]
    if threads == 1:
        ways.append(lambda: np.copyto(destination, source))
    else:
        import torch

        into, out_of = torch.from_numpy(destination), torch.from_numpy(source)
        ways.append(lambda: None if into.copy_(out_of) is into else None)
    return nbytes / min(_best(run, seconds) for run in ways)


def measure(threads: int, dtype: str, seconds: float = 1.0) -> Limits:
    """All limits at a number of threads, in about so many seconds."""
    each = seconds / (2 * len(COPY_BYTES) + 4)
    copies = {nbytes: copy_bandwidth(threads, nbytes, each) for nbytes in COPY_BYTES}
    return Limits(threads, dtype, peak_flops(threads, dtype, 4 * each), copies)
