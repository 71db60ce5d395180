"""attention in Triton: the forward pass, which kernels run on which tiles; backward is in gpu_backward.py.

Where something may be hidden, a kernel is launched a second time, for the blocks in which NaN or infinities were met;
there are none as a rule, and it ends at once (see forward_triton.py).
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton

from kernels.arrays import ArraySpec
from kernels.attention import forward_triton
from kernels.attention.gpu_backward import attention_backward
from kernels.attention.gpu_call import (
    apart,
    column_parts,
    constants_of,
    count_extras,
    cuts,
    has_vectors,
    in_blocks,
    may_hide,
    precision_of,
    reach_of,
    room_of_flags,
    rows_at_a_time,
    sizes_of,
    strides_of,
    term_of,
    widest_row,
)
from kernels.attention.gpu_speeds import measured, measured_torchs
from kernels.attention.gpu_tiles import AttentionTile, forward_tile, split_count
from kernels.attention.op import ATTENTION, SCALED_DOT_PRODUCT_ATTENTION, ScaledDotProductAttentionProblem
from kernels.attention.problem import AttentionProblem
from kernels.attention.scaled_dot_product import through_attention
from kernels.op import Implementation
from kernels.runtime.descriptors_triton import DESCRIBED_TARGETS, describable_rows, described_rows
from kernels.runtime.targets import Target
from kernels.runtime.triton_gpu import (
    DTYPES,
    computed,
    computed_dtype,
    empty,
    empty_results,
    launch,
    target_of,
    target_of_device,
)
from kernels.runtime.tuning import choose

Tensor = torch.Tensor


def _describable(p: AttentionProblem, target: Target, key: Tensor, value: Tensor) -> bool:
    """Whether the forward pass reads keys and values by tensor descriptors.

    By the report its loop is then 6 to 13 % shorter. Not with lengths: the copies would bring what lies behind them.
    Nor with more in a score than a product: there the compiler spilled registers.

    Backward takes pointers. Compiled for sm_90 in bfloat16 with descriptors, its loops became 1 to 8 % shorter without
    anything hidden (query_gradient 523 to 479 instructions at 64 columns, 679 to 639 at 128; key_gradients 775 to 717,
    899 to 886), at 128 columns with 2 to 20 registers more; but query_gradient's by a third longer (680 to 907, 830 to
    1072) with causality, a window and lengths, which training has. As many programs fit with them as without.
    """
    known = target.name in DESCRIBED_TARGETS and key.element_size() == 2 and not count_extras(p)
    return known and p.lengths is None and not in_blocks(p) and all(map(describable_rows, (key, value)))


def _heads_as_queries(p: AttentionProblem) -> AttentionProblem | None:
    """The same call in which the query heads that share keys are queries of one head, so that these are read once.

    Of a single query that sees all keys by position; None of other calls, and with a relative term, which is by head or
    by position. The places that dropout counts are the same.
    """
    batch, heads, queries, _ = p.score_shape
    if queries != 1 or p.group == 1 or p.relative is not None or reach_of(p) != (-1, -1):
        return None

    def turned(spec: ArraySpec | None) -> ArraySpec | None:
        if spec is None or spec.shape[1] == 1:
            return spec
        return ArraySpec((spec.shape[0], heads // p.group, p.group, spec.shape[3]), spec.dtype, spec.device)

    query = turned(p.query)
    assert query is not None
    return replace(p, query=query, mask=turned(p.mask), bias=turned(p.bias), causal=None, window=None)


def _turned(array: Tensor | None, group: int) -> Tensor | None:
    """(B, H, 1, N) as (B, H / group, group, N); as it is where all heads have one."""
    return array if array is None or array.shape[1] == 1 else array.unflatten(1, (-1, group)).squeeze(3)


def _forward_plan(p: AttentionProblem, target: Target) -> tuple[AttentionTile, int, int]:
    """(tile, programs for all keys, parts that the keys are split into) of the forward pass."""
    batch, heads, queries, keys = p.score_shape
    tile = forward_tile(
        queries, widest_row(p), p.query.itemsize, count_extras(p), target, has_vectors(p),
        reaches=reach_of(p) == (-1, -1),
    )  # fmt: skip
    tile = choose("attention_forward", p, target, tile)
    programs = triton.cdiv(queries, tile.queries) * batch * heads * column_parts(p, p.value.shape[3])
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
    turned = _heads_as_queries(p)
    if turned is not None:
        ours, own_mask, own_bias = (_turned(a, p.group) for a in (query, mask, bias))
        assert ours is not None
        results = attention(turned, ours, key, value, own_mask, own_bias, lengths, None, seed)
        return tuple(None if r is None else r.view(p.query.shape[:3] + r.shape[3:]) for r in results)
    batch, heads, queries, keys = p.score_shape
    device, dtype, wide = query.device, query.dtype, computed_dtype(query.dtype)
    target, parts_v = target_of(query), column_parts(p, p.value.shape[3])
    tile, programs, splits = _forward_plan(p, target)
    keeps = p.results()[1] is not None
    out = empty((batch, heads, queries, p.value.shape[3]), dtype, device)
    lse = empty((batch, heads, queries), wide, device) if keeps else None
    parts, part_lse = out, lse
    if splits > 1:
        parts, part_lse = empty((splits, *out.shape), wide, device), empty((splits, *out.shape[:3]), wide, device)
    chunk = tile.keys * triton.cdiv(triton.cdiv(keys, tile.keys), splits)
    term = term_of(p, query, relative)
    arrays = (query, key, value, mask, bias, None if lengths is None else lengths.contiguous(), term, seed)
    steps = [s for a in (query, key, value, mask, bias, term) for s in strides_of(a)]
    odd = room_of_flags(p, programs * splits, device)
    described = _describable(p, target, key, value)
    for cut, selects in cuts(p, tile, target, told=precision_of(query) == "tf32"):
        constants = constants_of(p, query, cut)
        given = arrays
        if described and not selects:
            blocks = (constants["BLOCK_E"], constants["BLOCK_V"])
            found = (described_rows(t, cut.keys, block) for t, block in zip((key, value), blocks))
            given = (query, *found, *arrays[3:])
        launch(
            forward_triton.attention_forward, (triton.cdiv(queries, cut.queries) * batch * heads * parts_v * splits,),
            *given, parts, part_lse, odd, *sizes_of(p), chunk, *steps, splits, **constants,
            KEEPS=keeps or splits > 1, FLAGGED=0 if odd is None else tile.queries, SELECTS=selects, PARTS=parts_v,
            APART=apart(p, selects, target), DESCRIBED=described and not selects,
        )  # fmt: skip
    if splits > 1:
        rows, block = batch * heads * queries, rows_at_a_time(p)
        launch(
            forward_triton.join_splits, (triton.cdiv(rows, block["BLOCK_M"]),), parts, part_lse, out, lse, rows,
            p.value.shape[3], splits, KEEPS=keeps, **block, COMPUTED=computed(dtype), num_warps=4,
        )  # fmt: skip
    return out, lse


def _describe(p: AttentionProblem) -> str:
    if p.empty:
        return "nothing to compute"
    turned = _heads_as_queries(p)
    words = "tiles of keys, softmax as they stream by"
    words += "" if turned is None else f", {p.group} heads of queries at a time"
    words += ", columns in parts" if in_blocks(p) else ""
    _, _, splits = _forward_plan(turned or p, target_of_device(torch.device(p.query.device).index))
    words += f", keys in {splits} parts that a launch of its own joins" if splits > 1 else ""
    return words + (", a second launch for blocks that met NaN or infinities" if may_hide(p) else "")


def _describe_torchs(p: ScaledDotProductAttentionProblem) -> str:
    return _describe(p.attention)


Implementation(ATTENTION, "triton", attention, attention_backward, dtypes=DTYPES, describe=_describe, measured=measured)
Implementation(
    SCALED_DOT_PRODUCT_ATTENTION, "triton", *through_attention(attention, attention_backward), dtypes=DTYPES,
    describe=_describe_torchs, measured=measured_torchs,
)  # fmt: skip
