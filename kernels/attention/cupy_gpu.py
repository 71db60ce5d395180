"""attention in CUDA C++: which kernels run, on which tiles."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from kernels.attention.cuda_tiles import (
    WIDEST,
    CudaTile,
    forward_tile,
    key_tile,
    packs,
    query_tile,
    shared_layout,
    width_block,
)
from kernels.attention.gpu_tiles import split_count
from kernels.attention.op import ATTENTION, SCALED_DOT_PRODUCT_ATTENTION, ScaledDotProductAttentionProblem
from kernels.attention.problem import AttentionProblem
from kernels.attention.relative import t5_buckets
from kernels.attention.scaled_dot_product import through_attention
from kernels.op import Implementation
from kernels.random import drop_threshold
from kernels.runtime.cuda_source import storage
from kernels.runtime.cupy_gpu import (
    DTYPES,
    computed_dtype,
    contiguous,
    dtype_name,
    empty,
    empty_results,
    from_host,
    index_type,
    launch,
    element_strides,
    target_of,
    types,
    vector_of,
    zero_gradients,
    zeros,
)
from kernels.runtime.row_tiles import power_of_two

#: Warps of a block of the kernels that go over rows or places alone.
WARPS = 8
#: Blocks that share the sum over a bias that broadcasts, at most.
CHUNKS = 64


class _Call:
    """One call: its arrays, and what its kernels are told of them."""

    def __init__(self, p: AttentionProblem, *inputs: Any, grad: Any = None) -> None:
        self.p, self.grad = p, grad
        self.query, self.key, self.value, self.mask, self.bias, lengths, self.table, self.seed = inputs
        self.lengths = None if lengths is None else contiguous(lengths.astype("int64", copy=False))
        self.dtype = dtype_name(self.query)
        self.wide = computed_dtype(self.dtype)
        self.itemsize = self.query.dtype.itemsize
        self.batch, self.heads, self.queries, self.keys = p.score_shape
        self.widths = p.query.shape[3], p.value.shape[3]
        self.target = target_of(self.query)
        self.limit, self.places = p.relative_limit, None
        if p.relative_kind == "t5":
            # Beyond the largest distance that there is, or that T5 tells apart, nothing changes.
            self.limit = min(self.limit, self.queries + self.keys)
            places = _buckets(self.limit, p.relative_limit, self.table.shape[0], p.bidirectional)
            self.places = from_host(places, self.query)
        elif p.relative_kind == "alibi":
            self.limit, self.places = -1, from_host(np.zeros(1, np.int32), self.query)
        self.term = self._term()

    def _term(self) -> Any:
        """The relative term as the kernels read it, 4-d."""
        kind, table = self.p.relative_kind, self.table
        if kind in ("t5", "alibi"):
            heads, count = self.heads, self.places.size
            term = empty((1, heads, 1, count), self.wide)
            steps = element_strides(table if kind == "t5" else table.reshape(1, -1))
            self.launch_sums(
                "take_rows", heads * count, table, self.places, term, heads, count, *steps, index=(table, term)
            )
            return term
        if kind == "shaw":
            rows = table.shape[0]
            term = empty((self.batch, self.heads, self.queries, rows), self.wide)
            tile = query_tile(self.queries, self.widths[0], self.itemsize)
            blocks = _blocks(rows, tile.keys) * _blocks(self.queries, tile.queries) * self.batch * self.heads
            self.launch_shaw(
                "shaw_products", blocks, tile, self.query, table, term, self.heads, self.queries, self.widths[0], rows,
                *element_strides(self.query), *element_strides(table), float(self.p.score_scale), index=(term,),
            )  # fmt: skip
            return term
        return None

    def launch_sums(self, kernel: str, places: int, *arguments: Any, index: tuple[Any, ...], **more: int | str) -> None:
        """Run a kernel of sums.cu that has a thread for each of some places (or, with a grid of its own, `places`)."""
        constants = types(self.dtype) | {"RESULT": storage(self.dtype), "COLUMNS": 32, "WARPS": WARPS} | more
        blocks = places if kernel == "sum_queries" else _blocks(places, WARPS * 32)
        launch(
            "attention/sums.cu", kernel, (blocks,), (WARPS * 32,), *arguments,
            constants=constants | {"INDEX": index_type(*index)},
        )  # fmt: skip

    def launch_shaw(self, kernel: str, blocks: int, tile: CudaTile, *arguments: Any, index: tuple[Any, ...]) -> None:
        """Run a kernel of shaw.cu."""
        width = width_block(self.widths[0], self.itemsize)
        layout = shared_layout("shaw", tile, width, width, self.itemsize, self.itemsize)
        line = 16 // self.itemsize
        constants = types(self.dtype) | {
            "INDEX": index_type(self.query, self.table, *index),
            "BLOCK_M": tile.queries,
            "BLOCK_N": tile.keys,
            "WARPS": tile.warps,
            "WIDTH_E": width,
            "ALIGNED": int(vector_of(self.widths[0], self.query, self.table) == line),
            **dict(layout.constants),
        }
        launch(
            "attention/shaw.cu", kernel, (blocks,), (tile.warps * 32,), *arguments, constants=constants,
            shared_bytes=layout.size,
        )  # fmt: skip

    @property
    def width(self) -> int:
        """The larger of E and Ev."""
        return max(self.widths)

    def arrays(self) -> tuple[Any, ...]:
        """What the kernels read, in the order of their parameters behind `grad`."""
        return self.query, self.key, self.value, self.mask, self.bias, self.lengths, self.term, self.seed

    def sizes(self) -> tuple[int, ...]:
        """B, H, GROUP, L, S, E, EV."""
        return self.batch, self.heads, self.p.group, self.queries, self.keys, *self.widths

    def steps(self) -> tuple[int, ...]:
        """Strides of the arrays that have some, those of `grad` first when there is one."""
        given = (self.query, self.key, self.value, self.mask, self.bias, self.term)
        given = given if self.grad is None else (self.grad, *given)
        return tuple(s for a in given for s in ((0, 0, 0, 0) if a is None else element_strides(a)))

    def numbers(self) -> tuple[float | int, ...]:
        """scale, cap, left, right, from_end, limit, wide, threshold, kept."""
        p, most = self.p, self.queries + self.keys
        vector = 16 // max(self.itemsize, 4)
        wide = sum(
            bit for bit, array in ((1, self.mask), (2, self.bias))
            if array is not None and vector_of(self.keys, array) >= vector
        ) + (4 if self.keys % vector == 0 else 0)  # fmt: skip
        left, right = (min(side, most) for side in p.reach)
        return (
            float(p.score_scale), float(p.softcap or 0.0), left, right, int(p.from_end), self.limit, wide,
            drop_threshold(p.dropout_p), float(p.kept),
        )  # fmt: skip

    def launch(
        self, kernel: str, blocks: int, tile: CudaTile, before: tuple[Any, ...], results: tuple[Any, ...],
        sizes: tuple[int, ...], result: str,
    ) -> None:  # fmt: skip
        """Run one of the kernels that make scores.

        Args:
            kernel: its name, and that of its file.
            blocks: how many.
            tile: its tile.
            before: arrays behind `seed`.
            results: what it writes.
            sizes: numbers behind EV.
            result: dtype of the rows that it writes.
        """
        p = self.p
        width_e, width_v = (width_block(w, self.itemsize) for w in self.widths)
        size = 8 if result == "float64" else 4 if result == "float32" else 2
        layout = shared_layout(kernel, tile, width_e, width_v, self.itemsize, size)
        table = self.table if p.relative_kind == "shaw" else None
        rows = ((self.widths[0], self.query, self.key, table), (self.widths[1], self.value, self.grad))
        line = 16 // self.itemsize
        extras = p.dropout_p > 0 or any(given is not None for given in (p.bias, p.softcap, p.relative_kind))
        constants = types(self.dtype) | {
            "RESULT": storage(result),
            "INDEX": index_type(self.grad, *self.arrays(), *before, *results),
            "BLOCK_M": tile.queries,
            "BLOCK_N": tile.keys,
            "WARPS": tile.warps,
            "BLOCKS": tile.blocks,
            "WIDTH_E": width_e,
            "WIDTH_V": width_v,
            "ALIGNED": int(all(vector_of(width, *given) == line for width, *given in rows)),
            "HIDES": int(p.hides or extras),
            "HAS_MASK": int(self.mask is not None),
            "EXTRAS": int(extras),
            **dict(layout.constants),
        }
        incoming = () if self.grad is None else (self.grad,)
        launch(
            f"attention/{kernel}.cu", kernel, (blocks,), (tile.warps * 32,), *incoming, *self.arrays(), *before,
            *results, *self.sizes(), *sizes, *self.steps(), *self.numbers(), constants=constants,
            shared_bytes=layout.size,
        )  # fmt: skip


def _blocks(count: int, size: int) -> int:
    return -(-count // size)


@functools.lru_cache(maxsize=32)
def _buckets(limit: int, most: int, buckets: int, bidirectional: bool) -> np.ndarray[Any, Any]:
    """T5's bucket of each distance from -limit to limit, int32."""
    return t5_buckets(np.arange(-limit, limit + 1), buckets, bidirectional, most).astype(np.int32)


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
    call = _Call(p, query, key, value, mask, bias, lengths, relative, seed)
    batch, heads, queries, keys = p.score_shape
    packed = packs(queries, p.group)
    rows, sharing = (queries * p.group, heads // p.group) if packed else (queries, heads)
    tile = forward_tile(rows, call.width, call.itemsize)
    blocks = _blocks(rows, tile.queries) * batch * sharing
    splits = split_count(blocks, keys, call.target)
    out = empty((batch, heads, queries, call.widths[1]), call.dtype)
    lse = empty((batch, heads, queries), call.wide) if p.results()[1] is not None else None
    parts, part_lse = out, lse
    if splits > 1:
        parts, part_lse = empty((splits, *out.shape), call.wide), empty((splits, *out.shape[:3]), call.wide)
    chunk = tile.keys * _blocks(_blocks(keys, tile.keys), splits)
    call.launch(
        "attention_forward", blocks * splits, tile, (), (parts, part_lse), (chunk, splits, int(packed)),
        call.wide if splits > 1 else call.dtype,
    )  # fmt: skip
    if splits > 1:
        rows = batch * heads * queries
        launch(
            "attention/join_splits.cu", "join_splits", (_blocks(rows, WARPS),), (WARPS * 32,), parts, part_lse, out, lse,
            rows, call.widths[1], splits,
            constants=types(call.dtype) | {"INDEX": index_type(parts), "WARPS": WARPS},
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
    call = _Call(p, query, key, value, mask, bias, lengths, relative, seed, grad=grad_output)
    batch, heads, queries, keys = p.score_shape
    lse = contiguous(lse)
    delta = _row_products(call, output, grad_lse)
    before = (lse, delta)
    wants = p.needs_grad
    grad_query = grad_key = grad_value = grad_bias = grad_table = None
    tile = query_tile(queries, call.width, call.itemsize)
    # A bias as large as the scores gets its gradient where the queries get theirs.
    whole = wants[4] and p.bias is not None and p.bias.shape == p.score_shape
    if whole:
        grad_bias = zeros(p.score_shape, call.dtype)
    if wants[0] or wants[6] or whole:
        shaw = p.relative_kind == "shaw"
        grad_query, grad_term = empty(p.query.shape, call.dtype), None
        if call.term is not None and (wants[6] or shaw):
            count = 1 if p.relative_kind == "alibi" else 2 * call.limit + 1
            grad_term = zeros((batch, heads, queries, count), call.wide)
        table, steps = (relative, element_strides(relative)) if shaw else (None, (0, 0))
        call.launch(
            "query_gradient", _blocks(queries, tile.queries) * batch * heads, tile, (*before, table),
            (grad_query, grad_term, grad_bias), steps, call.dtype,
        )  # fmt: skip
        if wants[6]:
            grad_table = _table_gradient(call, grad_term)
    if wants[1] or wants[2]:
        grad_key, grad_value = empty(p.key.shape, call.dtype), empty(p.value.shape, call.dtype)
        of_keys = key_tile(queries, call.width, call.itemsize)
        call.launch(
            "key_gradients", _blocks(keys, of_keys.keys) * batch * p.key.shape[1], of_keys, before,
            (grad_key, grad_value), (), call.dtype,
        )  # fmt: skip
    if wants[4] and not whole and p.bias is not None:
        grad_bias = _bias_gradient(call, tile, before)
    found = (grad_query, grad_key, grad_value, None, grad_bias, None, grad_table, None)
    return tuple(g if wanted else None for g, wanted in zip(found, wants))


def _row_products(call: _Call, output: Any, grad_lse: Any) -> Any:
    """delta (B, H, L) of the kernels."""
    batch, heads, queries, _ = call.p.score_shape
    delta = empty((batch, heads, queries), call.wide)
    width = call.widths[1]
    line = 16 // call.itemsize
    aligned = vector_of(width, call.grad, output) == line
    lanes = min(power_of_two(_blocks(width, line if aligned else 1)), 32)
    constants = types(call.dtype) | {
        "INDEX": index_type(call.grad, output, grad_lse, delta), "LANES": lanes, "WARPS": WARPS, "ALIGNED": int(aligned),
    }  # fmt: skip
    launch(
        "attention/row_products.cu", "row_products", (_blocks(delta.size, WARPS * 32 // lanes),), (WARPS * 32,),
        call.grad, output, grad_lse, delta, batch, heads, queries, width, *element_strides(call.grad), *element_strides(output),
        *((0, 0, 0) if grad_lse is None else element_strides(grad_lse)), constants=constants,
    )  # fmt: skip
    return delta


def _bias_gradient(call: _Call, tile: CudaTile, before: tuple[Any, ...]) -> Any:
    """The gradient of a bias that broadcasts, in its own shape."""
    p = call.p
    assert p.bias is not None
    shape: tuple[int, ...] = p.bias.shape
    sums = [mine == 1 for mine in shape]
    blocks = [1, 1, _blocks(shape[2], tile.queries), _blocks(shape[3], tile.keys)]
    of_scores = [call.batch, call.heads, _blocks(call.queries, tile.queries), _blocks(call.keys, tile.keys)]
    tiles = shape[0] * shape[1] * blocks[2] * blocks[3]
    summed = 1
    for count, is_sum in zip(of_scores, sums):
        summed *= count if is_sum else 1
    # As many blocks as fill the GPU twice, each with something to do.
    chunks = max(1, min(summed, CHUNKS, _blocks(2 * call.target.multiprocessors, tiles)))
    parts = empty((chunks, *shape), call.wide)
    call.launch(
        "bias_gradient", tiles * chunks, tile, before, (parts,), (*shape, chunks), call.wide
    )  # fmt: skip
    return _sum_parts(call, parts, shape)


def _sum_parts(call: _Call, parts: Any, shape: tuple[int, ...], factor: float = 1.0) -> Any:
    """factor * the sum of `parts` over their first dimension, in turn."""
    out = empty(shape, call.dtype)
    call.launch_sums("sum_parts", out.size, parts, out, out.size, parts.shape[0], factor, index=(parts,))
    return out


def _table_gradient(call: _Call, grad_term: Any) -> Any:
    """The gradient of the relative term's table, from that of its numbers (B, H, L, C)."""
    batch, heads, queries, count = grad_term.shape
    if call.p.relative_kind == "shaw":
        tile = query_tile(queries, call.widths[0], call.itemsize)
        chunk, chunks = _chunks(batch * heads * queries, tile.queries)
        parts = empty((chunks, *call.table.shape), call.wide)
        call.launch_shaw(
            "shaw_gradient", _blocks(count, tile.keys) * chunks, tile, call.query, grad_term, parts, batch, heads,
            queries, call.widths[0], count, chunk, *element_strides(call.query), index=(grad_term, parts),
        )  # fmt: skip
        return _sum_parts(call, parts, call.table.shape, float(call.p.score_scale))
    alibi = call.p.relative_kind == "alibi"
    columns = 1 if alibi else 32
    chunk, chunks = _chunks(batch * queries, WARPS * 32 // columns)
    parts = empty((chunks, heads, count), call.wide)
    call.launch_sums(
        "sum_queries", _blocks(count, columns) * heads * chunks, grad_term, parts, batch, heads, queries, count, chunk,
        index=(grad_term, parts), COLUMNS=columns,
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
    length = least * _blocks(_blocks(count, least), CHUNKS)
    return length, _blocks(count, length)


def _reasons(p: AttentionProblem) -> list[str]:
    found = []
    for name, width in (("query", p.query.shape[3]), ("value", p.value.shape[3])):
        if not 1 <= width <= WIDEST:
            found.append(f"{name} has {width} columns; it takes 1 to {WIDEST}")
    return found


def _reasons_torchs(p: ScaledDotProductAttentionProblem) -> list[str]:
    return _reasons(p.attention)


def _describe(p: AttentionProblem) -> str:
    return "tiles of keys, softmax as they stream by"


def _describe_torchs(p: ScaledDotProductAttentionProblem) -> str:
    return _describe(p.attention)


Implementation(ATTENTION, "cupy", attention, attention_backward, dtypes=DTYPES, reasons=_reasons, describe=_describe)
Implementation(
    SCALED_DOT_PRODUCT_ATTENTION, "cupy", *through_attention(attention, attention_backward), dtypes=DTYPES,
    reasons=_reasons_torchs, describe=_describe_torchs,
)  # fmt: skip
