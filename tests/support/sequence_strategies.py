"""Random calls of the sequence ops for hypothesis, and the same calls in torch's own modules and formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels.random import keep_mask
from tests.support.matrix import Arguments

Drawn = tuple[dict[str, tuple[int, ...]], Arguments]

# ----- recurrence --------------------------------------------------------------------------------------------------

_GATES = {"rnn_layer": 1, "lstm_layer": 4, "gru_layer": 3}


@st.composite
def recurrent_layer(draw: st.DrawFn, op: str) -> Drawn:
    """A layer of any form, reset_after=False left out, which torch does not have."""
    steps, batch = draw(st.integers(1, 7)), draw(st.integers(0, 6))
    inputs, units = draw(st.integers(1, 21)), draw(st.integers(1, 35))
    projection = draw(st.integers(0, units - 1)) if op == "lstm_layer" else 0
    hidden, rows = projection or units, _GATES[op] * units
    both, batch_first = draw(st.booleans()), draw(st.booleans())
    biased = draw(st.sampled_from(["both", "none", "b_ih"]))
    shapes: dict[str, tuple[int, ...]] = {"x": (batch, steps, inputs) if batch_first else (steps, batch, inputs)}
    for suffix in ("", "_reverse")[: 2 if both else 1]:
        shapes |= {f"w_ih{suffix}": (rows, inputs), f"w_hh{suffix}": (rows, hidden)}
        if biased != "none":
            shapes[f"b_ih{suffix}"] = (rows,)
        if biased == "both":
            shapes[f"b_hh{suffix}"] = (rows,)
        if projection:
            shapes[f"w_hr{suffix}"] = (projection, units)
    if draw(st.booleans()):
        shapes["h0"] = (2 if both else 1, batch, hidden)
        if op == "lstm_layer":
            shapes["c0"] = (2 if both else 1, batch, units)
    arguments: Arguments = {"batch_first": batch_first, "return_last": draw(st.booleans())}
    if op == "rnn_layer":
        arguments["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    if draw(st.booleans()):
        lengths = draw(st.lists(st.integers(1, steps), min_size=batch, max_size=batch))
        arguments["lengths"] = np.array(lengths, draw(st.sampled_from(["int64", "int32"])))
    return shapes, arguments


def torch_layer(op: str) -> Callable[..., Any]:
    """torch's own whole-sequence function, one row at a time where the rows have lengths."""

    def run(x: Any, weights: list[Any], states: tuple[Any, ...], both: bool, nonlinearity: str) -> tuple[Any, ...]:
        name = f"rnn_{nonlinearity}" if op == "rnn_layer" else op.removesuffix("_layer")
        given = states if op == "lstm_layer" else states[0]
        function = getattr(torch._VF, name)  # type: ignore[attr-defined]
        return tuple(function(x, given, weights, True, 1, 0.0, False, both, False))  # zeros stand for no bias

    def layer(
        x: Any,
        *,
        batch_first: bool = False,
        return_last: bool = False,
        nonlinearity: str = "tanh",
        reset_after: bool = True,
        lengths: Any = None,
        h0: Any = None,
        c0: Any = None,
        **weights: Any,
    ) -> Any:
        assert reset_after
        if batch_first:
            x = x.transpose(0, 1)
        steps, batch = x.shape[:2]
        both = weights.get("w_ih_reverse") is not None
        flat, hidden, units = [], weights["w_hh"].shape[1], weights["w_ih"].shape[0] // _GATES[op]
        for suffix in ("", "_reverse")[: 2 if both else 1]:
            zero = torch.zeros(weights["w_ih"].shape[0], dtype=x.dtype)
            biases = [weights.get(f"{name}{suffix}") for name in ("b_ih", "b_hh")]
            flat += [weights[f"w_ih{suffix}"], weights[f"w_hh{suffix}"], *(zero if b is None else b for b in biases)]
            if weights.get(f"w_hr{suffix}") is not None:
                flat.append(weights[f"w_hr{suffix}"])
        h0 = torch.zeros(2 if both else 1, batch, hidden, dtype=x.dtype) if h0 is None else h0
        c0 = torch.zeros(2 if both else 1, batch, units, dtype=x.dtype) if c0 is None else c0
        counts = [steps] * batch if lengths is None else [int(n) for n in lengths]
        if lengths is None and batch:
            found = run(x, flat, (h0, c0), both, nonlinearity)
        elif batch:
            rows = []
            for r, count in enumerate(counts):
                here = (h0[:, r : r + 1].contiguous(), c0[:, r : r + 1].contiguous())
                output, *ends = run(x[:count, r : r + 1], flat, here, both, nonlinearity)
                rows.append((torch.nn.functional.pad(output, (0, 0, 0, 0, 0, steps - count)), *ends))
            found = tuple(torch.cat(parts, 1) for parts in zip(*rows))
        else:
            total = sum(w.sum() for w in flat) * 0 + x.sum() + h0.sum() + c0.sum()
            output = total + torch.zeros(steps, 0, h0.shape[0] * hidden, dtype=x.dtype)
            found = (output, h0 + total * 0, *([c0 + total * 0] if op == "lstm_layer" else []))
        output, *ends = found
        if return_last:
            # Of the reverse direction too: what it says at the row's last step, its first one.
            last = [output[count - 1, r] for r, count in enumerate(counts)]
            output = torch.stack(last) if batch else output[0]
        elif batch_first:
            output = output.transpose(0, 1)
        return (output, *ends)

    return layer


