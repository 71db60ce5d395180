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
from kernels.backends import BACKENDS as BACKENDS_OF_ALL
from kernels.backends import load
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


#: How many queries there are, and how large the largest score is; of one query sums in another order may pass 3e38.
LARGE_SCORES = ((9, 1e20), (9, 3e38), (1, 1e20))


def check_gradients_of_large_scores(
    taker: str, maker: str, width: int, queries: int, size: float, convert: Any = lambda a: a, *,
    same_sums: bool = True,
) -> None:  # fmt: skip
    """Gradients by `taker` are finite whoever made the log-sum-exp (`maker`), as a weight is never more than 1.

    A unit in the last place of a score is 2e31 at 3e38. Where both passes sum a product up in the same order
    (same_sums), with its own log-sum-exp a weight is 1 and the others 0, so that the gradient of values is the incoming
    one, and those of queries and keys are 0 but for the rounding of a difference of numbers of a few units, times a
    row's numbers. convert: from NumPy to the backends' arrays.
    """
    rng = np.random.default_rng(0)
    q, k, v, g = (rng.standard_normal((1, 2, n, e)).astype(np.float32) for n, e in (
        (queries, width), (13, width), (13, 8), (queries, 8)))  # fmt: skip
    factor = np.sqrt(size / np.abs(q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2)).max())
    q, k = (q * factor).astype(np.float32), (k * factor).astype(np.float32)
    captured = matrix.capture("attention", q, k, v, scale=1.0)
    problem, op = captured.problem(True), captured.op
    assert all(load(op.family, BACKENDS_OF_ALL[backend]) for backend in (taker, maker))
    given = [None if a is None else convert(a) for a in captured.inputs]
    results = op.implementations[maker].forward(problem, *given)
    known = dict(zip((*op.inputs, *op.results), (*given, *results)))
    saved = {name: known[name] for name in problem.saved()}
    found = op.implementations[taker].backward(problem, convert(g), None, **saved)
    dq, dk, dv = (np.asarray(a) for a in found[:3])
    assert all(np.isfinite(np.asarray(a)).all() for a in (*results[:1], dq, dk, dv))
    if maker == taker and same_sums:
        wide = (a.astype(np.float64) for a in (q, k, v))
        _, pullback = kernels.vjp("attention", *wide, scale=1.0, backend="reference")
        np.testing.assert_allclose(dv, pullback(g.astype(np.float64))[2], rtol=0, atol=1e-6)
        assert np.abs(dq).max() < 1e-4 * np.abs(k).max() and np.abs(dk).max() < 1e-4 * np.abs(q).max()


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
