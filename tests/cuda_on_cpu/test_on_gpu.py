"""The same cases on a real GPU: ``pytest -m gpu``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels.backends import BACKENDS, load
from kernels.case import Case
from kernels.op import OPS
from tests.cuda_on_cpu import helpers
from tests.cuda_on_cpu.helpers import on_cpu
from tests.support import matrix, oracle

Array = np.ndarray[Any, Any]
MISSING = BACKENDS["cupy"].missing()
NAMES = tuple(n for n, op in OPS.items() if load(op.family, BACKENDS["cupy"]) and "cupy" in op.implementations)
CASES = helpers.small_cases(*NAMES)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(MISSING is not None, reason=f"cupy: {MISSING}")]


def by_cupy(op: str, arguments: dict[str, Any], incoming: tuple[Array, ...]) -> oracle.Answer:
    """The answer through CuPy's arrays, as NumPy; gradients by name of the input."""
    import cupy

    there = {n: cupy.asarray(a) if isinstance(a, np.ndarray) else a for n, a in arguments.items()}
    value, pullback = kernels.vjp(op, **there, backend="cupy")
    found = [None if g is None else cupy.asnumpy(g) for g in pullback(*map(cupy.asarray, incoming))]
    return oracle.Answer(tuple(map(cupy.asnumpy, matrix.results_of(value))), dict(zip(OPS[op].inputs, found)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_cases(case: Case, dtype: str):
    expected = oracle.expect_case(case, dtype)
    found = by_cupy(case.op, expected.arguments, expected.incoming)
    wanted = matrix.differentiable_names(case.op, expected.arguments)
    gradients = {n: found.gradients[n].reshape(expected.arguments[n].shape) for n in wanted}
    helpers.report(expected.complaints(oracle.Answer(found.results, gradients)))


@pytest.mark.parametrize("dtype", helpers.HALVES)
@pytest.mark.parametrize("case", CASES)
def test_cases_in_half_precision(case: Case, dtype: str):
    helpers.report(helpers.half_complaints(case, dtype, by_cupy))


@helpers.needs_harness
@pytest.mark.parametrize("op", NAMES)
def test_a_gpu_finds_what_the_harness_finds(op: str):
    expected = oracle.expect_case(matrix.cases_of(op, "ci")[0], "float32")
    with on_cpu("fast"):
        here = helpers.by_numpy(op, expected.arguments, expected.incoming)
    there = by_cupy(op, expected.arguments, expected.incoming)
    for a, b in zip(here.results, there.results, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)
    for name, gradient in here.gradients.items():
        if gradient is not None:
            np.testing.assert_allclose(there.gradients[name], gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", NAMES)
def test_answers_have_the_same_bits_every_time(op: str):
    expected = oracle.expect_case(matrix.cases_of(op, "ci")[0], "float32")
    first, *others = (by_cupy(op, expected.arguments, expected.incoming) for _ in range(5))
    for other in others:
        for a, b in zip((*first.results, *first.gradients.values()), (*other.results, *other.gradients.values())):
            assert a is None or a.tobytes() == b.tobytes()


@pytest.mark.parametrize("kind", ["cupy", "torch"])
def test_wrong_values_are_told_by_a_later_call(kind: str):
    """The GPU writes to the host's memory."""
    import cupy

    weight, indices = cupy.ones((5, 8), cupy.float32), cupy.zeros(3000, cupy.int64)
    kernels.embedding(indices, weight, backend="cupy")
    kernels.check_device_errors()
    indices[1234], indices[2345] = 9, 8
    if kind == "torch":
        weight, indices = torch.from_dlpack(weight), torch.from_dlpack(indices)
    found = kernels.embedding(indices, weight, backend="cupy")
    assert bool((found[1234] != found[1234]).all()) and bool((found[0] == 1).all())  # which waits
    with pytest.raises(IndexError, match=r"got 9 at 1234 \(in an earlier call"):
        kernels.embedding(indices[:5], weight, backend="cupy")
    kernels.embedding(indices[:5], weight, backend="cupy")
    kernels.check_device_errors()
