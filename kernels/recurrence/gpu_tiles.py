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
    """

    path: str
    rows: int
    units: int
    inner: int
    warps: int
    stages: int


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
        return RecurrenceTile(path, LEAST, most, most, _warps(LEAST * most, item, target), 1)
    if not tensor_cores:
        side = 32 if item == 4 else LEAST
        return RecurrenceTile(path, LEAST, min(side, most), side, 4, 2)
    line = 128 // item
    if path == "stepwise":
        rows = min(_width(p.batch), 64)
        return RecurrenceTile(path, rows, 32, line, min(_warps(rows * 32, item, target), 8), 2 if target.amd else 3)
    # With one gate at a time a step's products are short: larger tiles of them are on their way at once.
    several = not backward and p.gates > 1
    units, inner = (line, line) if several else (2 * line, 2 * line)
    if units > most:
        units, inner = most, line
    warps = _warps(LEAST * units, item, target)
    return RecurrenceTile(path, LEAST, units, inner, warps, 2 if target.amd else 3)


def _width(size: int) -> int:
    return max(power_of_two(size), LEAST)


def _warps(elements: int, itemsize: int, target: Target) -> int:
    """Warps for a tile: one vector of it for each thread."""
    return min(max(elements * itemsize // (VECTOR * target.warp), 1), 1024 // target.warp)


def registers_of(tile: RecurrenceTile, target: Target) -> int:
    """Registers that a thread may have, so that one program fits on a multiprocessor.

    Left to itself NVIDIA's assembler spills some to make room for a second one, which is seldom there.
    """
    return min(255, target.registers // (tile.warps * target.warp))
