"""Whether automatic choice takes the faster backend: our kernels beside torch's own function on tensors, case by case.

The limits below which a call is left to torch stand in the kernels (`Implementation.torch_below`), as numbers: nothing
is timed when a call chooses. Here they are put to the test on the machine at hand, through the public functions, and
the figures say where a limit belongs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import kernels
from bench import timing
from bench.providers.tensors import TORCH_POOL, explain_on_tensors, tensor_call
from bench.timing import Contestant, Quartiles
from bench.workload import Workload
from kernels.case import all_cases
from kernels.op import OPS, Problem

#: A choice that costs less than this much is not called wrong: what a quiet machine shows twice in a row.
BAND = 1.05


@dataclass(frozen=True)
class Choice:
    """One call that may be left to torch: the seconds of both ways, and which one is taken.

    Attributes:
        name: the case.
        passes: "forward" or "training".
        work: operations of the forward pass, what limits are compared with.
        limit: the limit that holds for it.
        numba, torch: seconds a call.
        gain: how many times as long numba took as torch, round by round.
        chosen: the backend that runs it.
    """

    name: str
    passes: str
    work: int
    limit: int
    numba: Quartiles
    torch: Quartiles
    gain: Quartiles
    chosen: str

    @property
    def lost(self) -> float:
        """How many times as long the chosen way takes as the other one; at most 1 where it is the faster one."""
        return 1 / self.gain.median if self.chosen == "torch" else self.gain.median


def measure(op: str, training: bool, seconds: float, dtype: str = "float32") -> Iterator[Choice]:
    """Every case of an op that torch could be left, from little work to much, with one thread.

    Args:
        op: its name.
        training: forward and backward; else forward alone.
        seconds: for each case.
        dtype: of the numbers.
    """
    import torch

    function = getattr(kernels, op)
    found: list[tuple[Workload, Problem]] = []
    for case in all_cases():
        workload = Workload(case, dtype, training=training)
        if case.op != op or (training and not workload.wanted):
            continue
        problem = explain_on_tensors(workload).problem
        stock = OPS[op].implementations.get("torch")
        if not problem.empty and stock is not None and not stock.why_not(problem) and stock.direct(problem) is not None:
            found.append((workload, problem))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for workload, problem in sorted(found, key=lambda pair: pair[1].flops()):
            runs = {
                name: Contestant(tensor_call(functools.partial(function, backend=name), workload).run, TORCH_POOL)
                for name in ("numba", "torch")
            }
            samples = timing.in_turn(runs, seconds, park=False)
            yield Choice(
                workload.case.name,
                workload.passes,
                problem.flops(),
                OPS[op].implementations["numba"].torch_below(problem),
                Quartiles.of(samples["numba"]),
                Quartiles.of(samples["torch"]),
                timing.ratios(samples["numba"], samples["torch"]),
                explain_on_tensors(workload).chosen or "",
            )
    finally:
        torch.set_num_threads(threads)
