"""Which backend runs: argument, block, environment, automatic choice, what a refusal says; and the cache of plans."""

from __future__ import annotations

import re
import threading
from typing import Any

import numpy as np
import pytest
import torch

import kernels
import kernels.call as kernels_call
from kernels import BackendError, use_backend
from kernels.backends import BACKENDS
from kernels.case import Case
from kernels.op import OPS
from tests.support import matrix
from tests.support.calls import leaves_to_torch, run_python, simple_case, traced
from tests.support.matrix import OP_NAMES

# ----- choosing a backend ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OP_NAMES)
def test_the_argument_names_the_backend(op: str, monkeypatch):
    ran = traced(monkeypatch, op)
    arguments = simple_case(op).build()
    for backend in matrix.backends_of(op):
        matrix.public(op)(**arguments, backend=backend)
        matrix.public(op)(**matrix.as_tensors(arguments), backend=backend)
    assert ran == [b for b in matrix.backends_of(op) for _ in range(2)]


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
