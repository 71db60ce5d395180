"""Numba on the CPU, CUDA C++ on the CPU and interpreted Triton agree on every ordinary case, dropout's masks included.

Each is held to the float64 reference elsewhere; here they are compared with each other, through one declaration and one
caller. Ops, cases and backends are found by themselves.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from kernels.backends import BACKENDS, load
from kernels.case import Case
from kernels.op import OPS
from tests.cuda_on_cpu import helpers
from tests.support import budget, cuda_cpu, matrix, oracle, triton_interpreter

pytestmark = helpers.needs_harness
THREE = ("numba", "cupy", "triton")


@pytest.fixture(autouse=True)
def ieee():
    """Triton's convolutions take tf32 where torch's do, as they do unless told not to; the budget is float32's."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def _has_all(op: str) -> bool:
    return all(load(OPS[op].family, BACKENDS[b]) and b in OPS[op].implementations for b in THREE)


SHARED_OPS = tuple(name for name in OPS if _has_all(name))


def _runs_on_all(case: Case) -> bool:
    problem = matrix.capture(case.op, **case.build()).problem(True)
    return all(OPS[case.op].implementations[b].why_not(problem) == [] for b in THREE)


CASES = tuple(c for op in SHARED_OPS for c in matrix.cases_of(op, "ci") if _runs_on_all(c))


def answer_of(backend: str, expected: oracle.Expectation) -> dict[str, np.ndarray]:
    """Results and gradients of a backend by name."""
    call = (expected.op, expected.arguments, expected.incoming)
    if backend == "numba":
        found = oracle.with_vjp(*call, "numba")
    elif backend == "cupy":
        with cuda_cpu.on_cpu("fast"):
            found = oracle.with_vjp(*call, "cupy")
    else:
        with triton_interpreter.on_cpu():
            found = oracle.with_autograd(*call, "triton")
    results = {f"result {i}": np.asarray(r) for i, r in enumerate(found.results)}
    return results | {f"gradient of {name}": g for name, g in found.gradients.items()}


@pytest.mark.parametrize("case", matrix.case_parameters(CASES))
def test_three_backends_agree(case: Case):
    """Two answers may differ by what both may err."""
    expected = oracle.expect_case(case, "float32")
    answers = {backend: answer_of(backend, expected) for backend in THREE}
    units = [*expected.single_units.results, *expected.single_units.gradients.values()]
    exact = [*expected.exact.results, *expected.exact.gradients.values()]
    torchs = [*expected.torchs.results, *expected.torchs.gradients.values()]
    complaints = []
    for (a, mine), (b, theirs) in itertools.combinations(answers.items(), 2):
        assert mine.keys() == theirs.keys()
        for name, true, rough, unit in zip(mine, exact, torchs, units, strict=True):
            one, other = mine[name], theirs[name]
            if one.dtype.kind != "f":
                if not np.array_equal(one, other):
                    complaints.append(f"{name}: {a} and {b} are unequal")
                continue
            if not np.array_equal(np.isfinite(one), np.isfinite(other)):
                complaints.append(f"{name}: NaN or infinity in one of {a} and {b} alone")
            allowed = 2 * budget.allowance(true, rough, one.dtype, unit)
            error = budget.error(one, other.astype(np.float64))
            if error > allowed:
                complaints.append(f"{name}: {a} and {b} differ by {error:.3g}, more than {allowed:.3g}")
            if case.op == "dropout" and not np.array_equal(one == 0, other == 0):
                complaints.append(f"{name}: {a} and {b} drop other elements")
    helpers.report(complaints)


def test_ops_with_three_backends_are_these():
    """Those that lose one are noticed."""
    assert set(SHARED_OPS) == set(OPS)
    assert {c.op for c in CASES} == set(SHARED_OPS)
