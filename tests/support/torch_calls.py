"""Calls of the public functions on tensors, and what tests of the torch binding go through."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels.backends import BACKENDS
from kernels.case import Case
from kernels.op import OPS
from tests.support import matrix

CASES = matrix.case_parameters()
OP_NAMES = matrix.OP_NAMES
#: Backends that our own autograd function serves, and torch's own.
CASE_BACKEND = matrix.case_backend_parameters()
SIMPLE = [pytest.param(matrix.cases_of(op, "ci")[0], id=op) for op in OP_NAMES]
SIMPLE_BACKEND = matrix.case_backend_parameters(tuple(matrix.cases_of(op, "ci")[0] for op in OP_NAMES))
#: What is compiled: the first cases of each op at once, the others in the full run.
COMPILED = [
    pytest.param(c, id=c.id, marks=[] if i < 2 else [pytest.mark.slow])
    for op in OP_NAMES
    for i, c in enumerate(matrix.cases_of(op, "ci"))
    if i < 4
]


def function_of(case: Case, tensors: dict[str, Any], backend: str | None = None) -> tuple[Any, list[torch.Tensor]]:
    """The case as a function of its differentiable tensors alone, and those tensors."""
    names = matrix.differentiable_names(case.op, tensors)
    fixed = {n: a for n, a in tensors.items() if n not in names}
    count = OPS[case.op].differentiable_results

    def function(*given: torch.Tensor) -> Any:
        value = matrix.public(case.op)(**fixed, **dict(zip(names, given)), backend=backend)
        return matrix.results_of(value)[0] if count == 1 else matrix.results_of(value)[:count]

    return function, [tensors[n] for n in names]


def own_case(case: Case) -> str:
    """A backend whose inside torch cannot see."""
    return next(b for b in matrix.backends_of(case.op) if not BACKENDS[b].differentiates)


def total(value: Any) -> torch.Tensor:
    """The sum of all elements of all results."""
    return sum(r.sum() for r in matrix.results_of(value))


def assert_equal(first: Any, second: Any, rtol: float = 0, atol: float = 0) -> None:
    """The same kind, numbers and layout."""
    for a, b in zip(matrix.results_of(first), matrix.results_of(second), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=True)


def budget_of_torchs_own(case: Case, backend: str) -> tuple[float, float]:
    """rtol and atol between calls with and without gradients, which are the same code but for torch's own LSTM.

    That has other code without gradients, and its bits are the same on some processors only.
    """
    return (1e-5, 1e-6) if backend == "torch" and case.op.startswith("lstm") else (0, 0)


def registered_arguments(case: Case, arguments: dict[str, Any], needs_grad: bool) -> tuple[Any, ...]:
    """Arguments of the registered op for a case."""
    captured = matrix.capture(case.op, **arguments)
    problem = captured.problem(needs_grad)
    values = [getattr(problem, n) for n in captured.op.attributes]
    return (*captured.inputs, *values, list(problem.needs_grad), None)
