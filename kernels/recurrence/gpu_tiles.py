"""Which way a recurrent layer takes through its steps in Triton, and on which tile: pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from kernels.recurrence.plan_gpu import has_second_product, kind_of, recurrent_bytes
from kernels.recurrence.problem import Layer
from kernels.runtime.row_tiles import power_of_two
from kernels.runtime.targets import Target

#: The ways, see plan_gpu.
PATHS = ("held", "streamed", "stepwise")
#: The least side of a matrix product on tensor cores that Triton takes.
LEAST = 16
#: Units of the widest layer whose weights are held, by bytes of an element.
HELD_UNITS = {2: 64, 4: 32}
#: Bytes of a direction's recurrent weights above which a multiprocessor would read too long at each step: one takes
#: about 64 bytes a clock from the L2 cache, which makes 8192 clocks, as long as two or three launches.
STREAMED_BYTES = 1 << 19


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


def path_of(p: Layer, *, tensor_cores: bool) -> str:
    """The way through the steps.

    Args:
        p: the layer.
        tensor_cores: whether products go to tensor cores: half precision, or float32 as tf32. Other products keep
            their factors in registers many times over, so that no weights can be held.
    """
    if recurrent_bytes(p) > STREAMED_BYTES:
        return "stepwise"
    holds = tensor_cores and p.units <= HELD_UNITS.get(p.x.itemsize, 0) and not p.projects
    return "held" if holds else "streamed"


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
    path = path_of(p, tensor_cores=tensor_cores)
    item = p.x.itemsize
    if path == "held":
        width = max(power_of_two(p.units), LEAST)
        return RecurrenceTile(path, LEAST, width, width, 4, 1)
    most = max(p.units, p.hidden)
    if not tensor_cores:
        units = 32 if path == "streamed" and item == 4 else LEAST
        return RecurrenceTile(path, LEAST, min(units, max(power_of_two(most), LEAST)), LEAST, 4, 2)
    gates = 1 if backward else (2 if kind_of(p) == "gru_before" else p.gates)
    if path == "stepwise":
        return RecurrenceTile(path, LEAST, 32, 128 // item, 4, 3)
    # A line of memory of 128 bytes of each weight; as many units as shared memory holds of two or three stages.
    inner = 128 // item
    units = min(128 if gates == 1 else 64, max(power_of_two(most), LEAST))
    return RecurrenceTile(path, LEAST, units, inner, 4 if units < 64 else 8, 2 if target.amd else 3)


__all__ = ["PATHS", "RecurrenceTile", "has_second_product", "path_of", "recurrence_tile", "use_recurrence_tile"]
