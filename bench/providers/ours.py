"""Our kernels through their public functions, on torch tensors as PyTorch's own get them."""

from __future__ import annotations

import kernels
from bench.providers.provider import Call, Unsupported, missing_package
from bench.providers.tensors import TORCH_POOL, explain_on_tensors, tensor_call
from bench.workload import Workload


class Ours:
    """This library, on the backend that it chooses by itself."""

    name = "ours"
    title = "ours"

    def missing(self) -> str | None:
        """Without Numba there is nothing to measure."""
        return missing_package("numba", "torch")

    def prepare(self, workload: Workload, threads: int) -> Call:
        """The public function of the op."""
        explanation = explain_on_tensors(workload)
        if explanation.chosen == "reference":
            reasons = (reason for c in explanation.candidates if c.backend.name == "numba" for reason in c.reasons)
            raise Unsupported(f"only the reference runs it: {'; '.join(reasons)}")
        return in_its_pool(tensor_call(getattr(kernels, workload.case.op), workload), explanation.chosen or "")


def in_its_pool(call: Call, note: str) -> Call:
    """A call of our kernels with the thread pool that they run on."""
    call.run()  # Compiles; the thread pool is known afterwards.
    from kernels.runtime.threads import threading_layer

    layer = threading_layer()
    pool = TORCH_POOL if layer is None or "torch" in layer else f"ours, {layer}"
    return Call(call.run, call.answer, pool, call.checked, note)