# ----- attention ---------------------------------------------------------------------------------------------------


@st.composite
def attention(draw: st.DrawFn) -> Drawn:
    """Anything but relative terms, whose tables are parts of an object."""
    batch, kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    queries, keys = draw(st.integers(1, 70)), draw(st.integers(1, 130))
    width, value_width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    heads = kv_heads * group
    shapes = {
        "query": (batch, heads, queries, width),
        "key": (batch, kv_heads, keys, width),
        "value": (batch, kv_heads, keys, value_width),
    }
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    pairs = tuple(draw(st.sampled_from([1, n])) for n in (batch, heads, queries, keys))
    if draw(st.booleans()):
        shapes["bias"] = pairs
    arguments: Arguments = {
        "causal": draw(st.sampled_from([None, "top_left", "bottom_right"])),
        "window": draw(st.none() | st.integers(0, 40) | st.tuples(st.integers(0, 40), st.none())),
        "softcap": draw(st.none() | st.sampled_from([1.5, 20.0])),
        "scale": draw(st.none() | st.sampled_from([0.0, -0.3, 1.0])),
    }
    if draw(st.booleans()):
        arguments["mask"] = rng.random(pairs) < 0.6
    if draw(st.booleans()):
        arguments["lengths"] = rng.integers(0, keys + 1, batch)
    if draw(st.booleans()):
        arguments |= {"dropout_p": draw(st.sampled_from([0.1, 0.7, 1.0])), "seed": draw(st.integers(-9, 9))}
    return shapes, arguments


@st.composite
def scaled_dot_product_attention(draw: st.DrawFn) -> Drawn:
    """As torch's users call it; no dropout, which draws torch's own numbers there."""
    lead = draw(st.sampled_from([(), (2,), (2, 3), (1, 4), (2, 1, 2)]))
    queries, keys = draw(st.integers(1, 40)), draw(st.integers(1, 70))
    width, value_width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    shapes = {"query": (*lead, queries, width), "key": (*lead, keys, width), "value": (*lead, keys, value_width)}
    arguments: Arguments = {"scale": draw(st.none() | st.sampled_from([-0.3, 1.0]))}
    kind = draw(st.sampled_from(["none", "causal", "bool", "numbers"]))
    if kind == "causal":
        arguments["is_causal"] = True
    elif kind == "bool":
        seen = np.random.default_rng(draw(st.integers(0, 99))).random((queries, keys)) < 0.6
        seen[:, 0] = True  # what a query that sees nothing gets differs from path to path in torch
        arguments["attn_mask"] = seen
    elif kind == "numbers":
        shapes["attn_mask"] = (queries, keys)
    return shapes, arguments


