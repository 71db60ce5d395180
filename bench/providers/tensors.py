"""A function on torch tensors as a call: forward, or forward and backward through autograd."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

import kernels
from bench.providers.provider import Call
from bench.workload import Answer, Workload, answer, results_of

#: The OpenMP pool of torch's library, which our kernels use too.
TORCH_POOL = "torch's OpenMP"


def as_tensor(value: Any) -> Any:
    """A tensor with an array's numbers and layout; arrays inside dataclasses too; anything else as it is."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value, order="K"))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        arrays = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        found = {name: as_tensor(a) for name, a in arrays.items() if isinstance(a, np.ndarray)}
        return dataclasses.replace(value, **found) if found else value
    return value


def tensors_of(workload: Workload) -> dict[str, Any]:
    """The case's arguments with tensors; those that training differentiates want gradients."""
    made = {name: as_tensor(value) for name, value in workload.arguments.items()}
    for name in workload.wanted if workload.training else ():
        made[name].requires_grad_()
    return made


def explain_on_tensors(workload: Workload) -> kernels.Explanation:
    """What `kernels.explain` says about the call on tensors, not printed."""
    with contextlib.redirect_stdout(io.StringIO()):
        return kernels.explain(workload.case.op, **tensors_of(workload))


def _to_numpy(tensor: torch.Tensor | None) -> Any:
    return None if tensor is None else tensor.detach().numpy()


def tensor_call(
    function: Callable[..., Any], workload: Workload, *, pool: str = TORCH_POOL, checked: bool = True, note: str = "",
    prepared: Mapping[str, Callable[[Any], Any]] | None = None,
) -> Call:  # fmt: skip
    """``function(**arguments)`` on tensors; with training also the gradients of all that have one.

    prepared: what is made of an argument beforehand, by its name.
    """
    arguments = tensors_of(workload)
    arguments |= {name: make(arguments[name]) for name, make in (prepared or {}).items()}
    if not workload.training:

        def to_answer(value: Any) -> Answer:
            return answer(tuple(map(_to_numpy, results_of(value))), {})

        return Call(lambda: function(**arguments), to_answer, pool, checked, note)
    incoming = [torch.from_numpy(gradient) for gradient in workload.incoming]
    count, names = len(incoming), workload.wanted
    wanted = [arguments[name] for name in names]

    def train() -> tuple[tuple[Any, ...], Any]:
        results = results_of(function(**arguments))
        return results, torch.autograd.grad(results[:count], wanted, incoming, allow_unused=True)

    def to_both(value: tuple[tuple[Any, ...], Any]) -> Answer:
        results, gradients = value
        return answer(tuple(map(_to_numpy, results)), dict(zip(names, map(_to_numpy, gradients))))

    return Call(train, to_both, pool, checked, note)
