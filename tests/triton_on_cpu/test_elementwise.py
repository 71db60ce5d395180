"""The activations, dropout and embedding in Triton, executed on the CPU with bounds and races watched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels.backends import BACKENDS, load
from kernels.case import Case
from kernels.random import keep_mask
from kernels.runtime.elementwise_triton import collapse, flat_tile, places_of
from kernels.runtime.targets import TARGETS
from kernels.runtime.triton_gpu import DTYPES
from tests.support import layouts, matrix
from tests.support.triton_interpreter import on_cpu
from tests.triton_on_cpu import helpers
from tests.triton_on_cpu.helpers import report

OPS = ("relu", "gelu", "silu", "sigmoid", "tanh", "dropout", "embedding")
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
    """Strided inputs and gradients; NaN lies in their gaps, and the interpreter lets nobody read it."""
    for case in matrix.cases_of(op, "ci")[:2]:
        helpers.check_layout(case, layout)


@pytest.mark.parametrize("op", OPS)
def test_results_do_not_depend_on_the_order_of_the_programs(op: str):
    helpers.check_order(matrix.cases_of(op, "ci")[0])


# ----- places ------------------------------------------------------------------------------------------------------


def test_dimensions_that_lie_as_one_are_joined():
    assert collapse((2, 3, 4), [(12, 4, 1)]) == ((24,), [(1,)])
    assert collapse((2, 1, 3, 4), [(12, 7, 4, 1), (24, 9, 8, 2)]) == ((24,), [(1,), (2,)])
    assert collapse((2, 3, 4), [(12, 4, 1), (1, 2, 6)]) == ((2, 3, 4), [(12, 4, 1), (1, 2, 6)])
    assert collapse((2, 3, 4), [(0, 4, 1)]) == ((2, 12), [(0, 1)])
    assert collapse((), [()]) == ((), [()])


def test_arrays_are_read_where_they_lie_unless_too_many_dimensions_do_not_join():
    x = torch.zeros(3, 5, 5, 6)[:, ::2]
    same, numbers, (read,) = places_of((0, 1, 2, 3), x)
    assert (same, numbers) == (False, (1, 3, 3, 30, 0, 150, 60, 1)) and read.data_ptr() == x.data_ptr()
    apart = torch.zeros(4, 4, 4, 4, 4)[::2, ::2, ::2, ::2, ::2]
    same, _, (read,) = places_of((0, 1, 2, 3, 4), apart)
    assert same and read.is_contiguous()


def test_few_elements_are_shared_out_among_more_programs():
    h100, amd = TARGETS["sm_90"], TARGETS["gfx942"]
    assert flat_tile(10**7, h100) == {"BLOCK": 1024, "LONG": False, "num_warps": 4}
    assert flat_tile(10**5, h100) == {"BLOCK": 256, "LONG": False, "num_warps": 1}
    assert flat_tile(2**31, h100)["LONG"] and flat_tile(10**7, amd)["num_warps"] == 2


def test_elements_beyond_32_bits():
    """Rows 2**30 elements apart; the memory between them is never touched."""
    stride, n = 2**30 + 64, 33
    x = torch.empty(2 * stride + n, dtype=torch.float16).as_strided((3, n), (stride, 1))
    x.copy_(torch.from_numpy(helpers.numbers(3, n)))
    with on_cpu():
        assert torch.equal(kernels.silu(x, backend="triton"), kernels.silu(x.contiguous(), backend="triton"))
        named = kernels.embedding(torch.tensor([2, 0]), x, backend="triton")
    assert torch.equal(named, x[[2, 0]])


# ----- what each of them promises ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(13, 21), (3, 700), (5,)])
@pytest.mark.parametrize("seed", [0, -1, 2**62 + 12345])
def test_the_mask_is_the_same_on_every_backend_bit_for_bit(shape: tuple[int, ...], seed: int):
    x = torch.ones(shape, requires_grad=True)
    for p, stream in ((0.3, 0), (0.9, 2**33 + 7)):
        with on_cpu(seed=1):
            y = kernels.dropout(x, p, seed=seed, stream=stream, backend="triton")
            (gradient,) = torch.autograd.grad(y.sum(), x)
        kept = torch.from_numpy(keep_mask(shape, p, seed, stream))
        assert torch.equal(y.detach() != 0, kept) and torch.equal(gradient != 0, kept)
        assert torch.equal(y, kernels.dropout(x, p, seed=seed, stream=stream, backend="torch"))


def test_a_dropped_nan_is_zero():
    with on_cpu():
        y = kernels.dropout(torch.full((50,), float("nan")), 0.5, seed=3, backend="triton")
    assert torch.equal(y == 0, ~torch.from_numpy(keep_mask((50,), 0.5, 3)))


@pytest.mark.parametrize("op", ["relu", "gelu", "silu", "sigmoid", "tanh"])
def test_activations_of_special_numbers(op: str):
    x = np.float32([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-30, -1e-6, 88.0, -200.0, 3e38])
    with on_cpu():
        found = matrix.public(op)(torch.from_numpy(x), backend="triton").numpy()
    exact = matrix.public(op)(x.astype(np.float64), backend="reference")
    np.testing.assert_allclose(found, exact, rtol=2e-6, atol=1e-37)


def test_tanh_keeps_its_digits_near_zero():
    for dtype, tolerance in ((np.float32, 4e-7), (np.float64, 1e-15)):
        x = np.concatenate([np.logspace(-8, 0, 500), [0.4999999, 0.5, 0.51]]).astype(dtype)
        with on_cpu():
            found = kernels.tanh(torch.from_numpy(x), backend="triton").numpy()
        np.testing.assert_allclose(found, np.tanh(x.astype(np.longdouble)).astype(np.float64), rtol=tolerance)


def test_an_index_that_is_none_is_never_read():
    """Values are checked before a kernel runs, but not while a CUDA graph is captured: the kernel is safe by itself."""
    from kernels.embedding import triton_gpu

    weight, indices = torch.randn(4, 6), torch.tensor([3, 4, -1, 0])
    problem = matrix.capture("embedding", indices, weight).problem(True)
    with on_cpu():
        (rows,) = triton_gpu.forward(problem, weight, indices)
        gradient, _ = triton_gpu.backward(problem, torch.ones(4, 6), indices)
    assert rows.isnan().all(1).tolist() == [False, True, True, False]
    assert torch.equal(rows[[0, 3]], weight[[3, 0]])
    assert gradient.sum(1).tolist() == [6, 0, 0, 6]


def test_a_tables_rows_beyond_32_bits():
    """Rows 2**30 elements apart; the memory between them is never touched."""
    stride = 2**30 + 64
    apart = torch.empty(2 * stride + 6, dtype=torch.float16).as_strided((3, 6), (stride, 1))
    apart.copy_(torch.from_numpy(helpers.numbers(3, 6)))
    indices = torch.tensor([2, 0, 2, 1])
    answers = []
    with on_cpu():
        for weight in (apart.contiguous(), apart):
            given = weight.detach().requires_grad_()
            y = kernels.embedding(indices, given, backend="triton")
            answers.append((y, *torch.autograd.grad(y.float().square().sum(), given)))
    for a, b in zip(*answers, strict=True):
        assert torch.equal(a, b)


def test_a_frequent_rows_gradient_has_the_same_bits_whatever_the_order_of_the_programs():
    indices = torch.from_numpy(np.random.default_rng(0).integers(0, 3, 200))
    gradients = []
    for seed in (None, 1, 2):
        weight = torch.zeros(3, 600, requires_grad=True)
        with on_cpu(seed=seed):
            y = kernels.embedding(indices, weight, backend="triton")
            gradients += torch.autograd.grad(y, weight, torch.from_numpy(helpers.numbers(200, 600)))
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


def test_an_out_of_range_index_is_an_error():
    with on_cpu():
        found = kernels.embedding(torch.tensor([3, 4]), torch.zeros(4, 6), backend="triton")
        with pytest.raises(IndexError, match=r"^embedding: input must lie in \[0, 3\] .*, got 4 at 1 \(in an earlier"):
            kernels.check_device_errors()
    assert found[1].isnan().all() and not found[0].any()


def test_explain_names_the_kernel():
    with on_cpu():
        found: Any = kernels.explain("relu", torch.zeros(3, 7))
    assert found.chosen == "triton" and "relu in one pass over x" in str(found)
    for op in OPS:
        load(matrix.OPS[op].family, BACKENDS["triton"])
        assert matrix.OPS[op].implementations["triton"].dtypes == DTYPES
