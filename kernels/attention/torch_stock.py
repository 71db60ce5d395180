"""Attention in torch's own ops, all scores in memory; its backward is differentiable once more.

torch's fused kernels have no second derivative and know neither windows, caps, lengths, relative terms nor a mask by
counting, so the scores are made here as in `reference`; on a GPU torch_fused.py leaves plain calls on tensors to them.
In the forward pass the weights of a key that is hidden from
some queries but not from others are zeros, which NaN in its value passes, as in torch's own op.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from kernels.attention.op import ATTENTION, SCALED_DOT_PRODUCT_ATTENTION, ScaledDotProductAttentionProblem
from kernels.attention.problem import AttentionProblem
from kernels.attention.relative import t5_buckets
from kernels.attention.scaled_dot_product import through_attention
from kernels.attention.torch_fused import fused
from kernels.op import Implementation
from kernels.random import block_words, drop_threshold

Tensor = torch.Tensor
DTYPES = ("float16", "bfloat16", "float32", "float64")


def distances(p: AttentionProblem, lengths: Tensor | None, device: Any) -> Tensor:
    """Key position minus query position: (B or 1, 1, L, S)."""
    queries, keys = p.query.shape[2], p.key.shape[2]
    d = (torch.arange(keys, device=device) - torch.arange(queries, device=device)[:, None])[None, None]
    if not p.from_end:
        return d
    counts = torch.tensor([keys], device=device) if lengths is None else lengths.to(torch.int64)
    return d - (counts[:, None, None, None] - queries)


def visible(
    p: AttentionProblem, mask: Tensor | None, bias: Tensor | None, lengths: Tensor | None, device: Any
) -> Tensor | None:
    """Which query sees which key: bool (B or 1, H or 1, L or 1, S); None when all see all."""
    seen = []
    left, right = p.reach
    if left >= 0 or right >= 0:
        d = distances(p, lengths, device)
        seen += [d >= -left] if left >= 0 else []
        seen += [d <= right] if right >= 0 else []
    if lengths is not None:
        seen.append((torch.arange(p.key.shape[2], device=device) < lengths[:, None])[:, None, None])
    if mask is not None:
        seen.append(mask)
    if bias is not None:
        seen.append(bias != -torch.inf)
    if not seen:
        return None
    found = seen[0]
    for other in seen[1:]:
        found = found & other
    return found


def by_head(p: AttentionProblem, array: Tensor) -> Tensor:
    """Keys or values for every head of the queries."""
    return array.repeat_interleave(p.group, 1) if p.group > 1 else array


def grouped(p: AttentionProblem, gradient: Tensor) -> Tensor:
    """The transpose of :func:`by_head`."""
    batch, heads, length, width = gradient.shape
    return gradient.reshape(batch, heads // p.group, p.group, length, width).sum(2) if p.group > 1 else gradient


def without_hidden(array: Tensor, seen: Tensor | None) -> Tensor:
    """Keys or values (B, H, S, width), zero where no query sees them."""
    return array if seen is None else torch.where(seen.any(-2)[..., None], array, 0.0)


def scores(
    p: AttentionProblem, query: Tensor, key: Tensor, bias: Tensor | None, lengths: Tensor | None, table: Tensor | None
) -> Tensor:
    """scale * Q K^T + bias + relative, capped; key is (B, H, S, E)."""
    x = query @ key.mT * p.score_scale
    if bias is not None:
        x = x + bias
    if table is not None:
        d = distances(p, lengths, query.device)
        if p.relative_kind == "shaw":
            rows = d.clamp(-p.relative_limit, p.relative_limit) + p.relative_limit
            x = x + (query @ table.mT * p.score_scale).gather(-1, rows.expand(x.shape))
        elif p.relative_kind == "alibi":
            x = x - table[:, None, None] * d.abs().to(table.dtype)
        else:
            x = x + table[_buckets(p, d, table)].movedim(-1, 1)
    return x if p.softcap is None else p.softcap * torch.tanh(x / p.softcap)


def _buckets(p: AttentionProblem, d: Tensor, table: Tensor) -> Tensor:
    """The bucket of every distance: (B or 1, L, S)."""
    places: Any = t5_buckets(d[:, 0].cpu().numpy(), table.shape[0], p.bidirectional, p.relative_limit)
    return torch.from_numpy(np.ascontiguousarray(places)).to(d.device)


def probabilities(y: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """(softmax of the seen scores, log-sum-exp)."""
    if y.shape[-1] == 0:
        return y, y.sum(-1) - torch.inf
    if seen is None:
        return torch.softmax(y, -1), torch.logsumexp(y, -1)
    y = torch.where(seen, y, -torch.inf)
    # Rows that see nothing: any finite scores, whose weights are then put to 0, in every derivative too.
    none = ~seen.any(-1, keepdim=True)
    filled = torch.where(none, 0.0, y)
    lse = torch.where(none[..., 0], -torch.inf, torch.logsumexp(filled, -1))
    return torch.where(seen, torch.softmax(filled, -1), 0.0), lse


def factors(p: AttentionProblem, seed: Tensor | None, like: Tensor) -> Tensor | None:
    """Dropout's factor of each weight, or None."""
    if p.dropout_p == 0 or seed is None:
        return None
    count = like.numel()
    blocks = torch.arange(-(-count // 4), dtype=torch.int64, device=like.device)
    words = torch.stack(block_words(blocks, seed, 0), -1).reshape(-1)[:count]
    return ((words >= drop_threshold(p.dropout_p)).to(like.dtype) * p.kept).reshape(like.shape)


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
    """output, lse."""
    seen = visible(p, mask, bias, lengths, query.device)
    keys, values = without_hidden(by_head(p, key), seen), without_hidden(by_head(p, value), seen)
    weights, lse = probabilities(scores(p, query, keys, bias, lengths, relative), seen)
    dropped = factors(p, seed, weights)
    output = (weights if dropped is None else weights * dropped) @ values
    form = p.results()[1]
    return output, None if form is None else lse.to(getattr(torch, form.dtype))


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
    """Gradients of query, key, value, mask, bias, lengths, relative, seed.

    The weights and the output are made anew, so that autograd sees how they depend on the inputs.
    """
    seen = visible(p, mask, bias, lengths, query.device)
    keys, values = without_hidden(by_head(p, key), seen), without_hidden(by_head(p, value), seen)
    y = scores(p, query, keys, bias, lengths, relative)
    weights, _ = probabilities(y, seen)
    dropped = factors(p, seed, weights)
    kept = weights if dropped is None else weights * dropped
    grad = torch.zeros_like(output) if grad_output is None else grad_output
    d_weights = grad @ values.mT if dropped is None else grad @ values.mT * dropped
    row = (weights * d_weights).sum(-1, keepdim=True)
    if grad_lse is not None:
        row = row - grad_lse[..., None].to(row.dtype)
    dx = weights * (d_weights - row)
    if p.softcap is not None:
        dx = dx * (1 - (y / p.softcap) ** 2)
    if seen is not None:
        dx = torch.where(seen, dx, 0.0)
    dq = dx @ keys * p.score_scale
    dk = grouped(p, dx.mT @ query) * p.score_scale
    dv = grouped(p, kept.mT @ grad)
    db = None if bias is None else dx.sum_to_size(bias.shape)
    dt = None
    if relative is not None:
        d = distances(p, lengths, query.device)
        if p.relative_kind == "shaw":
            rows = (d.clamp(-p.relative_limit, p.relative_limit) + p.relative_limit).expand(dx.shape)
            sums = dx.new_zeros((*dx.shape[:-1], relative.shape[0])).scatter_add(-1, rows, dx)
            dq = dq + sums @ relative * p.score_scale
            dt = torch.einsum("bhlc,bhle->ce", sums, query) * p.score_scale
        elif p.relative_kind == "alibi":
            dt = -(dx * d.abs().to(dx.dtype)).sum((0, 2, 3))
        else:
            places = _buckets(p, d, relative).expand(dx.shape[0], -1, -1).reshape(-1)
            dt = torch.zeros_like(relative).index_add(0, places, dx.movedim(1, -1).reshape(-1, dx.shape[1]))
    found = (dq, dk, dv, None, db, None, dt, None)
    return tuple(g if wanted else None for g, wanted in zip(found, p.needs_grad))


def direct(p: AttentionProblem) -> Callable[..., Tensor] | None:
    """torch's fused function on a GPU, where it computes the same."""
    return fused(p, attention_backward, p.query.device)


def direct_torchs(p: ScaledDotProductAttentionProblem) -> Callable[..., Tensor] | None:
    """The same of scaled_dot_product_attention."""
    return direct(p.attention)


Implementation(ATTENTION, "torch", attention, attention_backward, dtypes=DTYPES, direct=direct)
Implementation(
    SCALED_DOT_PRODUCT_ATTENTION, "torch", *through_attention(attention, attention_backward), dtypes=DTYPES,
    direct=direct_torchs,
)  # fmt: skip
