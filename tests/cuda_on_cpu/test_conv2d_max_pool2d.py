"""conv2d_max_pool2d in CUDA C++, executed on the CPU: vectors, windows, winners."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kernels
from kernels.runtime.cupy_gpu import numpy_dtype
from tests.cuda_on_cpu import helpers
from tests.cuda_on_cpu.helpers import on_cpu, report
from tests.support import oracle

OP = "conv2d_max_pool2d"
pytestmark = helpers.needs_harness


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
