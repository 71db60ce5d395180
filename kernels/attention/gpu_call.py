"""One call of attention in Triton: what its kernels are told, and how often they are launched.

Shaw's term is a product of the queries with its table, taken by torch once a call: (B, H, L, rows), which grows with
the length alone.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch

from kernels.attention.gpu_tiles import AttentionTile, parts_of, selecting_tile, wide_block, widest, width_block
from kernels.attention.problem import AttentionProblem
from kernels.attention.relative import t5_buckets
from kernels.random import drop_threshold
from kernels.runtime.targets import Target
from kernels.runtime.triton_gpu import computed, computed_dtype, empty, product_precision, target_of

Tensor = torch.Tensor
#: Rows that the kernels which go over rows alone take at a time.
ROWS = 16
_TERMS = {None: 0, "shaw": 1, "alibi": 2, "t5": 3}


def strides_of(array: Tensor | None) -> tuple[int, ...]:
    """Strides of a 4-d array, 0 where it has one place: it broadcasts there."""
    if array is None:
        return (0, 0, 0, 0)
    return tuple(0 if size == 1 else stride for size, stride in zip(array.shape, array.stride()))


def precision_of(query: Tensor) -> str:
    """How products of float32 are taken: as torch's own are set."""
    return product_precision(query.dtype, target_of(query), tf32=torch.get_float32_matmul_precision() != "highest")


def unit_of(dtype: torch.dtype) -> float:
    """UNIT of the kernels: half precision takes exp2, the others exp, whose argument is the smaller number."""
    return math.log2(math.e) if dtype.itemsize == 2 else 1.0


def term_of(p: AttentionProblem, query: Tensor, table: Tensor | None) -> Tensor | None:
    """The relative term as the kernels read it, 4-d."""
    if table is None:
        return None
    if p.relative_kind == "alibi":
        return table.view(1, -1, 1, 1)
    wide = computed_dtype(query.dtype)
    if p.relative_kind == "t5":
        return table.to(wide).t()[:, buckets_of(p, query.device).long()].contiguous()[None, :, None]
    return (query.to(wide) @ table.to(wide).mT) * p.score_scale


def buckets_of(p: AttentionProblem, device: torch.device) -> Tensor:
    """The bucket of T5's table of each distance that there may be."""
    assert p.relative is not None
    longest = max(p.score_shape[2:])
    return _buckets(longest, p.relative.shape[0], p.bidirectional, p.relative_limit, device)


@functools.lru_cache(maxsize=64)
def _buckets(longest: int, buckets: int, bidirectional: bool, most: int, device: torch.device) -> Tensor:
    """Made by the function of every backend, and kept: a copy from the host cannot be captured in a CUDA graph."""
    found = t5_buckets(np.arange(1 - longest, longest), buckets, bidirectional, most)
    return torch.from_numpy(found.astype(np.int32)).to(device)


def count_extras(p: AttentionProblem) -> int:
    """How many things a score has beside its product; by registers, ALiBi's term counts for two, T5's for three."""
    named = (p.mask, p.bias, p.relative, p.softcap)
    more = {"alibi": 1, "t5": 2}.get(p.relative_kind or "", 0)
    return (p.dropout_p > 0) + sum(given is not None for given in named) + more


