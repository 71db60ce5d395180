"""Which way a recurrent layer takes through its steps in Triton, and on which tile: pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from kernels.recurrence.plan_gpu import recurrent_bytes
from kernels.recurrence.problem import Layer
from kernels.runtime.row_tiles import power_of_two
from kernels.runtime.targets import Target

#: The ways, see plan_gpu.
PATHS = ("held", "streamed", "stepwise")
#: The least side of a matrix product on tensor cores that Triton takes; the rows of a tile.
LEAST = 16
#: Bytes of a direction's weights that are held at most: larger ones leave no room for anything beside them.
HELD_BYTES = 1 << 17
#: The widest layer that AMD's registers hold; its local memory is small.
HELD_ON_AMD = 64
#: Bytes of a direction's recurrent weights above which a multiprocessor would read too long at each step: one takes
#: about 64 bytes a clock from the L2 cache, which makes 8192 clocks, as long as two or three launches.
STREAMED_BYTES = 1 << 19
#: Bytes of a thread's loads and stores.
VECTOR = 16


@dataclass(frozen=True)
class RecurrenceTile:
    """What a program works on at a time.

    Attributes:
        path: one of `PATHS`.
        rows: rows of the batch.
        units: units of each gate; of a layer whose weights are held, all of them.
        inner: terms of a product's sums at a time.
        warps, stages: of a program.
        registers: that NVIDIA's assembler is told a thread may have; None leaves it to itself.
    """

    path: str
    rows: int
    units: int
    inner: int
    warps: int
    stages: int
    registers: int | None = None


_override: ContextVar[RecurrenceTile | None] = ContextVar("recurrence_tile", default=None)


@contextmanager
def use_recurrence_tile(tile: RecurrenceTile) -> Iterator[None]:
    """Take this tile for every pass of a recurrent layer inside the block."""
    token = _override.set(tile)
    try:
        yield
    finally:
        _override.reset(token)


def path_of(p: Layer, target: Target, *, tensor_cores: bool) -> str:
    """The way through the steps.

    Args:
        p: the layer.
        target: the GPU.
        tensor_cores: whether products go to tensor cores: half precision, or float32 as tf32. Other products keep
            their factors in registers many times over, so that no weights can be held.
    """
    if recurrent_bytes(p) > STREAMED_BYTES:
        return "stepwise"
    if not tensor_cores or p.projects:
        return "streamed"
    width = _width(p.units)
    weights = p.gates * width * width * p.x.itemsize
    if target.amd:
        fits = width <= HELD_ON_AMD
    else:
        fits = weights <= HELD_BYTES and weights + LEAST * width * p.x.itemsize <= target.block_shared
    return "held" if fits else "streamed"


def recurrence_tile(p: Layer, target: Target, *, tensor_cores: bool, backward: bool) -> RecurrenceTile:
    """The tile of a pass.

    Args:
        p: the layer.
        target: the GPU.
        tensor_cores: see `path_of`.
        backward: the backward pass, whose products have one gate at a time.

    Raises:
        ValueError: a tile was asked for by `use_recurrence_tile` that cannot hold the layer.
    """
    asked = _override.get()
    if asked is not None:
        if asked.path == "held" and (p.projects or asked.units < p.units):
            raise ValueError(f"use_recurrence_tile: a held tile must have {p.units} units, unprojected, got {asked}")
        return asked
    path = path_of(p, target, tensor_cores=tensor_cores)
    item, most = p.x.itemsize, _width(max(p.units, p.hidden))
    if path == "held":
        # Of float32 sixteen warps spill where a product is three of tf32.
        warps = min(_warps(LEAST * most, item, target), 8 if item == 4 else 16)
        return RecurrenceTile(path, LEAST, most, most, warps, 1, _registers(warps, target, spills="sm"))
    if not tensor_cores:
        units = min(32 if item == 4 else LEAST, most)
        hopper = target.name == "sm_90" and item == 4
        # Of float64 an LSTM spills when it is not told, a GRU when it is; float32 may when it is not.
        registers = _registers(4, target, spills="sm" if item == 4 or p.gates == 4 else "sm_8")
        return RecurrenceTile(path, LEAST, units, LEAST, 4, 1 if hopper else 2, registers)
    line = 128 // item
    stages = 2 if target.amd else 3
    if path == "streamed" and target.name == "sm_90" and not p.projects:
        # Measured on an H100: an LSTM of 256 units in bfloat16 takes 13.5 us a step, 23.3 with 64 units at a time.
        if item == 2:
            # Backward an LSTM with lengths would spill 28 registers on 256 units, which was not measured.
            units = 128 if backward and p.gates == 4 else 256
            return RecurrenceTile(path, LEAST, min(units, most), line, 8, 2)
        units = min(2 * line, most)
        inner = units if backward else line
        return RecurrenceTile(path, LEAST, units, inner, 4, 2, _registers(4, target, "sm"))
    if path == "stepwise":
        rows = min(_width(p.batch), 64)
        if backward and item == 4:
            stages = 1  # its weights lie across the sums: asynchronous copies that turn float32 would be of 32 bits
        # An LSTM of 32 rows in float32 spills with a whole line of each row at a time.
        inner = line // 2 if item == 4 and p.gates == 4 and rows == 32 and not backward else line
        return RecurrenceTile(path, rows, 32, inner, min(_warps(rows * 32, item, target), 8), stages)
    units = inner = line
    if (backward or p.gates == 1) and not p.projects:
        # With one gate at a time a step's products are short: more of them is on its way at once.
        units = inner = 2 * line
    if units > most:
        units, inner = most, line
    warps = max(_warps(LEAST * units, item, target), 4)
    registers = _registers(warps, target, spills="sm") if item == 4 else None
    if item == 4 and p.projects:
        stages = 2  # with three, 16 units spill all the same
    return RecurrenceTile(path, LEAST, units, inner, warps, stages, registers)


def _width(size: int) -> int:
    return max(power_of_two(size), LEAST)


def _warps(elements: int, itemsize: int, target: Target) -> int:
    """Warps for a tile: one vector of it for each thread."""
    return min(max(elements * itemsize // (VECTOR * target.warp), 1), 1024 // target.warp)


def _registers(warps: int, target: Target, spills: str) -> int | None:
    """Registers of a thread where one program has a multiprocessor to itself, for targets that begin with `spills`.

    There NVIDIA's assembler, left to itself, would rather spill some than leave no room for a second program, which is
    seldom there; told so elsewhere, it takes them all and spills too. Found by compiling; so was that on sm_90 products
    of float32 without tensor cores spill with two stages.
    """
    return min(255, target.registers // (warps * target.warp)) if target.name.startswith(spills) else None
