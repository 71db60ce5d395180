"""Named calls of an op that tests, benchmarks and tuning share. Each family lists its own in ``cases.py``."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels.op import OPS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Array = np.ndarray[Any, Any]

#: What a case is for: "ci" small and ordinary, "odd" small and awkward, "bench" of a size that networks use, "gpu"
#: small with every size a multiple of a GPU's vectors, where accesses to memory are counted.
TAGS = ("ci", "odd", "bench", "gpu")


@dataclass(frozen=True)
class Case:
    """One call of the public function `op`.

    Attributes:
        op: name of the public function.
        name: what it shows, unique within the op ("3x3 stride 2").
        shapes: shape of each floating-point input, by argument name; they are filled with standard normal numbers.
        arguments: every other argument by name, as a user writes it.
        tags: some of `TAGS`.
        channels_last: 4-d inputs lie in memory as (N, H, W, C).
        scale: factor on an input's numbers, by argument name.
        make: ``make(rng, dtype)`` returns further arguments (class labels, say).
        derivative: False where the gradient is by definition not the derivative of the result (a padding row's is 0).
    """

    op: str
    name: str
    shapes: Mapping[str, tuple[int, ...]]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ("ci",)
    channels_last: bool = False
    scale: Mapping[str, float] = field(default_factory=dict)
    make: Callable[[np.random.Generator, str], dict[str, Any]] | None = None
    derivative: bool = True

    @property
    def id(self) -> str:
        """Op and name, for test ids and tables."""
        return f"{self.op}: {self.name}"

    def build(self, dtype: str = "float32", seed: int = 0) -> dict[str, Any]:
        """All arguments of the call by name, arrays as NumPy; the same numbers every time."""
        rng = np.random.default_rng(seed)
        built: dict[str, Any] = {}
        for name, shape in self.shapes.items():
            numbers = rng.standard_normal(shape) * self.scale.get(name, 1.0)
            array: Array = np.asarray(numbers, dtype)
            if self.channels_last and array.ndim == 4:
                array = np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
            built[name] = array
        built.update(self.arguments)
        if self.make is not None:
            built.update(self.make(rng, dtype))
        return built


def all_cases(*tags: str) -> tuple[Case, ...]:
    """The cases of every family that carry one of `tags` (all of them without any)."""
    families = dict.fromkeys(op.family for op in OPS.values())
    found: list[Case] = []
    for family in families:
        cases: tuple[Case, ...] = importlib.import_module(f"{family}.cases").CASES
        found += [case for case in cases if not tags or set(tags) & set(case.tags)]
    return tuple(found)
