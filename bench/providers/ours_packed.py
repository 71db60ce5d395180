"""Our kernels with weights packed beforehand, as engines that are given a whole network hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kernels
from bench.providers.ours import in_its_pool
from bench.providers.provider import Call, NothingOfItsOwn, missing_package
from bench.providers.tensors import tensor_call
from bench.workload import Workload

#: What packs an argument, by op and argument.
PACKERS: dict[str, dict[str, Callable[[Any], Any]]] = {"linear": {"weight": kernels.pack_linear}}


class OursPacked:
    """The public functions that take packed weights. Packing is not timed: it is done once, before any call."""

    name = "ours-packed"
    title = "ours, weights packed"

    def missing(self) -> str | None:
        """Without Numba there is nothing to measure."""
        return missing_package("numba", "torch")

    def prepare(self, workload: Workload, threads: int) -> Call:
        """The public function of the op; a weight of one dimension is nothing to pack."""
        op = workload.case.op
        packers = PACKERS.get(op)
        if packers is None or workload.training or any(workload.arguments[name].ndim < 2 for name in packers):
            raise NothingOfItsOwn("no weight to pack")
        return in_its_pool(tensor_call(getattr(kernels, op), workload, prepared=packers), "numba")
