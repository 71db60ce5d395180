"""Who touched which byte: bounds and races of a Triton kernel that runs in the interpreter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_NOBODY, _SEVERAL = -1, -2
_NEVER = -1

#: Bytes between two parts of a view that are not kept as gaps, one by one.
LONGEST_GAP = 1 << 26


class KernelFault(Exception):
    """A kernel touched memory that it may not, or two of its programs touched the same."""


@dataclass
class Shadow:
    """What is known of one array argument's memory.

    Attributes:
        name: the kernel's parameter.
        low: address of its first byte.
        valid: for each byte from there whether it belongs to the array; the gaps of a strided view do not.
        writer, reader: for each byte the program that wrote or read an element that begins there.
        written, read: for each byte the stretch between two barriers in which that was, see `Watch`.
    """

    name: str
    low: int
    valid: Array
    writer: Array = field(init=False)
    reader: Array = field(init=False)
    written: Array = field(init=False)
    read: Array = field(init=False)

    def __post_init__(self) -> None:
        self.writer = np.full(self.valid.size, _NOBODY, np.int32)
        self.reader = np.full(self.valid.size, _NOBODY, np.int32)
        self.written = np.full(self.valid.size, _NEVER, np.int32)
        self.read = np.full(self.valid.size, _NEVER, np.int32)

    @classmethod
    def of(cls, name: str, tensor: Any) -> list[Shadow]:
        """The shadows of a tensor on the CPU: one, or one for each part of a view with gaps of many bytes."""
        item = tensor.element_size()
        for axis, (extent, stride) in enumerate(zip(tensor.shape, tensor.stride())):
            if stride * item > LONGEST_GAP and extent > 1:
                return [shadow for part in tensor.unbind(axis) for shadow in cls.of(name, part)]
        offsets = np.zeros(1, np.int64)
        for extent, stride in zip(tensor.shape, tensor.stride()):
            steps = np.arange(extent if stride else min(extent, 1)) * (stride * item)
            offsets = (offsets[:, None] + steps).ravel()
        if offsets.size == 0:
            return [cls(name, tensor.data_ptr(), np.zeros(0, bool))]
        low = int(offsets.min())
        valid = np.zeros(int(offsets.max()) - low + item, bool)
        for byte in range(item):
            valid[offsets - low + byte] = True
        return [cls(name, tensor.data_ptr() + low, valid)]


@dataclass
class Watch:
    """The memory of one launch.

    A program's own threads are in no order either until they meet at a barrier: what one stores, another one may load
    before or after, and where a tile is smaller than the block, several threads load an element that one of them
    stores. So between two barriers (`tl.debug_barrier`) a program may not touch a place twice, unless to load it.

    Attributes:
        shadows: of its array arguments.
        program: number of the program that runs, of `place`.
        stretch: counts programs and their barriers.
        touched: bytes loaded, stored and updated by atomics, each access counted.
    """

    shadows: list[Shadow]
    program: int = 0
    place: tuple[int, int, int] = (0, 0, 0)
    stretch: int = 0
    touched: dict[str, int] = field(default_factory=lambda: {"load": 0, "store": 0, "atomic": 0})

    def begin(self, program: int, place: tuple[int, int, int]) -> None:
        """A program starts."""
        self.program, self.place = program, place
        self.stretch += 1

    def barrier(self) -> None:
        """All threads of the program meet."""
        self.stretch += 1

    def touch(self, pointers: Any, mask: Any, kind: str) -> None:
        """Note an access; raise `KernelFault` for one that is wrong. `kind`: "load", "store" or "atomic"."""
        addresses, wanted = np.broadcast_arrays(pointers.data, True if mask is None else mask.data)
        addresses = addresses[wanted].astype(np.int64).ravel()
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        self.touched[kind] += addresses.size * size
        left = np.ones(addresses.shape, bool)
        for shadow in self.shadows:
            offsets = addresses - shadow.low
            inside = left & (offsets >= 0) & (offsets + size <= shadow.valid.size)
            if inside.any():
                self._note(shadow, offsets[inside], size, kind)
                left &= ~inside
        if left.any():
            bad = int(addresses[left][0])
            near = min(self.shadows, key=lambda s: min(abs(bad - s.low), abs(bad - s.low - s.valid.size)))
            raise KernelFault(
                f"out of bounds: {kind} of {int(left.sum())} element(s) by program {self.place}, "
                f"byte {bad - near.low} of {near.name!r} ({near.valid.size} bytes)"
            )

    def _note(self, shadow: Shadow, offsets: Array, size: int, kind: str) -> None:
        if not (shadow.valid[offsets].all() and shadow.valid[offsets + size - 1].all()):
            raise KernelFault(f"out of bounds: {kind} in a gap of the strided {shadow.name!r} by program {self.place}")
        writer, reader, here = shadow.writer[offsets], shadow.reader[offsets], self.program
        others = (writer != _NOBODY) & (writer != here)
        if kind == "store":
            if np.unique(offsets).size != offsets.size:
                raise KernelFault(f"race: program {self.place} stores twice at once to an element of {shadow.name!r}")
            if others.any():
                raise KernelFault(f"race: programs {writer[others][0]} and {here} write the same of {shadow.name!r}")
            if ((reader != _NOBODY) & (reader != here)).any():
                raise KernelFault(f"race: program {here} writes what another one has read of {shadow.name!r}")
            self._forbid(shadow.read[offsets], "stores to", "loaded", shadow)
            self._forbid(shadow.written[offsets], "stores to", "stored", shadow)
            shadow.writer[offsets] = here
            shadow.written[offsets] = self.stretch
        elif kind == "load":
            if others.any():
                raise KernelFault(f"race: program {here} reads what {writer[others][0]} wrote of {shadow.name!r}")
            shadow.reader[offsets] = np.where((reader == _NOBODY) | (reader == here), here, _SEVERAL)
            self._forbid(shadow.written[offsets], "loads", "stored", shadow)
            shadow.read[offsets] = self.stretch

    def _forbid(self, before: Array, does: str, did: str, shadow: Shadow) -> None:
        if (before == self.stretch).any():
            raise KernelFault(
                f"race: program {self.place} {does} what it {did} of {shadow.name!r}, with no barrier between"
            )
