"""The answers that every backend is held to: the float64 reference, and torch's own op in the dtype under test."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

import kernels
from kernels.case import Case
from kernels.op import OPS
from tests.support import budget, matrix
from tests.support.matrix import Arguments, Array


@dataclass(frozen=True)
class Answer:
    """Results and gradients of one call.

    Attributes:
        results: what the public function returns, always a tuple.
        gradients: gradient of every differentiable array argument, by name.
    """

    results: tuple[Array, ...]
    gradients: dict[str, Array]


def cotangents(op: str, results: tuple[Any, ...], seed: int = 1) -> tuple[Array, ...]:
    """Standard normal gradients for the differentiable ones of an op's results, in their shape and dtype."""
    rng = np.random.default_rng(seed)
    count = OPS[op].differentiable_results
    return tuple(rng.standard_normal(r.shape).astype(matrix.to_numpy(r).dtype) for r in results[:count])


def with_vjp(op: str, arguments: Arguments, incoming: tuple[Array, ...] | None, backend: str | None = None) -> Answer:
    """The answer through NumPy and `kernels.vjp`; `incoming` None takes random cotangents."""
    value, pullback = kernels.vjp(op, **arguments, backend=backend)
    results = matrix.results_of(value)
    incoming = cotangents(op, results) if incoming is None else incoming
    found = dict(zip(OPS[op].inputs, pullback(*incoming)))
    names = matrix.differentiable_names(op, arguments)
    missing = [n for n in names if found[n] is None]
    assert not missing, f"{op}: vjp gives no gradient of {missing}"
    return Answer(results, {n: found[n].reshape(arguments[n].shape) for n in names})


def with_autograd(op: str, arguments: Arguments, incoming: tuple[Array, ...], backend: str | None = None) -> Answer:
    """The answer through torch tensors and autograd."""
    tensors = matrix.as_tensors(arguments, op, requires_grad=True)
    results = matrix.results_of(matrix.public(op)(**tensors, backend=backend))
    names = matrix.differentiable_names(op, arguments)
    outputs = [(r, torch.from_numpy(g)) for r, g in zip(results, incoming) if r.requires_grad]
    found = torch.autograd.grad([r for r, _ in outputs], [tensors[n] for n in names], [g for _, g in outputs])
    return Answer(tuple(map(matrix.to_numpy, results)), dict(zip(names, map(matrix.to_numpy, found))))


@dataclass(frozen=True)
class Units:
    """Errors of one call's results, in order, and of its gradients, by name, in units in the last place."""

    results: list[float]
    gradients: dict[str, float]


@dataclass(frozen=True)
class Expectation:
    """One call with its exact answer and torch's own."""

    op: str
    arguments: Arguments
    incoming: tuple[Array, ...]
    exact: Answer
    torchs: Answer

    @cached_property
    def torch_units(self) -> Units:
        """What torch errs on these numbers, in units of each answer's scale."""

        def units(exact: Array, theirs: Array) -> float:
            return budget.error(theirs, exact) / budget.unit(exact, theirs.dtype) if exact.dtype.kind == "f" else 0.0

        return Units(
            [units(a, b) for a, b in zip(self.exact.results, self.torchs.results)],
            {n: units(a, self.torchs.gradients[n]) for n, a in self.exact.gradients.items()},
        )

    @cached_property
    def single_units(self) -> Units:
        """What torch errs on these numbers in float32, in units of each answer's scale; for float64 answers.

        There torch and the reference may sum in the same order and agree to the last bit, which says nothing of how
        exact either is. For float32 answers 0: torch's error is measured directly.
        """
        if self.exact.results[0].dtype != self.torchs.results[0].dtype:
            return Units([0.0] * len(self.exact.results), dict.fromkeys(self.exact.gradients, 0.0))
        floating = [n for n, a in self.arguments.items() if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
        single = expect(
            self.op,
            self.arguments | {n: self.arguments[n].astype(np.float32) for n in floating},
            tuple(g.astype(np.float32) for g in self.incoming),
        )
        return single.torch_units

    def complaints(self, found: Answer, usual: Expectation | None = None) -> list[str]:
        """Everything in `found` that is not within the budget, one line each.

        `usual` is a call of the same form with numbers of ordinary size, where the results and gradients of this one
        may cancel to nothing: their scale is then that of the usual ones (for gradients also of the results), and
        torch's error what it is there, if these are larger.
        """
        lines = []
        if len(found.results) != len(self.exact.results):
            return [f"{len(found.results)} results, must be {len(self.exact.results)}"]
        units = self.single_units if usual is None else usual.torch_units
        for i, (mine, exact, theirs) in enumerate(zip(found.results, self.exact.results, self.torchs.results)):
            scale = 0.0 if usual is None or exact.dtype.kind != "f" else largest(usual.exact.results[i])
            c = budget.complaint(mine, exact, theirs, units.results[i], scale)
            lines += [f"result {i}: {c}"] if c else []
        for name, exact in self.exact.gradients.items():
            if name in found.gradients:
                scale = 0.0
                if usual is not None:
                    scale = max(largest(usual.exact.gradients[name]), largest(usual.exact.results[0]))
                theirs = self.torchs.gradients[name]
                c = budget.complaint(found.gradients[name], exact, theirs, units.gradients[name], scale)
                lines += [f"gradient of {name}: {c}"] if c else []
        return lines


def largest(array: Array) -> float:
    """The largest finite magnitude, 0 where there is none."""
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))


def expect(op: str, arguments: Arguments, incoming: tuple[Array, ...] | None = None) -> Expectation:
    """Work out the exact answer of a call (NumPy arguments) and torch's own."""
    double = matrix.in_double(arguments)
    if incoming is None:
        results = matrix.results_of(matrix.public(op)(**arguments, backend="reference"))
        incoming = cotangents(op, results)
    exact = with_vjp(op, double, tuple(g.astype(np.float64) for g in incoming), "reference")
    return Expectation(op, arguments, incoming, exact, with_autograd(op, arguments, incoming, "torch"))


_cases: dict[tuple[str, str], Expectation] = {}


def expect_case(case: Case, dtype: str) -> Expectation:
    """The expectation for a case; worked out once a process. Callers must not change its arrays."""
    key = (case.id, dtype)
    if key not in _cases:
        _cases[key] = expect(case.op, case.build(dtype))
    return _cases[key]
