"""torch on top of any op: zero-copy views, one generic autograd Function, and registered ops derived from declarations.

Three ways in, all generic over `Op`:

* eager without gradients: the implementation runs on NumPy views of the tensors;
* eager with gradients: :class:`_Apply`, one ``torch.autograd.Function`` for every op. First derivatives run on the
  chosen backend; with ``create_graph=True`` backward runs on the op's differentiable torch formulas instead, so that
  second derivatives are right;
* ``torch.compile``, ``torch.export``, fake tensors: ops registered in the namespace ``nnlib_kernels``, whose schema,
  fake kernel and autograd formula come from the declaration.
"""

from __future__ import annotations

import types as python_types
import typing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.autograd import forward_ad

from kernels import arrays, dispatch
from kernels.arrays import ArraySpec, contiguous_strides
from kernels.backends import BACKENDS, Backend, BackendError, load
from kernels.op import OPS, Implementation, Op, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NAMESPACE = "nnlib_kernels"
_PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)
Tensors = tuple[torch.Tensor | None, ...]
_from_numpy = torch.from_numpy
arrays.loaded_torch()  # Asked before torch.compile can come upon the question.


def _views(name: str, tensors: Sequence[torch.Tensor | None]) -> list[Any]:
    """The tensors of a call of the op `name` as NumPy arrays."""
    _refuse_tangents(name, tensors)
    try:
        return [None if t is None else t.numpy(force=True) for t in tensors]
    except RuntimeError as error:
        raise NotImplementedError(
            f"{name}: torch.func transforms (vmap, grad, jvp) cannot look inside this op ({error})"
        ) from error


def _refuse_tangents(name: str, tensors: Sequence[torch.Tensor | None]) -> None:
    if forward_ad._current_level >= 0 and any(map(_has_tangent, tensors)):
        raise NotImplementedError(f"{name}: forward-mode derivatives (jvp) are not supported")


def _has_tangent(tensor: torch.Tensor | None) -> bool:
    return tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None


