"""Calls of the activations that tests and benchmarks share."""

from __future__ import annotations

from typing import Any

from kernels.case import Case


def _every(
    name: str, x: tuple[int, ...], *tags: str, last: bool = False, scale: float = 1.0, **arguments: Any
) -> tuple[Case, ...]:
    """The case for every activation, gelu in both of its forms."""
    plain = ("relu", "silu", "sigmoid", "tanh", "gelu")
    calls = [Case(op, name, {"x": x}, arguments, tags, last, {"x": scale}) for op in plain]
    approximate = {"approximate": "tanh", **arguments}
    return (*calls, Case("gelu", f"tanh {name}", {"x": x}, approximate, tags, last, {"x": scale}))


CASES = (
    *_every("matrix", (7, 33), "ci", scale=3.0),
    *_every("channels-last", (2, 5, 4, 3), "ci", last=True),
    *_every("1 element", (1,), "odd"),
    *_every("0-d", (), "odd"),
    *_every("empty", (3, 0), "odd"),
    *_every("five dimensions", (2, 1, 3, 1, 5), "odd"),
    *_every("large numbers", (41,), "odd", scale=300.0),
    *_every("transformer 64x50x2048", (64, 50, 2048), "bench"),
    *_every("image 1x64x56x56", (1, 64, 56, 56), "bench"),
    *_every("small 64x10", (64, 10), "bench"),
    *_every("vectors", (16, 256), "gpu"),
)
