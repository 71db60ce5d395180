"""The poolings in CUDA C++, executed on the CPU: windows, vectors, ties and NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kernels
from kernels.runtime.cuda_tiles import flat_block
from kernels.runtime.cupy_gpu import numpy_dtype
from kernels.runtime.targets import TARGETS
from tests.cuda_on_cpu import helpers
from tests.cuda_on_cpu.helpers import on_cpu, report
from tests.support import matrix, oracle

OPS = ("max_pool2d", "avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d", "lp_pool2d")
pytestmark = helpers.needs_harness


# ----- windows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "window",
    [
        {"kernel_size": 3, "stride": 1, "padding": 1},
        {"kernel_size": (2, 3), "stride": (3, 2), "padding": (1, 1), "dilation": (1, 3)},
        {"kernel_size": (2, 4), "stride": 2, "padding": (1, 2), "dilation": (5, 2), "ceil_mode": True},
    ],
)
def test_nan_and_ties_are_those_of_the_reference(window: dict[str, Any], last: bool):
    """Of equal values the first, of several NaN the last, -inf where a window meets nothing; gradients go there too."""
    rng = np.random.default_rng(0)
    x = rng.choice(np.float32([0, 1, 2, np.nan, -np.inf, np.inf]), (2, 4, 8, 9), p=[0.3, 0.3, 0.15, 0.05, 0.15, 0.05])
    if last:
        x = channels_last(x)
    arguments = {"x": x, **window, "return_indices": True}
    expected = oracle.with_vjp("max_pool2d", arguments, None, "reference")
    with on_cpu():
        found = oracle.with_vjp("max_pool2d", arguments, None, "cupy")
    for a, b in zip(found.results, expected.results, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(found.gradients["x"], expected.gradients["x"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm_type", [0.5, 1, 3, -1, -2, 1.7, 17, 20, float("inf"), -float("inf")])
def test_powers(norm_type: float):
    x = np.abs(helpers.numbers(2, 3, 6, 7)) + np.float32(0.1)
    expected = oracle.expect("lp_pool2d", {"x": x, "norm_type": norm_type, "kernel_size": 3, "stride": 2})
    with on_cpu():
        found = oracle.with_vjp("lp_pool2d", expected.arguments, expected.incoming, "cupy")
    report(expected.complaints(found))


@pytest.mark.parametrize("norm_type", [1, 2, 3, 2.5, -2])
def test_powers_of_zeros_negative_numbers_and_nan(norm_type: float):
    numbers = np.float32([0, -0.0, 1, -2, np.nan])
    x = np.random.default_rng(2).choice(numbers, (1, 2, 8, 8), p=[0.4, 0.2, 0.2, 0.15, 0.05])
    arguments = {"x": x, "norm_type": norm_type, "kernel_size": 2}
    expected = oracle.with_vjp("lp_pool2d", matrix.in_double(arguments), None, "reference")
    incoming = oracle.cotangents("lp_pool2d", (expected.results[0].astype(np.float32),))
    with on_cpu():
        found = oracle.with_vjp("lp_pool2d", arguments, incoming, "cupy")
    np.testing.assert_allclose(found.results[0], expected.results[0], rtol=1e-5)
    np.testing.assert_allclose(found.gradients["x"], expected.gradients["x"], rtol=1e-5)


# ----- vectors -----------------------------------------------------------------------------------------------------


def channels_last(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


VECTORS = {"float32": 4, "float64": 2, "float16": 8, "bfloat16": 8}


@pytest.mark.parametrize("dtype", VECTORS)
@pytest.mark.parametrize("op", ["max_pool2d", "avg_pool2d"])
def test_channels_side_by_side_are_read_in_vectors(op: str, dtype: str):
    """128 bits a thread, two elements where there are indices; whole sectors, all bytes of them used."""
    x = channels_last(helpers.numbers(2, 64, 8, 8).astype(numpy_dtype(dtype)))
    with on_cpu("prof") as launched:
        y, pullback = kernels.vjp(op, x, kernel_size=2, backend="cupy")
        pullback(y)
    wanted = 2 if op == "max_pool2d" else VECTORS[dtype]
    assert [dict(s.constants)["VECTOR"] for s in launched.sources] == [wanted, wanted]
    item = x.dtype.itemsize
    indices = 8 * y.size if op == "max_pool2d" else 0
    forward, backward = launched.counts
    assert forward["unique_loaded"] == x.nbytes and forward["unique_stored"] == y.size * item + indices
    assert backward["unique_loaded"] == y.size * item + indices and backward["unique_stored"] == x.nbytes
    for counts in launched.counts:
        assert counts["load_sectors"] * 32 <= 1.1 * counts["global_loaded"]
        assert counts["store_sectors"] * 32 <= 1.1 * counts["global_stored"]


def test_channels_that_are_no_whole_vectors_are_read_one_by_one():
    x = channels_last(helpers.numbers(2, 6, 8, 8))
    with on_cpu() as launched:
        kernels.avg_pool2d(x, 2, backend="cupy")
        kernels.avg_pool2d(channels_last(helpers.numbers(2, 9, 4, 4))[:, 1:], 2, backend="cupy")
    assert [dict(s.constants)["VECTOR"] for s in launched.sources] == [1, 1]


@pytest.mark.parametrize("op", ["max_pool2d", "avg_pool2d"])
def test_offsets_beyond_32_bits(op: str):
    """Images 2**30 elements apart; the memory between them is never touched."""
    stride = 2**30 + 64
    base = np.empty(2 * stride + 40, np.float16)
    x = np.lib.stride_tricks.as_strided(base, (3, 2, 4, 5), (stride * 2, 40, 10, 2))
    x[...] = helpers.numbers(3, 2, 4, 5)
    answers = []
    with on_cpu() as launched:
        for given in (np.ascontiguousarray(x), x):
            y, pullback = kernels.vjp(op, given, kernel_size=2, backend="cupy")
            answers.append((y, *pullback(y)))
    assert "long long" in {dict(s.constants)["INDEX"] for s in launched.sources}
    for a, b in zip(*answers, strict=True):
        np.testing.assert_array_equal(a, b)


# ----- choices -----------------------------------------------------------------------------------------------------


def test_integers_are_refused_with_a_reason():
    with on_cpu(), pytest.raises(kernels.BackendError, match="x has dtype int32; it takes float16, bfloat16, float32"):
        kernels.max_pool2d(np.zeros((1, 1, 4, 4), np.int32), 2, backend="cupy")


@pytest.mark.parametrize("items, threads", [(1, 64), (30_000, 64), (40_000, 128), (70_000, 256), (10**9, 256)])
def test_blocks_are_smaller_where_the_gpu_would_be_left_idle(items: int, threads: int):
    assert flat_block(items, TARGETS["sm_90"]) == threads
