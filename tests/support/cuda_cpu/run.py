"""Launching compiled kernels on NumPy arrays, and the backend "cupy" on this processor."""

from __future__ import annotations

import ctypes
import math
import mmap
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kernels import backends
from kernels.op import OPS
from kernels.runtime import cupy_gpu
from kernels.runtime.cuda_source import Source, typed_arguments
from kernels.runtime.targets import TARGETS, Target
from tests.support.cuda_cpu.module import KernelFault, Module, compiled

Array = np.ndarray[Any, Any]

#: Seconds of processor time that a launch may take.
SECONDS = 120

#: Bytes between two parts of a strided array that are not kept as gaps, one by one.
LONGEST_GAP = 1 << 22

#: What is counted of a launch, see `struct Counts` of runtime.h.
COUNTS = (
    *("global_loaded", "global_stored", "shared_loaded", "shared_stored", "atomics", "unique_loaded", "unique_stored"),
    *("load_requests", "load_sectors", "store_requests", "store_sectors"),
    *("shared_load_requests", "shared_load_turns", "shared_store_requests", "shared_store_turns"),
    *("shared_load_least", "shared_store_least"),
    *("load_least", "store_least"),
    *("barriers", "collectives"),
)


class _Counts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in COUNTS]


class _Region(ctypes.Structure):
    _fields_ = [
        ("low", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("granule", ctypes.c_uint64),
        ("argument", ctypes.c_int64),
        ("valid", ctypes.c_void_p),
        ("loaded", ctypes.c_uint64),
        ("stored", ctypes.c_uint64),
    ]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        *((name, ctypes.c_uint) for name in ("shared", "shared_granule", "order", "profile", "seconds")),
        ("stacks", ctypes.c_void_p),
        ("region_count", ctypes.c_uint64),
        ("regions", ctypes.POINTER(_Region)),
        ("counts", _Counts),
    ]


def order_number(order: str, seed: int = 0) -> int:
    """What the harness calls an order of the threads and blocks: "forward", "reverse", or "random" from a seed."""
    return {"forward": 0, "reverse": 1, "random": 2 + seed}[order]


# ----- memory ------------------------------------------------------------------------------------------------------


def _span(array: Array) -> tuple[int, int]:
    """(address of the first byte, address behind the last one)."""
    low, high = np.lib.array_utils.byte_bounds(array)
    return low, (low if array.size == 0 else high)


def _regions(number: int, array: Array) -> Iterator[tuple[_Region, Array | None]]:
    """The memory of an argument: one region, or one for each part of a view whose gaps are long."""
    item = array.itemsize
    for axis, (extent, stride) in enumerate(zip(array.shape, array.strides)):
        if abs(stride) > LONGEST_GAP and extent > 1 and abs(stride) * (extent - 1) > 4 * array.nbytes:
            for part in np.moveaxis(array, axis, 0):
                yield from _regions(number, part)
            return
    low, high = _span(array)
    valid = None
    if high - low != array.nbytes:
        valid = np.zeros(high - low, np.uint8)
        here = np.full(1, array.ctypes.data - low, np.int64)
        for extent, stride in zip(array.shape, array.strides):
            here = (here[:, None] + np.arange(extent if stride else min(extent, 1)) * stride).ravel()
        for byte in range(item):
            valid[here + byte] = 1
    pointer = None if valid is None else valid.ctypes.data
    yield _Region(low, high - low, min(item, 8) if low % item == 0 else 1, number, pointer), valid


_libc = ctypes.CDLL(None, use_errno=True)


