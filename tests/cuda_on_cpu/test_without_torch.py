"""The backend "cupy" where torch is not installed: every op, forward and backward, in a process that finds no torch.

What goes in is CuPy's (a fake one's), NumPy's, or of a library that has DLPack's two methods and nothing else.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kernels.op import OPS
from tests.cuda_on_cpu import helpers
from tests.support import matrix, oracle

pytestmark = helpers.needs_harness

ROOT = Path(__file__).resolve().parents[2]


def expectation(op: str) -> oracle.Expectation:
    """Of the first ordinary case of an op."""
    return oracle.expect_case(matrix.cases_of(op, "ci")[0], "float32")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By op and kind of array: (results, gradients), all from one process."""
    folder = tmp_path_factory.mktemp("without_torch")
    expected = [expectation(op) for op in OPS]
    (folder / "calls").write_bytes(pickle.dumps([(e.op, e.arguments, e.incoming) for e in expected]))
    command = [sys.executable, "-m", "tests.support.without_torch", str(folder / "calls"), str(folder / "answers")]
    environment = {n: v for n, v in os.environ.items() if n != "KERNELS_BACKEND"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(OPS, pickle.loads((folder / "answers").read_bytes()), strict=True))


@pytest.mark.parametrize("kind", ["cupy", "numpy", "foreign"])
@pytest.mark.parametrize("op", OPS)
def test_every_op_runs_where_there_is_no_torch(op: str, kind: str, answers: dict[str, Any]):
    expected = expectation(op)
    results, gradients = answers[op][kind]
    named = dict(zip(OPS[op].inputs, gradients, strict=True))
    wanted = matrix.differentiable_names(op, expected.arguments)
    found = {n: named[n].reshape(expected.arguments[n].shape) for n in wanted}
    helpers.report(expected.complaints(oracle.Answer(results, found)))
