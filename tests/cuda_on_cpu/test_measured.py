"""What the CUDA C++ kernels ask of memory, counted while they run on the CPU, is what the algorithm needs.

Each op's cases with the tag "gpu" (every size a multiple of vectors), forward and backward: the bytes of its arrays
that are touched are all of those that the algorithm reads and writes; and in each launch by itself warps ask for no
more sectors of 32 bytes than the same bytes side by side have, and shared memory serves them without conflicts of
banks. New ops are found by themselves, and those without such a case are missed.

What is not aligned, and so not among the cases: images in planes, (N, C, H, W), whose rows are no whole sectors, or
are longer than a warp beside padding, or whose windows go by steps; and images in planes beside weights or gradients in
vectors of channels. Neighbours of a warp then begin anywhere, or lie apart, and each sector is asked for by several
taps; caches, which are not counted, keep it from coming twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kernels
from kernels.backends import BACKENDS, load
from kernels.case import Case
from kernels.op import OPS
from tests.cuda_on_cpu import helpers, test_recurrence
from tests.cuda_on_cpu.helpers import on_cpu
from tests.support import matrix
from tests.support.cuda_cpu.run import Launched

pytestmark = helpers.needs_harness

#: Sectors and turns may be so many times the least ones.
SLACK = 1.1

#: Ops that read only what indices name.
BY_INDEX = ("embedding",)
#: Ops whose products are cuBLAS's, so that what these touch is not seen.
BY_CUBLAS = ("linear", "linear_cross_entropy")
#: Kernels that are held to less, and why: a search in what indices name goes where their values send it.
SEARCHES = ("bounds_of_rows",)
#: Inputs that are kept for other backends' derivatives; this one has the output or the sums.
UNREAD = ("bias",)
#: Where ops are measured that have a path for each size: every path, in a test of its own.
ELSEWHERE = dict.fromkeys(("rnn_layer", "lstm_layer", "gru_layer"), test_recurrence)


def _on_cupy(op: str) -> bool:
    return load(OPS[op].family, BACKENDS["cupy"]) and "cupy" in OPS[op].implementations


NAMES = tuple(op for op in OPS if _on_cupy(op))
CASES = matrix.case_parameters(tuple(c for op in NAMES for c in matrix.cases_of(op, "gpu")))


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
    there = (*(a for n, a in saved.items() if n not in UNREAD), *incoming, *gradients)
    return {
        "forward": (forward, (*captured.inputs, *results), problem.bytes_moved()),
        "backward": (backward, there, sum(a.nbytes for a in there if a is not None)),
    }


def wasteful(launched: Launched) -> list[str]:
    """Of each launch what it asks for beyond the slack."""
    complaints = []
    for kernel, counts in zip(launched.kernels, launched.counts, strict=True):
        for kind in ("load", "store"):
            sectors, least = counts[f"{kind}_sectors"], counts[f"{kind}_least"]
            if sectors > SLACK * least and kernel not in SEARCHES:
                complaints.append(f"{kernel}: {sectors} sectors for {kind}s that need {least}")
            turns, least = counts[f"shared_{kind}_turns"], counts[f"shared_{kind}_least"]
            if turns > SLACK * least:
                complaints.append(f"{kernel}: {turns} turns of shared memory for {kind}s that need {least}")
    return complaints


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("case", CASES)
def test_memory_is_asked_for_what_the_algorithm_needs(case: Case, dtype: str):
    complaints = []
    for name, (launched, arrays, needed) in passes(case, dtype).items():
        assert launched.kernels
        touched = touched_bytes(launched, arrays)
        if touched > needed or (touched < needed and case.op not in (*BY_INDEX, *BY_CUBLAS)):
            complaints.append(f"{name}: {touched} bytes touched, the algorithm needs {needed}")
        complaints += [f"{name}: {c}" for c in wasteful(launched)]
    helpers.report(complaints)


def test_every_op_is_measured():
    measured = {case.values[0].op for case in CASES} | set(ELSEWHERE)
    assert measured == set(NAMES)
    assert all(hasattr(module, "test_whole_sectors_and_no_conflicts_of_banks") for module in ELSEWHERE.values())


def test_waste_is_seen():
    """Images in planes read by every second pixel: half of each sector."""
    x, weight = helpers.numbers(1, 8, 16, 32), helpers.numbers(32, 8, 1, 1)
    with on_cpu("prof") as launched:
        kernels.conv2d(x, weight, stride=2, backend="cupy")
    (complaint,) = wasteful(launched)
    assert complaint.startswith("convolve: ") and "sectors for loads" in complaint
