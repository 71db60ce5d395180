"""Attention on the CPU: from a problem and arrays to the compiled kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.attention import backward_cpu, decode_backward_cpu, decode_cpu, forward_cpu
from kernels.attention.by_address import backward_by_address, by_address
from kernels.attention.layout import (
    NOTHING,
    Layout,
    Sizes,
    in_rows,
    layout_of,
    origin,
    panel_width,
    span_of,
    steps,
    unexpanded,
)
from kernels.attention.op import ATTENTION, SCALED_DOT_PRODUCT_ATTENTION, ScaledDotProductAttentionProblem
from kernels.attention.problem import AttentionProblem
from kernels.attention.relative import table_gradient
from kernels.attention.scaled_dot_product import through_attention
from kernels.attention.terms_cpu import DECODE_GRAIN, GRAIN, decodes, far, given_of
from kernels.attention.tiles import SEGMENT_KEYS
from kernels.op import Implementation
from kernels.runtime.by_address import Run
from kernels.runtime.numba_cpu import address, contiguous, empty, scratch, thread_count, threads_for, zeros

Array = np.ndarray[Any, Any]


def widened(*given: Array) -> tuple[Array, ...]:
    """Queries and keys with a last dimension of one zero in place of none: all scores are 0."""
    return tuple(np.zeros((*a.shape[:3], 1), a.dtype) for a in given)


def attention(
    p: AttentionProblem,
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    lengths: Array | None = None,
    relative: Array | None = None,
    seed: Array | None = None,
) -> tuple[Array | None, ...]:
    """output, lse."""
    batch, heads, queries, keys = p.score_shape
    dtype = query.dtype
    wants_lse = p.return_lse or p.trains
    out = empty((batch, heads, queries, p.value.shape[3]), dtype)
    lse = empty((batch, heads, queries), dtype) if wants_lse else None
    if keys == 0:
        out.fill(0)
        if lse is not None:
            lse.fill(-np.inf)
        return out, lse
    if p.query.shape[3] == 0:
        query, key = widened(query, key)
    query, key, value = in_rows(query), in_rows(key), in_rows(value)
    mask, bias = None if mask is None else unexpanded(mask), None if bias is None else unexpanded(bias)
    work = batch * heads * queries * keys * (query.shape[3] + value.shape[3])
    given = given_of(p, mask, bias, lengths, relative, seed)
    starts = [origin(array) for array in (query, key, value)]
    places = *map(address, starts), address(out), 0 if lse is None else address(lse)
    if decodes(p):
        _decode(p, layout_of(p, query, key, value, mask, bias, "decode"), given, work, places, dtype)
        return out, lse
    layout = layout_of(p, query, key, value, mask, bias, "forward")
    items = batch * heads * -(-queries // panel_width(dtype))
    parts = min(threads_for(work, GRAIN), items)
    forward_cpu.forward_parts(
        parts, parts, parts, layout.numbers, layout.factors, *given, *places, scratch(parts * layout.work, dtype),
        scratch(parts * layout.offsets, np.int64),
    )  # fmt: skip
    return out, lse


def _decode(
    p: AttentionProblem, layout: Layout, given: tuple[Array, ...], work: int, places: tuple[int, ...], dtype: Any
) -> None:
    """Of few queries; places: addresses of query, key, value, output and log-sum-exp (or 0)."""
    units = p.query.shape[0] * p.key.shape[1]
    segments = -(-p.key.shape[2] // SEGMENT_KEYS)
    items = units * segments
    room = scratch(items * layout.work, dtype)
    decode_cpu.decode_segments(
        items, threads_for(work, DECODE_GRAIN), segments, layout.numbers, layout.factors, *given, *places[:3], room
    )
    decode_cpu.join_segments(units, 1, segments, layout.numbers, room, *places[3:])


def attention_backward(
    p: AttentionProblem,
    grad_output: Array | None,
    grad_lse: Array | None = None,
    query: Any = None,
    key: Any = None,
    value: Any = None,
    mask: Array | None = None,
    bias: Array | None = None,
    lengths: Array | None = None,
    relative: Array | None = None,
    seed: Array | None = None,
    output: Any = None,
    lse: Any = None,
) -> tuple[Array | None, ...]:
    """Gradients of query, key, value, mask, bias, lengths, relative, seed."""
    batch, heads, queries, keys = p.score_shape
    dtype = query.dtype
    if keys == 0:
        return _zero_gradients(p)
    found = _gradients_of_arrays(p, dtype)
    if grad_output is None:
        grad_output = zeros(output.shape, dtype)
    if p.query.shape[3] == 0:
        query, key = widened(query, key)
    query, key, value = in_rows(query), in_rows(key), in_rows(value)
    output, grad_output = in_rows(output), in_rows(grad_output)
    mask = None if mask is None else unexpanded(mask)
    wants_bias, wants_relative = p.needs_grad[4], p.needs_grad[6]
    if bias is not None:
        # Every element of a bias that wants its gradient gets its own.
        bias = contiguous(bias) if wants_bias else unexpanded(bias)
    nothing = NOTHING[p.query.dtype]
    given = given_of(p, mask, bias, lengths, relative, seed)
    alive = [origin(query), origin(key), origin(value), origin(output), contiguous(lse), origin(grad_output)]
    beside = None if grad_lse is None else contiguous(grad_lse)
    more = np.array((*steps(output), *steps(grad_output)), np.int64)
    arrays = (*map(address, alive), 0 if beside is None else address(beside), more)
    if decodes(p):
        layout = layout_of(p, query, key, value, mask, bias, "decode backward")
        grad_bias, grad_relative = _decode_backward(p, layout, given, arrays, found)
        return (*_as_wanted(p, found), None, grad_bias, None, grad_relative, None)
    layout = layout_of(p, query, key, value, mask, bias, "backward")
    grad_bias = zeros(p.bias.shape, dtype) if wants_bias and p.bias is not None else None
    grad_distances = grad_table = nothing
    if wants_relative and p.relative_kind == "shaw":
        rows, width = 2 * p.relative_limit + 1, panel_width(dtype)
        grad_table = zeros((batch * p.key.shape[1], rows, -(-query.shape[3] // width) * width), dtype)
    elif wants_relative:
        grad_distances = zeros((batch, heads, span_of(p)[0]), dtype)
    batch_units, head_units = (batch, p.key.shape[1])
    if grad_bias is not None:
        # What shares a slice of the bias is one unit.
        batch_units = batch_units if grad_bias.shape[0] > 1 else 1
        head_units = head_units if grad_bias.shape[1] > 1 else 1
    work = 2 * batch * heads * queries * keys * (query.shape[3] + value.shape[3])
    parts = min(threads_for(work, GRAIN), batch_units * head_units)
    wanted = np.array([g is not None for g in (*found, grad_bias)] + [wants_relative], np.int64)
    backward_cpu.backward_parts(
        parts, parts, parts, layout.numbers, layout.factors, *given, *arrays, wanted,
        *(0 if g is None else address(g) for g in found), nothing if grad_bias is None else grad_bias.reshape(-1),
        grad_distances.reshape(-1), grad_table.reshape(-1), scratch(parts * layout.work, dtype),
        scratch(parts * layout.offsets, np.int64),
    )  # fmt: skip
    return (*_as_wanted(p, found), None, grad_bias, None, _table_gradient(p, grad_distances, grad_table), None)


def _decode_backward(
    p: AttentionProblem, layout: Layout, given: tuple[Array, ...], arrays: tuple[Any, ...],
    found: tuple[Array | None, ...],
) -> tuple[Array | None, Array | None]:  # fmt: skip
    """Fills in `found`, and returns the gradients of the bias and of the relative term's table."""
    batch, heads, queries, keys = p.score_shape
    dtype = np.dtype(p.query.dtype)
    nothing = NOTHING[p.query.dtype]
    wants_bias, wants_relative = p.needs_grad[4], p.needs_grad[6]
    scores = zeros(p.score_shape, dtype) if wants_bias or wants_relative else None
    units, segments = batch * p.key.shape[1], -(-keys // SEGMENT_KEYS)
    work = 2 * batch * heads * queries * keys * (p.query.shape[3] + p.value.shape[3])
    parts = min(threads_for(work, DECODE_GRAIN), units * segments)
    rows, columns = p.group * queries, int(layout.numbers[Sizes._fields.index("padded_width")])
    sums = scratch(units * segments * rows * columns, dtype)
    wanted = np.array([g is not None for g in (*found, scores)], np.int64)
    query, key, value = (0 if g is None else address(g) for g in found)
    decode_backward_cpu.decode_backward_parts(
        parts, parts, parts, segments, layout.numbers, layout.factors, *given, *arrays, wanted, sums, key, value,
        nothing if scores is None else scores.reshape(-1), scratch(parts * layout.work, dtype),
    )  # fmt: skip
    if found[0] is not None:
        decode_backward_cpu.join_queries(units, 1, segments, layout.numbers, layout.factors, sums, query)
    if scores is None:
        return None, None
    grad_bias = None
    if wants_bias and p.bias is not None:
        grad_bias = zeros(p.bias.shape, dtype)
        spread = tuple(i for i, n in enumerate(p.bias.shape) if n != p.score_shape[i])
        np.sum(scores, spread, keepdims=True, out=grad_bias)
    return grad_bias, _table_gradient(p, _by_distance(p, scores, given[2]) if wants_relative else nothing, nothing)


def _by_distance(p: AttentionProblem, scores: Array, counts: Array) -> Array:
    """Gradients of scores (batch, heads, few queries, keys) summed by distance: (batch, heads, span)."""
    span, zero = span_of(p)
    found = zeros((*scores.shape[:2], span), scores.dtype)
    for row, there in enumerate(counts.tolist()):
        for i in range(scores.shape[2]):
            at = zero + i + (there - scores.shape[2] if p.from_end else 0)
            found[row, :, at - there + 1 : at + 1] += scores[row, :, i, :there][:, ::-1]
    return found


def _gradients_of_arrays(p: AttentionProblem, dtype: Any) -> tuple[Array | None, ...]:
    """Fresh arrays for the gradients of query, key and value that are wanted and not empty."""
    specs = (p.query, p.key, p.value)
    return tuple(empty(s.shape, dtype) if w and s.size else None for s, w in zip(specs, p.needs_grad))


def _as_wanted(p: AttentionProblem, found: tuple[Array | None, ...]) -> tuple[Array | None, ...]:
    """The same, with the empty ones."""
    specs = (p.query, p.key, p.value)
    return tuple(empty(s.shape, s.dtype) if g is None and w else g for s, g, w in zip(specs, found, p.needs_grad))


def _zero_gradients(p: AttentionProblem) -> tuple[Array | None, ...]:
    forms = zip(p.gradients(), p.needs_grad)
    return tuple(zeros(s.shape, s.dtype) if s is not None and w else None for s, w in forms)


def _table_gradient(p: AttentionProblem, by_distances: Array, tables: Array) -> Array | None:
    """The gradient of a relative term's table from those of each head: sums in a fixed order, in float64."""
    if not p.needs_grad[6] or p.relative is None:
        return None
    if p.relative_kind == "shaw":
        total = tables.sum(0, dtype=np.float64)[:, : p.query.shape[3]]
    else:
        sums = by_distances.sum(0, dtype=np.float64)
        kind = str(p.relative_kind)
        total = table_gradient(kind, sums, far(p), p.relative.shape, p.bidirectional, p.relative_limit)
    found = empty(p.relative.shape, p.relative.dtype)
    found[...] = total
    return found


def describe(p: AttentionProblem) -> str:
    """Which kernel runs, for `explain`."""
    if decodes(p):
        return f"decoding, lanes are keys, up to {thread_count()} threads"
    return f"panels of {panel_width(p.query.dtype)} queries, up to {thread_count()} threads"


def _describe_torchs(p: ScaledDotProductAttentionProblem) -> str:
    return describe(p.attention)


def _by_address_of_torchs(p: ScaledDotProductAttentionProblem) -> Run | None:
    return by_address(p.attention)


def _backward_by_address_of_torchs(p: ScaledDotProductAttentionProblem) -> Run | None:
    run = backward_by_address(p.attention)
    if run is None:
        return None

    def of_four(grad_output: int, query: int, key: int, value: int, attn_mask: int, *rest: int) -> Any:
        output, lse, grad_query, grad_key, grad_value, _ = rest
        absent = (0,) * 5
        return run(grad_output, 0, query, key, value, *absent, output, lse, grad_query, grad_key, grad_value, *absent)

    return of_four


Implementation(
    ATTENTION, "numba", attention, attention_backward, describe=describe, by_address=by_address,
    backward_by_address=backward_by_address,
)  # fmt: skip
Implementation(
    SCALED_DOT_PRODUCT_ATTENTION,
    "numba",
    *through_attention(attention, attention_backward),
    describe=_describe_torchs,
    by_address=_by_address_of_torchs,
    backward_by_address=_backward_by_address_of_torchs,
)
