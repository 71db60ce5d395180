"""What the poolings' GPU backends share, executed on the CPU: NaN and ties in windows, powers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest

from tests.cuda_on_cpu import helpers
from tests.support import cuda_cpu, matrix, oracle, triton_interpreter

BACKENDS = [pytest.param("cupy", marks=helpers.needs_harness), "triton"]


def on_cpu(backend: str) -> AbstractContextManager[Any]:
    """A block in which the backend takes CPU arrays, and its memory is watched."""
    return cuda_cpu.on_cpu() if backend == "cupy" else triton_interpreter.on_cpu()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "window",
    [
        {"kernel_size": 3, "stride": 1, "padding": 1},
        {"kernel_size": (2, 3), "stride": (3, 2), "padding": (1, 1), "dilation": (1, 3)},
        {"kernel_size": (2, 4), "stride": 2, "padding": (1, 2), "dilation": (5, 2), "ceil_mode": True},
    ],
)
def test_nan_and_ties_are_those_of_the_reference(window: dict[str, Any], last: bool, backend: str):
    """Of equal values the first, of several NaN the last, -inf where a window meets nothing; gradients go there too."""
    rng = np.random.default_rng(0)
    x = rng.choice(np.float32([0, 1, 2, np.nan, -np.inf, np.inf]), (2, 4, 8, 9), p=[0.3, 0.3, 0.15, 0.05, 0.15, 0.05])
    if last:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    arguments = {"x": x, **window, "return_indices": True}
    expected = oracle.with_vjp("max_pool2d", arguments, None, "reference")
    with on_cpu(backend):
        found = oracle.with_vjp("max_pool2d", arguments, None, backend)
    for a, b in zip(found.results, expected.results, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(found.gradients["x"], expected.gradients["x"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm_type", [0.5, 1, 3, -1, -2, 1.7, 17, 20, float("inf"), -float("inf")])
def test_powers(norm_type: float, backend: str):
    x = np.abs(helpers.numbers(2, 3, 6, 7)) + np.float32(0.1)
    expected = oracle.expect("lp_pool2d", {"x": x, "norm_type": norm_type, "kernel_size": 3, "stride": 2})
    with on_cpu(backend):
        found = oracle.with_vjp("lp_pool2d", expected.arguments, expected.incoming, backend)
    helpers.report(expected.complaints(found))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm_type", [1, 2, 3, 2.5, -2])
def test_powers_of_zeros_negative_numbers_and_nan(norm_type: float, backend: str):
    numbers = np.float32([0, -0.0, 1, -2, np.nan])
    x = np.random.default_rng(2).choice(numbers, (1, 2, 8, 8), p=[0.4, 0.2, 0.2, 0.15, 0.05])
    arguments = {"x": x, "norm_type": norm_type, "kernel_size": 2}
    expected = oracle.with_vjp("lp_pool2d", matrix.in_double(arguments), None, "reference")
    incoming = oracle.cotangents("lp_pool2d", (expected.results[0].astype(np.float32),))
    with on_cpu(backend):
        found = oracle.with_vjp("lp_pool2d", arguments, incoming, backend)
    np.testing.assert_allclose(found.results[0], expected.results[0], rtol=1e-5)
    np.testing.assert_allclose(found.gradients["x"], expected.gradients["x"], rtol=1e-5)
