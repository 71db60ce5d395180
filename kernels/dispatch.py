"""Which implementation runs a problem, and why the others do not.

The order of choice: the ``backend=`` argument, ``with use_backend(...)``, the environment variable ``KERNELS_BACKEND``
(read at import), then automatically the first backend of `kernels.backends.BACKENDS` without a reason against it. A
named backend runs or raises `BackendError`; nothing falls back silently.

That another backend is faster is such a reason. It is a number that stands beside the kernel, measured once and never
at a call: of tensors on the CPU a limit below which torch's own function is faster (`Implementation.torch_below`), on
a GPU the speeds of a class of calls (`Implementation.measured`).
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kernels import arrays, checks
from kernels.backends import BACKENDS, Backend, BackendError, check_name, load
from kernels.op import Implementation, Op, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kernels.arrays import ArraySpec

#: The backend named by the environment, or "auto".
ENVIRONMENT = os.environ.get("KERNELS_BACKEND") or "auto"


@dataclass(frozen=True)
class Override:
    """What a `with` block asks of the calls inside it: a backend, or to be handed the call in place of running it."""

    backend: str | None = None
    inspect: Callable[..., Any] | None = None


#: A backend is passed over where another one was measured to be faster than so many times: what a quiet machine shows
#: twice in a row.
MARGIN = 1.05

#: What the innermost `with` block asks for.
current_override: ContextVar[Override | None] = ContextVar("kernels_override", default=None)


@contextmanager
def override(wanted: Override) -> Iterator[None]:
    """Apply `wanted` to the calls made inside the block by this thread (or task)."""
    token = current_override.set(wanted)
    try:
        yield
    finally:
        current_override.reset(token)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op inside the block on the backend `name`, unless a call names another.

    Args:
        name: "auto", "numba", "cupy", "triton", "torch" or "reference".

    Raises:
        BackendError: on entry, when there is no such backend; inside, when it cannot run a call.

    Example:
        >>> with kernels.use_backend("reference"):
        ...     y = kernels.conv2d(x, weight)
    """
    check_name(name, "use_backend: name")
    with override(Override(backend=name)):
        yield


@contextmanager
def inspecting(look: Callable[..., Any]) -> Iterator[None]:
    """Hand every call inside the block to ``look(op, inputs, attributes, device, backend)`` in place of running it."""
    outer = current_override.get()
    with override(Override(outer.backend if outer else None, look)):
        yield


@dataclass(frozen=True)
class Candidate:
    """A backend, its implementation of the op if there is one, and every reason why it cannot run the problem."""

    backend: Backend
    implementation: Implementation | None
    reasons: tuple[str, ...]


def choice(op: Op, backend: str | None) -> str:
    """The backend that a call or a `with` block names, else the environment's, else "auto"."""
    if backend is not None:
        return check_name(backend, f"{op.name}: backend")
    return check_name(ENVIRONMENT, "the environment variable KERNELS_BACKEND")


def describe_inputs(op: Op, inputs: tuple[Any, ...]) -> tuple[str, tuple[ArraySpec | None, ...], tuple[bool, ...]]:
    """Kind and specs of a call's inputs, and which of them want gradients; one clear error for a mixture."""
    specs: list[ArraySpec | None] = []
    needs_grad: list[bool] = []
    first: tuple[str, str, str] | None = None
    for name, array in zip(op.inputs, inputs, strict=True):
        if array is None and name in op.optional:
            specs.append(None)
            needs_grad.append(False)
            continue
        kind = arrays.kind(array)
        if kind is None:
            shown = "None" if array is None else type(array).__name__
            raise TypeError(f"{op.name}: {name} must be a NumPy, torch or CuPy array, got {shown}")
        rule = arrays.unfit(array)
        if rule is not None:
            raise TypeError(f"{op.name}: {name} {rule}")
        form = arrays.spec(array)
        if first is None:
            first = (name, kind, form.device)
        elif kind != first[1]:
            raise TypeError(f"{op.name}: {name} must be a {first[1]} array, as {first[0]} is, got a {kind} array")
        elif form.device != first[2]:
            raise ValueError(f"{op.name}: {name} must be on the device of {first[0]} ({first[2]}), got {form.device}")
        specs.append(form)
        needs_grad.append(name in op.differentiable and arrays.wants_grad(array))
    assert first is not None, f"{op.name} has no required input"
    return first[1], tuple(specs), tuple(needs_grad)


