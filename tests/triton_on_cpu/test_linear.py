"""linear and linear_cross_entropy on the backend "triton": torch's products, and kernels in the interpreter."""

from __future__ import annotations

import pytest
import torch

import kernels
from kernels.case import Case
from kernels.linear_cross_entropy import chunks
from tests.support.triton_interpreter import on_cpu
from tests.triton_on_cpu import helpers
from tests.triton_on_cpu.helpers import report

CASES = helpers.small_cases("linear", "linear_cross_entropy")


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


def test_the_losses_of_a_chunk_are_a_kernels(monkeypatch: pytest.MonkeyPatch):
    """Chunks of 2 rows of 3."""
    monkeypatch.setattr(chunks, "CHUNK", 20)
    x, weight, target = torch.randn(3, 6, requires_grad=True), torch.randn(10, 6), torch.tensor([1, 2, 3])
    with on_cpu() as launched:
        loss = kernels.linear_cross_entropy(x, weight, target, backend="triton")
        (found,) = torch.autograd.grad(loss, x)
        words = str(kernels.explain("linear_cross_entropy", x, weight, target))
    assert launched == ["losses_of_rows"] * 2 + ["gradient_of_rows"] * 2
    assert "2 of 3 rows at a time" in words
    expected = torch.nn.functional.cross_entropy(x @ weight.T, target)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, x)[0])
