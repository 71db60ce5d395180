"""The poolings in Triton, executed on the CPU with bounds and races watched, in a random order of the programs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import kernels
from kernels.case import Case
from tests.support import layouts, matrix
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
