"""attention in Triton, executed on the CPU: bounds and races watched, programs in random order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels.attention import gpu_tiles, triton_gpu
from kernels.attention.gpu_tiles import AttentionTile, backward_tiles, forward_tile, split_count
from kernels.case import Case
from kernels.random import keep_mask
from kernels.runtime.targets import TARGETS
from kernels.runtime.tuning import use_tile
from tests.attention import test_semantics as semantics
from tests.attention.helpers import gradients, inputs, relative_term
from tests.support import layouts, matrix, oracle
from tests.support.triton_interpreter import SMALL, on_cpu
from tests.triton_on_cpu import helpers

OPS = ("attention", "scaled_dot_product_attention")
CASES = helpers.small_cases(*OPS)
ORDINARY_CASES = matrix.case_parameters(tuple(c for op in OPS for c in matrix.cases_of(op, "ci")))
H100 = TARGETS["sm_90"]


def report(lines: list[str]) -> None:
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


@pytest.mark.parametrize("case", CASES)
def test_cases(case: Case):
    with on_cpu():
        report(helpers.complaints(case, "float32"))


@pytest.mark.parametrize("case", ORDINARY_CASES)
def test_cases_in_float64(case: Case):
    with on_cpu():
        report(helpers.complaints(case, "float64"))


@pytest.mark.parametrize("dtype", helpers.HALVES, ids=str)
@pytest.mark.parametrize("case", ORDINARY_CASES)
def test_cases_in_half_precision(case: Case, dtype: torch.dtype):
    with on_cpu():
        report(helpers.tensor_complaints(case, dtype))


def against_reference(arguments: dict[str, Any], tolerance: float = 1e-11) -> None:
    """float64 results and all gradients equal those of the reference to rounding."""
    exact, exact_gradients = gradients("reference", arguments)
    found, found_gradients = gradients("triton", arguments)
    for a, b in zip((*found, *found_gradients), (*exact, *exact_gradients), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b[np.isfinite(b)]).max(initial=0)))


def test_the_kernels_that_run_are_these():
    q, k, v = inputs(1, 2, 9, 11)
    with on_cpu() as launched:
        gradients("triton", {"query": q, "key": k, "value": v, "bias": np.zeros((9, 11), np.float32)})
    twice = ["query_gradient"] * 2 + ["key_gradients"] * 2
    assert launched == ["attention_forward", "attention_forward", "row_products", *twice, "bias_gradient"]
    with on_cpu() as launched:
        gradients("triton", {"query": q, "key": k, "value": v})
        kernels.attention(q[:, :, :1], k, v, causal="bottom_right")
    assert launched == ["attention_forward", "row_products", "query_gradient", "key_gradients", "attention_forward"]


# ----- tiles -------------------------------------------------------------------------------------------------------


def tiles_of(*facts: Any) -> tuple[AttentionTile, ...]:
    return (forward_tile(*facts), *backward_tiles(*facts))


def attention_tiles() -> list[AttentionTile]:
    """Every tile that the two functions give, one of those that differ in warps and stages alone."""
    found = {
        (tile.queries, tile.keys): tile
        for queries in (1, 17, 40, 1000)
        for width in (16, 64, 128, 256)
        for itemsize in (2, 4, 8)
        for extras in (0, 1, 3)
        for target in TARGETS.values()
        for tile in tiles_of(queries, width, itemsize, extras, target)
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
    assert forward_tile(4096, 64, 2, False, H100) == AttentionTile(128, 64, 4, 3)
    assert forward_tile(4096, 64, 2, False, TARGETS["gfx942"]) == AttentionTile(128, 64, 4, 1)
    assert backward_tiles(4096, 128, 2, False, H100) == (AttentionTile(64, 64, 8, 2),) * 2
    assert backward_tiles(4096, 128, 2, True, H100) == (AttentionTile(64, 32, 4, 2), AttentionTile(32, 64, 8, 2))


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


# ----- what the scores are made of ---------------------------------------------------------------------------------


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
    assert gpu_tiles.selecting_tile(AttentionTile(64, 64, 4, 3)) == AttentionTile(16, 16, 8, 1)
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


# ----- layouts, offsets, order -------------------------------------------------------------------------------------

WITH_LAYOUTS = ("heads", "mask", "bias", "log-sum-exp")
LAYOUT_CASES = tuple(c for c in matrix.cases_of("attention", "ci") if c.name in WITH_LAYOUTS)


@pytest.mark.parametrize("layout", layouts.TORCH_LAYOUTS)
@pytest.mark.parametrize("case", matrix.case_parameters(LAYOUT_CASES))
def test_any_layout(case: Case, layout: str):
    expected = oracle.expect_case(case, "float32")
    relay = layouts.LAYOUTS[layout]
    names = matrix.array_names(expected.arguments)
    tensors = {n: layouts.as_tensor(relay(expected.arguments[n])) for n in names}
    wanted = matrix.differentiable_names("attention", expected.arguments)
    for name in wanted:
        tensors[name].requires_grad_()
    with on_cpu():
        results = matrix.results_of(kernels.attention(**(expected.arguments | tensors), backend="triton"))
        incoming = [layouts.as_tensor(relay(g)) for g in expected.incoming]
        found = torch.autograd.grad(results, [tensors[n] for n in wanted], incoming)
    answer = oracle.Answer(tuple(map(matrix.to_numpy, results)), {n: g.numpy() for n, g in zip(wanted, found)})
    report(expected.complaints(answer))


def test_offsets_beyond_32_bits():
    """Keys 2**30 elements apart; the memory between them is never touched."""
    stride = 2**30 + 64
    query = torch.from_numpy(inputs(1, 1, 3, 3)[0]).half()
    answers = []
    for apart in (False, True):
        key, value = (torch.from_numpy(a).half() for a in inputs(1, 1, 3, 3, seed=4)[1:])
        if apart:
            packed = (key, value)
            base = torch.empty(2 * stride + 16, dtype=torch.float16)
            key, value = (base[8 * n :].as_strided((1, 1, 3, 8), (0, 0, stride, 1)) for n in range(2))
            for wide, numbers in zip((key, value), packed):
                wide.copy_(numbers)
        with on_cpu():
            given = [t.detach().requires_grad_() for t in (query, key, value)]
            result = kernels.attention(*given, backend="triton")
            answers.append((result, *torch.autograd.grad(result.float().square().sum(), given)))
    for a, b in zip(*answers):
        assert torch.equal(a, b)


def test_results_do_not_depend_on_the_order_of_the_programs():
    q, k, v = inputs(1, 2, 40, 50, 8, kv_heads=1)
    bias = np.random.default_rng(1).standard_normal((1, 2, 1, 50)).astype(np.float32)
    arguments = {"query": q, "key": k, "value": v, "bias": bias, "dropout_p": 0.1, "seed": 1}
    answers = []
    for seed in (None, 1, 2):
        with on_cpu(seed=seed), use_tile(AttentionTile(16, 32, 4, 1)):
            found, given = gradients("triton", arguments)
        answers.append([*found, *(g for g in given if g is not None)])
    for other in answers[1:]:
        for a, b in zip(answers[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


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
