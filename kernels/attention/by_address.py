"""Attention from addresses: calls with nothing but queries, keys and values.

A NumPy view of each tensor and what the general way asks about masks, biases and strides take longer than a small
call's kernel; here all of that is known from the problem.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from kernels.arrays import ArraySpec, contiguous_strides
from kernels.attention.backward_cpu import backward_parts
from kernels.attention.decode_backward_cpu import decode_backward_parts, join_queries
from kernels.attention.decode_cpu import decode_segments, join_segments
from kernels.attention.forward_cpu import forward_parts
from kernels.attention.layout import NOTHING, Layout, Sizes, in_rows, layout_of, panel_width
from kernels.attention.problem import AttentionProblem
from kernels.attention.terms_cpu import DECODE_GRAIN, GRAIN, decodes, given_of
from kernels.attention.tiles import SEGMENT_KEYS
from kernels.runtime.by_address import Run
from kernels.runtime.numba_cpu import scratch, threads_for

Array = np.ndarray[Any, Any]


def _stand_in(spec: ArraySpec) -> Array:
    """An array of a spec's shape and strides; only these are looked at."""
    one = np.empty(1, spec.dtype)
    steps = contiguous_strides(spec.shape) if spec.strides is None else spec.strides
    return as_strided(one, spec.shape, [step * one.itemsize for step in steps])


def _fixed(p: AttentionProblem, way: str) -> tuple[Layout, tuple[Array, ...]] | None:
    """The layout, and what kernels take first; None where scores have terms or the elements of a row lie apart."""
    terms = (p.mask, p.bias, p.lengths, p.relative)
    if p.dropout_p or any(t is not None for t in terms) or not p.key.shape[2] or not p.query.shape[3]:
        return None
    first, second, third = stand_ins = tuple(map(_stand_in, (p.query, p.key, p.value)))
    if not all(in_rows(array) is array for array in stand_ins):
        return None
    if decodes(p):
        way = {"forward": "decode", "backward": "decode backward"}[way]
    layout = layout_of(p, first, second, third, None, None, way)
    return layout, (layout.numbers, layout.factors, *given_of(p, None, None, None, None, None))


def by_address(p: AttentionProblem) -> Run | None:
    """query, key, value -> output, lse, where scores have no terms; rows are contiguous, other strides are any."""
    found = _fixed(p, "forward")
    if found is None:
        return None
    layout, fixed = found
    batch, heads, queries, keys = p.score_shape
    dtype = np.dtype(p.query.dtype)
    work = batch * heads * queries * keys * (p.query.shape[3] + p.value.shape[3])
    if decodes(p):
        units, segments = batch * p.key.shape[1], -(-keys // SEGMENT_KEYS)
        items = units * segments

        def decode(*places: int) -> None:
            query, key, value, *_, out, lse = places
            room = scratch(items * layout.work, dtype)
            decode_segments(items, threads_for(work, DECODE_GRAIN), segments, *fixed, query, key, value, room)
            join_segments(units, 1, segments, layout.numbers, room, out, lse)

        return decode
    panels = batch * heads * -(-queries // panel_width(dtype))

    def run(*places: int) -> None:
        query, key, value, *_, out, lse = places
        parts = min(threads_for(work, GRAIN), panels)
        forward_parts(
            parts, parts, parts, *fixed, query, key, value, out, lse, scratch(parts * layout.work, dtype),
            scratch(parts * layout.offsets, np.int64),
        )  # fmt: skip

    return run


def backward_by_address(p: AttentionProblem) -> Run | None:
    """The gradients of the output and of lse, what is saved -> the gradients of the inputs, under the same terms."""
    fixed = _fixed(p, "backward")
    if fixed is None:
        return None
    batch, heads, queries, keys = p.score_shape
    dtype, layout, given, kv_heads = np.dtype(p.query.dtype), *fixed, p.key.shape[1]
    width = p.value.shape[3]
    rows = (heads * queries * width, queries * width, width)
    more, wants = np.array((*rows, *rows), np.int64), p.needs_grad[:3]
    work = 2 * batch * heads * queries * keys * (p.query.shape[3] + width)
    nothing = NOTHING[p.query.dtype]
    if decodes(p):
        units, segments = batch * kv_heads, -(-keys // SEGMENT_KEYS)
        size = units * segments * p.group * queries * int(layout.numbers[Sizes._fields.index("padded_width")])
        wanted = np.array((*wants, False), np.int64)

        def decode(*places: int) -> bool:
            (dy, d_lse, query, key, value), (output, lse, dq, dk, dv) = places[:5], places[10:15]
            if not dy:
                return False
            parts, sums = min(threads_for(work, DECODE_GRAIN), units * segments), scratch(size, dtype)
            decode_backward_parts(
                parts, parts, parts, segments, *given, query, key, value, output, lse, dy, d_lse, more, wanted, sums,
                dk, dv, nothing, scratch(parts * layout.work, dtype),
            )  # fmt: skip
            if dq:
                join_queries(units, 1, segments, layout.numbers, layout.factors, sums, dq)
            return True

        return decode
    wanted = np.array((*wants, False, False), np.int64)

    def run(*places: int) -> bool:
        (dy, d_lse, query, key, value), (output, lse, *made) = places[:5], places[10:15]
        if not dy:
            return False
        parts = min(threads_for(work, GRAIN), batch * kv_heads)
        backward_parts(
            parts, parts, parts, *given, query, key, value, output, lse, dy, d_lse, more, wanted, *made, nothing,
            nothing, nothing, scratch(parts * layout.work, dtype), scratch(parts * layout.offsets, np.int64),
        )  # fmt: skip
        return True

    return run
