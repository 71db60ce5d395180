"""The house around the kernels: dispatch, explain, vjp, device=, the plan cache, and what every op must declare."""

from __future__ import annotations

import functools
import inspect
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kernels
import kernels.call as kernels_call
from kernels import BackendError, use_backend
from kernels.backends import BACKENDS
from kernels.case import TAGS, Case, all_cases
from kernels.op import OPS, Implementation, Problem, input_names
from tests.support import matrix

ROOT = Path(__file__).resolve().parents[1]
IMPLEMENTATIONS = [pytest.param(i, id=f"{i.op.name}-{i.backend}") for i in matrix.implementations()]
OP_NAMES = matrix.OP_NAMES


def simple_case(op: str) -> Case:
    """An op's first ordinary case."""
    return matrix.cases_of(op, "ci")[0]


def run_python(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter that inherits none of the library's settings."""
    clean = {n: v for n, v in os.environ.items() if not n.startswith("KERNELS_BACKEND")}
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**clean, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


def traced(monkeypatch: pytest.MonkeyPatch, op: str) -> list[str]:
    """Names of the backends whose forward runs from now on, in order."""
    ran: list[str] = []

    def watch(backend: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*arguments: Any) -> Any:
            ran.append(backend)
            return function(*arguments)

        return forward

    declared = OPS[op]
    watched = {}
    for backend in matrix.backends_of(op):
        found = declared.implementations[backend]
        fields = {n: getattr(found, n) for n in found.__dataclass_fields__}
        made = object.__new__(Implementation)

        def short_cut(problem: Problem, backend: str, own: Any) -> Any:
            function = own(problem)
            return None if function is None else watch(backend, function)

        ways = {"forward": watch(backend, found.forward)}
        ways |= {n: functools.partial(short_cut, backend=backend, own=fields[n]) for n in ("direct", "by_address")}
        for name, value in (fields | ways).items():
            object.__setattr__(made, name, value)
        watched[backend] = made
    monkeypatch.setattr(declared, "implementations", {**declared.implementations, **watched})
    monkeypatch.setattr(declared, "plans", {})
    return ran


# ----- choosing a backend ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OP_NAMES)
def test_the_argument_names_the_backend(op: str, monkeypatch):
    ran = traced(monkeypatch, op)
    arguments = simple_case(op).build()
    for backend in matrix.backends_of(op):
        matrix.public(op)(**arguments, backend=backend)
        matrix.public(op)(**matrix.as_tensors(arguments), backend=backend)
    assert ran == [b for b in matrix.backends_of(op) for _ in range(2)]


def leaves_to_torch(op: str, tensors: dict[str, Any]) -> bool:
    """Whether the table says that torch's own function is faster for this call, and there is one."""
    problem, declared = kernels.explain(op, **tensors).problem, OPS[op]
    own, stock = declared.implementations["numba"], declared.implementations["torch"]
    return problem.flops() < own.torch_below(problem) and stock.direct(problem) is not None


@pytest.mark.parametrize("op", OP_NAMES)
def test_automatic_takes_the_best(op: str, monkeypatch):
    ran = traced(monkeypatch, op)
    arguments = simple_case(op).build()
    best = list(matrix.backends_of(op))
    for_numpy = [b for b in best if b != "torch"]  # torch's op runs on NumPy arrays by name only
    matrix.public(op)(**arguments)
    matrix.public(op)(**arguments, backend="auto")
    tensors = matrix.as_tensors(arguments)
    matrix.public(op)(**tensors)
    assert ran == [for_numpy[0], for_numpy[0], "torch" if leaves_to_torch(op, tensors) else best[0]]


def test_order_of_choice(monkeypatch):
    """Argument before with block before environment; the innermost block wins and the outer one returns."""
    op = OP_NAMES[0]
    ran = traced(monkeypatch, op)
    arguments = simple_case(op).build()

    def run(backend: str | None = None) -> str:
        matrix.public(op)(**arguments, backend=backend)
        return ran[-1]

    best = run()
    with use_backend("reference"):
        assert run() == "reference"
        assert run("torch") == "torch"
        with use_backend("torch"):
            assert run() == "torch"
            assert run("reference") == "reference"
            with use_backend("auto"):
                assert run() == best
            assert run() == "torch"
        assert run() == "reference"
        with pytest.raises(ZeroDivisionError), use_backend("torch"):
            raise ZeroDivisionError
        assert run() == "reference"
    assert run() == best


def test_a_with_block_holds_for_its_own_thread_alone(monkeypatch):
    op = OP_NAMES[0]
    arguments = simple_case(op).build()
    inside, done = threading.Event(), threading.Event()
    seen: list[str | None] = []

    def other() -> None:
        with use_backend("torch"):
            inside.set()
            done.wait(60)
            seen.append(kernels.explain(op, **arguments).chosen)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(60)
    with use_backend("reference"):
        seen.append(kernels.explain(op, **arguments).chosen)
    done.set()
    thread.join()
    assert seen == ["reference", "torch"]


@pytest.mark.parametrize("wanted, expected", [("reference", "reference"), ("", None), ("auto", None)])
def test_the_environment_names_the_backend(wanted: str, expected: str | None):
    op = OP_NAMES[0]
    program = f"""
import kernels
from kernels.case import all_cases
case = next(c for c in all_cases("ci") if c.op == {op!r})
print(kernels.explain({op!r}, **case.build()).chosen)
with kernels.use_backend("torch"):
    print(kernels.explain({op!r}, **case.build()).chosen)
"""
    finished = run_python(program, KERNELS_BACKEND=wanted)
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    best = next(b for b in matrix.backends_of(op) if b != "torch")
    assert [lines[len(lines) // 2 - 1], lines[-1]] == [expected or best, "torch"]


def test_the_environment_may_not_name_what_is_unknown():
    case = simple_case(OP_NAMES[0])
    program = f"""
import kernels
from kernels.case import all_cases
case = next(c for c in all_cases("ci") if c.id == {case.id!r})
getattr(kernels, case.op)(**case.build())
"""
    finished = run_python(program, KERNELS_BACKEND="numbra")
    assert finished.returncode != 0
    last = finished.stderr.strip().splitlines()[-1]
    assert re.search(r"BackendError: .*KERNELS_BACKEND must be one of auto, .*reference, got 'numbra'", last)


@pytest.mark.parametrize("name", ["tritn", "", 3, "Numba", ("numba",)])
def test_unknown_names(name: object):
    op = OP_NAMES[0]
    known = "auto, triton, cupy, numba, torch, reference"
    with pytest.raises(BackendError, match=rf"^{op}: backend must be one of {known}, got {re.escape(repr(name))}$"):
        matrix.public(op)(**simple_case(op).build(), backend=name)
    with pytest.raises(BackendError, match=f"^use_backend: name must be one of {known}"), use_backend(name):  # type: ignore[arg-type]
        pytest.fail("the block must not be entered")


@pytest.mark.parametrize("backend", [b.name for b in BACKENDS.values() if "cpu" not in b.devices])
@pytest.mark.parametrize("op", OP_NAMES)
def test_a_gpu_backend_on_a_cpu_call_says_why_not(op: str, backend: str):
    with pytest.raises(BackendError) as caught:
        matrix.public(op)(**simple_case(op).build(), backend=backend)
    text = str(caught.value)
    assert text.startswith(f"{op}: backend {backend!r} cannot run ") and "\n" not in text
    assert "it runs on cuda, this call is on cpu" in text
    if BACKENDS[backend].missing():
        assert BACKENDS[backend].missing() in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU; the message without one is tested")
@pytest.mark.parametrize("op", OP_NAMES)
def test_device_cuda_without_a_gpu_says_what_is_missing(op: str):
    with pytest.raises(BackendError) as caught:
        matrix.public(op)(**simple_case(op).build(), device="cuda")
    assert str(caught.value).startswith(f"{op}: no backend on cuda can run ")
    assert "triton: " in str(caught.value) and "cupy: " in str(caught.value)


def test_backends_are_listed_best_first():
    assert list(BACKENDS) == ["triton", "cupy", "numba", "torch", "reference"]


# ----- device= and the kinds of array ------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OP_NAMES)
def test_device_cpu_changes_nothing(op: str):
    arguments = simple_case(op).build()
    for kind in (arguments, matrix.as_tensors(arguments)):
        plain = matrix.results_of(matrix.public(op)(**kind))
        for a, b in zip(plain, matrix.results_of(matrix.public(op)(**kind, device="cpu"))):
            np.testing.assert_array_equal(matrix.to_numpy(a), matrix.to_numpy(b))
    found = matrix.results_of(matrix.public(op)(**matrix.as_tensors(arguments), device=torch.device("cpu")))
    assert torch.is_tensor(found[0])


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:x", "", 0, "cuda:-1", "mps"])
@pytest.mark.parametrize("op", OP_NAMES)
def test_unknown_devices(op: str, device: object):
    message = rf"^{op}: device must be 'cpu', 'cuda' or 'cuda:N', got {re.escape(repr(str(device)))}$"
    with pytest.raises(ValueError, match=message):
        matrix.public(op)(**simple_case(op).build(), device=device)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
@pytest.mark.parametrize("op", OP_NAMES)
def test_tensors_say_their_device_themselves(op: str, device: str):
    tensors = matrix.as_tensors(simple_case(op).build())
    message = rf"^{op}: device must agree with that of the arrays \(cpu\), got '{device}'$"
    with pytest.raises(ValueError, match=message):
        matrix.public(op)(**tensors, device=device)


def _with_two_arrays() -> list[Any]:
    found = []
    for op in OP_NAMES:
        case = next((c for c in matrix.cases_of(op) if len(matrix.array_names(c.build())) > 1), None)
        if case is not None:
            found.append(pytest.param(case, id=op))
    return found


@pytest.mark.parametrize("case", _with_two_arrays())
def test_kinds_do_not_mix(case: Case):
    arguments = case.build()
    first, second, *_ = matrix.array_names(arguments)
    tensors = matrix.as_tensors(arguments)
    message = f"^{case.op}: {second} must be a %s array, as {first} is, got a %s array$"
    with pytest.raises(TypeError, match=message % ("numpy", "torch")):
        matrix.public(case.op)(**(arguments | {second: tensors[second]}))
    with pytest.raises(TypeError, match=message % ("torch", "numpy")):
        matrix.public(case.op)(**(tensors | {second: arguments[second]}))


@pytest.mark.parametrize("case", _with_two_arrays())
def test_devices_do_not_mix(case: Case):
    tensors = matrix.as_tensors(case.build())
    first, second, *_ = matrix.array_names(tensors)
    tensors[second] = tensors[second].to("meta")
    message = rf"^{case.op}: {second} must be on the device of {first} \(cpu\), got meta$"
    with pytest.raises(ValueError, match=message):
        matrix.public(case.op)(**tensors)


@pytest.mark.parametrize("case", _with_two_arrays())
def test_dtypes_do_not_mix(case: Case):
    arguments = case.build("float32")
    floating = [n for n in matrix.array_names(arguments) if arguments[n].dtype.kind == "f"]
    for name in floating[1:]:
        mixed = arguments | {name: arguments[name].astype("float64")}
        message = rf"^{case.op}: {name} must have the dtype of {floating[0]} \(float32\), got float64$"
        with pytest.raises(TypeError, match=message):
            matrix.public(case.op)(**mixed)


@pytest.mark.parametrize("wrong", [[[1.0]], 3, "array", None, object()], ids=["list", "int", "str", "None", "object"])
@pytest.mark.parametrize("op", OP_NAMES)
def test_what_is_no_array_is_refused(op: str, wrong: object):
    arguments = simple_case(op).build()
    name = OPS[op].inputs[0]
    shown = "None" if wrong is None else type(wrong).__name__
    with pytest.raises(TypeError, match=f"^{op}: {name} must be a NumPy, torch or CuPy array, got {shown}$"):
        matrix.public(op)(**(arguments | {name: wrong}))


# ----- plans -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OP_NAMES)
def test_a_second_call_of_the_same_form_makes_no_plan(op: str, monkeypatch):
    made = []

    def watch(*call: Any) -> Any:
        made.append(call)
        return make_plan(*call)

    make_plan = kernels_call.make_plan
    monkeypatch.setattr(kernels_call, "make_plan", watch)
    monkeypatch.setattr(OPS[op], "plans", {})
    for build in (lambda case: case.build(seed=0), lambda case: matrix.as_tensors(case.build(seed=1))):
        made.clear()
        for _ in range(3):
            matrix.public(op)(**build(simple_case(op)))
        assert len(made) == 1


def test_the_plan_cache_is_bounded(monkeypatch):
    op = OP_NAMES[0]
    monkeypatch.setattr(OPS[op], "plans", {})
    monkeypatch.setattr(kernels_call, "MAX_PLANS", 5)
    case = simple_case(op)
    name = OPS[op].inputs[0]
    base = case.build()
    with use_backend("reference"):
        for extra in range(12):
            array = np.concatenate([base[name]] + [base[name][:1]] * extra)
            matrix.public(op)(**(base | {name: array}))
            assert 1 <= len(OPS[op].plans) <= 5


def _listed(value: Any) -> Any:
    return [_listed(v) for v in value] if isinstance(value, (tuple, list)) else value


WITH_TUPLES = tuple(c for c in matrix.SMALL_CASES if any(isinstance(v, tuple) for v in c.arguments.values()))


@pytest.mark.parametrize("case", matrix.case_parameters(WITH_TUPLES))
def test_lists_do_for_tuples(case: Case):
    """Attributes that cannot be hashed are planned anew at each call, with the same result."""
    arguments = case.build()
    lists = {n: _listed(v) if isinstance(v, tuple) else v for n, v in arguments.items()}
    for _ in range(2):
        for a, b in zip(
            matrix.results_of(matrix.public(case.op)(**arguments)), matrix.results_of(matrix.public(case.op)(**lists))
        ):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("op", OP_NAMES)
def test_recording_and_not_recording_are_planned_apart(op: str):
    tensors = matrix.as_tensors(simple_case(op).build(), op, requires_grad=True)
    for _ in range(2):
        with torch.no_grad():
            assert not matrix.results_of(matrix.public(op)(**tensors))[0].requires_grad
        assert matrix.results_of(matrix.public(op)(**tensors))[0].requires_grad


# ----- reasons -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_why_not_names_the_dtype(implementation: Implementation):
    op = implementation.op
    arguments = matrix.as_tensors(simple_case(op.name).build())
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        cast = {n: a.to(dtype) if torch.is_tensor(a) and a.is_floating_point() else a for n, a in arguments.items()}
        reasons = implementation.why_not(matrix.capture(op.name, **cast).problem())
        name = str(dtype).removeprefix("torch.")
        if name in implementation.dtypes:
            assert not any("dtype" in r for r in reasons)
        else:
            given = next(n for n in op.differentiable if cast.get(n) is not None)
            assert f"{given} has dtype {name}; it takes {', '.join(implementation.dtypes)}" in reasons


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_case_runs_or_is_refused_with_words(implementation: Implementation):
    for case in matrix.cases_of(implementation.op.name):
        problem = matrix.capture(case.op, **case.build()).problem(True)
        reasons = implementation.why_not(problem)
        if reasons:
            print(f"{implementation.backend} does not run {case.id}: {'; '.join(reasons)}")
        assert isinstance(reasons, list) and all(isinstance(r, str) and r and "\n" not in r for r in reasons)
        assert isinstance(implementation.describe(problem), str)


# ----- explain and vjp ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OP_NAMES)
def test_explain(op: str, monkeypatch, capsys):
    ran = traced(monkeypatch, op)
    arguments = simple_case(op).build()
    for given in (arguments, matrix.as_tensors(arguments, op, requires_grad=True)):
        found = kernels.explain(op, **given)
        text = str(found)
        assert capsys.readouterr().out == text + "\n"
        assert text.splitlines()[0].startswith(f"{op}: {OPS[op].inputs[0]} float32 ")
        assert text.count("<- chosen") == 1
        assert re.search(rf"^  {found.chosen} +yes .*<- chosen$", text, re.M)
        for backend in BACKENDS:
            assert re.search(rf"^  {backend} +(yes|no  )", text, re.M)
        assert re.search(rf"^  backward: {found.backward}$", text, re.M)
        assert repr(found) == f"<Explanation: {op} runs on {found.chosen}>"
        for candidate in found.candidates:
            for reason in candidate.reasons:
                assert reason in text
            if candidate.backend.name in ("triton", "cupy"):
                assert "it runs on cuda, this call is on cpu" in candidate.reasons
    assert ran == []


@pytest.mark.parametrize("op", OP_NAMES)
def test_explain_agrees_with_the_call(op: str, monkeypatch):
    ran = traced(monkeypatch, op)
    for case in matrix.cases_of(op):
        arguments = case.build()
        if matrix.capture(op, **arguments).problem().empty:
            continue
        for backend in (None, *matrix.backends_of(op)):
            matrix.public(op)(**arguments, backend=backend)
            assert kernels.explain(op, **arguments, backend=backend).chosen == ran[-1]


@pytest.mark.parametrize("op", OP_NAMES)
def test_explain_of_what_cannot_run(op: str, capsys):
    found = kernels.explain(op, **simple_case(op).build(), backend="triton")
    assert found.chosen is None and found.backward is None and found.wanted == "triton"
    assert "backend 'triton': the call would raise BackendError" in str(found)


@pytest.mark.parametrize("op", OP_NAMES)
def test_explain_inside_use_backend(op: str, capsys):
    with use_backend("reference"):
        assert kernels.explain(op, **simple_case(op).build()).chosen == "reference"
        assert kernels.explain(op, **simple_case(op).build(), backend="torch").chosen == "torch"


@pytest.mark.parametrize("ask", [kernels.explain, kernels.vjp])
def test_unknown_ops(ask: Callable[..., Any]):
    with pytest.raises(ValueError, match=rf"^{ask.__name__}: op must be one of .*{OP_NAMES[0]}.*, got 'conv9d'$"):
        ask("conv9d", np.ones(3))


@pytest.mark.parametrize("op", OP_NAMES)
def test_a_call_after_a_failed_explain_runs(op: str):
    arguments = simple_case(op).build()
    name = OPS[op].inputs[0]
    for ask in (kernels.explain, kernels.vjp):
        with pytest.raises(TypeError, match="must be a NumPy"):
            ask(op, **(arguments | {name: [1.0]}))
    matrix.public(op)(**arguments)


@pytest.mark.parametrize("op", OP_NAMES)
def test_vjp(op: str):
    arguments = simple_case(op).build()
    value, pullback = kernels.vjp(op, **arguments)
    results = matrix.results_of(value)[: OPS[op].differentiable_results]
    for a, b in zip(matrix.results_of(value), matrix.results_of(matrix.public(op)(**arguments))):
        np.testing.assert_array_equal(a, b)
    ones = [np.ones_like(r) for r in results]
    first, second = pullback(*ones), pullback(*ones)
    assert len(first) == len(OPS[op].inputs)
    for name, a, b in zip(OPS[op].inputs, first, second):
        wanted = name in matrix.differentiable_names(op, arguments)
        assert (a is not None) == wanted
        if wanted:
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match=rf"^vjp: pullback of {op} takes {len(ones)} gradients, got {len(ones) + 1}$"):
        pullback(*ones, ones[0])
    with pytest.raises(ValueError, match=r"^vjp: gradient of \w+ must have shape \(.*\), got \(.*\)$"):
        pullback(*[np.ones((*o.shape, 7), o.dtype) for o in ones])


@pytest.mark.parametrize("op", OP_NAMES)
def test_vjp_is_for_numpy(op: str):
    with pytest.raises(TypeError, match=r"^vjp: \w+ must be a NumPy or CuPy array .*, got a torch array$"):
        kernels.vjp(op, **matrix.as_tensors(simple_case(op).build()))


# ----- declarations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OP_NAMES)
def test_every_op_has_its_backends(op: str):
    assert matrix.backends_of(op) == ("numba", "torch", "reference")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_signatures_are_those_declared(implementation: Implementation):
    """forward(problem, *inputs) and backward(problem, grad_<result>..., what it reads): the same names everywhere."""
    op = implementation.op
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward = list(inspect.signature(implementation.forward).parameters.values())
    assert [p.name for p in forward[1:]] == list(op.inputs)
    assert all(p.kind is positional for p in forward)
    assert forward[0].name in ("p", "problem")
    if implementation.backward is None:
        return
    backward = list(inspect.signature(implementation.backward).parameters.values())
    incoming = [f"grad_{r}" for r in op.results[: op.differentiable_results]]
    assert backward[0].name in ("p", "problem")
    assert [p.name for p in backward[1 : 1 + len(incoming)]] == incoming
    rest = backward[1 + len(incoming) :]
    assert {p.name for p in rest} <= {*op.inputs, *op.results}
    for case in matrix.cases_of(op.name):
        saved = set(matrix.capture(op.name, **case.build()).problem(True).saved())
        needed = {p.name for p in rest if p.default is p.empty}
        assert needed <= saved <= {p.name for p in rest}, f"{case.id}: saved {saved}"


@pytest.mark.parametrize("op", OP_NAMES)
def test_cases_of_every_kind(op: str):
    found = [c for c in all_cases() if c.op == op]
    # Cases for the GPU kernels alone are where the others have no shapes that their vectors like.
    assert {"gpu", *(tag for c in found for tag in c.tags)} == set(TAGS)
    assert all(set(c.tags) <= set(TAGS) for c in found)
    assert len({c.name for c in found}) == len(found)


@pytest.mark.parametrize("case", matrix.case_parameters())
def test_declared_costs(case: Case):
    problem = matrix.capture(case.op, **case.build()).problem()
    assert isinstance(problem.flops(), int) and problem.flops() >= 0
    if not problem.empty:
        assert problem.bytes_moved() > 0
    assert len(problem.results()) == len(OPS[case.op].results)
    assert len(problem.gradients()) == len(OPS[case.op].inputs)
    assert 1 <= problem.returned <= len(OPS[case.op].results)
    assert hash(problem) == hash(matrix.capture(case.op, **case.build()).problem())
    assert set(problem.saved()) <= {*OPS[case.op].inputs, *OPS[case.op].results}


@pytest.mark.parametrize("case", matrix.case_parameters())
def test_cases_build_the_same_numbers_every_time(case: Case):
    first, second = case.build(), case.build()
    for name in matrix.array_names(first):
        np.testing.assert_array_equal(first[name], second[name])


# ----- the public surface ------------------------------------------------------------------------------------------

#: Arguments of ours that torch's functions do not have, keyword-only: they come after torch's own.
OURS = {"activation": None, "seed": None, "stream": 0, "device": None, "backend": None}

#: torch's arguments that make no sense here: in-place results, the places of deprecated spellings, and sizes of chunks.
NOT_OURS = {"inplace", "_stacklevel", "size_average", "reduce", "options"}

#: Ops whose further arguments are keyword-only, as torch's are.
WITH_KEYWORDS = {"linear_cross_entropy": 3}


def torch_parameters(name: str) -> list[tuple[str, Any]] | None:
    """(name, default) of the parameters of torch's function of that name; None where torch has none."""
    function = getattr(F, name, None)
    if function is None:
        return None
    try:
        parameters = inspect.signature(function).parameters.values()
        if not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            return [(p.name, p.default) for p in parameters]
    except ValueError:
        pass
    line = re.search(rf"^\s*{name}\((.*?)\)\s*(->.*?)?$", function.__doc__, re.M | re.S)
    assert line, f"torch.nn.functional.{name} documents no signature"
    pairs = (part.partition("=") for part in re.split(r",\s+", line.group(1).replace("*, ", "")))
    return [(n.strip(), eval(d, {}) if equals else inspect.Parameter.empty) for n, equals, d in pairs]


@pytest.mark.parametrize("op", OP_NAMES)
def test_the_public_signature_is_torchs(op: str):
    theirs = torch_parameters(op)
    ours = inspect.signature(matrix.public(op)).parameters
    assert [(n, ours[n].default) for n in ("device", "backend")] == [("device", None), ("backend", None)]
    assert all(ours[n].kind is inspect.Parameter.KEYWORD_ONLY for n in OURS if n in ours)
    if theirs is None:
        return
    first = "input" if "input" in ours else "x"
    expected = [(first if n == "input" else n, d) for n, d in theirs if n not in NOT_OURS]
    # softmax's dim has a deprecated default in torch; ours is the last dimension.
    expected = [(n, -1 if op in ("softmax", "log_softmax") and n == "dim" else d) for n, d in expected]
    assert [(p.name, p.default) for p in ours.values() if p.name not in OURS] == expected
    positional = [p.name for p in ours.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional == [n for n, _ in expected][: WITH_KEYWORDS.get(op)]


@pytest.mark.parametrize("op", OP_NAMES)
def test_the_declaration_names_the_public_arguments(op: str):
    ours = inspect.signature(matrix.public(op)).parameters
    assert set(input_names(OPS[op].problem)) <= set(ours) | {"probabilities"}
    case = simple_case(op)
    assert set(case.build()) <= set(ours)


@pytest.mark.parametrize("op", OP_NAMES)
def test_docstrings_are_whole(op: str):
    text = inspect.getdoc(matrix.public(op)) or ""
    for section in ("Args:", "Returns:", "Raises:"):
        assert section in text
    for name in inspect.signature(matrix.public(op)).parameters:
        assert re.search(rf"^\s+(\w+, )*{name}(, \w+)*: ", text, re.M), f"{op} does not document {name}"


def test_import_is_light():
    program = """
import sys
import kernels
heavy = {"torch", "cupy", "triton", "numba", "llvmlite", "scipy", "matplotlib"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""
    finished = run_python(program)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == "[]"


def test_numpy_calls_never_import_torch():
    program = """
import sys
import kernels
from kernels.case import all_cases
for case in all_cases("ci"):
    getattr(kernels, case.op)(**case.build(), backend="reference")
assert "torch" not in sys.modules
"""
    finished = run_python(program)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("name", ["use_backend", "explain", "vjp", "info", "BackendError"])
def test_the_house_has_its_functions(name: str):
    assert hasattr(kernels, name)
