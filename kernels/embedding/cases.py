"""Calls of embedding that tests and benchmarks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.case import Case


def _indices(
    shape: tuple[int, ...], rows: int, kind: str, zipf: bool
) -> Callable[[np.random.Generator, str], dict[str, Any]]:
    """Indices of `shape`, evenly spread or, as words are, mostly small."""

    def make(rng: np.random.Generator, dtype: str) -> dict[str, Any]:
        found = rng.zipf(1.2, shape) % rows if zipf else rng.integers(0, max(rows, 1), shape)
        return {"input": np.asarray(found, kind)}

    return make


def _case(
    name: str,
    weight: tuple[int, int],
    input: tuple[int, ...],
    *tags: str,
    kind: str = "int64",
    zipf: bool = False,
    derivative: bool = True,
    **arguments: Any,
) -> Case:
    make = _indices(input, weight[0], kind, zipf)
    return Case("embedding", name, {"weight": weight}, arguments, tags, make=make, derivative=derivative)


CASES = (
    _case("sentences", (11, 37), (3, 5), "ci"),
    _case("one list int32", (9, 16), (20,), "ci", kind="int32"),
    _case("padding", (5, 33), (4, 6), "ci", padding_idx=2, derivative=False),
    _case("padding from the end", (5, 7), (2, 2, 6), "ci", padding_idx=-1, derivative=False),
    _case("gradient by frequency", (4, 19), (5, 5), "ci", scale_grad_by_freq=True, padding_idx=0, derivative=False),
    _case("largest norm", (6, 21), (3, 4), "ci", max_norm=4.5, derivative=False),
    _case("largest norm of another kind", (6, 21), (3, 4), "ci", max_norm=2.5, norm_type=3.0, derivative=False),
    _case("vectors", (64, 256), (8, 16), "gpu"),
    _case("one index", (6, 5), (), "odd"),
    _case("one feature", (6, 1), (7,), "odd"),
    _case("many features", (3, 300), (2, 2), "odd"),
    _case("no indices", (6, 5), (0, 3), "odd"),
    _case("no features", (6, 0), (4,), "odd"),
    _case("vocabulary 10000x512 of 64x50", (10000, 512), (64, 50), "bench", zipf=True),
    _case("vocabulary 30522x768 of 8x128", (30522, 768), (8, 128), "bench", zipf=True),
    _case("packages 164x64 of 64x50", (164, 64), (64, 50), "bench"),
)
