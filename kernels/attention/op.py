"""The ops attention and scaled_dot_product_attention, and the public functions in front of them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kernels import arrays, checks
from kernels.arrays import ArraySpec
from kernels.attention.problem import (
    AttentionProblem,
    attention_results,
    check_broadcast,
    check_inputs,
    check_probability,
)
from kernels.attention.relative import RelativeALiBi, RelativeShaw, RelativeT5
from kernels.call import call
from kernels.dropout.op import as_seed
from kernels.ones import Ones
from kernels.op import Op, Problem

ATTENTION = Op(
    "attention",
    AttentionProblem,
    family=__package__,
    results=("output", "lse"),
    differentiable=("query", "key", "value", "bias", "relative"),
    differentiable_results=2,
)


# ----- any number of leading dimensions, as four -------------------------------------------------------------------


#: What (L, E) and (B, L, E) lack of (B, H, L, E), of query, key and value, by the number of dimensions.
_ONES = {2: Ones((0, 1), 3), 3: Ones((1,), 3)}


def _four(array: Any, rank: int) -> Any:
    """(..., H, L, E) of more than four dimensions as (B, H, L, E); what is no such array is left as it is."""
    many = rank > 4 and getattr(array, "ndim", 0) == rank and hasattr(array, "reshape")
    return array.reshape(-1, *array.shape[-3:]) if many else array


def _four_scores(op: str, name: str, array: Any, query: Any) -> Any:
    """A mask or bias that broadcasts to the scores of a query of any rank, as 4-d; not expanded."""
    rank = getattr(query, "ndim", 4)
    kind = arrays.kind(array)
    if kind is None or kind == "numpy":
        array = arrays.plain(array)
    if arrays.kind(array) is None:
        return array  # The call says what is wrong.
    if array.ndim > rank:
        checks.fail(op, name, f"must have at most query's {rank} dimensions", tuple(array.shape))
    # Leading dimensions of size 1; for (B, L, E) the heads come second.
    array = array.reshape((1,) * (rank - array.ndim) + tuple(array.shape)) if array.ndim < rank else array
    if rank <= 4:
        return array if rank == 4 else _ONES[rank].put_in(array)
    batch = tuple(array.shape[:-3])
    if batch != tuple(query.shape[:-3]) and any(size != 1 for size in batch):
        if any(mine != 1 and mine != theirs for mine, theirs in zip(batch, query.shape)):
            checks.fail(op, name, f"must broadcast to query's batch dimensions {tuple(query.shape[:-3])}", batch)
        array = _expand(array, (*query.shape[:-3], *array.shape[-3:]))
    return array.reshape(-1, *array.shape[-3:])


def _expand(array: Any, shape: tuple[int, ...]) -> Any:
    """`array` broadcast to a shape, without a copy."""
    kind = arrays.kind(array)
    return array.expand(shape) if kind == "torch" else sys.modules[kind or "numpy"].broadcast_to(array, shape)


def _back(result: Any, query: Any) -> Any:
    """A result (B, H, L, ...) with the leading dimensions of a query of more than four."""
    return result.reshape(*query.shape[:-2], *result.shape[2:])


def _rank(op: str, query: Any, key: Any, value: Any) -> int | None:
    """How many dimensions the three have; None when query has none to tell."""
    rank: int | None = getattr(query, "ndim", None)
    if not isinstance(rank, int):  # None, or what a class has in its place
        return None
    if rank > 1 and rank == getattr(key, "ndim", rank) == getattr(value, "ndim", rank):
        return rank
    if rank < 2:
        checks.fail(op, "query", "must have shape (..., L, E)", f"{rank} dimensions {tuple(query.shape)}")
    for name, array in (("key", key), ("value", value)):
        if getattr(array, "ndim", rank) != rank and arrays.kind(arrays.from_dlpack(array)) is not None:
            rule = f"must have as many dimensions as query ({rank})"
            checks.fail(op, name, rule, f"{array.ndim} dimensions {tuple(array.shape)}")
    return rank


# ----- attention ---------------------------------------------------------------------------------------------------


def attention(
    query: Any,
    key: Any,
    value: Any,
    *,
    mask: Any = None,
    bias: Any = None,
    causal: str | None = None,
    window: Any = None,
    softcap: float | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: Any = None,
    lengths: Any = None,
    relative: Any = None,
    return_lse: bool = False,
    device: Any = None,
    backend: str | None = None,
) -> Any:
    """Softmax attention with everything that models put into its scores, in memory that grows with the lengths alone.

    For query i and key j of a row and head the score is made in this order::

        scale * (query_i . key_j)  ->  + bias  + relative term  ->  softcap * tanh(score / softcap)  ->  mask

    where mask stands for everything that hides a key: `mask`, `causal`, `window`, `lengths`, and a bias of -inf. The
    output is the average of the values weighted by the softmax of the scores over the keys; dropout falls on these
    weights. A hidden key counts nothing, whatever it holds: NaN in it reaches no output and no gradient of a query that
    does not see it. A query that sees no key has output 0, log-sum-exp -inf and gradient 0. The softmax is taken while
    the keys stream by (Milakov and Gimelshein, 2018; Rabe and Staats, 2021; Dao et al., FlashAttention, 2022); backward
    makes the weights again from the log-sum-exp, so the scores are never in memory, in training neither.

    Args:
        query: (L, E), (B, L, E), (B, H, L, E) or (..., H, L, E); any strides.
        key: (..., S, E), as many dimensions and the same batch as query. Its number of heads divides query's: head h of
            the queries uses head ``h // (H / heads of key)`` (grouped-query attention).
        value: (..., S, Ev), as key.
        mask: bool, broadcasts to (..., H, L, S); True: the query sees the key.
        bias: broadcasts to (..., H, L, S), query's dtype; added to the scores. Its gradient has its own shape: summed
            where it broadcasts, always in the same order. -inf hides the key.
        causal: None; "top_left": query i sees keys j <= i; "bottom_right": the last query stands at the last key (of
            the row, see `lengths`), as when the queries continue a cache: query i sees j <= i + S - L.
        window: how far a query sees from where it stands, ends included: an int w for i - w <= j <= i + w, or (left,
            right), each an int or None for no limit.
        softcap: above 0, or None.
        scale: any number, zero and negative too; None for 1 / sqrt(E).
        dropout_p: probability of dropping a weight, in [0, 1]; the others are scaled by 1 / (1 - p). 1 gives 0.
        seed: int of 64 bits, or a 0-d int64 array of query's kind: of dropout's mask, which is a function of the seed
            and of the element's index in (B, H, L, S) alone (`kernels.random`). None draws one from torch's generator
            for tensors, else from NumPy's.
        lengths: (B,) int64 or int32, each in [0, S]: the row has only its first so many keys and values, exactly as if
            the others were not there; they are never read.
        relative: `RelativeShaw`, `RelativeT5` or `RelativeALiBi`: a term of the distance, with a trainable table.
        return_lse: also return the log-sum-exp of every query's scores, which is differentiable too.
        device: "cpu", "cuda" or "cuda:N"; by default where query is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        (..., H, L, Ev), contiguous, query's kind of array and dtype; with return_lse a tuple of that and (..., H, L).

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above. Of values of lengths on a GPU a later call
            raises it, or `check_device_errors`, and this call takes the nearest length that there is.
        BackendError: the wanted backend cannot run this call.
    """
    op = "attention"
    rank = _rank(op, query, key, value)
    if rank is None:
        query, key, value = map(arrays.from_dlpack, (query, key, value))
        rank = _rank(op, query, key, value) or 4  # Of what is no array, the call says so.
    kind, table, limit, bidirectional = (None, None, 0, False) if relative is None else _relative_parts(op, relative)
    if type(dropout_p) is float and dropout_p == 0:
        seed = None
    else:
        seed = as_seed(op, seed, query) if check_probability(op, "dropout_p", dropout_p) > 0 else None
    if lengths is not None and rank != 4:
        lengths = _flat_lengths(op, lengths, rank)
    if mask is not None:
        mask = _four_scores(op, "mask", mask, query)
    if bias is not None:
        bias = _four_scores(op, "bias", bias, query)
    three = (query, key, value) if rank <= 4 else (_four(query, rank), _four(key, rank), _four(value, rank))
    inputs = (*three, mask, bias, lengths, table, seed)
    attributes = (causal, window, softcap, scale, dropout_p, kind, limit, bidirectional, return_lse)
    result = call(ATTENTION, inputs, attributes, device, backend, _ONES.get(rank))
    if rank <= 4:
        return result
    return tuple(_back(each, query) for each in result) if return_lse else _back(result, query)


def _flat_lengths(op: str, lengths: Any, rank: int) -> Any:
    """Lengths in the batch dimensions of arrays of a rank, as (B,)."""
    lengths = arrays.from_dlpack(lengths)
    if rank == 3 or arrays.kind(lengths) is None:
        return lengths
    if lengths.ndim != max(rank - 3, 0):
        checks.fail(op, "lengths", "must have query's batch dimensions", f"shape {tuple(lengths.shape)}")
    return lengths.reshape(-1)


def _relative_parts(op: str, relative: Any) -> tuple[str | None, Any, int | None, bool]:
    """(kind, table, limit, bidirectional) of a relative term."""
    if isinstance(relative, RelativeShaw):
        return "shaw", relative.table, relative.clip, False
    if isinstance(relative, RelativeT5):
        return "t5", relative.table, relative.max_distance, relative.bidirectional
    if isinstance(relative, RelativeALiBi):
        return "alibi", relative.slopes, 0, False
    checks.fail_type(op, "relative", "must be a RelativeShaw, RelativeT5 or RelativeALiBi", relative)


# ----- torch's function --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScaledDotProductAttentionProblem(Problem):
    """scaled_dot_product_attention without dropout, checked: `attention` with a mask that is a bool mask or a bias."""

    query: ArraySpec
    key: ArraySpec
    value: ArraySpec
    attn_mask: ArraySpec | None
    is_causal: bool
    scale: float | None

    @classmethod
    def check(
        cls, query: ArraySpec, key: ArraySpec, value: ArraySpec, attn_mask: ArraySpec | None, is_causal: Any, scale: Any
    ) -> ScaledDotProductAttentionProblem:
        """See :func:`scaled_dot_product_attention` for the rules."""
        op = "scaled_dot_product_attention"
        check_inputs(op, query, key, value)
        if attn_mask is not None:
            checks.dtype(op, "attn_mask", attn_mask, ("bool", query.dtype))
            check_broadcast(op, "attn_mask", attn_mask, query, key)
        scale = None if scale is None else checks.finite(op, "scale", scale)
        return cls(query, key, value, attn_mask, checks.boolean(op, "is_causal", is_causal), scale)

    @cached_property
    def attention(self) -> AttentionProblem:
        """The same as a problem of `attention`."""
        floating = self.attn_mask is not None and self.attn_mask.floating
        mask, bias = (None, self.attn_mask) if floating else (self.attn_mask, None)
        wanted = self.needs_grad
        if wanted:
            wanted = (*wanted[:3], False, wanted[3], False, False, False)
        return AttentionProblem(
            self.query, self.key, self.value, mask, bias, None, None, None, "top_left" if self.is_causal else None,
            None, None, self.scale, 0.0, None, 0, False, False, needs_grad=wanted,
        )  # fmt: skip

    @cached_property
    def empty(self) -> bool:
        """Whether the output has no element; asked at every call, hence kept."""
        return super().empty

    def results(self) -> tuple[ArraySpec | None, ...]:
        """The output, and the log-sum-exp where backward needs it."""
        return attention_results(self.query, self.value, self.trains)

    def gradients(self) -> tuple[ArraySpec | None, ...]:
        """Contiguous; of the mask where it is numbers."""
        mask = self.attn_mask if self.attn_mask is not None and self.attn_mask.floating else None
        return tuple(None if s is None else s.like(s.shape) for s in (self.query, self.key, self.value, mask))

    def saved(self) -> tuple[str, ...]:
        """The inputs, the output and the log-sum-exp."""
        return "query", "key", "value", "attn_mask", "output", "lse"

    def flops(self) -> int:
        """Two for every multiply-add, of the pairs that causality leaves."""
        return self.attention.flops()


SCALED_DOT_PRODUCT_ATTENTION = Op(
    "scaled_dot_product_attention",
    ScaledDotProductAttentionProblem,
    family=__package__,
    results=("output", "lse"),
)


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    device: Any = None,
    backend: str | None = None,
) -> Any:
    """torch.nn.functional.scaled_dot_product_attention, argument for argument, in memory that grows with L and S alone.

    Beyond torch: a query that sees no key has output and gradients 0 on every path, and NaN in a key or value that a
    query does not see does not reach it; but where automatic choice leaves a causal call on a GPU to torch's kernels
    (`explain` says so), these multiply what is not finite in such a value by 0. `attention` has more to offer.

    Args:
        query: (..., L, E); any strides.
        key: (..., S, E); its leading dimensions broadcast with query's.
        value: (..., S, Ev), likewise.
        attn_mask: broadcasts to (..., L, S); bool (True: the query sees the key), or numbers of query's dtype that are
            added to the scores and may need a gradient. Not together with is_causal.
        dropout_p: probability of dropping a weight, in [0, 1], in effect always (there is no training flag); drawn
            with a seed from torch's generator for tensors, else NumPy's, as `attention` does it.
        is_causal: query i sees keys j <= i.
        scale: factor on the scores; None for 1 / sqrt(E).
        enable_gqa: query's heads (dimension -3) may be a multiple of those of key and value, which are then shared by
            groups of neighbouring heads.
        device: "cpu", "cuda" or "cuda:N"; by default where query is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        (..., L, Ev), contiguous, query's kind of array and dtype.

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above.
        BackendError: the wanted backend cannot run this call.
    """
    op = "scaled_dot_product_attention"
    checks.boolean(op, "enable_gqa", enable_gqa)
    if type(dropout_p) is not float or dropout_p != 0:
        dropout_p = check_probability(op, "dropout_p", dropout_p)
    if attn_mask is not None and checks.boolean(op, "is_causal", is_causal):
        checks.fail(op, "attn_mask", "must be None when is_causal is True", "both")
    query, key, value, added = _broadcast_leading(op, query, key, value, enable_gqa)
    rank = len(_shape(query)) or 4
    if attn_mask is not None:
        attn_mask = _four_scores(op, "attn_mask", attn_mask, query)
    given = (query, key, value) if rank <= 4 else (_four(query, rank), _four(key, rank), _four(value, rank))
    ones = _ONES.get(rank)
    if dropout_p == 0:
        inputs = (*given, attn_mask)
        result = call(SCALED_DOT_PRODUCT_ATTENTION, inputs, (is_causal, scale), device, backend, ones)
        return result[0] if added else result if rank <= 4 else _back(result, query)
    mask, bias = attn_mask, None
    if attn_mask is not None and arrays.kind(attn_mask) is not None and "float" in str(attn_mask.dtype):
        mask, bias = None, attn_mask
    everything = (*given, mask, bias, None, None, as_seed(op, None, query))
    causal = "top_left" if is_causal else None
    attributes = (causal, None, None, scale, dropout_p, None, 0, False, False)
    result = call(ATTENTION, everything, attributes, device, backend, ones)
    return result[0] if added else result if rank <= 4 else _back(result, query)


def _shape(array: Any) -> tuple[int, ...]:
    """The shape of an array; () of what is none, a class too, of which the call says so."""
    shape = getattr(array, "shape", ())
    return shape if isinstance(shape, tuple) else ()


def _broadcast_leading(op: str, query: Any, key: Any, value: Any, enable_gqa: bool) -> tuple[Any, Any, Any, bool]:
    """The three with as many dimensions and the same batch; heads of key and value may be fewer with `enable_gqa`.

    The last result says whether a batch dimension was added in front.
    """
    shape, of_key, of_value = _shape(query), _shape(key), _shape(value)
    if len(shape) == 4 or (len(shape) > 1 and not enable_gqa):
        # The usual case, and of a small call half the time.
        if shape[:-2] == of_key[:-2] == of_value[:-2] and len(shape) == len(of_key) == len(of_value):
            return query, key, value, False
    query, key, value = map(arrays.from_dlpack, (query, key, value))
    given = (("query", query), ("key", key), ("value", value))
    if any(arrays.kind(array) is None for _, array in given):
        return query, key, value, False  # The call says what is wrong.
    for name, array in given:
        if array.ndim < 2:
            checks.fail(op, name, "must have at least 2 dimensions", f"{array.ndim} dimensions {tuple(array.shape)}")
    grouped = enable_gqa and query.ndim >= 3
    # The heads take part in broadcasting unless they are grouped.
    kept = 3 if grouped else 2
    if grouped and (key.ndim < 3 or value.ndim < 3):
        checks.fail(op, "key", "must have heads (..., H, S, E) when enable_gqa is True", tuple(key.shape))
    leads = [tuple(array.shape[:-kept]) for _, array in given]
    if grouped and leads[0] == leads[1] == leads[2] and query.ndim == 3:
        return query[None], key[None], value[None], True
    if leads[0] == leads[1] == leads[2]:
        return query, key, value, False
    rank = max(map(len, leads))
    padded = [(1,) * (rank - len(lead)) + lead for lead in leads]
    common = tuple(next((s for s in sizes if s != 1), 1) for sizes in zip(*padded))
    for (name, array), lead in zip(given, padded):
        if any(mine != 1 and mine != theirs for mine, theirs in zip(lead, common)):
            checks.fail(op, name, f"must have leading dimensions that broadcast to {common}", tuple(array.shape))
    wide = tuple(_expand(array, (*common, *array.shape[-kept:])) for _, array in given)
    return wide[0], wide[1], wide[2], False
