"""dropout and embedding in CUDA C++, executed on the CPU: masks, norms, sums of frequent rows."""

from __future__ import annotations

import numpy as np
import pytest

import kernels
from kernels.random import keep_mask
from tests.cuda_on_cpu import helpers
from tests.cuda_on_cpu.helpers import on_cpu
from tests.support import matrix, oracle
from tests.support.cuda_cpu.run import ORDERS

pytestmark = helpers.needs_harness


# ----- dropout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63 - 1, -(2**63), 2**32 + 5])
@pytest.mark.parametrize("stream", [0, 3, 2**32, 2**63 - 1])
def test_masks_are_those_of_every_backend(seed: int, stream: int):
    x = np.ones((5, 7, 11), np.float32)
    with on_cpu():
        found = kernels.dropout(x, 0.3, seed=seed, stream=stream, backend="cupy")
    np.testing.assert_array_equal(found != 0, keep_mask(x.shape, 0.3, seed, stream))
    np.testing.assert_array_equal(found, kernels.dropout(x, 0.3, seed=seed, stream=stream, backend="numba"))


@pytest.mark.parametrize("p, share", [(0.0, 1.0), (1.0, 0.0)])
def test_all_or_nothing_is_dropped(p: float, share: float):
    x = np.full((3, 5), np.nan, np.float32) if p else helpers.numbers(3, 5)
    with on_cpu():
        found = kernels.dropout(x, p, seed=1, backend="cupy")
    np.testing.assert_array_equal(found, x * np.float32(share) if share else np.zeros_like(x))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_sizes_around_a_thread_and_strides_of_many_dimensions(dtype: str):
    for shape in ((1,), (3,), (4,), (5,), (8,), (9,), (1023,), (2, 3, 2, 3, 2, 3)):
        x = helpers.numbers(*shape).astype(dtype)
        for given in (x, x.transpose()):
            with on_cpu():
                found = kernels.dropout(given, 0.5, seed=3, backend="cupy")
            np.testing.assert_array_equal(found, kernels.dropout(given, 0.5, seed=3, backend="reference"))


# ----- embedding ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_type", [0.5, 1.0, 2.0, 3.0, np.inf])
def test_norms(norm_type: float):
    weight, index = helpers.numbers(9, 12), np.array([[3, 8], [0, 3]])
    arguments = {"input": index, "weight": weight, "max_norm": 2.0, "norm_type": norm_type}
    expected = kernels.embedding(**{k: v.astype(np.float64) if k == "weight" else v for k, v in arguments.items()},
                                 backend="reference")  # fmt: skip
    with on_cpu():
        found = kernels.embedding(**arguments, backend="cupy")
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_a_row_of_nan_has_no_norm():
    weight = helpers.numbers(3, 8)
    weight[1, 3] = np.nan
    for norm_type in (2.0, np.inf):
        with on_cpu():
            found = kernels.embedding(np.array([0, 1]), weight, max_norm=0.1, norm_type=norm_type, backend="cupy")
        expected = kernels.embedding(np.array([0, 1]), weight, max_norm=0.1, norm_type=norm_type, backend="reference")
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_frequent_row_is_added_up_in_order():
    """More places than a block reads at a time, and rows that nobody names."""
    index = np.random.default_rng(0).integers(0, 3, 500) * 2
    arguments = {"input": index, "weight": helpers.numbers(7, 40), "padding_idx": 4}
    expected = oracle.expect("embedding", arguments)
    answers = []
    for order, seed in ORDERS:
        with on_cpu("full", order, seed):
            found = oracle.with_vjp("embedding", arguments, expected.incoming, "cupy")
        helpers.report(expected.complaints(found))
        answers.append(found.gradients["weight"].tobytes())
    assert answers[0] == answers[1] == answers[2]
    assert not found.gradients["weight"][[1, 3, 4, 5]].any()


def test_indices_that_are_no_rows():
    weight, index = helpers.numbers(4, 8), np.array([1, 4, -1])
    with on_cpu() as launched, pytest.raises(IndexError, match=r"input must lie in \[0, 3\].*got 4 at 1"):
        kernels.embedding(index, weight, backend="cupy")
    assert launched.kernels == []
    captured = matrix.capture("embedding", index, weight)
    with on_cpu():  # the kernel is safe by itself
        kernels.explain("embedding", np.array([1]), weight, backend="cupy")
        (found,) = captured.op.implementations["cupy"].forward(captured.problem(), weight, index)
    np.testing.assert_array_equal(found[0], weight[1])
    assert np.isnan(found[1:]).all()
