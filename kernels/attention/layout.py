"""Sizes, distances and terms of a call, as the CPU kernels take them: one array of integers, made once a problem."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.np.unsafe.ndarray import to_fixed_tuple

from kernels.attention.problem import AttentionProblem
from kernels.attention.products import FEW_ROWS
from kernels.attention.tiles import BACKWARD_BLOCK, BACKWARD_PANELS, BLOCK, block_of, decode_block, padded
from kernels.random import drop_threshold
from kernels.runtime.numba_cpu import contiguous, jit
from kernels.simd import TILE_ROWS, TILE_VECTORS, VECTOR_BYTES

Array = np.ndarray[Any, Any]

#: No limit on how far a query sees: more than any position.
ANYWHERE = 1 << 40
#: Kinds of relative term.
NONE, DISTANCE, SHAW = 0, 1, 2


class Sizes(NamedTuple):
    """Sizes and distances of one call, in elements, and what a part's scratch holds."""

    batch: int
    heads: int
    group: int
    queries: int
    keys: int
    width: int
    value_width: int
    query_batch: int
    query_head: int
    query_row: int
    key_batch: int
    key_head: int
    key_row: int
    value_batch: int
    value_head: int
    value_row: int
    block: int  # keys of a tile
    padded_block: int  # with the rows that a register tile may add
    padded_width: int
    padded_value_width: int
    padded_table: int  # the rows of Shaw's table
    skewed: int  # rows of the skewed products with it
    work: int  # elements of a part's scratch
    offsets: int  # int64 of a part's tables


class Terms(NamedTuple):
    """What is done to the scores; distances in elements, 0 where an array broadcasts."""

    scale: float
    sign: float  # of the scale: the queries of a panel are multiplied with it
    inside: float  # its size, where scores take part in sums before the softmax, else 1
    unit: float  # its size otherwise: the softmax multiplies with it
    softcap: float  # 0: none
    kept: float  # what dropout multiplies with
    adjusts: int  # whether every tile needs `adjust`
    threshold: int  # of dropout; 0: none
    left: int  # how far a query sees
    right: int
    from_end: int
    hides: int  # whether a query may be kept from a key that another one sees
    has_mask: int
    mask_batch: int
    mask_head: int
    mask_query: int
    mask_key: int
    has_bias: int
    bias_batch: int
    bias_head: int
    bias_query: int
    bias_key: int
    relative: int  # NONE, DISTANCE, SHAW
    clip: int
    span: int  # numbers by distance of one head
    zero: int  # where distance 0 is among them


class Given(NamedTuple):
    """The arrays behind the terms; one element long where there is none.

    mask: uint8. bias: elements. counts: int64 [batch], keys of each row. by_distance: elements [heads, span]. table:
    elements [2 * clip + 1, E]. seed: int64 [1].
    """

    mask: Any
    bias: Any
    counts: Any
    by_distance: Any
    table: Any
    seed: Any


_SIZES = len(Sizes._fields)
_FACTORS = 6
_TERMS = len(Terms._fields) - _FACTORS


@jit
def read_sizes(numbers):
    """Sizes, from the front of a call's integers."""
    return Sizes(*to_fixed_tuple(numbers[:_SIZES], _SIZES))


@jit
def read_terms(numbers, factors):
    """Terms, from the integers behind the sizes, and the numbers before them."""
    rest = to_fixed_tuple(numbers[_SIZES : _SIZES + _TERMS], _TERMS)
    return Terms(factors[0], factors[1], factors[2], factors[3], factors[4], factors[5], *rest)


# ----- arrays ------------------------------------------------------------------------------------------------------

#: What stands in for an array that is not there.
NOTHING = {name: np.zeros(1, name) for name in ("int64", "float32", "float64")}
NO_MASK = np.ones(1, np.uint8)


def panel_width(dtype: Any) -> int:
    """Queries of a panel."""
    return TILE_VECTORS * VECTOR_BYTES // np.dtype(dtype).itemsize


def in_rows(array: Array) -> Array:
    """`array` itself if its last dimension is contiguous (others may have any strides), else a copy."""
    strides, item = array.strides, array.itemsize
    apart = strides[0] % item or strides[1] % item or strides[2] % item
    return array if strides[3] == item and not apart else contiguous(array)


def origin(array: Array) -> Array:
    """The row that a kernel takes an array of `in_rows` by: its memory is reached by the distances of `steps`."""
    return contiguous(array[0, 0, 0])


def steps(array: Array) -> tuple[int, int, int]:
    """Distances of batches, heads and rows, in elements."""
    item = array.itemsize
    return array.strides[0] // item, array.strides[1] // item, array.strides[2] // item


def unexpanded(array: Array) -> Array:
    """A mask or bias, contiguous, without the dimensions along which it only repeats."""
    if 0 in array.strides:
        whole, first = slice(None), slice(0, 1)
        array = array[tuple(first if step == 0 else whole for step in array.strides)]
    return contiguous(array)


