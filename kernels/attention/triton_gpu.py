"""attention in Triton: which kernels run, on which tiles.

Shaw's term is a product of the queries with its table, taken by torch once a call: (B, H, L, rows), which grows with
the length alone. NaN in a key or value reaches the queries of its tile that do not see it, as in torch's own op; keys
behind `lengths` are never read.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from kernels.attention import backward_triton, forward_triton
from kernels.attention.gpu_tiles import WIDEST, AttentionTile, backward_tiles, forward_tile, split_count, width_block
from kernels.attention.op import ATTENTION, SCALED_DOT_PRODUCT_ATTENTION, ScaledDotProductAttentionProblem
from kernels.attention.problem import AttentionProblem
from kernels.attention.scaled_dot_product import through_attention
from kernels.op import Implementation
from kernels.random import drop_threshold
from kernels.runtime.triton_gpu import (
    DTYPES,
    computed,
    computed_dtype,
    empty,
    empty_results,
    launch,
    target_of,
    zero_gradients,
)

Tensor = torch.Tensor
#: Rows that the kernels which go over rows alone take at a time.
ROWS = 16
_TERMS = {None: 0, "shaw": 1, "alibi": 2}


def _strides(array: Tensor | None) -> tuple[int, ...]:
    """Strides of a 4-d array, 0 where it has one place: it broadcasts there."""
    if array is None:
        return (0, 0, 0, 0)
    return tuple(0 if size == 1 else stride for size, stride in zip(array.shape, array.stride()))


def _precision(dtype: torch.dtype) -> str:
    """How products of float32 are taken: as torch's own are set."""
    return "tf32" if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest" else "ieee"


def _term(p: AttentionProblem, query: Tensor, table: Tensor | None) -> Tensor | None:
    """The relative term as the kernels read it, 4-d."""
    if table is None:
        return None
    if p.relative_kind == "alibi":
        return table.view(1, -1, 1, 1)
    wide = computed_dtype(query.dtype)
    return (query.to(wide) @ table.to(wide).mT) * p.score_scale


def _extras(p: AttentionProblem) -> bool:
    """Whether a score is more than a product."""
    more = (p.mask, p.bias, p.relative, p.softcap)
    return p.dropout_p > 0 or any(given is not None for given in more)


