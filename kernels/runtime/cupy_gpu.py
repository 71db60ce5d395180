"""Launching CUDA C++ kernels through CuPy: their arguments, on which device and stream, for which target.

Nothing here imports CuPy or torch before a kernel is launched on a GPU. Arrays are CuPy's, or in the tests NumPy's:
what is asked of them is shape, strides (bytes), dtype, ndim, size and reshape. bfloat16 arrays have the dtype that the
package ml_dtypes defines, whose name is "bfloat16", in NumPy as in CuPy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels.runtime import cupy_missing
from kernels.runtime.cuda_source import Source, storage, typed_argument, typed_arguments
from kernels.runtime.targets import Target, nearest

if TYPE_CHECKING:
    from kernels.arrays import ArraySpec
    from kernels.op import Problem

#: Element types that the kernels take. Sums are taken in float32, and in float64 for float64.
DTYPES = ("float16", "bfloat16", "float32", "float64")

#: Bytes of shared memory that a block has without asking for more.
ORDINARY_SHARED = 48 << 10

#: The widest access of a thread, in bytes.
WIDEST = 16

Size = tuple[int, ...]
Launcher = Callable[[Source, str, Size, Size, tuple[Any, ...], int], None]
Allocator = Callable[[Size, str], Any]


# ----- launching ---------------------------------------------------------------------------------------------------


def _on_device(source: Source, kernel: str, grid: Size, block: Size, arguments: tuple[Any, ...], shared: int) -> None:
    import cupy

    function = _function(source, kernel, cupy.cuda.runtime.getDevice(), shared > ORDINARY_SHARED)
    # A null pointer is a number to CuPy.
    function(grid, block, tuple(np.uintp(0) if a is None else a for a in arguments), shared_mem=shared)


@functools.cache
def _module(source: Source, device: int) -> Any:
    """The compiled module on a device. CuPy keeps the machine code on disk."""
    import cupy

    return cupy.RawModule(code=source.text, options=(*source.options, *_header_options()))


@functools.cache
def _header_options() -> tuple[str, ...]:
    """Where headers are that CuPy does not find by itself."""
    import cupy

    folder, known = cupy_missing.header_folder(), cupy.cuda.get_cuda_path()
    return () if folder is None or known is None or folder == Path(known) / "include" else (f"-I{folder}",)


@functools.cache
def _function(source: Source, kernel: str, device: int, much_shared: bool) -> Any:
    function = _module(source, device).get_function(kernel)
    if much_shared:
        function.max_dynamic_shared_size_bytes = _target_of_device(device).block_shared - function.shared_size_bytes
    return function


def _fresh(shape: Size, dtype: str) -> Any:
    import cupy

    return cupy.empty(shape, numpy_dtype(dtype))


#: Who allocates for the call that runs: torch, where its tensors came in.
_allocating: ContextVar[Allocator | None] = ContextVar("cupy_allocator", default=None)


@contextmanager
def allocating(allocator: Allocator) -> Iterator[None]:
    """`empty` asks ``allocator(shape, dtype name)`` inside the block, in this thread."""
    token = _allocating.set(allocator)
    try:
        yield
    finally:
        _allocating.reset(token)


_launcher: Launcher = _on_device
_allocator: Allocator = _fresh
_target: Target | None = None


@contextmanager
def elsewhere(launcher: Launcher, target: Target, allocator: Allocator = _fresh) -> Iterator[None]:
    """Hand every launch inside the block to ``launcher``: to compile it, or to run it on the CPU.

    Args:
        launcher: ``launcher(source, kernel, grid, block, arguments, shared_bytes)``; the arguments are arrays, None for
            null pointers, and NumPy scalars of the kernel's own types.
        target: what tiles are chosen for, whatever the device.
        allocator: ``allocator(shape, dtype name)`` makes every result and scratch array.
    """
    global _launcher, _allocator, _target
    before = _launcher, _allocator, _target
    _launcher, _allocator, _target = launcher, allocator, target
    try:
        yield
    finally:
        _launcher, _allocator, _target = before


def launch(
    file: str, kernel: str, grid: Size, block: Size, *arguments: Any, constants: Mapping[str, int | str],
    shared_bytes: int = 0,
) -> None:  # fmt: skip
    """Run a kernel on the current device and stream of CuPy. A grid without blocks runs nothing.

    Args:
        file: the .cu file, relative to the package `kernels`: "softmax/softmax.cu".
        kernel: name of its ``extern "C" __global__`` function.
        grid: how many blocks in each of up to three dimensions; only the first may pass 65535.
        block: how many threads.
        *arguments: of the kernel in order: arrays, or None for null pointers; Python numbers for the rest, which are
            passed in the types that the kernel declares.
        constants: of the preprocessor: tile sizes, and types by their names in CUDA C++.
        shared_bytes: dynamic shared memory of a block.

    Raises:
        TypeError, ValueError: arguments are not what the kernel declares, or its block may not be so large.
    """
    prepare(file, kernel, grid, block, *arguments, constants=constants, shared_bytes=shared_bytes)()


def prepare(
    file: str, kernel: str, grid: Size, block: Size, *arguments: Any, constants: Mapping[str, int | str],
    shared_bytes: int = 0,
) -> Callable[..., None]:  # fmt: skip
    """What `launch` does, for a kernel that runs many times: checked once.

    Args, Raises: as of `launch`.

    Returns:
        ``run(**changed)``, which launches the kernel; it may be given other values of some parameters, by their names.
    """
    source = _source(file, tuple(constants.items()))
    signature = source.signature(kernel)
    typed = list(typed_arguments(signature, arguments))
    threads = _product(block)
    most = 1024 if signature.threads is None else signature.threads
    if not 1 <= threads <= most:
        raise ValueError(f"{kernel}: block must have 1 to {most} threads, got {block}")
    if max((*grid[1:], 0)) > 65535:
        raise ValueError(f"{kernel}: grid must have at most 65535 blocks in its second and third dimension, got {grid}")
    places = {parameter.name: place for place, parameter in enumerate(signature.parameters)}

    def run(**changed: Any) -> None:
        for name, value in changed.items():
            place = places[name]
            typed[place] = typed_argument(kernel, signature.parameters[place], value)
        if 0 not in grid:
            _launcher(source, kernel, grid, block, tuple(typed), shared_bytes)

    return run


@functools.cache
def _source(file: str, constants: tuple[tuple[str, int | str], ...]) -> Source:
    return Source(file, constants)


def _product(sizes: Size) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


# ----- arrays ------------------------------------------------------------------------------------------------------


def numpy_dtype(name: str) -> Any:
    """The dtype of a name, for NumPy and for CuPy."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def empty(shape: Size, dtype: str) -> Any:
    """A fresh contiguous array on the current device, for a result or for scratch, not initialised."""
    return (_allocating.get() or _allocator)(tuple(shape), dtype)


