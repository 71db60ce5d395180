"""Calls of the backend "cupy" on NumPy arrays, through the harness for CUDA C++, and what they are held to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels.case import Case, all_cases
from kernels.op import OPS
from kernels.runtime.cupy_gpu import numpy_dtype
from tests.support import budget, cuda_cpu, layouts, matrix, oracle
from tests.support.cuda_cpu import on_cpu

Array = np.ndarray[Any, Any]

#: Why no kernel can be executed here, or None; and the mark that every module of such tests has.
MISSING = cuda_cpu.missing()
needs_harness = pytest.mark.skipif(MISSING is not None, reason=f"CUDA C++ on the CPU: {MISSING}")

HALVES = ("float16", "bfloat16")


def small_cases(*ops: str) -> list[Any]:
    """One parameter (case) for each ordinary and awkward case of some ops."""
    return matrix.case_parameters(tuple(c for c in all_cases("ci", "odd") if c.op in ops))


def report(lines: list[str]) -> None:
    """Fail with one line for each complaint."""
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


def numbers(*shape: int, seed: int = 0) -> Array:
    """Standard normal float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def complaints(case: Case, dtype: str) -> list[str]:
    """What is not within the error budget of every backend: results and all gradients, in float32 or float64."""
    expected = oracle.expect_case(case, dtype)
    return expected.complaints(oracle.with_vjp(case.op, expected.arguments, expected.incoming, "cupy"))


# ----- half precision ----------------------------------------------------------------------------------------------


def as_array(tensor: torch.Tensor) -> Array:
    """A tensor's numbers as NumPy; bfloat16 in the dtype of ml_dtypes."""
    if tensor.dtype == torch.bfloat16:
        return tensor.detach().cpu().view(torch.int16).numpy().view(numpy_dtype("bfloat16"))
    return np.asarray(tensor.detach().cpu().numpy())


def as_tensor(array: Array) -> torch.Tensor:
    """The reverse."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16).reshape(array.shape)
    return torch.from_numpy(np.array(array, order="K"))


def in_dtype(arguments: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The same arguments with every floating array in a dtype, strides kept."""
    made = dict(arguments)
    for name, value in arguments.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            made[name] = value.astype(numpy_dtype(dtype), order="K")
    return made


def by_numpy(op: str, arguments: dict[str, Any], incoming: tuple[Array, ...]) -> oracle.Answer:
    """The answer of the backend "cupy" through NumPy arrays; gradients by name of the input."""
    value, pullback = kernels.vjp(op, **arguments, backend="cupy")
    return oracle.Answer(matrix.results_of(value), dict(zip(OPS[op].inputs, pullback(*incoming))))


def half_complaints(
    case: Case, dtype: str, answer: Callable[[str, dict[str, Any], tuple[Array, ...]], oracle.Answer] = by_numpy
) -> list[str]:
    """The same in half precision, of the answer that a function finds.

    The budget: twice torch's own error in the same dtype on the CPU, and four units in the last place of the largest
    number, against the float64 reference on the rounded inputs.
    """
    arguments = in_dtype(case.build("float32"), dtype)
    floating = [n for n in matrix.array_names(arguments) if arguments[n].dtype.name == dtype]
    double = arguments | {n: arguments[n].astype(np.float64) for n in floating}
    incoming = oracle.cotangents(case.op, matrix.results_of(matrix.public(case.op)(**double, backend="reference")))
    incoming = tuple(g.astype(numpy_dtype(dtype)) for g in incoming)
    exact = oracle.with_vjp(case.op, double, tuple(g.astype(np.float64) for g in incoming), "reference")
    theirs = _by_torch(case, arguments, incoming, exact)
    found = answer(case.op, arguments, incoming)
    pairs = [(f"result {i}", a, m) for i, (a, m) in enumerate(zip(exact.results, found.results, strict=True))]
    pairs += [(f"gradient of {n}", a, found.gradients[n].reshape(a.shape)) for n, a in exact.gradients.items()]
    lines = []
    for name, reference, mine in pairs:
        complaint = _half_complaint(mine, reference, theirs[name], dtype)
        lines += [f"{name}: {complaint}"] if complaint else []
    return lines


def _by_torch(case: Case, arguments: dict[str, Any], incoming: tuple[Array, ...], exact: Any) -> dict[str, Array]:
    names = tuple(exact.gradients)
    tensors = {n: as_tensor(a) if isinstance(a, np.ndarray) else a for n, a in arguments.items()}
    for name in names:
        tensors[name].requires_grad_()
    results = matrix.results_of(matrix.public(case.op)(**tensors, backend="torch"))
    pairs = [(r, as_tensor(g)) for r, g in zip(results, incoming) if r.requires_grad]
    found = torch.autograd.grad([r for r, _ in pairs], [tensors[n] for n in names], [g for _, g in pairs])
    known = {f"result {i}": as_array(r) for i, r in enumerate(results)}
    return known | {f"gradient of {n}": as_array(g) for n, g in zip(names, found, strict=True)}


def _half_complaint(found: Array, exact: Array, theirs: Array, dtype: str) -> str | None:
    if exact.dtype.kind in "iub":
        return None if np.array_equal(found, exact) else "unequal integers"
    if found.dtype.name not in (dtype, theirs.dtype.name):
        return f"dtype {found.dtype} must be {dtype}"
    with np.errstate(over="ignore"):
        rounded = exact.astype(found.dtype).astype(np.float64)
    mine, odd = found.astype(np.float64), ~np.isfinite(rounded)
    if not np.array_equal(np.nan_to_num(mine[odd]), np.nan_to_num(rounded[odd])) or (np.isnan(mine) & ~odd).any():
        return "NaN or infinity in other places"
    scale = float(np.abs(exact[~odd]).max(initial=0.0))
    allowed = 2 * budget.error(theirs.astype(np.float64), exact) + 4 * scale * torch.finfo(getattr(torch, dtype)).eps
    error = budget.error(mine, exact)
    return f"error {error:.3g} exceeds {allowed:.3g}" if error > allowed else None


# ----- layouts -----------------------------------------------------------------------------------------------------


def check_layout(case: Case, layout: str, dtype: str = "float32") -> None:
    """The answer is the same for strided inputs and gradients; NaN lies in their gaps, and nobody may read it."""
    expected = oracle.expect_case(case, dtype)
    relay = layouts.LAYOUTS[layout]
    names = matrix.array_names(expected.arguments)
    arguments = expected.arguments | {n: relay(expected.arguments[n]) for n in names}
    with on_cpu():
        value, pullback = kernels.vjp(case.op, **arguments, backend="cupy")
        found = dict(zip(OPS[case.op].inputs, pullback(*map(relay, expected.incoming))))
    wanted = matrix.differentiable_names(case.op, expected.arguments)
    gradients = {n: found[n].reshape(expected.arguments[n].shape) for n in wanted}
    report(expected.complaints(oracle.Answer(matrix.results_of(value), gradients)))
