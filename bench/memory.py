"""Peak extra memory of one call: everything beyond its inputs, results included.

Two ways to count, and the record says which one it was:

* "asked": our kernels take all outputs and scratch from one place (`kernels.runtime.numba_cpu`), which is watched here:
  the most bytes alive at once. Scratch that a warm call would take from the pool counts as fresh. Exact to the byte.
* "resident": for everybody else, the growth of the process's peak resident memory during one call, after unused heap
  has been given back to the system. It counts pages, so results below some 100 KiB often show as 0, and memory that an
  engine took when it was set up and keeps (packed weights, arenas) does not show at all.
"""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class _Watch:
    """An allocator that counts the bytes of its arrays that are alive."""

    def __init__(self, allocate: Callable[..., Any]) -> None:
        self._allocate = allocate
        self._live = 0
        self.peak = 0

    def __call__(self, shape: Any, dtype: Any) -> Any:
        array = self._allocate(shape, dtype)
        # Views refer to the array that owns the memory, not to each other: it lives as long as any of them.
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        self._live += array.nbytes
        self.peak = max(self.peak, self._live)
        weakref.finalize(owner, self._release, array.nbytes)
        return array

    def _release(self, nbytes: int) -> None:
        self._live -= nbytes


def asked(run: Callable[[], Any]) -> int:
    """Most bytes alive at once that our kernels asked for during one call."""
    from kernels.runtime import numba_cpu

    before = numba_cpu._allocator
    watch = _Watch(numba_cpu.fresh)
    numba_cpu._allocator = watch
    try:
        run()
    finally:
        numba_cpu._allocator = before
    return watch.peak


def _status(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {field}")


def resident(run: Callable[[], Any]) -> int | None:
    """Growth of the peak resident memory during one call; None where the system does not tell."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text("5")  # Resets the peak.
        before = _status("VmRSS")
        run()
        return max(_status("VmHWM") - before, 0)
    except (OSError, AttributeError):
        return None
