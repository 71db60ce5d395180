"""Calls of layer_norm and rms_norm that tests and benchmarks share."""

from __future__ import annotations

from typing import Any

from kernels.case import Case


def _case(
    op: str, name: str, x: tuple[int, ...], *tags: str, over: int = 1, given: str = "weight bias", **rest: Any
) -> Case:
    """`over`: how many dimensions are normalised; `given`: which of weight and bias there are."""
    sizes = x[len(x) - over :]
    shapes = {"x": x} | {n: sizes for n in given.split() if op == "layer_norm" or n != "bias"}
    last = rest.pop("last", False)
    scale = rest.pop("scale", {})
    return Case(op, name, shapes, {"normalized_shape": sizes, **rest}, tags, last, scale)


def _both(name: str, x: tuple[int, ...], *tags: str, **rest: Any) -> tuple[Case, ...]:
    return tuple(_case(op, name, x, *tags, **rest) for op in ("layer_norm", "rms_norm"))


CASES = (
    *_both("rows", (6, 37), "ci"),
    *_both("no weight", (5, 3, 20), "ci", given=""),
    *_both("two dimensions", (4, 3, 5, 7), "ci", over=2),
    *_both("channels-last", (2, 5, 4, 3), "ci", over=3, last=True),
    *_both("whole vectors", (7, 128), "ci"),
    _case("layer_norm", "weight only", (3, 4, 19), "ci", given="weight", eps=1e-3),
    _case("layer_norm", "bias only", (9, 17), "ci", given="bias"),
    _case("rms_norm", "eps", (3, 4, 19), "ci", eps=1e-3),
    *_both("many parts", (150, 33), "ci"),
    *_both("vectors", (40, 512), "gpu"),
    *_both("one row", (70,), "odd"),
    *_both("long rows", (2, 700), "odd", scale={"x": 30.0}),
    *_both("short rows", (40, 3), "odd"),
    *_both("empty batch", (0, 3), "odd"),
    *_both("size 0", (4, 0), "odd"),
    *_both("rows 3200x512", (3200, 512), "bench"),
    *_both("sequences 8x128x768", (8, 128, 768), "bench"),
    *_both("short rows 1024x64", (1024, 64), "bench"),
    *_both("medium 128x256", (128, 256), "bench"),
    *_both("small 32x64", (32, 64), "bench"),
)
