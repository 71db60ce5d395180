"""Calls on arrays without contents: what a workload launches and must move, found on machines without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np

from kernels import dispatch
from kernels.arrays import ArraySpec, spec
from kernels.backends import BACKENDS, BackendError, load
from kernels.gpu_workloads import Workload
from kernels.op import OPS, Op

#: Ops whose backward has five matrix products where forward has two; of the others it is taken for twice the work.
MATRIX_OPS = {"attention"}

T = TypeVar("T")


def _arrays(op: Op, workload: Workload, backend: str) -> tuple[Any, ...]:
    """Inputs without contents: of torch's meta device, or of NumPy in memory that nobody touches."""
    if backend == "triton":
        import torch

        def empty(shape: tuple[int, ...], dtype: str) -> Any:
            fresh = torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            last = workload.channels_last and len(shape) == 4
            return fresh.contiguous(memory_format=torch.channels_last) if last else fresh
    else:
        from kernels.runtime.cupy_compile import unwritten

        def empty(shape: tuple[int, ...], dtype: str) -> Any:
            if workload.channels_last and len(shape) == 4:
                n, c, h, w = shape
                return unwritten((n, h, w, c), dtype).transpose(0, 3, 1, 2)
            return unwritten(shape, dtype)

    kinds = ((workload.shapes, workload.dtype), (workload.integers, "int64"), (workload.booleans, "bool"))
    made = {name: empty(shape, dtype) for shapes, dtype in kinds for name, shape in shapes.items()}
    return tuple(made.get(name) for name in op.inputs)


def specs_of(op: Op, workload: Workload, backend: str = "triton") -> tuple[ArraySpec | None, ...]:
    """What is known of a workload's inputs, in the op's order; they are on no device."""
    return dispatch.describe_inputs(op, _arrays(op, workload, backend))[1]


def why_not(workload: Workload, backend: str) -> str | None:
    """Why a backend has no kernels of a workload, or None."""
    op = OPS[workload.op]
    if not load(op.family, BACKENDS[backend]) or backend not in op.implementations:
        return f"there is no {backend} kernel of {op.name}"
    problem = op.problem.check(*specs_of(op, workload, backend), *workload.attributes)
    reasons = op.implementations[backend].why_not(problem)
    return "; ".join(reasons) or None


@dataclass(frozen=True)
class Captured(Generic[T]):
    """What was launched for a workload: each pass' launches, and the bytes and operations that it needs."""

    forward: list[T]
    backward: list[T]
    bytes: tuple[int, int]
    flops: tuple[int, int]


def capture(workload: Workload, backend: str, capturing: Callable[[], AbstractContextManager[list[T]]]) -> Captured[T]:
    """Run a workload's forward and backward on arrays without contents, inside of blocks that take the launches.

    Args:
        workload: the call.
        backend: "triton" or "cupy".
        capturing: makes a block that yields the list of what is launched in it.

    Raises:
        BackendError: the backend cannot run this call.
    """
    op = OPS[workload.op]
    reason = why_not(workload, backend)
    if reason is not None:
        raise BackendError(f"report: {workload.id}: {reason}")
    implementation = op.implementations[backend]
    inputs = _arrays(op, workload, backend)
    _, specs, _ = dispatch.describe_inputs(op, inputs)
    wanted = tuple(name in op.differentiable and name in workload.shapes for name in op.inputs)
    problem = replace(op.problem.check(*specs, *workload.attributes), needs_grad=wanted)
    if implementation.backward is None:
        raise BackendError(f"report: {workload.id}: there is no backward")
    with capturing() as forward:
        results = implementation.forward(problem, *inputs)
    known = dict(zip((*op.inputs, *op.results), (*inputs, *results), strict=True))
    saved = {name: known[name] for name in problem.saved()}
    gradients = [
        _empty_like(r) if r is not None and i < problem.returned else None
        for i, r in enumerate(results[: op.differentiable_results])
    ]
    with capturing() as backward:
        implementation.backward(problem, *gradients, **saved)
    read = sum(t.nbytes for t in (*saved.values(), *gradients) if t is not None)
    written = sum(s.nbytes for s, want in zip(problem.gradients(), wanted) if s is not None and want)
    flops = problem.flops()
    return Captured(
        forward,
        backward,
        (problem.bytes_moved(), read + written),
        (flops, (5 if MATRIX_OPS & {op.name} else 4) * flops // 2),
    )


def _empty_like(array: Any) -> Any:
    if isinstance(array, np.ndarray):
        from kernels.runtime.cupy_compile import unwritten

        order = spec(array).memory_order
        made = unwritten(tuple(array.shape[axis] for axis in order), array.dtype.name)
        return made.transpose(sorted(range(array.ndim), key=order.__getitem__))
    import torch

    return torch.empty_like(array)
