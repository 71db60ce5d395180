"""attention's backward pass in Triton: which kernels run, on which tiles."""

from __future__ import annotations

from typing import Any

import torch
import triton

from kernels.attention import backward_triton, terms_backward_triton
from kernels.attention.gpu_call import (
    apart,
    buckets_of,
    column_parts,
    constants_of,
    count_extras,
    cuts,
    has_vectors,
    precision_of,
    room_of_flags,
    rows_at_a_time,
    sizes_of,
    strides_of,
    term_of,
    unit_of,
    widest_row,
)
from kernels.attention.gpu_tiles import LEAST, backward_tiles
from kernels.attention.problem import AttentionProblem
from kernels.runtime.row_tiles import power_of_two
from kernels.runtime.triton_gpu import (
    computed,
    computed_dtype,
    empty,
    launch,
    target_of,
    zero_gradients,
)
from kernels.runtime.tuning import choose

Tensor = torch.Tensor


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
    tile, key_tile = backward_tiles(
        queries, widest_row(p), query.element_size(), count_extras(p), target, has_vectors(p)
    )
    tile = choose("query_gradient", p, target, tile)
    key_tile = choose("key_gradients", p, target, key_tile)
    constants = constants_of(p, query, tile)
    delta, level = _row_products(p, grad_output, output, lse.contiguous(), grad_lse)
    term = term_of(p, query, relative)
    lengths = None if lengths is None else lengths.contiguous()
    arrays = (grad_output, query, key, value, mask, bias, lengths, term, seed, level, delta)
    steps = [s for a in (grad_output, query, key, value, mask, bias, term) for s in strides_of(a)]
    # Where there is none, the kernels still add 0 to its address.
    stand_in = tuple(query if a is None and n in (4, 5, 7) else a for n, a in enumerate(arrays))
    wants = p.needs_grad
    grad_query = grad_key = grad_value = grad_bias = grad_table = None
    shaw, alibi, t5 = (p.relative_kind == kind for kind in ("shaw", "alibi", "t5"))
    if wants[0] or wants[6] and not t5:
        parts = column_parts(p, p.query.shape[3])
        grad_query = empty((batch, heads, queries, p.query.shape[3]), wide if shaw else dtype, device)
        grad_term = None
        if alibi:
            grad_term = empty((batch, heads, queries), wide, device)
        elif shaw:
            grad_term = torch.zeros((batch, heads, queries, 2 * p.relative_limit + 1), dtype=wide, device=device)
        odd = room_of_flags(p, triton.cdiv(queries, tile.queries) * batch * heads * parts, device)
        for cut, selects in cuts(p, tile, target, told=precision_of(query) == "tf32"):
            launch(
                backward_triton.query_gradient, (triton.cdiv(queries, cut.queries) * batch * heads * parts,), *arrays,
                grad_query, grad_term, odd, *sizes_of(p), *steps, **constants_of(p, query, cut),
                FLAGGED=0 if odd is None else tile.queries, SELECTS=selects, PARTS=parts,
                APART=apart(p, selects, target, backward=True),
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
        parts = column_parts(p, widest_row(p))
        grad_key, grad_value = empty(p.key.shape, dtype, device), empty(p.value.shape, dtype, device)
        odd = room_of_flags(p, triton.cdiv(keys, key_tile.keys) * batch * p.key.shape[1] * parts, device)
        for cut, selects in cuts(p, key_tile, target, told=False):
            launch(
                backward_triton.key_gradients, (triton.cdiv(keys, cut.keys) * batch * p.key.shape[1] * parts,),
                *stand_in, grad_key, grad_value, odd, *sizes_of(p), *steps, **constants_of(p, query, cut),
                FLAGGED=0 if odd is None else key_tile.keys, SELECTS=selects, PARTS=parts,
                APART=apart(p, selects, target, backward=True),
            )  # fmt: skip
    if wants[4] and p.bias is not None:
        shape = p.bias.shape
        grad_bias = empty(shape, dtype, device)
        sums_over = {f"SUM_{n}": mine == 1 for n, mine in zip("BHIJ", shape)}
        # One tile of scores has no next one to be fetched meanwhile; and on sm_100 Triton does not take a loop over
        # rows of 16 numbers apart into stages.
        short = not any(sums_over.values()) or (target.name == "sm_100" and constants["BLOCK_E"] == LEAST)
        tiles = shape[0] * shape[1] * triton.cdiv(shape[2], tile.queries) * triton.cdiv(shape[3], tile.keys)
        launch(
            terms_backward_triton.bias_gradient, (tiles,), *stand_in, grad_bias, *sizes_of(p), batch, *shape, *steps,
            **(constants | ({"num_stages": 1} if short else {})), **sums_over,
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
    if table.dtype == torch.float32:
        # Without tensor cores whole rows of all four factors are in registers at a time: more of them than there are.
        columns = {n: min(constants[n], 32) for n in ("BLOCK_E", "BLOCK_V")}
        options |= columns | {"WIDE": constants["WIDE"] or columns != {n: constants[n] for n in columns}}
    launch(
        terms_backward_triton.bucket_gradient, (batch * heads * blocks,), *arrays, buckets_of(p, table.device), sums,
        *sizes_of(p), *steps, **options,
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
    block = rows_at_a_time(p)
    launch(
        backward_triton.row_products, (triton.cdiv(delta.numel(), block["BLOCK_M"]),), grad, output, lse, grad_lse,
        delta, level, queries, heads, p.value.shape[3], delta.numel(), *strides_of(grad), *strides_of(output),
        *(steps or (0, 0, 0)), HAS_GRAD=True, HAS_LSE=grad_lse is not None, UNIT=unit_of(output.dtype), **block,
        COMPUTED=computed(output.dtype), num_warps=4,
    )  # fmt: skip
    return delta, level
