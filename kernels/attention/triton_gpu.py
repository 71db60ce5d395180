"""attention in Triton: which kernels run, on which tiles.

Shaw's term is a product of the queries with its table, taken by torch once a call: (B, H, L, rows), which grows with
the length alone. Where something may be hidden, a kernel is launched a second time, for the blocks in which NaN or
infinities were met; there are none as a rule, and it ends at once (see forward_triton.py).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
import triton

from kernels.attention import backward_triton, forward_triton, terms_backward_triton
from kernels.attention.gpu_speeds import measured, measured_torchs
from kernels.attention.gpu_tiles import (
    AttentionTile,
    backward_tiles,
    forward_tile,
    parts_of,
    selecting_tile,
    split_count,
    wide_block,
    widest,
    width_block,
)
from kernels.attention.op import ATTENTION, SCALED_DOT_PRODUCT_ATTENTION, ScaledDotProductAttentionProblem
from kernels.attention.problem import AttentionProblem
from kernels.attention.relative import t5_buckets
from kernels.attention.scaled_dot_product import through_attention
from kernels.op import Implementation
from kernels.random import drop_threshold
from kernels.runtime.descriptors_triton import DESCRIBED_TARGETS, describable_rows, described_rows
from kernels.runtime.row_tiles import power_of_two
from kernels.runtime.targets import Target
from kernels.runtime.triton_gpu import (
    DTYPES,
    computed,
    computed_dtype,
    empty,
    empty_results,
    launch,
    product_precision,
    target_of,
    target_of_device,
    zero_gradients,
)
from kernels.runtime.tuning import choose

Tensor = torch.Tensor
#: Rows that the kernels which go over rows alone take at a time.
ROWS = 16
_TERMS = {None: 0, "shaw": 1, "alibi": 2, "t5": 3}


def _strides(array: Tensor | None) -> tuple[int, ...]:
    """Strides of a 4-d array, 0 where it has one place: it broadcasts there."""
    if array is None:
        return (0, 0, 0, 0)
    return tuple(0 if size == 1 else stride for size, stride in zip(array.shape, array.stride()))


def _precision(query: Tensor) -> str:
    """How products of float32 are taken: as torch's own are set."""
    return product_precision(query.dtype, target_of(query), tf32=torch.get_float32_matmul_precision() != "highest")


def _unit(dtype: torch.dtype) -> float:
    """UNIT of the kernels: half precision takes exp2, the others exp, whose argument is the smaller number."""
    return math.log2(math.e) if dtype.itemsize == 2 else 1.0


def _term(p: AttentionProblem, query: Tensor, table: Tensor | None) -> Tensor | None:
    """The relative term as the kernels read it, 4-d."""
    if table is None:
        return None
    if p.relative_kind == "alibi":
        return table.view(1, -1, 1, 1)
    wide = computed_dtype(query.dtype)
    if p.relative_kind == "t5":
        return table.to(wide).t()[:, _buckets_of(p, query.device).long()].contiguous()[None, :, None]
    return (query.to(wide) @ table.to(wide).mT) * p.score_scale


def _buckets_of(p: AttentionProblem, device: torch.device) -> Tensor:
    """The bucket of T5's table of each distance that there may be."""
    assert p.relative is not None
    longest = max(p.score_shape[2:])
    return _buckets(longest, p.relative.shape[0], p.bidirectional, p.relative_limit, device)


@functools.lru_cache(maxsize=64)
def _buckets(longest: int, buckets: int, bidirectional: bool, most: int, device: torch.device) -> Tensor:
    """Made by the function of every backend, and kept: a copy from the host cannot be captured in a CUDA graph."""
    found = t5_buckets(np.arange(1 - longest, longest), buckets, bidirectional, most)
    return torch.from_numpy(found.astype(np.int32)).to(device)


