"""Automatic choice on tensors: small calls go to torch's own function by a fixed table, and `explain` says why."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels.case import Case, all_cases
from kernels.op import OPS
from tests.support import matrix

ROOT = Path(__file__).resolve().parents[1]
matrix.implementations()  # loads them


def problem_of(case: Case, training: bool) -> Any:
    tensors = matrix.as_tensors(case.build(), case.op, requires_grad=training)
    return kernels.explain(case.op, **tensors).problem


def choices() -> list[Any]:
    """A parameter (case, training, whether torch is chosen) for each case of each op that has a limit."""
    found = []
    for case in all_cases("ci"):
        own, stock = (OPS[case.op].implementations[b] for b in ("numba", "torch"))
        for training in (False, True):
            problem = problem_of(case, training)
            limit = own.torch_below(problem)
            if limit:
                chosen = problem.flops() < limit and stock.direct(problem) is not None and not problem.empty
                passes = "training" if training else "forward"
                found.append(pytest.param(case, training, chosen, id=f"{case.id}-{passes}"))
    return found


CHOICES = choices()


def test_there_are_cases_on_both_sides():
    assert {p.values[2] for p in CHOICES} == {True, False}
    ops = {"linear", "layer_norm", "softmax", "log_softmax", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "relu"}
    assert ops <= {p.values[0].op for p in CHOICES}


@pytest.mark.parametrize("case, training, chosen", CHOICES)
def test_the_table_decides_on_tensors_alone(case: Case, training: bool, chosen: bool):
    arguments = case.build()
    tensors = matrix.as_tensors(arguments, case.op, requires_grad=training)
    found = kernels.explain(case.op, **tensors)
    assert found.chosen == ("torch" if chosen else "numba")
    assert kernels.explain(case.op, **arguments).chosen == "numba"
    assert kernels.explain(case.op, **tensors, backend="numba").chosen == "numba"
    with kernels.use_backend("numba"):
        assert kernels.explain(case.op, **tensors).chosen == "numba"
    with kernels.use_backend("numba"), kernels.use_backend("auto"):
        assert kernels.explain(case.op, **tensors).chosen == found.chosen


@pytest.mark.parametrize("case, training, chosen", CHOICES)
def test_results_and_gradients_are_those_of_the_backend(case: Case, training: bool, chosen: bool):
    """The same bits as when it is named, forward and backward, in the declared layout."""
    name = "torch" if chosen else "numba"

    def run(backend: str | None) -> list[torch.Tensor]:
        tensors = matrix.as_tensors(case.build(), case.op, requires_grad=training)
        results = matrix.results_of(matrix.public(case.op)(**tensors, backend=backend))
        if not training:
            return list(results)
        wanted = [tensors[n] for n in matrix.differentiable_names(case.op, tensors)]
        gradients = torch.autograd.grad(results[0], wanted, torch.ones_like(results[0]))
        return [*results, *gradients]

    for found, expected in zip(run(None), run(name), strict=True):
        assert torch.equal(found, expected) and found.stride() == expected.stride()
    numba, chosen_one = run("numba"), run(None)
    assert [r.stride() for r in numba[:1]] == [r.stride() for r in chosen_one[:1]]


def test_the_reason_is_shown(capsys):
    x, weight = torch.ones(16, 64), torch.ones(10, 64)
    found = kernels.explain("linear", x, weight)
    limit = OPS["linear"].implementations["numba"].torch_below(found.problem)
    work = 2 * 16 * 64 * 10
    assert work < limit
    reasons = {c.backend.name: c.reasons for c in found.candidates}
    assert reasons["numba"] == (
        f"torch is faster without gradients below {limit} operations, this call has {work} (python -m bench auto)",
    )
    assert reasons["torch"] == () and found.chosen == found.backward == "torch"
    assert "yes  " in capsys.readouterr().out
    trained = kernels.explain("linear", x, weight.requires_grad_())
    assert "torch is faster with gradients below" in str(trained) and trained.chosen == "torch"


def test_the_limit_itself_is_ours(monkeypatch):
    x, weight = torch.rand(5, 7), torch.rand(3, 7)
    work = 2 * 5 * 7 * 3
    declared = OPS["linear"].implementations["numba"]
    for limit, expected in ((work, "numba"), (work + 1, "torch")):
        changed = copy.copy(declared)
        object.__setattr__(changed, "torch_below", lambda _, limit=limit: limit)
        monkeypatch.setitem(OPS["linear"].implementations, "numba", changed)
        assert kernels.explain("linear", x, weight).chosen == expected


def test_where_torch_has_no_such_function_ours_runs():
    x, weight = torch.rand(8, 6), torch.rand(3, 6)
    assert kernels.explain("linear", x, weight).chosen == "torch"
    assert kernels.explain("linear", x, weight[0]).chosen == "numba"  # F.linear refuses such a weight with a bias
    assert kernels.explain("linear", torch.rand(6, 8).t(), weight).chosen == "numba"
    assert kernels.explain("embedding", torch.tensor([1]), weight).chosen == "numba"  # torch's errors are not ours
    with pytest.raises(IndexError, match="embedding: input must lie in"):
        kernels.embedding(torch.tensor([3]), weight)


def test_autograd_is_torchs_own():
    x, weight, bias = (torch.rand(s, requires_grad=True) for s in ((8, 6), (3, 6), (3,)))
    y = kernels.linear(x, weight, bias)
    assert type(y.grad_fn) is type(F.linear(x, weight, bias).grad_fn)
    large = kernels.linear(torch.rand(512, 512, requires_grad=True), torch.rand(512, 512))
    assert large.grad_fn is not None and "Apply" in type(large.grad_fn).__name__
    (once,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (twice,) = torch.autograd.grad(once.sum(), x)
    # The sum over squares of x W^T + b: its gradient is 2 y W, whose sum over elements has the gradient 2 W^T W 1.
    torch.testing.assert_close(twice, 2 * (weight.T @ weight).sum(1).expand(8, 6).detach())


def test_torch_is_never_imported_for_it():
    program = "import sys, numpy as np, kernels; kernels.relu(np.ones(3, 'f')); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_numpy_and_tensors_agree():
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((8, 6)).astype("f"), rng.standard_normal((3, 6)).astype("f")
    there = kernels.linear(torch.from_numpy(x), torch.from_numpy(weight))
    np.testing.assert_allclose(there.numpy(), kernels.linear(x, weight), rtol=1e-6, atol=1e-6)
