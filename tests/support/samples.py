"""PyTorch's own samples (OpInfo) for the functions that we have, and how ours is called with them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

import kernels
from kernels.op import OPS
from tests.support import budget

#: Errors that bad input may raise.
REFUSALS = (TypeError, ValueError, IndexError, RuntimeError)


@lru_cache(None)
def op_infos() -> dict[str, tuple[Any, ...]]:
    """torch's OpInfos by the name of our op: ``nn.functional.conv2d`` and every variant of ``softmax``.

    Without dropout, whose random numbers are its own.
    """
    from torch.testing._internal.common_methods_invocations import op_db

    found: dict[str, list[Any]] = {name: [] for name in sorted(OPS)}
    for info in op_db:
        name = info.name.removeprefix("nn.functional.")
        if name in found and name != "dropout" and not info.variant_test_name.startswith("complex"):
            found[name].append(info)
    return {name: tuple(infos) for name, infos in found.items() if infos}


@dataclass
class Tally:
    """How many samples agree, which do not and why, and which were left out."""

    agree: int = 0
    disagree: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def leave_out(self, reason: str) -> None:
        """Count a sample that says nothing about us."""
        self.left_out[reason] = self.left_out.get(reason, 0) + 1

    @property
    def share(self) -> float:
        """Agreeing share of the samples compared."""
        total = self.agree + len(self.disagree)
        return self.agree / total if total else 1.0

    def __str__(self) -> str:
        left = "".join(f", {count} left out: {reason}" for reason, count in self.left_out.items())
        lines = [f"{self.agree} of {self.agree + len(self.disagree)} samples agree ({self.share:.2%}){left}"]
        return "\n".join([*lines, *self.disagree])


def describe(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The arguments of a call on one line, tensors by their form."""

    def show(value: Any) -> str:
        if torch.is_tensor(value):
            layout = "" if value.is_contiguous() else f" strides {tuple(value.stride())}"
            return f"{str(value.dtype).removeprefix('torch.')}{tuple(value.shape)}{layout}"
        return repr(value)

    return ", ".join([*map(show, args), *(f"{n}={show(v)}" for n, v in kwargs.items())])


def _fresh(value: Any) -> Any:
    """A leaf of its own with the same numbers, strides and wish for a gradient."""
    if not torch.is_tensor(value):
        return value
    copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    copy.copy_(value.detach())
    return copy.requires_grad_(value.requires_grad)


def _gradients(results: tuple[Any, ...], tensors: list[torch.Tensor]) -> list[torch.Tensor | None]:
    outputs = [r for r in results if torch.is_tensor(r) and r.requires_grad]
    if not outputs or not tensors:
        return [None] * len(tensors)
    generator = torch.Generator().manual_seed(0)
    incoming = [torch.randn(r.shape, dtype=r.dtype, generator=generator) for r in outputs]
    return list(torch.autograd.grad(outputs, tensors, incoming, allow_unused=True))


def run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], list[Any]]:
    """Results and gradients of a call on fresh copies of its tensors."""
    args, kwargs = tuple(map(_fresh, args)), {n: _fresh(v) for n, v in kwargs.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = function(*args, **kwargs)
    results = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    tensors = [t for t in (*args, *kwargs.values()) if torch.is_tensor(t) and t.requires_grad]
    return results, _gradients(results, tensors)


def function_of(name: str) -> Any:
    """Our function as torch's samples call theirs: those of embedding have the weight first."""
    function = getattr(kernels, name)
    if name == "embedding":
        return lambda weight, input, *rest, **kwargs: function(input, weight, *rest, **kwargs)
    return function


def compare(name: str, theirs: Any, sample: Any, tally: Tally, backend: str | None) -> None:
    """One sample on both sides."""
    args = (sample.input, *sample.args)
    kwargs = dict(sample.kwargs)
    ours = function_of(name)
    if any(torch.is_tensor(a) and (a.is_complex() or a.is_conj()) for a in (*args, *kwargs.values())):
        return tally.leave_out("complex numbers")
    if kwargs.get("dropout_p"):
        return tally.leave_out("torch's own random numbers")
    if kwargs.pop("inplace", False):
        return tally.leave_out("results in place")
    kwargs.pop("options", None)  # how linear_cross_entropy is cut into chunks
    if any(isinstance(v, torch.dtype) and not v.is_floating_point for v in kwargs.values()):
        return tally.leave_out("complex or integer results")
    shown = f"  {name}({describe(args, kwargs)}): "
    wanted = error = None
    try:
        wanted = run(theirs, args, kwargs)
    except REFUSALS as refused:
        error = refused
    try:
        found = run(lambda *a, **k: ours(*a, **k, backend=backend), args, kwargs)
    except REFUSALS as refused:
        if error is not None:
            tally.agree += 1
        else:
            tally.disagree.append(f"{shown}ours raises {type(refused).__name__}: {str(refused).splitlines()[0]}")
        return None
    if wanted is None:
        tally.disagree.append(f"{shown}torch raises {error}, ours does not")
        return None
    complaint = _difference(wanted, found)
    if complaint is not None and len(wanted[0]) == len(found[0]):
        # torch in float32 may itself be farther off than its usual tolerances: then the error budget decides.
        complaint = _over_budget(theirs, args, kwargs, wanted, found)
    if complaint is None:
        tally.agree += 1
    else:
        tally.disagree.append(shown + complaint)
    return None


def _over_budget(theirs: Any, args: tuple[Any, ...], kwargs: dict[str, Any], wanted: Any, found: Any) -> str | None:
    """What exceeds twice torch's own error against its answer in float64; see `budget`."""

    def double(value: Any) -> Any:
        if not torch.is_tensor(value) or not value.is_floating_point():
            return value
        return value.detach().double().requires_grad_(value.requires_grad)

    exact = run(theirs, tuple(map(double, args)), {n: double(v) for n, v in kwargs.items()})
    for what, *three in zip(("result", "gradient"), exact, wanted, found):
        for i, arrays in enumerate(zip(*three)):
            if any(a is None for a in arrays):
                if not all(a is None for a in arrays):
                    return f"{what} {i} is missing on one side"
            else:
                right, their, mine = (a.detach().numpy() for a in arrays)
                complaint = budget.complaint(mine, right, their)
                if complaint:
                    return f"{what} {i}: {complaint}"
    return None


def _difference(wanted: tuple[Any, list[Any]], found: tuple[Any, list[Any]]) -> str | None:
    if len(wanted[0]) != len(found[0]):
        return f"{len(found[0])} results, torch gives {len(wanted[0])}"
    pairs = [(f"result {i}", a, b) for i, (a, b) in enumerate(zip(wanted[0], found[0]))]
    pairs += [(f"gradient {i}", a, b) for i, (a, b) in enumerate(zip(wanted[1], found[1]))]
    for what, a, b in pairs:
        if (a is None) != (b is None):
            return f"{what} is {'there' if a is None else 'missing'}"
        if a is None:
            continue
        try:
            # torch's own tolerances for the dtype: the error budget is held in test_ops.py.
            torch.testing.assert_close(b.detach(), a.detach(), equal_nan=True, check_stride=False)
        except AssertionError as difference:
            return f"{what}: {' '.join(str(difference).split())[:200]}"
    return None
