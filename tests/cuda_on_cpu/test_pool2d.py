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
from tests.cuda_on_cpu.helpers import on_cpu

OPS = ("max_pool2d", "avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d", "lp_pool2d")
pytestmark = helpers.needs_harness


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
