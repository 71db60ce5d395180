"""No kernel reads memory that nobody wrote, and none reads or writes outside its arrays."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kernels.case import Case
from tests.support import guarded_run, layouts, matrix, memory, oracle

ROOT = Path(__file__).resolve().parents[1]
HAVE_NUMBA = tuple(op for op in matrix.OP_NAMES if "numba" in matrix.backends_of(op))
NUMBA_CASES = matrix.case_parameters(tuple(c for c in matrix.SMALL_CASES if c.op in HAVE_NUMBA))


# ----- poison ------------------------------------------------------------------------------------------------------


def _everything(op: str, arguments: matrix.Arguments, incoming: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    answer = oracle.with_vjp(op, arguments, incoming, "numba")
    plain = matrix.results_of(matrix.public(op)(**arguments, backend="numba"))
    return [*answer.results, *answer.gradients.values(), *plain]


@pytest.mark.parametrize("layout", ["as built", "contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", matrix.DTYPES)
@pytest.mark.parametrize("case", NUMBA_CASES)
def test_poisoned_memory_changes_no_bit(case: Case, dtype: str, layout: str):
    """NaN, then huge numbers, in every fresh output and scratch: the same bits, run after run."""
    expected = oracle.expect_case(case, dtype)
    arguments = dict(expected.arguments)
    if layout != "as built":
        arguments |= {n: getattr(layouts, layout)(arguments[n]) for n in matrix.array_names(arguments)}
        if all(arguments[n].strides == expected.arguments[n].strides for n in matrix.array_names(arguments)):
            return  # the layout in which it was built
    with memory.allocator(memory.poisoned(0)):
        first = _everything(case.op, arguments, expected.incoming)
    for byte in (0xFF, 0x7E):
        with memory.allocator(memory.poisoned(byte)):
            again = _everything(case.op, arguments, expected.incoming)
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.tobytes() == b.tobytes()


def test_poison_is_poison():
    with memory.allocator(memory.poisoned(0xFF)):
        from kernels.runtime.numba_cpu import empty, zeros

        assert np.isnan(empty((3, 5))).all() and np.isnan(empty(3, np.float64)).all()
        assert (empty(4, np.int64) == -1).all()
        assert not zeros((3, 5)).any()
    with memory.allocator(memory.poisoned(0x7E)):
        assert (empty(3) > 1e37).all() and np.isfinite(empty(3, np.float64)).all()


@pytest.mark.parametrize("op", HAVE_NUMBA)
def test_all_memory_comes_from_the_hook(op: str):
    """Otherwise poison and guard pages would look at nothing."""
    seen: list[int] = []
    case = matrix.cases_of(op, "ci")[0]

    def watch(shape: object, dtype: np.dtype) -> np.ndarray:  # type: ignore[type-arg]
        array = memory.poisoned(0xFF)(shape, dtype)
        seen.append(array.__array_interface__["data"][0])
        return array

    expected = oracle.expect_case(case, "float32")
    with memory.allocator(watch):
        answer = oracle.with_vjp(op, expected.arguments, expected.incoming, "numba")
    for made in (*answer.results, *answer.gradients.values()):
        assert made.__array_interface__["data"][0] in seen


# ----- guard pages -------------------------------------------------------------------------------------------------


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.support.guarded_run", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("op", HAVE_NUMBA)
def test_nothing_is_touched_outside_the_arrays(op: str):
    finished = _run(op)
    lines = finished.stdout.splitlines()
    if finished.returncode != 0 or lines[-1:] != [guarded_run.DONE]:
        last = lines[-1] if lines else "nothing"
        pytest.fail(f"exit {finished.returncode} in {last}\n{finished.stderr[-3000:]}", pytrace=False)
    cases = len(matrix.cases_of(op))
    assert len(lines) == 8 * cases + 1


@pytest.mark.parametrize("planted", guarded_run.PLANTS)
def test_the_guards_catch_a_planted_overrun(planted: str):
    finished = _run("--plant", planted)
    assert finished.stdout.splitlines() == [f"planted {planted}"], finished.stderr
    assert finished.returncode in (-signal.SIGSEGV, -signal.SIGBUS)


@pytest.mark.parametrize("where", ["end", "start"])
@pytest.mark.parametrize("shape", [(), 3, (2, 3), (5, 1025), (0, 3), (2, 3, 4, 5)])
def test_guarded_arrays_are_ordinary_arrays(shape: object, where: memory.Where):
    array = memory.guarded(shape, np.float32, where)
    assert array.flags.carray and array.dtype == np.float32 and not array.any()
    start = array.__array_interface__["data"][0]
    assert (start + array.nbytes if where == "end" else start) % memory.PAGE == 0 or not array.size
    array[...] = 1
    assert array.all()


def test_guarded_copies_keep_numbers_and_layout():
    for a in (np.arange(24.0).reshape(2, 3, 4), np.arange(24.0).reshape(2, 3, 4).T, np.array(3.0), np.ones((0, 2))):
        for where in ("end", "start"):
            copy = memory.guarded_copy(a, where)  # type: ignore[arg-type]
            np.testing.assert_array_equal(copy, a)
            assert copy.strides == a.strides or not a.size
    x = np.ones((2, 3, 4, 5), np.float32).transpose(0, 3, 1, 2)
    assert memory.guarded_copy(x, "end").strides == x.strides
