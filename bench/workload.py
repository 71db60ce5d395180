"""One case made ready to run and to be checked: numbers, gradients that flow in, exact answers, costs."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

import kernels
from kernels.case import Case
from kernels.op import OPS, Problem

Array = np.ndarray[Any, Any]
#: Results and gradients by name: "result 0", "gradient of weight". None for one that is missing.
Answer = dict[str, "Array | None"]


def results_of(value: Any) -> tuple[Any, ...]:
    """What a public function returned, always as a tuple."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _double(value: Any) -> Any:
    floating = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return value.astype(np.float64) if floating else value


@dataclass
class Workload:
    """One case in one dtype, forward alone or forward and backward (`training`)."""

    case: Case
    dtype: str = "float32"
    training: bool = False
    arguments: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.arguments = self.case.build(self.dtype)

    @property
    def passes(self) -> str:
        """ "forward" or "training"."""
        return "training" if self.training else "forward"

    @cached_property
    def explanation(self) -> kernels.Explanation:
        """What `kernels.explain` says about the call, not printed."""
        with contextlib.redirect_stdout(io.StringIO()):
            return kernels.explain(self.case.op, **self.arguments)

    @property
    def problem(self) -> Problem:
        """The checked arguments."""
        return self.explanation.problem

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the arguments whose gradients training computes."""
        names = OPS[self.case.op].differentiable
        given = self.arguments.items()
        return tuple(n for n, a in given if n in names and isinstance(a, np.ndarray) and a.dtype.kind == "f")

    @cached_property
    def _exact_results(self) -> tuple[tuple[Array, ...], Any]:
        double = {name: _double(value) for name, value in self.arguments.items()}
        if self.training:
            value, pullback = kernels.vjp(self.case.op, **double, backend="reference")
        else:
            value, pullback = getattr(kernels, self.case.op)(**double, backend="reference"), None
        return results_of(value), pullback

    @cached_property
    def incoming(self) -> tuple[Array, ...]:
        """Standard normal gradients for the differentiable results."""
        if not self.training:
            return ()
        rng = np.random.default_rng(1)
        results, _ = self._exact_results
        shapes = [r.shape for r in results[: OPS[self.case.op].differentiable_results]]
        return tuple(np.asarray(rng.standard_normal(shape), self.dtype) for shape in shapes)

    @cached_property
    def exact(self) -> Answer:
        """The float64 reference's answer on the same numbers."""
        results, pullback = self._exact_results
        gradients: dict[str, Array] = {}
        if self.training:
            found = pullback(*[g.astype(np.float64) for g in self.incoming])
            gradients = dict(zip(OPS[self.case.op].inputs, found))
        return answer(results, {name: gradients[name] for name in self.wanted} if self.training else {})

    @cached_property
    def flops(self) -> int:
        """Floating-point operations, as the op declares them for forward. Training counts three times as many: each
        product of forward has two in backward."""
        return self.problem.flops() * (3 if self.training else 1)

    @cached_property
    def bytes_moved(self) -> int:
        """Bytes that must be read and written at least. Training reads the inputs and a gradient of the results' size
        once more and writes the gradients."""
        forward = self.problem.bytes_moved()
        if not self.training:
            return forward
        names = OPS[self.case.op].inputs
        written = [form for name, form in zip(names, self.problem.gradients()) if name in self.wanted]
        return 2 * forward + sum(form.nbytes for form in written if form is not None)


def answer(results: tuple[Any, ...], gradients: dict[str, Any]) -> Answer:
    """Results and gradients under the names that the gate compares."""
    return {f"result {i}": r for i, r in enumerate(results)} | {f"gradient of {n}": g for n, g in gradients.items()}
