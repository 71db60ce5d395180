"""Calls of dropout that tests and benchmarks share."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.case import Case


def _seed(rng: np.random.Generator, dtype: str) -> dict[str, Any]:
    return {"seed": np.asarray(rng.integers(-(2**63), 2**63 - 1), np.int64)}


def _dropout(name: str, x: tuple[int, ...], *tags: str, **arguments: Any) -> Case:
    return Case("dropout", name, {"x": x}, arguments, tags, make=_seed)


CASES = (
    _dropout("matrix", (13, 21), "ci", p=0.3),
    _dropout("sequence stream 3", (5, 3, 40), "ci", stream=3),
    _dropout("p 0", (7, 6), "ci", p=0.0),
    _dropout("vectors", (24, 256), "gpu", p=0.3),
    _dropout("p 1", (7, 6), "odd", p=1.0),
    _dropout("0-d", (), "odd"),
    _dropout("empty", (0, 3), "odd"),
    _dropout("several pieces", (3, 700), "odd", p=0.9),
    _dropout("activations 64x50x256", (64, 50, 256), "bench", p=0.2),
)
