"""What the CPU kernels of this family share: maxima and sums of exponentials of a row, and vectors at its ends.

Two forms of every kernel exist. Where the classes are the innermost dimension, a row of classes is contiguous and lanes
are classes. Else lanes are neighbours in the inner dimensions, and the loop over the classes steps from one to the
next: then nothing has to be added up across lanes. Such columns are taken four vectors at a time where that many lie
side by side: one vector of each class, often a page from the next, is no stream that the caches could foresee.
Short rows are turned into columns: a block of as many rows as there are lanes is transposed, and back.
"""

from __future__ import annotations

import math

from kernels.runtime.numba_cpu import jit
from kernels.simd import (
    GROUP,
    advance,
    exp_nonpositive,
    full,
    lanes_of,
    load,
    load_first,
    load_group,
    load_masked,
    maximum,
    reduce_add,
    reduce_max,
    select,
    store,
    store_masked,
    sum_of_group,
    transpose_block,
    zeros_group,
    zeros_like,
)
from kernels.simd.target import VECTOR_BYTES

#: Elements of a row whose maximum and sum are taken while they are in the first-level cache.
CHUNK = 2048
#: Rows of up to so many vectors are turned into columns; for longer ones the transposes cost more than they save.
SHORT = 2
#: Rows of up to so many vectors are taken four together.
MEDIUM = 16
#: Vectors of a transposed block of short rows: each element of a row becomes one.
ROOM = SHORT * VECTOR_BYTES // 4


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
def load_four(p, i):
    """Four vectors side by side at p[i]."""
    lanes = lanes_of(p)
    return load(p, i), load(p, i + lanes), load(p, i + 2 * lanes), load(p, i + 3 * lanes)


@jit
def store_four(p, i, v):
    """Store four vectors side by side at p[i]."""
    lanes = lanes_of(p)
    store(p, i, v[0])
    store(p, i + lanes, v[1])
    store(p, i + 2 * lanes, v[2])
    store(p, i + 3 * lanes, v[3])


@jit
def columns_of_rows(p, start, rows, n, columns):
    """columns[c * lanes + r] = p[start + r * n + c] for r < rows and c < n: rows, at most `lanes`, as vectors."""
    lanes = lanes_of(p)
    for c in range(0, n, lanes):
        transpose_block(advance(p, start + c), n, rows, n - c, advance(columns, c * lanes), lanes)


@jit
def rows_of_columns(columns, p, start, rows, n):
    """The way back: p[start + r * n + c] = columns[c * lanes + r]."""
    lanes = lanes_of(p)
    for c in range(0, n, lanes):
        transpose_block(advance(columns, c * lanes), lanes, n - c, rows, advance(p, start + c), n)


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
    if GROUP > 1 and n >= 2 * GROUP * lanes:
        sums = zeros_group(p)
        while i + GROUP * lanes <= end:
            sums = sums + exp_nonpositive(load_group(p, i) - shift)
            i += GROUP * lanes
        total = sum_of_group(sums, p)
    while i + lanes <= end:
        total = total + exp_nonpositive(load(p, i) - shift)
        i += lanes
    if i < end:
        total = total + exp_nonpositive(load_first(p, i, end - i, -math.inf) - shift)
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
        total = total + exp_nonpositive(load_part(p, start + c * step, whole, mask, 0.0) - largest)
    return largest, select(largest > -math.inf, total, math.nan)


@jit
def four_column_statistics(p, start, classes, step):
    """The same of four vectors of columns side by side: (four maxima, four sums)."""
    a = full(p, -math.inf)
    b, c, d = a, a, a
    for i in range(start, start + classes * step, step):
        v = load_four(p, i)
        a, b, c, d = maximum(v[0], a), maximum(v[1], b), maximum(v[2], c), maximum(v[3], d)
    e = zeros_like(p)
    f, g, h = e, e, e
    for i in range(start, start + classes * step, step):
        v = load_four(p, i)
        e, f, g, h = (
            e + exp_nonpositive(v[0] - a),
            f + exp_nonpositive(v[1] - b),
            g + exp_nonpositive(v[2] - c),
            h + exp_nonpositive(v[3] - d),
        )
    low = -math.inf
    e, f = select(a > low, e, math.nan), select(b > low, f, math.nan)
    g, h = select(c > low, g, math.nan), select(d > low, h, math.nan)
    return (a, b, c, d), (e, f, g, h)
