"""Attention as equations in NumPy, all scores in memory: the oracle that every kernel is held to.

With X = scale * Q K^T + bias + relative, Y = softcap * tanh(X / softcap), hidden scores -inf, and M the dropout factors
(0 or 1 / (1 - p), or 1),

    P = softmax(Y)      W = P * M       O = W V         lse = log(sum(exp(Y)))
    dV = W^T dO         dP = (dO V^T) * M               dY = P * (dP - rowsum(dO * O) + dlse)
    dX = dY * (1 - (Y / softcap)^2)                     dQ = scale * dX K, dK = scale * dX^T Q, dbias = dX summed

(Dao et al., FlashAttention, 2022, appendix B). Shaw's term adds scale * Q A^T with A[i, j] = table[clip(j - i, -k, k)].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.attention.op import ATTENTION, SCALED_DOT_PRODUCT_ATTENTION
from kernels.attention.problem import AttentionProblem
from kernels.attention.relative import by_distance, table_gradient
from kernels.attention.scaled_dot_product import through_attention
from kernels.op import Implementation
from kernels.random import keep_mask

Array = np.ndarray[Any, Any]
DTYPES = ("float16", "float32", "float64")


def key_counts(p: AttentionProblem, lengths: Array | None) -> Array:
    """How many keys each row of the batch has: (B, 1, 1, 1)."""
    found = np.full(p.query.shape[0], p.key.shape[2], np.int64) if lengths is None else lengths.astype(np.int64)
    return found[:, None, None, None]


def distances(p: AttentionProblem, lengths: Array | None) -> Array:
    """Key position minus query position: (B or 1, 1, L, S)."""
    queries, keys = p.query.shape[2], p.key.shape[2]
    d = (np.arange(keys) - np.arange(queries)[:, None])[None, None]
    return d - (key_counts(p, lengths) - queries) if p.from_end else d


def visible(p: AttentionProblem, mask: Array | None, bias: Array | None, lengths: Array | None) -> Array:
    """Which query sees which key: bool (B or 1, H or 1, L, S)."""
    keys = np.arange(p.key.shape[2])
    seen = np.broadcast_to(keys < key_counts(p, lengths), (p.query.shape[0], 1, *p.score_shape[2:]))
    d = distances(p, lengths)
    left, right = p.reach
    if left >= 0:
        seen = seen & (d >= -left)
    if right >= 0:
        seen = seen & (d <= right)
    if mask is not None:
        seen = seen & mask
    return seen if bias is None else seen & (bias != -np.inf)


def weigh(weights: Array, values: Array, seen: Array) -> Array:
    """weights @ values, in which a weight that is not seen counts nothing, not even 0 * NaN."""
    if np.isfinite(values).all():
        return weights @ values
    one_by_one = np.where(seen[..., None], weights[..., None] * values[..., None, :, :], 0)
    return one_by_one.sum(-2, dtype=weights.dtype)


def by_head(p: AttentionProblem, array: Array) -> Array:
    """Keys or values for every head of the queries: (B, H / group, S, width) -> (B, H, S, width)."""
    return np.repeat(array, p.group, 1) if p.group > 1 else array


def grouped(p: AttentionProblem, gradient: Array) -> Array:
    """The transpose of :func:`by_head`: sums over each group of heads."""
    if p.group == 1:
        return gradient
    batch, heads, length, width = gradient.shape
    return gradient.reshape(batch, heads // p.group, p.group, length, width).sum(2)


def summed_to(gradient: Array, shape: tuple[int, ...]) -> Array:
    """`gradient` summed over the dimensions in which `shape` broadcasts."""
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1 and gradient.shape[axis] != 1)
    return gradient.sum(axes, keepdims=True) if axes else gradient


def shaw_rows(p: AttentionProblem, lengths: Array | None) -> Array:
    """The table's row of each pair: (B or 1, L, S)."""
    clip = p.relative_limit
    return np.clip(distances(p, lengths)[:, 0], -clip, clip) + clip


def scores(
    p: AttentionProblem, query: Array, key: Array, bias: Array | None, lengths: Array | None, table: Array | None
) -> Array:
    """scale * Q K^T + bias + relative, capped: (B, H, L, S); nothing is hidden yet."""
    scale = query.dtype.type(p.score_scale)
    x = query @ by_head(p, key).swapaxes(-1, -2) * scale
    if bias is not None:
        x = x + bias
    if table is not None and p.relative_kind == "shaw":
        each = query @ table.T * scale  # (B, H, L, rows)
        rows = np.broadcast_to(shaw_rows(p, lengths)[:, None], x.shape)
        x = x + np.take_along_axis(each, rows, -1)
    elif table is not None:
        d = distances(p, lengths)[:, 0]  # (B or 1, L, S)
        term = by_distance(str(p.relative_kind), table, d.reshape(-1), p.bidirectional, p.relative_limit)
        x = x + term.reshape(-1, *d.shape).swapaxes(0, 1)
    if p.softcap is not None:
        x = p.softcap * np.tanh(x / p.softcap)
    return x.astype(query.dtype, copy=False)


