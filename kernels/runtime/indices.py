"""Indices that come from a user, looked at before a kernel goes where they point."""

from __future__ import annotations

import numpy as np

from kernels.runtime.numba_cpu import jit
from kernels.simd import array_at


@jit
def any_outside(indices, bound, ignored):
    """Whether any of the int64 indices (n,) is neither in [0, bound) nor `ignored`."""
    found = False
    for i in range(len(indices)):
        index = indices[i]
        # As unsigned numbers, negative indices are large.
        found |= (np.uint64(index) >= np.uint64(bound)) & (index != ignored)
    return found


@jit
def any_outside_at(place, count, like, bound, ignored):
    """any_outside of the `count` int64 indices at a place (kernels.simd.places); like: any array of int64."""
    return any_outside(array_at(like, place, count), bound, ignored)
