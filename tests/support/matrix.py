"""What there is to test, read from the declarations: ops, implementations, cases. New ones are found by themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels import dispatch
from kernels.backends import BACKENDS, load
from kernels.case import Case, all_cases
from kernels.op import OPS, Implementation, Op, Problem

Array = np.ndarray[Any, Any]
Arguments = dict[str, Any]

DTYPES = ("float32", "float64")
OP_NAMES = tuple(sorted(OPS))
SMALL_CASES = all_cases("ci", "odd")
#: Backends that run on this machine's CPU.
CPU_BACKENDS = tuple(b.name for b in BACKENDS.values() if "cpu" in b.devices and b.missing() is None)


def backends_of(op: str) -> tuple[str, ...]:
    """The CPU backends that have an implementation of the op, best first."""
    return tuple(b for b in CPU_BACKENDS if load(OPS[op].family, BACKENDS[b]) and b in OPS[op].implementations)


def implementations() -> tuple[Implementation, ...]:
    """Every implementation that this machine can load."""
    return tuple(OPS[name].implementations[b] for name in OP_NAMES for b in backends_of(name))


def cases_of(op: str, *tags: str) -> tuple[Case, ...]:
    """An op's cases with one of the tags, "ci" and "odd" by default."""
    return tuple(c for c in all_cases(*(tags or ("ci", "odd"))) if c.op == op)


def case_parameters(cases: tuple[Case, ...] = SMALL_CASES) -> list[Any]:
    """One parameter (case) for each case."""
    return [pytest.param(c, id=c.id) for c in cases]


def case_backend_parameters(cases: tuple[Case, ...] = SMALL_CASES) -> list[Any]:
    """One parameter (case, backend) for each case and each backend that runs it."""
    return [pytest.param(c, b, id=f"{c.id}-{b}") for c in cases for b in backends_of(c.op) if takes(c, b)]


def takes(case: Case, backend: str) -> bool:
    """Whether the backend has no reason against the case (test_explain.py prints those that it has)."""
    return OPS[case.op].implementations[backend].why_not(capture(case.op, **case.build()).problem(True)) == []


# ----- looking into a call -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Captured:
    """What a public function hands to the house: the op, its inputs, the user's attributes."""

    op: Op
    inputs: tuple[Any, ...]
    attributes: tuple[Any, ...]

    def problem(self, needs_grad: tuple[bool, ...] | bool = False) -> Problem:
        """The checked problem. `needs_grad` True asks for every gradient that there is."""
        _, specs, _ = dispatch.describe_inputs(self.op, self.inputs)
        if isinstance(needs_grad, bool):
            pairs = zip(self.op.inputs, self.inputs)
            needs_grad = tuple(needs_grad and n in self.op.differentiable and a is not None for n, a in pairs)
        checked = self.op.problem.check(*specs, *self.attributes)
        return replace(checked, needs_grad=needs_grad)


class _Captured(BaseException):
    pass


def capture(name: str, *args: Any, **kwargs: Any) -> Captured:
    """Call the public function `name` up to the point where it would run, and return what it would run with."""
    seen: list[Captured] = []

    def look(op: Op, inputs: tuple[Any, ...], attributes: tuple[Any, ...], device: Any, backend: Any) -> Any:
        seen.append(Captured(op, inputs, attributes))
        raise _Captured

    with dispatch.inspecting(look):
        try:
            getattr(kernels, name)(*args, **kwargs)
        except _Captured:
            pass
    return seen[0]


# ----- arguments ---------------------------------------------------------------------------------------------------


def array_names(arguments: Arguments) -> tuple[str, ...]:
    """Names of the arguments that are arrays."""
    return tuple(n for n, a in arguments.items() if isinstance(a, (np.ndarray, torch.Tensor)))


def differentiable_names(op: str, arguments: Arguments) -> tuple[str, ...]:
    """Names of the arguments that are floating arrays with gradients."""
    names = OPS[op].differentiable
    return tuple(n for n in array_names(arguments) if n in names and _floating(arguments[n]))


def _floating(array: Any) -> bool:
    return array.dtype.kind == "f" if isinstance(array, np.ndarray) else bool(array.dtype.is_floating_point)


def in_double(arguments: Arguments) -> Arguments:
    """The same numbers with every floating array as float64."""
    floating = [n for n, a in arguments.items() if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    return arguments | {n: arguments[n].astype(np.float64) for n in floating}


def as_tensors(arguments: Arguments, op: str | None = None, requires_grad: bool | tuple[str, ...] = False) -> Arguments:
    """The same arguments with tensors, own memory, same strides; `requires_grad` for all that have one, or by name."""
    made = dict(arguments)
    for name in array_names(arguments):
        made[name] = tensor_like(arguments[name])
    wanted = requires_grad if isinstance(requires_grad, tuple) else ()
    if requires_grad is True:
        assert op is not None
        wanted = differentiable_names(op, arguments)
    for name in wanted:
        made[name].requires_grad_()
    return made


def tensor_like(array: Array) -> torch.Tensor:
    """A tensor with an array's numbers; dense layouts are kept."""
    return torch.from_numpy(np.array(array, order="K"))


def results_of(value: Any) -> tuple[Any, ...]:
    """What a public function returned, always as a tuple."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def to_numpy(array: Any) -> Array:
    """An array of any kind as NumPy."""
    return array.detach().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)


def public(name: str) -> Any:
    """The public function of an op."""
    return getattr(kernels, name)