def probabilities(y: Array, seen: Array) -> tuple[Array, Array]:
    """(softmax of the seen scores, log-sum-exp); rows that see nothing are 0 and -inf."""
    y = np.where(seen, y, -np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        largest = y.max(-1, keepdims=True, initial=-np.inf)
        shift = np.where(largest == -np.inf, 0, largest)
        e = np.where(seen, np.exp(y - shift), 0)
        total = e.sum(-1, keepdims=True)
        p = np.where(seen, e / np.where(total == 0, 1, total), 0)
        with np.errstate(divide="ignore"):
            return p.astype(y.dtype, copy=False), (shift + np.log(total))[..., 0].astype(y.dtype, copy=False)


def factors(p: AttentionProblem, seed: Array | None, dtype: Any) -> Array | None:
    """Dropout's factor of each weight, or None."""
    if p.dropout_p == 0 or seed is None:
        return None
    return np.where(keep_mask(p.score_shape, p.dropout_p, seed), dtype.type(p.kept), dtype.type(0))


def _wide(*given: Array | None) -> list[Any]:
    """float16 as float32, in which its sums are taken."""
    return [a.astype(np.float32) if a is not None and a.dtype == np.float16 else a for a in given]


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
    """output (B, H, L, Ev), lse (B, H, L)."""
    dtype = query.dtype
    query, key, value, bias, relative = _wide(query, key, value, bias, relative)
    seen = visible(p, mask, bias, lengths)
    with np.errstate(invalid="ignore"):
        weights, lse = probabilities(scores(p, query, key, bias, lengths, relative), seen)
        dropped = factors(p, seed, query.dtype)
        output = weigh(weights if dropped is None else weights * dropped, by_head(p, value), seen)
    return p.lay_out((output.astype(dtype), lse if p.results()[1] is not None else None), p.results())


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
    dtype = query.dtype
    if grad_output is None:
        grad_output = np.zeros(output.shape, dtype)
    given = _wide(grad_output, query, key, value, bias, relative, output)
    grad, query, key, value, bias, relative, output = given
    scale = query.dtype.type(p.score_scale)
    seen = visible(p, mask, bias, lengths)
    with np.errstate(invalid="ignore", over="ignore"):
        y = scores(p, query, key, bias, lengths, relative)
        weights, _ = probabilities(y, seen)
        dropped = factors(p, seed, query.dtype)
        d_weights = grad @ by_head(p, value).swapaxes(-1, -2)
        if dropped is not None:
            d_weights = d_weights * dropped
        row = (grad * output).sum(-1)
        if grad_lse is not None:
            row = row - grad_lse
        dy = np.where(seen, weights * (d_weights - row[..., None]), 0)
        dx = dy if p.softcap is None else np.where(seen, dy * (1 - (y / p.softcap) ** 2), 0)
        seen = np.broadcast_to(seen, dx.shape)
        back = seen.swapaxes(-1, -2)
        dq = weigh(dx, by_head(p, key), seen) * scale
        dk = grouped(p, weigh(dx.swapaxes(-1, -2), query, back)) * scale
        kept = weights if dropped is None else weights * dropped
        dv = grouped(p, weigh(kept.swapaxes(-1, -2), grad, back))
        db = None if bias is None else summed_to(dx, bias.shape)
        dt = None
        if relative is not None and p.relative_kind == "shaw":
            # dA summed over the pairs of each row of the table: (B, H, L, rows).
            rows = np.broadcast_to(shaw_rows(p, lengths)[:, None], dx.shape)
            sums = np.stack([np.where(rows == c, dx, 0).sum(-1) for c in range(relative.shape[0])], -1)
            dq = dq + sums @ relative * scale
            dt = np.einsum("bhlc,bhle->ce", sums, query) * scale
        elif relative is not None:
            d = np.broadcast_to(distances(p, lengths), (dx.shape[0], 1, *dx.shape[2:])).reshape(-1)
            by_pair = dx.swapaxes(0, 1).reshape(dx.shape[1], -1).astype(np.float64)
            dt = table_gradient(str(p.relative_kind), by_pair, d, relative.shape, p.bidirectional, p.relative_limit)
    found = (dq, dk, dv, None, db, None, dt, None)
    wanted = [None if g is None or not w else g.astype(dtype) for g, w in zip(found, p.needs_grad)]
    return p.lay_out(tuple(wanted), p.gradients())


Implementation(ATTENTION, "reference", attention, attention_backward, dtypes=DTYPES)
Implementation(
    SCALED_DOT_PRODUCT_ATTENTION, "reference", *through_attention(attention, attention_backward), dtypes=DTYPES
)
