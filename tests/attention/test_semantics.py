"""What re-implementations of attention get wrong: rows that see nothing, NaN that leaks, ends of windows, lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kernels
from tests.attention.helpers import BACKENDS, gradients, inputs

#: Backends in which nothing hidden leaks at all; torch's own ops only keep keys apart that no query sees.
TIGHT = ("numba", "reference")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hide", ["mask", "bias", "window", "lengths", "no keys"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_see_nothing(backend: str, hide: str, dtype: str):
    """Output and gradients 0, log-sum-exp -inf; neither the mean of the values nor the unmasked result."""
    q, k, v = inputs(2, 2, 40, 0 if hide == "no keys" else 50, dtype=dtype)
    arguments: dict[str, Any] = {"query": q, "key": k, "value": v, "return_lse": True}
    blind = np.zeros((2, 1, 40, 1), bool)
    if hide in ("mask", "bias"):
        blind[1, 0, 3:20] = True
        seen = np.broadcast_to(~blind, (2, 1, 40, 50))
        arguments[hide] = seen if hide == "mask" else np.where(seen, 0, -np.inf).astype(dtype)
    elif hide == "window":
        arguments |= {"window": (2, 1), "key": k[:, :, :9], "value": v[:, :, :9]}
        blind[:, :, 11:] = True
    elif hide == "lengths":
        arguments["lengths"] = np.array([0, 50])
        blind[0] = True
    else:
        blind[:] = True
    (y, lse), found = gradients(backend, arguments)
    rows = np.broadcast_to(blind[..., 0], lse.shape)
    assert not y[rows].any() and (lse[rows] == -np.inf).all()
    assert np.isfinite(y).all() and np.isfinite(lse[~rows]).all()
    assert all(np.isfinite(g).all() for g in found if g is not None)
    assert not found[0][rows].any() and (rows.all() or found[0][~rows].any())


@pytest.mark.parametrize("backend", TIGHT)
def test_nothing_hidden_leaks(backend: str):
    """NaN and infinities in a hidden key or value, or in a query that sees nothing, change no bit elsewhere."""
    q, k, v = inputs(2, 4, 70, 90, 16, 12, kv_heads=2)
    mask = np.random.default_rng(0).random((2, 1, 70, 90)) < 0.5
    mask[..., 17] = mask[..., 40:60] = False
    mask[1, 0, 5] = False
    clean: dict[str, Any] = {"query": q, "key": k, "value": v, "mask": mask, "return_lse": True}
    expected, grads = gradients(backend, clean)
    for odd in (np.nan, np.inf, -np.inf):
        dirty = {n: clean[n].copy() for n in ("query", "key", "value")}
        dirty["key"][:, :, 17] = dirty["value"][:, :, 17] = odd
        dirty["key"][0, 1, 50:60, 3] = dirty["value"][1, 0, 40:45, 1] = odd
        dirty["query"][1, :, 5] = odd
        results, found = gradients(backend, clean | dirty)
        for a, b in zip([*expected, *grads[:3]], [*results, *found[:3]]):
            np.testing.assert_allclose(b, a, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("backend", TIGHT)
@pytest.mark.parametrize("queries", [4, 70])
def test_nan_of_a_future_key_stays_in_the_future(backend: str, queries: int):
    """A value that some queries of a tile see and others do not: 0 * NaN in the product of the weights."""
    q, k, v = inputs(1, 2, queries, queries)
    expected = kernels.attention(q, k, v, causal="top_left", backend=backend)
    at = queries - 2
    odd_value, odd_key = v.copy(), k.copy()
    odd_value[:, :, at], odd_key[:, :, at] = np.nan, np.inf
    for given in ((k, odd_value), (odd_key, v)):
        found, pullback = kernels.vjp("attention", q, *given, causal="top_left", backend=backend)
        np.testing.assert_allclose(found[:, :, :at], expected[:, :, :at], rtol=1e-5, atol=1e-6)
        assert np.isnan(found[:, :, at:]).all()
        grad = np.zeros_like(found)
        grad[:, :, :at] = 1
        dq, _, dv = pullback(grad)[:3]
        # Queries that do not see it have their gradient; weights that are numbers pass no NaN on to other values.
        assert np.isfinite(dq[:, :, :at]).all() and dq[:, :, :at].any()
        assert given[0] is odd_key or np.isfinite(dv).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_that_no_query_sees_does_not_matter(backend: str):
    q, k, v = inputs(2, 2, 20, 30)
    seen = np.arange(30) < np.array([21, 8])[:, None]
    for arguments in ({"lengths": np.array([21, 8])}, {"mask": seen[:, None, None]}):
        expected = gradients(backend, {"query": q, "key": k, "value": v, **arguments})
        k2, v2 = (np.where(seen[:, None, :, None], a, np.nan).astype("float32") for a in (k, v))
        found = gradients(backend, {"query": q, "key": k2, "value": v2, **arguments})
        for a, b in zip([*expected[0], *expected[1][:3]], [*found[0], *found[1][:3]]):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("queries", [2, 40])
def test_infinite_and_nan_scores_are_nan_as_in_torch(backend: str, queries: int):
    q, k, v = (np.abs(a) for a in inputs(1, 1, queries, 50))
    for odd in (np.inf, np.nan):
        changed = k.copy()
        changed[0, 0, 30, 2] = odd
        assert np.isnan(kernels.attention(q, changed, v, backend=backend)).all()
        # Of one query only.
        one = q.copy()
        one[0, 0, 1, 3] = odd
        y = kernels.attention(one, k, v, backend=backend)
        assert np.isnan(y[0, 0, 1]).all() and np.isfinite(np.delete(y, 1, 2)).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("queries", [1, 60])
def test_blocks_without_anything_to_see_inside_a_row(backend: str, queries: int):
    """Scores that are -inf in whole blocks of keys, first, in the middle, and last, but not in the row."""
    q, k, v = inputs(1, 2, queries, 700)
    seen = np.zeros(700, bool)
    seen[[250, 251, 500]] = True
    y, lse = kernels.attention(q, k, v, mask=np.broadcast_to(seen, (queries, 700)), return_lse=True, backend=backend)
    few = kernels.attention(q, k[:, :, seen], v[:, :, seen], return_lse=True, backend=backend)
    np.testing.assert_allclose(y, few[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse, few[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("queries", [1, 3, 35])
@pytest.mark.parametrize("causal", [None, "top_left", "bottom_right"])
def test_lengths_are_as_if_the_other_keys_were_not_there(backend: str, queries: int, causal: str | None):
    q, k, v = inputs(4, 4, queries, 150, kv_heads=2)
    lengths = np.array([150, 1, 97, 0], np.int32)
    arguments: dict[str, Any] = {"causal": causal, "window": (60, None), "return_lse": True}
    (y, lse), found = gradients(backend, {"query": q, "key": k, "value": v, "lengths": lengths, **arguments})
    for b, n in enumerate(lengths):
        row = {"query": q[b : b + 1], "key": k[b : b + 1, :, :n], "value": v[b : b + 1, :, :n], **arguments}
        value, pullback = kernels.vjp("attention", **row, backend=backend)
        np.testing.assert_allclose(y[b], value[0][0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(lse[b], value[1][0], rtol=1e-5, atol=1e-6)
        assert not found[1][b, :, n:].any() and not found[2][b, :, n:].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_window_edges_are_inside(backend: str):
    """Weights are read off values that are a unit matrix."""
    q, k, _ = inputs(1, 1, 40, 40)
    v = np.eye(40, dtype="float32")[None, None]
    i, j = np.arange(40)[:, None], np.arange(40)
    for window, seen in (
        (3, abs(i - j) <= 3),
        ((2, 5), (j >= i - 2) & (j <= i + 5)),
        ((0, None), j >= i),
        ((None, 0), j <= i),
    ):
        weights = kernels.attention(q, k, v, window=window, backend=backend)[0, 0]
        np.testing.assert_array_equal(weights > 0, seen)
        np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [None, (20, None)])
def test_one_query_after_the_other_with_a_cache_is_the_whole(backend: str, window: Any):
    """Decoding: each step's query with all keys so far, in a cache with room for more."""
    q, k, v = inputs(1, 4, 60, 60, kv_heads=2)
    whole = kernels.attention(q, k, v, causal="bottom_right", window=window, backend=backend)
    room_k, room_v = (np.full((1, 2, 100, 8), np.nan, np.float32) for _ in range(2))
    for step in range(60):
        room_k[:, :, step], room_v[:, :, step] = k[:, :, step], v[:, :, step]
        y = kernels.attention(
            q[:, :, step : step + 1], room_k, room_v, lengths=np.array([step + 1]), causal="bottom_right",
            window=window, backend=backend,
        )  # fmt: skip
        np.testing.assert_allclose(y[:, :, 0], whole[:, :, step], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bool_mask_says_what_is_seen(backend: str):
    q, k, v = inputs(1, 1, 6, 9)
    mask = np.zeros((6, 9), bool)
    mask[:, 4] = True
    y = kernels.attention(q, k, v, mask=mask, backend=backend)
    np.testing.assert_allclose(y, np.broadcast_to(v[:, :, 4:5], y.shape), rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_scores(backend: str):
    """Scores of +-1e4 and beyond: a softmax that is a choice."""
    q, k, v = inputs(1, 2, 40, 130)
    for scale in (1e4, -1e4, 1e30):
        y, lse = kernels.attention(q, k, v, scale=scale, return_lse=True, backend=backend)
        products = np.einsum("bhie,bhje->bhij", q.astype("float64"), k) * scale
        best = np.take_along_axis(v[:, :, None], products.argmax(-1)[..., None, None], 3)[..., 0, :]
        second = np.partition(products, -2, -1)[..., -2]
        clear = products.max(-1) - second > 100
        assert clear.any()
        np.testing.assert_allclose(y[clear], best[clear], rtol=1e-5)
        np.testing.assert_allclose(lse, products.max(-1), rtol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_last_dimension_may_be_empty(backend: str):
    """Without columns all scores are equal: a plain mean, as in torch."""
    q, k, v = inputs(1, 2, 5, 9, 0, 3)
    (y,), found = gradients(backend, {"query": q, "key": k, "value": v})
    np.testing.assert_allclose(y, np.broadcast_to(v.mean(2, keepdims=True), y.shape), rtol=1e-5, atol=1e-6)
    assert found[0].shape == q.shape and found[1].shape == k.shape and found[2].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_key(backend: str):
    """The softmax of one score is 1 and its derivative 0."""
    q, k, v = inputs(2, 2, 40, 1)
    (y,), found = gradients(backend, {"query": q, "key": k, "value": v})
    np.testing.assert_allclose(y, np.broadcast_to(v, y.shape), rtol=1e-6)
    np.testing.assert_allclose(found[0], 0, atol=3e-6)
    np.testing.assert_allclose(found[1], 0, atol=3e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_permuted_batch_gives_a_permuted_result(backend: str):
    q, k, v = inputs(5, 2, 40, 50)
    order = np.array([3, 1, 4, 0, 2])
    straight = gradients(backend, {"query": q, "key": k, "value": v, "causal": "top_left"})
    one = straight[0][0]
    np.testing.assert_array_equal(
        kernels.attention(q[order], k[order], v[order], causal="top_left", backend=backend), one[order]
    )


def test_five_dimensions():
    q, k, v = (np.random.default_rng(0).standard_normal(s).astype("float32") for s in [(2, 3, 4, 9, 8)] * 3)
    bias = np.random.default_rng(1).standard_normal((2, 1, 4, 9, 9)).astype("float32")
    lengths = np.array([[9, 4, 0], [2, 9, 5]])
    y, lse = kernels.attention(q, k, v, bias=bias, lengths=lengths, causal="top_left", return_lse=True)
    assert y.shape == (2, 3, 4, 9, 8) and lse.shape == (2, 3, 4, 9)
    for a in range(2):
        for b in range(3):
            row = kernels.attention(
                q[a, b : b + 1], k[a, b : b + 1], v[a, b : b + 1], bias=bias[a], lengths=lengths[a, b : b + 1],
                causal="top_left",
            )  # fmt: skip
            np.testing.assert_array_equal(y[a, b], row[0])


def test_torch_tensors_that_want_no_gradient_but_one():
    q, k, v = map(torch.from_numpy, inputs(1, 2, 9, 12))
    bias = torch.randn(9, 12, requires_grad=True)
    (alone,) = torch.autograd.grad(kernels.attention(q, k, v, bias=bias).sum(), bias)
    for t in (q, k, v):
        t.requires_grad_()
    (together,) = torch.autograd.grad(kernels.attention(q, k, v, bias=bias).sum(), bias)
    torch.testing.assert_close(alone, together, rtol=0, atol=0)
