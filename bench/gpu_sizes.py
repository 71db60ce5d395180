"""Cases of sizes that GPUs are used for: the calls of the kernel report (kernels/gpu_workloads.py).

Their numbers are drawn on the GPU, where that takes no time; as NumPy arrays they have a shape and no contents.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bench import selection
from kernels import RelativeALiBi, RelativeShaw, RelativeT5
from kernels.case import Case
from kernels.gpu_workloads import WORKLOADS, Workload
from kernels.op import OPS

Array = np.ndarray[Any, Any]
_RELATIVE = ("relative_kind", "relative_limit", "bidirectional")


@dataclass(frozen=True)
class Sized(Case):
    """A workload of the kernel report as a case.

    Attributes:
        dtype: the one that it is made for.
        integers: shape of each integer array, by argument name.
        booleans: shape of each bool array, by argument name.
        relative: kind of relative position term, whose numbers are in shapes under that name, and its bound.
    """

    dtype: str = "float32"
    integers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    booleans: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    relative: tuple[str, int, bool] | None = None

    def build(self, dtype: str = "float32", seed: int = 0) -> dict[str, Any]:
        """All arguments of the call; floating arrays have memory that nobody has touched."""
        rng = np.random.default_rng(seed)
        made: dict[str, Any] = {name: self._empty(shape, dtype) for name, shape in self.shapes.items()}
        made |= {name: np.asarray(rng.integers(0, self._below(name), shape)) for name, shape in self.integers.items()}
        made |= {name: np.asarray(rng.random(shape) < 0.9) for name, shape in self.booleans.items()}
        if self.relative is not None:
            made["relative"] = self._term(made["relative"])
        return made | dict(self.arguments)

    def tensors(self, built: Mapping[str, Any], device: str) -> dict[str, Any]:
        """The arrays of `build` as tensors on a device, floating ones with standard normal numbers in float32;
        weights are divided by the square root of how many are summed."""
        generator = torch.Generator(device).manual_seed(0)
        made: dict[str, Any] = {}
        for name, value in built.items():
            if name in self.shapes:
                shape = self.shapes[name]
                drawn = torch.randn(shape, generator=generator, device=device) * self._spread(name)
                last = self.channels_last and len(shape) == 4
                made[name] = drawn.contiguous(memory_format=torch.channels_last) if last else drawn
                if name == "relative":
                    made[name] = self._term(drawn.abs() if self.relative and self.relative[0] == "alibi" else drawn)
            elif isinstance(value, np.ndarray):
                made[name] = torch.from_numpy(value).to(device)
        return made

    def _empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        if not (self.channels_last and len(shape) == 4):
            return np.empty(shape, dtype)
        n, c, h, w = shape
        return np.empty((n, h, w, c), dtype).transpose(0, 3, 1, 2)

    def _below(self, name: str) -> int:
        """What the indices of an integer array are smaller than."""
        if name == "lengths":
            return (self.shapes["key"][2] if "key" in self.shapes else self.shapes["x"][0]) + 1
        if self.op == "embedding":
            return self.shapes["weight"][0]
        if self.op == "linear_cross_entropy":
            return self.shapes["linear_weight"][0]
        return self.shapes["input"][1] if "input" in self.shapes else 2**31

    def _spread(self, name: str) -> float:
        weight = self.op != "embedding" and (name.endswith("weight") or name.startswith("w_"))
        shape = self.shapes[name]
        return math.prod(shape[1:]) ** -0.5 if weight and len(shape) > 1 else 1.0

    def _term(self, table: Any) -> Any:
        assert self.relative is not None
        kind, limit, bidirectional = self.relative
        if kind == "shaw":
            return RelativeShaw(table, limit)
        return RelativeT5(table, bidirectional, limit) if kind == "t5" else RelativeALiBi(table)


def _case(workload: Workload) -> Sized:
    op = OPS[workload.op]
    names = [n for n in inspect.signature(op.problem.check).parameters if n not in (*op.inputs, "arguments")]
    given = dict(zip(names or op.attributes, workload.attributes, strict=True))
    kind, limit, bidirectional = (given.pop(name, None) for name in _RELATIVE)
    relative = None if kind is None else (str(kind), int(limit), bool(bidirectional))
    return Sized(
        workload.op, workload.id.removeprefix(workload.op).strip(), workload.shapes, given, ("gpu",),
        workload.channels_last, dtype=workload.dtype, integers=workload.integers, booleans=workload.booleans,
        relative=relative,
    )  # fmt: skip


def choose(patterns: Sequence[str] = (), texts: Sequence[str] = ()) -> tuple[tuple[Sized, ...], list[str]]:
    """The workloads whose op matches one of `patterns` and whose name contains one of `texts`, and what finds none."""
    ops, complaints = selection.choose_ops(patterns, tuple(dict.fromkeys(w.op for w in WORKLOADS)))
    made, without_text = selection.containing([_case(w) for w in WORKLOADS if w.op in ops], texts, ops)
    return tuple(made), complaints + without_text
