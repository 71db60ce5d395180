"""What every op must declare, and the public surface that follows from it."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import pytest
import torch.nn.functional as F

import kernels
from kernels.case import TAGS, Case, all_cases
from kernels.op import OPS, Implementation, input_names
from tests.support import matrix
from tests.support.calls import run_python, simple_case
from tests.support.matrix import OP_NAMES

IMPLEMENTATIONS = [pytest.param(i, id=f"{i.op.name}-{i.backend}") for i in matrix.implementations()]


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
