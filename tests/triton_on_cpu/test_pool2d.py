"""The poolings in Triton, executed on the CPU with bounds and races watched, in a random order of the programs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels.case import Case
from tests.support import layouts, matrix, oracle
from tests.support.triton_interpreter import on_cpu
from tests.triton_on_cpu import helpers
from tests.triton_on_cpu.helpers import report

OPS = ("max_pool2d", "avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d", "lp_pool2d")
CASES = helpers.small_cases(*OPS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_cases(case: Case, dtype: str):
    with on_cpu():
        report(helpers.complaints(case, dtype))


@pytest.mark.parametrize("dtype", helpers.HALVES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_cases_in_half_precision(case: Case, dtype: torch.dtype):
    with on_cpu():
        report(helpers.tensor_complaints(case, dtype))


@pytest.mark.parametrize("layout", layouts.TORCH_LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_any_layout(op: str, layout: str):
    helpers.check_layout(matrix.cases_of(op, "ci")[1], layout)


@pytest.mark.parametrize("op", OPS)
def test_results_do_not_depend_on_the_order_of_the_programs(op: str):
    helpers.check_order(matrix.cases_of(op, "ci")[0])


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
    x = rng.choice(np.float32([0, 1, 2, np.nan, -np.inf, np.inf]), (2, 3, 8, 9), p=[0.3, 0.3, 0.15, 0.05, 0.15, 0.05])
    if last:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    arguments = {"x": x, **window, "return_indices": True}
    expected = oracle.with_vjp("max_pool2d", arguments, None, "reference")
    with on_cpu():
        incoming = oracle.cotangents("max_pool2d", expected.results)
        found = oracle.with_autograd("max_pool2d", arguments, incoming, "triton")
    for a, b in zip(found.results, expected.results, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(found.gradients["x"], expected.gradients["x"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm_type", [0.5, 1, 3, -1, -2, 1.7, 17, 20, float("inf"), -float("inf")])
def test_powers(norm_type: float):
    x = np.abs(helpers.numbers(2, 3, 6, 7)) + np.float32(0.1)
    expected = oracle.expect("lp_pool2d", {"x": x, "norm_type": norm_type, "kernel_size": 3, "stride": 2})
    with on_cpu():
        found = oracle.with_autograd("lp_pool2d", expected.arguments, expected.incoming, "triton")
    report(expected.complaints(found))


@pytest.mark.parametrize("norm_type", [1, 2, 3, 2.5, -2])
def test_powers_of_zeros_negative_numbers_and_nan(norm_type: float):
    numbers = np.float32([0, -0.0, 1, -2, np.nan])
    x = np.random.default_rng(2).choice(numbers, (1, 2, 8, 8), p=[0.4, 0.2, 0.2, 0.15, 0.05])
    arguments = {"x": x, "norm_type": norm_type, "kernel_size": 2}
    expected = oracle.with_vjp("lp_pool2d", matrix.in_double(arguments), None, "reference")
    incoming = oracle.cotangents("lp_pool2d", (expected.results[0].astype(np.float32),))
    with on_cpu():
        found = oracle.with_autograd("lp_pool2d", arguments, incoming, "triton")
    np.testing.assert_allclose(found.results[0], expected.results[0], rtol=1e-5)
    np.testing.assert_allclose(found.gradients["x"], expected.gradients["x"], rtol=1e-5)


@pytest.mark.parametrize("op", ["max_pool2d", "avg_pool2d"])
def test_offsets_beyond_32_bits(op: str):
    """Images 2**30 elements apart; the memory between them is never touched."""
    stride = 2**30 + 64
    x = torch.empty(2 * stride + 40, dtype=torch.float16).as_strided((3, 2, 4, 5), (stride, 20, 5, 1))
    x.copy_(torch.from_numpy(helpers.numbers(3, 2, 4, 5)))
    answers = []
    with on_cpu():
        for given in (x.contiguous(), x):
            given = given.detach().requires_grad_()
            y = matrix.public(op)(given, 2, backend="triton")
            answers.append((y, *torch.autograd.grad(y.float().square().sum(), given)))
    for a, b in zip(*answers, strict=True):
        assert torch.equal(a, b)


def test_integers_are_refused_with_a_reason():
    with on_cpu(), pytest.raises(kernels.BackendError, match="x has dtype int32; it takes float16, bfloat16, float32"):
        kernels.max_pool2d(torch.zeros(1, 1, 4, 4, dtype=torch.int32), 2, backend="triton")


def test_windows_that_cover_a_place():
    from kernels.pool2d.triton_gpu import covers

    def of(op: str, *arguments: Any) -> tuple[int, int]:
        return covers(matrix.capture(op, torch.zeros(1, 1, 12, 12), *arguments).problem(True))

    assert of("max_pool2d", 2) == (1, 1)
    assert of("max_pool2d", 3, (1, 2)) == (3, 2)
    assert of("max_pool2d", 3, 1, 1, (2, 3)) == (5, 7)
    assert of("adaptive_avg_pool2d", (5, 12)) == (2, 1)
    assert of("adaptive_avg_pool2d", (1, 24)) == (1, 2)