class _Guarded:
    """A copy of an argument's memory that ends where nothing can be read, for launches that are not watched."""

    def __init__(self, low: int, high: int, writeable: bool) -> None:
        page = mmap.PAGESIZE
        self.low, self.size, self.writeable = low, high - low, writeable
        whole = -(-self.size // page) * page
        self.memory = mmap.mmap(-1, whole + 2 * page)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.whole = whole + 2 * page
        for offset in (0, whole + page):
            if _libc.mprotect(ctypes.c_void_p(self.base + offset), page, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        # The address keeps its remainder by 16.
        end = self.base + page + whole
        self.start = end - self.size - (end - self.size - low) % 16
        ctypes.memmove(self.start, low, self.size)

    def give_back(self) -> None:
        """Copy what was written, and make the memory ordinary again."""
        if self.writeable:
            ctypes.memmove(self.low, self.start, self.size)
        _libc.mprotect(ctypes.c_void_p(self.base), self.whole, 3)


_stack_memory: list[int] = []


def _stacks(module: Module) -> int:
    """The stacks of the fibers, which all modules share: each takes two mappings, of which a process has 65530."""
    if not _stack_memory:
        make = module.library.cuda_cpu_make_stacks
        make.restype = ctypes.c_void_p
        _stack_memory.append(make())
    return _stack_memory[0]


# ----- launching ---------------------------------------------------------------------------------------------------


def launch(
    module: Module, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...],
    shared: int = 0, order: int = 0, profile: bool = False, names: tuple[str, ...] = (), seconds: int = SECONDS,
    touched: dict[tuple[int, int], list[int]] | None = None,
) -> dict[str, int]:  # fmt: skip
    """Run a kernel.

    Args:
        module: its compiled source.
        kernel: its name.
        grid: blocks in up to three dimensions.
        block: threads, likewise.
        arguments: NumPy arrays of any strides, None, and NumPy scalars of exactly the kernel's types.
        shared: bytes of dynamic shared memory.
        order: see `order_number`.
        profile: count requests, sectors and turns too.
        names: of the kernel's parameters, for messages.
        seconds: of processor time, after which it is given up.
        touched: filled, where memory is watched, with [bytes loaded, bytes stored] of each argument's memory, each byte
            counted once a launch; by (address, bytes), the most of several launches.

    Returns:
        what was counted, see `COUNTS`.

    Raises:
        KernelFault: the kernel, or the launch, is wrong.
    """
    options = _Launch(stacks=_stacks(module), shared=shared, order=order, profile=profile, seconds=seconds)
    options.shared_granule = module.shared_granule
    options.grid[:] = (*grid, 1, 1)[:3]
    options.block[:] = (*block, 1, 1)[:3]
    kept: list[Any] = []
    kinds, sizes, regions = "", [], []
    guarded: dict[tuple[int, int], _Guarded] = {}
    for number, value in enumerate(arguments):
        if value is None or isinstance(value, np.ndarray):
            address = 0
            if value is not None:
                address = value.ctypes.data
                if module.check == "full":
                    for region, valid in _regions(number, value):
                        regions.append(region)
                        kept.append(valid)
                elif value.size:
                    low, high = _span(value)
                    guard = guarded.setdefault((low, high), _Guarded(low, high, value.flags.writeable))
                    address += guard.start - low
            kept.append(ctypes.c_void_p(address))
            kinds, sizes = kinds + "p", [*sizes, 8]
        else:
            raw = value.tobytes()
            kept.append(ctypes.create_string_buffer(raw, 16))
            kinds, sizes = kinds + {"f": "f", "i": "i", "u": "i", "b": "i"}[value.dtype.kind], [*sizes, len(raw)]
        kept.append(None)
    pointers = [ctypes.addressof(k) for k in kept if isinstance(k, (ctypes.c_void_p, ctypes.Array))]
    options.regions = (_Region * max(1, len(regions)))(*regions)
    options.region_count = len(regions)
    function = getattr(module.library, f"cuda_cpu_run_{kernel}")
    function.restype = ctypes.c_char_p
    count = len(pointers)
    error = function(
        (ctypes.c_void_p * max(1, count))(*pointers), kinds.encode(), (ctypes.c_uint * max(1, count))(*sizes), count,
        ctypes.byref(options),
    )  # fmt: skip
    for guard in guarded.values():
        guard.give_back()
    if touched is not None:
        for region in options.regions[: len(regions)]:
            most = touched.setdefault((region.low, region.bytes), [0, 0])
            most[:] = max(most[0], region.loaded), max(most[1], region.stored)
    if error:
        raise KernelFault(f"{kernel}: {_readable(error.decode(), module, names)}")
    return {name: getattr(options.counts, name) for name in COUNTS}


def _readable(message: str, module: Module, names: tuple[str, ...]) -> str:
    """A fault with the names of arguments and the line of the source."""
    message = re.sub(r" code=0x([0-9a-f]+)", lambda m: f" at {module.line_of(int(m[1], 16))}", message)
    return re.sub(r"argument (\d+)", lambda m: names[int(m[1])] if int(m[1]) < len(names) else m[0], message)


# ----- the backend "cupy" on the CPU -------------------------------------------------------------------------------

#: An H100 with few multiprocessors: what a GPU shares out among many blocks, a few blocks do in several turns, so that
#: small arrays reach the turns.
SMALL = replace(TARGETS["sm_90"], multiprocessors=2)


@dataclass
class Launched:
    """What ran inside an `on_cpu` block.

    Attributes:
        kernels: names, in order.
        sources: the sources that they were in.
        counts: what was counted of each launch.
        touched: see `launch`.
        fresh: where requests are counted, every array that was made: none gets the memory of an earlier one.
    """

    kernels: list[str] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    counts: list[dict[str, int]] = field(default_factory=list)
    touched: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    fresh: list[Array] = field(default_factory=list)

    def total(self, name: str) -> int:
        """A count of all launches together."""
        return sum(c[name] for c in self.counts)


def _poisoned(shape: tuple[int, ...], dtype: str) -> Array:
    """A fresh array full of NaN, or of -1 (True of bool)."""
    fresh = np.empty(shape, cupy_gpu.numpy_dtype(dtype))
    fresh.fill(np.nan if "float" in dtype else True if dtype == "bool" else np.array(-1).astype(fresh.dtype))
    return fresh


#: (order, seed) of the threads in a block and of the blocks; the first is what the others are compared with.
ORDERS = (("forward", 0), ("reverse", 0), ("random", 1))
#: A kernel of a source (with its constants) runs in every order until it did so often with several blocks and warps.
SHOWN = 4
_shown: Counter[tuple[Source, str]] = Counter()


def in_every_order(
    kernel: str, arguments: tuple[Any, ...], once: Callable[[int], dict[str, int]], numbers: list[int]
) -> dict[str, int]:
    """Run a launch in several orders from the same memory: it must leave the same bits.

    Args:
        kernel: its name.
        arguments: its arguments.
        once: ``once(number)`` runs it in the order of this number, see `order_number`.
        numbers: the orders.

    Returns:
        what `once` returned first.

    Raises:
        KernelFault: other bits in another order.
    """
    arrays = [a for a in arguments if isinstance(a, np.ndarray) and a.flags.writeable]
    before = [a.copy(order="K") for a in arrays]
    counts = once(numbers[0])
    after = [a.tobytes() for a in arrays]
    for number in numbers[1:]:
        for array, old in zip(arrays, before):
            array[...] = old
        once(number)
        for i, (array, bits) in enumerate(zip(arrays, after)):
            if array.tobytes() != bits:
                found = f"writeable array {i} has other bits in order {number} than in {numbers[0]}"
                raise KernelFault(f"{kernel}: {found}")
    return counts


@contextmanager
def on_cpu(check: str = "full", order: str = "forward", seed: int = 0, target: Target = SMALL) -> Iterator[Launched]:
    """The backend "cupy" takes NumPy arrays (and torch tensors on the CPU) inside the block, and is first in line.

    Args:
        check: "full" watches memory, and runs each kernel of a source in every order of threads the first times; "fast"
            is quicker and does not; "prof" watches memory and counts sectors and turns.
        order: of the threads in a block, and of the blocks: "forward", "reverse" or "random".
        seed: of the random order.
        target: what tiles are chosen for.

    Yields:
        what is launched.
    """
    launched = Launched()
    numbers = list(dict.fromkeys((order_number(order, seed), *(order_number(*o) for o in ORDERS))))

    def run(
        source: Source, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...],
        shared: int,
    ) -> None:  # fmt: skip
        names = tuple(p.name for p in source.signature(kernel).parameters)
        module = compiled(source, "fast" if check == "fast" else "full")
        launched.kernels.append(kernel)
        launched.sources.append(source)

        def once(number: int) -> dict[str, int]:
            return launch(
                module, kernel, grid, block, arguments, shared, number, check == "prof", names,
                touched=launched.touched,
            )  # fmt: skip

        if check != "full" or _shown[source, kernel] >= SHOWN:
            launched.counts.append(once(numbers[0]))
            return
        launched.counts.append(in_every_order(kernel, arguments, once, numbers))
        _shown[source, kernel] += math.prod(grid) > 1 and math.prod(block) > 32

    def allocate(shape: tuple[int, ...], dtype: str) -> Array:
        made = _poisoned(shape, dtype)
        if check == "prof":
            launched.fresh.append(made)
        return made

    real = backends.BACKENDS["cupy"]
    others = {n: b for n, b in backends.BACKENDS.items() if n != "cupy"}
    here = replace(real, devices=("cpu", "cuda"), missing=lambda: None, arrays="numpy")
    plans = {op: dict(op.plans) for op in OPS.values()}
    for op in plans:
        op.plans.clear()
    _set_backends({"cupy": here, **others})
    try:
        with cupy_gpu.elsewhere(run, target, allocate):
            yield launched
    finally:
        _set_backends({n: real if n == "cupy" else others[n] for n in ORDER})
        for op, before in plans.items():
            op.plans.clear()
            op.plans.update(before)


ORDER = tuple(backends.BACKENDS)


def _set_backends(table: dict[str, backends.Backend]) -> None:
    backends.BACKENDS.clear()
    backends.BACKENDS.update(table)


__all__ = ["KernelFault", "Launched", "launch", "on_cpu", "typed_arguments"]
