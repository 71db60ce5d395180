"""Calls of the public functions that tests watch: an op's ordinary case, which backend ran, a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kernels
from kernels.case import Case
from kernels.op import OPS, Implementation, Problem
from tests.support import matrix

#: What bad input raises.
ERRORS = (TypeError, ValueError, IndexError)
ROOT = Path(__file__).resolve().parents[2]


def simple_case(op: str) -> Case:
    """An op's first ordinary case."""
    return matrix.cases_of(op, "ci")[0]


def run_python(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter that inherits none of the library's settings."""
    clean = {n: v for n, v in os.environ.items() if not n.startswith("KERNELS_BACKEND")}
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**clean, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


def traced(monkeypatch: pytest.MonkeyPatch, op: str) -> list[str]:
    """Names of the backends whose forward runs from now on, in order."""
    ran: list[str] = []

    def watch(backend: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*arguments: Any) -> Any:
            ran.append(backend)
            return function(*arguments)

        return forward

    declared = OPS[op]
    watched = {}
    for backend in matrix.backends_of(op):
        found = declared.implementations[backend]
        fields = {n: getattr(found, n) for n in found.__dataclass_fields__}
        made = object.__new__(Implementation)

        def direct(problem: Problem, backend: str = backend, own: Any = found.direct) -> Any:
            function = own(problem)
            return None if function is None else watch(backend, function)

        def by_address(problem: Problem, backend: str = backend, own: Any = found.by_address) -> Any:
            function = own(problem)
            return None if function is None else watch(backend, function)

        ways = {"forward": watch(backend, found.forward), "direct": direct, "by_address": by_address}
        for name, value in (fields | ways).items():
            object.__setattr__(made, name, value)
        watched[backend] = made
    monkeypatch.setattr(declared, "implementations", {**declared.implementations, **watched})
    monkeypatch.setattr(declared, "plans", {})
    return ran


def leaves_to_torch(op: str, tensors: dict[str, Any]) -> bool:
    """Whether the table says that torch's own function is faster for this call, and there is one."""
    problem, declared = kernels.explain(op, **tensors).problem, OPS[op]
    own, stock = declared.implementations["numba"], declared.implementations["torch"]
    return problem.flops() < own.torch_below(problem) and stock.direct(problem) is not None
