"""Reasons, explain and vjp."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels import use_backend
from kernels.backends import BACKENDS
from kernels.op import OPS, Implementation
from tests.support import matrix
from tests.support.calls import simple_case, traced
from tests.support.matrix import OP_NAMES

IMPLEMENTATIONS = [pytest.param(i, id=f"{i.op.name}-{i.backend}") for i in matrix.implementations()]


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
