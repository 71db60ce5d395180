"""Triton kernels executed on the CPU, with what a GPU would not tell: bounds, races, and any order of the programs.

An ordinary kernel runs in Triton's own interpreter, in a process that can also compile it (``TRITON_INTERPRET`` stays
unset), with corrected numbers (`triton_numbers`) and watched memory (`triton_memory`). The interpreter accepts programs
that the compiler refuses, so every kernel is compiled too (`kernels.runtime.triton_compile`).

This replaces internals of Triton 3.9.0, which the development environment pins.
"""

from __future__ import annotations

import inspect
import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton import knobs
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels import backends
from kernels.op import OPS
from kernels.runtime import triton_gpu, values_triton
from kernels.runtime.targets import TARGETS, Target
from tests.support import triton_numbers
from tests.support.triton_memory import KernelFault, Shadow, Watch

_Builder = interpreter.InterpreterBuilder
#: The launch in progress.
_watch: Watch | None = None


def _touch(pointers: Any, mask: Any, kind: str) -> None:
    if _watch is not None:
        _watch.touch(pointers, mask, kind)


_load, _store = _Builder.create_masked_load, _Builder.create_masked_store
_update, _exchange = _Builder.create_atomic_rmw, _Builder.create_atomic_cas


def _watched_load(self: Any, pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
    _touch(pointers, mask, "load")
    return _load(self, pointers, mask, *rest, **named)


def _watched_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
    _touch(pointers, mask, "store")
    return _store(self, pointers, value, mask, *rest, **named)


def _watched_update(self: Any, operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
    _touch(pointers, mask, "atomic")
    if value.dtype.scalar == tl.bfloat16:
        raise NotImplementedError("atomics of bfloat16 are not interpreted")
    return _update(self, operation, pointers, value, mask, *rest)


def _watched_exchange(self: Any, pointers: Any, *rest: Any) -> Any:
    _touch(pointers, None, "atomic")
    return _exchange(self, pointers, *rest)


def _barrier(self: Any) -> None:
    if _watch is not None:
        _watch.barrier()


#: Interpreted functions by the identity of the compiled one (whose hash would read its patched sources).
_interpreted: dict[int, tuple[JITFunction[Any], Any]] = {}


def _interpret(function: JITFunction[Any]) -> Any:
    if id(function) not in _interpreted:
        _interpreted[id(function)] = (function, interpreter.InterpretedFunction(function.fn))
    return _interpreted[id(function)][1]


_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor_and_index(tensor: Any, *scope: Any) -> None:
    """Triton 3.6's own index of a tensor takes no array of one number with NumPy 2.5."""
    _patch_tensor(tensor, *scope)
    tensor.__index__ = lambda self: int(self.handle.data.squeeze())


_REPLACEMENTS: dict[tuple[Any, str], Any] = {
    (interpreter, "_patch_lang_tensor"): _patch_tensor_and_index,
    **triton_numbers.REPLACEMENTS,
    (_Builder, "create_masked_load"): _watched_load,
    (_Builder, "create_masked_store"): _watched_store,
    (_Builder, "create_atomic_rmw"): _watched_update,
    (_Builder, "create_atomic_cas"): _watched_exchange,
    (_Builder, "create_barrier"): _barrier,
    # The stock one makes a JITFunction to ask it for its file.
    (interpreter.FunctionRewriter, "_get_jit_fn_file_line"): lambda self: (
        self.fn.__code__.co_filename,
        self.fn.__code__.co_firstlineno,
    ),
    # tl.sum, tl.cdiv and helpers of kernels are compiled functions that a kernel calls.
    (JITFunction, "__call__"): lambda self, *arguments, **keywords: _interpret(self)(*arguments, **keywords),
}
#: What the interpreter changes in the language while it runs, and does not always put back.
_LANGUAGE = (tl, tl.core, tl.math, tl.tensor, tl.core.tensor_descriptor_base, tl.core.dtype)


@contextmanager
def _interpreting() -> Iterator[None]:
    """The language means the interpreter inside the block, and the compiler again behind it."""
    language = [(part, dict(vars(part))) for part in _LANGUAGE]
    before = {place: getattr(*place) for place in _REPLACEMENTS}
    knob = knobs.runtime.interpret
    for (owner, name), function in _REPLACEMENTS.items():
        setattr(owner, name, function)
    knobs.runtime.interpret = True
    try:
        yield
    finally:
        knobs.runtime.interpret = knob
        for (owner, name), function in before.items():
            setattr(owner, name, function)
        for part, names in language:
            for name, value in list(vars(part).items()):
                if name in names:
                    if value is not names[name]:
                        setattr(part, name, names[name])
                elif name == "__index__":
                    delattr(part, name)


def launch(
    kernel: JITFunction[Any],
    grid: tuple[int, ...],
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    seed: int | None = 0,
) -> dict[str, int]:
    """Run a kernel on CPU tensors.

    Args:
        kernel, grid, arguments, options: as of ``kernel[grid](*arguments, **options)``.
        seed: of the order in which the programs run; None: one after the other.

    Returns:
        bytes that were loaded, stored and updated by atomics.

    Raises:
        KernelFault: an access is out of bounds or races with another program's, or the kernel raised.
    """
    global _watch
    chosen = {name: value for name, value in options.items() if name in kernel.arg_names}
    given = inspect.getcallargs(kernel.fn, *arguments, **chosen)
    constant = {p.name for p in kernel.params if p.is_constexpr}
    # Of a tensor descriptor, the tensor.
    described = {n: v.base if isinstance(v, TensorDescriptor) else v for n, v in given.items()}
    tensors = {n: v for n, v in described.items() if hasattr(v, "data_ptr")}
    # Two parameters may be one tensor.
    unique = {(t.data_ptr(), t.numel()): Shadow.of(n, t) for n, t in tensors.items()}
    watch = Watch([shadow for shadows in unique.values() for shadow in shadows])
    sizes = (*grid, 1, 1)[:3]
    order = list(itertools.product(*map(range, sizes)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    # NaN and infinities are results here like any other.
    with _interpreting(), np.errstate(all="ignore"):
        function = _interpret(kernel).rewrite()
        scope = interpreter._patch_lang(function)
        try:
            values = {n: v if n in constant else interpreter._implicit_cvt(v) for n, v in given.items()}
            interpreter.interpreter_builder.set_grid_dim(*sizes)
            _watch = watch
            for place in order:
                watch.begin(place[0] + sizes[0] * (place[1] + sizes[1] * place[2]), place)
                interpreter.interpreter_builder.set_grid_idx(*place)
                function(**values)
        except interpreter.InterpreterError as error:
            raise KernelFault(str(error)) from error
        finally:
            _watch = None
            scope.restore()
    return dict(watch.touched)


def _poisoned(shape: Any, dtype: torch.dtype, device: Any) -> torch.Tensor:
    """A fresh tensor full of NaN, or of -1."""
    return torch.full(shape, float("nan") if dtype.is_floating_point else -1, dtype=dtype, device=device)


#: An H100 with few multiprocessors: what a GPU shares out among many programs, a few programs do in several turns, so
#: that small arrays reach the turns.
SMALL = replace(TARGETS["sm_90"], multiprocessors=2)


@contextmanager
def on_cpu(target: Target = SMALL, seed: int | None = 0, *, all_names: bool = False) -> Iterator[list[str]]:
    """The backend "triton" takes CPU arrays inside the block, with the tiles of a target, and is first in line.

    Args:
        target: what tiles are chosen for.
        seed: of the order in which programs run.
        all_names: whether that of the kernel which looks at indices and lengths is yielded too.

    Yields:
        names of the kernels launched, in order.
    """
    launched: list[str] = []

    def run(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        if all_names or kernel is not values_triton.find_wrong_values:
            launched.append(kernel.fn.__name__)
        launch(kernel, grid, arguments, options, seed)

    real = backends.BACKENDS["triton"]
    backends.BACKENDS["triton"] = replace(real, devices=("cpu", "cuda"), missing=lambda: None)
    plans = {op: dict(op.plans) for op in OPS.values()}
    for op in plans:
        op.plans.clear()
    try:
        with triton_gpu.elsewhere(run, target, _poisoned):
            yield launched
    finally:
        values_triton._report.cache_clear()  # What a test leaves there is no other one's.
        backends.BACKENDS["triton"] = real
        for op, kept in plans.items():
            op.plans.clear()
            op.plans.update(kept)


__all__ = ["KernelFault", "launch", "on_cpu"]
