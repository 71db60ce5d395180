"""conv2d_max_pool2d in CUDA C++, executed on the CPU: memory watched, threads and blocks in three orders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kernels
from kernels.case import Case
from kernels.runtime.cupy_gpu import numpy_dtype
from tests.cuda_on_cpu import helpers
from tests.cuda_on_cpu.helpers import on_cpu, report
from tests.support import layouts, matrix, oracle

OP = "conv2d_max_pool2d"
CASES = helpers.small_cases(OP)
pytestmark = helpers.needs_harness


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_cases(case: Case, dtype: str):
    with on_cpu():
        report(helpers.complaints(case, dtype))


@pytest.mark.parametrize("dtype", helpers.HALVES)
@pytest.mark.parametrize("case", CASES)
def test_cases_in_half_precision(case: Case, dtype: str):
    with on_cpu():
        report(half_complaints(case, dtype))


def half_complaints(case: Case, dtype: str) -> list[str]:
    """The answer of the two ops one after the other, bit for bit: rounding to half precision makes ties."""
    arguments = helpers.in_dtype(case.build("float32"), dtype)
    pool = {n.removeprefix("pool_"): arguments.pop(n) for n in list(arguments) if n.startswith("pool_")}
    y, back_y = kernels.vjp("conv2d", **arguments, backend="cupy")
    z, back_z = kernels.vjp("max_pool2d", y, **pool, backend="cupy")
    grad = helpers.numbers(*z.shape).astype(z.dtype)
    found, pullback = kernels.vjp(OP, **arguments, **{f"pool_{n}": v for n, v in pool.items()}, backend="cupy")
    lines = [] if found.tobytes() == z.tobytes() else ["other results"]
    if arguments.get("activation") is None:
        pairs = zip(pullback(grad), back_y(*back_z(grad)), strict=True)
        lines += [f"gradient {i}" for i, (a, b) in enumerate(pairs) if a is not None and a.tobytes() != b.tobytes()]
    return lines


@pytest.mark.parametrize("case", helpers.ordinary_cases(OP))
def test_any_order_of_threads_gives_the_same_bits(case: Case):
    helpers.check_orders(case)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_any_layout(layout: str):
    helpers.check_layout(matrix.cases_of(OP, "ci")[1], layout)


@pytest.mark.parametrize("dtype, vector", [("float32", 4), ("float64", 2), ("float16", 8), ("bfloat16", 8)])
def test_channels_side_by_side_are_read_in_vectors(dtype: str, vector: int):
    x = np.ascontiguousarray(helpers.numbers(2, 8, 7, 16).astype(numpy_dtype(dtype))).transpose(0, 3, 1, 2)
    weight = helpers.numbers(16, 16, 1, 1).astype(numpy_dtype(dtype))
    windows: dict[str, Any] = {"pool_kernel_size": 3, "pool_stride": 2, "pool_padding": 1}
    with on_cpu() as launched:
        y, pullback = kernels.vjp(OP, x, weight, activation="silu", **windows, backend="cupy")
        pullback(y)
    pairs = zip(launched.kernels, launched.sources)
    found = {k: dict(s.constants)["VECTOR"] for k, s in pairs if k in ("largest_of_windows", "spread_to_winners")}
    assert found == {"largest_of_windows": vector, "spread_to_winners": vector}


def test_windows_of_more_taps_than_a_byte_can_number():
    x, weight = helpers.numbers(1, 2, 20, 19), helpers.numbers(3, 2, 1, 1, seed=1)
    expected = oracle.expect(OP, {"x": x, "weight": weight, "pool_kernel_size": (17, 18), "pool_stride": 1})
    with on_cpu() as launched:
        report(expected.complaints(oracle.with_vjp(OP, expected.arguments, expected.incoming, "cupy")))
    assert "long long" in {dict(s.constants).get("WINNER") for s in launched.sources}


def test_explain_names_the_kernels(capsys: pytest.CaptureFixture[str]):
    with on_cpu():
        kernels.explain(OP, helpers.numbers(1, 2, 5, 5), helpers.numbers(3, 2, 3, 3), pool_kernel_size=2)
    assert "in registers, 18 terms; then the windows of the result <- chosen" in capsys.readouterr().out