def torch_attention(
    query: Any, key: Any, value: Any, *, mask: Any = None, bias: Any = None, causal: Any = None, window: Any = None,
    softcap: Any = None, scale: Any = None, dropout_p: float = 0.0, seed: Any = None, lengths: Any = None,
    return_lse: bool = False,
) -> Any:  # fmt: skip
    """The docstring's formula in torch, all scores in memory; any rank, as the public function."""
    rank = query.ndim
    if rank == 2:
        query, key, value = query[None, None], key[None, None], value[None, None]
    elif rank == 3:
        query, key, value = query[:, None], key[:, None], value[:, None]
        mask, bias = (a if a is None or a.ndim < 3 else a[:, None] for a in (mask, bias))
    if query.shape[1] % key.shape[1] or key.shape[:-1] != value.shape[:-1]:
        raise ValueError("heads do not divide, or keys and values differ in number")
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    key, value = (a.repeat_interleave(heads // a.shape[1], 1) for a in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    counts = torch.full((batch,), keys) if lengths is None else torch.as_tensor(lengths).to(torch.int64)
    i = (
        torch.arange(queries)[None, :, None]
        + (counts - queries if causal == "bottom_right" else counts * 0)[:, None, None]
    )
    j = torch.arange(keys)[None, None]
    seen = (j < counts[:, None, None]).expand(batch, queries, keys)
    left, right = window if isinstance(window, tuple) else (window, window)
    seen = seen & (j >= i - left) if left is not None else seen
    seen = seen & (j <= i + right) if right is not None else seen
    seen = (seen & (j <= i) if causal is not None else seen)[:, None]
    if mask is not None:
        seen = seen & mask
    if bias is not None:
        seen = seen & (bias != -math.inf)
    seen = seen.expand(scores.shape)
    hidden = torch.where(seen, scores, -math.inf)
    # As torch's own softmax of attention: a row that sees nothing but -inf is as good as hidden.
    some = (hidden != -math.inf).any(-1, keepdim=True)
    hidden = torch.where(some, hidden, 0.0)
    weights = torch.where(seen & some, torch.softmax(hidden, -1), 0.0)
    if dropout_p > 0:
        kept = torch.from_numpy(keep_mask(tuple(weights.shape), dropout_p, int(seed)))
        weights = weights * kept / (1 - dropout_p) if dropout_p < 1 else weights * 0
    output = weights @ value
    lse = torch.where(some[..., 0], torch.logsumexp(hidden, -1), -math.inf)
    if rank < 4:
        output, lse = (a[0, 0] if rank == 2 else a[:, 0] for a in (output, lse))
    return (output, lse) if return_lse else output


def torch_scaled_dot_product_attention(query: Any, *rest: Any, **named: Any) -> Any:
    """torch's own, by its formula: the fused kernel takes a query with NaN for one that sees nothing."""
    with sdpa_kernel(SDPBackend.MATH):
        return torch.nn.functional.scaled_dot_product_attention(query, *rest, **named)


def _as_attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, is_causal: bool = False, scale: Any = None
) -> Arguments:
    """The arguments of torch's function as those of `attention`, every leading dimension a head."""
    kind = "bias" if attn_mask is not None and attn_mask.is_floating_point() else "mask"
    query, key, value = (a.reshape(1, -1, *a.shape[-2:]) for a in (query, key, value))
    causal = "top_left" if is_causal else None
    return {"query": query, "key": key, "value": value, "causal": causal, "scale": scale, kind: attn_mask}


def scaled_dot_product_attention_without_leaks(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> Any:
    """The formula once more: torch's own adds -inf to hide a score, and so one that is +inf or NaN gets out as NaN."""
    found = torch_attention(**_as_attention(query, key, value, *rest, **named))
    return found.reshape(*query.shape[:-1], value.shape[-1])


def cancelled_scales(arguments: Arguments, incoming: Any) -> dict[str, float]:
    """Of what size the terms are that make the gradients of attention's arguments, at most.

    A query that sees one key has a gradient of 0, by the difference of two numbers of this size.
    """
    query, key, value = (np.abs(arguments[n]) for n in ("query", "key", "value"))
    scale = arguments.get("scale")
    scale = query.shape[-1] ** -0.5 if scale is None else abs(scale)
    weight = float(np.abs(incoming).max(initial=0) * value.sum(-1).max(initial=0))
    sizes = {"query": scale * key.max(initial=0) * weight, "key": scale * query.max(initial=0) * weight}
    return sizes | {"bias": weight, "attn_mask": weight}


def units_of_log_sum_exp(op: str, arguments: Arguments) -> float:
    """What the rounding of the log-sum-exp costs a gradient, in units of its scale.

    Backward makes the weights anew as exp(score - lse) (Dao et al., FlashAttention, 2022), as torch's fused kernels do
    and its formula does not: half a unit of the lse is a relative error of all weights of a row.
    """
    tensors = {n: torch.from_numpy(np.array(a)) if isinstance(a, np.ndarray) else a for n, a in arguments.items()}
    if op == "scaled_dot_product_attention":
        tensors = _as_attention(**tensors)
    lse = torch_attention(**tensors, return_lse=True)[1]
    return float(lse[lse.isfinite()].abs().max()) if lse.isfinite().any() else 0.0


# ----- dropout -----------------------------------------------------------------------------------------------------


@st.composite
def dropout(draw: st.DrawFn) -> Drawn:
    """Any shape and probability under a seed."""
    shape = tuple(draw(st.lists(st.integers(0, 9), max_size=3))) + draw(st.sampled_from([(), (17,), (70,)]))
    p = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    seed, stream = draw(st.integers(-(2**63), 2**63 - 1)), draw(st.sampled_from([0, 1, 2**40]))
    return {"x": shape}, {"p": p, "seed": seed, "stream": stream, "training": True}


def torch_dropout(x: Any, p: float = 0.5, training: bool = True, *, seed: Any = None, stream: int = 0) -> Any:
    """The counter's mask, applied by torch; a dropped NaN is 0."""
    if not training:
        return x
    if seed is not None and np.ndim(seed):
        raise ValueError("the seed is one number")
    kept = torch.from_numpy(keep_mask(tuple(x.shape), p, 0 if seed is None else int(seed), stream))
    return torch.where(kept, x * (1 / (1 - p) if p < 1 else 0.0), torch.zeros((), dtype=x.dtype))
