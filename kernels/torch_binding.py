"""torch on top of any op in eager calls: zero-copy views and one generic autograd Function.

Two ways in, both generic over `Op`:

* eager without gradients: the implementation is told where the tensors lie, or runs on NumPy views of them;
* eager with gradients: :class:`kernels.torch_autograd.Apply`, one ``torch.autograd.Function`` for every op. First
  derivatives run on the chosen backend; with ``create_graph=True`` backward runs on the op's differentiable torch
  formulas instead, so that second derivatives are right.

``torch.compile``, ``torch.export`` and fake tensors take the ops that `kernels.torch_library` registers.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch.autograd import forward_ad

from kernels import arrays, torch_autograd
from kernels.arrays import ArraySpec
from kernels.backends import BACKENDS, Backend, BackendError, load
from kernels.op import Implementation, Op, Problem
from kernels.runtime import dlpack, value_reports

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kernels.ones import Ones

Tensors = tuple[torch.Tensor | None, ...]
_from_numpy = torch.from_numpy
_is_grad_enabled = torch.is_grad_enabled
#: Whether the call is inside grad, vjp, vmap or the like of torch.func: then tensors may have no memory of their own.
_is_transforming = torch._C._are_functorch_transforms_active
arrays.loaded_torch()  # Asked before torch.compile can come upon the question.


def _views(op: str, tensors: Sequence[torch.Tensor | None], names: Sequence[str] = ()) -> list[Any]:
    """The tensors of a call as NumPy arrays; names: of the first ones, the others being of its backward pass."""
    _refuse_tangents(op, tensors)
    try:
        return [None if t is None else t.numpy(force=True) for t in tensors]
    except TypeError:
        # A tensor in MKL-DNN's layout looks like a dense one until it is read.
        for n, tensor in enumerate(tensors):
            rule = None if tensor is None else arrays.unfit(tensor)
            if rule is not None:
                name = names[n] if n < len(names) else "a tensor of the backward pass"
                raise TypeError(f"{op}: {name} {rule}") from None
        raise


def _refuse_tangents(name: str, tensors: Sequence[torch.Tensor | None]) -> None:
    if forward_ad._current_level >= 0 and any(map(_has_tangent, tensors)):
        raise NotImplementedError(f"{name}: {torch_autograd.NO_TANGENTS}")


def _has_tangent(tensor: torch.Tensor | None) -> bool:
    return tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None


class Bound:
    """A problem bound to its implementations: forward and backward on tensors, whatever arrays the backend takes.

    With `ones`, the tensors are without these dimensions, which those of the problem have.
    """

    def __init__(
        self, op: Op, problem: Problem, backend: Backend, forward: Implementation, backward: Implementation | None,
        ones: Ones | None = None,
    ) -> None:  # fmt: skip
        self.op = op
        self.problem = problem
        self.ones = ones
        self.returned = problem.returned
        self.empty = problem.empty
        self.takes_tensors = backend.arrays == "torch"
        self.takes_cupy = backend.arrays == "cupy"
        self.forward_implementation = forward
        self.backward_implementation = backward
        self.check = None if forward.checks_values else value_reports.checker(problem, backend.name, "torch")
        self.checks_values = self.check is not None
        self.saved_names = problem.saved()
        #: How many gradients flow in at most.
        self.incoming = min(problem.returned, op.differentiable_results)
        #: What each saved tensor must be; hooks on saved tensors may make anything of them.
        self.saved_forms = _arriving_forms(op, problem)[op.differentiable_results :]
        #: Where each saved tensor is among the inputs and the results behind them.
        self.saved_places = tuple((*op.inputs, *op.results).index(name) for name in self.saved_names)
        #: Takes them from there, as a tuple.
        self.saved_of: Callable[[tuple[Any, ...]], tuple[Any, ...]] = _taker(self.saved_places)
        takes_numpy = not self.takes_tensors and not self.takes_cupy
        suits = takes_numpy and not self.empty and not self.checks_values
        #: The passes by address (kernels.runtime.written_calls), where there are: of the inputs; of the gradients and
        #: what is saved. The gradients that it returns come behind one None, as autograd wants them.
        self.by_address = self._by_address(forward) if suits else None
        suits = suits and backward is not None and backward.backend == forward.backend
        self.backward_by_address = self._backward_by_address(backward) if backward and suits else None

    def _by_address(self, own: Implementation) -> Callable[[Sequence[torch.Tensor | None]], Tensors | None] | None:
        run = own.by_address(self.problem)
        if run is None:
            return None
        from kernels.torch_by_address import ABSENT, GIVEN, written

        names = self.op.inputs
        forms = [getattr(self.problem, name) for name in names]
        given = [(ABSENT if f is None else GIVEN, self._outside(n, f)) for n, f in zip(names, forms)]
        return written(run, [given], [self._outside(None, form) for form in self.problem.results()])

    def _backward_by_address(self, own: Implementation) -> Callable[..., Tensors | None] | None:
        run = own.backward_by_address(self.problem) if self.problem.trains else None
        if run is None:
            return None
        from kernels.runtime import by_address
        from kernels.torch_by_address import ABSENT, OPTIONAL, SAVED, written

        count = self.op.differentiable_results
        gradients: list[tuple[str, ArraySpec | None]] = []
        for n, form in enumerate(_arriving_forms(self.op, self.problem)[:count]):
            there = form is not None and n < self.incoming
            gradients.append((OPTIONAL if there else ABSENT, self._outside(None, form)))
        saved = [
            (ABSENT if form is None else SAVED, self._outside(name, form))
            for name, form in zip(self.saved_names, self.saved_forms)
        ]
        made = [self._outside(n, f) for n, f in zip(self.op.inputs, by_address.gradient_forms(self.problem))]
        return written(run, [gradients, saved], made, leading=1)

    def _has_ones(self, name: str | None) -> bool:
        """Whether an input (a result: None) is a caller's without the dimensions `ones`."""
        return self.ones is not None and name not in self.op.inputs[self.ones.inputs :]

    def _outside(self, name: str | None, form: ArraySpec | None) -> ArraySpec | None:
        """The spec of the caller's tensor for that of an input, or of a result (None), of the problem."""
        return self.ones.taken_out_of(form) if self.ones is not None and self._has_ones(name) else form

    def run(self, inputs: Sequence[torch.Tensor | None]) -> tuple[Any, ...]:
        """All results, of the kind of array that the backend makes (of CuPy's, tensors); None for an absent one."""
        if self.takes_cupy:
            return self._run_on_cupy(self.forward_implementation.forward, inputs, {})
        if not self.takes_tensors:
            inputs = _views(self.op.name, inputs, self.op.inputs)
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
        return self.forward_carefully(inputs)

    def forward_carefully(self, inputs: Sequence[torch.Tensor | None]) -> Tensors:
        """The same of any tensors."""
        if _is_transforming() and not self.takes_tensors:
            return cast("Tensors", torch_autograd.Transformed.apply(self, *inputs))
        results = self.run(inputs if self.ones is None else self.ones.put_into_inputs(inputs))
        if not self.takes_tensors and not self.takes_cupy:
            results = tuple([None if r is None else _from_numpy(r) for r in results])
        return results if self.ones is None else tuple(map(self.ones.taken_out, results))

    def backward(self, gradients: Sequence[torch.Tensor | None], saved: Sequence[torch.Tensor | None]) -> Tensors:
        """Gradients of the inputs as tensors; None for one that is not wanted.

        gradients: of each result that is differentiable, or of those alone that the caller gets.
        """
        if self.backward_by_address is not None and all(g is None for g in gradients[self.incoming :]):
            made = self.backward_by_address(gradients, saved)
            if made is not None:
                return made[1:]
        if self.ones is None:
            return self._backward_carefully(gradients, saved)
        return self._around(self._backward_carefully, gradients, saved)

    def backward_of(self, gradients: Sequence[torch.Tensor | None], ctx: Any) -> Tensors:
        """What a Function of torch's returns of its backward: nothing for this object, and the inputs' gradients."""
        gradients = gradients[: self.op.differentiable_results]
        if all(g is None for g in gradients):
            return (None,) * (len(self.op.inputs) + 1)
        run = self.backward_differentiable if _is_grad_enabled() else self.backward
        return (None, *run(gradients, ctx.saved_tensors))

    def _around(
        self, backward: Callable[..., Tensors], gradients: Sequence[torch.Tensor | None],
        saved: Sequence[torch.Tensor | None],
    ) -> Tensors:  # fmt: skip
        """A backward pass with the dimensions `ones` put into what it takes, and taken out of what it returns."""
        assert self.ones is not None
        ones, names = self.ones, self.saved_names
        kept = [ones.put_in(t) if self._has_ones(name) else t for name, t in zip(names, saved)]
        found = backward(tuple(map(ones.put_in, gradients)), kept)
        return (*map(ones.taken_out, found[: ones.inputs]), *found[ones.inputs :])

    def _backward_carefully(
        self, gradients: Sequence[torch.Tensor | None], saved: Sequence[torch.Tensor | None]
    ) -> Tensors:
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
        if self.ones is not None:
            return self._around(self._backward_recorded, gradients, saved)
        return self._backward_recorded(gradients, saved)

    def _backward_recorded(
        self, gradients: Sequence[torch.Tensor | None], saved: Sequence[torch.Tensor | None]
    ) -> Tensors:
        load(self.op.family, BACKENDS["torch"])
        stock = self.op.implementations.get("torch")
        if stock is None or stock.backward is None:
            raise NotImplementedError(f"{self.op.name}: second derivatives (create_graph=True) are not supported")
        return stock.backward(self.problem, *gradients, **dict(zip(self.saved_names, saved)))


