"""What the CPU's kernels read beside queries, keys and values, and which of them runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.attention.layout import NO_MASK, NOTHING, span_of
from kernels.attention.problem import AttentionProblem
from kernels.attention.relative import by_distance
from kernels.attention.tiles import DECODE_QUERIES
from kernels.runtime.numba_cpu import contiguous

Array = np.ndarray[Any, Any]

#: Multiply-adds that are worth a thread of their own (some ten microseconds).
GRAIN = 1_000_000
#: The same where memory is what takes the time.
DECODE_GRAIN = 200_000


def key_counts(p: AttentionProblem, lengths: Array | None) -> Array:
    """How many keys each row of the batch has, int64."""
    if lengths is not None:
        return contiguous(lengths.astype(np.int64, copy=False))
    found: Array | None = p.__dict__.get("cpu_counts")
    if found is None:
        found = p.__dict__["cpu_counts"] = np.full(p.query.shape[0], p.key.shape[2], np.int64)
    return found


def far(p: AttentionProblem) -> Array:
    """The distance (key minus query) of each number by distance."""
    span, zero = span_of(p)
    return zero - np.arange(span)


def given_of(
    p: AttentionProblem,
    mask: Array | None,
    bias: Array | None,
    lengths: Array | None,
    relative: Array | None,
    seed: Array | None,
) -> tuple[Array, ...]:
    """The arrays behind the terms, as `layout.Given` names them."""
    nothing = NOTHING[p.query.dtype]
    numbers = table = nothing
    if relative is not None and p.relative_kind == "shaw":
        table = contiguous(relative).reshape(-1)
    elif relative is not None:
        found = by_distance(str(p.relative_kind), relative, far(p), p.bidirectional, p.relative_limit)
        numbers = contiguous(found).reshape(-1)
    return (
        NO_MASK if mask is None else mask.reshape(-1).view(np.uint8),
        nothing if bias is None else bias.reshape(-1),
        key_counts(p, lengths),
        numbers,
        table,
        NOTHING["int64"] if seed is None else contiguous(seed).reshape(1),
    )


def decodes(p: AttentionProblem) -> bool:
    """Whether so few queries come that lanes had better be keys (a kernel without dropout and Shaw's table)."""
    return p.query.shape[2] <= DECODE_QUERIES and p.dropout_p == 0 and p.relative_kind != "shaw"
