"""attention in Triton, executed on the CPU: bounds and races watched, programs in random order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels.attention.gpu_tiles import AttentionTile
from kernels.case import Case
from kernels.runtime.tuning import use_tile
from tests.attention.helpers import gradients, inputs
from tests.support import layouts, matrix, oracle
from tests.support.triton_interpreter import on_cpu
from tests.triton_on_cpu import helpers
from tests.triton_on_cpu.helpers import report

OPS = ("attention", "scaled_dot_product_attention")
CASES = helpers.small_cases(*OPS)
ORDINARY_CASES = matrix.case_parameters(tuple(c for op in OPS for c in matrix.cases_of(op, "ci")))


@pytest.mark.parametrize("case", CASES)
def test_cases(case: Case):
    with on_cpu():
        report(helpers.complaints(case, "float32"))


@pytest.mark.parametrize("case", ORDINARY_CASES)
def test_cases_in_float64(case: Case):
    with on_cpu():
        report(helpers.complaints(case, "float64"))


@pytest.mark.parametrize("dtype", helpers.HALVES, ids=str)
@pytest.mark.parametrize("case", ORDINARY_CASES)
def test_cases_in_half_precision(case: Case, dtype: torch.dtype):
    with on_cpu():
        report(helpers.tensor_complaints(case, dtype))


def against_reference(arguments: dict[str, Any], tolerance: float = 1e-11) -> None:
    """float64 results and all gradients equal those of the reference to rounding."""
    exact, exact_gradients = gradients("reference", arguments)
    found, found_gradients = gradients("triton", arguments)
    for a, b in zip((*found, *found_gradients), (*exact, *exact_gradients), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b[np.isfinite(b)]).max(initial=0)))


def test_the_kernels_that_run_are_these():
    q, k, v = inputs(1, 2, 9, 11)
    with on_cpu() as launched:
        gradients("triton", {"query": q, "key": k, "value": v, "bias": np.zeros((9, 11), np.float32)})
    twice = ["query_gradient"] * 2 + ["key_gradients"] * 2
    assert launched == ["attention_forward", "attention_forward", "row_products", *twice, "bias_gradient"]
    with on_cpu() as launched:
        gradients("triton", {"query": q, "key": k, "value": v})
        kernels.attention(q[:, :, :1], k, v, causal="bottom_right")
    assert launched == ["attention_forward", "row_products", "query_gradient", "key_gradients", "attention_forward"]


# ----- layouts, offsets, order -------------------------------------------------------------------------------------

WITH_LAYOUTS = ("heads", "mask", "bias", "log-sum-exp")
LAYOUT_CASES = tuple(c for c in matrix.cases_of("attention", "ci") if c.name in WITH_LAYOUTS)


@pytest.mark.parametrize("layout", layouts.TORCH_LAYOUTS)
@pytest.mark.parametrize("case", matrix.case_parameters(LAYOUT_CASES))
def test_any_layout(case: Case, layout: str):
    expected = oracle.expect_case(case, "float32")
    relay = layouts.LAYOUTS[layout]
    names = matrix.array_names(expected.arguments)
    tensors = {n: layouts.as_tensor(relay(expected.arguments[n])) for n in names}
    wanted = matrix.differentiable_names("attention", expected.arguments)
    for name in wanted:
        tensors[name].requires_grad_()
    with on_cpu():
        results = matrix.results_of(kernels.attention(**(expected.arguments | tensors), backend="triton"))
        incoming = [layouts.as_tensor(relay(g)) for g in expected.incoming]
        found = torch.autograd.grad(results, [tensors[n] for n in wanted], incoming)
    answer = oracle.Answer(tuple(map(matrix.to_numpy, results)), {n: g.numpy() for n, g in zip(wanted, found)})
    report(expected.complaints(answer))


def test_offsets_beyond_32_bits():
    """Keys 2**30 elements apart; the memory between them is never touched."""
    stride = 2**30 + 64
    query = torch.from_numpy(inputs(1, 1, 3, 3)[0]).half()
    answers = []
    for apart in (False, True):
        key, value = (torch.from_numpy(a).half() for a in inputs(1, 1, 3, 3, seed=4)[1:])
        if apart:
            packed = (key, value)
            base = torch.empty(2 * stride + 16, dtype=torch.float16)
            key, value = (base[8 * n :].as_strided((1, 1, 3, 8), (0, 0, stride, 1)) for n in range(2))
            for wide, numbers in zip((key, value), packed):
                wide.copy_(numbers)
        with on_cpu():
            given = [t.detach().requires_grad_() for t in (query, key, value)]
            result = kernels.attention(*given, backend="triton")
            answers.append((result, *torch.autograd.grad(result.float().square().sum(), given)))
    for a, b in zip(*answers):
        assert torch.equal(a, b)


def test_results_do_not_depend_on_the_order_of_the_programs():
    q, k, v = inputs(1, 2, 40, 50, 8, kv_heads=1)
    bias = np.random.default_rng(1).standard_normal((1, 2, 1, 50)).astype(np.float32)
    arguments = {"query": q, "key": k, "value": v, "bias": bias, "dropout_p": 0.1, "seed": 1}
    answers = []
    for seed in (None, 1, 2):
        with on_cpu(seed=seed), use_tile(AttentionTile(16, 32, 4, 1)):
            found, given = gradients("triton", arguments)
        answers.append([*found, *(g for g in given if g is not None)])
    for other in answers[1:]:
        for a, b in zip(answers[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
