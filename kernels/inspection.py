"""Looking into a call: `explain` says what would run and why, `vjp` runs it and keeps what the gradients need."""

from __future__ import annotations

import functools
import importlib
import inspect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels import arrays, dispatch
from kernels.backends import BACKENDS, BackendError
from kernels.op import OPS, Op, Problem
from kernels.runtime import value_reports

if TYPE_CHECKING:
    from collections.abc import Callable

    from kernels.dispatch import Candidate

Array = np.ndarray[Any, Any]


class _Seen(BaseException):
    """Leaves a public function at the point where it would have run an op. Never leaves this module."""


def public_function(name: str, asked_by: str, *, composed: bool = False) -> Callable[..., Any]:
    """The public function ``kernels.<name>`` of an op, or with `composed` one that is made of ops, such as lstm.

    Raises:
        ValueError: there is none; lists the known ones.
    """
    public = importlib.import_module("kernels")
    known = set(OPS)
    if composed:
        # What takes a backend hands it to an op.
        functions = ((n, getattr(public, n)) for n in public.__all__)
        known |= {n for n, f in functions if inspect.isfunction(f) and "backend" in inspect.signature(f).parameters}
    if name not in known:
        raise ValueError(f"{asked_by}: op must be one of {', '.join(sorted(known))}, got {name!r}")
    function: Callable[..., Any] = getattr(public, name)
    return function


