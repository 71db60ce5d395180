"""How every backend runs scaled_dot_product_attention: as `attention`, its mask as a bool mask or as a bias."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kernels.attention.op import ScaledDotProductAttentionProblem

Function = Callable[..., tuple[Any, ...]]


def _apart(p: ScaledDotProductAttentionProblem, attn_mask: Any) -> tuple[Any, Any]:
    """(mask, bias): the one that attn_mask is."""
    return (None, attn_mask) if p.attention.bias is not None else (attn_mask, None)


def through_attention(attention: Function, attention_backward: Function) -> tuple[Function, Function]:
    """A backend's forward and backward of scaled_dot_product_attention, made of those of its `attention`."""

    def forward(
        p: ScaledDotProductAttentionProblem, query: Any, key: Any, value: Any, attn_mask: Any
    ) -> tuple[Any, ...]:
        return attention(p.attention, query, key, value, *_apart(p, attn_mask), None, None, None)

    def backward(
        p: ScaledDotProductAttentionProblem,
        grad_output: Any,
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any,
        output: Any,
        lse: Any,
    ) -> tuple[Any, ...]:
        mask, bias = _apart(p, attn_mask)
        saved = {"query": query, "key": key, "value": value, "mask": mask, "bias": bias, "output": output, "lse": lse}
        found = attention_backward(p.attention, grad_output, None, **saved)
        return (*found[:3], found[4])

    return forward, backward
