"""``kernels.tune``: measure a call's tiles on the GPU that is here, and keep the fastest for later calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from kernels import dispatch
from kernels.backends import BACKENDS, BackendError
from kernels.inspection import public_function
from kernels.op import Implementation, Op, Problem
from kernels.runtime import tuning

Seconds = Callable[[Callable[[], Any]], float]


@dataclass(frozen=True)
class Tuned:
    """What `tune` found for one kernel of a call.

    Attributes:
        kernel: its name, with the pass it belongs to.
        default: the tile function's choice.
        tile: the fastest one.
        default_seconds, seconds: of the whole pass with either.
        tried: how many tiles were measured.
    """

    kernel: str
    default: Any
    tile: Any
    default_seconds: float
    seconds: float
    tried: int

    def __str__(self) -> str:
        gain = f"{self.default_seconds * 1e6:.1f} -> {self.seconds * 1e6:.1f} us"
        return f"{self.kernel}: {self.tile} of {self.tried} tried, {gain}"


class _Seen(BaseException):
    pass


def tune(op: str, *args: Any, measure: Seconds | None = None, **kwargs: Any) -> tuple[Tuned, ...]:
    """Find the fastest tiles of a call's Triton kernels, forward and backward, and use them from now on.

    Calls of the same op, shapes, dtypes, layouts and attributes on the same kind of GPU then take these tiles, in later
    processes too (``tiles.json`` in the folder that `kernels.info` names). Other calls, and everything without `tune`,
    take the tile functions' choices, which results do not depend on but for rounding.

    Args:
        op: name of the op, "attention" say.
        *args: positional arguments of the call, exactly as for ``kernels.<op>``; torch tensors on the GPU.
        measure: ``measure(function)`` gives the seconds of a call of `function`; by default the median of calls between
            CUDA events, with a cold L2 cache.
        **kwargs: keyword arguments of the call.

    Returns:
        what was found for each kernel that has a choice of tiles, and printed; empty where none has.

    Raises:
        TypeError, ValueError, IndexError: the arguments are wrong, as the call itself would say, or no torch tensors.
        BackendError: the Triton backend cannot run the call.
    """
    calls: list[Any] = []

    def look(*call: Any) -> Any:
        calls.append(call)
        raise _Seen

    with dispatch.inspecting(look):
        try:
            public_function(op, "tune")(*args, **kwargs)
        except _Seen:
            pass
    if not calls:
        raise ValueError(f"tune: arguments must make {op} run a kernel, got a call that runs none")
    declared, inputs, attributes, device, _ = calls[0]
    implementation, problem = _implementation(declared, inputs, attributes, device)
    if problem.empty:
        return ()
    problem.check_values(*inputs)
    found: list[Tuned] = []
    seconds = _cuda_seconds if measure is None else measure
    for name, run in _passes(declared, implementation, problem, inputs):
        found += _tune_pass(name, run, seconds)
    for each in found:
        print(each)
    return tuple(found)


def _implementation(
    op: Op, inputs: tuple[Any, ...], attributes: tuple[Any, ...], device: Any
) -> tuple[Implementation, Problem]:
    """The Triton implementation of a call, and its problem with all gradients wanted."""
    kind, specs, _ = dispatch.describe_inputs(op, inputs)
    if kind != "torch":
        raise TypeError(f"tune: {op.inputs[0]} must be a torch tensor, got a {kind} array")
    place = dispatch.place_of(op, specs, kind, device)
    pairs = zip(op.inputs, specs, strict=True)
    wanted = tuple(name in op.differentiable and spec is not None and spec.floating for name, spec in pairs)
    problem = replace(op.problem.check(*specs, *attributes), needs_grad=wanted)
    found = dispatch.candidate(op, problem, BACKENDS["triton"], kind, place, automatic=False)
    if found.reasons or found.implementation is None:
        raise BackendError(f"tune: triton cannot run {dispatch.describe(op, problem)}: {'; '.join(found.reasons)}")
    return found.implementation, problem


def _passes(
    op: Op, implementation: Implementation, problem: Problem, inputs: tuple[Any, ...]
) -> list[tuple[str, Callable[[], Any]]]:
    """(name, function that runs it) of the forward and backward pass."""
    import torch

    given = tuple(None if t is None else t.detach() for t in inputs)

    def forward() -> Any:
        with torch.no_grad():
            return implementation.forward(problem, *given)

    passes: list[tuple[str, Callable[[], Any]]] = [("forward", forward)]
    if implementation.backward is None or not problem.trains:
        return passes
    results = forward()
    known = dict(zip((*op.inputs, *op.results), (*given, *results), strict=True))
    saved = {name: known[name] for name in problem.saved()}
    count = min(op.differentiable_results, problem.returned)
    incoming = [torch.ones_like(r) if r is not None and i < count else None
                for i, r in enumerate(results[: op.differentiable_results])]  # fmt: skip
    run = implementation.backward

    def backward() -> Any:
        with torch.no_grad():
            return run(problem, *incoming, **saved)

    return [*passes, ("backward", backward)]


def _tune_pass(name: str, run: Callable[[], Any], measure: Seconds) -> list[Tuned]:
    """The tiles of a pass, kernel after kernel, each with the best of those before; stored."""
    first = tuning.Trial()
    with tuning.trying(first):
        run()
    best: dict[str, Any] = {}
    found, kept = [], {}
    for kernel, (key, default) in first.seen.items():

        def seconds(tile: Any, kernel: str = kernel) -> float:
            with tuning.trying(tuning.Trial(best | {kernel: tile})):
                try:
                    return measure(run)
                except _does_not_fit():
                    return float("inf")

        tile, times = tuning.fastest(default, seconds)
        best[kernel] = tile
        kept[key] = tile
        found.append(Tuned(f"{name} {kernel}", default, tile, times[default], times[tile], len(times)))
    tuning.store(kept)
    return found


def _does_not_fit() -> tuple[type[Exception], ...]:
    """What Triton raises for a tile that takes more than the GPU has."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    return OutOfResources, PTXASError, CompilationError


def _cuda_seconds(function: Callable[[], Any]) -> float:
    from triton.testing import do_bench

    return float(do_bench(function, warmup=10, rep=50, return_mode="median")) / 1e3
