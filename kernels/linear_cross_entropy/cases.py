"""Calls of linear_cross_entropy that tests and benchmarks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.case import Case


def _labels(
    shape: tuple[int, ...], classes: int, ignored: int | None, kind: str, weighted: bool
) -> Callable[[np.random.Generator, str], dict[str, Any]]:
    """Class indices, every third one `ignored`, and class weights."""

    def make(rng: np.random.Generator, dtype: str) -> dict[str, Any]:
        target = np.asarray(rng.integers(0, classes, shape), kind)
        if ignored is not None:
            target.reshape(-1)[::3] = ignored
        return {"target": target} | ({"weight": rng.uniform(0.5, 2, classes).astype(dtype)} if weighted else {})

    return make


def _probabilities(shape: tuple[int, ...]) -> Callable[[np.random.Generator, str], dict[str, Any]]:
    def make(rng: np.random.Generator, dtype: str) -> dict[str, Any]:
        numbers = rng.uniform(0.1, 1, shape)
        return {"target": (numbers / numbers.sum(1, keepdims=True)).astype(dtype)}

    return make


def _case(
    name: str, rows: tuple[int, ...], features: int, classes: int, *tags: str, inner: tuple[int, ...] = (),
    bias: bool = True, ignored: int | None = None, kind: str = "int64", weighted: bool = False, soft: bool = False,
    **arguments: Any,
) -> Case:  # fmt: skip
    outputs = (classes, *inner)
    shapes: dict[str, tuple[int, ...]] = {"input": (*rows, features), "linear_weight": (*outputs, features)}
    shapes |= {"linear_bias": outputs} if bias else {}
    make = _labels((*rows, *inner), classes, ignored, kind, weighted)
    if soft:
        make = _probabilities((*rows, *outputs))
    scale = {"linear_weight": 1 / max(features, 1) ** 0.5}
    return Case("linear_cross_entropy", name, shapes, arguments, tags, scale=scale, make=make)


CASES = (
    _case("rows", (9,), 12, 23, "ci"),
    _case("without bias, ignored", (15,), 8, 40, "ci", bias=False, ignored=-100),
    _case("sum int32", (9,), 7, 23, "ci", kind="int32", reduction="sum"),
    _case("none, smoothing", (24,), 16, 33, "ci", reduction="none", label_smoothing=0.2),
    _case(
        "weights, smoothing, ignored", (11,), 9, 18, "ci", ignored=4, ignore_index=4, weighted=True, label_smoothing=0.1
    ),
    _case("inner dimensions", (3,), 6, 5, "ci", inner=(4, 2), weighted=True),
    _case("probabilities", (6,), 5, 11, "ci", soft=True),
    _case("probabilities, inner, none", (4,), 5, 7, "odd", inner=(3,), soft=True, reduction="none"),
    _case("one row", (), 5, 13, "ci"),
    _case("empty sum", (0,), 4, 7, "odd", reduction="sum"),
    _case("empty none", (0,), 4, 7, "odd", reduction="none"),
    _case("vectors", (64,), 128, 512, "gpu", label_smoothing=0.1),
    _case("vocabulary 256x512x10000", (256,), 512, 10000, "bench", bias=False),
)
