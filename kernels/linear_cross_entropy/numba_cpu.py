"""linear_cross_entropy on the CPU: the kernels of linear and cross_entropy, a chunk at a time."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernels.linear import numba_cpu as linear
from kernels.linear_cross_entropy.chunks import Parts, describe, in_chunks
from kernels.linear_cross_entropy.op import LINEAR_CROSS_ENTROPY
from kernels.op import Implementation
from kernels.runtime.numba_cpu import empty
from kernels.softmax import numba_cpu as softmax

Array = np.ndarray[Any, Any]


def _full(like: Any, shape: tuple[int, ...], number: Any, dtype: Any) -> Array:
    made = empty(shape, np.dtype(dtype))
    made.fill(number)
    return made


def _cast(array: Any, dtype: str) -> Array:
    if isinstance(array, np.ndarray):
        return array if array.dtype == dtype else array.astype(dtype)
    return _full(None, (), array, dtype)


def _concatenate(arrays: Sequence[Array]) -> Array:
    if len(arrays) == 1:
        return arrays[0]
    first = arrays[0]
    return np.concatenate(arrays, out=empty((sum(map(len, arrays)), *first.shape[1:]), first.dtype))


_PARTS = Parts(
    linear.linear,
    linear.linear_backward,
    softmax.cross_entropy,
    softmax.cross_entropy_backward,
    _cast,
    _concatenate,
    expand=lambda number, shape: _full(None, shape, number, number.dtype),
    full=_full,
    add=operator.iadd,
)
# The mean of nothing is NaN.
_quiet = np.errstate(divide="ignore", invalid="ignore")
forward, backward = (_quiet(function) for function in in_chunks(_PARTS))
Implementation(LINEAR_CROSS_ENTROPY, "numba", forward, backward, describe=describe)