def zeros(shape: Size, dtype: str) -> Any:
    """A fresh contiguous array of zeros."""
    return full(shape, dtype, 0)


def full(shape: Size, dtype: str, number: float) -> Any:
    """A fresh contiguous array of one number."""
    fresh = empty(shape, dtype)
    if fresh.size:
        fresh.fill(number)
    return fresh


def empty_like_form(form: ArraySpec) -> Any:
    """A fresh array of a spec: its shape, dtype and layout (dense)."""
    if form.strides is None:
        return empty(form.shape, form.dtype)
    order = form.memory_order
    fresh = empty(tuple(form.shape[d] for d in order), form.dtype)
    return fresh.transpose(sorted(range(form.ndim), key=order.__getitem__))


def target_of(array: Any) -> Target:
    """What the kernels that take this array are compiled for; of None: those on the current device."""
    return _target if _target is not None else target_of_device(None if array is None else array.device.id)


def target_of_device(index: int | None) -> Target:
    """The same of a device's number; None is the current one."""
    if _target is not None:
        return _target
    if index is None:
        import cupy

        index = cupy.cuda.runtime.getDevice()
    return _target_of_device(index)


@functools.cache
def _target_of_device(device: int) -> Target:
    import cupy

    capability: str = cupy.cuda.Device(device).compute_capability  # "90", and "120" of 12.0
    return nearest((int(capability[:-1]), int(capability[-1])))


