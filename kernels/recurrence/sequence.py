"""How a batch of sequences is walked: rows by falling length, the active ones at each step, and parts for threads.

With the rows sorted so, those that have a step t are the first `counts[t]`, and what a step does costs what these rows
cost. Results that are kept per step and row can lie without gaps: row r's step t at `starts[t] + r`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.recurrence.problem import Layer

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Walk:
    """The order of the work of one call.

    Attributes:
        steps: the longest row's length.
        order: int64 [B], the rows by falling length.
        ends: int64 [B], their lengths in this order.
        counts: int64 [steps], how many rows have the step; at least one.
        starts: int64 [steps], sums of the counts before.
        total: sum of the lengths.
        bounds: int64 [row parts + 1], rows (in this order) where the parts begin and end.
    """

    steps: int
    order: Array
    ends: Array
    counts: Array
    starts: Array
    total: int
    bounds: Array

    @property
    def row_parts(self) -> int:
        """Into how many parts the rows fall."""
        return len(self.bounds) - 1

    @property
    def most_rows(self) -> int:
        """Rows of the largest part."""
        return int((self.bounds[1:] - self.bounds[:-1]).max())


def row_parts(p: Layer, threads: int) -> int:
    """Into how many parts the rows fall, so that each direction and part can have a thread."""
    return min(-(-threads // p.directions), p.batch)


def walk(p: Layer, lengths: Array | None, parts: int) -> Walk:
    """The walk for a problem whose rows fall into so many parts."""
    batch, steps = p.batch, p.steps
    if lengths is None:
        starts = np.arange(steps, dtype=np.int64) * batch
        counts = np.full(steps, batch, np.int64)
        bounds = np.arange(parts + 1, dtype=np.int64) * batch // parts
        order, ends = np.arange(batch, dtype=np.int64), np.full(batch, steps, np.int64)
        return Walk(steps, order, ends, counts, starts, steps * batch, bounds)
    order = np.argsort(-lengths.astype(np.int64), kind="stable").astype(np.int64)
    ends = lengths[order].astype(np.int64)
    longest = int(ends[0])
    # How many rows have ended before each step.
    ended = np.bincount(ends, minlength=longest + 1).cumsum()[:longest]
    counts = (batch - ended).astype(np.int64)
    starts = np.zeros(longest, np.int64)
    np.cumsum(counts[:-1], out=starts[1:])
    total = int(ends.sum())
    # Parts of about the same sum of lengths; empty ones may arise at the end.
    sums = np.concatenate([[0], ends.cumsum()])
    bounds = np.searchsorted(sums, total * np.arange(parts + 1) / parts).astype(np.int64)
    bounds[-1] = batch
    return Walk(longest, order, ends, counts, starts, total, bounds)
