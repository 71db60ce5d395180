"""Relative-position terms of the scores: what a user hands to ``attention(relative=...)``, and their arithmetic.

Every term depends on the distance ``d = j - i`` of key j from query i alone (with causal="bottom_right" the queries
stand at the end of the keys, so i counts from there):

    RelativeShaw    scale * (q_i . table[clip(d, -k, k) + k])      Shaw, Uszkoreit and Vaswani, Self-Attention with
                                                                   Relative Position Representations, 2018
    RelativeT5      table[bucket(d), head]                         Raffel et al., Exploring the Limits of Transfer
                                                                   Learning with a Text-to-Text Transformer, 2020
    RelativeALiBi   -slopes[head] * |d|                            Press, Smith and Lewis, Train Short, Test Long, 2022
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels import checks

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class RelativeShaw:
    """A vector for every distance up to `clip`, shared by all heads, that is added to the key.

    Attributes:
        table: (2 * clip + 1, E), the queries' kind of array and dtype; row c belongs to the distance c - clip, the
            first and last row to all distances beyond. It gets a gradient.
        clip: the largest distance that is told apart; by default what the table has rows for.
    """

    table: Any
    clip: int | None = None


@dataclass(frozen=True, eq=False)
class RelativeT5:
    """A number for every bucket of distances and every head. (T5 itself uses scale=1 beside it.)

    Attributes:
        table: (buckets, heads), the queries' kind of array and dtype. It gets a gradient.
        bidirectional: half of the buckets are for keys behind the query, half for keys ahead; else all keys ahead of
            the query share bucket 0.
        max_distance: from here on all distances share a bucket.
    """

    table: Any
    bidirectional: bool = True
    max_distance: int = 128


@dataclass(frozen=True, eq=False)
class RelativeALiBi:
    """A penalty in proportion to the distance, steeper or flatter by head.

    Attributes:
        slopes: (heads,), the queries' kind of array and dtype, such as `alibi_slopes`. They get a gradient.
    """

    slopes: Any


def alibi_slopes(heads: int) -> Array:
    """The slopes of the paper, float64: 2 ** (-8 h / heads) for h = 1 .. heads, when heads is a power of two.

    Else those of the power of two below, and then every second one of the next power of two.

    Raises:
        TypeError, ValueError: heads is no int from 1 to 2**31 - 1.
    """
    heads = checks.integer("alibi_slopes", "heads", heads, 1)
    if heads > checks.LARGEST_EXTENT:
        checks.fail("alibi_slopes", "heads", f"must be at most {checks.LARGEST_EXTENT}", heads)
    below = 1 << (heads.bit_length() - 1)
    slopes = 2.0 ** (-8.0 / below * np.arange(1, below + 1))
    between = 2.0 ** (-4.0 / below * np.arange(1, 2 * below, 2))
    return np.concatenate([slopes, between])[:heads]


def exact_buckets(buckets: int, bidirectional: bool) -> int:
    """How many distances have a bucket of their own on either side; the rest share by logarithm."""
    return (buckets // 2 if bidirectional else buckets) // 2


def t5_buckets(distances: Array, buckets: int, bidirectional: bool, max_distance: int) -> Array:
    """The bucket of each distance (key minus query), int64.

    The logarithm is taken in float32, as where the trained tables come from: near a bucket's edge the rounding decides.
    """
    side = buckets // 2 if bidirectional else buckets
    exact = exact_buckets(buckets, bidirectional)
    size = np.abs(distances) if bidirectional else np.maximum(-distances, 0)
    ratio = np.maximum(size, 1).astype(np.float32) / np.float32(exact)
    logarithm = np.log(ratio) / np.float32(math.log(max_distance / exact)) * np.float32(side - exact)
    shared = np.minimum(exact + np.maximum(logarithm, 0).astype(np.int64), side - 1)
    found = np.where(size < exact, size, shared)
    return found + np.where(distances > 0, side, 0) if bidirectional else found


def by_distance(kind: str, table: Array, distances: Array, bidirectional: bool, limit: int) -> Array:
    """What the T5 or ALiBi term adds at each of some distances: (heads, count) in the table's dtype."""
    if kind == "alibi":
        return -table[:, None] * np.abs(distances).astype(table.dtype)
    return np.ascontiguousarray(table[t5_buckets(distances, table.shape[0], bidirectional, limit)].T)


def table_gradient(
    kind: str, sums: Array, distances: Array, shape: tuple[int, ...], bidirectional: bool, limit: int
) -> Array:
    """The gradient of the table from that at each distance, sums (heads, count) float64; always in one order."""
    if kind == "alibi":
        return -(sums * np.abs(distances)).sum(1)
    places = t5_buckets(distances, shape[0], bidirectional, limit)
    return np.stack([np.bincount(places, row, shape[0]) for row in sums], 1)
