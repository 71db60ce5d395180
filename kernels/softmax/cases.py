"""Calls of softmax, log_softmax and cross_entropy that tests and benchmarks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.case import Case

Array = np.ndarray[Any, Any]


def _both(
    name: str, x: tuple[int, ...], *tags: str, last: bool = False, scale: float = 1.0, **arguments: Any
) -> tuple[Case, ...]:
    return tuple(Case(op, name, {"x": x}, arguments, tags, last, {"x": scale}) for op in ("softmax", "log_softmax"))


def _labels(
    shape: tuple[int, ...], ignored: int | None, kind: str, weighted: bool
) -> Callable[[np.random.Generator, str], dict[str, Any]]:
    """Class indices for logits of `shape`, every third one `ignored`, and class weights."""
    classes = shape[0] if len(shape) == 1 else shape[1]

    def make(rng: np.random.Generator, dtype: str) -> dict[str, Any]:
        target = np.asarray(rng.integers(0, classes, (*shape[:1], *shape[2:]) if len(shape) > 1 else ()), kind)
        if ignored is not None:
            target.reshape(-1)[::3] = ignored
        return {"target": target} | ({"weight": rng.uniform(0.5, 2, classes).astype(dtype)} if weighted else {})

    return make


def _probabilities(shape: tuple[int, ...], weighted: bool) -> Callable[[np.random.Generator, str], dict[str, Any]]:
    dim = 0 if len(shape) == 1 else 1

    def make(rng: np.random.Generator, dtype: str) -> dict[str, Any]:
        target: Array = rng.uniform(0.1, 1, shape)
        target = (target / target.sum(dim, keepdims=True)).astype(dtype)
        return {"target": target} | ({"weight": rng.uniform(0.5, 2, shape[dim]).astype(dtype)} if weighted else {})

    return make


def _entropy(
    name: str,
    shape: tuple[int, ...],
    *tags: str,
    last: bool = False,
    ignored: int | None = None,
    kind: str = "int64",
    weighted: bool = False,
    soft: bool = False,
    **arguments: Any,
) -> Case:
    make = _probabilities(shape, weighted) if soft else _labels(shape, ignored, kind, weighted)
    return Case("cross_entropy", name, {"input": shape}, arguments, tags, last, make=make)


CASES = (
    *_both("rows", (6, 37), "ci"),
    *_both("inner dimension", (3, 5, 19), "ci", dim=1),
    *_both("first dimension", (21, 18), "ci", dim=0),
    *_both("channels-last", (2, 5, 4, 3), "ci", last=True, dim=1),
    *_both("long rows", (2, 300), "ci", scale=4.0),
    *_both("0-d", (), "odd"),
    *_both("size 1", (4, 1, 3), "odd", dim=1),
    *_both("size 0", (4, 0), "odd"),
    *_both("empty batch", (0, 3), "odd"),
    *_both("1 element", (1,), "odd", dim=0),
    *_both("large logits", (5, 23), "odd", scale=1e4),
    *_both("attention rows 3200x512", (3200, 512), "bench"),
    *_both("small 64x10", (64, 10), "bench"),
    *_both("many small 6400x10", (6400, 10), "bench"),
    *_both("vocabulary 64x10000", (64, 10000), "bench"),
    *_both("channels 8x21x64x64", (8, 21, 64, 64), "bench", dim=1),
    *_both("vectors along rows", (24, 512), "gpu"),
    *_both("vectors across rows", (2, 24, 128), "gpu", dim=1),
    _entropy("vectors along rows", (24, 512), "gpu"),
    _entropy("vectors across rows", (2, 24, 128), "gpu", weighted=True, label_smoothing=0.1),
    _entropy("rows", (9, 23), "ci"),
    _entropy("rows none", (9, 23), "ci", reduction="none"),
    _entropy("rows sum int32", (9, 23), "ci", kind="int32", reduction="sum"),
    _entropy("weights ignored", (11, 18), "ci", ignored=-100, weighted=True),
    _entropy(
        "weights smoothing ignored", (11, 18), "ci", ignored=4, ignore_index=4, weighted=True, label_smoothing=0.1
    ),
    _entropy("smoothing none uint8", (7, 5), "ci", kind="uint8", label_smoothing=0.3, reduction="none"),
    _entropy("images", (2, 5, 4, 7), "ci", weighted=True),
    _entropy("images channels-last ignored", (2, 5, 4, 3), "ci", last=True, ignored=-1, ignore_index=-1),
    _entropy("sequence smoothing", (3, 6, 19), "ci", label_smoothing=0.2, weighted=True, reduction="sum"),
    _entropy("probabilities", (8, 21), "ci", soft=True),
    _entropy("probabilities weights smoothing", (8, 21), "ci", soft=True, weighted=True, label_smoothing=0.1),
    _entropy("probabilities images none", (2, 5, 3, 7), "ci", soft=True, weighted=True, reduction="none"),
    _entropy("probabilities sum", (4, 7, 18), "ci", soft=True, reduction="sum"),
    _entropy("one row", (13,), "ci"),
    _entropy("one row probabilities", (13,), "odd", soft=True),
    _entropy("1 class", (5, 1), "odd"),
    _entropy("empty sum", (0, 4), "odd", reduction="sum"),
    _entropy("empty none", (0, 4), "odd", reduction="none"),
    _entropy("labels 64x10", (64, 10), "bench"),
    _entropy("labels 3200x512", (3200, 512), "bench"),
    _entropy("vocabulary 512x10000", (512, 10000), "bench"),
    _entropy("segmentation 8x21x64x64", (8, 21, 64, 64), "bench"),
)
