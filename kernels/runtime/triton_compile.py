"""Compiling Triton kernels for any GPU on a machine without one, through the path of a real launch.

The host code of an op runs on tensors of the meta device, which have shapes and no memory; every launch is compiled
with exactly the specialisation (strides of 1, divisibility by 16) that Triton gives it on a GPU. A kernel compiled any
other way says little: without that specialisation it has other instructions, twice the registers and no asynchronous
copies. Needs Triton 3.9, which brings its own assembler and disassembler.
"""

from __future__ import annotations

import functools
import hashlib
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.errors import TritonError
from triton.runtime import driver

from kernels.runtime import machine_code, triton_gpu
from kernels.runtime.machine_code import Compiled
from kernels.runtime.targets import TARGETS, Target


class _Driver:
    """What a launch asks of a driver before it compiles; nothing here can run a kernel."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def get_current_device(self) -> str:
        """The name of the target, so that Triton keeps its compiled kernels apart."""
        return self.target.name

    def get_current_stream(self, device: Any) -> int:
        """No stream."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """The target as Triton names it."""
        if self.target.amd:
            return GPUTarget("hip", self.target.name, self.target.warp)
        return GPUTarget("cuda", int(self.target.name.removeprefix("sm_")), self.target.warp)


@dataclass(frozen=True)
class Launch:
    """A launch that was recorded in place of being run: what `triton_gpu.launch` was given."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """The kernel's."""
        return str(self.kernel.fn.__name__)

    @property
    def key(self) -> str:
        """What tells apart launches that Triton compiles differently."""
        plain = self.kernel.do_not_specialize
        kinds = ("" if name in plain else _kind(a) for name, a in zip(self.kernel.arg_names, self.arguments))
        return " ".join((self.name, *kinds, repr(sorted(self.options.items(), key=str))))


def _kind(argument: Any) -> str:
    """What Triton knows of an argument when it compiles."""
    if isinstance(argument, torch.Tensor):
        return str(argument.dtype).removeprefix("torch.")
    if isinstance(argument, int) and not isinstance(argument, bool):
        if argument == 1:
            return "1"
        return ("i64" if abs(argument) >= 2**31 else "i32") + ("x16" if argument % 16 == 0 else "")
    return type(argument).__name__ + repr(getattr(argument, "block_shape", ""))


def digest(launches: Iterable[Launch]) -> str:
    """A number of what is compiled for some launches: their kernels' code and what Triton knows of the arguments."""
    found = hashlib.sha256()
    modules: set[str] = set()
    for key, module in sorted((launch.key, launch.kernel.fn.__module__) for launch in launches):
        found.update(key.encode())
        modules |= _with_imports(module)
    for module in sorted(modules):
        found.update(_code(module).encode())
    return found.hexdigest()[:16]


@functools.cache
def _source(module: str) -> str:
    path = sys.modules[module].__file__
    assert path is not None
    return Path(path).read_text()


@functools.cache
def _with_imports(module: str) -> frozenset[str]:
    """A module of kernels, and those that it has its functions from."""
    imported = re.findall(r"^from (kernels\.\S+_triton) import", _source(module), re.M)
    return frozenset({module}).union(*map(_with_imports, imported))


@functools.cache
def _code(module: str) -> str:
    """A module's code without comments, docstrings and spaces."""
    ends = (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    found, begins = [], True
    for token in tokenize.generate_tokens(io.StringIO(_source(module)).readline):
        if token.type in (*ends, tokenize.COMMENT, tokenize.NL):
            begins = begins or token.type in ends
        elif not (begins and token.type == tokenize.STRING):
            found.append(token.string)
            begins = False
    return re.sub(r"\s", "", "".join(found))


@contextmanager
def recording(target: str) -> Iterator[list[Launch]]:
    """Every launch inside the block is kept in place of being run.

    Args:
        target: name in `kernels.runtime.targets.TARGETS`, which tiles are chosen for.

    Yields:
        the launches, in order.
    """
    found: list[Launch] = []
    with triton_gpu.elsewhere(lambda *given: found.append(Launch(*given)), TARGETS[target]):
        yield found


@contextmanager
def _driver_of(target: Target) -> Iterator[None]:
    before = driver._active  # asking for it by its property would look for a GPU
    driver.set_active(_Driver(target))
    try:
        yield
    finally:
        driver._active = before


def compile_launches(launches: Sequence[Launch], target: str) -> list[Compiled | str]:
    """The kernels that launches would run on a target, compiled; of one that the compiler refuses, why it does.

    Triton keeps what it compiled in its cache, so that what an interrupted run has done is not done again.
    """
    gpu, made = TARGETS[target], []
    with _driver_of(gpu):
        for launch in launches:
            try:
                made.append(launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.options))
            except (RuntimeError, TritonError) as error:
                made.append(f"does not compile: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    whole = [one for one in made if not isinstance(one, str)]
    if gpu.amd:
        known = iter([machine_code.read_amd(one.asm["amdgcn"]) for one in whole])
    else:
        known = iter(machine_code.read_many_nvidia([one.asm["cubin"] for one in whole], gpu))
    pairs = zip(launches, made, strict=True)
    return [one if isinstance(one, str) else _described(launch, gpu, one, next(known)) for launch, one in pairs]


@contextmanager
def compiling(target: str) -> Iterator[list[Compiled]]:
    """Every launch inside the block is compiled for a target in place of being run.

    Args:
        target: name in `kernels.runtime.targets.TARGETS`.

    Yields:
        a list, which holds what was compiled, in order, once the block has ended.

    Raises:
        RuntimeError: the compiler refuses a kernel; at the end of the block.
    """
    found: list[Compiled] = []
    with recording(target) as launches:
        yield found
    for launch, kernel in zip(launches, compile_launches(launches, target), strict=True):
        if isinstance(kernel, str):
            raise RuntimeError(f"{launch.name} {kernel}")
        found.append(kernel)


def _described(launch: Launch, target: Target, made: Any, facts: machine_code.Facts) -> Compiled:
    shown = {n: v for n, v in launch.options.items() if isinstance(v, (bool, int, float, str))}
    # All of Triton's shared memory is dynamic.
    facts = {n: v for n, v in facts.items() if n != "shared"}
    family = str(launch.kernel.fn.__module__).split(".")[1]
    return Compiled(
        launch.name, target, launch.grid, shown, made.metadata.shared, made.metadata.num_warps, **facts, family=family
    )


def version() -> str:
    """Triton's version, which the figures of a report belong to."""
    found: str = triton.__version__
    return found
