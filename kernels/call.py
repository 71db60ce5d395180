"""The call: from a user's arguments to a kernel. A warm call costs a dictionary look-up, and a few questions or one
more."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kernels import arrays, checks, dispatch, recent
from kernels.arrays import KEYS
from kernels.op import Implementation, Op, Problem, input_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from kernels.backends import Backend
    from kernels.ones import Ones

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
    #: Whether calls of this form are recognised without the key: see `recent.remember`.
    is_remembered: bool = False


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


def call(
    op: Op, inputs: tuple[Any, ...], attributes: tuple[Any, ...], device: Any, backend: str | None,
    ones: Ones | None = None,
) -> Any:  # fmt: skip
    """Run `op` on its inputs (None for an absent optional one) and the user's attributes.

    Args:
        op: the op.
        inputs, attributes: as its declaration has them.
        device, backend: as the user named them.
        ones: dimensions of size 1 that the op has and these arrays have not.

    Returns:
        the first result, or a tuple when the declaration returns several; of the same kind as the inputs. (Arrays of
        other libraries that have DLPack's methods are seen as CuPy's or NumPy's.)

    Raises:
        TypeError, ValueError, IndexError: an argument breaks a rule of the declaration.
        MemoryError: there is no memory for the results, or for what is made on the way.
        BackendError: the wanted backend cannot run this call; the message says why.
    """
    if _is_compiling():
        return _call_registered(op, inputs, attributes, device, backend, ones)
    wanted = dispatch.current_override.get()
    if wanted is not None:
        backend = backend or wanted.backend
        if wanted.inspect is not None:
            inspect, inputs = wanted.inspect, tuple(map(arrays.plain, inputs))
            try:
                if ones is None:
                    return inspect(op, inputs, attributes, device, backend)
                return ones.returned(inspect(op, ones.put_into_inputs(inputs), attributes, device, backend))
            except MemoryError as error:
                raise _out_of_memory(op, inputs, error) from None
    known: tuple[Any, ...] = ()
    if len(inputs) >= recent.LEAST:
        try:
            known = op.plans.get(inputs[0].shape, ())
        except (AttributeError, TypeError, RuntimeError):
            known = ()  # No array, or none with a shape, as the making of a plan will say.
        for fits, run in known:
            if fits(inputs, attributes, device, backend, ones):
                try:
                    return run(inputs)
                except MemoryError as error:
                    raise _out_of_memory(op, inputs, error) from None
    try:
        # One input is the commonest number by far, and a comprehension is a call.
        forms = (
            KEYS[type(inputs[0])](inputs[0])
            if len(inputs) == 1
            else tuple([None if array is None else KEYS[type(array)](array) for array in inputs])
        )
        # The types too: True and 1.0 equal 1, but an argument that must be an int refuses them.
        types = tuple(map(type, attributes)) if attributes else ()
        key: tuple[Any, ...] | None = (backend, device, attributes, types, ones, forms)
        plan = op.plans.get(key)
    # Something unhashable, such as stride=[1, 1], no array, or a tensor without strides or shape: planned each time.
    except (TypeError, RuntimeError, ValueError):
        key = plan = None
    try:
        if plan is None:
            if any(map(arrays.has_no_memory, inputs)):
                return _call_registered(op, inputs, attributes, device, backend, ones)
            inputs = tuple(map(arrays.from_dlpack, inputs))
            plan = make_plan(op, inputs, attributes, device, backend, ones)
            if len(op.plans) > MAX_PLANS - 2:
                op.plans.clear()
            if key is not None:
                is_kept = recent.remember(op.plans, inputs, (attributes, device, backend, ones), plan.run)
                op.plans[key] = replace(plan, is_remembered=is_kept)
        elif plan.is_remembered and len(known) < recent.MOST:
            recent.remember(op.plans, inputs, (attributes, device, backend, ones), plan.run)
        return plan.run(inputs)
    except MemoryError as error:
        raise _out_of_memory(op, inputs, error) from None


def _out_of_memory(op: Op, inputs: tuple[Any, ...], error: MemoryError) -> MemoryError:
    """The same error in the house's words: it came of a copy or of working memory, if not of `dispatch.check_sizes`."""
    if str(error).startswith(f"{op.name}: "):
        return error
    given = [f"{name} {tuple(a.shape)}" for name, a in zip(op.inputs, inputs, strict=True) if a is not None]
    rule = "what is made on the way must fit into memory"
    return MemoryError(f"{op.name}: {rule}, got {checks.shown(str(error))}, of {', '.join(given)}")


def _call_registered(
    op: Op, inputs: tuple[Any, ...], attributes: tuple[Any, ...], device: Any, backend: str | None, ones: Ones | None
) -> Any:
    """The op as torch knows it."""
    from kernels import torch_library

    if ones is None:
        return torch_library.call_registered(op, inputs, attributes, device, backend)
    inputs = ones.put_into_inputs(inputs)
    return ones.returned(torch_library.call_registered(op, inputs, attributes, device, backend))


def make_plan(
    op: Op, inputs: tuple[Any, ...], attributes: tuple[Any, ...], device: Any, backend: str | None,
    ones: Ones | None = None,
) -> Plan:  # fmt: skip
    """Check a call and choose its implementations; arguments as those of `call`."""
    given, inputs = inputs, tuple(map(arrays.plain, inputs))
    has_subclasses = any(a is not b for a, b in zip(given, inputs, strict=True))
    if ones is not None:
        inputs = ones.put_into_inputs(inputs)
    kind, specs, needs_grad = dispatch.describe_inputs(op, inputs)
    place = dispatch.place_of(op, specs, kind, device)
    problem = replace(op.problem.check(*specs, *attributes), needs_grad=needs_grad)
    dispatch.check_sizes(op, problem, place)
    chosen = dispatch.resolve(op, problem, dispatch.choice(op, backend), kind, place)
    assert chosen.implementation is not None
    if kind == "torch" and chosen.backend.arrays != "torch":
        _refuse_own_dispatch(op, inputs, chosen.backend)
    backward = dispatch.backward_of(op, problem, chosen, kind, place) if problem.trains else None
    run = _runner(op, problem, kind, chosen.backend, chosen.implementation, backward, device, ones)
    if has_subclasses:
        whole = run

        def run(inputs: tuple[Any, ...]) -> Any:
            return whole(tuple(map(arrays.plain, inputs)))

    return Plan(op, problem, kind, chosen.backend, chosen.implementation, backward, run)


def _refuse_own_dispatch(op: Op, inputs: tuple[Any, ...], backend: Backend) -> None:
    """Kernels read a tensor's memory, whatever its class would have made of torch's operations."""
    for name, array in zip(op.inputs, inputs, strict=True):
        if array is not None and arrays.has_own_dispatch(array):
            rule = f"must be a plain tensor on backend {backend.name!r} (backend='torch' takes others)"
            checks.fail_type_name(op.name, name, rule, f"a {type(array).__name__}, which has a __torch_dispatch__")


def _runner(
    op: Op, problem: Problem, kind: str, backend: Backend, forward: Implementation, backward: Implementation | None,
    device: Any, ones: Ones | None,
) -> Callable[[tuple[Any, ...]], Any]:  # fmt: skip
    if kind == "torch":
        from kernels import torch_binding

        return torch_binding.runner(op, problem, kind, backend, forward, backward, device, ones)
    run = whole = _runner_on_arrays(op, problem, kind, backend, forward, backward, device)
    if ones is not None:

        def run(inputs: tuple[Any, ...]) -> Any:
            return ones.returned(whole(ones.put_into_inputs(inputs)))

    is_unchecked = problem.checks_values and not forward.checks_values
    if backend.arrays != "numpy" or problem.empty or is_unchecked:
        return run
    places = forward.by_address(problem)
    return run if places is None else _runner_by_address(problem, run, places, ones)


def _runner_on_arrays(
    op: Op, problem: Problem, kind: str, backend: Backend, forward: Implementation, backward: Implementation | None,
    device: Any,
) -> Callable[[tuple[Any, ...]], Any]:  # fmt: skip
    """Calls with arrays of NumPy's or CuPy's."""
    if backend.arrays == "torch":
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
    if alone:
        return lambda inputs: compute(problem, *inputs)[0]
    return lambda inputs: problem.public(compute(problem, *inputs))


def _runner_by_address(
    problem: Problem, carefully: Callable[[tuple[Any, ...]], Any], run: Callable[..., Any], ones: Ones | None
) -> Callable[[tuple[Any, ...]], Any]:
    """Calls with NumPy arrays that the kernels can take as they are; others go the careful way."""
    from kernels.runtime.written_calls import ABSENT, GIVEN, written

    forms = [getattr(problem, name) for name in input_names(type(problem))]
    # What is asked of NumPy's arrays does not hang on their shapes, which are without `ones` here.
    given = [(ABSENT if form is None else GIVEN, form) for form in forms]
    made = problem.results() if ones is None else tuple(map(ones.taken_out_of, problem.results()))
    call, returned = written("numpy", run, [given], made), problem.returned

    def run_on_numpy(inputs: tuple[Any, ...]) -> Any:
        found = call(inputs)
        if found is None:
            return carefully(inputs)
        return found[0] if returned == 1 else found[:returned]

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
