"""conv2d_max_pool2d in Triton, executed on the CPU."""

from __future__ import annotations

import pytest
import torch

import kernels
from kernels.case import Case
from tests.support.triton_interpreter import on_cpu
from tests.triton_on_cpu import helpers

#: Not the image that is tall for the sake of the CPU's bands: kernels see a place of an image at a time.
CASES = [p for p in helpers.small_cases("conv2d_max_pool2d") if p.values[0].name != "a tall image"]


@pytest.fixture(autouse=True)
def ieee():
    """torch takes tf32 for float32 convolutions unless it is told not to; the budget is float32's."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.mark.parametrize("case", CASES)
def test_cases(case: Case):
    with on_cpu():
        helpers.report(helpers.complaints(case, "float32"))


@pytest.mark.parametrize("case", CASES[:3])
def test_cases_in_half_precision(case: Case):
    with on_cpu():
        helpers.report(helpers.tensor_complaints(case, torch.bfloat16))


def test_the_kernels_that_run_are_these():
    """Every gradient is one program's sum: overlapping windows are gathered, not scattered."""
    x, weight = torch.randn(1, 3, 9, 9, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    with on_cpu() as launched:
        y = kernels.conv2d_max_pool2d(
            x, weight, activation="gelu", pool_kernel_size=3, pool_stride=2, backend="triton"
        )  # fmt: skip
        torch.autograd.grad(y.sum(), (x, weight))
    assert launched == [
        "convolve", "max_of_windows", "activation_gradient_elements", "gradient_of_maxima", "convolve",
        "weight_gradient_of_parts", "sum_parts",
    ]  # fmt: skip
