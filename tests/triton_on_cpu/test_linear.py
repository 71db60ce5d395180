"""linear on the backend "triton": torch's products, and the activation's kernels in the interpreter."""

from __future__ import annotations

import pytest
import torch

import kernels
from kernels.case import Case
from tests.support.triton_interpreter import on_cpu
from tests.triton_on_cpu import helpers
from tests.triton_on_cpu.helpers import report

CASES = helpers.small_cases("linear")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_cases(case: Case, dtype: str):
    with on_cpu():
        report(helpers.complaints(case, dtype))


@pytest.mark.parametrize("case", CASES)
def test_cases_in_half_precision(case: Case):
    with on_cpu():
        report(helpers.tensor_complaints(case, torch.bfloat16))


def test_the_activation_is_a_kernel_of_its_own():
    x, weight = torch.randn(5, 6, requires_grad=True), torch.randn(7, 6)
    with on_cpu() as launched:
        y = kernels.linear(x, weight, activation="gelu", backend="triton")
        torch.autograd.grad(y.sum(), x)
        found = str(kernels.explain("linear", x, weight, activation="gelu"))
    assert launched == ["activate_elements", "activation_gradient_elements"]
    assert "torch's matrix product, then gelu in one pass" in found
