"""attention in CUDA C++: which kernels run, on which tiles."""

from __future__ import annotations

from typing import Any, cast

from kernels.attention.cuda_call import WARPS, CudaCall, blocks_of
from kernels.attention.cuda_tiles import CudaTile, forward_tile, key_tile, packs, parts_of, query_tile
from kernels.attention.gpu_speeds import measured, measured_torchs
from kernels.attention.gpu_tiles import split_count
from kernels.attention.op import ATTENTION, SCALED_DOT_PRODUCT_ATTENTION, ScaledDotProductAttentionProblem
from kernels.attention.problem import AttentionProblem
from kernels.attention.scaled_dot_product import through_attention
from kernels.op import Implementation
from kernels.runtime.cupy_gpu import (
    DTYPES,
    contiguous,
    dtype_name,
    element_strides,
    empty,
    empty_results,
    index_type,
    launch,
    types,
    vector_of,
    zero_gradients,
    zeros,
)
from kernels.runtime.row_tiles import power_of_two

#: Blocks that share the sum over a bias that broadcasts, at most.
CHUNKS = 64


def attention(
    p: AttentionProblem,
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    bias: Any = None,
    lengths: Any = None,
    relative: Any = None,
    seed: Any = None,
) -> tuple[Any, ...]:
    """output (B, H, L, Ev), lse (B, H, L)."""
    if p.empty:
        return empty_results(p)
    call = CudaCall(p, query, key, value, mask, bias, lengths, relative, seed)
    batch, heads, queries, keys = p.score_shape
    packed = packs(queries, p.group)
    rows, sharing = (queries * p.group, heads // p.group) if packed else (queries, heads)
    tile = forward_tile(rows, call.width, call.itemsize)
    blocks = blocks_of(rows, tile.queries) * batch * sharing * parts_of(call.widths[1])
    splits = split_count(blocks, keys, call.target)
    out = empty((batch, heads, queries, call.widths[1]), call.dtype)
    lse = empty((batch, heads, queries), call.wide) if p.results()[1] is not None else None
    parts, part_lse = out, lse
    if splits > 1:
        parts, part_lse = empty((splits, *out.shape), call.wide), empty((splits, *out.shape[:3]), call.wide)
    chunk = tile.keys * blocks_of(blocks_of(keys, tile.keys), splits)
    call.launch(
        "attention_forward", blocks * splits, tile, (), (parts, part_lse), (chunk, splits, int(packed)),
        call.wide if splits > 1 else call.dtype,
    )  # fmt: skip
    if splits > 1:
        rows, vector = batch * heads * queries, vector_of(call.widths[1], parts)
        launch(
            "attention/join_splits.cu", "join_splits", (blocks_of(rows, WARPS),), (WARPS * 32,), parts, part_lse, out,
            lse, rows, call.widths[1], splits,
            constants=types(call.dtype) | {"INDEX": index_type(parts), "VECTOR": vector, "WARPS": WARPS},
        )  # fmt: skip
    return out, lse


def attention_backward(
    p: AttentionProblem,
    grad_output: Any,
    grad_lse: Any = None,
    query: Any = None,
    key: Any = None,
    value: Any = None,
    mask: Any = None,
    bias: Any = None,
    lengths: Any = None,
    relative: Any = None,
    seed: Any = None,
    output: Any = None,
    lse: Any = None,
) -> tuple[Any, ...]:
    """Gradients of query, key, value, mask, bias, lengths, relative, seed."""
    if p.empty or p.key.shape[2] == 0:
        return zero_gradients(p)
    if grad_output is None:
        grad_output = zeros(output.shape, dtype_name(output))
    call = CudaCall(p, query, key, value, mask, bias, lengths, relative, seed, grad=grad_output)
    batch, heads, queries, keys = p.score_shape
    lse = contiguous(lse)
    delta = _row_products(call, output, grad_lse)
    before = (lse, delta)
    wants = p.needs_grad
    grad_query = grad_key = grad_value = grad_bias = grad_table = None
    tile = query_tile(queries, call.width, call.itemsize, call.extras)
    # A bias as large as the scores gets its gradient where the queries get theirs.
    whole = wants[4] and p.bias is not None and p.bias.shape == p.score_shape
    if whole:
        grad_bias = zeros(p.score_shape, call.dtype)
    if wants[0] or wants[6] or whole:
        shaw = p.relative_kind == "shaw"
        grad_query, grad_term = empty(p.query.shape, call.dtype), cast(Any, None)
        if call.term is not None and (wants[6] or shaw):
            count = 1 if p.relative_kind == "alibi" else 2 * call.limit + 1
            grad_term = zeros((parts_of(call.widths[0]), batch, heads, queries, count), call.wide)
        table, steps = (relative, element_strides(relative)) if shaw else (None, (0, 0))
        call.launch(
            "query_gradient", parts_of(call.widths[0]) * blocks_of(queries, tile.queries) * batch * heads, tile,
            (*before, table), (grad_query, grad_term, grad_bias), steps, call.dtype,
        )  # fmt: skip
        if wants[6]:
            grad_table = _table_gradient(call, grad_term[0])
    if wants[1] or wants[2]:
        grad_key, grad_value = empty(p.key.shape, call.dtype), empty(p.value.shape, call.dtype)
        of_keys = key_tile(queries, call.width, call.itemsize, call.extras)
        call.launch(
            "key_gradients", parts_of(call.width) * blocks_of(keys, of_keys.keys) * batch * p.key.shape[1], of_keys,
            before, (grad_key, grad_value), (), call.dtype,
        )  # fmt: skip
    if wants[4] and not whole and p.bias is not None:
        grad_bias = _bias_gradient(call, tile, before)
    found = (grad_query, grad_key, grad_value, None, grad_bias, None, grad_table, None)
    return tuple(g if wanted else None for g, wanted in zip(found, wants))


def _row_products(call: CudaCall, output: Any, grad_lse: Any) -> Any:
    """delta (B, H, L) of the kernels."""
    batch, heads, queries, _ = call.p.score_shape
    delta = empty((batch, heads, queries), call.wide)
    width = call.widths[1]
    line = 16 // call.itemsize
    aligned = vector_of(width, call.grad, output) == line
    lanes = min(power_of_two(blocks_of(width, line if aligned else 1)), 32)
    index = index_type(call.grad, output, grad_lse, delta)
    constants = types(call.dtype) | {"INDEX": index, "LANES": lanes, "WARPS": WARPS, "ALIGNED": int(aligned)}
    launch(
        "attention/row_products.cu", "row_products", (blocks_of(delta.size, WARPS * 32 // lanes),), (WARPS * 32,),
        call.grad, output, grad_lse, delta, batch, heads, queries, width, *element_strides(call.grad),
        *element_strides(output), *((0, 0, 0) if grad_lse is None else element_strides(grad_lse)), constants=constants,
    )  # fmt: skip
    return delta


def _bias_gradient(call: CudaCall, tile: CudaTile, before: tuple[Any, ...]) -> Any:
    """The gradient of a bias that broadcasts, in its own shape."""
    p = call.p
    assert p.bias is not None
    shape: tuple[int, ...] = p.bias.shape
    sums = [mine == 1 for mine in shape]
    blocks = [1, 1, blocks_of(shape[2], tile.queries), blocks_of(shape[3], tile.keys)]
    of_scores = [call.batch, call.heads, blocks_of(call.queries, tile.queries), blocks_of(call.keys, tile.keys)]
    tiles = shape[0] * shape[1] * blocks[2] * blocks[3]
    summed = 1
    for count, is_sum in zip(of_scores, sums):
        summed *= count if is_sum else 1
    # As many blocks as fill the GPU twice, each with something to do.
    chunks = max(1, min(summed, CHUNKS, blocks_of(2 * call.target.multiprocessors, tiles)))
    parts = empty((chunks, *shape), call.wide)
    call.launch(
        "bias_gradient", tiles * chunks, tile, before, (parts,), (*shape, chunks), call.wide
    )  # fmt: skip
    return _sum_parts(call, parts, shape)


def _sum_parts(call: CudaCall, parts: Any, shape: tuple[int, ...], factor: float = 1.0) -> Any:
    """factor * the sum of `parts` over their first dimension, in turn."""
    out = empty(shape, call.dtype)
    call.launch_sums("sum_parts", out.size, parts, out, out.size, parts.shape[0], factor, index=(parts,))
    return out


def _table_gradient(call: CudaCall, grad_term: Any) -> Any:
    """The gradient of the relative term's table, from that of its numbers (B, H, L, C)."""
    batch, heads, queries, count = grad_term.shape
    if call.p.relative_kind == "shaw":
        tile = query_tile(queries, call.widths[0], call.itemsize)
        chunk, chunks = _chunks(batch * heads * queries, tile.queries)
        parts = empty((chunks, *call.table.shape), call.wide)
        call.launch_shaw(
            "shaw_gradient", parts_of(call.widths[0]) * blocks_of(count, tile.keys) * chunks, tile, call.query,
            grad_term, parts, batch, heads, queries, call.widths[0], count, chunk, *element_strides(call.query),
            index=(grad_term, parts),
        )  # fmt: skip
        return _sum_parts(call, parts, call.table.shape, float(call.p.score_scale))
    alibi = call.p.relative_kind == "alibi"
    columns = 1 if alibi else 32
    chunk, chunks = _chunks(batch * queries, WARPS * 32 // columns)
    parts = empty((chunks, heads, count), call.wide)
    call.launch_sums(
        "sum_queries", blocks_of(count, columns) * heads * chunks, grad_term, parts, batch, heads, queries, count,
        chunk, index=(grad_term, parts), COLUMNS=columns,
    )  # fmt: skip
    if alibi:
        return _sum_parts(call, parts, (heads,), -1.0)
    rows = call.table.shape[0]
    out = empty(call.table.shape, call.dtype)
    call.launch_sums(
        "sum_rows", out.size, parts, call.places, out, rows, heads, count, chunks, index=(parts, out),
    )  # fmt: skip
    return out


def _chunks(count: int, least: int) -> tuple[int, int]:
    """(length, number) of the chunks of a sum: a multiple of `least` long, at most `CHUNKS` of them."""
    length = least * blocks_of(blocks_of(count, least), CHUNKS)
    return length, blocks_of(count, length)


def _reasons(p: AttentionProblem) -> list[str]:
    found = []
    for name, width in (("query", p.query.shape[3]), ("value", p.value.shape[3])):
        if width < 1:
            found.append(f"{name} has {width} columns; it takes 1 or more")
    return found


def _reasons_torchs(p: ScaledDotProductAttentionProblem) -> list[str]:
    return _reasons(p.attention)


def _describe(p: AttentionProblem) -> str:
    parts = parts_of(max(p.query.shape[3], p.value.shape[3]))
    return "tiles of keys, softmax as they stream by" + (f", columns in {parts} parts" if parts > 1 else "")


def _describe_torchs(p: ScaledDotProductAttentionProblem) -> str:
    return _describe(p.attention)


Implementation(
    ATTENTION, "cupy", attention, attention_backward, dtypes=DTYPES, reasons=_reasons, describe=_describe,
    measured=measured,
)  # fmt: skip
Implementation(
    SCALED_DOT_PRODUCT_ATTENTION, "cupy", *through_attention(attention, attention_backward), dtypes=DTYPES,
    reasons=_reasons_torchs, describe=_describe_torchs, measured=measured_torchs,
)  # fmt: skip
