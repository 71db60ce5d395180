"""Calls of linear that tests and benchmarks share."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.case import Case


def _scalar_bias(rng: np.random.Generator, dtype: str) -> dict[str, Any]:
    """A bias of shape (): the same number for every output."""
    return {"bias": np.full((), rng.standard_normal(), dtype)}


def _linear(
    name: str, x: tuple[int, ...], weight: tuple[int, ...], *tags: str, bias: bool = True, **arguments: Any
) -> Case:
    has_vector = bias and len(weight) == 2
    shapes = {"x": x, "weight": weight} | ({"bias": weight[:1]} if has_vector else {})
    make = _scalar_bias if bias and not has_vector else None
    return Case("linear", name, shapes, arguments, tags, scale={"weight": max(weight[-1], 1) ** -0.5}, make=make)


CASES = (
    # Every argument at least once, small.
    _linear("matrix", (13, 20), (33, 20), "ci"),
    _linear("no bias", (13, 20), (33, 20), "ci", bias=False),
    _linear("one vector", (20,), (33, 20), "ci"),
    _linear("sequence relu", (3, 5, 24), (17, 24), "ci", activation="relu"),
    _linear("images gelu", (2, 3, 4, 10), (12, 10), "ci", activation="gelu"),
    _linear("silu", (16, 40), (32, 40), "ci", activation="silu"),
    _linear("tanh", (5, 19), (35, 19), "ci", activation="tanh"),
    _linear("sigmoid no bias", (25, 31), (18, 31), "ci", bias=False, activation="sigmoid"),
    _linear("weight of one dimension", (6, 21), (21,), "ci"),
    Case("linear", "one bias for all", {"x": (6, 21), "weight": (17, 21)}, {"activation": "relu"}, make=_scalar_bias),
    _linear("weight of one dimension no bias", (2, 3, 21), (21,), "ci", bias=False, activation="tanh"),
    # Awkward sizes.
    _linear("1 x 1 x 1", (1, 1), (1, 1), "odd"),
    _linear("one vector, weight of one dimension", (7,), (7,), "odd"),
    _linear("one output", (70, 45), (1, 45), "odd"),
    _linear("one row", (1, 300), (67, 300), "odd", activation="relu"),
    _linear("four rows", (4, 270), (35, 270), "odd"),
    _linear("five rows", (5, 270), (131, 270), "odd"),
    _linear("one input feature", (29, 1), (31, 1), "odd"),
    _linear("a block of dot products", (21, 270), (77, 270), "odd", activation="silu"),
    _linear("past every block", (151, 530), (147, 530), "odd", activation="silu"),
    _linear("many rows, few outputs", (1500, 9), (3, 9), "odd"),
    _linear("no input features", (4, 0), (5, 0), "odd", activation="sigmoid"),
    _linear("no output features", (4, 3), (0, 3), "odd"),
    _linear("empty batch", (2, 0, 6), (4, 6), "odd"),
    _linear("vectors", (64, 256), (128, 256), "gpu", activation="gelu"),
    # Networks: the article's CNN and its LSTM's head, a Transformer's feed-forward, squares.
    _linear("cnn head 64x576-64", (64, 576), (64, 576), "bench", activation="relu"),
    _linear("cnn head 64x1600-64", (64, 1600), (64, 1600), "bench", activation="relu"),
    _linear("classifier 64x64-10", (64, 64), (10, 64), "bench"),
    _linear("one row 1024-4096", (1, 1024), (4096, 1024), "bench"),
    _linear("eight rows 1024-4096", (8, 1024), (4096, 1024), "bench"),
    _linear("feed-forward 1000x512-2048", (20, 50, 512), (2048, 512), "bench", activation="relu"),
    _linear("feed-forward 1000x2048-512", (20, 50, 2048), (512, 2048), "bench"),
    _linear("square 512", (512, 512), (512, 512), "bench"),
    _linear("square 1024", (1024, 1024), (1024, 1024), "bench"),
    _linear("square 2048", (2048, 2048), (2048, 2048), "bench"),
)
