"""Dropout of weights: the same mask on every backend, tiling, thread count and dtype; its statistics and its limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels.random import keep_mask
from tests.attention.helpers import BACKENDS, gradients, inputs, threads, tiles


def dropped_forward(
    backend: str, shape: tuple[int, ...], p: float, seed: int, dtype: str, **options: Any
) -> np.ndarray:
    """Which weights are kept, read off values that are a unit matrix: bool (B, H, L, S)."""
    batch, heads, queries, keys = shape
    q, k, _ = inputs(batch, heads, queries, keys, 4, dtype=dtype)
    v = np.broadcast_to(np.eye(keys, dtype=dtype), (batch, heads, keys, keys))
    return kernels.attention(q, k, v, dropout_p=p, seed=seed, backend=backend, **options) != 0


def dropped_backward(backend: str, shape: tuple[int, ...], p: float, seed: int, dtype: str) -> np.ndarray:
    """The same, read off the gradient of the values for unit gradients of the output."""
    batch, heads, queries, keys = shape
    q, k, _ = inputs(batch, heads, queries, keys, 4, dtype=dtype)
    v = np.zeros((batch, heads, keys, queries), dtype)
    _, pullback = kernels.vjp("attention", q, k, v, dropout_p=p, seed=seed, backend=backend)
    grad = np.broadcast_to(np.eye(queries, dtype=dtype), (batch, heads, queries, queries))
    return pullback(grad)[2].swapaxes(-1, -2) != 0


SHAPES = [(2, 3, 37, 41), (1, 2, 70, 128), (2, 1, 33, 250), (1, 1, 3, 99)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_mask_is_the_counter_alone(shape: tuple[int, ...], dtype: str):
    """Bit for bit that of `kernels.random`, in both directions, at any tiling and any number of threads."""
    seed, p = -(2**40) + 3, 0.35
    wanted = keep_mask(shape, p, seed)
    for backend in ("reference", "torch"):
        np.testing.assert_array_equal(dropped_forward(backend, shape, p, seed, dtype), wanted)
        np.testing.assert_array_equal(dropped_backward(backend, shape, p, seed, dtype), wanted)
    for block, backward_block in ((96, 96), (12, 24), (60, 36), (192, 144)):
        with tiles(block, backward_block):
            for count in (1, 2, 5):
                with threads(count):
                    np.testing.assert_array_equal(dropped_forward("numba", shape, p, seed, dtype), wanted)
                    np.testing.assert_array_equal(dropped_backward("numba", shape, p, seed, dtype), wanted)


def test_the_mask_does_not_depend_on_what_is_hidden():
    """The index counts all keys, also where blocks are skipped and a row of the batch has fewer keys."""
    shape, seed = (2, 2, 60, 210), 11
    wanted = keep_mask(shape, 0.5, seed)
    i, j = np.arange(60)[:, None], np.arange(210)
    cases: list[tuple[dict[str, Any], np.ndarray]] = [
        ({"causal": "top_left"}, j <= i),
        ({"causal": "bottom_right", "window": (70, None)}, (j <= i + 150) & (j >= i + 80)),
        ({"lengths": np.array([210, 133])}, np.broadcast_to(j < np.array([210, 133])[:, None, None, None], shape)),
    ]
    for options, seen in cases:
        for backend in BACKENDS:
            found = dropped_forward(backend, shape, 0.5, seed, "float32", **options)
            np.testing.assert_array_equal(found, wanted & seen)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_sum_of_weights_is_not_dropped(backend: str):
    """Kept weights are those without dropout times 1 / (1 - p)."""
    q, k, _ = inputs(1, 2, 40, 50, dtype="float64")
    v = np.broadcast_to(np.eye(50), (1, 2, 50, 50))
    whole = kernels.attention(q, k, v, backend=backend)
    part, lse = kernels.attention(q, k, v, dropout_p=0.25, seed=1, return_lse=True, backend=backend)
    np.testing.assert_allclose(part[part != 0], (whole / 0.75)[part != 0], rtol=1e-12)
    np.testing.assert_allclose(lse, kernels.attention(q, k, v, return_lse=True, backend=backend)[1], rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_ends_of_the_range(backend: str):
    q, k, v = inputs(2, 2, 40, 50)
    for seed in (0, None):
        (y,), found = gradients(backend, {"query": q, "key": k, "value": v, "dropout_p": 1.0, "seed": seed})
        assert not y.any() and not any(g.any() for g in found[:3])
    plain = kernels.attention(q, k, v, backend=backend)
    np.testing.assert_array_equal(kernels.attention(q, k, v, dropout_p=0.0, seed=3, backend=backend), plain)
    np.testing.assert_array_equal(kernels.attention(q, k, v, dropout_p=0, backend=backend), plain)


def test_the_share_that_is_kept():
    kept = dropped_forward("numba", (4, 4, 64, 128), 0.3, 5, "float32")
    assert abs(kept.mean() - 0.7) < 0.01
    assert not (kept == dropped_forward("numba", (4, 4, 64, 128), 0.3, 6, "float32")).all()


def test_seeds_are_drawn_from_the_usual_generators():
    q, k, v = inputs(1, 1, 20, 30)
    for make, function in ((np.asarray, kernels.attention), (torch.from_numpy, kernels.attention)):
        given = [make(a) for a in (q, k, v)]
        seen = []
        for fix in (1, 1, 2):
            np.random.seed(fix)
            torch.manual_seed(fix)
            seen.append([np.asarray(function(*given, dropout_p=0.5)) for _ in range(2)])
        np.testing.assert_array_equal(seen[0], seen[1])
        assert not np.array_equal(seen[0][0], seen[0][1]) and not np.array_equal(seen[0], seen[2])
    torch.manual_seed(4)
    first = kernels.scaled_dot_product_attention(*map(torch.from_numpy, (q, k, v)), dropout_p=0.5)
    torch.manual_seed(4)
    assert torch.equal(first, kernels.attention(*map(torch.from_numpy, (q, k, v)), dropout_p=0.5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_average_over_seeds_is_attention_without_dropout(backend: str):
    q, k, v = inputs(1, 1, 4, 30, dtype="float64")
    whole = kernels.attention(q, k, v, backend=backend)
    mean = np.mean([kernels.attention(q, k, v, dropout_p=0.2, seed=s, backend=backend) for s in range(400)], 0)
    np.testing.assert_allclose(mean, whole, atol=0.05)


def test_a_compiled_function_draws_a_new_seed_at_every_call():
    q, k, v = map(torch.from_numpy, inputs(1, 1, 20, 30))
    torch.compiler.reset()
    compiled = torch.compile(
        lambda: kernels.scaled_dot_product_attention(q, k, v, dropout_p=0.5), fullgraph=True, backend="aot_eager"
    )
    assert not torch.equal(compiled(), compiled())


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend: str):
    """gradcheck sees the same mask at every call, and the weights that it changes."""
    q, k, v = (torch.from_numpy(a).requires_grad_() for a in inputs(1, 4, 6, 9, 3, 2, kv_heads=2, dtype="float64"))
    assert torch.autograd.gradcheck(
        lambda *t: kernels.attention(*t, dropout_p=0.4, seed=9, causal="bottom_right", backend=backend), (q, k, v)
    )
