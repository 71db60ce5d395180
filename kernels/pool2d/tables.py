"""Tables of the CPU kernels, one for each dimension of the windows; kept for the next call of the same form."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from kernels.pool2d import windows

Array = np.ndarray[Any, Any]


def _pairs(starts: Array, ends: Array) -> Array:
    return np.ascontiguousarray(np.stack([starts, ends]), dtype=np.int64)


@lru_cache(4096)
def sliding(size: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> Array:
    return _pairs(*windows.taps(size, outputs, kernel, stride, padding, dilation))


@lru_cache(4096)
def adaptive(size: int, outputs: int) -> Array:
    return _pairs(*windows.adaptive(size, outputs))


@lru_cache(4096)
def extents(size: int, outputs: int, kernel: int, stride: int, padding: int, counts_padding: bool, dtype: str) -> Array:
    """Divisors of the windows along one dimension."""
    start, end, extent = windows.sliding(size, outputs, kernel, stride, padding)
    return (extent if counts_padding else end - start).astype(dtype)


@lru_cache(4096)
def lengths(size: int, outputs: int, dtype: str) -> Array:
    """Divisors of the adaptive windows along one dimension."""
    start, end = windows.adaptive(size, outputs)
    return (end - start).astype(dtype)


@lru_cache(4096)
def constant(outputs: int, value: int, dtype: str) -> Array:
    return np.full(outputs, value, dtype)


@lru_cache(4096)
def holders(size: int, make: Any, *form: int) -> Array:
    """The outputs whose windows, ``make(size, *form)``, hold each input: first, and one past the last."""
    starts, ends = make(size, *form)
    inputs = np.arange(size)
    return _pairs(np.searchsorted(ends, inputs, "right"), np.searchsorted(starts, inputs, "right"))
