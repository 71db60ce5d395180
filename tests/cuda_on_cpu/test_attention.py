"""attention in CUDA C++, executed on the CPU: tiles, splits, terms of the scores, accesses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kernels
from kernels.attention import gpu_tiles
from kernels.attention.cuda_tiles import forward_tile
from kernels.random import keep_mask
from kernels.runtime.cupy_gpu import DTYPES
from kernels.runtime.targets import TARGETS
from tests.attention.helpers import TOLERANCES, gradients, inputs, relative_term
from tests.cuda_on_cpu import helpers
from tests.cuda_on_cpu.helpers import on_cpu
from tests.support import matrix

OPS = ("attention", "scaled_dot_product_attention")
pytestmark = helpers.needs_harness
Array = np.ndarray[Any, Any]
H100 = TARGETS["sm_90"]


def in_double(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same arguments in float64, a relative term's table too."""
    made = matrix.in_double(arguments)
    if made.get("relative") is not None:
        made["relative"] = type(made["relative"])(**matrix.in_double(vars(made["relative"])))
    return made


def against_reference(arguments: dict[str, Any], tolerance: float = 1e-11) -> None:
    """Results and all gradients equal those of the float64 reference, NaN and infinities in the same places.

    tolerance: of the largest number, at least 1.
    """
    exact, exact_gradients = gradients("reference", in_double(arguments))
    found, found_gradients = gradients("cupy", arguments)
    for a, b in zip((*found, *found_gradients), (*exact, *exact_gradients), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            scale = max(1, np.abs(b[np.isfinite(b)]).max(initial=0))
            np.testing.assert_allclose(a.astype(np.float64), b, rtol=0, atol=tolerance * scale)


def test_the_kernels_that_run_are_these():
    q, k, v = inputs(1, 2, 9, 11)
    scores = {"query": q, "key": k, "value": v}
    with on_cpu() as launched:
        gradients("cupy", scores | {"bias": np.zeros((2, 9, 11), np.float32)})
        gradients("cupy", scores | {"bias": np.zeros((9, 11), np.float32)})
    both = ["attention_forward", "row_products", "query_gradient", "key_gradients"]
    assert launched.kernels == [*both, *both, "bias_gradient", "sum_parts"]


# ----- tiles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("width, value_width", [(40, 64), (128, 90), (70, 250)])
@pytest.mark.parametrize("queries", [3, 67])
def test_every_tile(dtype: str, width: int, value_width: int, queries: int):
    """A few places more than a tile in both directions, with everything that has its own loads."""
    keys = 69 if width == 40 else 37
    queries = min(queries, 37) if width == 70 else queries
    q, k, v = (a.astype(dtype) for a in inputs(1, 2, queries, keys, width, value_width, kv_heads=1))
    rng = np.random.default_rng(0)
    rest = {
        "bias": rng.standard_normal((2, queries, keys)).astype(dtype), "mask": rng.random((queries, keys)) < 0.8,
        "causal": "bottom_right", "window": (keys // 2, None), "dropout_p": 0.2, "seed": 5, "softcap": 4.0,
    }  # fmt: skip
    with on_cpu(order="random", seed=2):
        against_reference({"query": q, "key": k, "value": v, **rest}, TOLERANCES[dtype])


# ----- a few queries of many keys ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [None, [1100, 40], [0, 600]])
@pytest.mark.parametrize("causal", [None, "bottom_right"])
def test_split_keys(lengths: list[int] | None, causal: str | None):
    """Parts that see nothing, and queries that do not; heads that share keys are one tile."""
    q, k, v = inputs(2, 4, 2, 1100, 8, kv_heads=2, dtype="float64")
    counts = None if lengths is None else np.array(lengths)
    arguments = {"query": q, "key": k, "value": v, "lengths": counts, "causal": causal, "return_lse": True}
    with on_cpu(target=H100) as launched:
        against_reference(arguments)
    assert launched.kernels[:2] == ["attention_forward", "join_splits"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_heads_that_share_keys_read_them_once(dtype: str):
    """One query of four heads each, with its own mask, bias, slope and dropout."""
    q, k, v = (a.astype(dtype) for a in inputs(2, 8, 1, 96, 16, kv_heads=2))
    rng = np.random.default_rng(0)
    rest = {"mask": rng.random((2, 8, 1, 96)) < 0.7, "bias": rng.standard_normal((8, 1, 96)).astype(dtype)}
    more = {"relative": kernels.RelativeALiBi(np.linspace(0.1, 0.9, 8).astype(dtype)), "causal": "bottom_right"}
    with on_cpu(order="reverse") as launched:
        kernels.attention(q, k, v, backend="cupy")
    # Queries, keys and values once each, though four heads read the same keys.
    assert launched.counts[0]["global_loaded"] == q.nbytes + k.nbytes + v.nbytes
    with on_cpu():
        arguments = {"query": q, "key": k, "value": v, **rest, **more, "dropout_p": 0.3, "seed": 9}
        against_reference(arguments, 2e-3 if dtype == "float16" else 1e-6)


# ----- what the scores are made of ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(2, 3, 37, 41), (1, 1, 3, 100)])
@pytest.mark.parametrize("seed", [-(2**40) + 3, 7])
def test_the_dropout_mask_is_that_of_every_backend(shape: tuple[int, ...], seed: int, dtype: str):
    """Read off values that are a unit matrix, and off their gradient."""
    batch, heads, queries, keys = shape
    q, k, _ = (a.astype(dtype) for a in inputs(batch, heads, queries, keys, 4))
    unit = np.broadcast_to(np.eye(keys, dtype=dtype), (batch, heads, keys, keys))
    wanted = keep_mask(shape, 0.35, seed)
    with on_cpu():
        found = kernels.attention(q, k, unit, dropout_p=0.35, seed=seed, backend="cupy")
        v = np.zeros((batch, heads, keys, queries), dtype)
        _, pullback = kernels.vjp("attention", q, k, v, dropout_p=0.35, seed=seed, backend="cupy")
        back = pullback(np.broadcast_to(np.eye(queries, dtype=dtype), (batch, heads, queries, queries)))[2]
    np.testing.assert_array_equal(found != 0, wanted)
    np.testing.assert_array_equal(back.swapaxes(-1, -2) != 0, wanted)


@pytest.mark.parametrize("clip", [0, 1, 5, 60])
@pytest.mark.parametrize("causal", [None, "bottom_right"])
def test_shaws_term(clip: int, causal: str | None):
    q, k, v = inputs(2, 2, 19, 37, 8, dtype="float64")
    table = np.random.default_rng(3).standard_normal((2 * clip + 1, 8))
    rest = {"causal": causal, "lengths": np.array([37, 12]), "relative": kernels.RelativeShaw(table), "softcap": 5.0}
    with on_cpu():
        against_reference({"query": q, "key": k, "value": v, **rest})


@pytest.mark.parametrize("kind", ["t5", "t5 causal", "alibi"])
@pytest.mark.parametrize("causal", [None, "bottom_right"])
def test_terms_of_the_distance(kind: str, causal: str | None):
    q, k, v = inputs(2, 4, 19, 37, 8, kv_heads=2, dtype="float64")
    rest = {"causal": causal, "lengths": np.array([37, 12]), "relative": relative_term(kind, 4, 8, "float64")}
    with on_cpu():
        against_reference({"query": q, "key": k, "value": v, **rest})


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kind", ["shaw", "t5", "alibi"])
def test_relative_terms_in_other_dtypes(kind: str, dtype: str):
    q, k, v = (a.astype(dtype) for a in inputs(1, 2, 40, 43, 16))
    arguments = {"query": q, "key": k, "value": v, "relative": relative_term(kind, 2, 16, dtype)}
    with on_cpu(order="reverse"):
        against_reference(arguments, 4e-3 if dtype == "float16" else 2e-6)


def test_relative_tables_alone_get_gradients():
    """And queries without them: what nobody asks for is not computed, what is asked for is the same."""
    q, k, v = inputs(1, 2, 9, 11, 8)
    for kind in ("shaw", "t5", "alibi"):
        relative = relative_term(kind, 2, 8)
        with on_cpu():
            found = kernels.vjp("attention", q, k, v, relative=relative, backend="cupy")
            expected = kernels.vjp("attention", q, k, v, relative=relative, backend="reference")
            ones = np.ones_like(q)
            np.testing.assert_allclose(found[1](ones)[6], expected[1](ones)[6], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 2, 17, 70), (1, 2, 17, 70), (2, 1, 1, 70), (1, 1, 17, 1), (1, 1, 1, 1)])
def test_the_gradient_of_a_bias_is_summed_where_it_broadcasts(shape: tuple[int, ...]):
    q, k, v = inputs(2, 2, 17, 70, 8, dtype="float64")
    bias = np.random.default_rng(1).standard_normal(shape)
    with on_cpu():
        against_reference({"query": q, "key": k, "value": v, "bias": bias, "causal": "bottom_right"})


def test_lengths_of_either_integer():
    q, k, v = inputs(2, 1, 5, 9, 8, dtype="float64")
    with on_cpu():
        for dtype in (np.int32, np.int64):
            against_reference({"query": q, "key": k, "value": v, "lengths": np.array([9, 4], dtype)})


# ----- offsets, interface ------------------------------------------------------------------------------------------


def test_offsets_beyond_32_bits():
    """Keys and values 2**30 elements apart; the memory between them is never touched."""
    stride = 2**30 + 64
    query = inputs(1, 1, 3, 3)[0].astype(np.float16)
    packed = [a.astype(np.float16) for a in inputs(1, 1, 3, 3, seed=4)[1:]]
    base = np.empty(2 * stride + 16, np.float16)
    apart = [np.lib.stride_tricks.as_strided(base[8 * n :], (1, 1, 3, 8), (0, 0, 2 * stride, 2)) for n in range(2)]
    for wide, numbers in zip(apart, packed):
        wide[...] = numbers
    answers = []
    for key, value in (packed, apart):
        with on_cpu():
            found, given = gradients("cupy", {"query": query, "key": key, "value": value})
            answers.append((*found, *given[:3]))
    for a, b in zip(*answers, strict=True):
        np.testing.assert_array_equal(a, b)


def test_widths_of_0_are_refused():
    with on_cpu():
        q, k, v = inputs(1, 2, 5, 9, 0, 8)
        assert "query has 0 columns; it takes 1 or more" in str(kernels.explain("attention", q, k, v))
        with pytest.raises(kernels.BackendError, match=r"query has 0 columns; it takes 1 or more$"):
            kernels.attention(q, k, v, backend="cupy")
        q, k, v = inputs(1, 2, 5, 9, 8)
        assert kernels.explain("attention", q, k, v).chosen == "cupy"
    for op in OPS:
        assert matrix.OPS[op].implementations["cupy"].dtypes == DTYPES


@pytest.mark.parametrize(
    "dtype, width, value_width",
    [
        *(("float16", e, v) for e, v in ((257, 520), (520, 256))),
        *(("float32", e, v) for e, v in ((300, 8), (8, 300))),
        ("float64", 257, 520),
    ],
)
def test_rows_wider_than_a_tile(dtype: str, width: int, value_width: int):
    """Columns in two and three parts, with everything that has its own loads."""
    q, k, v = (a.astype(dtype) for a in inputs(1, 2, 19, 37, width, value_width, kv_heads=1))
    rng = np.random.default_rng(0)
    seen = rng.random((2, 19, 37)) < 0.8
    seen[0, 3] = False
    rest = {
        "bias": rng.standard_normal((2, 19, 37)).astype(dtype), "mask": seen, "causal": "bottom_right",
        "dropout_p": 0.2, "seed": 5, "softcap": 4.0, "return_lse": True,
    }  # fmt: skip
    with on_cpu(order="random", seed=2):
        against_reference({"query": q, "key": k, "value": v, **rest}, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_no_number_in_wide_rows(dtype: str):
    """Keys in the second part of the columns, values in the first, seen by some."""
    q, k, v = (a.astype(dtype) for a in inputs(1, 1, 19, 37, 260, 270))
    seen = np.random.default_rng(0).random((19, 37)) < 0.8
    v[0, 0, 20, 7], k[0, 0, 30, 258], q[0, 0, 5, 259] = np.nan, np.inf, np.nan
    with on_cpu(order="reverse"):
        against_reference({"query": q, "key": k, "value": v, "mask": seen}, TOLERANCES[dtype])


@pytest.mark.parametrize("kind", ["shaw", "t5", "alibi"])
def test_relative_terms_of_wide_rows(kind: str):
    q, k, v = inputs(1, 2, 19, 37, 300, dtype="float64")
    rest = {"causal": "bottom_right", "relative": relative_term(kind, 2, 300, "float64")}
    bias = np.random.default_rng(1).standard_normal((19, 37))
    with on_cpu(order="reverse"):
        against_reference({"query": q, "key": k, "value": v, "bias": bias, **rest})


def test_few_queries_of_wide_keys(monkeypatch: pytest.MonkeyPatch):
    """Keys in splits, their heads in one tile, and columns in parts."""
    monkeypatch.setattr(gpu_tiles, "SPLIT_KEYS", 64)
    q, k, v = inputs(1, 4, 2, 140, 260, kv_heads=2, dtype="float64")
    with on_cpu(target=H100) as launched:
        against_reference({"query": q, "key": k, "value": v, "causal": "bottom_right", "return_lse": True})
    assert launched.kernels[:2] == ["attention_forward", "join_splits"]


@pytest.mark.parametrize("dtype, itemsize", [("float16", 2), ("float32", 4), ("float64", 8)])
def test_accesses_of_aligned_shapes(dtype: str, itemsize: int):
    """Every sector of memory that is read or written is used whole; shared memory has no conflicts."""
    queries = forward_tile(1000, 64, itemsize).queries
    q, k, v = (a.astype(dtype) for a in inputs(1, 2, queries, 192, 64))
    with on_cpu("prof", target=H100) as launched:
        gradients("cupy", {"query": q, "key": k, "value": v})
    for kernel, counts in zip(launched.kernels, launched.counts, strict=True):
        if kernel != "row_products":  # it writes one number a row
            assert counts["load_sectors"] * 32 <= 1.1 * counts["global_loaded"], kernel
            assert counts["store_sectors"] * 32 <= 1.1 * counts["global_stored"], kernel
            assert counts["shared_load_turns"] * 128 <= 1.1 * counts["shared_loaded"], kernel
            assert counts["shared_load_turns"] == counts["shared_load_least"], kernel
            assert counts["shared_store_turns"] == counts["shared_store_least"], kernel
    found = dict(zip(launched.kernels, launched.counts))
    assert found["attention_forward"]["global_loaded"] == q.nbytes + k.nbytes + v.nbytes
