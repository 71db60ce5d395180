"""What Python costs a call: our public functions beside the kernel they end in, on inputs so small that it shows.

"Kernel" is what the backend has prepared for a problem that is checked already, run by addresses, and the allocation of
its results; where it prepares nothing, its own function on arrays. What a public call takes beyond it is ours:
arguments, dispatch, tensors around memory, autograd's binding. "Engine" is torch's autograd around a Function that
computes nothing: it takes the same tensors and makes the same results, and backward hands out gradients that lie ready;
what a training call takes beyond the kernel and the engine is ours. torch's own op stands beside it, with all of its
C++; its time in training holds the engine's. Where automatic choice leaves the call to torch, the last column shows
what we add to torch's op.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import kernels
from bench import timing
from bench.providers import eager
from bench.providers.tensors import TORCH_POOL, explain_on_tensors, tensor_call, tensors_of
from bench.timing import Contestant, Quartiles
from bench.workload import Workload, results_of
from kernels import dispatch
from kernels.arrays import ArraySpec, contiguous_strides
from kernels.case import Case, all_cases
from kernels.op import OPS, Implementation, Problem
from kernels.runtime import by_address
from kernels.runtime.numba_cpu import address

#: What is timed, in the order of the table.
COLUMNS = (
    "kernel",
    "numpy",
    "torch",
    "torch's op",
    "automatic",
    "kernel, training",
    "engine",
    "torch, training",
    "torch's op, training",
    "automatic, training",
)
#: Which column is our call and which ones are what runs in it.
PAIRS = {
    "numpy": ("kernel",),
    "torch": ("kernel",),
    "automatic": ("torch's op",),
    "torch, training": ("kernel, training", "engine"),
    "automatic, training": ("torch's op, training",),
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


def _inputs_of(op: str, arguments: dict[str, Any]) -> tuple[Any, ...]:
    """The inputs that the public function hands to the op, in its order."""
    seen: list[tuple[Any, ...]] = []

    def look(_: Any, inputs: tuple[Any, ...], *rest: Any) -> Any:
        seen.append(inputs)
        raise _Seen

    with dispatch.inspecting(look), contextlib.suppress(_Seen):
        getattr(kernels, op)(**arguments)
    return seen[0]


def _implementation(explanation: kernels.Explanation) -> Implementation | None:
    found = (c.implementation for c in explanation.candidates if c.backend.name == explanation.chosen)
    return next(found, None)


def _by_address(
    run: Callable[..., Any], given: Sequence[Any], forms: Sequence[ArraySpec | None]
) -> Callable[[], tuple[Any, ...]]:
    """A run on NumPy arrays that lie as declared, each call with new results."""
    makers, places = [by_address.maker(form) for form in forms], [0 if a is None else a.ctypes.data for a in given]

    def call() -> tuple[Any, ...]:
        made = [None if m is None else m[0](*m[1:]) for m in makers]
        run(*places, *[0 if a is None else address(a) if a.flags.c_contiguous else a.ctypes.data for a in made])
        return given, made  # Alive to the end.

    return call


def _kernels(workload: Workload) -> dict[str, Callable[[], Any]]:
    """The bare kernel: forward, and forward and backward with what it keeps."""
    explanation = workload.explanation
    implementation = _implementation(explanation)
    if implementation is None or explanation.chosen != "numba":
        return {}
    problem, op = explanation.problem, OPS[workload.case.op]
    inputs = _inputs_of(op.name, workload.arguments)
    compute = implementation.forward
    run = None if problem.empty else implementation.by_address(problem)
    found: dict[str, Callable[[], Any]] = {"kernel": lambda: compute(problem, *inputs)}
    if run is not None:
        found["kernel"] = _by_address(run, inputs, problem.results())
    if not workload.training or implementation.backward is None:
        return found
    training: Problem = explain_on_tensors(workload).problem
    backward, forms = implementation.backward, training.results()
    incoming: list[Any] = [g.reshape(form.shape) for g, form in zip(workload.incoming, forms) if form is not None]
    # An op may declare more differentiable results than this call returns.
    incoming += [None] * (op.differentiable_results - len(incoming))
    known = dict(zip((*op.inputs, *op.results), (*inputs, *compute(training, *inputs))))
    saved = {name: known[name] for name in training.saved()}
    run, run_back = implementation.by_address(training), implementation.backward_by_address(training)

    def forth() -> Any:
        return compute(training, *inputs)

    def back() -> Any:
        return backward(training, *incoming, **saved)

    if run is not None:
        forth = _by_address(run, inputs, forms)
    if run_back is not None:
        back = _by_address(run_back, (*incoming, *saved.values()), by_address.gradient_forms(training))
    return found | {"kernel, training": lambda: (forth(), back())}


class _Nothing(torch.autograd.Function):
    """Takes tensors, makes results of these shapes and dtypes, and hands out these gradients."""

    @staticmethod
    def forward(ctx: Any, forms: Any, gradients: Any, *inputs: Any) -> Any:
        ctx.gradients = gradients
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        made = tuple([torch.empty_strided(shape, strides, dtype=dtype) for shape, strides, dtype in forms])
        return made[0] if len(made) == 1 else made

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        assert ctx.saved_tensors is not None
        return (None, None, *ctx.gradients)


def _engine(workload: Workload) -> Callable[[], Any]:
    """The autograd engine around a Function that computes nothing."""
    # Leaves of their own: the op may see views of the tensors, with more dimensions.
    given = _inputs_of(workload.case.op, tensors_of(workload))
    inputs = [x if x is None else x.detach().requires_grad_(x.requires_grad) for x in given]
    problem: Problem = explain_on_tensors(workload).problem
    returned = [form for form in problem.results()[: problem.returned] if form is not None]
    forms = [(f.shape, f.strides or contiguous_strides(f.shape), getattr(torch, f.dtype)) for f in returned]
    gradients = [torch.zeros_like(x) if x is not None and x.requires_grad else None for x in inputs]
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    # The public function may have given the op more dimensions.
    incoming = [torch.from_numpy(g).reshape(form[0]) for g, form in zip(workload.incoming, forms)]

    def train() -> Any:
        results = results_of(_Nothing.apply(forms, gradients, *inputs))
        return torch.autograd.grad(results[: len(incoming)], wanted, incoming, allow_unused=True)

    return train


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
        if workload.training:
            runs["engine"] = _engine(workload)
        stock = eager.torch_function(workload)
        if stock is not None:
            runs[f"torch's op{suffix}"] = tensor_call(stock, workload).run
            if explain_on_tensors(workload).chosen == "torch":
                runs[f"automatic{suffix}"] = tensor_call(automatic, workload).run
    return {name: Contestant(runs[name], TORCH_POOL) for name in COLUMNS if name in runs}


def measure(op: str, seconds: float, dtype: str = "float32") -> Cost | None:
    """The costs of one op; None for an op without an ordinary case."""
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
        name: Quartiles.of([t[0] - sum(t[1:]) for t in zip(samples[name], *[samples[each] for each in inside])])
        for name, inside in PAIRS.items()
        if name in samples and all(each in samples for each in inside)
    }
    return Cost(op, case.name, {name: Quartiles.of(times) for name, times in samples.items()}, beyond)
