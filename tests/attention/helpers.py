"""Arguments of attention for the tests of this family, and the equation written a second time, in plain torch."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

import kernels
from kernels.op import OPS
from tests.support import matrix

Array = np.ndarray[Any, Any]
BACKENDS = ("numba", "torch", "reference")
#: What a kernel may be off by, of numbers around 1.
TOLERANCES = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-6, "float64": 1e-12}
#: The package is hidden behind the public function of its name.
layout = importlib.import_module("kernels.attention.layout")
numba_cpu = importlib.import_module("kernels.attention.numba_cpu")
terms_cpu = importlib.import_module("kernels.attention.terms_cpu")
_modules = (numba_cpu, importlib.import_module("kernels.attention.by_address"))


def inputs(
    batch: int, heads: int, queries: int, keys: int, width: int = 8, value_width: int | None = None,
    kv_heads: int | None = None, dtype: str = "float32", seed: int = 0,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Standard normal query (B, H, L, E), key (B, Hk, S, E), value (B, Hk, S, Ev)."""
    rng = np.random.default_rng(seed)
    kv_heads = heads if kv_heads is None else kv_heads
    shapes = (
        (batch, heads, queries, width),
        (batch, kv_heads, keys, width),
        (batch, kv_heads, keys, width if value_width is None else value_width),
    )
    query, key, value = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    return query, key, value


def gradients(backend: str | None, arguments: dict[str, Any], seed: int = 1) -> tuple[tuple[Array, ...], list[Any]]:
    """Results of attention, and the gradients of its inputs for random incoming ones."""
    value, pullback = kernels.vjp("attention", **arguments, backend=backend)
    results = value if isinstance(value, tuple) else (value,)
    rng = np.random.default_rng(seed)
    incoming = [np.where(np.isfinite(r), rng.standard_normal(r.shape), 0).astype(r.dtype) for r in results]
    return results, list(pullback(*incoming))


def plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, mask: Any = None, bias: Any = None,
    causal: str | None = None, window: Any = None, softcap: float | None = None, scale: float | None = None,
    term: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The definition, as a reader of the docstring would write it; `term` is the relative term of every pair."""
    heads, queries, keys = query.shape[1], query.shape[2], key.shape[2]
    key, value = (x.repeat_interleave(heads // x.shape[1], 1) for x in (key, value))
    scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    for addend in (bias, term):
        scores = scores if addend is None else scores + addend
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    i = torch.arange(queries)[:, None] + (keys - queries if causal == "bottom_right" else 0)
    j = torch.arange(keys)
    seen = torch.ones(queries, keys, dtype=torch.bool)
    if causal is not None:
        seen &= j <= i
    if window is not None:
        left, right = (window, window) if isinstance(window, int) else window
        seen &= (j >= i - left) if left is not None else True
        seen &= (j <= i + right) if right is not None else True
    if mask is not None:
        seen = seen & mask
    if bias is not None:
        seen = seen & (bias != -torch.inf)
    scores = torch.where(seen, scores, -torch.inf)
    weights = torch.where(seen.any(-1, keepdim=True), torch.softmax(scores, -1), 0.0)
    return torch.where(seen, weights, 0.0) @ value


def backward_of_infinite_scores(backend: str, convert: Any = lambda a: a) -> tuple[list[Any], list[Any]]:
    """Gradients by the reference and by a backend, where the forward pass made a log-sum-exp of +inf of such a score.

    That is torch's; the reference's is NaN. convert: from NumPy to the backend's arrays.
    """
    query, key, value = inputs(1, 2, 5, 9)
    bias = np.zeros((5, 9), np.float32)
    bias[1, 2], bias[3] = np.inf, -np.inf
    captured = matrix.capture("attention", query, key, value, bias=bias)
    problem, op = captured.problem(True), captured.op
    output, lse = op.implementations["reference"].forward(problem, *captured.inputs)
    assert np.isnan(lse[..., 1]).all() and np.isneginf(lse[..., 3]).all() and np.isfinite(lse[..., [0, 2, 4]]).all()
    lse[..., 1] = np.inf
    known = dict(zip((*op.inputs, *op.results), (*captured.inputs, output, lse)))
    saved = {name: known[name] for name in problem.saved()}
    exact = op.implementations["reference"].backward(problem, np.ones_like(output), None, **saved)
    there = {name: a if a is None else convert(a) for name, a in saved.items()}
    found = op.implementations[backend].backward(problem, convert(np.ones_like(output)), None, **there)
    return list(exact), [None if a is None else np.asarray(a) for a in found]


@contextmanager
def tiles(block: int, backward_block: int) -> Iterator[None]:
    """Other tiles than the usual ones inside the block."""
    before = layout.BLOCK, layout.BACKWARD_BLOCK
    layout.BLOCK, layout.BACKWARD_BLOCK = block, backward_block
    OPS["attention"].plans.clear()
    try:
        yield
    finally:
        layout.BLOCK, layout.BACKWARD_BLOCK = before
        OPS["attention"].plans.clear()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Every kernel of the family works in `count` parts, however small its work is."""
    before = [module.threads_for for module in _modules]
    for module in _modules:
        module.threads_for = lambda work, grain: count
    try:
        yield
    finally:
        for module, function in zip(_modules, before):
            module.threads_for = function


def relative_term(kind: str, heads: int, width: int, dtype: str = "float32", clip: int = 3) -> Any:
    """A relative term with a random table, "shaw", "t5", "t5 causal" or "alibi"."""
    rng = np.random.default_rng(7)
    if kind == "shaw":
        return kernels.RelativeShaw(rng.standard_normal((2 * clip + 1, width)).astype(dtype), clip)
    if kind == "alibi":
        return kernels.RelativeALiBi(rng.uniform(0.05, 0.5, heads).astype(dtype))
    table = rng.standard_normal((16, heads)).astype(dtype)
    return kernels.RelativeT5(table, bidirectional=kind == "t5", max_distance=40)