def place_of(op: Op, specs: tuple[ArraySpec | None, ...], kind: str, device: Any) -> str:
    """Type of the device that the call runs on: "cpu" or "cuda"."""
    where = next(s.device for s in specs if s is not None)
    if device is None:
        return where.split(":")[0]
    wanted = str(device)
    name, _, index = wanted.partition(":")
    if name not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ValueError(f"{op.name}: device must be 'cpu', 'cuda' or 'cuda:N', got {wanted!r}")
    if kind != "numpy" and wanted != where and not (wanted == "cuda" and where.startswith("cuda:")):
        raise ValueError(f"{op.name}: device must agree with that of the arrays ({where}), got {wanted!r}")
    return name


# ----- choosing ----------------------------------------------------------------------------------------------------


def candidate(
    op: Op, problem: Problem, backend: Backend, kind: str, place: str, *, automatic: bool, eager: bool = True
) -> Candidate:
    """One backend looked at: its implementation, or every reason why it cannot run the problem.

    automatic: nobody named it, so that reasons of speed count too. eager: the call is not inside a compiled graph.
    """
    reasons: list[str] = []
    if place not in backend.devices:
        reasons.append(f"it runs on {' and '.join(backend.devices)}, this call is on {place}")
    missing = backend.missing()
    if missing is not None:
        return Candidate(backend, None, (*reasons, missing))
    implementation = op.implementations.get(backend.name) if load(op.family, backend) else None
    if implementation is None:
        return Candidate(backend, None, (*reasons, f"there is no {backend.name} kernel of {op.name}"))
    reasons += implementation.why_not(problem)
    if backend.name == "torch" and place == "cuda" and not _torch_has_cuda():
        reasons.append("torch finds no CUDA device or driver")
    if automatic and backend.name == "torch" and kind == "numpy":
        reasons.append("it is taken for NumPy arrays only by name")
    if automatic and not reasons:
        faster = None
        if place == "cuda":
            faster = _another_is_faster(op, problem, implementation, kind, eager)
        elif eager and kind == "torch":
            faster = _torch_is_faster(op, problem, implementation)
        reasons += [] if faster is None else [faster]
    return Candidate(backend, implementation, tuple(reasons))


def _torch_is_faster(op: Op, problem: Problem, implementation: Implementation) -> str | None:
    """Why automatic choice leaves a call on CPU tensors to torch's own function, or None.

    A fixed table decides, not the clock: the same call always runs the same way.
    """
    limit, work = implementation.torch_below(problem), problem.flops()
    if work >= limit or problem.empty:
        return None
    stock = op.implementations.get("torch") if load(op.family, BACKENDS["torch"]) else None
    if stock is None or stock.why_not(problem) or stock.direct(problem) is None:
        return None
    passes = "with" if problem.trains else "without"
    return f"torch is faster {passes} gradients below {limit} operations, this call has {work} (python -m bench auto)"


def _another_is_faster(op: Op, problem: Problem, own: Implementation, kind: str, eager: bool) -> str | None:
    """Why automatic choice leaves a call on a GPU to another backend than this one, or None.

    The fastest of those that can run it, as far as such calls were measured on such a GPU.
    """
    measured = None if problem.empty else own.measured(problem)
    if measured is None or BACKENDS[own.backend].target(_index(op, problem)) != measured.gpu:
        return None
    mine = measured.speed(own.backend, problem.trains)
    if mine is None:
        return None
    fastest, name = mine * MARGIN, None
    for backend in BACKENDS.values():
        speed = measured.speed(backend.name, problem.trains) if "cuda" in backend.devices else None
        # torch's own checks of values wait for the GPU; see `resolve` for compiled graphs.
        suits = backend.name != "torch" or (kind == "torch" and eager and not problem.checks_values)
        if speed is not None and speed > fastest and suits:
            if not candidate(op, problem, backend, kind, "cuda", automatic=False).reasons:
                fastest, name = speed, backend.name
    if name is None:
        return None
    passes = "with" if problem.trains else "without"
    return (
        f"{name} was measured {fastest / mine:.2g} times as fast on {measured.gpu} {passes} gradients, for "
        f"{measured.calls} (docs/gpu_times.md)"
    )


