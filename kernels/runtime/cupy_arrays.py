"""CuPy's arrays and those that callers bring: NumPy's are copied over and back, torch's tensors seen without a copy.

Nothing here imports CuPy or torch before arrays need them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels.arrays import spec
from kernels.runtime import cupy_gpu

if TYPE_CHECKING:
    from kernels.op import Problem

Arrays = tuple[Any, ...]
#: What runs on CuPy's arrays: ``function(problem, *arrays, **keywords)`` of an implementation.
Function = Callable[..., Arrays]


def _backwards(order: Sequence[int]) -> tuple[int, ...]:
    """The transpose that undoes ``transpose(order)``."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def from_numpy(array: np.ndarray[Any, Any]) -> Any:
    """A copy on the current device, its dimensions in the same order in memory."""
    import cupy

    order = spec(array).memory_order
    return cupy.asarray(np.asarray(array.transpose(order), order="C")).transpose(_backwards(order))


def to_numpy(array: Any) -> np.ndarray[Any, Any]:
    """A copy in the host's memory, its dimensions in the same order in memory."""
    import cupy

    order = spec(array).memory_order
    host: np.ndarray[Any, Any] = cupy.asnumpy(array.transpose(order)).transpose(_backwards(order))
    return host


def from_torch(tensor: Any) -> Any:
    """A CUDA tensor's memory as an array; it keeps the tensor's memory alive."""
    import cupy

    return cupy.from_dlpack(tensor.detach())


def to_torch(array: Any) -> Any:
    """An array's memory as a tensor; it keeps the array's memory alive."""
    import torch

    return torch.from_dlpack(array)


def pinned(count: int, dtype: str, device: int) -> tuple[np.ndarray[Any, Any], Any]:
    """(array, the same memory as an array of the device): of the host's memory, which the device reads and writes."""
    import cupy

    size = count * np.dtype(dtype).itemsize
    memory = cupy.cuda.alloc_pinned_memory(size)
    # Pinned memory has the same address on the host and on every device.
    there = cupy.cuda.UnownedMemory(memory.ptr, size, memory, device)
    host = np.frombuffer(memory, dtype, count)
    return host, cupy.ndarray((count,), dtype, cupy.cuda.MemoryPointer(there, 0))


@contextmanager
def current_device(index: int) -> Iterator[None]:
    """CuPy's arrays are made, and its kernels launched, on this device inside the block."""
    import cupy

    with cupy.cuda.Device(index):
        yield


# ----- calls -------------------------------------------------------------------------------------------------------


def on_cupy(function: Function, problem: Problem, inputs: Sequence[Any], keywords: dict[str, Any]) -> Arrays:
    """Call a function on CuPy's arrays, on their device and CuPy's current stream there."""
    first = next(a for a in (*inputs, *keywords.values()) if a is not None)
    with current_device(first.device.id):
        return function(problem, *inputs, **keywords)


def on_numpy(
    function: Function, problem: Problem, inputs: Sequence[Any], keywords: dict[str, Any], device: Any = None
) -> Arrays:
    """Call a function with NumPy arrays: they are copied to a device, and the results back.

    Args:
        function, problem, inputs, keywords: ``function(problem, *inputs, **keywords)``; None is passed as it is.
        device: "cuda" for CuPy's current device, or "cuda:1".

    Raises:
        ValueError: there is no such device.
    """
    import cupy

    _, _, index = str(device or "cuda").partition(":")
    count = cupy.cuda.runtime.getDeviceCount()
    if index and int(index) >= count:
        raise ValueError(f"device must be below cuda:{count}, as many as CuPy finds, got {str(device)!r}")
    with current_device(int(index) if index else cupy.cuda.runtime.getDevice()):
        found = function(
            problem,
            *(None if a is None else from_numpy(a) for a in inputs),
            **{name: None if a is None else from_numpy(a) for name, a in keywords.items()},
        )
        return tuple(None if a is None else to_numpy(a) for a in found)


class _Stream:
    """A stream of torch's by CUDA's protocol, which older versions of torch have not."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


def on_torch(function: Function, problem: Problem, inputs: Sequence[Any], keywords: dict[str, Any]) -> Arrays:
    """Call a function with CUDA tensors, seen without a copy, on torch's current stream; results are torch's memory.

    Args:
        function, problem, inputs, keywords: as of `on_numpy`; at least one tensor.
    """
    import cupy
    import torch

    first = next(t for t in (*inputs, *keywords.values()) if t is not None)
    index = first.device.index
    made: list[tuple[Any, Any]] = []

    def allocate(shape: tuple[int, ...], dtype: str) -> Any:
        tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=first.device)
        array = from_torch(tensor)
        made.append((array, tensor))
        return array

    def as_tensor(array: Any) -> Any:
        # The tensor itself, where it was made here: torch then knows whose memory it is.
        own = next((tensor for a, tensor in made if a is array), None)
        return to_torch(array) if own is None else own

    with ExitStack() as stack:
        stack.enter_context(current_device(index))
        stream = torch.cuda.current_stream(first.device).cuda_stream
        stack.enter_context(cupy.cuda.Stream.from_external(_Stream(stream)))
        stack.enter_context(cupy_gpu.allocating(allocate))
        found = function(
            problem,
            *(None if t is None else from_torch(t) for t in inputs),
            **{name: None if t is None else from_torch(t) for name, t in keywords.items()},
        )
        return tuple(None if a is None else as_tensor(a) for a in found)