def constants_of(p: AttentionProblem, query: Tensor, tile: AttentionTile) -> dict[str, Any]:
    """What the kernels know when they are compiled."""
    left, right = reach_of(p)
    wide = in_blocks(p)
    block = wide_block(p.query.itemsize, count_extras(p), has_vectors(p))
    width_e, width_v = (block if wide else width_block(s.shape[3]) for s in (p.query, p.value))
    return {
        "SCALE": p.score_scale,
        "CAP": p.softcap or 0.0,
        "UNIT": unit_of(query.dtype),
        "LEFT": left,
        "RIGHT": right,
        "FROM_END": p.from_end,
        "HAS_MASK": p.mask is not None,
        "HAS_BIAS": p.bias is not None,
        "HAS_LENGTHS": p.lengths is not None,
        "TERM": _TERMS[p.relative_kind],
        "LIMIT": p.relative_limit,
        "DROPOUT": p.dropout_p > 0,
        "THRESHOLD": drop_threshold(p.dropout_p),
        "KEPT": p.kept,
        "FOURS": p.key.shape[2] % 4 == 0,
        "BLOCK_M": tile.queries,
        "BLOCK_N": tile.keys,
        "BLOCK_E": width_e,
        "BLOCK_V": width_v,
        "WIDE": wide,
        "WHOLE_E": width_e == p.query.shape[3],
        "WHOLE_V": width_v == p.value.shape[3],
        "PRECISION": precision_of(query),
        "COMPUTED": computed(query.dtype),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        **({} if tile.registers is None else {"maxnreg": tile.registers}),
    }


def reach_of(p: AttentionProblem) -> tuple[int, int]:
    """How many keys before and after its position a query sees; -1: all of them, as one query at the last key does."""
    left, right = p.reach
    return left, -1 if p.query.shape[2] == 1 and p.from_end else right


def may_hide(p: AttentionProblem) -> bool:
    """Whether a tile may hold keys that some query of it does not see; keys behind `lengths` are not read at all."""
    return p.mask is not None or p.bias is not None or reach_of(p) != (-1, -1)


def apart(p: AttentionProblem, selects: bool, target: Target, *, backward: bool = False) -> bool:
    """Whether tiles that are seen whole have a loop of their own.

    Not where every score is looked at anyway, nor in float32, whose products are the work, in many registers; backward
    where that was measured: elsewhere its registers, of which three loops want more, spill.
    """
    plain = not selects and p.mask is None and p.query.itemsize == 2 and not in_blocks(p)
    return plain and (target.name == "sm_90" if backward else not target.amd)


def cuts(
    p: AttentionProblem, tile: AttentionTile, target: Target, *, told: bool
) -> tuple[tuple[AttentionTile, bool], ...]:
    """(tile, SELECTS) of each launch of a kernel. told: see `selecting_tile`."""
    if not may_hide(p):
        return ((tile, False),)
    return (tile, False), (selecting_tile(tile, target, told=told), True)


def room_of_flags(p: AttentionProblem, blocks: int, device: Any) -> Tensor | None:
    """Room for a number for each block of sums."""
    return empty((blocks,), torch.int32, device) if may_hide(p) else None


def widest_row(p: AttentionProblem) -> int:
    """The larger of E and Ev."""
    return max(p.query.shape[3], p.value.shape[3])


def has_vectors(p: AttentionProblem) -> bool:
    """Whether rows are whole vectors, as far as Triton can see: sixteens of elements."""
    return p.query.shape[3] % 16 == 0 and p.value.shape[3] % 16 == 0


def in_blocks(p: AttentionProblem) -> bool:
    """Whether columns are taken in blocks."""
    return widest_row(p) > widest(p.query.itemsize, count_extras(p), has_vectors(p))


def column_parts(p: AttentionProblem, width: int) -> int:
    """PARTS of a kernel whose result has this width."""
    return parts_of(width, p.query.itemsize, count_extras(p), has_vectors(p)) if in_blocks(p) else 1


def rows_at_a_time(p: AttentionProblem) -> dict[str, int]:
    """BLOCK_M and BLOCK_V of the kernels that go over rows of values alone."""
    block = width_block(p.value.shape[3])
    return {"BLOCK_M": max(min(ROWS, 4096 // block), 1), "BLOCK_V": block}


def sizes_of(p: AttentionProblem) -> tuple[int, ...]:
    """H, GROUP, L, S, E, EV."""
    return p.query.shape[1], p.group, p.query.shape[2], p.key.shape[2], p.query.shape[3], p.value.shape[3]
