"""What only another process shows: other lane counts, and the cache on disk."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.targets import TARGETS

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def run(arguments, **environment):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )


def host_can_run(vector_bytes):
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    return platform.machine() in ("x86_64", "AMD64") and (vector_bytes == 16 or features.get("avx2", False))


@pytest.mark.slow
@pytest.mark.parametrize("vector_bytes", TARGETS)
def test_other_lane_counts(vector_bytes):
    if not host_can_run(vector_bytes):
        pytest.skip(f"this machine cannot run code for {vector_bytes}-byte vectors")
    settings = TARGETS[vector_bytes]
    size = run(["-c", "import kernels.simd; print(kernels.simd.VECTOR_BYTES)"], **settings)
    assert size.stdout.strip() == str(vector_bytes), size.stderr
    files = [str(HERE / f"test_{name}.py") for name in ("vector", "transpose", "tile", "math")]
    # The error of exp without fma is another story than that of PyTorch's, and coefficients do not depend on lanes.
    chosen = "not coefficients" + (" and not torch" if vector_bytes == 16 else "")
    result = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, *files], **settings)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]


PROGRAM = """
import numpy as np
from numba import njit
from kernels.simd import *

@njit(cache=True, nogil=True, error_model="numpy")
def kernel(x, offsets, out):
    lanes = lanes_of(x)
    multiply_tile(TILE_ROWS, TILE_VECTORS, pointer(x), pointer(offsets), pointer(offsets), 4, pointer(x),
                  pointer(out), 2 * lanes, lanes, 0)
    store(pointer(out), 0, exp(load(pointer(x), 0) * 0.5))
    transpose(pointer(x), 8, 8, 8, pointer(out, 64), 8)

kernel(np.zeros(2000, np.float32), np.zeros(64, np.int64), np.zeros(2000, np.float32))
print(sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values()))
"""


def test_cache_on_disk_is_hit_by_a_second_process(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    settings = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    first, second = (run([str(program)], **settings) for _ in range(2))
    assert (first.stdout.split(), second.stdout.split()) == (["0", "1"], ["1", "0"]), first.stderr + second.stderr


def test_package_alone_does_not_import_numba():
    code = "import sys, kernels; print('numba' in sys.modules)"
    assert run(["-c", code]).stdout.strip() == "False"
