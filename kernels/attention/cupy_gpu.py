"""attention in CUDA C++: which kernels run, on which tiles."""

from __future__ import annotations

from typing import Any

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
_TERMS = {None: 0, "shaw": 1, "t5": 1, "alibi": 2}


class _Call:
    """One call: its arrays, and what its kernels are told of them."""

    def __init__(self, p: AttentionProblem, *inputs: Any, grad: Any = None) -> None:
        self.p, self.grad = p, grad
        self.query, self.key, self.value, self.mask, self.bias, lengths, self.term, self.seed = inputs
        self.lengths = None if lengths is None else contiguous(lengths)
        self.dtype = dtype_name(self.query)
        self.wide = computed_dtype(self.dtype)
        self.itemsize = self.query.dtype.itemsize
        self.batch, self.heads, self.queries, self.keys = p.score_shape
        self.widths = p.query.shape[3], p.value.shape[3]
        self.target = target_of(self.query)

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
        """scale, cap, left, right, from_end, limit, threshold, kept."""
        p, most = self.p, self.queries + self.keys
        left, right = (min(side, most) for side in p.reach)
        return (
            float(p.score_scale), float(p.softcap or 0.0), left, right, int(p.from_end), p.relative_limit,
            drop_threshold(p.dropout_p), float(p.kept),
        )  # fmt: skip

    def launch(
        self, kernel: str, blocks: int, tile: CudaTile, before: tuple[Any, ...], results: tuple[Any, ...],
        sizes: tuple[int, ...], result: str, **more: int | str,
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
            **more: constants of its own.
        """
        p = self.p
        width_e, width_v = (width_block(w, self.itemsize) for w in self.widths)
        size = 8 if result == "float64" else 4 if result == "float32" else 2
        layout = shared_layout(kernel, tile, width_e, width_v, self.itemsize, size)
        rows = ((self.widths[0], self.query, self.key), (self.widths[1], self.value, self.grad))
        line = 16 // self.itemsize
        vector = 16 // max(self.itemsize, 4)
        constants = types(self.dtype) | {
            "RESULT": storage(result),
            "TERMS": storage(self.wide if self.term is None else dtype_name(self.term)),
            "LENGTHS": storage("int64" if self.lengths is None else dtype_name(self.lengths)),
            "INDEX": index_type(self.grad, *self.arrays(), *before, *results),
            "BLOCK_M": tile.queries,
            "BLOCK_N": tile.keys,
            "WARPS": tile.warps,
            "BLOCKS": tile.blocks,
            "WIDTH_E": width_e,
            "WIDTH_V": width_v,
            "ALIGNED": int(all(vector_of(width, *given) == line for width, *given in rows)),
            "MASK_WIDE": int(self.mask is not None and vector_of(self.keys, self.mask) >= vector),
            "BIAS_WIDE": int(self.bias is not None and vector_of(self.keys, self.bias) >= vector),
            "HIDES": int(p.hides),
            "HAS_MASK": int(self.mask is not None),
            "HAS_BIAS": int(self.bias is not None),
            "HAS_CAP": int(p.softcap is not None),
            "TERM": _TERMS[p.relative_kind],
            "DROPOUT": int(p.dropout_p > 0),
            **dict(layout.constants),
            **more,
        }
        incoming = () if self.grad is None else (self.grad,)
        launch(
            f"attention/{kernel}.cu", kernel, (blocks,), (tile.warps * 32,), *incoming, *self.arrays(), *before,
            *results, *self.sizes(), *sizes, *self.steps(), *self.numbers(), constants=constants,
            shared_bytes=layout.size,
        )  # fmt: skip


def _blocks(count: int, size: int) -> int:
    return -(-count // size)


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
        "attention_forward", blocks * splits, tile, (), (parts, part_lse), (chunk, splits),
        call.wide if splits > 1 else call.dtype, PACKED=int(packed),
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
        grad_query = empty(p.query.shape, call.dtype)
        call.launch(
            "query_gradient", _blocks(queries, tile.queries) * batch * heads, tile, before,
            (grad_query, None, grad_bias), (), call.dtype, WRITES_BIAS=int(whole),
        )  # fmt: skip
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
        "bias_gradient", tiles * chunks, tile, before, (parts,), (*shape, chunks), call.wide,
        **{f"SUM_{name}": int(is_sum) for name, is_sum in zip("BHIJ", sums)},
    )  # fmt: skip
    return _sum_parts(parts, shape, call.dtype)


def _sum_parts(parts: Any, shape: tuple[int, ...], dtype: str, factor: float = 1.0) -> Any:
    """factor * the sum of `parts` over their first dimension, in turn."""
    out = empty(shape, dtype)
    constants = types(dtype) | {"RESULT": storage(dtype), "INDEX": index_type(parts), "WARPS": WARPS}
    launch(
        "attention/sums.cu", "sum_parts", (_blocks(out.size, WARPS * 32),), (WARPS * 32,), parts, out, out.size,
        parts.shape[0], factor, constants=constants,
    )  # fmt: skip
    return out


def _reasons(p: AttentionProblem) -> list[str]:
    found = []
    for name, width in (("query", p.query.shape[3]), ("value", p.value.shape[3])):
        if not 1 <= width <= WIDEST:
            found.append(f"{name} has {width} columns; it takes 1 to {WIDEST}")
    if p.relative_kind is not None:
        found.append("it has no relative terms")
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
