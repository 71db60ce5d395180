"""torch on top of any op in eager calls: zero-copy views and one generic autograd Function.

Two ways in, both generic over `Op`:

* eager without gradients: the implementation runs on NumPy views of the tensors;
* eager with gradients: :class:`_Apply`, one ``torch.autograd.Function`` for every op. First derivatives run on the
  chosen backend; with ``create_graph=True`` backward runs on the op's differentiable torch formulas instead, so that
  second derivatives are right.

``torch.compile``, ``torch.export`` and fake tensors take the ops that `kernels.torch_library` registers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch.autograd import forward_ad

from kernels import arrays
from kernels.arrays import ArraySpec
from kernels.backends import BACKENDS, Backend, BackendError, load
from kernels.op import Implementation, Op, Problem
from kernels.runtime import dlpack, value_reports

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_NO_VMAP = "torch.func.vmap is not supported; the op takes a whole batch"
_NO_TANGENTS = "forward-mode derivatives (jvp) are not supported"
Tensors = tuple[torch.Tensor | None, ...]
_from_numpy = torch.from_numpy
#: Whether the call is inside grad, vjp, vmap or the like of torch.func: then tensors may have no memory of their own.
_is_transforming = torch._C._are_functorch_transforms_active
arrays.loaded_torch()  # Asked before torch.compile can come upon the question.


def _views(name: str, tensors: Sequence[torch.Tensor | None]) -> list[Any]:
    """The tensors of a call of the op `name` as NumPy arrays."""
    _refuse_tangents(name, tensors)
    return [None if t is None else t.numpy(force=True) for t in tensors]


def _refuse_tangents(name: str, tensors: Sequence[torch.Tensor | None]) -> None:
    if forward_ad._current_level >= 0 and any(map(_has_tangent, tensors)):
        raise NotImplementedError(f"{name}: {_NO_TANGENTS}")


def _has_tangent(tensor: torch.Tensor | None) -> bool:
    return tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None


class Bound:
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
        self.check = None if forward.checks_values else value_reports.checker(problem, backend.name, "torch")
        self.checks_values = self.check is not None
        takes_numpy = not self.takes_tensors and not self.takes_cupy
        suits = takes_numpy and not self.empty and not self.checks_values
        self.by_address = _ByAddress.forward(op, problem, forward) if suits else None
        suits = suits and backward is not None and backward.backend == forward.backend
        self.backward_by_address = _ByAddress.backward(op, problem, backward) if backward and suits else None
        self.saved_names = problem.saved()
        #: What each saved tensor must be; hooks on saved tensors may make anything of them.
        self.saved_forms = _arriving_forms(op, problem)[op.differentiable_results :]
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
        if self.check is not None and not (self.takes_tensors and dlpack.captured(inputs)):
            self.check(inputs)
        return self.forward_implementation.forward(self.problem, *inputs)

    def _run_on_cupy(
        self, function: Callable[..., Any], inputs: Sequence[torch.Tensor | None], keywords: dict[str, Any]
    ) -> Tensors:
        """Call a function that takes CuPy's arrays with tensors on a GPU."""
        from kernels.runtime import cupy_arrays

        _refuse_tangents(self.op.name, (*inputs, *keywords.values()))
        if function is self.forward_implementation.forward and self.check is not None and not dlpack.captured(inputs):
            function = value_reports.behind(self.check, function)
        return cupy_arrays.on_torch(function, self.problem, inputs, keywords)

    def forward(self, inputs: Sequence[torch.Tensor | None]) -> Tensors:
        """All results as tensors; None for an absent one."""
        if self.by_address is not None:
            found = self.by_address(inputs)
            if found is not None:
                return found
        if _is_transforming() and not self.takes_tensors:
            return cast("Tensors", _Transformed.apply(self, *inputs))
        results = self.run(inputs)
        tensors = self.takes_tensors or self.takes_cupy
        return results if tensors else tuple([None if r is None else _from_numpy(r) for r in results])

    def first(self, inputs: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
        """The first result alone, which saves the others their way to torch."""
        if self.by_address is not None:
            found = self.by_address(inputs)
            if found is not None:
                return found[0]
        if _is_transforming() and not self.takes_tensors:
            return cast("Tensors", _Transformed.apply(self, *inputs))[0]
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
        if self.backward_by_address is not None:
            # None comes in for results that the caller does not get, too.
            absent = (None,) * (self.op.differentiable_results - len(gradients))
            made = self.backward_by_address((*gradients, *absent, *saved))
            if made is not None:
                return made
        if self.empty:
            found = self.problem.zero_gradients()
        else:
            self._check_saved(saved)
            views = _views(self.op.name, (*gradients, *saved))
            count = len(gradients)
            found = implementation.backward(self.problem, *views[:count], **dict(zip(self.saved_names, views[count:])))
        return tuple([None if g is None else _from_numpy(g) for g in found])

    def _check_saved(self, saved: Sequence[torch.Tensor | None]) -> None:
        """Kernels believe that shapes and element types are those of the forward pass."""
        for name, tensor, form in zip(self.saved_names, saved, self.saved_forms):
            if tensor is None or form is None:
                continue
            dtype = str(tensor.dtype).removeprefix("torch.")
            if tensor.shape != form.shape or dtype != form.dtype:
                rule = f"hooks on saved tensors must give {name} back as {form.dtype} {form.shape}"
                raise ValueError(f"{self.op.name}: {rule}, got {dtype} {tuple(tensor.shape)}")

    def backward_differentiable(
        self, gradients: Sequence[torch.Tensor | None], saved: Sequence[torch.Tensor | None]
    ) -> Tensors:
        """The same gradients by the op's torch formulas, recorded by autograd: for second derivatives."""
        load(self.op.family, BACKENDS["torch"])
        stock = self.op.implementations.get("torch")
        if stock is None or stock.backward is None:
            raise NotImplementedError(f"{self.op.name}: second derivatives (create_graph=True) are not supported")
        return stock.backward(self.problem, *gradients, **dict(zip(self.saved_names, saved)))


class _ByAddress:
    """A pass of a problem on the CPU that is told addresses alone: see kernels.runtime.by_address.

    Called with tensors (None for an absent one), it makes the results. None where an address is not all that there is
    to a tensor: it lies otherwise than it was declared, is negated when it is read, belongs to a transform of
    torch.func, or may have a tangent; and where the run itself would not do it.
    """

    __slots__ = ("expected", "makers", "mask", "run")

    def __init__(
        self, run: Callable[..., Any], arriving: Sequence[ArraySpec | None], forms: Sequence[ArraySpec | None],
        checks: bool,
    ) -> None:  # fmt: skip
        from kernels.runtime import by_address

        self.run = run
        self.makers = tuple(map(by_address.maker, forms))
        self.mask = by_address.mask_of(arriving)
        #: What each tensor must be where the key of the plan does not say it.
        self.expected = tuple(map(_form_of, arriving)) if checks else None

    @classmethod
    def forward(cls, op: Op, problem: Problem, own: Implementation) -> _ByAddress | None:
        """That of the forward pass, whose inputs are as the problem says; None where there is none."""
        run = own.by_address(problem)
        specs = [getattr(problem, name) for name in op.inputs]
        return None if run is None else cls(run, specs, problem.results(), False)

    @classmethod
    def backward(cls, op: Op, problem: Problem, own: Implementation) -> _ByAddress | None:
        """That of the backward pass; None where there is none."""
        run = own.backward_by_address(problem) if problem.trains else None
        if run is None:
            return None
        from kernels.runtime import by_address

        return cls(run, _arriving_forms(op, problem), by_address.gradient_forms(problem), True)

    def __call__(self, tensors: Sequence[torch.Tensor | None]) -> Tensors | None:
        if forward_ad._current_level >= 0:
            return None
        mask = self.mask
        places = []
        made: list[torch.Tensor | None] = []
        try:
            for tensor in tensors:
                if tensor is None:
                    places.append(0)
                    continue
                place = tensor.data_ptr()
                # 0: a zero tensor of forward-mode differentiation, zeros that lie nowhere.
                if not place or place & mask or tensor.is_neg():
                    return None
                places.append(place)
            if self.expected is not None and not all(map(_lies_as, tensors, self.expected)):
                return None
            for make in self.makers:
                if make is None:
                    made.append(None)
                    places.append(0)
                else:
                    allocate, shape, dtype = make
                    result = _from_numpy(allocate(shape, dtype))
                    made.append(result)
                    places.append(result.data_ptr())
        except RuntimeError:
            return None  # A tensor has no memory of its own: the careful way sees to it.
        return None if self.run(*places) is False else tuple(made)


def _arriving_forms(op: Op, problem: Problem) -> tuple[ArraySpec | None, ...]:
    """Specs of what goes into a backward pass: gradients of the differentiable results, and what is saved."""
    results = problem.results()
    known = dict(zip((*op.inputs, *op.results), (*[getattr(problem, name) for name in op.inputs], *results)))
    return (*results[: op.differentiable_results], *[known[name] for name in problem.saved()])


def _form_of(form: ArraySpec | None) -> tuple[Any, ...] | None:
    return None if form is None else (form.shape, getattr(torch, form.dtype), form.strides)


def _lies_as(tensor: torch.Tensor | None, form: tuple[Any, ...] | None) -> bool:
    """Whether a tensor on the CPU has a shape, element type and strides; hooks on saved tensors may change them all."""
    if tensor is None or form is None:
        return tensor is None
    shape, dtype, strides = form
    layout = tensor.is_contiguous() if strides is None else tensor.stride() == strides
    return layout and tensor.shape == shape and tensor.dtype is dtype and tensor.is_cpu


class _Apply(torch.autograd.Function):
    """Any op under autograd. `bound` carries everything that is known before the values are."""

    @staticmethod
    def forward(ctx: Any, bound: Bound, *inputs: torch.Tensor | None) -> Any:
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
        bound: Bound = ctx.bound
        gradients = gradients[: bound.op.differentiable_results]
        if gradients[0] is None and all(g is None for g in gradients):
            return (None,) * (len(bound.op.inputs) + 1)
        if torch.is_grad_enabled():
            return (None, *bound.backward_differentiable(gradients, ctx.saved_tensors))
        return (None, *bound.backward(gradients, ctx.saved_tensors))


#: Function.apply in C: what Function's own adds in Python is for torch.func's transforms.
_apply: Any = super(torch.autograd.Function, _Apply).apply


class _Transformed(torch.autograd.Function):
    """The same inside torch.func's grad and vjp, whose forward must return all that backward needs."""

    @staticmethod
    def forward(bound: Bound, *inputs: torch.Tensor | None) -> Any:
        return bound.forward(inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        bound, *given = inputs
        ctx.bound = bound
        ctx.set_materialize_grads(False)
        known = (*given, *output)
        ctx.save_for_backward(*[known[place] for place in bound.saved_places])
        ctx.mark_non_differentiable(*[r for r in output[bound.op.differentiable_results :] if r is not None])

    backward = _Apply.backward

    @staticmethod
    def vmap(info: Any, in_dims: Any, bound: Bound, *inputs: Any) -> Any:
        raise NotImplementedError(f"{bound.op.name}: {_NO_VMAP}")

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(f"{ctx.bound.op.name}: {_NO_TANGENTS}")


def _apply_to(bound: Bound, inputs: tuple[Any, ...]) -> Any:
    """The op under autograd."""
    if not _is_transforming():
        return _apply(bound, *inputs)
    results = _Transformed.apply(bound, *inputs)
    return results[0] if bound.returned == 1 else results[: bound.returned]


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
        check = None if forward.checks_values else value_reports.checker(problem, backend.name, kind)
        return lambda inputs: problem.public(dlpack.on_cupy(forward.forward, problem, inputs, {}, check))
    device_type = next(s.device for s in map(problem.__getattribute__, op.inputs) if s).split(":")[0]
    direct = forward.direct(problem) if problem.returned == 1 and not problem.empty else None
    if direct is not None and not problem.checks_values:
        return _without_autocast(direct, device_type)
    bound = Bound(op, problem, backend, forward, backward)
    if problem.trains and not backend.differentiates:
        return lambda inputs: _apply_to(bound, inputs)
    run = bound.first if problem.returned == 1 else lambda inputs: problem.public(bound.forward(inputs))
    return _without_autocast(lambda *inputs: run(inputs), device_type) if backend.differentiates else run


def _without_autocast(function: Callable[..., Any], place: str) -> Callable[[tuple[Any, ...]], Any]:
    """Call torch's own function on a tuple of inputs, in their dtype whatever torch.autocast would make of it."""
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
