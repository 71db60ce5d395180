"""Calls of the backend "triton" on CPU tensors, and what they are held to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from kernels.case import Case, all_cases
from kernels.runtime.row_tiles import RowTile, row_tile
from kernels.runtime.targets import TARGETS
from tests.support import matrix, oracle

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
    found = {row_tile(*each) for each in asked}
    return sorted(found, key=lambda t: (t.whole, t.rows, t.block, t.warps))


def numbers(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Standard normal float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