def _index(op: Op, problem: Problem) -> int | None:
    """Number of the GPU that a call's arrays are on; None where they are on none."""
    where = next(s.device for s in map(problem.__getattribute__, op.inputs) if s is not None)
    return int(where.partition(":")[2] or 0) if where.startswith("cuda") else None


def _torch_has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def candidates(op: Op, problem: Problem, kind: str, place: str, *, automatic: bool = True) -> tuple[Candidate, ...]:
    """Every backend looked at, best first."""
    return tuple(candidate(op, problem, b, kind, place, automatic=automatic) for b in BACKENDS.values())


def resolve(op: Op, problem: Problem, wanted: str, kind: str, place: str, *, eager: bool = True) -> Candidate:
    """The candidate that runs: the named one, or the first without a reason against it.

    Inside a compiled graph (not `eager`) no call is left to torch for its speed: there an op of ours is one node that
    the compiler calls, whatever runs in it, and its backward pass is another.

    Raises:
        BackendError: there is none; lists the inputs and every reason.
    """
    if wanted != "auto":
        named = candidate(op, problem, BACKENDS[wanted], kind, place, automatic=False)
        if named.reasons:
            raise BackendError(
                f"{op.name}: backend {wanted!r} cannot run {describe(op, problem)}: {'; '.join(named.reasons)}"
            )
        return named
    refused = []
    for backend in BACKENDS.values():
        if place not in backend.devices:
            continue
        found = candidate(op, problem, backend, kind, place, automatic=True, eager=eager)
        if not found.reasons:
            return found
        refused.append(f"{backend.name}: {'; '.join(found.reasons)}")
    raise BackendError(f"{op.name}: no backend on {place} can run {describe(op, problem)}: {' | '.join(refused)}")


def backward_of(op: Op, problem: Problem, chosen: Candidate, kind: str, place: str) -> Implementation | None:
    """The implementation that runs backward: the chosen one, or the next that has one and takes the same arrays."""
    implementation = chosen.implementation
    if implementation is not None and implementation.backward is not None:
        return implementation
    for other in candidates(op, problem, kind, place):
        found = other.implementation
        if not other.reasons and found is not None and found.backward and other.backend.arrays == chosen.backend.arrays:
            return found
    return None


def check_sizes(op: Op, problem: Problem, place: str) -> None:
    """Every input is of a size that can be, and on the CPU there is memory for the results and for each gradient.

    A gradient is as large as its input, so that only that of an expanded or a mapped one can be too large.

    Raises:
        ValueError: of an input.
        MemoryError: of the others; it says how large they would be, and of what.
    """
    for name in op.inputs:
        form: ArraySpec | None = getattr(problem, name)
        if form is not None:
            checks.addressable(op.name, name, form)

    def words() -> str:
        return describe(op, problem)

    is_here = place == "cpu"
    checks.memory(op.name, "results", problem.results(), words, is_tried=is_here)
    if problem.trains and is_here:
        for name, form, wanted in zip(op.inputs, problem.gradients(), problem.needs_grad, strict=True):
            checks.memory(op.name, f"the gradient of {name}", (form if wanted else None,), words)


def describe(op: Op, problem: Problem) -> str:
    """The inputs and attributes of a problem on one line."""
    shown = []
    for name in op.inputs:
        form: ArraySpec | None = getattr(problem, name)
        if form is not None:
            layout = "" if form.strides is None else (" channels-last" if form.channels_last else " strided")
            shown.append(f"{name} {form.dtype} {form.shape}{layout}")
    shown += [f"{name} {getattr(problem, name)!r}" for name in op.attributes]
    return ", ".join(shown)
