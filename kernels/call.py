"""The call: from a user's arguments to a kernel. A warm call costs one dictionary look-up."""

from __future__ import annotations

from ctypes import addressof, c_char
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels import arrays, checks, dispatch
from kernels.arrays import KEYS
from kernels.op import Implementation, Op, Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from kernels.backends import Backend

#: Plans kept per op; past it the cache starts anew, so that ever-changing shapes do not grow without end.
MAX_PLANS = 4096


@dataclass(frozen=True)
class Plan:
    """How calls of one form run: the checked problem, the chosen implementations, and the function that runs them."""

    op: Op
    problem: Problem
    kind: str
    backend: Backend
    forward: Implementation
    backward: Implementation | None
    run: Callable[[tuple[Any, ...]], Any]


def _is_compiling() -> bool:
    """torch.compiler.is_compiling, which takes this name's place once torch is there; before, False."""
    global _is_compiling
    # getattr: another thread may be in the middle of importing torch.
    found = getattr(getattr(arrays.loaded_torch(), "compiler", None), "is_compiling", None)
    if found is None:
        return False
    _is_compiling = found
    return _is_compiling()


# Where torch is here already, its compiler never comes upon the question above, whose answer it would look up in
# sys.modules while that changes.
_is_compiling()


def call(op: Op, inputs: tuple[Any, ...], attributes: tuple[Any, ...], device: Any, backend: str | None) -> Any:
    """Run `op` on its inputs (None for an absent optional one) and the user's attributes.

    Returns:
        the first result, or a tuple when the declaration returns several; of the same kind as the inputs. (Arrays of
        other libraries that have DLPack's methods are seen as CuPy's or NumPy's.)

    Raises:
        TypeError, ValueError, IndexError: an argument breaks a rule of the declaration.
        BackendError: the wanted backend cannot run this call; the message says why.
    """
    if _is_compiling():
        from kernels import torch_library

        return torch_library.call_registered(op, inputs, attributes, device, backend)
    wanted = dispatch.current_override.get()
    if wanted is not None:
        backend = backend or wanted.backend
        if wanted.inspect is not None:
            return wanted.inspect(op, tuple(map(arrays.from_dlpack, inputs)), attributes, device, backend)
    try:
        # One input is the commonest number by far, and a comprehension is a call.
        forms = (
            KEYS[type(inputs[0])](inputs[0])
            if len(inputs) == 1
            else tuple([None if array is None else KEYS[type(array)](array) for array in inputs])
        )
        # The types too: True and 1.0 equal 1, but an argument that must be an int refuses them.
        types = tuple(map(type, attributes)) if attributes else ()
        key: tuple[Any, ...] | None = (backend, device, attributes, types, forms)
        plan = op.plans.get(key)
    # Something unhashable, such as stride=[1, 1], no array, or a tensor without strides: planned each time.
    except (TypeError, RuntimeError):
        key = plan = None
    if plan is None:
        if any(map(arrays.has_no_memory, inputs)):
            from kernels import torch_library

            return torch_library.call_registered(op, inputs, attributes, device, backend)
        inputs = tuple(map(arrays.from_dlpack, inputs))
        plan = make_plan(op, inputs, attributes, device, backend)
        if len(op.plans) >= MAX_PLANS:
            op.plans.clear()
        if key is not None:
            op.plans[key] = plan
    return plan.run(inputs)


def make_plan(op: Op, inputs: tuple[Any, ...], attributes: tuple[Any, ...], device: Any, backend: str | None) -> Plan:
    """Check a call and choose its implementations."""
    kind, specs, needs_grad = dispatch.describe_inputs(op, inputs)
    place = dispatch.place_of(op, specs, kind, device)
    problem = replace(op.problem.check(*specs, *attributes), needs_grad=needs_grad)
    checks.results_fit(op.name, problem.results())
    chosen = dispatch.resolve(op, problem, dispatch.choice(op, backend), kind, place)
    assert chosen.implementation is not None
    backward = dispatch.backward_of(op, problem, chosen, kind, place) if problem.trains else None
    run = _runner(op, problem, kind, chosen.backend, chosen.implementation, backward, device)
    return Plan(op, problem, kind, chosen.backend, chosen.implementation, backward, run)


def _runner(
    op: Op, problem: Problem, kind: str, backend: Backend, forward: Implementation, backward: Implementation | None,
    device: Any,
) -> Callable[[tuple[Any, ...]], Any]:  # fmt: skip
    if kind == "torch" or backend.arrays == "torch":
        from kernels import torch_binding

        return torch_binding.runner(op, problem, kind, backend, forward, backward, device)
    if backend.arrays == "cupy":
        return _runner_on_cupy(problem, kind, forward, device)
    if problem.empty:
        return lambda inputs: problem.public(problem.empty_results())
    compute, alone = forward.forward, problem.returned == 1
    if problem.checks_values and not forward.checks_values:
        check = problem.check_values

        def run_checked(inputs: tuple[Any, ...]) -> Any:
            check(*inputs)
            results = compute(problem, *inputs)
            return results[0] if alone else problem.public(results)

        return run_checked
    run = forward.by_address(problem)
    if run is not None:
        return _runner_by_address(problem, forward, run)
    if alone:
        return lambda inputs: compute(problem, *inputs)[0]
    return lambda inputs: problem.public(compute(problem, *inputs))


def _runner_by_address(
    problem: Problem, forward: Implementation, run: Callable[..., Any]
) -> Callable[[tuple[Any, ...]], Any]:
    """Calls with NumPy arrays that the kernels can take as they are; others go through ``forward``."""
    from kernels.runtime import by_address

    first_byte: Callable[[Any], c_char] = c_char.from_buffer
    compute, alone = forward.forward, problem.returned == 1
    makers = tuple(map(by_address.maker, problem.results()))
    plain = np.ndarray

    def run_on_numpy(inputs: tuple[Any, ...]) -> Any:
        places = []
        for array in inputs:
            if array is None:
                places.append(0)
            elif type(array) is plain and array.flags.carray and array.size:
                # numba_cpu.address written out, here and below: a call is a tenth of a small one's time.
                places.append(addressof(first_byte(array)))
            else:
                return problem.public(compute(problem, *inputs))
        made: list[np.ndarray | None] = []
        for make in makers:
            if make is None:
                made.append(None)
                places.append(0)
            else:
                allocate, shape, dtype = make
                result = allocate(shape, dtype)
                made.append(result)
                places.append(addressof(first_byte(result)) if result.size else 0)
        if run(*places) is False:
            return problem.public(compute(problem, *inputs))
        return made[0] if alone else problem.public(tuple(made))

    return run_on_numpy


def _runner_on_cupy(
    problem: Problem, kind: str, forward: Implementation, device: Any
) -> Callable[[tuple[Any, ...]], Any]:
    """Calls of a backend that takes CuPy's arrays, with these or NumPy's."""
    from kernels.runtime import cupy_arrays, value_reports

    check = value_reports.checker(problem, forward.backend, kind)
    function = forward.forward if check is None else value_reports.behind(check, forward.forward)

    def run(inputs: tuple[Any, ...]) -> Any:
        if kind == "numpy":
            problem.check_values(*inputs)  # before they are copied
            return problem.public(cupy_arrays.on_numpy(forward.forward, problem, inputs, {}, device))
        return problem.public(cupy_arrays.on_cupy(function, problem, inputs, {}))

    return run