def _constants(p: AttentionProblem, query: Tensor, tile: AttentionTile) -> dict[str, Any]:
    """What the kernels know when they are compiled."""
    left, right = p.reach
    width_e, width_v = width_block(p.query.shape[3]), width_block(p.value.shape[3])
    return {
        "SCALE": p.score_scale,
        "CAP": p.softcap or 0.0,
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
        "BLOCK_M": tile.queries,
        "BLOCK_N": tile.keys,
        "BLOCK_E": width_e,
        "BLOCK_V": width_v,
        "WHOLE_E": width_e == p.query.shape[3],
        "WHOLE_V": width_v == p.value.shape[3],
        "PRECISION": _precision(query.dtype),
        "COMPUTED": computed(query.dtype),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _sizes(p: AttentionProblem) -> tuple[int, ...]:
    """H, GROUP, L, S, E, EV."""
    return p.query.shape[1], p.group, p.query.shape[2], p.key.shape[2], p.query.shape[3], p.value.shape[3]


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
    width, target = max(p.query.shape[3], p.value.shape[3]), target_of(query)
    tile = forward_tile(queries, width, query.element_size(), _extras(p), target)
    programs = triton.cdiv(queries, tile.queries) * batch * heads
    splits = split_count(programs, keys, target)
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
    constants = _constants(p, query, tile)
    launch(
        forward_triton.attention_forward, (programs * splits,), *arrays, parts, part_lse, *_sizes(p), chunk, *steps,
        splits, **constants, KEEPS=keeps or splits > 1,
    )  # fmt: skip
    if splits > 1:
        rows = batch * heads * queries
        launch(
            forward_triton.join_splits, (triton.cdiv(rows, ROWS),), parts, part_lse, out, lse, rows,
            p.value.shape[3], splits, KEEPS=keeps, BLOCK_M=ROWS, BLOCK_V=constants["BLOCK_V"],
            COMPUTED=constants["COMPUTED"], num_warps=4,
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
    width = max(p.query.shape[3], p.value.shape[3])
    tile, key_tile = backward_tiles(queries, width, query.element_size(), _extras(p), target_of(query))
    constants = _constants(p, query, tile)
    delta = _row_products(p, grad_output, output, grad_lse, constants)
    term = _term(p, query, relative)
    lengths = None if lengths is None else lengths.contiguous()
    arrays = (grad_output, query, key, value, mask, bias, lengths, term, seed, lse.contiguous(), delta)
    steps = [s for a in (grad_output, query, key, value, mask, bias, term) for s in _strides(a)]
    # Where there is none, the kernels still add 0 to its address.
    stand_in = tuple(query if a is None and n in (4, 5, 7) else a for n, a in enumerate(arrays))
    wants = p.needs_grad
    grad_query = grad_key = grad_value = grad_bias = grad_table = None
    if wants[0] or wants[6]:
        shaw, alibi = p.relative_kind == "shaw", p.relative_kind == "alibi"
        grad_query = empty((batch, heads, queries, p.query.shape[3]), wide if shaw else dtype, device)
        grad_term = None
        if alibi:
            grad_term = empty((batch, heads, queries), wide, device)
        elif shaw:
            grad_term = torch.zeros((batch, heads, queries, 2 * p.relative_limit + 1), dtype=wide, device=device)
        launch(
            backward_triton.query_gradient, (triton.cdiv(queries, tile.queries) * batch * heads,), *arrays,
            grad_query, grad_term, *_sizes(p), *steps, **constants,
        )  # fmt: skip
        if shaw and grad_term is not None and relative is not None:
            grad_query = (grad_query + (grad_term @ relative.to(wide)) * p.score_scale).to(dtype)
            sums = torch.einsum("bhlc,bhle->ce", grad_term, query.to(wide)) * p.score_scale
            grad_table = sums.to(dtype)
        elif grad_term is not None:
            grad_table = -grad_term.sum((0, 2)).to(dtype)
    if wants[1] or wants[2]:
        grad_key, grad_value = empty(p.key.shape, dtype, device), empty(p.value.shape, dtype, device)
        launch(
            backward_triton.key_gradients, (triton.cdiv(keys, key_tile.keys) * batch * p.key.shape[1],), *stand_in,
            grad_key, grad_value, *_sizes(p), *steps, **_constants(p, query, key_tile),
        )  # fmt: skip
    if wants[4] and p.bias is not None:
        shape = p.bias.shape
        grad_bias = empty(shape, dtype, device)
        sums_over = {f"SUM_{n}": mine == 1 for n, mine in zip("BHIJ", shape)}
        tiles = shape[0] * shape[1] * triton.cdiv(shape[2], tile.queries) * triton.cdiv(shape[3], tile.keys)
        launch(
            backward_triton.bias_gradient, (tiles,), *stand_in, grad_bias, *_sizes(p), batch, *shape, *steps,
            **constants, **sums_over,
        )  # fmt: skip
    found = (grad_query, grad_key, grad_value, None, grad_bias, None, grad_table, None)
    return tuple(g if wanted else None for g, wanted in zip(found, wants))


def _row_products(
    p: AttentionProblem, grad: Tensor, output: Tensor, grad_lse: Tensor | None, constants: dict[str, Any]
) -> Tensor:
    """delta (B, H, L) of the kernels."""
    batch, heads, queries, _ = p.score_shape
    delta = empty((batch, heads, queries), computed_dtype(output.dtype), output.device)
    steps = () if grad_lse is None else tuple(grad_lse.stride())
    launch(
        backward_triton.row_products, (triton.cdiv(delta.numel(), ROWS),), grad, output, grad_lse, delta, queries,
        heads, p.value.shape[3], delta.numel(), *_strides(grad), *_strides(output), *(steps or (0, 0, 0)),
        HAS_GRAD=True, HAS_LSE=grad_lse is not None, BLOCK_M=ROWS, BLOCK_V=constants["BLOCK_V"],
        COMPUTED=constants["COMPUTED"], num_warps=4,
    )  # fmt: skip
    return delta


def _reasons(p: AttentionProblem) -> list[str]:
    found = []
    for name, width in (("query", p.query.shape[3]), ("value", p.value.shape[3])):
        if not 1 <= width <= WIDEST:
            found.append(f"{name} has {width} columns; it takes 1 to {WIDEST}")
    if p.relative_kind == "t5":
        found.append("it has no RelativeT5")
    return found


def _reasons_torchs(p: ScaledDotProductAttentionProblem) -> list[str]:
    return _reasons(p.attention)


def _describe(p: AttentionProblem) -> str:
    return "tiles of keys, softmax as they stream by"


def _describe_torchs(p: ScaledDotProductAttentionProblem) -> str:
    return _describe(p.attention)


Implementation(ATTENTION, "triton", attention, attention_backward, dtypes=DTYPES, reasons=_reasons, describe=_describe)
Implementation(
    SCALED_DOT_PRODUCT_ATTENTION, "triton", *through_attention(attention, attention_backward), dtypes=DTYPES,
    reasons=_reasons_torchs, describe=_describe_torchs,
)  # fmt: skip
