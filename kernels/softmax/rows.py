"""What the CPU kernels of this family share: maxima and sums of exponentials of a row, and vectors at its ends.

Two forms of every kernel exist. Where the classes are the innermost dimension, a row of classes is contiguous and lanes
are classes. Else lanes are neighbours in the inner dimensions, and the loop over the classes steps from one to the
next: then nothing has to be added up across lanes.
"""

from __future__ import annotations

import math

from kernels.runtime.numba_cpu import jit
from kernels.simd import (
    exp,
    full,
    lanes_of,
    load,
    load_first,
    load_masked,
    maximum,
    reduce_add,
    reduce_max,
    select,
    store,
    store_masked,
    zeros_like,
)

#: Elements of a row whose maximum and sum are taken while they are in the first-level cache.
CHUNK = 2048


@jit
def load_part(p, i, whole, mask, other):
    """Vector at p[i]: all of it, or the lanes of the mask with `other` in the rest."""
    if whole:
        return load(p, i)
    return load_masked(p, i, mask, other)


@jit
def store_part(p, i, v, whole, mask):
    """Store v at p[i]: all of it, or the lanes of the mask."""
    if whole:
        store(p, i, v)
    else:
        store_masked(p, i, v, mask)


@jit
def row_maximum(p, start, n):
    """The largest of the n elements from p[start]; NaN is passed over, and -inf is the largest of none."""
    lanes = lanes_of(p)
    a = full(p, -math.inf)
    i = start
    end = start + n
    if n >= 4 * lanes:
        # Four at a time, so that no comparison waits for the one before.
        b, c, d = a, a, a
        while i + 4 * lanes <= end:
            a = maximum(load(p, i), a)
            b = maximum(load(p, i + lanes), b)
            c = maximum(load(p, i + 2 * lanes), c)
            d = maximum(load(p, i + 3 * lanes), d)
            i += 4 * lanes
        a = maximum(maximum(a, b), maximum(c, d))
    while i + lanes <= end:
        a = maximum(load(p, i), a)
        i += lanes
    if i < end:
        a = maximum(load_first(p, i, end - i, -math.inf), a)
    return reduce_max(a)


@jit
def row_power_sum(p, start, n, shift):
    """The sum of exp(x - shift) over the n elements from p[start]."""
    lanes = lanes_of(p)
    total = zeros_like(p)
    i = start
    end = start + n
    while i + lanes <= end:
        total = total + exp(load(p, i) - shift)
        i += lanes
    if i < end:
        total = total + exp(load_first(p, i, end - i, -math.inf) - shift)
    return reduce_add(total)


@jit
def finite_shift(largest):
    """`largest`, or 0 for -inf, which nothing can be subtracted from."""
    return largest if largest > -math.inf else 0.0


@jit
def row_statistics(p, start, n):
    """(maximum, sum of exp(x - maximum)) of a row in one pass over memory.

    The sum is NaN where torch's softmax is: for a row with NaN or +inf in it, and for one of nothing but -inf.
    (Milakov and Gimelshein, Online normalizer calculation for softmax, 2018.)
    """
    end = start + n
    largest = row_maximum(p, start, min(n, CHUNK))
    # With nothing above -inf so far there is no difference to it; the terms are 0 or NaN as they stand.
    total = row_power_sum(p, start, min(n, CHUNK), finite_shift(largest))
    i = start + CHUNK
    while i < end:
        size = min(CHUNK, end - i)
        found = row_maximum(p, i, size)
        if found > largest:
            total = total * math.exp(largest - found)
            largest = found
        total += row_power_sum(p, i, size, finite_shift(largest))
        i += CHUNK
    if largest == -math.inf:
        total = math.nan
    return largest, total


@jit
def column_statistics(p, start, classes, step, whole, mask):
    """(maximum, sum of exp(x - maximum)) of each of a vector of columns: p[start + lane + c * step] over classes c."""
    largest = full(p, -math.inf)
    for c in range(classes):
        largest = maximum(load_part(p, start + c * step, whole, mask, 0.0), largest)
    total = zeros_like(p)
    for c in range(classes):
        total = total + exp(load_part(p, start + c * step, whole, mask, 0.0) - largest)
    return largest, select(largest > -math.inf, total, math.nan)
