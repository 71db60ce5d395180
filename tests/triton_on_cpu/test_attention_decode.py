"""Decode in Triton with heads that share keys, executed on the CPU: one program takes all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels.attention import gpu_tiles, triton_gpu
from kernels.attention.gpu_tiles import AttentionTile
from kernels.runtime.targets import TARGETS
from kernels.runtime.tuning import use_tile
from tests.attention.helpers import inputs, relative_term
from tests.support import layouts
from tests.support.triton_interpreter import on_cpu
from tests.triton_on_cpu.test_attention import against_reference

H100 = TARGETS["sm_90"]
HEADS, KV_HEADS, KEYS = 6, 2, 70


def decoded(**more: Any) -> dict[str, Any]:
    """A query of two rows of the batch, whose six heads share two of keys, in float64."""
    q, k, v = inputs(2, HEADS, 1, KEYS, 8, 12, kv_heads=KV_HEADS, dtype="float64")
    return {"query": q, "key": k, "value": v, "return_lse": True, **more}


def programs_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(kernel, programs) of every launch of the forward pass from now on."""
    seen: list[tuple[str, int]] = []
    launch = triton_gpu.launch

    def watch(kernel: Any, grid: Any, *given: Any, **options: Any) -> None:
        seen.append((kernel.fn.__name__, grid[0]))
        launch(kernel, grid, *given, **options)

    monkeypatch.setattr(triton_gpu, "launch", watch)
    return seen


