"""How attention is cut into tiles in Triton, executed on the CPU: every tile, split keys, descriptors, wide heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels.attention import gpu_backward, gpu_tiles, triton_gpu
from kernels.attention.gpu_tiles import AttentionTile, backward_tiles, forward_tile, split_count
from kernels.case import Case
from kernels.runtime.targets import TARGETS
from kernels.runtime.tuning import use_tile
from tests.attention import test_semantics as semantics
from tests.attention.helpers import gradients, inputs, relative_term
from tests.support import oracle
from tests.support.triton_interpreter import on_cpu
from tests.triton_on_cpu import helpers
from tests.triton_on_cpu.helpers import report
from tests.triton_on_cpu.test_attention import against_reference

H100 = TARGETS["sm_90"]


def tiles_of(*facts: Any, vectors: bool = True, reaches: bool = True) -> tuple[AttentionTile, ...]:
    return (forward_tile(*facts, vectors=vectors, reaches=reaches), *backward_tiles(*facts, vectors=vectors))


def attention_tiles() -> list[AttentionTile]:
    """Every tile that the two functions give, one of those that differ in warps and stages alone."""
    found = {
        (tile.queries, tile.keys): tile
        for queries in (1, 17, 40, 1000)
        for width in (16, 64, 128, 256, 300)
        for itemsize in (2, 4, 8)
        for extras in range(8)
        for target in TARGETS.values()
        for vectors, reaches in ((True, True), (True, False), (False, True))
        for tile in tiles_of(queries, width, itemsize, extras, target, vectors=vectors, reaches=reaches)
    }
    return [found[key] for key in sorted(found)]


@pytest.mark.parametrize("tile", attention_tiles(), ids=lambda t: f"{t.queries}x{t.keys}")
def test_every_tile(tile: AttentionTile):
    """A few places more than a tile in both directions, with everything that has its own loads."""
    queries, keys = tile.queries + 3, 2 * tile.keys + 5
    q, k, v = inputs(1, 2, queries, keys, 12, 20, kv_heads=1)
    rng = np.random.default_rng(0)
    arguments = {
        "query": q, "key": k, "value": v, "bias": rng.standard_normal((2, queries, keys)).astype(np.float32),
        "mask": rng.random((queries, keys)) < 0.8, "causal": "bottom_right", "window": (keys // 2, None),
        "dropout_p": 0.2, "seed": 5, "softcap": 4.0,
    }  # fmt: skip
    with on_cpu(seed=2):
        expected = oracle.expect("attention", arguments)
        with use_tile(tile):
            report(expected.complaints(oracle.with_autograd("attention", arguments, expected.incoming, "triton")))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_tiles_are_what_tensor_cores_take(target: str, itemsize: int):
    for width in (1, 64, 100, 256):
        for extras in (0, 1, 3):
            for tile in tiles_of(5000, width, itemsize, extras, TARGETS[target]):
                assert tile.queries >= 16 and tile.keys >= 16 and tile.warps in (1, 2, 4, 8) and 1 <= tile.stages <= 3
            assert {t.queries for t in tiles_of(3, width, itemsize, extras, TARGETS[target])} == {16}


def test_tiles_by_hand():
    assert forward_tile(4096, 64, 2, False, H100) == AttentionTile(64, 128, 4, 2)
    assert forward_tile(4096, 64, 2, False, TARGETS["gfx942"]) == AttentionTile(128, 64, 4, 1)
    assert forward_tile(4096, 256, 2, 0, H100) == AttentionTile(64, 128, 4, 1)
    assert forward_tile(4096, 256, 2, 0, H100, reaches=False) == AttentionTile(128, 32, 8, 1)
    assert forward_tile(4096, 256, 2, 1, H100) == AttentionTile(128, 32, 8, 1)
    assert backward_tiles(4096, 128, 2, False, H100) == (AttentionTile(64, 64, 4, 2),) * 2
    assert backward_tiles(4096, 128, 2, True, H100) == (AttentionTile(64, 64, 4, 2), AttentionTile(32, 64, 4, 2))


def test_tiles_of_what_has_much_beside_its_products():
    assert forward_tile(4096, 128, 2, 7, H100) == AttentionTile(64, 32, 8, 2, registers=255)
    assert forward_tile(4096, 120, 2, 7, H100, vectors=False) == AttentionTile(16, 16, 8, 1, registers=255)
    assert backward_tiles(4096, 300, 2, 7, TARGETS["gfx942"]) == (AttentionTile(16, 16, 4, 1),) * 2
    assert gpu_tiles.widest(4, 0) == 128 and gpu_tiles.widest(4, 0, vectors=False) == gpu_tiles.widest(4, 5) == 64
    # Halves that are no vectors are not copied asynchronously.
    assert {t.stages for t in tiles_of(4096, 40, 2, 1, H100, vectors=False)} == {1}


def test_explain_names_what_is_launched_beside():
    """The launch that joins split keys, and that for blocks that are no numbers."""

    def words(keys: int, **rest: Any) -> str:
        q, k = torch.empty(1, 1, 2, 8), torch.empty(1, 1, keys, 8)
        with on_cpu(H100):
            return str(kernels.explain("attention", q, k, k, **rest))

    assert "tiles of keys, softmax as they stream by" in words(100)
    assert "joins" not in words(100) and "second launch" not in words(100)
    assert "keys in 4 parts that a launch of its own joins" in words(2048)
    assert "a second launch for blocks that met NaN or infinities" in words(100, causal="top_left")


def test_how_often_keys_are_split():
    assert split_count(8, 16384, H100) == 32  # 512 keys each
    assert split_count(200, 16384, H100) == 2  # two programs for each of 132 multiprocessors
    assert split_count(10_000, 16384, H100) == 1
    assert split_count(1, 300, H100) == 1


@pytest.mark.parametrize("lengths", [None, [150, 20], [0, 80]])
@pytest.mark.parametrize("causal", [None, "bottom_right"])
def test_split_keys(lengths: list[int] | None, causal: str | None, monkeypatch: pytest.MonkeyPatch):
    """A few queries of many keys: parts that see nothing, and queries that do not."""
    q, k, v = inputs(2, 2, 2, 150, 8, kv_heads=1, dtype="float64")
    counts = None if lengths is None else np.array(lengths)
    arguments = {"query": q, "key": k, "value": v, "lengths": counts, "causal": causal, "return_lse": True}
    monkeypatch.setattr(gpu_tiles, "SPLIT_KEYS", 32)
    with on_cpu(H100) as launched, use_tile(AttentionTile(16, 32, 4, 1)):
        against_reference(arguments)
    assert launched.count("join_splits") == 1


# ----- tensor descriptors ------------------------------------------------------------------------------------------


def described(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """DESCRIBED of every launch of the forward kernel from now on."""
    seen: list[bool] = []
    launch = triton_gpu.launch

    def watch(kernel: Any, grid: Any, *arguments: Any, **options: Any) -> None:
        if kernel.fn.__name__ == "attention_forward":
            seen.append(options["DESCRIBED"])
        launch(kernel, grid, *arguments, **options)

    monkeypatch.setattr(triton_gpu, "launch", watch)
    return seen


@pytest.mark.parametrize("dtype", helpers.HALVES, ids=str)
def test_keys_and_values_by_descriptors(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """Heads that lie between the rows, shared by groups; edges in all directions; the second launch takes pointers."""
    seen = described(monkeypatch)
    rng = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, n, h, w, generator=rng).to(dtype).transpose(1, 2)
        for n, h, w in ((37, 4, 24), (70, 2, 24), (70, 2, 40))
    )
    for rest in ({}, {"causal": "bottom_right", "window": (30, None)}):
        with on_cpu():
            found = kernels.attention(q, k, v, backend="triton", **rest)
        exact = kernels.attention(q.double(), k.double(), v.double(), backend="reference", **rest)
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps)
    assert seen == [True, True, False]


def test_what_cannot_be_described_goes_by_pointers(monkeypatch: pytest.MonkeyPatch):
    seen = described(monkeypatch)
    q, k = torch.randn(1, 2, 9, 16).half(), torch.randn(1, 2, 20, 16).half()
    room = torch.randn(1, 2, 20, 19).half()
    lengths = torch.tensor([12])
    calls: list[dict[str, Any]] = [
        {"key": k, "value": room[..., :16]},  # rows of 38 bytes
        {"key": k, "value": torch.randn(20 * 32 + 1).half()[1:].view(1, 2, 20, 16)},  # begins at 2 bytes
        {"key": k, "value": torch.randn(1, 2, 1, 16).half().expand(1, 2, 20, 16)},  # strides of 0
        {"key": k, "value": k.mT.contiguous().mT},  # columns apart
        {"key": k, "value": k, "lengths": lengths},  # what is behind them is never read
    ]
    with on_cpu():
        for given in calls:
            found = kernels.attention(q, **given, backend="triton")
            double = {n: t.double() if t.is_floating_point() else t for n, t in given.items()}
            exact = kernels.attention(q.double(), **double, backend="reference")
            torch.testing.assert_close(found.double(), exact, rtol=0, atol=4e-3)
        kernels.attention(q.float(), k.float(), k.float(), backend="triton")
    with on_cpu(TARGETS["sm_80"]):
        kernels.attention(q, k, k, backend="triton")
    assert seen == [False] * 7
    with on_cpu():
        kernels.attention(q[:, :1], k[:, :1], k[:, :1], backend="triton")  # one head: its stride says nothing
    assert seen[-1]


# ----- widths above a tile's ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width, value_width", [(300, 20), (20, 300), (290, 260)])
def test_wide_queries_and_values(width: int, value_width: int):
    """Columns in parts, a program each; what is hidden does not leak there either."""
    q, k, v = inputs(1, 2, 20, 40, width, value_width, kv_heads=1, dtype="float64")
    rest = {"causal": "bottom_right", "dropout_p": 0.2, "seed": 3, "return_lse": True, "bias": np.zeros((20, 40))}
    table = np.random.default_rng(3).standard_normal((7, width))
    with on_cpu(), use_tile(AttentionTile(32, 64, 4, 1)):
        against_reference({"query": q, "key": k, "value": v, "relative": kernels.RelativeShaw(table), **rest})
        k[:, :, 35, -1] = v[:, :, 35, -1] = np.inf
        found = kernels.attention(q, k, v, causal="bottom_right", backend="triton")
    assert np.isfinite(found[:, :, :15]).all() and np.isnan(found[:, :, 15:, -1]).all()


def test_float32_with_much_beside_its_products_is_wide_above_64(monkeypatch: pytest.MonkeyPatch):
    """Columns in two parts, where half precision and float32 with less have one."""
    q, k, v = inputs(1, 2, 20, 40, 112)

    def arguments(dtype: str) -> dict[str, Any]:
        rest = {"mask": np.ones((20, 40), bool), "softcap": 5.0, "dropout_p": 0.2, "seed": 3}
        named = {"query": q, "key": k, "value": v, "bias": np.zeros((20, 40))}
        return {n: a.astype(dtype) for n, a in named.items()} | {"relative": relative_term("t5", 2, 112, dtype)} | rest

    seen: list[int] = []
    launch = triton_gpu.launch

    def watch(kernel: Any, grid: Any, *given: Any, **options: Any) -> None:
        seen.append(options.get("PARTS", 0))
        launch(kernel, grid, *given, **options)

    for module in (triton_gpu, gpu_backward):
        monkeypatch.setattr(module, "launch", watch)
    exact, exact_gradients = gradients("reference", arguments("float64"))
    with on_cpu():
        found, found_gradients = gradients("triton", arguments("float32"))
        for a, b in zip((*found, *found_gradients), (*exact, *exact_gradients), strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)
        assert max(seen) == 2
        seen.clear()
        kernels.attention(q, k, v, causal="top_left", backend="triton")
    assert seen == [1, 1]


def test_few_queries_of_wide_keys(monkeypatch: pytest.MonkeyPatch):
    """Both split: the keys, and the columns."""
    q, k, v = inputs(1, 1, 2, 70, 264, 300)
    monkeypatch.setattr(gpu_tiles, "SPLIT_KEYS", 32)
    arguments = {"query": q, "key": k, "value": v, "return_lse": True}
    with on_cpu(H100) as launched:
        expected = oracle.expect("attention", arguments)
        report(expected.complaints(oracle.with_autograd("attention", arguments, expected.incoming, "triton")))
    assert "join_splits" in launched


@pytest.mark.parametrize("dtype", helpers.HALVES, ids=str)
def test_wide_heads_in_half_precision(dtype: torch.dtype):
    case = Case(
        "attention", "wide", {"query": (1, 1, 33, 272), "key": (1, 1, 40, 272), "value": (1, 1, 40, 272)}, {}, ()
    )
    with on_cpu():
        report(helpers.tensor_complaints(case, dtype))


def test_widths_of_0():
    with on_cpu():
        semantics.test_the_last_dimension_may_be_empty("triton")


def test_every_call_is_taken():
    with on_cpu():
        q, k, v = inputs(1, 2, 5, 9, 300, 700)
        for kind in ("shaw", "t5", "t5 causal", "alibi"):
            given = {"relative": relative_term(kind, 2, 300), "causal": "top_left", "dropout_p": 0.5, "softcap": 1.0}
            assert kernels.explain("attention", q, k, v, **given).chosen == "triton"