def _spread(array: Array | None) -> tuple[int, int, int, int]:
    """Distances of a contiguous mask or bias, 0 where it broadcasts."""
    if array is None:
        return 0, 0, 0, 0
    found = [step // array.itemsize if size > 1 else 0 for size, step in zip(array.shape, array.strides)]
    return found[0], found[1], found[2], found[3]


# ----- plans -------------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """A plan of one pass: what the kernels read, and how much scratch a part needs."""

    numbers: Array
    factors: Array
    work: int
    offsets: int


def span_of(p: AttentionProblem) -> tuple[int, int]:
    """(numbers by distance of one head, where distance 0 is among them): from keys far ahead to keys far behind."""
    farthest = max(p.query.shape[2], p.key.shape[2])
    return 2 * farthest + 1 + panel_width(p.query.dtype), farthest


def _adjusts(p: AttentionProblem) -> bool:
    """Whether scores take part in sums before the softmax. (0 times a hidden score, -inf, would be no number.)"""
    return p.bias is not None or p.relative is not None or p.softcap is not None or p.score_scale == 0


def _factors(p: AttentionProblem) -> Array:
    size = abs(p.score_scale)
    inside, unit = (size, 1.0) if _adjusts(p) else (1.0, size)
    return np.array([p.score_scale, -1.0 if p.score_scale < 0 else 1.0, inside, unit, p.softcap or 0.0, p.kept])


def _terms(p: AttentionProblem, mask: Array | None, bias: Array | None) -> tuple[int, ...]:
    left, right = (ANYWHERE if side < 0 else side for side in p.reach)
    kind = NONE if p.relative is None else SHAW if p.relative_kind == "shaw" else DISTANCE
    clip = p.relative_limit if kind == SHAW else 0
    span, zero = span_of(p) if kind == DISTANCE else (0, 0)
    return (
        int(_adjusts(p)), drop_threshold(p.dropout_p), left, right, int(p.from_end), int(p.hides),
        int(mask is not None), *_spread(mask), int(bias is not None), *_spread(bias), kind, clip, span, zero,
    )  # fmt: skip


def _room(p: AttentionProblem, width: int, value_width: int, kind: str) -> tuple[int, ...]:
    """What a pass's tiles and scratch take: the sizes from `block` on."""
    panel = panel_width(p.query.dtype)
    keys = p.key.shape[2]
    if kind.startswith("decode"):
        lanes = panel // TILE_VECTORS
        columns, value_columns = (-(-n // (4 * lanes)) * 4 * lanes for n in (width, value_width))
        rows = p.group * p.query.shape[2]
        block = decode_block(rows)
        if kind == "decode":
            work = rows * (columns + value_columns + lanes) + 2 * (block + lanes)
        else:
            # Where the keys may be one block, their softmax is taken anew.
            block = BACKWARD_BLOCK if keys <= BACKWARD_BLOCK else block
            work = rows * (columns + value_columns + 2) + (2 * rows + 1) * (block + lanes)
        return block, block + lanes, columns, value_columns, 0, 0, -(-work // panel) * panel, 0
    block = block_of(keys, BACKWARD_BLOCK if kind == "backward" else BLOCK, TILE_ROWS)
    rows, columns, value_columns = (padded(n, TILE_ROWS, FEW_ROWS) for n in (block, width, value_width))
    clip = p.relative_limit if p.relative_kind == "shaw" else 0
    table = padded(2 * clip + 1, TILE_ROWS, FEW_ROWS)
    skewed = 2 * clip + panel
    if kind == "backward":
        across, value_across = -(-width // panel), -(-value_width // panel)
        sums = (across if width % panel else 0) + (value_across if value_width % panel else 0)
        each = 2 * columns + value_columns + (across + value_across) * panel + 3 * rows + 2 + 2 * skewed
        work = (BACKWARD_PANELS * each + 2 * rows + FEW_ROWS + table + keys * sums) * panel
        offsets = 5 * rows + columns + value_columns + 2 * table + BACKWARD_PANELS * panel
    else:
        work = (columns + value_columns + 4 * rows + 3 + table + skewed) * panel
        offsets = 3 * rows + columns + value_columns + table
    return block, rows, columns, value_columns, table, skewed, work, -(-offsets // 8) * 8


def layout_of(
    p: AttentionProblem,
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    bias: Array | None,
    kind: str,
) -> Layout:
    """The layout of a pass over arrays of `in_rows` and `unexpanded`.

    kind: "forward", "backward", "decode" or "decode backward". It is kept with the problem.
    """
    plans: dict[Any, Layout] = p.__dict__.setdefault("cpu_layouts", {})
    shapes = (None if mask is None else mask.shape, None if bias is None else bias.shape)
    known = (kind, query.strides, key.strides, value.strides, shapes)
    found = plans.get(known)
    if found is None:
        width, value_width = query.shape[3], value.shape[3]
        batch, heads, queries, keys = p.score_shape
        room = _room(p, width, value_width, kind)
        steps_of_all = (*steps(query), *steps(key), *steps(value))
        sizes = (batch, heads, p.group, queries, keys, width, value_width, *steps_of_all, *room)
        numbers = np.array(sizes + _terms(p, mask, bias), np.int64)
        found = plans[known] = Layout(numbers, _factors(p), room[-2], room[-1])
    return found
