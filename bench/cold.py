"""How long one waits at first: the import, and the first call with an empty and with a warm cache of compiled code.

Every number is from a fresh process; the cache is a temporary folder of its own for each op. A first call includes the
import of Numba, which `import kernels` does not bring along.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from bench.machine import ROOT
from kernels.case import Case, all_cases

#: Reads the op, the case and the pass from its arguments and prints seconds as JSON.
_PROGRAM = """
import json, sys, time
start = time.perf_counter()
import kernels
imported = time.perf_counter() - start
op, name, passes = sys.argv[1:]
from kernels.case import all_cases
import numpy as np
case = next(c for c in all_cases() if (c.op, c.name) == (op, name))
arguments = case.build()
def run():
    start = time.perf_counter()
    if passes == "forward":
        getattr(kernels, op)(**arguments)
    else:
        value, pullback = kernels.vjp(op, **arguments)
        results = value if isinstance(value, tuple) else (value,)
        from kernels.op import OPS
        pullback(*[np.ones_like(r) for r in results[:OPS[op].differentiable_results]])
    return time.perf_counter() - start
print(json.dumps({"imported": imported, "first": run(), "second": run()}))
"""
#: A process that takes longer has hung.
_TIMEOUT = 600


@dataclass(frozen=True)
class Wait:
    """Seconds of one fresh process: of ``import kernels``, the first call and the second."""

    imported: float
    first: float
    second: float


@dataclass(frozen=True)
class Start:
    """One op, with an empty cache and with the one that this left behind."""

    op: str
    name: str
    empty: Wait
    warm: Wait


def usual_case(op: str) -> Case | None:
    """The op's first case of a size that networks use, which runs in parallel where it can; else its first at all."""
    cases = [case for case in all_cases("bench", "ci") if case.op == op]
    return next((case for case in cases if "bench" in case.tags), cases[0] if cases else None)


def _process(case: Case, passes: str, folder: str) -> Wait:
    inherited = {name: value for name, value in os.environ.items() if name != "KERNELS_BACKEND"}
    ran = subprocess.run(
        [sys.executable, "-c", _PROGRAM, case.op, case.name, passes],
        env={**inherited, "KERNELS_CACHE_DIR": folder, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
    )
    if ran.returncode != 0:
        lines = ran.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"the process ended with {ran.returncode}")
    return Wait(**json.loads(ran.stdout.splitlines()[-1]))


def measure(op: str, passes: str = "forward") -> Start | None:
    """Two fresh processes of one op; None for an op without a case.

    Raises:
        RuntimeError: a process failed; its last line.
    """
    case = usual_case(op)
    if case is None:
        return None
    with tempfile.TemporaryDirectory(prefix="bench-cold-") as folder:
        return Start(op, case.name, _process(case, passes, folder), _process(case, passes, folder))