def dtype_name(array: Any) -> str:
    """The name of an array's element type: "float32", "bfloat16"."""
    name: str = array.dtype.name
    return name


def computed_dtype(dtype: str) -> str:
    """The dtype in which numbers of a dtype are computed, and what backward needs is kept."""
    return "float64" if dtype == "float64" else "float32"


def types(dtype: str) -> dict[str, int | str]:
    """The constants STORAGE and COMPUTED for arrays of a dtype."""
    return {"STORAGE": storage(dtype), "COMPUTED": storage(computed_dtype(dtype))}


def element_strides(array: Any) -> tuple[int, ...]:
    """Strides in elements; of dimensions with a single place 0."""
    item = array.dtype.itemsize
    return tuple(0 if size == 1 else step // item for size, step in zip(array.shape, array.strides))


def index_type(*arrays: Any) -> str:
    """The type of offsets into these arrays (None is skipped): "long long" where one is too long for "int"."""
    # A block may count some elements past the last one that it touches.
    longest = max(_span(a) for a in arrays if a is not None)
    return "int" if longest < 2**31 - 2**20 else "long long"


def _span(array: Any) -> int:
    return 1 + sum((size - 1) * abs(stride) for size, stride in zip(array.shape, element_strides(array)))


def pointer_of(array: Any) -> int:
    """The address of an array's first element."""
    address: int = array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr
    return address


def vector_of(n: int, *arrays: Any) -> int:
    """Elements that a thread may load or store at once, at most `WIDEST` bytes, where rows of n lie in these arrays.

    Args:
        n: elements of a row.
        *arrays: of one dtype, rows along their last dimension (None among them is skipped).

    Returns:
        a power of two that divides n and every other stride, to whose size every array is aligned; 1 where neighbours
        of a row are not neighbours in memory.
    """
    given = [a for a in arrays if a is not None]
    item = max(a.dtype.itemsize for a in given)
    width = WIDEST // item
    for array in given:
        *outer, last = element_strides(array) or (1,)
        if last != 1 and n > 1:
            return 1
        address = pointer_of(array) // array.dtype.itemsize if array.size else 0
        while width > 1 and any(number % width for number in (n, address, *outer)):
            width //= 2
    return width


def has_vectors(array: Any, axis: int, count: int) -> bool:
    """Whether `count` neighbours along a dimension can be read as one, wherever a multiple of `count` begins.

    That is: its stride is 1, its size and every other stride are multiples of count, and so is the address.
    """
    strides = element_strides(array)
    others = [step for d, step in enumerate(strides) if d != axis % array.ndim]
    if array.size == 0 or array.shape[axis] % count or (strides[axis] != 1 and count > 1):
        return False
    return all(step % count == 0 for step in others) and pointer_of(array) % (count * array.dtype.itemsize) == 0


def from_host(array: np.ndarray[Any, Any], like: Any) -> Any:
    """A NumPy array as an array of the kind of `like`, on its device."""
    if isinstance(like, np.ndarray):
        return array
    import cupy

    with cupy.cuda.Device(like.device.id):
        return cupy.asarray(array)


def as_rows(array: Any, extents: Size) -> tuple[Any, tuple[int, ...]]:
    """(array, strides) seen in a shape; copied only where no strides can say it. Strides of single places are 0."""
    seen = array.reshape(extents)
    return seen, element_strides(seen)


def contiguous(array: Any) -> Any:
    """The array, or a C-contiguous copy of it."""
    return array if array.flags.c_contiguous else array.copy(order="C")


def empty_results(problem: Problem) -> tuple[Any, ...]:
    """The results when there is nothing to compute; what else of them has elements is 0."""
    return tuple(None if form is None else zeros(form.shape, form.dtype) for form in problem.results())


def zero_gradients(problem: Problem) -> tuple[Any, ...]:
    """The gradients when there is nothing to compute: zeros where one is wanted."""
    pairs = zip(problem.gradients(), problem.needs_grad, strict=True)
    return tuple(zeros(form.shape, form.dtype) if form is not None and wanted else None for form, wanted in pairs)