@dataclass(frozen=True)
class Explanation:
    """What `explain` found. ``str()`` gives the table that was printed.

    Attributes:
        op: name of the op.
        problem: the checked arguments.
        chosen: name of the backend that would run, or None when the call would raise a `BackendError`.
        backward: name of the backend that would run backward, or None.
        candidates: every backend with its reasons, best first.
        wanted: the backend that was named, or "auto".
        asked: the function that was asked about, where it is made of ops: `lstm` runs lstm_layer once a layer.
    """

    op: str
    problem: Problem
    chosen: str | None
    backward: str | None
    candidates: tuple[Candidate, ...]
    wanted: str
    asked: str | None = None

    def __str__(self) -> str:
        op = OPS[self.op]
        lines = [] if self.asked is None else [f"{self.asked} is made of {self.op}; its first call:"]
        lines.append(f"{self.op}: {dispatch.describe(op, self.problem)}")
        for candidate in self.candidates:
            name = candidate.backend.name
            if candidate.reasons:
                text = "no   " + "; ".join(candidate.reasons)
            else:
                assert candidate.implementation is not None
                how = candidate.implementation.describe(self.problem)
                text = "yes  " + how + (" <- chosen" if name == self.chosen else "")
            lines.append(f"  {name:<10} {text}".rstrip())
        if self.chosen is None:
            lines.append(f"  backend {self.wanted!r}: the call would raise BackendError")
        else:
            lines.append(f"  backward: {self.backward or 'none'}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Explanation: {self.op} runs on {self.chosen}>"


def explain_call(op: Op, inputs: tuple[Any, ...], attributes: tuple[Any, ...], device: Any, named: Any) -> Explanation:
    """`explain` for a call that has reached its op, without printing. Arguments: as of a `dispatch.inspecting` hook."""
    kind, specs, needs_grad = dispatch.describe_inputs(op, inputs)
    place = dispatch.place_of(op, specs, kind, device)
    problem = replace(op.problem.check(*specs, *attributes), needs_grad=needs_grad)
    wanted = dispatch.choice(op, named)
    candidates = dispatch.candidates(op, problem, kind, place, automatic=wanted == "auto")
    chosen = backward = None
    try:
        found = dispatch.resolve(op, problem, wanted, kind, place)
    except BackendError:  # the reasons are in `candidates`
        pass
    else:
        chosen = found.backend.name
        implementation = dispatch.backward_of(op, problem, found, kind, place)
        backward = None if implementation is None else implementation.backend
    return Explanation(op.name, problem, chosen, backward, candidates, wanted)


def explain(op: str, *args: Any, **kwargs: Any) -> Explanation:
    """Print which backend would run a call, and why each of the others would not, without running it.

    Args:
        op: name of the op, "conv2d" say, or of a function that is made of ops ("lstm"), whose first one is explained.
        *args: positional arguments of the call, exactly as for ``kernels.<op>``.
        **kwargs: its keyword arguments.

    Returns:
        what was printed, as an object.

    Raises:
        TypeError, ValueError, IndexError: the arguments are wrong, as the call itself would say, or run nothing
            (dropout outside of training).
        BackendError: the named backend does not exist. One that cannot run the call is part of the answer.

    Example:
        >>> kernels.explain("conv2d", x, weight, padding=1).chosen
        'numba'
    """
    found: list[Explanation] = []

    def look(*call: Any) -> Any:
        found.append(explain_call(*call))
        raise _Seen

    with dispatch.inspecting(look):
        try:
            public_function(op, "explain", composed=True)(*args, **kwargs)
        except _Seen:
            pass
    if not found:
        raise ValueError(f"explain: arguments must make {op} run a kernel, got a call that runs none")
    explanation = found[0] if found[0].op == op else replace(found[0], asked=op)
    print(explanation)
    return explanation


def vjp(op: str, *args: Any, **kwargs: Any) -> tuple[Any, Callable[..., tuple[Array | None, ...]]]:
    """Run an op on NumPy or CuPy arrays and get the function that takes gradients back through it.

    (torch tensors need no such function: they carry their own gradients.)

    Args:
        op: name of the op, "conv2d" say.
        *args: positional arguments of the call, exactly as for ``kernels.<op>``, arrays as NumPy.
        **kwargs: its keyword arguments.

    Returns:
        (result, pullback), arrays of the kind that came in. ``pullback(*gradients)`` takes one array in the shape of
        each differentiable result and returns the gradients of the op's inputs in the order of its signature (for
        embedding: weight, input), None for one that has none (an absent bias, class labels). It may be called any
        number of times.

    Raises:
        TypeError: an array is neither NumPy's nor CuPy's.
        ValueError: a gradient given to the pullback has the wrong shape.
        MemoryError: there is no memory for the results or a gradient.

    Example:
        >>> y, pullback = kernels.vjp("conv2d", x, weight, bias, padding=1)
        >>> grad_x, grad_weight, grad_bias = pullback(np.ones_like(y))
    """
    pullbacks: list[Callable[..., tuple[Array | None, ...]]] = []

    def look(declared: Op, inputs: tuple[Any, ...], attributes: tuple[Any, ...], device: Any, backend: Any) -> Any:
        result, pullback = _run_and_keep(declared, inputs, attributes, device, backend)
        pullbacks.append(pullback)
        return result

    function = public_function(op, "vjp")
    with dispatch.inspecting(look):
        result = function(*args, **kwargs)
    if len(pullbacks) != 1:
        raise ValueError(f"vjp: {op} must be a single kernel call with these arguments, got {len(pullbacks)} of them")
    (inner,) = pullbacks
    given = inspect.signature(function).bind(*args, **kwargs).arguments

    def pullback(*gradients: Array | None) -> tuple[Array | None, ...]:
        # One image without a batch ran as a batch of one: its gradient has the image's shape.
        return tuple(map(_in_shape_of, inner(*gradients), map(given.get, OPS[op].inputs)))

    return result, pullback


def _run_and_keep(
    op: Op, inputs: tuple[Any, ...], attributes: tuple[Any, ...], device: Any, named: Any
) -> tuple[Any, Callable[..., tuple[Array | None, ...]]]:
    kind, specs, _ = dispatch.describe_inputs(op, inputs)
    if kind == "torch":
        rule = "must be a NumPy or CuPy array (others carry their own gradients)"
        raise TypeError(f"vjp: {op.inputs[0]} {rule}, got a {kind} array")
    place = dispatch.place_of(op, specs, kind, device)
    named_specs = zip(op.inputs, specs, strict=True)
    wanted = tuple(name in op.differentiable and spec is not None and spec.floating for name, spec in named_specs)
    problem = replace(op.problem.check(*specs, *attributes), needs_grad=wanted)
    dispatch.check_sizes(op, problem, place)
    chosen = dispatch.resolve(op, problem, dispatch.choice(op, named), kind, place)
    backward = dispatch.backward_of(op, problem, chosen, kind, place)
    if backward is None or backward.backward is None:
        raise BackendError(f"{op.name}: no backend here has a backward pass for {dispatch.describe(op, problem)}")
    assert chosen.implementation is not None
    forward, back = (_caller(kind, BACKENDS[i.backend].arrays, device) for i in (chosen.implementation, backward))
    empty = problem.empty and kind == "numpy"
    if empty:
        results = problem.empty_results()
    else:
        check = value_reports.checker(problem, chosen.backend.name, kind)
        function = chosen.implementation.forward
        if check is not None and kind == "numpy":
            check(inputs)
        elif check is not None:
            function = value_reports.behind(check, function)
        results = forward(function, problem, inputs, {})
    known = dict(zip((*op.inputs, *op.results), (*inputs, *results), strict=True))
    saved = {name: known[name] for name in problem.saved()}
    names = op.results[: min(op.differentiable_results, problem.returned)]

    def pullback(*gradients: Any) -> tuple[Any, ...]:
        if len(gradients) != len(names):
            raise ValueError(f"vjp: pullback of {op.name} takes {len(names)} gradients, got {len(gradients)}")
        shaped: list[Any] = []
        for name, gradient in zip(names, gradients):
            result: Any = known[name]
            if gradient is None:
                shaped.append(None)
                continue
            given: Any = np.asarray(gradient, result.dtype) if kind == "numpy" else gradient
            if given.size != result.size:
                raise ValueError(f"vjp: gradient of {name} must have shape {result.shape}, got {given.shape}")
            shaped.append(given.astype(result.dtype, copy=False).reshape(result.shape))
        if empty:
            return problem.zero_gradients()
        assert backward.backward is not None
        return back(backward.backward, problem, tuple(shaped), saved)

    return problem.public(results), pullback


def _in_shape_of(gradient: Any, array: Any) -> Any:
    array = arrays.from_dlpack(array)
    same = gradient is not None and arrays.kind(array) is not None and array.size == gradient.size
    return gradient.reshape(array.shape) if same else gradient


def _caller(given: str, taken: str, device: Any) -> Callable[..., tuple[Any, ...]]:
    """How to call an implementation that takes one kind of array with another one, on the device that was named."""
    if given == taken == "numpy":
        return lambda function, problem, inputs, keywords: function(problem, *inputs, **keywords)
    if taken == "cupy":
        from kernels.runtime import cupy_arrays

        return cupy_arrays.on_cupy if given == "cupy" else functools.partial(cupy_arrays.on_numpy, device=device)
    if given == "cupy":
        from kernels.runtime import dlpack

        return dlpack.on_cupy
    from kernels import torch_binding

    return functools.partial(torch_binding.on_numpy, device=device)
