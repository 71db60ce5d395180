"""The door from nnlib to the kernels: every computation of a layer or a loss goes through `call`.

One door, so that one place passes the backend on and one place can note which kernel ran where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import kernels
from kernels.call import call as call_op
from kernels.dispatch import Override, inspecting, override
from kernels.inspection import Explanation, explain_call
from kernels.op import Op
from nnlib.precision import autocast_dtype, convert


@dataclass(frozen=True)
class KernelUse:
    """One call of a kernel: who called it (a layer's name), the op, and the backends that run it.

    backward: the backend for the gradients, None where no backend has them. flops: of the forward pass.
    """

    caller: str
    op: str
    backend: str
    backward: str | None
    flops: int = 0


# What is done at each call in place of running it, while a `recording` or `rehearsing` block is open.
_Watch = Callable[[str, Explanation, Callable[[], Any]], Any]
_watch: _Watch | None = None


def call(caller: str, op: str, *arguments: Any, backend: str | None, **options: Any) -> Any:
    """Calls kernels.<op>(*arguments, backend=backend, **options) and returns its result.

    caller: the name that a `recording` notes for this call. Raises what the kernel raises; the caller's name begins the
    message of an argument that does not fit.
    """
    dtype = autocast_dtype(op, arguments)
    if dtype is not None:
        arguments = convert(arguments, dtype)
        options = {name: convert(value, dtype) for name, value in options.items()}
    function = getattr(kernels, op)
    try:
        if _watch is None:
            return function(*arguments, backend=backend, **options)
        with inspecting(partial(_look, _watch, caller)):
            return function(*arguments, backend=backend, **options)
    except (IndexError, TypeError, ValueError) as error:
        if type(error) not in (IndexError, TypeError, ValueError) or str(error).startswith(f"{caller}: "):
            raise
        raise type(error)(f"{caller}: {error}") from error  # kernels name their op, which many layers share


def _look(
    watch: _Watch, caller: str, op: Op, inputs: tuple[Any, ...], attributes: tuple[Any, ...], device: Any, named: Any
) -> Any:
    """A call on its way to a kernel; a function such as kernels.lstm may make several."""

    def run() -> Any:
        with override(Override()):  # what the surrounding block names is in `named` already
            return call_op(op, inputs, attributes, device, named)

    return watch(caller, explain_call(op, inputs, attributes, device, named), run)


@contextmanager
def _watching(watch: _Watch) -> Iterator[None]:
    global _watch
    before, _watch = _watch, watch
    try:
        yield
    finally:
        _watch = before


def _note(uses: list[KernelUse], caller: str, found: Explanation) -> None:
    # Nothing is chosen where the named backend cannot run: the call then raises with the reasons.
    if found.chosen is not None:
        uses.append(KernelUse(caller, found.op, found.chosen, found.backward, found.problem.flops()))


@contextmanager
def recording() -> Iterator[list[KernelUse]]:
    """Within the block every kernel call of nnlib is noted in the list that it gives, in order of the calls.

    For reports: it is one list for the process, so it also notes what other threads call meanwhile.
    """
    uses: list[KernelUse] = []

    def watch(caller: str, found: Explanation, run: Callable[[], Any]) -> Any:
        _note(uses, caller, found)
        return run()

    with _watching(watch):
        yield uses


@contextmanager
def rehearsing() -> Iterator[list[KernelUse]]:
    """As `recording`, but no kernel runs: every call is answered with zeros of the right shapes.

    What a network would do is so known without the time to do it, or to compile for it.
    """
    uses: list[KernelUse] = []

    def watch(caller: str, found: Explanation, run: Callable[[], Any]) -> Any:
        if found.chosen is None:
            return run()  # raises
        _note(uses, caller, found)
        results = tuple(
            None if form is None else torch.zeros(form.shape, dtype=getattr(torch, form.dtype), device=form.device)
            for form in found.problem.results()
        )
        return found.problem.public(results)

    with _watching(watch):
        yield uses
