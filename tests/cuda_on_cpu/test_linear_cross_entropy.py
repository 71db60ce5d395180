"""linear_cross_entropy of the backend "cupy": NumPy multiplies in cuBLAS's place, CUDA C++ runs on the CPU."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

import kernels
from kernels.case import Case
from kernels.linear_cross_entropy import chunks, cupy_gpu
from kernels.op import OPS
from tests.cuda_on_cpu import helpers
from tests.cuda_on_cpu.helpers import on_cpu
from tests.support import matrix, oracle

OP = "linear_cross_entropy"
pytestmark = helpers.needs_harness


@pytest.fixture(params=[1, 60], ids=lambda n: f"{n} logits")
def size_of_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So many logits at a time, or as many as x has elements."""
    monkeypatch.setattr(chunks, "CHUNK", request.param)
    return int(request.param)


@pytest.mark.parametrize("dtype", ["float32", "float64", *helpers.HALVES])
@pytest.mark.parametrize("case", helpers.small_cases(OP))
def test_cases_in_several_chunks(case: Case, dtype: str, size_of_chunks: int):
    """In half precision the sums over the chunks are float32, and rounded once."""
    with on_cpu(order="random", seed=1):
        complaints = helpers.half_complaints if dtype in helpers.HALVES else helpers.complaints
        helpers.report(complaints(case, dtype))


def arguments_of(rows: int, features: int, classes: int) -> dict[str, Any]:
    """With a bias, one row ignored."""
    weight, bias = helpers.numbers(classes, features, seed=1), helpers.numbers(classes, seed=2)
    target = np.random.default_rng(0).integers(0, classes, rows)
    target[0] = -100
    return {"input": helpers.numbers(rows, features), "linear_weight": weight, "target": target, "linear_bias": bias}


@pytest.mark.parametrize("columns", [False, True], ids=["along rows", "across rows"])
def test_the_kernels_that_run_are_these(columns: bool, monkeypatch: pytest.MonkeyPatch):
    """Two chunks: each makes its logits, forward and again backward; the loss is summed once, and nothing else runs."""
    monkeypatch.setattr(chunks, "CHUNK", 60)
    arguments = arguments_of(6, 4, 20)
    if columns:
        arguments |= {"linear_weight": helpers.numbers(5, 4, 4), "linear_bias": helpers.numbers(5, 4)}
        arguments["target"] = np.arange(24).reshape(6, 4) % 5
    expected = oracle.expect(OP, arguments)
    with on_cpu() as launched:
        found = oracle.with_vjp(OP, arguments, expected.incoming, "cupy")
    helpers.report(expected.complaints(found))
    along = "columns" if columns else "rows"
    forward = ["add_bias_and_activate", f"losses_of_{along}"] * 2 + ["sum_losses", "finish_loss"]
    assert launched.kernels == forward + ["add_bias_and_activate", f"loss_gradient_{along}"] * 2


def test_half_precision_rounds_its_sums_once(monkeypatch: pytest.MonkeyPatch):
    """Of one chunk the products are rounded by themselves; of several, each sum in a kernel at the end."""
    arguments = helpers.in_dtype(arguments_of(6, 4, 20), "float16")
    launches = []
    for size in (120, 60):
        monkeypatch.setattr(chunks, "CHUNK", size)
        with on_cpu() as launched:
            loss, pullback = kernels.vjp(OP, **arguments, backend="cupy")
            gradients = pullback(np.ones_like(loss))
        assert [g.dtype for g in gradients if g is not None] == [np.float16] * 3
        launches.append(launched.kernels.count("add_parts"))
    assert launches == [0, 2]


def test_logits_are_never_all_in_memory(monkeypatch: pytest.MonkeyPatch):
    """4000 x 500 logits take 8 MB; one chunk has them all, and shows that the measure sees it."""
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal((n, 8)).astype(np.float32) for n in (4000, 500))
    target = rng.integers(0, 500, 4000)
    peaks = []
    for size in (20_000, 2_000_000):
        monkeypatch.setattr(chunks, "CHUNK", size)
        captured = matrix.capture(OP, x, weight, target)
        problem = captured.problem(True)
        kept = (np.zeros(4000, np.float32), np.zeros(4000, np.float32), np.ones((), np.float32))
        tracemalloc.start()
        # What the kernels write is not looked at.
        with monkeypatch.context() as patch, on_cpu("fast"):
            for name in ("write_losses", "write_gradients"):
                patch.setattr(cupy_gpu, name, lambda *arguments: None)
            patch.setattr(cupy_gpu, "reduced", lambda *arguments: (np.zeros(()), np.ones(())))
            cupy_gpu.linear_cross_entropy(problem, *captured.inputs)
            cupy_gpu.linear_cross_entropy_backward(problem, np.ones((), np.float32), *captured.inputs, *kept)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 2_000_000 < 16_000_000 < peaks[1]


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_gradients_that_nobody_wants_are_not_made(wanted: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chunks, "CHUNK", 60)
    captured = matrix.capture(OP, **arguments_of(6, 4, 20))
    problem, op = captured.problem((wanted[0], wanted[1], False, wanted[2], False)), captured.op
    with on_cpu():
        kernels.explain(OP, **arguments_of(6, 4, 20), backend="cupy")
        implementation = op.implementations["cupy"]
        results = implementation.forward(problem, *captured.inputs)
        known = dict(zip((*op.inputs, *op.results), (*captured.inputs, *results), strict=True))
        assert implementation.backward is not None
        found = implementation.backward(
            problem, np.ones((), np.float32), **{name: known[name] for name in problem.saved()}
        )
        every = implementation.backward(
            captured.problem(True), np.ones((), np.float32), **{name: known[name] for name in problem.saved()}
        )
    for gradient, other, w in zip((found[0], found[1], found[3]), (every[0], every[1], every[3]), wanted):
        assert (gradient is not None) == w
        if w:
            np.testing.assert_array_equal(gradient, other)


@pytest.mark.parametrize("reduction, expected", [("mean", np.nan), ("sum", 0.0)])
def test_no_rows_and_rows_that_are_all_ignored(reduction: str, expected: float):
    arguments = arguments_of(3, 4, 5) | {"reduction": reduction}
    with on_cpu() as launched:
        for rows in (0, 3):
            given = arguments | {"input": arguments["input"][:rows], "target": np.full(rows, -100)}
            loss, pullback = kernels.vjp(OP, **given, backend="cupy")
            np.testing.assert_equal(float(loss), expected)
            of_x, of_weight, _, of_bias, _ = pullback(np.ones((), np.float32))
            assert of_x.shape == (rows, 4) and not (of_x.any() or of_weight.any() or of_bias.any())
    assert launched.kernels[:2] == ["add_bias_and_activate", "losses_of_rows"]


def test_wrong_classes_are_refused_before_a_kernel_runs():
    arguments = arguments_of(3, 4, 5) | {"target": np.array([0, 7, 1])}
    with on_cpu() as launched, pytest.raises(IndexError, match=r"target must lie in \[0, 4\].*got 7 at 1"):
        kernels.linear_cross_entropy(**arguments, backend="cupy")
    assert launched.kernels == []


def test_explain_says_how_many_rows_are_taken(capsys: pytest.CaptureFixture[str]):
    with on_cpu():
        assert kernels.explain(OP, **arguments_of(6, 4, 20)).chosen == "cupy"
    assert "6 of 6 rows at a time <- chosen" in capsys.readouterr().out
    assert OPS[OP].implementations["cupy"].describe is chunks.describe
