"""embedding on the CPU: rows gathered at the speed of memory, and added up again in the order of the indices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.embedding.op import EMBEDDING, EmbeddingProblem
from kernels.op import Implementation
from kernels.runtime.by_address import LIKE, Run, array_from, backward_through, if_plain
from kernels.runtime.indices import any_outside, any_outside_at
from kernels.runtime.numba_cpu import address, contiguous, empty, jit, threaded, threads_for
from kernels.simd import (
    LINE_VECTORS,
    absolute,
    array_at,
    fma,
    full,
    lane_mask,
    lanes_of,
    load,
    load_masked,
    peek,
    pointer,
    poke,
    prefetch,
    reduce_add,
    store,
    store_masked,
    zeros_like,
)
from kernels.simd.target import TARGET

Array = np.ndarray[Any, Any]

#: Elements a thread, below which another one does not pay: moved, and added up.
GRAIN, GRAIN_BACKWARD = 65536, 32768
#: Places between a row's being asked for and its turn to be added to.
AHEAD = 4
#: Whether the next row is asked for before a row is copied. Without AVX-512 that is the one after it, bit by bit in
#: between, for a row is more instructions there, behind which as many requests would wait.
ASKS_FIRST = TARGET.has_avx512
#: What parts of the gradient of weight share: so many groups of rows, of at least so many bytes, and again.
RUNS, RUN_BYTES = 64, 1024
#: A weight of up to so many bytes stays in a near cache.
NEAR_BYTES = 1 << 19


@jit
def gather_rows(first, last, indices, weight, out, n, is_far):
    """Rows first to last of out (places, n) = those rows of weight (rows, n) that indices (places,) name; all 1-d.

    is_far: weight is too large for a near cache, and rows lie anywhere in it: the next one is asked for in time.
    """
    w, q = pointer(weight), pointer(out)
    lanes = lanes_of(w)
    line = lanes * LINE_VECTORS
    blocks, whole = n - n % (4 * lanes), n - n % lanes
    mask = lane_mask(w, 0, n - whole)
    for place in range(first, last):
        source, target = indices[place] * n, place * n
        if ASKS_FIRST:
            if is_far:
                ahead = indices[min(place + 1, last - 1)] * n
                for j in range(0, n, lanes):
                    prefetch(w, ahead + j)
        else:
            ahead = indices[min(place + 2, last - 1)] * n
            if is_far:
                for j in range(blocks, n, line):
                    prefetch(w, ahead + j)
        for j in range(0, blocks, 4 * lanes):
            i = source + j
            if is_far and not ASKS_FIRST:
                for k in range(0, 4 * lanes, line):
                    prefetch(w, ahead + j + k)
            a, b, c, d = load(w, i), load(w, i + lanes), load(w, i + 2 * lanes), load(w, i + 3 * lanes)
            i = target + j
            store(q, i, a)
            store(q, i + lanes, b)
            store(q, i + 2 * lanes, c)
            store(q, i + 3 * lanes, d)
        for j in range(blocks, whole, lanes):
            store(q, target + j, load(w, source + j))
        if whole < n:
            store_masked(q, target + whole, load_masked(w, source + whole, mask, 0.0), mask)


@jit
def gather_rows_at(first, last, indices, weight, out, like, int64, places, rows, n, is_far):
    """gather_rows with indices (places,), weight (rows, n) and out at addresses; like, int64: arrays of their types."""
    weight, out = array_at(like, weight, rows * n), array_at(like, out, places * n)
    gather_rows(first, last, array_at(int64, indices, places), weight, out, n, is_far)


@jit
def _norm(p, start, n, kind):
    """The p-norm of the n elements from p[start], p being `kind`, as sums of the element type."""
    if kind == 1 or kind == 2:
        lanes = lanes_of(p)
        sums = zeros_like(p)
        for j in range(0, n, lanes):
            v = load_masked(p, start + j, lane_mask(p, 0, n - j), 0.0)
            sums = fma(v, v, sums) if kind == 2 else sums + absolute(v)
        total = reduce_add(sums)
        return math.sqrt(total * 1.0) if kind == 2 else total * 1.0
    found = 0.0
    for i in range(start, start + n):
        size = abs(peek(p, i)) * 1.0
        if kind == math.inf:
            found = size if size > found or math.isnan(size) else found
        else:
            found += size**kind
    return found if kind == math.inf else found ** (1.0 / kind)


@jit
def shorten_rows(first, last, out, n, largest, kind):
    """Rows first to last of out (places, n), 1-d: those whose norm is above `largest` are shortened to it."""
    q = pointer(out)
    for place in range(first, last):
        norm = _norm(q, place * n, n, kind)
        if norm > largest:
            factor = full(q, largest / (norm + 1e-7))
            lanes = lanes_of(q)
            for j in range(0, n, lanes):
                mask = lane_mask(q, 0, n - j)
                store_masked(q, place * n + j, load_masked(q, place * n + j, mask, 0.0) * factor, mask)


@jit
def fill(q, start, end):
    """q[start:end] = 0."""
    lanes, zero = lanes_of(q), zeros_like(q)
    whole = end - (end - start) % lanes
    for j in range(start, whole, lanes):
        store(q, j, zero)
    if whole < end:
        store_masked(q, whole, zero, lane_mask(q, 0, end - whole))


@jit
def add_rows(first, last, indices, grad, out, n, shift, padding):
    """Sums of the rows of grad (places, n) that indices (places,) assign to rows of out (rows, n), all 1-d: of each
    RUNS groups of 2**shift rows, the groups first to last.

    So a part's rows lie together, away from those that another core writes, and each part has about as much to do.
    Places are taken in order, so that the sums have the same bits in any parts. The row `padding` is 0, and so are
    those that nothing is assigned to; -1 for none.
    """
    g, q = pointer(grad), pointer(out)
    lanes = lanes_of(g)
    line = lanes * LINE_VECTORS
    whole, size, places = n - n % lanes, len(out), len(indices)
    mask = lane_mask(g, 0, n - whole)
    group = n << shift
    for start in range(first * group, size, RUNS * group):
        fill(q, start, min(start + (last - first) * group, size))
    for place in range(places):
        ahead = indices[min(place + AHEAD, places - 1)]
        if first <= (ahead >> shift) % RUNS < last:
            for j in range(0, n, line):
                prefetch(q, ahead * n + j)
        row = indices[place]
        if row != padding and first <= (row >> shift) % RUNS < last:
            source, target = place * n, row * n
            for j in range(0, whole, lanes):
                store(q, target + j, load(q, target + j) + load(g, source + j))
            if whole < n:
                total = load_masked(q, target + whole, mask, 0.0) + load_masked(g, source + whole, mask, 0.0)
                store_masked(q, target + whole, total, mask)


@jit
def add_rows_at(first, last, indices, grad, out, like, int64, places, rows, n, shift, padding):
    """add_rows with indices (places,), grad (places, n) and out (rows, n) at addresses; like, int64: see above."""
    grad, out = array_at(like, grad, places * n), array_at(like, out, rows * n)
    add_rows(first, last, array_at(int64, indices, places), grad, out, n, shift, padding)


@jit
def divide_rows(first, last, counts, out, n):
    """Rows first to last of out (rows, n), 1-d, divided by their counts (rows,) where these are above 1."""
    q = pointer(out)
    for row in range(first, last):
        if counts[row] > 1:
            for i in range(row * n, row * n + n):
                poke(q, i, peek(q, i) / counts[row])


_gather = threaded(gather_rows)
_gather_at = threaded(gather_rows_at)
_shorten = threaded(shorten_rows)
_add_at = threaded(add_rows_at)
_divide = threaded(divide_rows)


def _indices(input: Array) -> Array:
    """The indices as the kernels take them."""
    return contiguous(input if input.dtype == np.int64 else input.astype(np.int64)).reshape(-1)


def forward(p: EmbeddingProblem, weight: Array, input: Array) -> tuple[Array]:
    """The rows."""
    rows, n = p.weight.shape
    indices = _indices(input)
    if not rows or any_outside(indices, rows, 0):  # 0 is a row, so that nothing is let pass
        p.check_values(weight, input)
    out = empty((*p.input.shape, n), weight.dtype)
    flat, places = out.reshape(-1), len(indices)
    threads = threads_for(flat.size, GRAIN)
    _gather(places, threads, indices, contiguous(weight).reshape(-1), flat, n, weight.nbytes > NEAR_BYTES)
    if p.max_norm is not None:
        _shorten(places, threads, flat, n, p.max_norm, p.norm_type)
    return (out,)


def by_address(p: EmbeddingProblem) -> Run | None:
    """The rows of a contiguous weight at contiguous int64 indices."""
    rows, n = p.weight.shape
    places, like, int64 = p.input.size, LIKE[p.weight.dtype], LIKE["int64"]
    size, is_far = places * n, p.weight.nbytes > NEAR_BYTES
    contiguous_ones = p.weight.strides is None and p.input.strides is None
    if not contiguous_ones or p.input.dtype != "int64" or p.max_norm is not None or not size * rows:
        return None

    def run(weight: int, input: int, out: int) -> bool:
        if any_outside_at(input, places, int64, rows, 0):
            return False
        _gather_at(places, threads_for(size, GRAIN), input, weight, out, like, int64, places, rows, n, is_far)
        return True

    return run


def _prepare_backward(p: EmbeddingProblem) -> Run:
    """grad_output, input -> gradient of weight."""
    rows, n = p.weight.shape
    places, dtype, like, int64 = p.input.size, np.dtype(p.weight.dtype), LIKE[p.weight.dtype], LIKE["int64"]
    work = (places + rows) * n
    padding = -1 if p.padding_idx is None else p.padding_idx
    shift = max(0, (RUN_BYTES // max(1, n * dtype.itemsize)).bit_length() - 1)
    is_wide = p.input.dtype == "int64"

    def run(grad_output: int, input: int, grad_weight: int, _: int) -> None:
        if not is_wide:
            # Its name keeps it alive to the end.
            wide = array_from(input, (places,), np.dtype(p.input.dtype)).astype(np.int64)
            input = address(wide)
        threads = threads_for(work, GRAIN_BACKWARD)
        _add_at(RUNS, threads, input, grad_output, grad_weight, like, int64, places, rows, n, shift, padding)
        if p.scale_grad_by_freq:
            counts = np.bincount(array_from(input, (places,), int64.dtype), minlength=rows)
            _divide(rows, threads, counts, array_from(grad_weight, (rows * n,), dtype), n)

    return run


def _describe(p: EmbeddingProblem) -> str:
    return f"{p.input.size} rows of {p.features} copied"


Implementation(
    EMBEDDING, "numba", forward, backward_through(EMBEDDING, _prepare_backward), describe=_describe,
    checks_values=True, by_address=by_address, backward_by_address=if_plain(_prepare_backward),
)  # fmt: skip
