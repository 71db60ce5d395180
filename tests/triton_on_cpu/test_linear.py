"""linear and linear_cross_entropy on the backend "triton": torch's products, and kernels in the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import kernels
from kernels.case import Case
from kernels.linear_cross_entropy import chunks
from kernels.linear_cross_entropy.triton_gpu import LossTile, loss_tile, parts_of_classes
from kernels.runtime.targets import TARGETS
from kernels.runtime.tuning import use_tile
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


# ----- losses without logits in memory -------------------------------------------------------------------------------

H100 = TARGETS["sm_90"]
FUSED = ["statistics_of_products", "losses_of_parts"]


def losses(x: torch.Tensor, matrix: torch.Tensor, target: torch.Tensor, **rest: Any) -> torch.Tensor:
    """The loss of every row, by the fused kernels."""
    with on_cpu(H100, seed=3) as launched:
        found = kernels.linear_cross_entropy(x, matrix, target, reduction="none", backend="triton", **rest)
    assert launched == FUSED
    return found


@pytest.mark.parametrize("tile", [LossTile(16, 16, 16, 4, 1), LossTile(32, 64, 32, 4, 2)], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", helpers.HALVES, ids=str)
def test_fused_losses(tile: LossTile, smoothing: float, weighted: bool, dtype: torch.dtype):
    """Rows, classes and features that no tile divides, in several parts; rows that are ignored."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=generator).to(dtype) for s in ((37, 40), (150, 40), (150,)))
    factors = torch.rand(150, generator=generator).to(dtype) if weighted else None
    target = torch.randint(0, 150, (37,), generator=generator)
    target[5] = 7
    rest: dict[str, Any] = {"ignore_index": 7, "label_smoothing": smoothing}
    with use_tile(tile):
        found = losses(x, weight, target, linear_bias=bias, weight=factors, **rest)
    double = [None if t is None else t.double() for t in (x, weight, bias, factors)]
    logits = torch.nn.functional.linear(double[0], double[1], double[2])  # type: ignore[arg-type]
    exact = torch.nn.functional.cross_entropy(logits, target, double[3], reduction="none", **rest)
    assert found[5] == 0
    torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_fused_losses_round_their_result_alone():
    """In chunks logits of half precision are rounded before the loss, here they are not."""
    x, weight = (torch.randn(s).bfloat16() for s in ((16, 64), (100, 64)))
    target = torch.randint(0, 100, (16,))
    exact = torch.nn.functional.cross_entropy(x.double() @ weight.double().T, target, reduction="sum")
    with on_cpu() as launched:
        found = kernels.linear_cross_entropy(x, weight, target, reduction="sum", backend="triton")
    assert launched == FUSED
    assert found == exact.bfloat16()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classes_that_cannot_be(smoothing: float):
    """A bias of -inf hides classes, whole tiles of them too; the loss of one of them is infinite, as in torch."""
    x, weight, bias = torch.randn(20, 16).half(), torch.randn(90, 16).half(), torch.randn(90).half()
    bias[:40], bias[70] = -torch.inf, -torch.inf
    target = torch.full((20,), 50)
    target[3] = 10
    with use_tile(LossTile(16, 16, 16, 4, 1)):
        found = losses(x, weight, target, linear_bias=bias, label_smoothing=smoothing)
    logits = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    exact = torch.nn.functional.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
    assert exact[3] == torch.inf and (smoothing > 0) == bool(exact[4].isinf())
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_none_stay_in_their_row(odd: float):
    x, weight = torch.randn(20, 16).half(), torch.randn(90, 16).half()
    x[3, 2] = odd
    found = losses(x, weight, torch.arange(20))
    assert found[3].isnan() and not torch.cat([found[:3], found[4:]]).isnan().any()


def test_tensor_cores_are_what_fuses():
    """float32 as tf32, not float32 proper; few features, class indices, one row of logits for each row."""

    def words(features: int = 16, dtype: torch.dtype = torch.float16, soft: bool = False, inner: int = 1) -> str:
        x, weight = (
            torch.zeros(4, features, dtype=dtype),
            torch.zeros(8, *([inner] * (inner > 1)), features, dtype=dtype),
        )
        shape = (4, *([inner] * (inner > 1)))
        target = torch.ones(4, 8, dtype=dtype) if soft else torch.zeros(shape, dtype=torch.int64)
        return str(kernels.explain("linear_cross_entropy", x, weight, target))

    fused = "losses without logits in memory; backward 4 of 4 rows at a time"
    with on_cpu(H100):
        assert fused in words() and fused in words(1024)
        for chunked in (words(1025), words(dtype=torch.float32), words(soft=True), words(inner=2)):
            assert "without logits" not in chunked and "4 of 4 rows at a time" in chunked
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with on_cpu(H100):
            assert fused in words(dtype=torch.float32)
        x, weight = torch.randn(20, 16), torch.randn(90, 16)
        found = losses(x, weight, torch.arange(20))
    finally:
        torch.set_float32_matmul_precision(before)
    exact = torch.nn.functional.cross_entropy(x.double() @ weight.double().T, torch.arange(20), reduction="none")
    error = float((found - exact).abs().max())
    assert 1e-6 < error < 1e-2  # the factors are rounded to 11 bits


def test_tiles_of_losses():
    assert loss_tile(8192, 512, 2, H100) == LossTile(128, 64, 64, 8, 3)
    assert loss_tile(5, 20, 4, H100) == LossTile(16, 128, 32, 4, 3)
    assert loss_tile(8192, 512, 2, TARGETS["gfx942"]) == LossTile(64, 64, 64, 4, 1)
    assert parts_of_classes(64, 32000, 64, H100) == (5, 6400)  # 320 programs for 132 multiprocessors
    assert parts_of_classes(1, 100, 64, H100) == (2, 64)
    assert parts_of_classes(1000, 32000, 64, H100) == (1, 32000)
