"""The same bits at any number of threads; several Python threads at once; forked workers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.case import Case
from tests.support import matrix, oracle

ROOT = Path(__file__).resolve().parents[1]
HAVE_NUMBA = tuple(op for op in matrix.OP_NAMES if "numba" in matrix.backends_of(op))
NUMBA_CASES = matrix.case_parameters(tuple(c for c in matrix.SMALL_CASES if c.op in HAVE_NUMBA))


@contextmanager
def threads(count: int, asked: list[int] | None = None) -> Iterator[None]:
    """Every kernel works in `count` parts inside the block, however small its work is."""

    def threads_for(work: int, grain: int) -> int:
        if asked is not None:
            asked.append(work)
        return count

    replaced = []
    for name, module in list(sys.modules.items()):
        if name.startswith("kernels."):
            for known, substitute in (("threads_for", threads_for), ("thread_count", lambda: count)):
                if callable(module.__dict__.get(known)):
                    replaced.append((module, known, module.__dict__[known]))
                    setattr(module, known, substitute)
    try:
        yield
    finally:
        for module, known, original in replaced:
            setattr(module, known, original)


def everything(case: Case, dtype: str) -> list[np.ndarray]:
    """All results and gradients of a case on the CPU kernels."""
    expected = oracle.expect_case(case, dtype)
    answer = oracle.with_vjp(case.op, expected.arguments, expected.incoming, "numba")
    plain = matrix.results_of(matrix.public(case.op)(**expected.arguments, backend="numba"))
    return [*answer.results, *answer.gradients.values(), *plain]


def assert_same_bits(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    """Equal to the last bit, NaN included."""
    for a, b in zip(first, second, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", matrix.DTYPES)
@pytest.mark.parametrize("case", NUMBA_CASES)
def test_the_same_bits_at_any_number_of_threads(case: Case, dtype: str):
    with threads(1):
        alone = everything(case, dtype)
    for count in (2, 3, 7):
        with threads(count):
            assert_same_bits(alone, everything(case, dtype))


@pytest.mark.parametrize("op", HAVE_NUMBA)
def test_every_op_asks_for_threads(op: str):
    asked: list[int] = []
    with threads(2, asked):
        for case in matrix.cases_of(op, "ci"):
            everything(case, "float32")
    assert asked


@pytest.mark.parametrize("op", HAVE_NUMBA)
def test_two_python_threads_at_once(op: str):
    cases = list(matrix.cases_of(op))
    with threads(2):
        expected = [everything(case, "float32") for case in cases]
        start = threading.Barrier(2)
        failures: list[BaseException] = []

        def work() -> None:
            try:
                start.wait(60)
                for _ in range(3):
                    for case, wanted in zip(cases, expected):
                        assert_same_bits(wanted, everything(case, "float32"))
            except BaseException as error:
                failures.append(error)

        workers = [threading.Thread(target=work) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert not failures, failures[0]


def test_two_python_threads_with_different_ops():
    cases = [matrix.cases_of(op, "ci")[0] for op in HAVE_NUMBA]
    failures: list[BaseException] = []
    with threads(2):
        expected = [everything(case, "float32") for case in cases]
        start = threading.Barrier(2)

        def work(order: int) -> None:
            try:
                start.wait(60)
                for _ in range(3):
                    for case, wanted in list(zip(cases, expected))[::order]:
                        assert_same_bits(wanted, everything(case, "float32"))
            except BaseException as error:
                failures.append(error)

        workers = [threading.Thread(target=work, args=(order,)) for order in (1, -1)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert not failures, failures[0]


# ----- forked workers ----------------------------------------------------------------------------------------------


class Calls:
    """A data set whose items are the results and gradients of the ops."""

    def __init__(self, cases: list[Case]) -> None:
        self.cases = cases
        self.parent = os.getpid()

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> tuple[bool, int, list[Any]]:
        return os.getpid() != self.parent, index, everything(self.cases[index], "float32")


def test_forked_data_loader_workers():
    """Two workers call every op after the parent did, in parallel."""
    from torch.utils.data import DataLoader

    cases = [c for op in matrix.OP_NAMES if op in HAVE_NUMBA for c in matrix.cases_of(op, "ci")[:2]]
    with threads(2):
        expected = [everything(case, "float32") for case in cases]
        loader = DataLoader(
            Calls(cases),  # type: ignore[arg-type]
            batch_size=None,
            num_workers=2,
            multiprocessing_context="fork",
            collate_fn=lambda item: item,
            timeout=120,
        )
        seen = []
        for in_child, index, found in loader:
            assert in_child
            assert_same_bits(expected[index], [np.asarray(a) for a in found])
            seen.append(index)
        assert sorted(seen) == list(range(len(cases)))
        for case, wanted in zip(cases, expected):
            assert_same_bits(wanted, everything(case, "float32"))


@pytest.mark.parametrize("count", ["1", "2", "3"])
def test_the_environment_sets_the_number_of_threads(count: str):
    """With real threads and sizes of real networks: one checksum whatever the number of threads."""
    program = """
import hashlib
import numpy as np
import kernels
from kernels.case import all_cases
from kernels.op import OPS
digest = hashlib.sha256()
done = set()
for case in all_cases("bench"):
    if case.op in done or max(np.prod(s) for s in case.shapes.values()) > 600_000:
        continue
    done.add(case.op)
    value, pullback = kernels.vjp(case.op, **case.build(), backend="numba")
    results = value if isinstance(value, tuple) else (value,)
    found = pullback(*[r * np.float32(0.5) + 1 for r in results[: OPS[case.op].differentiable_results]])
    for array in (*results, *found):
        if array is not None:
            digest.update(np.ascontiguousarray(array).tobytes())
print(len(done), digest.hexdigest())
"""
    if len(HAVE_NUMBA) < len(matrix.OP_NAMES):
        pytest.skip("some ops have no CPU kernel yet: " + ", ".join(sorted(set(matrix.OP_NAMES) - set(HAVE_NUMBA))))
    printed = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=os.environ | {"KERNELS_NUM_THREADS": n, "NUMBA_NUM_THREADS": "3"},
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        ).stdout
        for n in ("1", count)
    ]
    assert printed[0] == printed[1]
    assert int(printed[0].split()[0]) > 0