class _Bound:
    """A problem bound to its implementations: forward and backward on tensors, whatever arrays the backend takes."""

    def __init__(
        self, op: Op, problem: Problem, backend: Backend, forward: Implementation, backward: Implementation | None
    ) -> None:
        self.op = op
        self.problem = problem
        self.returned = problem.returned
        self.empty = problem.empty
        self.takes_tensors = backend.arrays == "torch"
        self.takes_cupy = backend.arrays == "cupy"
        self.forward_implementation = forward
        self.backward_implementation = backward
        self.checks_values = problem.checks_values and not forward.checks_values
        takes_numpy = not self.takes_tensors and not self.takes_cupy
        # Where backward needs more than the first result, `by_address` does not do.
        alone = self.returned == 1 and (not problem.trains or len(op.results) == 1)
        suits = takes_numpy and alone and not self.empty and not self.checks_values
        self.by_address = forward.by_address(problem) if suits else None
        self.saved_names = problem.saved()
        #: Where each saved tensor is among the inputs and the results behind them.
        self.saved_places = tuple((*op.inputs, *op.results).index(name) for name in self.saved_names)

    def run(self, inputs: Sequence[torch.Tensor | None]) -> tuple[Any, ...]:
        """All results, of the kind of array that the backend makes (of CuPy's, tensors); None for an absent one."""
        if self.takes_cupy:
            return self._run_on_cupy(self.forward_implementation.forward, inputs, {})
        if not self.takes_tensors:
            inputs = _views(self.op.name, inputs)
            if self.empty:
                return self.problem.empty_results()
        if self.checks_values and not (self.takes_tensors and _captured(inputs)):
            self.problem.check_values(*inputs)
        return self.forward_implementation.forward(self.problem, *inputs)

    def _run_by_address(self, tensors: Sequence[torch.Tensor | None]) -> Any:
        """The first result from the addresses of contiguous tensors on the CPU.

        None where an address is not all that there is to a tensor: it is negated when it is read, lies inside a
        transform of torch.func, or may have a tangent; and where `by_address` itself says None.
        """
        if forward_ad._current_level >= 0:
            return None
        assert self.by_address is not None
        places: list[int | None] = []
        for tensor in tensors:
            if tensor is None:
                places.append(None)
            elif tensor.is_neg():
                return None
            else:
                try:
                    address = tensor.data_ptr()
                except RuntimeError:
                    return None  # It has no memory of its own: `_views` says what is wrong.
                if not address:
                    return None  # A zero tensor of forward-mode differentiation: zeros that lie nowhere.
                places.append(address)
        return self.by_address(*places)

    def _run_on_cupy(
        self, function: Callable[..., Any], inputs: Sequence[torch.Tensor | None], keywords: dict[str, Any]
    ) -> Tensors:
        """Call a function that takes CuPy's arrays with tensors on a GPU."""
        from kernels.runtime import cupy_arrays

        _refuse_tangents(self.op.name, (*inputs, *keywords.values()))
        if function is self.forward_implementation.forward and self.checks_values and not _captured(inputs):
            self.problem.check_values(*inputs)
        return cupy_arrays.on_torch(function, self.problem, inputs, keywords)

    def forward(self, inputs: Sequence[torch.Tensor | None]) -> Tensors:
        """All results as tensors; None for an absent one."""
        if self.by_address is not None and len(self.op.results) == 1:
            found = self._run_by_address(inputs)
            if found is not None:
                return (_from_numpy(found),)
        results = self.run(inputs)
        tensors = self.takes_tensors or self.takes_cupy
        return results if tensors else tuple([None if r is None else _from_numpy(r) for r in results])

    def first(self, inputs: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
        """The first result alone, which saves the others their way to torch."""
        if self.by_address is not None:
            found = self._run_by_address(inputs)
            if found is not None:
                return _from_numpy(found)
        result = self.run(inputs)[0]
        return result if self.takes_tensors or self.takes_cupy else _from_numpy(result)

    def backward(self, gradients: Sequence[torch.Tensor | None], saved: Sequence[torch.Tensor | None]) -> Tensors:
        """Gradients of the inputs as tensors; None for one that is not wanted."""
        implementation = self.backward_implementation
        if implementation is None or implementation.backward is None:
            raise BackendError(f"{self.op.name}: no backend here has a backward pass for this call")
        if self.takes_tensors:
            return implementation.backward(self.problem, *gradients, **dict(zip(self.saved_names, saved)))
        if self.takes_cupy:
            return self._run_on_cupy(implementation.backward, gradients, dict(zip(self.saved_names, saved)))
        if self.empty:
            found = self.problem.zero_gradients()
        else:
            views = _views(self.op.name, (*gradients, *saved))
            count = len(gradients)
            found = implementation.backward(self.problem, *views[:count], **dict(zip(self.saved_names, views[count:])))
        return tuple([None if g is None else _from_numpy(g) for g in found])

    def backward_differentiable(
        self, gradients: Sequence[torch.Tensor | None], saved: Sequence[torch.Tensor | None]
    ) -> Tensors:
        """The same gradients by the op's torch formulas, recorded by autograd: for second derivatives."""
        load(self.op.family, BACKENDS["torch"])
        stock = self.op.implementations.get("torch")
        if stock is None or stock.backward is None:
            raise NotImplementedError(f"{self.op.name}: second derivatives (create_graph=True) are not supported")
        return stock.backward(self.problem, *gradients, **dict(zip(self.saved_names, saved)))


def _captured(tensors: Sequence[torch.Tensor | None]) -> bool:
    """Whether the call becomes part of a CUDA graph, when no value can be looked at."""
    return any(t is not None and t.is_cuda for t in tensors) and torch.cuda.is_current_stream_capturing()


class _Apply(torch.autograd.Function):
    """Any op under autograd. `bound` carries everything that is known before the values are."""

    @staticmethod
    def forward(ctx: Any, bound: _Bound, *inputs: torch.Tensor | None) -> Any:
        results = bound.forward(inputs)
        ctx.bound = bound
        ctx.set_materialize_grads(False)
        known = (*inputs, *results)
        ctx.save_for_backward(*[known[place] for place in bound.saved_places])
        if bound.returned == 1:
            return results[0]
        extra = [r for r in results[bound.op.differentiable_results : bound.returned] if r is not None]
        if extra:
            ctx.mark_non_differentiable(*extra)
        return results[: bound.returned]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        bound: _Bound = ctx.bound
        gradients = gradients[: bound.op.differentiable_results]
        if gradients[0] is None and all(g is None for g in gradients):
            return (None,) * (len(bound.op.inputs) + 1)
        if torch.is_grad_enabled():
            return (None, *bound.backward_differentiable(gradients, ctx.saved_tensors))
        return (None, *bound.backward(gradients, ctx.saved_tensors))


#: Function.apply in C. What Function's own adds in Python is for torch.func's transforms, which `_views` refuses.
_apply: Any = super(torch.autograd.Function, _Apply).apply


def runner(
    op: Op,
    problem: Problem,
    kind: str,
    backend: Backend,
    forward: Implementation,
    backward: Implementation | None,
    device: Any = None,
) -> Callable[[tuple[Any, ...]], Any]:
    """The function that runs calls of one form when tensors are involved on either side; `device`: as it was named."""
    if kind == "numpy":
        function = forward.forward

        def run_on_numpy(inputs: tuple[Any, ...]) -> Any:
            problem.check_values(*inputs)
            return problem.public(on_numpy(function, problem, inputs, {}, device))

        return run_on_numpy
    if kind == "cupy":
        from kernels.runtime import dlpack

        check = problem.checks_values and not forward.checks_values
        return lambda inputs: problem.public(dlpack.on_cupy(forward.forward, problem, inputs, check))
    direct = forward.direct(problem) if problem.returned == 1 and not problem.empty else None
    if direct is not None and not problem.checks_values:
        return _without_autocast(direct, next(s.device for s in map(problem.__getattribute__, op.inputs) if s))
    bound = _Bound(op, problem, backend, forward, backward)
    if problem.trains and not backend.differentiates:
        return lambda inputs: _apply(bound, *inputs)
    if problem.returned == 1:
        one = bound.by_address is not None and len(op.inputs) == 1
        return _runner_by_address(bound) if one else bound.first
    return lambda inputs: problem.public(bound.forward(inputs))


def _runner_by_address(bound: _Bound) -> Callable[[tuple[Any, ...]], Any]:
    """bound.first for an op of one input that runs by address, with every call written out: they are its time."""
    by_address, careful = bound.by_address, bound.first
    assert by_address is not None

    def run(inputs: tuple[Any, ...]) -> Any:
        (x,) = inputs
        if forward_ad._current_level >= 0 or x.is_neg():
            return careful(inputs)
        try:
            place = x.data_ptr()
        except RuntimeError:
            return careful(inputs)
        return _from_numpy(by_address(place)) if place else careful(inputs)

    return run


def _without_autocast(function: Callable[..., Any], device: str) -> Callable[[tuple[Any, ...]], Any]:
    """Call torch's own function on a tuple of inputs, in their dtype whatever torch.autocast would make of it."""
    place = device.split(":")[0]
    is_autocast_enabled = torch.is_autocast_enabled
    # Asked for any device it takes a quarter of the time.
    is_any_enabled = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)

    def run(inputs: tuple[Any, ...]) -> Any:
        if is_any_enabled() and is_autocast_enabled(place):
            with torch.autocast(place, enabled=False):
                return function(*inputs)
        return function(*inputs)

    return run


