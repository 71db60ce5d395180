"""Calls of attention and scaled_dot_product_attention that tests and benchmarks share."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.case import Case

Shape = tuple[int, ...]
Numbers = dict[str, Any]


def _case(
    op: str, name: str, query: Shape, key: Shape, width: int, *tags: str, bias: Shape | None = None, make: Any = None,
    **arguments: Any,
) -> Case:  # fmt: skip
    """`width` is that of the values."""
    shapes = {"query": query, "key": key, "value": (*key[:-1], width)} | ({} if bias is None else {"bias": bias})
    return Case(op, name, shapes, arguments, tags, make=make)


def _attention(name: str, query: Shape, key: Shape, width: int, *tags: str, **arguments: Any) -> Case:
    return _case("attention", name, query, key, width, *tags, **arguments)


def _torchs(name: str, query: Shape, key: Shape, width: int, *tags: str, **arguments: Any) -> Case:
    return _case("scaled_dot_product_attention", name, query, key, width, *tags, **arguments)


def mask_of(shape: Shape, name: str = "mask", share: float = 0.6, hidden_rows: bool = True) -> Any:
    """A `make` that gives a random bool mask; with some rows that see nothing."""

    def make(rng: np.random.Generator, dtype: str) -> Numbers:
        seen = rng.random(shape) < share
        if hidden_rows and shape[-2] > 2:
            seen[..., 1, :] = False
        return {name: seen}

    return make


def float_mask_of(shape: Shape) -> Any:
    """A `make` that gives an attn_mask of numbers, some of them -inf."""

    def make(rng: np.random.Generator, dtype: str) -> Numbers:
        return {"attn_mask": np.where(rng.random(shape) < 0.2, -np.inf, rng.standard_normal(shape)).astype(dtype)}

    return make


def lengths_of(*lengths: int) -> Any:
    """A `make` that gives lengths."""
    return lambda rng, dtype: {"lengths": np.array(lengths, np.int64)}


CASES = (
    _attention("one head", (7, 8), (11, 8), 6, "ci"),
    _attention("heads", (2, 3, 37, 16), (2, 3, 41, 16), 16, "ci"),
    _attention("batch without heads", (3, 5, 8), (3, 9, 8), 8, "ci", scale=0.3),
    _attention("causal", (1, 2, 50, 20), (1, 2, 50, 20), 20, "ci", causal="top_left"),
    _attention("causal at the end, grouped", (2, 6, 21, 12), (2, 2, 35, 12), 10, "ci", causal="bottom_right"),
    _attention("window", (1, 2, 70, 8), (1, 2, 70, 8), 9, "ci", window=9),
    _attention("causal window", (1, 1, 80, 8), (1, 1, 60, 8), 8, "ci", causal="top_left", window=(12, 3)),
    _attention("softcap", (2, 2, 19, 8), (2, 2, 23, 8), 8, "ci", softcap=1.5, causal="top_left"),
    _attention("mask", (2, 3, 34, 8), (2, 3, 29, 8), 8, "ci", make=mask_of((2, 1, 34, 29))),
    _attention("bias", (2, 3, 34, 8), (2, 3, 29, 8), 8, "ci", bias=(1, 3, 34, 29), softcap=3.0),
    _attention("bias by key, negative scale", (2, 3, 17, 8), (2, 3, 29, 8), 5, "ci", bias=(3, 1, 29), scale=-0.5),
    _attention("bias by query, capped", (2, 2, 17, 8), (2, 2, 29, 8), 5, "ci", bias=(2, 1, 17, 1), softcap=1.0),
    _attention("lengths", (3, 2, 9, 8), (3, 2, 40, 8), 8, "ci", make=lengths_of(40, 0, 13), causal="bottom_right"),
    _attention("dropout", (2, 2, 33, 8), (2, 2, 27, 8), 8, "ci", dropout_p=0.4, seed=-5),
    _attention("log-sum-exp", (2, 2, 9, 8), (2, 2, 14, 8), 8, "ci", return_lse=True, causal="bottom_right"),
    _attention("scale 0", (1, 2, 5, 8), (1, 2, 9, 8), 8, "odd", scale=0.0),
    _attention("more queries than keys, at the end", (1, 2, 40, 8), (1, 2, 9, 8), 8, "odd", causal="bottom_right"),
    _attention("no keys", (2, 2, 5, 8), (2, 2, 0, 8), 4, "odd"),
    _attention("two keys", (2, 2, 5, 8), (2, 2, 2, 8), 4, "odd"),
    _attention("one query", (2, 4, 1, 8), (2, 2, 77, 8), 8, "odd", causal="bottom_right", window=(50, None)),
    _attention("one query masked", (2, 4, 1, 8), (2, 2, 77, 8), 8, "odd", make=mask_of((2, 1, 1, 77)), bias=(4, 1, 77)),
    _attention("widths 1", (1, 2, 5, 1), (1, 2, 9, 1), 1, "odd"),
    _attention("wide heads", (1, 1, 20, 100), (1, 1, 30, 100), 70, "odd", causal="top_left"),
    _attention("dropout 1", (1, 2, 5, 8), (1, 2, 9, 8), 8, "odd", dropout_p=1.0, seed=3),
    _attention("five dimensions", (2, 1, 2, 5, 8), (2, 1, 2, 9, 8), 8, "odd", bias=(2, 1, 1, 5, 9)),
    _attention("empty batch", (0, 2, 5, 8), (0, 2, 9, 8), 8, "odd"),
    _attention("long", (1, 1, 260, 8), (1, 1, 300, 8), 8, "odd", causal="bottom_right", dropout_p=0.1, seed=1),
    _attention("vectors", (1, 2, 64, 64), (1, 2, 192, 64), 64, "gpu"),
    _attention("transformer 64x8x50x64", (64, 8, 50, 64), (64, 8, 50, 64), 64, "bench"),
    _attention("transformer 8x1024x64", (1, 8, 1024, 64), (1, 8, 1024, 64), 64, "bench"),
    _attention("transformer 8x1024x64 causal", (1, 8, 1024, 64), (1, 8, 1024, 64), 64, "bench", causal="top_left"),
    _attention("window 128 of 8x4096x64", (1, 8, 4096, 64), (1, 8, 4096, 64), 64, "bench", window=(128, 0)),
    _attention("dropout 8x1024x64", (1, 8, 1024, 64), (1, 8, 1024, 64), 64, "bench", dropout_p=0.1, seed=1),
    _attention("bias 8x1024x64", (1, 8, 1024, 64), (1, 8, 1024, 64), 64, "bench", bias=(1, 8, 1024, 1024)),
    _torchs("one head", (7, 8), (11, 8), 6, "ci"),
    _torchs("heads", (2, 3, 37, 16), (2, 3, 41, 16), 16, "ci"),
    _torchs("causal", (3, 13, 8), (3, 19, 8), 5, "ci", is_causal=True),
    _torchs("grouped", (2, 6, 13, 8), (2, 3, 19, 8), 5, "ci", enable_gqa=True, scale=0.2),
    _torchs("grouped without batch", (6, 13, 8), (2, 19, 8), 5, "ci", enable_gqa=True),
    _torchs("bool mask", (2, 3, 13, 8), (2, 3, 19, 8), 5, "ci", make=mask_of((13, 19), "attn_mask")),
    _torchs("number mask", (2, 3, 13, 8), (2, 3, 19, 8), 5, "ci", make=float_mask_of((2, 1, 13, 19))),
    _torchs("padding mask", (2, 3, 13, 8), (2, 3, 19, 8), 5, "odd", make=mask_of((2, 1, 1, 19), "attn_mask")),
    _torchs("more queries than keys, causal", (1, 1, 40, 8), (1, 1, 9, 8), 8, "odd", is_causal=True),
    _torchs("empty batch", (0, 3, 5, 8), (0, 3, 6, 8), 8, "odd"),
    _torchs("vectors", (1, 2, 64, 64), (1, 2, 192, 64), 64, "gpu", make=mask_of((64, 192), "attn_mask")),
    _torchs("small 12x128x32", (1, 12, 128, 32), (1, 12, 128, 32), 32, "bench"),
    _torchs("transformer 64x8x50x64", (64, 8, 50, 64), (64, 8, 50, 64), 64, "bench"),
    _torchs("transformer 8x1024x64", (1, 8, 1024, 64), (1, 8, 1024, 64), 64, "bench"),
    _torchs("transformer 8x1024x64 causal", (1, 8, 1024, 64), (1, 8, 1024, 64), 64, "bench", is_causal=True),
    _torchs("decode 8x1x2000x64", (1, 8, 1, 64), (1, 8, 2000, 64), 64, "bench"),
)
