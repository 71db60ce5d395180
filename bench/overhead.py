"""What Python costs a call: our public functions beside the kernel they end in, on inputs so small that it shows.

"Kernel" is the backend's own function given a problem that is checked already: the compiled code and the allocation of
its results. What a public call takes beyond it is ours: arguments, dispatch, views of tensors, autograd's binding.
torch's own op stands beside it, with all of its C++; its time in training holds the autograd engine's, which ours holds
too. Where automatic choice leaves the call to torch, the last column shows what we add to torch's op.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import kernels
from bench import timing
from bench.providers import eager
from bench.providers.tensors import TORCH_POOL, explain_on_tensors, tensor_call
from bench.timing import Contestant, Quartiles
from bench.workload import Workload
from kernels import dispatch
from kernels.case import Case, all_cases
from kernels.op import OPS, Implementation, Problem

#: What is timed, in the order of the table.
COLUMNS = (
    "kernel",
    "numpy",
    "torch",
    "torch's op",
    "automatic",
    "kernel, training",
    "torch, training",
    "torch's op, training",
    "automatic, training",
)
#: Which column is our call and which is what runs in it.
PAIRS = {
    "numpy": "kernel",
    "torch": "kernel",
    "automatic": "torch's op",
    "torch, training": "kernel, training",
    "automatic, training": "torch's op, training",
}


@dataclass(frozen=True)
class Cost:
    """Seconds a call of one op, by column; `beyond` is what our calls take more than the kernel, round by round."""

    op: str
    name: str
    seconds: dict[str, Quartiles]
    beyond: dict[str, Quartiles]


def small_case(op: str) -> Case | None:
    """The op's first ordinary case that has numbers: families list the plainest first."""
    cases = [case for case in all_cases("ci") if case.op == op]
    return next((case for case in cases if all(np.prod(shape) for shape in case.shapes.values())), None)


class _Seen(BaseException):
    """Leaves a public function at the point where it would run."""


def _inputs_of(workload: Workload) -> tuple[Any, ...]:
    """The NumPy inputs that the public function hands to the op, in its order."""
    seen: list[tuple[Any, ...]] = []

    def look(_: Any, inputs: tuple[Any, ...], *rest: Any) -> Any:
        seen.append(inputs)
        raise _Seen

    with dispatch.inspecting(look), contextlib.suppress(_Seen):
        getattr(kernels, workload.case.op)(**workload.arguments)
    return seen[0]


def _implementation(explanation: kernels.Explanation) -> Implementation | None:
    found = (c.implementation for c in explanation.candidates if c.backend.name == explanation.chosen)
    return next(found, None)


def _kernels(workload: Workload) -> dict[str, Callable[[], Any]]:
    """The bare kernel: forward, and forward and backward with what it keeps."""
    explanation = workload.explanation
    implementation = _implementation(explanation)
    if implementation is None or explanation.chosen != "numba":
        return {}
    inputs, problem, forward = _inputs_of(workload), explanation.problem, implementation.forward
    found: dict[str, Callable[[], Any]] = {"kernel": lambda: forward(problem, *inputs)}
    if not workload.training or implementation.backward is None:
        return found
    training: Problem = explain_on_tensors(workload).problem
    backward, op = implementation.backward, OPS[workload.case.op]
    forms = training.results()
    incoming: list[Any] = [g.reshape(form.shape) for g, form in zip(workload.incoming, forms) if form is not None]
    # An op may declare more differentiable results than this call returns.
    incoming += [None] * (op.differentiable_results - len(incoming))
    names = (*op.inputs, *op.results)
    saved = training.saved()

    def train() -> Any:
        known = dict(zip(names, (*inputs, *forward(training, *inputs))))
        return backward(training, *incoming, **{name: known[name] for name in saved})

    return found | {"kernel, training": train}


def contestants(case: Case, dtype: str = "float32") -> dict[str, Contestant]:
    """Every column that this case has."""
    forward, training = Workload(case, dtype), Workload(case, dtype, training=True)
    automatic = getattr(kernels, case.op)
    function = functools.partial(automatic, backend="numba")
    runs = _kernels(training)
    arguments = forward.arguments
    runs["numpy"] = lambda: function(**arguments)
    for workload, suffix in ((forward, ""), (training, ", training")):
        if workload.training and not workload.wanted:
            continue
        runs[f"torch{suffix}"] = tensor_call(function, workload).run
        stock = eager.torch_function(workload)
        if stock is not None:
            runs[f"torch's op{suffix}"] = tensor_call(stock, workload).run
            if explain_on_tensors(workload).chosen == "torch":
                runs[f"automatic{suffix}"] = tensor_call(automatic, workload).run
    return {name: Contestant(runs[name], TORCH_POOL) for name in COLUMNS if name in runs}


def measure(op: str, seconds: float, dtype: str = "float32") -> Cost | None:
    """The costs of one op; None for an op without an ordinary case."""
    import torch

    case = small_case(op)
    if case is None:
        return None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        samples = timing.in_turn(contestants(case, dtype), seconds / len(COLUMNS), park=False)
    finally:
        torch.set_num_threads(threads)
    beyond = {
        name: Quartiles.of([a - b for a, b in zip(samples[name], samples[kernel])])
        for name, kernel in PAIRS.items()
        if name in samples and kernel in samples
    }
    return Cost(op, case.name, {name: Quartiles.of(times) for name, times in samples.items()}, beyond)