def on_numpy(
    function: Callable[..., Tensors], problem: Problem, inputs: Sequence[Any], keywords: dict[str, Any],
    device: Any = None,
) -> tuple[Any, ...]:  # fmt: skip
    """Call a function that takes tensors with NumPy arrays: ``function(problem, *inputs, **keywords)``.

    With `device` ("cuda", "cuda:1") they are copied there, and the results back.
    """

    def tensor(array: Any) -> torch.Tensor | None:
        # np.array copies into positive strides and writable memory, which from_numpy wants.
        return None if array is None else torch.from_numpy(np.array(array, order="K")).to(device)

    with torch.no_grad():
        results = function(problem, *map(tensor, inputs), **{name: tensor(a) for name, a in keywords.items()})
    return tuple(None if r is None else r.cpu().numpy() for r in results)


# ----- registered ops ----------------------------------------------------------------------------------------------

_library = torch.library.Library(NAMESPACE, "DEF")
_SCHEMA_TYPES: dict[Any, str] = {int: "SymInt", float: "float", bool: "bool", str: "str"}


def _schema_type(hint: Any) -> str:
    """torch's schema type of an attribute's type hint."""
    arguments = typing.get_args(hint)
    if isinstance(hint, python_types.UnionType) or typing.get_origin(hint) is typing.Union:
        (inner,) = (a for a in arguments if a is not type(None))
        return _schema_type(inner) + "?"
    if typing.get_origin(hint) is tuple:
        return _schema_type(arguments[0]) + "[]"
    return _SCHEMA_TYPES[hint]


