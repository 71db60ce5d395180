"""CuPy without a GPU: a module in its place whose arrays lie in the host's memory and whose kernels run here.

It has what the library uses of CuPy, and refuses what CuPy refuses: implicit conversion to NumPy, kernels launched on
another device than that of their arrays, Python numbers and NumPy arrays as arguments, much shared memory that nobody
asked for. So the host code of the backend "cupy", its launches included, runs as it would beside a GPU.
"""

from __future__ import annotations

import ctypes
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels import backends
from kernels.op import OPS
from kernels.runtime import cupy_gpu, values_cupy
from kernels.runtime.cuda_source import Signature, kernels_of, signature_of
from tests.support.cuda_cpu import module as harness
from tests.support.cuda_cpu.run import launch
from tests.support.fake_cublas import Cublas
from tests.support.fake_gpu import Gpu, Launch, begin, gpu


class ndarray:  # CuPy's name
    """An array on a device."""

    def __init__(self, host: Any, device: Any = None, keeps: Any = None) -> None:
        if isinstance(keeps, MemoryPointer):  # CuPy's arguments: shape, dtype, memory
            kind, memory = np.dtype(device), keeps.memory
            host = np.frombuffer((ctypes.c_char * memory.size).from_address(memory.ptr), kind).reshape(host)
            device = memory.device
        self._host = host
        self._keeps = keeps
        self.device = Device(gpu().device if device is None else device)

    def __array__(self, *_: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    shape = property(lambda self: self._host.shape)
    strides = property(lambda self: self._host.strides)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    flags = property(lambda self: self._host.flags)
    data = property(lambda self: types.SimpleNamespace(ptr=self._host.ctypes.data))
    T = property(lambda self: self.transpose())

    def _like(self, host: Any) -> ndarray:
        return ndarray(np.asarray(host), self.device.id, self)

    def reshape(self, *shape: Any) -> ndarray:
        return self._like(self._host.reshape(*shape))

    def transpose(self, *order: Any) -> ndarray:
        return self._like(self._host.transpose(*order))

    def copy(self, order: str = "C") -> ndarray:
        return self._like(self._host.copy(order=order))

    def astype(self, dtype: Any, copy: bool = True) -> ndarray:
        return self if not copy and np.dtype(dtype) == self.dtype else self._like(self._host.astype(dtype))

    def fill(self, number: Any) -> None:
        self._host.fill(number)

    def argsort(self, kind: str | None = None) -> ndarray:
        assert kind in (None, "stable"), "CuPy sorts stably or not at all"
        return self._like(self._host.argsort(kind="stable"))

    def any(self) -> ndarray:
        return self._like(self._host.any())

    def nonzero(self) -> tuple[ndarray, ...]:
        return tuple(self._like(places) for places in np.atleast_1d(self._host).nonzero())

    def __getitem__(self, key: Any) -> ndarray:
        return self._like(self._host[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._host[key] = value._host if isinstance(value, ndarray) else value

    def _operate(self, other: Any, name: str) -> ndarray:
        return self._like(getattr(self._host, name)(other._host if isinstance(other, ndarray) else other))

    def __lt__(self, other: Any) -> ndarray:
        return self._operate(other, "__lt__")

    def __gt__(self, other: Any) -> ndarray:
        return self._operate(other, "__gt__")

    def __ge__(self, other: Any) -> ndarray:
        return self._operate(other, "__ge__")

    def __ne__(self, other: Any) -> ndarray:  # type: ignore[override]
        return self._operate(other, "__ne__")

    def __or__(self, other: Any) -> ndarray:
        return self._operate(other, "__or__")

    def __and__(self, other: Any) -> ndarray:
        return self._operate(other, "__and__")

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return bool(self._host)

    def __int__(self) -> int:
        return int(self._host)

    def get(self) -> Any:
        """The numbers, on the host."""
        return self._host.copy()

    def _tensor(self) -> Any:
        import torch

        if self.dtype.name == "bfloat16":
            return torch.from_numpy(self._host.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(self._host)

    def __dlpack__(self, **options: Any) -> Any:
        return self._tensor().__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self._tensor().__dlpack_device__()


class Foreign:
    """An array on a device, of a library that nobody has heard of: DLPack's two methods and nothing else."""

    def __init__(self, host: Any, device: int = 0) -> None:
        self._host, self._device = host, device

    def __dlpack__(self, **_: Any) -> Any:
        return self._host.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._device  # kDLCUDA


# ----- what the module has -----------------------------------------------------------------------------------------


def asarray(host: Any) -> ndarray:
    """A copy on the current device."""
    if isinstance(host, ndarray):
        return host
    gpu().copied["over"] += 1
    return ndarray(np.array(host, order="C"))


def asnumpy(array: ndarray) -> Any:
    """A copy on the host, C-contiguous as CuPy makes it."""
    gpu().copied["back"] += 1
    return np.array(array._host, order="C")


def empty(shape: Any, dtype: Any) -> ndarray:
    """A fresh array of NaN (of -1), on the current device."""
    fresh = np.empty(shape, dtype)
    floating = "float" in fresh.dtype.name
    fresh.fill(np.nan if floating else np.array(-1).astype(fresh.dtype))
    return ndarray(fresh)


class _Host:
    """What an array on a device has for DLPack, as if it lay in the host's memory, where it lies."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def from_dlpack(tensor: Any) -> ndarray:
    """A tensor's memory, or that of any array with DLPack's methods; such a one is on a CUDA device."""
    if "torch" not in sys.modules or not isinstance(tensor, sys.modules["torch"].Tensor):
        kind, device = tensor.__dlpack_device__()
        assert kind == 2, "CuPy takes no memory of the CPU"
        return ndarray(np.from_dlpack(_Host(tensor)), device, tensor)
    import torch

    if tensor.requires_grad:
        raise BufferError("Can't export tensors that require gradient")
    host = tensor.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
    if tensor.dtype == torch.bfloat16:
        host = host.view(cupy_gpu.numpy_dtype("bfloat16"))
    return ndarray(host, keeps=tensor)


class Device:
    """A device, current inside a `with`."""

    def __init__(self, index: int | None = None) -> None:
        self.id = gpu().device if index is None else index

    def synchronize(self) -> None:
        """Wait for all that was launched."""
        gpu().waits += 1

    @property
    def compute_capability(self) -> str:
        """As CuPy spells it: "90"."""
        return gpu().capability

    def __enter__(self) -> Device:
        self._before = gpu().device
        gpu().device = self.id
        return self

    def __exit__(self, *_: Any) -> None:
        gpu().device = self._before


class PinnedMemory(np.ndarray):  # whose buffer NumPy takes
    """Memory of the host, as its address and its bytes."""

    @property
    def ptr(self) -> int:
        """Where it begins."""
        return int(self.ctypes.data)


def alloc_pinned_memory(size: int) -> PinnedMemory:
    """Some, full of ones."""
    return np.full(size, 255, np.uint8).view(PinnedMemory)


@dataclass
class UnownedMemory:
    """Memory at an address, which `owner` has."""

    ptr: int
    size: int
    owner: Any
    device: int


@dataclass
class MemoryPointer:
    """A place in a memory."""

    memory: UnownedMemory
    offset: int


class Stream:
    """A stream, current inside a `with`."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer

    def is_capturing(self) -> bool:
        """Whether what is launched becomes part of a graph."""
        return gpu().capturing

    @classmethod
    def from_external(cls, stream: Any) -> Stream:
        """What another library calls its stream, by CUDA's protocol."""
        version, pointer = stream.__cuda_stream__()
        assert version == 0
        return cls(pointer)

    def __enter__(self) -> Stream:
        self._before = gpu().stream
        gpu().stream = self.pointer
        return self

    def __exit__(self, *_: Any) -> None:
        gpu().stream = self._before


class RawModule:
    """Kernels compiled for this processor."""

    def __init__(self, code: str, options: tuple[str, ...]) -> None:
        pairs = (option.removeprefix("-D").partition("=") for option in options)
        self._constants = tuple((name, value) for name, _, value in pairs)
        self._code = code
        self.device = gpu().device

    def get_function(self, name: str) -> RawKernel:
        """A kernel."""
        assert name in kernels_of(self._code)
        signature = signature_of(self._code, dict(self._constants), name)
        return RawKernel(harness.compiled_text(self._code, self._constants), signature, self.device)


class RawKernel:
    """A kernel of a module."""

    shared_size_bytes = 64

    def __init__(self, compiled: Any, signature: Signature, device: int) -> None:
        self._compiled, self._name, self._device = compiled, signature.kernel, device
        self._parameters = signature.parameters
        self.max_dynamic_shared_size_bytes = 48 << 10

    def __call__(self, grid: Any, block: Any, arguments: tuple[Any, ...], *, shared_mem: int = 0) -> None:
        assert self._device == gpu().device, "a function of another device's module"
        assert shared_mem <= self.max_dynamic_shared_size_bytes, "more shared memory than was asked for"
        given: list[Any] = []
        for argument, parameter in zip(arguments, self._parameters, strict=True):
            if isinstance(argument, ndarray):
                assert argument.device.id == gpu().device, "an array of another device"
                given.append(argument._host)
            else:
                assert isinstance(argument, np.generic), f"CuPy would guess a type for {argument!r}"
                assert not parameter.pointer or argument == 0, "a number for a pointer"
                given.append(None if parameter.pointer else argument)
        gpu().launches.append(Launch(self._name, gpu().device, gpu().stream))
        launch(self._compiled, self._name, grid, block, tuple(given), shared_mem)


class CUDARuntimeError(RuntimeError):
    """As CuPy has it."""


MODULES = ("cupy", "cupy.cuda", "cupy.cuda.nvrtc", "cupy_backends.cuda.libs")


def _modules(devices: int) -> dict[str, types.ModuleType]:
    cupy, cuda, nvrtc = (types.ModuleType(name) for name in ("cupy", "cupy.cuda", "cupy.cuda.nvrtc"))
    nvrtc.getVersion = lambda: (13, 0)  # type: ignore[attr-defined]
    runtime = types.SimpleNamespace(
        driverGetVersion=lambda: 13000,
        getDeviceCount=lambda: devices,
        getDevice=lambda: gpu().device,
        CUDARuntimeError=CUDARuntimeError,
        **{name: number for name, (number, _) in Cublas.TYPES.items()},
    )
    handles = types.SimpleNamespace(get_cublas_handle=lambda: gpu().device)
    libraries = types.ModuleType("cupy_backends.cuda.libs")
    libraries.cublas = Cublas()  # type: ignore[attr-defined]
    headers = harness._headers()[0]
    facts = {"Device": Device, "Stream": Stream, "runtime": runtime, "nvrtc": nvrtc, "device": handles}
    facts |= {f.__name__: f for f in (alloc_pinned_memory, UnownedMemory, MemoryPointer)}
    facts |= {"get_current_stream": lambda: Stream(gpu().stream)}
    facts |= {"get_cuda_path": lambda: headers.removesuffix("/include"), "is_available": lambda: devices > 0}
    vars(cuda).update(facts)
    names = (ndarray, asarray, asnumpy, empty, from_dlpack, RawModule)
    vars(cupy).update({f.__name__: f for f in names} | {"cuda": cuda, "array": asarray})
    return dict(zip(MODULES, (cupy, cuda, nvrtc, libraries), strict=True))


def _forget() -> None:
    for cached in (cupy_gpu._module, cupy_gpu._function, cupy_gpu._target_of_device, values_cupy._report):
        cached.cache_clear()
    for op in OPS.values():
        op.plans.clear()


@contextmanager
def installed(devices: int = 2) -> Iterator[Gpu]:
    """The fake is CuPy inside the block.

    Yields:
        what it has seen.
    """
    before = {name: sys.modules.get(name) for name in MODULES}
    begin()
    _forget()
    sys.modules.update(_modules(devices))
    try:
        yield gpu()
    finally:
        for name, was in before.items():
            if was is None:
                sys.modules.pop(name)
            else:
                sys.modules[name] = was
        _forget()


def on_device(array: Any, device: int = 0) -> ndarray:
    """An array with a NumPy array's numbers and strides, on a device."""
    return ndarray(array, device)


__all__ = ["backends", "installed", "on_device"]
