"""What attention's scores are made of, in Triton executed on the CPU: dropout, relative terms, bias, what is hidden."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import kernels
from kernels.attention import gpu_tiles
from kernels.attention.gpu_tiles import AttentionTile
from kernels.random import keep_mask
from kernels.runtime.targets import TARGETS
from kernels.runtime.tuning import use_tile
from tests.attention import test_semantics as semantics
from tests.attention.helpers import gradients, inputs, relative_term
from tests.support.triton_interpreter import SMALL, on_cpu
from tests.triton_on_cpu.test_attention import against_reference

H100 = TARGETS["sm_90"]


@pytest.mark.parametrize("shape", [(2, 3, 37, 41), (1, 2, 20, 128), (1, 1, 3, 99)])
@pytest.mark.parametrize("seed", [-(2**40) + 3, 7])
def test_the_dropout_mask_is_that_of_every_backend(shape: tuple[int, ...], seed: int):
    """Read off values that are a unit matrix, and off their gradient."""
    batch, heads, queries, keys = shape
    q, k, _ = inputs(batch, heads, queries, keys, 4)
    unit = np.broadcast_to(np.eye(keys, dtype=np.float32), (batch, heads, keys, keys))
    wanted = keep_mask(shape, 0.35, seed)
    with on_cpu():
        found = kernels.attention(q, k, unit, dropout_p=0.35, seed=seed, backend="triton")
        v = np.zeros((batch, heads, keys, queries), np.float32)
        _, pullback = kernels.vjp("attention", q, k, v, dropout_p=0.35, seed=seed, backend="triton")
        back = pullback(np.broadcast_to(np.eye(queries, dtype=np.float32), (batch, heads, queries, queries)))[2]
    np.testing.assert_array_equal(found != 0, wanted)
    np.testing.assert_array_equal(back.swapaxes(-1, -2) != 0, wanted)


@pytest.mark.parametrize("clip", [0, 1, 5, 60])
@pytest.mark.parametrize("causal", [None, "top_left", "bottom_right"])
def test_shaws_term(clip: int, causal: str | None):
    q, k, v = inputs(2, 2, 19, 37, 8, dtype="float64")
    table = np.random.default_rng(3).standard_normal((2 * clip + 1, 8))
    rest = {"causal": causal, "lengths": np.array([37, 12]), "relative": kernels.RelativeShaw(table), "softcap": 5.0}
    with on_cpu():
        against_reference({"query": q, "key": k, "value": v, **rest})


@pytest.mark.parametrize("causal", [None, "bottom_right"])
def test_alibis_term(causal: str | None):
    q, k, v = inputs(2, 4, 19, 37, 8, kv_heads=2, dtype="float64")
    rest = {"causal": causal, "lengths": np.array([37, 12]), "relative": kernels.RelativeALiBi(kernels.alibi_slopes(4))}
    with on_cpu():
        against_reference({"query": q, "key": k, "value": v, **rest})


@pytest.mark.parametrize("kind", ["t5", "t5 causal"])
@pytest.mark.parametrize("causal", [None, "top_left", "bottom_right"])
def test_t5s_term(kind: str, causal: str | None):
    """Distances of both signs, beyond max_distance too, and buckets that several tiles share."""
    q, k, v = inputs(2, 2, 60, 90, 8, kv_heads=1, dtype="float64")
    rest = {"causal": causal, "lengths": np.array([90, 12]), "relative": relative_term(kind, 2, 8, "float64")}
    with on_cpu(), use_tile(AttentionTile(32, 64, 4, 1)):
        against_reference({"query": q, "key": k, "value": v, **rest})


@pytest.mark.parametrize("shape", [(2, 2, 17, 70), (1, 2, 17, 70), (2, 1, 1, 70), (1, 1, 17, 1), (1, 1, 1, 1)])
def test_the_gradient_of_a_bias_is_summed_where_it_broadcasts(shape: tuple[int, ...]):
    q, k, v = inputs(2, 2, 17, 70, 8, dtype="float64")
    bias = np.random.default_rng(1).standard_normal(shape)
    with on_cpu():
        against_reference({"query": q, "key": k, "value": v, "bias": bias, "causal": "bottom_right"})


def test_keys_behind_the_lengths_are_never_read():
    q, k, v = inputs(2, 2, 9, 40, 8)
    counts = np.array([40, 13])
    k[1, :, 13:], v[1, :, 13:] = np.nan, np.inf
    with on_cpu():
        found, (dq, dk, dv, *_) = gradients("triton", {"query": q, "key": k, "value": v, "lengths": counts})
    assert all(np.isfinite(a).all() for a in (found[0], dq, dk, dv))
    assert not dk[1, :, 13:].any() and not dv[1, :, 13:].any()


HIDDEN = {
    "anywhere": lambda: semantics.test_nothing_hidden_leaks("triton"),
    "ahead": lambda: semantics.test_nan_of_a_future_key_stays_in_the_future("triton", 70),
    "from one query of few": lambda: semantics.test_nan_of_a_future_key_stays_in_the_future("triton", 4),
    "from all queries": lambda: semantics.test_padding_that_no_query_sees_does_not_matter("triton"),
}


@pytest.mark.parametrize("where", HIDDEN)
def test_what_is_hidden_does_not_leak(where: str):
    """NaN and infinities in hidden keys and values, and in queries that see nothing: as on every backend."""
    with on_cpu(), use_tile(AttentionTile(128, 128, 4, 1)):
        HIDDEN[where]()


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("queries", [2, 20])
def test_what_is_seen_is_as_in_the_reference(odd: float, queries: int, monkeypatch: pytest.MonkeyPatch):
    """NaN and infinities among queries, keys and values that some see and others do not, keys split or not."""
    q, k, v = inputs(2, 2, queries, 70, 8, 12, kv_heads=1, dtype="float64")
    mask = np.random.default_rng(0).random((2, 1, queries, 70)) < (0.5 if queries == 2 else 0.15)
    k[0, 0, 20:22, 3], v[1, 0, 30:60:7, 1], v[1, 0, 12] = odd, odd, -odd
    q[0, 1, 1, 2] = odd
    arguments = {"query": q, "key": k, "value": v, "mask": mask, "return_lse": True}
    exact, exact_gradients = gradients("reference", arguments)
    monkeypatch.setattr(gpu_tiles, "SPLIT_KEYS", 24)
    with on_cpu(H100 if queries == 2 else SMALL) as launched, use_tile(AttentionTile(16, 32, 4, 1)):
        found, found_gradients = gradients("triton", arguments)
    assert ("join_splits" in launched) == (queries == 2)
    for a, b in zip((*found, *found_gradients[:3]), (*exact, *exact_gradients[:3]), strict=True):
        assert not np.isfinite(b).all() and np.isfinite(b).any()
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_blocks_that_are_no_numbers_are_done_again_in_parts():
    """The second launch's tile is smaller than the first one's."""
    first = AttentionTile(64, 64, 4, 3)
    assert gpu_tiles.selecting_tile(first, H100) == AttentionTile(16, 16, 8, 1)
    assert gpu_tiles.selecting_tile(first, H100, told=True) == AttentionTile(16, 16, 8, 1, 255)
    assert gpu_tiles.selecting_tile(first, TARGETS["gfx942"]) == AttentionTile(16, 16, 4, 1)
    with on_cpu():
        semantics.test_nan_of_a_future_key_stays_in_the_future("triton", 70)


def test_a_gradient_that_is_no_number_reaches_what_its_query_sees_alone():
    q, k, v = inputs(1, 2, 40, 50)
    with on_cpu():
        y, pullback = kernels.vjp("attention", q, k, v, causal="top_left", backend="triton")
        grad = np.ones_like(y)
        grad[0, 0, 10] = np.nan
        dq, dk, dv = pullback(grad)[:3]
    assert np.isnan(dq[0, 0, 10]).all() and np.isfinite(np.delete(dq[0, 0], 10, 0)).all()
    for d in (dk, dv):
        assert np.isnan(d[0, 0, :11]).all() and np.isfinite(d[0, 0, 11:]).all() and np.isfinite(d[0, 1]).all()


def test_products_follow_torchs_setting():
    """tf32 rounds the factors to 11 bits; the default is float32 proper."""
    q, k, v = inputs(1, 1, 40, 50, 64)
    exact = kernels.attention(*(a.astype(np.float64) for a in (q, k, v)), backend="reference")
    before = torch.get_float32_matmul_precision()
    errors = {}
    try:
        for setting in ("highest", "high"):
            torch.set_float32_matmul_precision(setting)
            with on_cpu():
                errors[setting] = np.abs(kernels.attention(q, k, v, backend="triton") - exact).max()
    finally:
        torch.set_float32_matmul_precision(before)
    assert errors["highest"] < 2e-6 and 1e-5 < errors["high"] < 1e-2
