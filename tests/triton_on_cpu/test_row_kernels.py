"""softmax, log_softmax, cross_entropy, layer_norm and rms_norm in Triton, executed on the CPU.

The cases and the error budget are those of every backend; the interpreter checks bounds and races, and runs the
programs in a random order.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels.case import Case
from kernels.runtime.row_tiles import RowTile
from kernels.runtime.triton_gpu import DTYPES
from kernels.runtime.tuning import use_tile
from tests.support import layouts, matrix, oracle
from tests.support.triton_interpreter import on_cpu
from tests.triton_on_cpu import helpers

OPS = ("softmax", "log_softmax", "cross_entropy", "layer_norm", "rms_norm")
CASES = helpers.small_cases(*OPS)
#: What the kernels are made for, launched by an op forward and backward when rows are kept whole.
LAUNCHES = {
    "softmax": ["softmax_rows", "softmax_gradient_rows"],
    "log_softmax": ["softmax_rows", "softmax_gradient_rows"],
    "cross_entropy": ["losses_of_rows", "sum_losses", "finish_loss", "gradient_of_rows"],
    "layer_norm": ["normalise_rows", "gradients_of_parts", "sum_parts", "sum_parts"],
    "rms_norm": ["normalise_rows", "gradients_of_parts", "sum_parts"],
}


def report(lines: list[str]) -> None:
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_cases(case: Case, dtype: str):
    with on_cpu():
        report(helpers.complaints(case, dtype))


@pytest.mark.parametrize("dtype", helpers.HALVES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_cases_in_half_precision(case: Case, dtype: torch.dtype):
    with on_cpu():
        report(helpers.tensor_complaints(case, dtype))


@pytest.mark.parametrize("op", OPS)
def test_the_kernels_that_run_are_these(op: str):
    with on_cpu() as launched:
        assert helpers.complaints(matrix.cases_of(op, "ci")[0], "float32") == []
    assert launched == LAUNCHES[op]


# ----- every tile --------------------------------------------------------------------------------------------------


def _calls(n: int, rows: int, inner: int) -> list[tuple[str, dict[str, Any]]]:
    """A call of each op on so many rows of n elements; those without `inner` only where it is 1."""
    x = helpers.numbers(rows, n, inner)
    target = np.random.default_rng(1).integers(0, n, (rows, inner))
    calls = [
        ("softmax", {"x": x, "dim": 1}),
        ("log_softmax", {"x": x, "dim": 1}),
        ("cross_entropy", {"input": x, "target": target, "label_smoothing": 0.1}),
        ("cross_entropy", {"input": x, "target": np.abs(x), "reduction": "sum"}),
    ]
    if inner == 1:
        weight = {"weight": helpers.numbers(n, seed=2)}
        shape = {"x": x[..., 0], "normalized_shape": (n,)}
        calls += [("layer_norm", shape | weight | {"bias": helpers.numbers(n, seed=3)}), ("rms_norm", shape | weight)]
    return calls


TILES = helpers.row_tiles()


def _fits(tile: RowTile) -> bool:
    """Tiles that differ in their warps alone are one to the interpreter."""
    same = [t for t in TILES if (t.rows, t.block, t.whole) == (tile.rows, tile.block, tile.whole)]
    return tile == same[0]


@pytest.mark.parametrize("tile", [t for t in TILES if _fits(t)], ids=lambda t: f"{t.rows}x{t.block} whole {t.whole}")
def test_every_tile(tile: RowTile):
    """Rows one short of a tile's block or a few elements longer than two, and a tile's rows and one more.

    Rows of one tile may lie side by side (inner > 1) or follow each other; parts of several rows only side by side.
    """
    n = max(tile.block - 1, 1) if tile.whole else 2 * tile.block + min(3, tile.block)
    rows = tile.rows + 1 if tile.rows * n < 20_000 else 1
    complaints = []
    with on_cpu(seed=1), use_tile(tile):
        for inner in ({1} if tile.whole or tile.rows == 1 else set()) | ({min(tile.rows + 1, 9)} - {2}):
            for op, arguments in _calls(n, rows if inner == 1 else 2, inner):
                expected = oracle.expect(op, arguments)
                found = oracle.with_autograd(op, arguments, expected.incoming, "triton")
                complaints += [f"{op}, inner {inner}: {c}" for c in expected.complaints(found)]
    report(complaints)


def test_rows_too_long_for_a_whole_tile_are_refused():
    message = r"^use_tile: tile must hold a whole row of 9 elements, got RowTile\(rows=1, block=8,.*"
    with on_cpu(), use_tile(RowTile(1, 8, True, 1)), pytest.raises(ValueError, match=message):
        kernels.softmax(torch.zeros(2, 9), backend="triton")


# ----- layouts, offsets, order -------------------------------------------------------------------------------------

LAYOUT_CASES = [c for op in OPS for c in matrix.cases_of(op, "ci")[1:4]]


@pytest.mark.parametrize("layout", layouts.TORCH_LAYOUTS)
@pytest.mark.parametrize("case", matrix.case_parameters(tuple(LAYOUT_CASES)))
def test_any_layout(case: Case, layout: str):
    """Strided inputs and gradients; NaN lies in their gaps, and the interpreter lets nobody read it."""
    expected = oracle.expect_case(case, "float32")
    relay = layouts.LAYOUTS[layout]
    names = matrix.array_names(expected.arguments)
    tensors = {n: layouts.as_tensor(relay(expected.arguments[n])) for n in names}
    wanted = matrix.differentiable_names(case.op, expected.arguments)
    for name in wanted:
        tensors[name].requires_grad_()
    with on_cpu():
        result = matrix.public(case.op)(**(expected.arguments | tensors), backend="triton")
        gradient = layouts.as_tensor(relay(expected.incoming[0]))
        found = torch.autograd.grad(result, [tensors[n] for n in wanted], gradient)
    answer = oracle.Answer((matrix.to_numpy(result),), {n: g.numpy() for n, g in zip(wanted, found)})
    report(expected.complaints(answer))
    assert result.is_contiguous() and all(g.is_contiguous() for g in found)


@pytest.mark.parametrize("op", OPS)
def test_offsets_beyond_32_bits(op: str):
    """Rows 2**30 elements apart; the memory between them is never touched."""
    stride, n = 2**30 + 64, 33
    base = torch.empty(2 * stride + n, dtype=torch.float16)
    x = base.as_strided((3, n), (stride, 1))
    x.copy_(torch.from_numpy(helpers.numbers(3, n)))
    rest: dict[str, Any] = {}
    if op == "cross_entropy":
        rest = {"target": torch.tensor([3, 32, 0])}
    elif op.endswith("norm"):
        rest = {"normalized_shape": (n,), "weight": torch.ones(n, dtype=torch.float16)}
    with on_cpu():
        packed, apart = (a.detach().requires_grad_() for a in (x.contiguous(), x))
        answers = []
        for given in (packed, apart):
            result = matrix.public(op)(given, **rest, backend="triton")
            answers.append((result, *torch.autograd.grad(result.float().square().sum(), [given])))
    for a, b in zip(*answers):
        assert torch.equal(a, b)


@pytest.mark.parametrize("op", OPS)
def test_results_do_not_depend_on_the_order_of_the_programs(op: str):
    case = matrix.cases_of(op, "ci")[0]
    answers = []
    for seed in (None, 1, 2):
        with on_cpu(seed=seed):
            expected = oracle.expect_case(case, "float32")
            found = oracle.with_autograd(op, expected.arguments, expected.incoming, "triton")
            answers.append((*found.results, *found.gradients.values()))
    for other, (a, b) in itertools.product((1, 2), enumerate(answers[0])):
        np.testing.assert_array_equal(b, answers[other][a])


# ----- what else may go wrong --------------------------------------------------------------------------------------


def test_a_class_that_is_none_makes_its_row_nan_and_is_never_read():
    """Values are checked before a kernel runs, but not while a CUDA graph is captured: the kernel is safe by itself."""
    from kernels.op import OPS as DECLARED
    from kernels.softmax import triton_gpu

    x = torch.randn(4, 5)
    problem = matrix.capture("cross_entropy", x, torch.tensor([0, 7, -3, 4]), reduction="none").problem(True)
    with on_cpu():
        loss, maximum, log_sum, _ = triton_gpu.cross_entropy(problem, x, torch.tensor([0, 7, -3, 4]), None)
        gradient, *_ = triton_gpu.cross_entropy_backward(
            problem, torch.ones(4), x, torch.tensor([0, 7, -3, 4]), None, maximum, log_sum
        )
    assert loss.isnan().tolist() == [False, True, True, False]
    assert gradient.isnan().all(1).tolist() == [False, True, True, False]
    assert gradient.isnan().any(1).tolist() == [False, True, True, False]
    assert "triton" in DECLARED["cross_entropy"].implementations


@pytest.mark.parametrize("op", OPS)
def test_residuals_pair_with_those_of_other_backends(op: str):
    """Forward in Triton and backward in NumPy and torch, and the reverse."""
    case = matrix.cases_of(op, "ci")[0]
    arguments = matrix.as_tensors(case.build("float32"))
    captured = matrix.capture(op, **arguments)
    problem = captured.problem(True)
    declared = captured.op
    with on_cpu():
        kernels.explain(op, **arguments, backend="triton")
        kept = {b: declared.implementations[b].forward(problem, *captured.inputs) for b in ("triton", "torch")}
        gradient = torch.randn_like(kept["triton"][0])
        found = {}
        for there, results in kept.items():
            known = dict(zip((*declared.inputs, *declared.results), (*captured.inputs, *results)))
            saved = {n: known[n] for n in problem.saved()}
            for here in ("triton", "torch"):
                found[there, here] = declared.implementations[here].backward(problem, gradient, **saved)
    for mine in found.values():
        for a, b in zip(mine, found["torch", "torch"], strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_explain_names_the_kernel(capsys: pytest.CaptureFixture[str]):
    with on_cpu():
        assert kernels.explain("softmax", torch.zeros(3, 7)).chosen == "triton"
    assert "3 rows of 7, threads along the rows <- chosen" in capsys.readouterr().out
    found = kernels.explain("softmax", torch.zeros(1000, 700))
    assert found.chosen == "numba" and "triton     no   it runs on cuda" in str(found)


def test_dtypes_are_those_declared():
    for op in OPS:
        assert matrix.OPS[op].implementations["triton"].dtypes == DTYPES
