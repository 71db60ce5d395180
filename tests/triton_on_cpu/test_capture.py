"""What a CUDA graph captures: no pass of any op waits for the GPU, or copies to or from it.

The host code runs on tensors of the meta device, which have no contents: whatever asks for some of them, to allocate by
them say, raises there. What is left are copies, which a look at every op of torch's that runs would show.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import dispatch
from kernels.backends import BACKENDS, load
from kernels.case import Case
from kernels.op import OPS
from kernels.runtime.triton_compile import recording
from tests.support import matrix


class Copies(TorchDispatchMode):
    """Notes every op of torch's that has tensors of two devices, or makes one on another device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every op."""
        result = func(*args, **(kwargs or {}))
        flat = [*torch.utils._pytree.tree_leaves((args, kwargs)), *torch.utils._pytree.tree_leaves(result)]
        # A number on the host is an argument of a kernel.
        tensors = [t for t in flat if isinstance(t, torch.Tensor) and (t.device.type == "meta" or t.ndim > 0)]
        if len({t.device for t in tensors}) > 1:
            self.found.append(str(func))
        return result


@contextmanager
def watched() -> Iterator[list[str]]:
    """Names of the ops that copy between devices inside the block."""
    with Copies() as mode:
        yield mode.found


def copies_of(case: Case, dtype: torch.dtype) -> list[str]:
    """What a case's two passes copy in their second call: the first one may keep tables, and nobody captures it."""
    captured = matrix.capture(case.op, **matrix.as_tensors(case.build()))
    op = captured.op

    def moved(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.to("meta", dtype if value.is_floating_point() else value.dtype)

    inputs = tuple(map(moved, captured.inputs))
    _, specs, _ = dispatch.describe_inputs(op, inputs)
    wanted = tuple(
        name in op.differentiable and isinstance(t, torch.Tensor) and t.is_floating_point()
        for name, t in zip(op.inputs, inputs)
    )
    problem = replace(op.problem.check(*specs, *captured.attributes), needs_grad=wanted)
    implementation = op.implementations["triton"]
    assert implementation.backward is not None
    if implementation.why_not(problem):
        pytest.skip(f"not taken: {implementation.why_not(problem)}")
    for _ in range(2):
        with recording("sm_90"), watched() as copies:
            results = implementation.forward(problem, *inputs)
            known = dict(zip((*op.inputs, *op.results), (*inputs, *results), strict=True))
            gradients = [
                torch.empty_like(r) if r is not None and i < problem.returned else None
                for i, r in enumerate(results[: op.differentiable_results])
            ]
            implementation.backward(problem, *gradients, **{name: known[name] for name in problem.saved()})
    return copies


def ops() -> list[str]:
    return [n for n, op in OPS.items() if load(op.family, BACKENDS["triton"]) and "triton" in op.implementations]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", matrix.case_parameters(tuple(c for op in ops() for c in matrix.cases_of(op, "ci"))))
def test_both_passes_can_be_captured(case: Case, dtype: torch.dtype):
    assert copies_of(case, dtype) == []


def test_copies_are_seen():
    host = torch.arange(3)
    with watched() as copies:
        host.to("meta")
        torch.empty(3, device="meta") + 1.5
    assert copies == ["aten._to_copy.default"]


@pytest.mark.parametrize("ask", [torch.Tensor.item, torch.Tensor.tolist, torch.nonzero, lambda t: t[t > 0]])
def test_what_depends_on_contents_raises(ask: Any):
    with pytest.raises((NotImplementedError, RuntimeError)):
        ask(torch.ones(1, device="meta"))
