"""The backends: their names, devices, module names, and why one of them cannot run here.

A backend of an op is one file in the op's family folder, named in the table below (``conv2d/numba_cpu.py``); it is
imported on first use. Nothing else lists it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class BackendError(RuntimeError):
    """A backend was named that cannot run the call, or no backend can. The message lists every reason."""


@dataclass(frozen=True)
class Backend:
    """One way to run kernels.

    Attributes:
        name: what users write in ``backend=``.
        devices: device types it runs on, "cpu" or "cuda".
        module: name of its file in each family's folder.
        missing: returns why it cannot run on this machine at all, or None.
        arrays: kind of array that its implementations take.
        differentiates: torch differentiates its forward pass itself.
        target: of a backend on GPUs that is not missing: ``target(index)`` is the name of what its kernels are compiled
            for on the device of that number, "sm_90" say; None is the current device.
    """

    name: str
    devices: tuple[str, ...]
    module: str
    missing: Callable[[], str | None]
    arrays: str = "numpy"
    differentiates: bool = False
    target: Callable[[int | None], str | None] = lambda _: None


def _installed(package: str) -> bool:
    return package in sys.modules or importlib.util.find_spec(package) is not None


def _numba_missing() -> str | None:
    if not _installed("numba"):
        return "the package numba is not installed: pip install numba"
    from kernels.runtime import numba_cpu

    return numba_cpu.missing()


def _torch_missing() -> str | None:
    return None if _installed("torch") else "the package torch is not installed: pip install nnlib-kernels[torch]"


def _cupy_missing() -> str | None:
    if not _installed("cupy"):
        return "the package cupy is not installed: pip install nnlib-kernels[cupy]"
    from kernels.runtime import cupy_missing

    return cupy_missing.missing()


def _triton_missing() -> str | None:
    if not _installed("triton"):
        return "the package triton is not installed: pip install nnlib-kernels[triton]"
    if not _installed("torch"):
        return "Triton kernels launch through torch, which is not installed: pip install nnlib-kernels[torch]"
    from kernels.runtime import triton_gpu

    return triton_gpu.missing()


def _cupy_target(index: int | None) -> str:
    from kernels.runtime import cupy_gpu

    return cupy_gpu.target_of_device(index).name


def _triton_target(index: int | None) -> str:
    from kernels.runtime import triton_gpu

    return triton_gpu.target_of_device(index).name


#: Every backend, best first: automatic choice takes the first one without a reason against it.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("triton", ("cuda",), "triton_gpu", _triton_missing, arrays="torch", target=_triton_target),
        Backend("cupy", ("cuda",), "cupy_gpu", _cupy_missing, arrays="cupy", target=_cupy_target),
        Backend("numba", ("cpu",), "numba_cpu", _numba_missing),
        Backend("torch", ("cpu", "cuda"), "torch_stock", _torch_missing, arrays="torch", differentiates=True),
        Backend("reference", ("cpu",), "reference", lambda: None),
    )
}


def check_name(name: object, source: str) -> str:
    """`name`, when it is a backend's; else a ``BackendError`` that lists the known ones. `source` says who named it."""
    if not isinstance(name, str) or name not in (*BACKENDS, "auto"):
        known = ", ".join(("auto", *BACKENDS))
        raise BackendError(f"{source} must be one of {known}, got {name!r}")
    return name


def load(family: str, backend: Backend) -> bool:
    """Import the family's file for a backend, which registers its implementations; False when there is no such file."""
    name = f"{family}.{backend.module}"
    if name in sys.modules:
        return True
    if importlib.util.find_spec(name) is None:
        return False
    importlib.import_module(name)
    return True
