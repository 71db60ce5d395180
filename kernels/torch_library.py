"""Every op registered with torch: what torch.compile, torch.export, fake and meta tensors see of it.

The ops stand in the namespace ``nnlib_kernels``. Schema, fake kernel and autograd formula come from the declaration;
what runs them in the end is :class:`kernels.torch_binding.Bound`, as in eager calls.
"""

from __future__ import annotations

import types as python_types
import typing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from kernels import arrays, dispatch
from kernels.arrays import ArraySpec, contiguous_strides
from kernels.op import OPS, Op, Problem
from kernels.torch_binding import Bound

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMESPACE = "nnlib_kernels"

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

    def _bound(self, problem: Problem, backend: str | None) -> Bound:
        wanted = dispatch.current_override.get()  # of the run, not of the trace
        if backend is None and wanted is not None:
            backend = wanted.backend
        key = ("registered", backend, problem)
        bound: Bound | None = self.op.plans.get(key)
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


def bind(op: Op, problem: Problem, backend: str | None) -> Bound:
    """Choose implementations for a problem that arrived through a registered op."""
    where = next(getattr(problem, n).device for n in op.inputs if getattr(problem, n) is not None)
    place = where.split(":")[0]
    dispatch.check_sizes(op, problem, place)
    choice = dispatch.choice(op, backend)
    chosen = dispatch.resolve(op, problem, choice, "torch", place, eager=False)
    assert chosen.implementation is not None
    backward = dispatch.backward_of(op, problem, chosen, "torch", place)
    return Bound(op, problem, chosen.backend, chosen.implementation, backward)


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