def _extras(p: AttentionProblem) -> int:
    """How many things a score has beside its product; by registers, ALiBi's term counts for two, T5's for three."""
    named = (p.mask, p.bias, p.relative, p.softcap)
    more = {"alibi": 1, "t5": 2}.get(p.relative_kind or "", 0)
    return (p.dropout_p > 0) + sum(given is not None for given in named) + more


def _constants(p: AttentionProblem, query: Tensor, tile: AttentionTile) -> dict[str, Any]:
    """What the kernels know when they are compiled."""
    left, right = p.reach
    wide = _wide(p)
    width_e, width_v = (
        wide_block(s.itemsize, _extras(p)) if wide else width_block(s.shape[3]) for s in (p.query, p.value)
    )
    return {
        "SCALE": p.score_scale,
        "CAP": p.softcap or 0.0,
        "UNIT": _unit(query.dtype),
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
        "PRECISION": _precision(query),
        "COMPUTED": computed(query.dtype),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        **({} if tile.registers is None else {"maxnreg": tile.registers}),
    }


def _hides(p: AttentionProblem) -> bool:
    """Whether a tile may hold keys that some query of it does not see; keys behind `lengths` are not read at all."""
    left, right = p.reach
    if p.query.shape[2] == 1 and p.from_end and left < 0:
        right = -1  # the one query stands at the last key
    return p.mask is not None or p.bias is not None or (left, right) != (-1, -1)


def _apart(p: AttentionProblem, selects: bool, target: Target, *, backward: bool = False) -> bool:
    """Whether tiles that are seen whole have a loop of their own.

    Not where every score is looked at anyway, nor in float32, whose products are the work, in many registers; backward
    where that was measured: elsewhere its registers, of which three loops want more, spill.
    """
    plain = not selects and p.mask is None and p.query.itemsize == 2 and not _wide(p)
    return plain and (target.name == "sm_90" if backward else not target.amd)


def _launches(
    p: AttentionProblem, tile: AttentionTile, target: Target, *, told: bool
) -> tuple[tuple[AttentionTile, bool], ...]:
    """(tile, SELECTS) of each launch of a kernel. told: see `selecting_tile`."""
    if not _hides(p):
        return ((tile, False),)
    return (tile, False), (selecting_tile(tile, target, told=told), True)


def _describable(p: AttentionProblem, target: Target, key: Tensor, value: Tensor) -> bool:
    """Whether the forward pass reads keys and values by tensor descriptors.

    By the report its loop is then 6 to 13 % shorter. Not with lengths: the copies would bring what lies behind them.
    Nor with more in a score than a product: there the compiler spilled registers.

    Backward takes pointers. Compiled for sm_90 in bfloat16 with descriptors, its loops became 1 to 8 % shorter without
    anything hidden (query_gradient 523 to 479 instructions at 64 columns, 679 to 639 at 128; key_gradients 775 to 717,
    899 to 886), at 128 columns with 2 to 20 registers more; but query_gradient's by a third longer (680 to 907, 830 to
    1072) with causality, a window and lengths, which training has. As many programs fit with them as without.
    """
    known = target.name in DESCRIBED_TARGETS and key.element_size() == 2 and not _extras(p)
    return known and p.lengths is None and not _wide(p) and all(map(describable_rows, (key, value)))


def _flags(p: AttentionProblem, blocks: int, device: Any) -> Tensor | None:
    """Room for a number for each block of sums."""
    return empty((blocks,), torch.int32, device) if _hides(p) else None


def _width(p: AttentionProblem) -> int:
    """The larger of E and Ev."""
    return max(p.query.shape[3], p.value.shape[3])


def _has_vectors(p: AttentionProblem) -> bool:
    """Whether rows are whole vectors, as far as Triton can see: sixteens of elements."""
    return p.query.shape[3] % 16 == 0 and p.value.shape[3] % 16 == 0


def _wide(p: AttentionProblem) -> bool:
    """Whether columns are taken in blocks."""
    return _width(p) > widest(p.query.itemsize, _extras(p))