def _returns(count: int) -> str:
    return "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"


class _Registered:
    """The registered forward and backward of one op."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self.name = f"{NAMESPACE}::{op.name}"
        self.count = len(op.inputs)
        self.attributes = tuple(op.attributes)
        inputs = [f"Tensor{'?' if name in op.optional else ''} {name}" for name in op.inputs]
        attributes = [f"{_schema_type(h)} {n}" for n, h in op.attributes.items()]
        tail = [*attributes, "bool[] needs_grad", "str? backend"]
        _library.define(f"{op.name}({', '.join([*inputs, *tail])}) -> {_returns(len(op.results))}")
        gradients = [f"Tensor? grad_{name}" for name in op.results[: op.differentiable_results]]
        kept = [f"Tensor? {name}" for name in op.results]
        backward = ", ".join([*gradients, *inputs, *kept, *tail])
        _library.define(f"{op.name}_backward({backward}) -> {_returns(self.count)}")
        for device in ("CPU", "CUDA"):  # meta tensors run the fakes
            _library.impl(op.name, self._forward, device)
            _library.impl(f"{op.name}_backward", self._backward, device)
        torch.library.register_fake(self.name, self._forward_fake, lib=_library)
        torch.library.register_fake(f"{self.name}_backward", self._backward_fake, lib=_library)
        torch.library.register_autograd(self.name, self._autograd, setup_context=self._setup_context, lib=_library)
        torch.library.register_autograd(f"{self.name}_backward", self._no_second_derivative, lib=_library)
        self.call = getattr(getattr(torch.ops, NAMESPACE), op.name)
        self.call_backward = getattr(getattr(torch.ops, NAMESPACE), f"{op.name}_backward")

    def _problem(self, tensors: Sequence[torch.Tensor | None], tail: Sequence[Any]) -> tuple[Problem, str | None]:
        *attributes, needs_grad, backend = tail
        specs = {n: None if t is None else arrays.spec(t) for n, t in zip(self.op.inputs, tensors)}
        values = {n: tuple(v) if isinstance(v, (list, tuple)) else v for n, v in zip(self.attributes, attributes)}
        return self.op.problem(**specs, **values, needs_grad=tuple(needs_grad)), backend

    def _bound(self, problem: Problem, backend: str | None) -> _Bound:
        wanted = dispatch.current_override.get()  # of the run, not of the trace
        if backend is None and wanted is not None:
            backend = wanted.backend
        key = ("registered", backend, problem)
        bound: _Bound | None = self.op.plans.get(key)
        if bound is None:
            bound = self.op.plans[key] = bind(self.op, problem, backend)
        return bound

    def _forward(self, *arguments: Any) -> Any:
        tensors = arguments[: self.count]
        problem, backend = self._problem(tensors, arguments[self.count :])
        results = self._bound(problem, backend).forward(tensors)
        like = next(t for t in tensors if t is not None)
        return _as_returns([like.new_empty(0) if r is None else r for r in results])

    def _forward_fake(self, *arguments: Any) -> Any:
        tensors = arguments[: self.count]
        problem, _ = self._problem(tensors, arguments[self.count :])
        like = next(t for t in tensors if t is not None)
        return _as_returns([_new_empty(like, form) for form in problem.results()])

    def _split_backward(self, arguments: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
        first = self.op.differentiable_results
        second = first + self.count
        third = second + len(self.op.results)
        return arguments[:first], arguments[first:second], arguments[second:third], arguments[third:]

    def _backward(self, *arguments: Any) -> Any:
        gradients, inputs, results, tail = self._split_backward(arguments)
        problem, backend = self._problem(inputs, tail)
        bound = self._bound(problem, backend)
        saved = [(*inputs, *results)[place] for place in bound.saved_places]
        found = bound.backward(gradients, saved)
        like = next(t for t in inputs if t is not None)
        return _as_returns([like.new_empty(0) if g is None else g for g in found])

    def _backward_fake(self, *arguments: Any) -> Any:
        _, inputs, _, tail = self._split_backward(arguments)
        problem, _ = self._problem(inputs, tail)
        like = next(t for t in inputs if t is not None)
        wanted = zip(problem.gradients(), problem.needs_grad, strict=True)
        return _as_returns([_new_empty(like, form if want else None) for form, want in wanted])

    def _setup_context(self, ctx: Any, inputs: Any, output: Any) -> None:
        tensors = inputs[: self.count]
        problem, _ = self._problem(tensors, inputs[self.count :])
        results = output if isinstance(output, (tuple, list)) else (output,)
        kept = problem.saved()
        ctx.tail = inputs[self.count :]
        ctx.kept = [name in kept for name in self.op.results]
        ctx.needs_grad = problem.needs_grad
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *[r for r, keep in zip(results, ctx.kept) if keep])
        extra = results[self.op.differentiable_results :]
        if extra:
            ctx.mark_non_differentiable(*extra)

    def _autograd(self, ctx: Any, *gradients: Any) -> Any:
        gradients = gradients[: self.op.differentiable_results]
        nothing = (None,) * len(ctx.tail)
        if all(g is None for g in gradients):
            return (*(None,) * self.count, *nothing)
        saved = iter(ctx.saved_tensors[self.count :])
        results = [next(saved) if keep else None for keep in ctx.kept]
        found = self.call_backward(*gradients, *ctx.saved_tensors[: self.count], *results, *ctx.tail)
        found = found if isinstance(found, (tuple, list)) else (found,)
        return (*(g if want else None for g, want in zip(found, ctx.needs_grad)), *nothing)

    def _no_second_derivative(self, ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(
            f"{self.op.name}: second derivatives (create_graph=True) are not supported under torch.compile; "
            "call it in eager mode"
        )


def _as_returns(tensors: list[torch.Tensor]) -> Any:
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def _new_empty(like: torch.Tensor, form: ArraySpec | None) -> torch.Tensor:
    if form is None:
        return like.new_empty(0)
    strides = contiguous_strides(form.shape) if form.strides is None else form.strides
    return like.new_empty_strided(form.shape, strides, dtype=getattr(torch, form.dtype))


def bind(op: Op, problem: Problem, backend: str | None) -> _Bound:
    """Choose implementations for a problem that arrived through a registered op."""
    where = next(getattr(problem, n).device for n in op.inputs if getattr(problem, n) is not None)
    place = where.split(":")[0]
    choice = dispatch.choice(op, backend)
    chosen = dispatch.resolve(op, problem, choice, "torch", place, eager=False)
    assert chosen.implementation is not None
    backward = dispatch.backward_of(op, problem, chosen, "torch", place)
    return _Bound(op, problem, chosen.backend, chosen.implementation, backward)


_registered: dict[str, _Registered] = {}


def register(op: Op) -> _Registered:
    """Register an op with torch, once."""
    found = _registered.get(op.name)
    if found is None:
        found = _registered[op.name] = _Registered(op)
    return found


def call_registered(
    op: Op, inputs: tuple[Any, ...], attributes: tuple[Any, ...], device: Any, backend: str | None
) -> Any:
    """Run an op through its registered form: what torch.compile traces."""
    kind, specs, needs_grad = dispatch.describe_inputs(op, inputs)
    dispatch.place_of(op, specs, kind, device)
    problem = replace(op.problem.check(*specs, *attributes), needs_grad=needs_grad)
    values = [getattr(problem, name) for name in op.attributes]
    results = _registered[op.name].call(*inputs, *values, list(needs_grad), backend)
    if len(op.results) == 1:
        return results
    return problem.public(results)


for _op in OPS.values():
    register(_op)