def _arriving_forms(op: Op, problem: Problem) -> tuple[ArraySpec | None, ...]:
    """Specs of what goes into a backward pass: gradients of the differentiable results, and what is saved."""
    results = problem.results()
    known = dict(zip((*op.inputs, *op.results), (*[getattr(problem, name) for name in op.inputs], *results)))
    return (*results[: op.differentiable_results], *[known[name] for name in problem.saved()])


def _taker(places: tuple[int, ...]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Takes the elements at these places of a tuple, as a tuple."""
    return itemgetter(*places) if len(places) > 1 else lambda known: tuple([known[place] for place in places])


def _under_autograd(bound: Bound) -> Callable[[tuple[Any, ...]], Any]:
    """The op on a tuple of inputs, recorded by autograd."""
    apply, is_transforming, returned = torch_autograd.apply, _is_transforming, bound.returned

    def run(inputs: tuple[Any, ...]) -> Any:
        if not is_transforming():
            return apply(bound, *inputs)
        results = torch_autograd.Transformed.apply(bound, *inputs)
        return results[0] if returned == 1 else results[:returned]

    return run


def _without_gradients(bound: Bound) -> Callable[[tuple[Any, ...]], Any]:
    """The op on a tuple of inputs, of whose results only the caller's come back."""
    by_address, carefully, returned = bound.by_address, bound.forward_carefully, bound.returned
    if by_address is None:
        return lambda inputs: bound.problem.public(carefully(inputs))

    def run(inputs: tuple[Any, ...]) -> Any:
        found = by_address(inputs)
        if found is None:
            found = carefully(inputs)
        return found[0] if returned == 1 else found[:returned]

    return run


def runner(
    op: Op,
    problem: Problem,
    kind: str,
    backend: Backend,
    forward: Implementation,
    backward: Implementation | None,
    device: Any = None,
    ones: Ones | None = None,
) -> Callable[[tuple[Any, ...]], Any]:
    """The function that runs calls of one form when tensors are involved on either side; `device`: as it was named.

    ones: of the problem's tensors, which those of the calls have not; for NumPy's and CuPy's arrays there are none.
    """
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
        found = _without_autocast(direct, device_type)
        return found if ones is None else lambda inputs: ones.taken_out(found(ones.put_into_inputs(inputs)))
    bound = Bound(op, problem, backend, forward, backward, ones)
    if problem.trains and not backend.differentiates:
        return _under_autograd(bound)
    run = _without_gradients(bound)
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
