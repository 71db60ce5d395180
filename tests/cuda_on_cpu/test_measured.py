"""What the CUDA C++ kernels ask of memory, counted while they run on the CPU, is what the algorithm needs.

Each op's cases with the tag "gpu" (every size a multiple of vectors), forward and backward: the bytes of its arrays
that are touched are all of those that the algorithm reads and writes; warps ask for no more sectors of 32 bytes than
the same bytes side by side have; and shared memory serves them without conflicts of banks. New ops are found by
themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels.backends import BACKENDS, load
from kernels.case import Case
from kernels.op import OPS
from tests.cuda_on_cpu import helpers
from tests.cuda_on_cpu.helpers import on_cpu
from tests.support import matrix
from tests.support.cuda_cpu.run import Launched

pytestmark = helpers.needs_harness

#: Sectors and turns may be so many times the least ones.
SLACK = 1.1

#: Ops that read only what indices name.
BY_INDEX = ("embedding",)


def _on_cupy(op: str) -> bool:
    return load(OPS[op].family, BACKENDS["cupy"]) and "cupy" in OPS[op].implementations


CASES = matrix.case_parameters(tuple(c for op in OPS if _on_cupy(op) for c in matrix.cases_of(op, "gpu")))


def _memory(array: Any) -> tuple[int, int]:
    low, high = np.lib.array_utils.byte_bounds(array)
    return low, high - low


def touched_bytes(launched: Launched, arrays: tuple[Any, ...]) -> int:
    """Bytes of these arrays that were loaded or stored, each once; scratch is nobody's."""
    found = {_memory(a) for a in arrays if a is not None and a.size}
    return sum(sum(counts) for memory, counts in launched.touched.items() if memory in found)


def passes(case: Case, dtype: str) -> dict[str, tuple[Launched, tuple[Any, ...], int]]:
    """By pass: what ran, the arrays that it reads and writes, and the bytes of them all."""
    arguments = helpers.in_dtype(case.build("float32"), dtype)
    captured = matrix.capture(case.op, **arguments)
    problem, op = captured.problem(True), captured.op
    implementation = op.implementations["cupy"]
    assert implementation.why_not(problem) == [] and implementation.backward is not None
    with on_cpu("prof") as forward:
        results = implementation.forward(problem, *captured.inputs)
    known = dict(zip((*op.inputs, *op.results), (*captured.inputs, *results), strict=True))
    saved = {name: known[name] for name in problem.saved()}
    rng = np.random.default_rng(1)
    # As gradients come from the next layer: laid out as the results are.
    incoming = [None if r is None else np.empty_like(r) for r in results[: op.differentiable_results]]
    for gradient in incoming:
        if gradient is not None:
            gradient[...] = rng.standard_normal(gradient.shape)
    with on_cpu("prof") as backward:
        gradients = implementation.backward(problem, *incoming, **saved)
    there = (*saved.values(), *incoming, *gradients)
    return {
        "forward": (forward, (*captured.inputs, *results), problem.bytes_moved()),
        "backward": (backward, there, sum(a.nbytes for a in there if a is not None)),
    }


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("case", CASES)
def test_memory_is_asked_for_what_the_algorithm_needs(case: Case, dtype: str):
    complaints = []
    for name, (launched, arrays, needed) in passes(case, dtype).items():
        touched, total = touched_bytes(launched, arrays), launched.total
        if touched > needed or (touched < needed and case.op not in BY_INDEX):
            complaints.append(f"{name}: {touched} bytes touched, the algorithm needs {needed}")
        for kind in ("load", "store"):
            sectors, least = total(f"{kind}_sectors"), total(f"{kind}_least")
            if sectors > SLACK * least:
                complaints.append(f"{name}: {sectors} sectors for {kind}s that need {least}")
            turns, least = total(f"shared_{kind}_turns"), total(f"shared_{kind}_least")
            if turns > SLACK * least:
                complaints.append(f"{name}: {turns} turns of shared memory for {kind}s that need {least}")
    helpers.report(complaints)
