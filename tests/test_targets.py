"""Every op compiled for a processor with vectors of 32 bytes (AVX2) where this one has longer ones."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import matrix
from tests.support.targets import TARGETS

ROOT = Path(__file__).resolve().parents[1]

#: Small cases of an op by Numba against the reference, results and gradients, in both dtypes.
PROGRAM = """
import sys
import numpy as np
import kernels
from kernels.case import all_cases
from kernels.simd import VECTOR_BYTES
assert VECTOR_BYTES == 32, VECTOR_BYTES
op = sys.argv[1]
cases = [c for c in all_cases("ci", "odd") if c.op == op][:6]
for case in cases:
    for dtype, tolerance in (("float32", 2e-4), ("float64", 1e-10)):
        found = {}
        for backend in ("numba", "reference"):
            arguments = case.build(dtype)
            value, pullback = kernels.vjp(op, **arguments, backend=backend)
            results = value if isinstance(value, tuple) else (value,)
            rng = np.random.default_rng(1)
            count = kernels.op.OPS[op].differentiable_results
            gradients = pullback(*(rng.standard_normal(r.shape).astype(r.dtype) for r in results[:count]))
            found[backend] = [*results, *(g for g in gradients if g is not None)]
        for mine, exact in zip(found["numba"], found["reference"], strict=True):
            scale = max(1.0, float(np.abs(exact[np.isfinite(exact)]).max(initial=0.0)))
            np.testing.assert_allclose(mine, exact, rtol=0, atol=tolerance * scale, err_msg=f"{case.id} {dtype}")
print(len(cases), "cases")
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AVX2 is of x86-64 processors")
@pytest.mark.parametrize("op", [name for name in matrix.OP_NAMES if "numba" in matrix.backends_of(name)])
def test_avx2(op: str):
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, op],
        env=os.environ | TARGETS[32] | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert finished.stdout.strip().endswith("cases") and not finished.stdout.startswith("0")