def _parts(p: AttentionProblem, width: int) -> int:
    """PARTS of a kernel whose result has this width."""
    return parts_of(width, p.query.itemsize, _extras(p)) if _wide(p) else 1


def _rows_at_a_time(p: AttentionProblem) -> dict[str, int]:
    """BLOCK_M and BLOCK_V of the kernels that go over rows of values alone."""
    block = width_block(p.value.shape[3])
    return {"BLOCK_M": max(min(ROWS, 4096 // block), 1), "BLOCK_V": block}


def _sizes(p: AttentionProblem) -> tuple[int, ...]:
    """H, GROUP, L, S, E, EV."""
    return p.query.shape[1], p.group, p.query.shape[2], p.key.shape[2], p.query.shape[3], p.value.shape[3]


def _forward_plan(p: AttentionProblem, target: Target) -> tuple[AttentionTile, int, int]:
    """(tile, programs for all keys, parts that the keys are split into) of the forward pass."""
    batch, heads, queries, keys = p.score_shape
    tile = forward_tile(queries, _width(p), p.query.itemsize, _extras(p), target, _has_vectors(p))
    tile = choose("attention_forward", p, target, tile)
    programs = triton.cdiv(queries, tile.queries) * batch * heads * _parts(p, p.value.shape[3])
    return tile, programs, split_count(programs, keys, target)


def attention(
    p: AttentionProblem,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    relative: Tensor | None = None,
    seed: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """output (B, H, L, Ev), lse (B, H, L)."""
    if p.empty:
        return empty_results(p, query.device)
    batch, heads, queries, keys = p.score_shape
    device, dtype, wide = query.device, query.dtype, computed_dtype(query.dtype)
    target, parts_v = target_of(query), _parts(p, p.value.shape[3])
    tile, programs, splits = _forward_plan(p, target)
    keeps = p.results()[1] is not None
    out = empty((batch, heads, queries, p.value.shape[3]), dtype, device)
    lse = empty((batch, heads, queries), wide, device) if keeps else None
    parts, part_lse = out, lse
    if splits > 1:
        parts, part_lse = empty((splits, *out.shape), wide, device), empty((splits, *out.shape[:3]), wide, device)
    chunk = tile.keys * triton.cdiv(triton.cdiv(keys, tile.keys), splits)
    term = _term(p, query, relative)
    arrays = (query, key, value, mask, bias, None if lengths is None else lengths.contiguous(), term, seed)
    steps = [s for a in (query, key, value, mask, bias, term) for s in _strides(a)]
    odd = _flags(p, programs * splits, device)
    described = _describable(p, target, key, value)
    for cut, selects in _launches(p, tile, target, told=_precision(query) == "tf32"):
        constants = _constants(p, query, cut)
        given = arrays
        if described and not selects:
            blocks = (constants["BLOCK_E"], constants["BLOCK_V"])
            found = (described_rows(t, cut.keys, block) for t, block in zip((key, value), blocks))
            given = (query, *found, *arrays[3:])
        launch(
            forward_triton.attention_forward, (triton.cdiv(queries, cut.queries) * batch * heads * parts_v * splits,),
            *given, parts, part_lse, odd, *_sizes(p), chunk, *steps, splits, **constants,
            KEEPS=keeps or splits > 1, FLAGGED=0 if odd is None else tile.queries, SELECTS=selects, PARTS=parts_v,
            APART=_apart(p, selects, target), DESCRIBED=described and not selects,
        )  # fmt: skip
    if splits > 1:
        rows, block = batch * heads * queries, _rows_at_a_time(p)
        launch(
            forward_triton.join_splits, (triton.cdiv(rows, block["BLOCK_M"]),), parts, part_lse, out, lse, rows,
            p.value.shape[3], splits, KEEPS=keeps, **block, COMPUTED=computed(dtype), num_warps=4,
        )  # fmt: skip
    return out, lse


def attention_backward(
    p: AttentionProblem,
    grad_output: Tensor | None,
    grad_lse: Tensor | None = None,
    query: Any = None,
    key: Any = None,
    value: Any = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    relative: Tensor | None = None,
    seed: Tensor | None = None,
    output: Any = None,
    lse: Any = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of query, key, value, mask, bias, lengths, relative, seed."""
    if p.empty or p.key.shape[2] == 0:
        return zero_gradients(p, query.device)
    if grad_output is None:
        grad_output = torch.zeros_like(output)
    batch, heads, queries, keys = p.score_shape
    device, dtype, wide = query.device, query.dtype, computed_dtype(query.dtype)
    target = target_of(query)
    tile, key_tile = backward_tiles(queries, _width(p), query.element_size(), _extras(p), target, _has_vectors(p))
    tile = choose("query_gradient", p, target, tile)
    key_tile = choose("key_gradients", p, target, key_tile)
    constants = _constants(p, query, tile)
    delta, level = _row_products(p, grad_output, output, lse.contiguous(), grad_lse)
    term = _term(p, query, relative)
    lengths = None if lengths is None else lengths.contiguous()
    arrays = (grad_output, query, key, value, mask, bias, lengths, term, seed, level, delta)
    steps = [s for a in (grad_output, query, key, value, mask, bias, term) for s in _strides(a)]
    # Where there is none, the kernels still add 0 to its address.
    stand_in = tuple(query if a is None and n in (4, 5, 7) else a for n, a in enumerate(arrays))
    wants = p.needs_grad
    grad_query = grad_key = grad_value = grad_bias = grad_table = None
    shaw, alibi, t5 = (p.relative_kind == kind for kind in ("shaw", "alibi", "t5"))
    if wants[0] or wants[6] and not t5:
        parts = _parts(p, p.query.shape[3])
        grad_query = empty((batch, heads, queries, p.query.shape[3]), wide if shaw else dtype, device)
        grad_term = None
        if alibi:
            grad_term = empty((batch, heads, queries), wide, device)
        elif shaw:
            grad_term = torch.zeros((batch, heads, queries, 2 * p.relative_limit + 1), dtype=wide, device=device)
        odd = _flags(p, triton.cdiv(queries, tile.queries) * batch * heads * parts, device)
        for cut, selects in _launches(p, tile, target, told=_precision(query) == "tf32"):
            launch(
                backward_triton.query_gradient, (triton.cdiv(queries, cut.queries) * batch * heads * parts,), *arrays,
                grad_query, grad_term, odd, *_sizes(p), *steps, **_constants(p, query, cut),
                FLAGGED=0 if odd is None else tile.queries, SELECTS=selects, PARTS=parts,
                APART=_apart(p, selects, target, backward=True),
            )  # fmt: skip
        if shaw and grad_term is not None and relative is not None:
            grad_query = (grad_query + (grad_term @ relative.to(wide)) * p.score_scale).to(dtype)
            sums = torch.einsum("bhlc,bhle->ce", grad_term, query.to(wide)) * p.score_scale
            grad_table = sums.to(dtype)
        elif grad_term is not None:
            grad_table = -grad_term.sum((0, 2)).to(dtype)
    if wants[6] and t5 and relative is not None:
        grad_table = _table_gradient(p, relative, stand_in, steps, constants)
    if wants[1] or wants[2]:
        parts = _parts(p, _width(p))
        grad_key, grad_value = empty(p.key.shape, dtype, device), empty(p.value.shape, dtype, device)
        odd = _flags(p, triton.cdiv(keys, key_tile.keys) * batch * p.key.shape[1] * parts, device)
        for cut, selects in _launches(p, key_tile, target, told=False):
            launch(
                backward_triton.key_gradients, (triton.cdiv(keys, cut.keys) * batch * p.key.shape[1] * parts,),
                *stand_in, grad_key, grad_value, odd, *_sizes(p), *steps, **_constants(p, query, cut),
                FLAGGED=0 if odd is None else key_tile.keys, SELECTS=selects, PARTS=parts,
                APART=_apart(p, selects, target, backward=True),
            )  # fmt: skip
    if wants[4] and p.bias is not None:
        shape = p.bias.shape
        grad_bias = empty(shape, dtype, device)
        sums_over = {f"SUM_{n}": mine == 1 for n, mine in zip("BHIJ", shape)}
        tiles = shape[0] * shape[1] * triton.cdiv(shape[2], tile.queries) * triton.cdiv(shape[3], tile.keys)
        launch(
            terms_backward_triton.bias_gradient, (tiles,), *stand_in, grad_bias, *_sizes(p), batch, *shape, *steps,
            **constants, **sums_over,
        )  # fmt: skip
    found = (grad_query, grad_key, grad_value, None, grad_bias, None, grad_table, None)
    return tuple(g if wanted else None for g, wanted in zip(found, wants))


def _table_gradient(
    p: AttentionProblem, table: Tensor, arrays: tuple[Any, ...], steps: list[int], constants: dict[str, Any]
) -> Tensor:
    """The gradient of T5's table (buckets, H)."""
    batch, heads, queries, _ = p.score_shape
    blocks, buckets = triton.cdiv(queries, constants["BLOCK_M"]), power_of_two(table.shape[0])
    sums = empty((batch, heads, blocks, buckets), computed_dtype(table.dtype), table.device)
    options = constants | {"num_stages": 1, "BUCKETS": buckets}
    launch(
        terms_backward_triton.bucket_gradient, (batch * heads * blocks,), *arrays, _buckets_of(p, table.device), sums,
        *_sizes(p), *steps, **options,
    )  # fmt: skip
    return sums.sum((0, 2))[:, : table.shape[0]].t().to(table.dtype).contiguous()


def _row_products(
    p: AttentionProblem, grad: Tensor, output: Tensor, lse: Tensor, grad_lse: Tensor | None
) -> tuple[Tensor, Tensor]:
    """delta and level (B, H, L) of the kernels."""
    batch, heads, queries, _ = p.score_shape
    shape, wide = (batch, heads, queries), computed_dtype(output.dtype)
    delta, level = empty(shape, wide, output.device), empty(shape, wide, output.device)
    steps = () if grad_lse is None else tuple(grad_lse.stride())
    block = _rows_at_a_time(p)
    launch(
        backward_triton.row_products, (triton.cdiv(delta.numel(), block["BLOCK_M"]),), grad, output, lse, grad_lse,
        delta, level, queries, heads, p.value.shape[3], delta.numel(), *_strides(grad), *_strides(output),
        *(steps or (0, 0, 0)), HAS_GRAD=True, HAS_LSE=grad_lse is not None, UNIT=_unit(output.dtype), **block,
        COMPUTED=computed(output.dtype), num_warps=4,
    )  # fmt: skip
    return delta, level


def _describe(p: AttentionProblem) -> str:
    if p.empty:
        return "nothing to compute"
    words = "tiles of keys, softmax as they stream by"
    words += ", columns in parts" if _wide(p) else ""
    _, _, splits = _forward_plan(p, target_of_device(torch.device(p.query.device).index))
    words += f", keys in {splits} parts that a launch of its own joins" if splits > 1 else ""
    return words + (", a second launch for blocks that met NaN or infinities" if _hides(p) else "")


def _describe_torchs(p: ScaledDotProductAttentionProblem) -> str:
    return _describe(p.attention)


Implementation(ATTENTION, "triton", attention, attention_backward, dtypes=DTYPES, describe=_describe, measured=measured)
Implementation(
    SCALED_DOT_PRODUCT_ATTENTION, "triton", *through_attention(attention, attention_backward), dtypes=DTYPES,
    describe=_describe_torchs, measured=measured_torchs,
)  # fmt: skip
