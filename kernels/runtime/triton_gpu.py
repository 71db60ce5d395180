"""Launching Triton kernels: why they cannot run here, on which device and stream, for which target.

Nothing here imports Triton: the families' ``triton_gpu.py`` do, and those are imported when the backend is used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from kernels.runtime.targets import TARGETS, Target, nearest

if TYPE_CHECKING:
    from kernels.arrays import ArraySpec
    from kernels.op import Problem

#: The oldest compute capability that the kernels are compiled and inspected for.
LEAST_CAPABILITY = (8, 0)

#: Element types that the kernels take. Sums are taken in float32, and in float64 for float64.
DTYPES = ("float16", "bfloat16", "float32", "float64")

Launcher = Callable[[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]], None]
Allocator = Callable[[Any, torch.dtype, Any], torch.Tensor]


def missing() -> str | None:
    """Why no Triton kernel can run on this machine, or None. torch and Triton are known to be installed."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device or driver"
    if torch.version.hip is None and torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        found = ".".join(map(str, torch.cuda.get_device_capability()))
        return f"its kernels need compute capability 8.0 or newer, and this GPU has {found}"
    return None


def _on_device(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    device = next(a.device for a in arguments if isinstance(a, torch.Tensor))
    if device.index == torch.cuda.current_device():
        kernel[grid](*arguments, **options)  # on torch's current stream of that device
        return
    with torch.cuda.device(device):
        kernel[grid](*arguments, **options)


def _fresh(shape: Any, dtype: torch.dtype, device: Any) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


_launcher: Launcher = _on_device
_allocator: Allocator = _fresh
_target: Target | None = None


@contextmanager
def elsewhere(launcher: Launcher, target: Target, allocator: Allocator = _fresh) -> Iterator[None]:
    """Hand every launch inside the block to ``launcher(kernel, grid, arguments, options)``: to compile it, say.

    Args:
        launcher: what is called in place of ``kernel[grid](*arguments, **options)``.
        target: what tiles are chosen for, whatever the device.
        allocator: ``allocator(shape, dtype, device)`` makes every result and scratch tensor.
    """
    global _launcher, _allocator, _target
    before = _launcher, _allocator, _target
    _launcher, _allocator, _target = launcher, allocator, target
    try:
        yield
    finally:
        _launcher, _allocator, _target = before


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Run a kernel on the device of its tensors, on torch's current stream there. A grid without programs runs none.

    Args:
        kernel: a ``triton.jit`` function.
        grid: how many programs in each of up to three dimensions; only the first may pass 65535.
        *arguments: its positional arguments; at least one tensor.
        **options: its constants by name, and num_warps and num_stages.
    """
    if 0 not in grid:
        options.setdefault("enable_fp_fusion", True)  # said here, because Triton 3.10 has another default than 3.9
        _launcher(kernel, grid, arguments, options)


def empty(shape: Any, dtype: torch.dtype, device: Any) -> torch.Tensor:
    """A fresh contiguous tensor for a result or for scratch, not initialised."""
    return _allocator(shape, dtype, device)


def empty_like_form(form: ArraySpec, device: Any) -> torch.Tensor:
    """A fresh tensor of a spec: its shape, dtype and layout (dense)."""
    dtype = getattr(torch, form.dtype)
    if form.strides is None:
        return empty(form.shape, dtype, device)
    order = form.memory_order
    fresh = empty(tuple(form.shape[d] for d in order), dtype, device)
    return fresh.permute(sorted(range(form.ndim), key=order.__getitem__))


def target_of(tensor: torch.Tensor) -> Target:
    """What the kernels that take this tensor are compiled for."""
    return target_of_device(tensor.device.index)


def target_of_device(index: int | None) -> Target:
    """The same of a device's number; None is the first one."""
    return _target if _target is not None else _target_of_device(index or 0)


@functools.cache
def _target_of_device(index: int) -> Target:
    if torch.version.hip is not None:
        name = torch.cuda.get_device_properties(index).gcnArchName.partition(":")[0]
        return TARGETS.get(name, TARGETS["gfx942"])
    return nearest(torch.cuda.get_device_capability(index))


def computed_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which numbers of a dtype are computed, and what backward needs is kept."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def computed(dtype: torch.dtype) -> Any:
    """The same as Triton's type."""
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def product_precision(dtype: torch.dtype, target: Target, *, tf32: bool) -> str:
    """How Triton multiplies matrices of a dtype: "ieee", "tf32" or "tf32x3".

    float32 goes to tensor cores as three products of tf32 (a number is a sum of two, with 22 bits) where that was seen
    to stay within float32's budget of error, on an H100, in all tests, with a half to a quarter of the time; float32
    without tensor cores is Triton's slowest product.

    Args:
        dtype: of the factors.
        target: the GPU. AMD's has no tf32.
        tf32: torch is set to multiply float32 as tf32.
    """
    if dtype != torch.float32 or target.amd:
        return "ieee"
    if tf32:
        return "tf32"
    return "tf32x3" if target.name == "sm_90" else "ieee"


def on_tensor_cores(dtype: torch.dtype, precision: str) -> bool:
    """Whether such products go to NVIDIA's tensor cores."""
    return dtype.itemsize == 2 or precision.startswith("tf32")


def index_type(*tensors: torch.Tensor | None) -> Any:
    """Triton's type of offsets into these tensors: int64 where one is too long for int32."""
    import triton.language as tl

    # A program may count some elements past the last one that it touches.
    longest = max(_span(t) for t in tensors if t is not None)
    return tl.int32 if longest < 2**31 - 2**20 else tl.int64


def _span(tensor: torch.Tensor) -> int:
    return 1 + sum((size - 1) * abs(stride) for size, stride in zip(tensor.shape, tensor.stride()))


def as_rows(tensor: torch.Tensor, extents: tuple[int, ...]) -> tuple[torch.Tensor, tuple[int, ...]]:
    """(tensor, strides) seen in a shape; copied only where no strides can say it. Strides of single places are 0."""
    seen = tensor.reshape(extents)
    return seen, tuple(0 if size == 1 else stride for size, stride in zip(extents, seen.stride()))


def empty_results(problem: Problem, device: Any) -> tuple[torch.Tensor | None, ...]:
    """The results when there is nothing to compute; what else of them has elements is 0."""
    return tuple(_zeros(form, device) for form in problem.results())


def zero_gradients(problem: Problem, device: Any) -> tuple[torch.Tensor | None, ...]:
    """The gradients when there is nothing to compute: zeros where one is wanted."""
    pairs = zip(problem.gradients(), problem.needs_grad, strict=True)
    return tuple(_zeros(form, device) if wanted else None for form, wanted in pairs)


def _zeros(form: ArraySpec | None, device: Any) -> torch.Tensor | None:
    return None if form is None else torch.zeros(form.shape, dtype=getattr(torch, form.dtype), device=device)