def check_results(arguments: dict[str, Any]) -> None:
    """Output and log-sum-exp in float64 equal those of the reference to rounding."""
    exact, found = (kernels.attention(**arguments, backend=backend) for backend in ("reference", "triton"))
    for a, b in zip(found, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def random_mask(*shape: int) -> np.ndarray[Any, Any]:
    mask: np.ndarray[Any, Any] = np.random.default_rng(5).random(shape) < 0.7
    return mask


def random_bias(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(6).standard_normal(shape)


#: By name: what a score has beside its product, taken with all heads of a group in a program.
TAKEN: dict[str, dict[str, Any]] = {
    "nothing": {},
    "causal": {"causal": "bottom_right"},
    "lengths": {"lengths": np.array([50, 3])},
    "no keys": {"lengths": np.array([0, 70]), "causal": "bottom_right"},
    "mask": {"mask": random_mask(2, HEADS, 1, KEYS)},
    "mask of all heads": {"mask": random_mask(2, 1, 1, KEYS), "causal": "bottom_right"},
    "mask that hides all": {"mask": np.zeros((HEADS, 1, KEYS), bool)},
    "bias": {"bias": random_bias(1, HEADS, 1, KEYS)},
    "bias of heads": {"bias": random_bias(2, HEADS, 1, 1)},
    "bias of a row": {"bias": random_bias(2, 1, 1, KEYS)},
    "dropout": {"dropout_p": 0.3, "seed": 5},
    "softcap": {"softcap": 2.0, "scale": 0.7},
    "all": {
        "causal": "bottom_right", "lengths": np.array([70, 33]), "mask": random_mask(HEADS, 1, KEYS),
        "bias": random_bias(2, HEADS, 1, KEYS), "dropout_p": 0.3, "seed": 5, "softcap": 2.0,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("splits", [1, 3])
def test_heads_that_share_keys_are_taken_together(name: str, splits: int, monkeypatch: pytest.MonkeyPatch):
    """A program for each row of the batch, head of keys and split."""
    seen = programs_of(monkeypatch)
    monkeypatch.setattr(gpu_tiles, "SPLIT_KEYS", KEYS // splits)
    with on_cpu(H100, seed=1), use_tile(AttentionTile(16, 32, 4, 1)):
        check_results(decoded(**TAKEN[name]))
    assert {programs for kernel, programs in seen if kernel == "attention_forward"} == {2 * KV_HEADS * splits}
    assert ("join_splits" in dict(seen)) == (splits > 1)


def test_gradients():
    """Backward, which has a program for each head, takes what the forward pass leaves."""
    with on_cpu(), use_tile(AttentionTile(16, 32, 4, 1)):
        against_reference(decoded(**TAKEN["all"]))


def test_more_heads_than_a_tile_holds(monkeypatch: pytest.MonkeyPatch):
    seen = programs_of(monkeypatch)
    q, k, v = inputs(1, 37, 1, 20, kv_heads=1, dtype="float64")
    arguments = {"query": q, "key": k, "value": v, "mask": random_mask(37, 1, 20), "dropout_p": 0.5, "seed": 2}
    with on_cpu(), use_tile(AttentionTile(16, 16, 4, 1)):
        check_results(arguments | {"return_lse": True})
    assert set(seen) == {("attention_forward", 3)}


def test_what_is_hidden_counts_nothing():
    """A key of infinities and a value of NaN: of a masked head nothing, of its neighbours in the tile all."""
    given = decoded(mask=np.ones((HEADS, 1, KEYS), bool), return_lse=False)
    given["mask"][4, 0, 9] = False
    given["value"][:, 1, 9, 3] = np.nan
    given["key"][:, 1, 9, 0] = np.inf
    with on_cpu():
        found = kernels.attention(**given, backend="triton")
    assert np.isfinite(found[:, [0, 1, 2, 4]]).all()
    assert np.isnan(found[:, [3, 5], 0, 3]).all()
    clean = given | {"value": np.nan_to_num(given["value"]), "key": np.nan_to_num(given["key"], posinf=0.0)}
    exact = kernels.attention(**clean, backend="reference")
    np.testing.assert_allclose(found[:, 4], exact[:, 4], rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", layouts.TORCH_LAYOUTS)
def test_any_layout(layout: str):
    """Queries, keys, mask and bias are read where they lie."""
    arguments = decoded(mask=random_mask(2, HEADS, 1, KEYS), bias=random_bias(2, HEADS, 1, KEYS), return_lse=False)
    relaid: dict[str, Any] = {
        n: layouts.as_tensor(layouts.LAYOUTS[layout](a)) if isinstance(a, np.ndarray) else a
        for n, a in arguments.items()
    }
    with on_cpu():
        found = kernels.attention(**relaid, backend="triton")
    exact = kernels.attention(**arguments, backend="reference")
    np.testing.assert_allclose(found.numpy(), exact, rtol=0, atol=1e-12)


def test_the_same_bits_at_every_run_and_order():
    q, k, v = inputs(1, 8, 1, 300, 16, kv_heads=2)
    answers = []
    for seed in (None, 1, 2):
        with on_cpu(H100, seed=seed), use_tile(AttentionTile(16, 32, 4, 1)):
            answers.append(kernels.attention(q, k, v, dropout_p=0.2, seed=3, backend="triton"))
    assert np.array_equal(answers[0], answers[1]) and np.array_equal(answers[0], answers[2])


#: By name: what is by position, or by head in a way that no stride says.
LEFT_ALONE: dict[str, dict[str, Any]] = {
    "window": {"window": (20, 5)},
    "window at the last key": {"window": (20, None), "causal": "bottom_right", "lengths": np.array([50, 70])},
    "first key": {"causal": "top_left"},
    **{kind: {"relative": relative_term(kind, HEADS, 8, "float64")} for kind in ("shaw", "alibi", "t5")},
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_other_calls_have_a_program_for_each_head(name: str, monkeypatch: pytest.MonkeyPatch):
    seen = programs_of(monkeypatch)
    with on_cpu(), use_tile(AttentionTile(16, 32, 4, 1)):
        check_results(decoded(**LEFT_ALONE[name]))
    assert {programs for kernel, programs in seen if kernel == "attention_forward"} == {2 * HEADS}


def test_several_queries_have_a_program_for_each_head(monkeypatch: pytest.MonkeyPatch):
    seen = programs_of(monkeypatch)
    q, k, v = inputs(1, 4, 2, 20, kv_heads=2, dtype="float64")
    with on_cpu(), use_tile(AttentionTile(16, 16, 4, 1)):
        check_results({"query": q, "key": k, "value": v, "return_lse": True})
    assert set(seen) == {("attention_forward", 4)}


def test_explain_says_so():
    q, k = torch.empty(1, 8, 1, 16), torch.empty(1, 2, 4096, 16)
    with on_cpu(H100):
        taken = str(kernels.explain("attention", q, k, k, causal="bottom_right"))
        alone = str(kernels.explain("attention", q, k, k, window=(64, None)))
    assert "4 heads of queries at a time, keys in 8 parts" in taken
    assert "heads of queries" not in alone
