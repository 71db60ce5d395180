"""After backward through time: gradients of weights, biases and x as whole matrix products and sums of columns."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.recurrence.panels import copy_row
from kernels.recurrence.sequence import Walk
from kernels.runtime.numba_cpu import empty, jit, scratch, threaded, threads_for, zeros
from kernels.simd import lanes_of, load_first, pointer, store_first, zeros_like
from kernels.simd.matmul import plan, run_product

Array = np.ndarray[Any, Any]

#: Elements of a pass over memory that are worth a thread.
_GRAIN = 1 << 15
#: Rows whose values are added up before they join the sum of a column.
_SUM_ROWS = 128


@jit
def _move_steps(first, last, scatters, features, x_time, x_row, order, counts, starts, x, packed):
    """Steps [first, last) of packed [sum of lengths, features] from x, or to it where `scatters` is not 0.

    x: elements, row r's step t at t * x_time + r * x_row. order, counts, starts: see sequence.Walk.
    """
    for t in range(first, last):
        for r in range(counts[t]):
            there = pointer(x, t * x_time + order[r] * x_row)
            here = pointer(packed, (starts[t] + r) * features)
            if scatters:
                copy_row(here, there, features)
            else:
                copy_row(there, here, features)


_move = threaded(_move_steps)


@jit
def _column_vectors(first, last, rows, columns, a, sums):
    """sums[j] of a [rows, columns] for columns [first, last): groups of rows in order, then the groups in order."""
    source, out = pointer(a), pointer(sums)
    for j in range(first, last, lanes_of(source)):
        left = last - j
        total = zeros_like(source)
        for group in range(0, rows, _SUM_ROWS):
            even = odd = zeros_like(source)
            for r in range(group, min(group + _SUM_ROWS, rows) - 1, 2):
                even = even + load_first(source, r * columns + j, left)
                odd = odd + load_first(source, (r + 1) * columns + j, left)
            if (min(group + _SUM_ROWS, rows) - group) % 2:
                even = even + load_first(source, (min(group + _SUM_ROWS, rows) - 1) * columns + j, left)
            total = total + (even + odd)
        store_first(out, j, total, left)


_sum_columns = threaded(_column_vectors, align=16)


def column_sums(a: Array, rows: int, columns: int) -> Array:
    """[columns], the sums of the columns of a [rows, columns]."""
    sums = empty(columns, a.dtype)
    _sum_columns(columns, threads_for(rows * columns, _GRAIN), rows, columns, a, sums)
    return sums


class Steps:
    """Values of x that lie by step and row, and the same without gaps in the order of a walk."""

    def __init__(self, way: Walk, features: int, x_time: int, x_row: int, has_lengths: bool) -> None:
        self.way, self.features, self.x_time, self.x_row = way, features, x_time, x_row
        self.has_lengths = has_lengths
        #: x itself lies so.
        self.is_packed = not has_lengths and x_row == features and x_time == features * len(way.order)
        self.threads = threads_for(way.total * features, _GRAIN)

    def _move(self, scatters: int, x: Array, packed: Array) -> None:
        way = self.way
        _move(
            way.steps, self.threads, scatters, self.features, self.x_time, self.x_row,
            way.order, way.counts, way.starts, x, packed,
        )  # fmt: skip

    def gather(self, x: Array) -> Array:
        """Elements [sum of lengths, features] of x, its elements as they lie."""
        if self.is_packed:
            return x
        packed = scratch(self.way.total * self.features, x.dtype)
        self._move(0, x, packed)
        return packed

    def fresh(self, shape: tuple[int, ...], dtype: Any) -> tuple[Array, Array]:
        """A new array for a gradient of x, and the memory in which to make it without gaps."""
        if self.is_packed:
            made = empty(shape, dtype)
            return made, made.reshape(-1)
        made = zeros(shape, dtype) if self.has_lengths else empty(shape, dtype)
        return made, scratch(self.way.total * self.features, dtype)

    def scatter(self, packed: Array, made: Array) -> None:
        """Bring what was made without gaps to its places."""
        if not self.is_packed:
            self._move(1, made.reshape(-1), packed)


#: Blocks of gates: (first column of the sums' gradients, how many, first row of the weight).
Blocks = tuple[tuple[int, int, int], ...]


def weight_gradient(
    sums: Array, width: int, rows: int, blocks: Blocks, other: Array, features: int, out: Array, threads: int
) -> None:
    """out[row of a block, :] = sum over rows of sums[:, column of the block] * other[:, :].

    sums: elements [rows, width]. other: elements [rows, features]. out: elements [.., features].
    """
    for column, count, row in blocks:
        product = plan((count, rows, features), (1, width), (features, 1), features, out.itemsize, threads)
        run_product(product, threads, sums[column:], other, out[row * features :])


def input_gradient(
    sums: Array, width: int, rows: int, blocks: Blocks, w: Array, features: int, out: Array, threads: int, adds: bool
) -> None:
    """out[rows, features] (+)= sums[rows, columns of the blocks] times the blocks' rows of w [.., features]."""
    for column, count, row in blocks:
        product = plan((rows, count, features), (width, 1), (features, 1), features, out.itemsize, threads, adds)
        run_product(product, threads, sums[column:], w[row * features :], out)
        adds = True
