"""Calls of the backend "triton" on CPU tensors, and what they are held to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch

from kernels.case import Case, all_cases
from kernels.runtime.row_tiles import RowTile, row_tile
from kernels.runtime.targets import TARGETS
from tests.support import layouts, matrix, oracle
from tests.support.triton_interpreter import on_cpu

HALVES = (torch.float16, torch.bfloat16)


def small_cases(*ops: str) -> list[Any]:
    """One parameter (case) for each ordinary and awkward case of some ops."""
    return matrix.case_parameters(tuple(c for c in all_cases("ci", "odd") if c.op in ops))


def complaints(case: Case, dtype: str) -> list[str]:
    """What is not within the error budget of every backend: results and gradients, through autograd."""
    expected = oracle.expect_case(case, dtype)
    found = oracle.with_autograd(case.op, expected.arguments, expected.incoming, "triton")
    return expected.complaints(found)


def _tensors(op: str, arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Arguments as tensors of a dtype, with gradients."""
    made = matrix.as_tensors(arguments)
    for name, value in made.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            made[name] = value.to(dtype)
    for name in matrix.differentiable_names(op, made):
        made[name].requires_grad_()
    return made


def _answer(op: str, tensors: dict[str, Any], incoming: Iterable[torch.Tensor], backend: str) -> list[torch.Tensor]:
    """Results and gradients, detached."""
    results = matrix.results_of(matrix.public(op)(**tensors, backend=backend))
    names = matrix.differentiable_names(op, tensors)
    pairs = [(r, g) for r, g in zip(results, incoming) if r.requires_grad]
    found = torch.autograd.grad([r for r, _ in pairs], [tensors[n] for n in names], [g for _, g in pairs])
    return [r.detach() for r in (*results, *found)]


def tensor_complaints(case: Case, dtype: torch.dtype, device: str = "cpu") -> list[str]:
    """The same on tensors of any dtype (half precision, which NumPy lacks in part) and device.

    The budget: twice torch's own error in the same dtype on the same device, and four units in the last place of the
    largest number.
    """
    arguments = _tensors(case.op, case.build("float32"), dtype)
    double = {n: v.detach().double() if _floating(v) else v for n, v in arguments.items()}
    for name in matrix.differentiable_names(case.op, double):
        double[name].requires_grad_()
    with torch.no_grad():
        results = matrix.results_of(matrix.public(case.op)(**double, backend="torch"))
    generator = torch.Generator().manual_seed(1)
    incoming = [torch.randn(r.shape, generator=generator).to(dtype) for r in results]
    exact = _answer(case.op, double, [g.double() for g in incoming], "reference")
    arguments = {n: _moved(v, device) for n, v in arguments.items()}
    incoming = [g.to(device) for g in incoming]
    theirs = _answer(case.op, arguments, incoming, "torch")
    mine = _answer(case.op, arguments, incoming, "triton")
    lines = []
    for i, (a, b, c) in enumerate(zip(exact, theirs, mine, strict=True)):
        b, c = b.cpu(), c.cpu()
        if c.dtype != b.dtype:
            lines.append(f"array {i}: dtype {c.dtype} must be {b.dtype}")
        rounded = a.to(c.dtype)
        odd = ~torch.isfinite(rounded)
        if not torch.equal(torch.nan_to_num(c.float()[odd]), torch.nan_to_num(rounded.float()[odd])):
            lines.append(f"array {i}: NaN or infinity in other places")
        scale = a[~odd].abs().max().item() if bool((~odd).any()) else 0.0
        allowed = 2 * _error(b, a, odd) + 4 * scale * torch.finfo(dtype).eps
        if _error(c, a, odd) > allowed:
            lines.append(f"array {i}: error {_error(c, a, odd):.3g} exceeds {allowed:.3g}")
    return lines


def _error(found: torch.Tensor, exact: torch.Tensor, odd: torch.Tensor) -> float:
    return float((found.double() - exact)[~odd].nan_to_num().abs().max()) if bool((~odd).any()) else 0.0


def _moved(value: Any, device: str) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().to(device).requires_grad_(value.requires_grad)


def _floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def row_tiles() -> list[RowTile]:
    """Every tile that `row_tile` gives to rows of up to 65536 elements, on any target."""
    sizes = sorted({n for power in range(17) for n in (2**power, 2**power + 1)})
    asked = ((rows, n, inner, t) for rows in (8, 500, 10**6) for n in sizes for inner in (1, 2, 7, 64, 900)
             for t in TARGETS.values())  # fmt: skip
    found = {row_tile(*each, float64=wide) for each in asked for wide in (False, True)}
    return sorted(found, key=lambda t: (t.whole, t.rows, t.block, t.warps))


def numbers(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Standard normal float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def report(lines: list[str]) -> None:
    """Fail with one line for each complaint."""
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


def check_layout(case: Case, layout: str, dtype: str = "float32") -> None:
    """The answer is the same for strided inputs and gradients; NaN lies in their gaps, and nobody may read it."""
    expected = oracle.expect_case(case, dtype)
    relay = layouts.LAYOUTS[layout]
    names = matrix.array_names(expected.arguments)
    tensors = {n: layouts.as_tensor(relay(expected.arguments[n])) for n in names}
    wanted = matrix.differentiable_names(case.op, expected.arguments)
    for name in wanted:
        tensors[name].requires_grad_()
    with on_cpu():
        results = matrix.results_of(matrix.public(case.op)(**(expected.arguments | tensors), backend="triton"))
        pairs = [(r, layouts.as_tensor(relay(g))) for r, g in zip(results, expected.incoming) if r.requires_grad]
        found = torch.autograd.grad([r for r, _ in pairs], [tensors[n] for n in wanted], [g for _, g in pairs])
    answer = oracle.Answer(
        tuple(map(matrix.to_numpy, results)), {n: g.numpy() for n, g in zip(wanted, found, strict=True)}
    )
    report(expected.complaints(answer))


def check_order(case: Case, dtype: str = "float32") -> None:
    """Results and gradients have the same bits in whatever order the programs run."""
    expected = oracle.expect_case(case, dtype)
    answers = []
    for seed in (None, 1, 2):
        with on_cpu(seed=seed):
            found = oracle.with_autograd(case.op, expected.arguments, expected.incoming, "triton")
            answers.append((*found.results, *found.gradients.values()))
    for other in answers[1:]:
        for a, b in zip(answers[0], other, strict=True):
            np.testing.assert_array_equal(b, a)
