"""How a block of a CUDA C++ kernel that works on rows by themselves shares them out: softmax, cross-entropy, norms.

An array is seen as (outer, n, inner), and a row is the n elements of one place in outer and inner. With inner = 1 the
elements of a row are neighbours in memory, and a group of neighbouring threads has a row; else rows are neighbours, and
neighbouring threads have neighbouring rows. What threads do with them is in cuda/rows.cuh.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from kernels.runtime.row_tiles import power_of_two
from kernels.runtime.targets import Target


@dataclass(frozen=True)
class RowBlock:
    """A block of threads (side, depth) that works on rows.

    Attributes:
        side: threads in x. With inner = 1 they are groups behind each other, else they lie along inner.
        depth: threads in y: with inner > 1 those that share a row, else 1.
        group: threads that share a row, a power of two.
        vector: elements that a thread reads at once.
        steps: vectors (with inner > 1: elements of each of its rows) that a thread keeps; 0: a row is too long for its
            threads, and is read again each time that it is needed.
    """

    side: int
    depth: int
    group: int
    vector: int
    steps: int

    @property
    def threads(self) -> int:
        """Threads of the block."""
        return self.side * self.depth

    @property
    def shape(self) -> tuple[int, int]:
        """The block of a launch."""
        return self.side, self.depth

    @property
    def constants(self) -> dict[str, int | str]:
        """What the kernels are compiled with."""
        return {"VECTOR": self.vector, "STEPS": self.steps}

    def grid(self, outer: int, inner: int) -> tuple[int]:
        """The grid of a launch on (outer, n, inner)."""
        if inner == 1:
            rows = self.side // self.group
            return (-(-outer // rows),)
        return (outer * -(-inner // (self.side * self.vector)),)

    def scratch_bytes(self, itemsize: int, inner: int) -> int:
        """Dynamic shared memory for `over_column` of numbers of `itemsize` bytes: none for rows."""
        return self.threads * self.vector * itemsize if inner > 1 and self.depth > 1 else 0


#: Threads of a block at most; ROW_THREADS of cuda/rows.cuh.
MOST_THREADS = 512
#: Threads of a block of short rows.
USUAL_THREADS = 128
#: Elements of a row that a thread keeps, ordinarily; and at most, by the type that they are computed in. Longer rows
#: are read again, from the caches for the most part.
USUAL_KEPT = 8
MOST_KEPT = {"float32": 16, "float64": 8}

_override: ContextVar[RowBlock | None] = ContextVar("row_block", default=None)


@contextmanager
def use_row_block(block: RowBlock) -> Iterator[None]:
    """Take this block for every row kernel inside the `with`. Its vector must suit the arrays."""
    token = _override.set(block)
    try:
        yield
    finally:
        _override.reset(token)


def row_block(outer: int, n: int, inner: int, vector: int, target: Target, most_kept: int) -> RowBlock:
    """The block for an array (outer, n, inner).

    Args:
        outer, n, inner: sizes, at least 1.
        vector: elements that a thread can read at once, along n where inner is 1, else along inner.
        target: the GPU.
        most_kept: elements of a row, at most, that a thread keeps, see `MOST_KEPT`; 0 for a kernel that keeps none.

    Raises:
        ValueError: a block was asked for by `use_row_block` that cannot hold the rows.
    """
    asked = _override.get()
    if asked is not None:
        if asked.steps and asked.steps * asked.group * (asked.vector if inner == 1 else 1) < n:
            raise ValueError(f"use_row_block: block must hold a whole row of {n} elements, got {asked}")
        return asked
    return _of_rows(outer, n, vector, target, most_kept) if inner == 1 else _of_columns(n, inner, vector, most_kept)


def _of_rows(rows: int, n: int, vector: int, target: Target, most_kept: int) -> RowBlock:
    vectors = -(-n // vector)
    group = min(power_of_two(-(-vectors // max(USUAL_KEPT // vector, 1))), MOST_THREADS)
    # Few rows: all threads there are, so that more of the GPU has work.
    while group < min(vectors, MOST_THREADS) and rows * group < 2 * target.multiprocessors * USUAL_THREADS:
        group *= 2
    steps = power_of_two(-(-vectors // group))
    if steps * vector > most_kept:
        steps = 0
    several = max(USUAL_THREADS // group, 1)
    while several * group > 32 and several > 1 and rows // several < 2 * target.multiprocessors:
        several //= 2
    # Whole warps, because all lanes take part in its shuffles.
    several = max(several, 32 // group, 1)
    return RowBlock(several * group, 1, group, vector, steps)


def _of_columns(n: int, inner: int, vector: int, most_kept: int) -> RowBlock:
    side = min(power_of_two(-(-inner // vector)), 32)
    depth = min(power_of_two(-(-n // max(USUAL_KEPT // vector, 1))), MOST_THREADS // side)
    steps = power_of_two(-(-n // depth))
    if steps * vector > most_kept:
        steps = 0
    return RowBlock(side, depth, depth, vector, steps)


# ----- sums over rows ----------------------------------------------------------------------------------------------

#: Threads that a multiprocessor is given where a kernel adds up rows; more parts would only be more to add up again.
_THREADS_OF_PARTS = 1024


@dataclass(frozen=True)
class RowParts:
    """Rows cut into parts, each of which a block adds up; the parts' sums are added in one order.

    Attributes:
        parts: how many there are.
        part: rows of each, of the last one fewer.
    """

    parts: int
    part: int


def row_parts(rows: int, blocks: int, threads: int, at_once: int, target: Target) -> RowParts:
    """Parts for a GPU, as long as rows last.

    Args:
        rows: how many, at least 1.
        blocks: of one part.
        threads: of a block.
        at_once: rows that a block has in its hands at a time.
        target: the GPU.
    """
    wanted = max(target.multiprocessors * max(_THREADS_OF_PARTS // threads, 1) // blocks, 1)
    turns = -(-rows // at_once)
    part = at_once * -(-turns // wanted)
    return RowParts(-(-rows // part), part)


def column_block(n: int, vector: int, rows: int) -> tuple[int, int]:
    """(side, depth) of a block that adds up rows of n columns: `vector` columns a thread, `depth` rows at a time."""
    side = min(power_of_two(-(-n // vector)), 32)
    return side, min(power_of_two(rows), 256 // side, 32)
