"""Compiling CUDA C++ kernels for any NVIDIA GPU on a machine without one, through CuPy's own path to NVRTC.

The host code of an op runs on NumPy arrays that nobody writes; every launch is compiled as `cupy.RawModule` would:
CuPy's options, its folders of headers, its NVRTC. Only the loading of the result, the question for the device's
architecture and the cache on disk are replaced, inside of CuPy 14. Needs NVRTC and CUDA's headers, and no driver.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.runtime import cupy_gpu, cupy_missing, cupy_products, machine_code
from kernels.runtime.cuda_source import Source
from kernels.runtime.machine_code import Compiled
from kernels.runtime.targets import TARGETS


def missing() -> str | None:
    """Why nothing can be compiled and looked into here, or None."""
    return cupy_missing.package_missing() or cupy_missing.compiler_missing() or machine_code.missing()


@contextmanager
def _without_a_device() -> Iterator[list[bytes]]:
    """CuPy compiles for a named architecture, and what it would load is put into a list."""
    from cupy.cuda import compiler, function

    loaded: list[bytes] = []

    class Captured(function.Module):
        def load(self, cubin: bytes) -> None:
            loaded.append(cubin)

    class NoCache:
        def load(self, name: str) -> None:
            return None

        def save(self, *_: Any) -> None:
            return None

    def option(arch: Any = None) -> tuple[str, str]:
        return f"-arch=sm_{arch}", "cubin"

    names = ("_get_arch_for_options_for_nvrtc", "_kernel_cache_backend")
    before = function.Module, *(getattr(compiler, name) for name in names)
    function.Module = Captured
    compiler._get_arch_for_options_for_nvrtc, compiler._kernel_cache_backend = option, NoCache()
    try:
        yield loaded
    finally:
        function.Module, compiler._get_arch_for_options_for_nvrtc, compiler._kernel_cache_backend = before


@functools.cache
def cubin(source: Source, target: str) -> bytes:
    """The machine code that CuPy would load for a source.

    Args:
        source: the .cu file with its constants.
        target: name in `kernels.runtime.targets.TARGETS`, one of NVIDIA's.

    Raises:
        cupy.cuda.compiler.CompileException: NVRTC refuses it; the message has its own.
    """
    from cupy._core import core

    with _without_a_device() as loaded:
        core.compile_with_cache(
            source.text, source.options, arch=target.removeprefix("sm_"), prepend_cupy_headers=False, backend="nvrtc"
        )
    # CuPy leaves the last byte of the file off. Drivers do not mind, cuobjdump and nvdisasm do.
    return loaded[-1] + b"\0"


@functools.cache
def facts(source: Source, target: str) -> dict[str, machine_code.Facts]:
    """What the compiler left of each kernel of a source, by name."""
    return machine_code.read_nvidia(cubin(source, target), _system_shared(target))


@functools.cache
def resources(source: Source, target: str) -> dict[str, machine_code.Facts]:
    """Registers, stack and static shared memory of each kernel alone: a spilled register shows as stack."""
    return {
        name: found | {"spills": 0, "instructions": {}}
        for name, found in machine_code.resources(cubin(source, target), _system_shared(target)).items()
    }


def _system_shared(target: str) -> int:
    """Bytes of shared memory that the compiler counts for the system: on sm_90 and newer."""
    return TARGETS[target].reserved if int(target.removeprefix("sm_")) >= 90 else 0


class _Unwritten(np.ndarray):
    """An array whose memory is never touched, and so costs nothing."""

    def fill(self, *_: Any) -> None:
        """Nothing: nobody reads it."""


#: Bytes that the address of an array on a GPU is a multiple of.
_ALIGNMENT = 512


def unwritten(shape: tuple[int, ...], dtype: str) -> Any:
    """An array of NumPy's whose memory is never touched, aligned as a GPU's arrays are."""
    kind = cupy_gpu.numpy_dtype(dtype)
    memory = np.empty(math.prod(shape) * kind.itemsize + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return memory[begin : begin + math.prod(shape) * kind.itemsize].view(kind).reshape(shape).view(_Unwritten)


@dataclass(frozen=True)
class Launch:
    """A launch: its source and kernel, blocks and threads, bytes of dynamic shared memory."""

    source: Source
    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int


@contextmanager
def _launching(target: str, each: Callable[[Launch], None]) -> Iterator[None]:
    def take(
        source: Source, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], _: tuple[Any, ...], shared: int
    ) -> None:
        each(Launch(source, kernel, grid, block, shared))

    multiplied = cupy_products._by_numpy
    cupy_products._by_numpy = lambda *_: None
    try:
        with cupy_gpu.elsewhere(take, TARGETS[target], unwritten):
            yield
    finally:
        cupy_products._by_numpy = multiplied


@contextmanager
def recording(target: str) -> Iterator[list[Launch]]:
    """Every launch inside the block is noted in place of being run; arrays are NumPy's.

    Args:
        target: name in `kernels.runtime.targets.TARGETS`, one of NVIDIA's.

    Yields:
        the launches, in order.
    """
    found: list[Launch] = []
    with _launching(target, found.append):
        yield found


@contextmanager
def compiling(
    target: str, read: Callable[[Source, str], dict[str, machine_code.Facts]] = facts
) -> Iterator[list[Compiled]]:
    """The same, and compiled for the target at once, so that an error shows the call.

    Args:
        target: as of `recording`.
        read: what is looked for in the machine code: `facts`, or `resources` alone.

    Yields:
        what was compiled, in order.
    """
    found: list[Compiled] = []
    with _launching(target, lambda launch: found.append(compiled(launch, target, read))):
        yield found


def compiled(
    launch: Launch, target: str, read: Callable[[Source, str], dict[str, machine_code.Facts]] = facts
) -> Compiled:
    """A launch's kernel compiled for a target; `read` as of `compiling`."""
    known = dict(read(launch.source, target)[launch.kernel])
    chosen = TARGETS[target]
    return Compiled(
        launch.kernel,
        chosen,
        launch.grid,
        {n: v for n, v in launch.source.constants if n not in _TYPES},
        known.pop("shared") + launch.shared,
        -(-math.prod(launch.block) // chosen.warp),
        **known,
        backend="cupy",
        family=launch.source.file.partition("/")[0],
    )


#: Constants that name types.
_TYPES = ("STORAGE", "COMPUTED", "INDEX")


def version() -> str:
    """CuPy's version and NVRTC's, which the figures of a report belong to."""
    import cupy
    from cupy.cuda import nvrtc

    major, minor = nvrtc.getVersion()
    return f"{cupy.__version__} with NVRTC {major}.{minor}"
