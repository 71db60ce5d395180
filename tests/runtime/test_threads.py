"""Threads: how many, the same bits for any number, and every situation in which there must be none."""

from __future__ import annotations

import textwrap
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from kernels.runtime import threads
from kernels.runtime.numba_cpu import empty, jit, thread_count, threaded, threads_for

from .conftest import KERNEL


@jit
def scale(first, last, x, y, factor):
    for i in range(first, last):
        y[i] = np.exp(x[i]) * factor


@jit
def mark(first, last, out):
    for i in range(first, last):
        out[i] = first


run_scale = threaded(scale)


def programs(text: str) -> str:
    return KERNEL + textwrap.dedent(text)


@pytest.fixture
def python(python, package_root):
    """As in conftest.py, with one disk cache for all: compiling is not what these tests are about."""
    return partial(python, KERNELS_CACHE_DIR=str(package_root / "cache"))


# ------------------------------------------------------------------------------------------------------ the split


@pytest.mark.parametrize("count", [2, 3, 7, 64])
def test_same_bits_for_any_number_of_threads(count):
    x = np.random.default_rng(0).standard_normal(1003).astype(np.float32)
    one, several = empty(1003), empty(1003)
    run_scale(1003, 1, x, one, 3.0)
    run_scale(1003, count, x, several, 3.0)
    assert one.tobytes() == several.tobytes()
    assert len(run_scale.serial.signatures) == 1  # The driver calls the very function that runs serially.


@pytest.mark.parametrize(
    ("total", "count", "align", "begins"),
    [
        (103, 1, 1, [0]),
        (103, 4, 1, [0, 25, 51, 77]),
        (103, 4, 16, [0, 16, 48, 80]),
        (103, 100, 16, [0, 16, 32, 48, 64, 80, 96]),
        (5, 64, 1, [0, 1, 2, 3, 4]),
        (16, 4, 16, [0]),
        (17, 4, 16, [0, 16]),
        (1, 4, 1, [0]),
    ],
)
def test_where_the_parts_begin(total, count, align, begins):
    out = np.full(total + 1, -1)
    threaded(mark, align)(total, count, out)
    assert sorted(set(out[:total].tolist())) == begins
    assert out[total] == -1


def test_nothing_to_do():
    out = np.full(3, -1)
    threaded(mark)(0, 4, out)
    assert out.tolist() == [-1, -1, -1]


def test_tuples_and_numbers_are_passed_on():
    @jit
    def fill(first, last, out, sizes, scales, offset, flag):
        for i in range(first, last):
            out[i] = sizes[0] * scales[1] + offset + (1 if flag else 0)

    for count in (1, 2):
        out = np.zeros(10)
        threaded(fill)(10, count, out, (2, 3), (1.0, np.float32(5)), np.float64(0.5), True)
        assert out.tolist() == [11.5] * 10


def test_wrong_kernels_are_refused():
    with pytest.raises(ValueError, match="^align must be at least 1, got 0$"):
        threaded(mark, align=0)
    variable = threaded(jit(lambda first, last, *rest: None))
    with pytest.raises(TypeError, match=r"^a threaded kernel must take \(first, last, ...\) by position, got <l"):
        _ = variable.driver


def test_a_smaller_number_set_in_numba_is_respected_and_restored(python):
    """On Numba's regions, which a named layer asks for, by the region itself; on ours by the count."""
    program = """
        import numba
        for limit in (3, 2, 1):
            numba.set_num_threads(limit)
            print(thread_count(), threads_for(10**9, 1))
    """
    assert python(programs(program)) == ["3 3", "2 2", "1 1"]
    program = """
        import numba
        from numba.np.ufunc.parallel import _iget_thread_id
        @jit
        def who(first, last, out):
            for i in range(first, last):
                out[i] = _iget_thread_id()
        run = threaded(who)
        out = np.zeros(30, np.int64)
        for limit in (3, 2, 1):
            numba.set_num_threads(limit)
            for count in (2, 3, 30):
                run(30, count, out)
                print(out.max() < min(limit, count), numba.get_num_threads())
    """
    expected = ["True 3"] * 3 + ["True 2"] * 3 + ["True 1"] * 3
    assert python(programs(program), NUMBA_THREADING_LAYER="omp") == expected


# ----------------------------------------------------------------------------------------------------- how many


def test_small_work_is_serial(monkeypatch):
    monkeypatch.setattr(threads, "thread_count", lambda: 8)
    assert [threads_for(work, 1000) for work in (0, 1, 999, 1999, 2000, 3500, 8000, 10**9)] == [1, 1, 1, 1, 2, 3, 8, 8]


def test_the_number_without_torch_is_numbas(python):
    program = """
        print(thread_count(), threading_layer())
        run(1003, 2, x, y, 2.0)
        import numba
        numba.set_num_threads(2)
        print(thread_count(), threading_layer().split(",")[0] in ("omp", "tbb", "workqueue"))
    """
    assert python(programs(program)) == ["3 None", "2 True"]


@pytest.mark.parametrize(("text", "count"), [("1", 1), (" 2 ", 2), ("64", 3), ("", 3)])
def test_number_from_the_environment(python, text, count):
    program = "from kernels.runtime.numba_cpu import *; print(thread_count(), threads_for(10**9, 1), threads_for(5, 9))"
    assert python(program, KERNELS_NUM_THREADS=text) == [f"{count} {count} 1"]


@pytest.mark.parametrize("text", ["0", "two", "1.5"])
def test_wrong_number_in_the_environment(python, text):
    program = """
        from kernels.runtime.numba_cpu import *
        for question in (thread_count, lambda: threads_for(10**9, 1)):
            try:
                question()
            except ValueError as error:
                print(error)
    """
    message = f"KERNELS_NUM_THREADS must be a whole number of at least 1, got {text!r}"
    assert python(program, KERNELS_NUM_THREADS=text) == [message] * 2


def test_torch_is_followed_and_not_imported(python):
    program = """
        import sys
        from kernels.runtime.numba_cpu import *
        print(thread_count(), "torch" in sys.modules)
        import torch
        for count in (1, 2, 3, 64):
            torch.set_num_threads(count)
            print(thread_count())
    """
    pytest.importorskip("torch")
    assert python(program) == ["3 False", "1", "2", "3", "3"]
    assert python(program, KERNELS_NUM_THREADS="2") == ["2 False"] + ["2"] * 4


def test_torch_half_imported(monkeypatch):
    monkeypatch.setitem(threads.sys.modules, "torch", type(threads.sys)("torch"))
    assert thread_count() >= 1


# ------------------------------------------------------------------------------------------------------ the layer


def test_layer_is_chosen_for_the_launch_only(python):
    program = """
        import numba
        before = list(numba.config.THREADING_LAYER_PRIORITY), numba.config.THREADING_LAYER
        run(1003, 2, x, y, 2.0)
        after = list(numba.config.THREADING_LAYER_PRIORITY), numba.config.THREADING_LAYER
        print(before == after, threading_layer(), info()["threading_layer"] == threading_layer())
    """
    assert python(programs(program)) == ["True omp, numba's True"]


def test_regions_run_on_torchs_openmp(python):
    """Before or after the first region: a torch that is loaded lends its threads."""
    program = """
        import torch
        run(1003, 2, x, y, 2.0)
        print(threading_layer(), np.allclose(y, 2 * np.exp(x)))
    """
    assert python(programs(program)) == ["omp, torch's True"]
    program = """
        run(1003, 2, x, y, 2.0)
        print(threading_layer(), np.allclose(y, 2 * np.exp(x)))
        import torch
        print(thread_count() == min(3, torch.get_num_threads()), threading_layer())
        run(1003, 2, x, y, 3.0)
        print(np.allclose(y, 3 * np.exp(x)))
    """
    assert python(programs(program)) == ["omp, numba's True", "True omp, torch's", "True"]


def test_layer_already_running_is_kept(python):
    program = """
        import numba
        numba.config.THREADING_LAYER = "workqueue"
        numba.set_num_threads(2)
        print(numba.threading_layer())
        numba.config.THREADING_LAYER = "default"
        run(1003, 2, x, y, 2.0)
        print(numba.threading_layer(), threading_layer(), np.allclose(y, 2 * np.exp(x)))
    """
    assert python(programs(program)) == ["workqueue", "workqueue omp, numba's True"]


def test_layer_named_by_the_user_is_kept(python):
    program = "\nrun(1003, 2, x, y, 2.0); print(threading_layer())"
    assert python(KERNEL + program, NUMBA_THREADING_LAYER="workqueue") == ["workqueue"]
    named = "\nimport numba; numba.config.THREADING_LAYER = 'workqueue'"
    assert python(KERNEL + named + program) == ["workqueue"]
    order = "workqueue omp tbb"
    assert python(KERNEL + program, NUMBA_THREADING_LAYER_PRIORITY=order) == ["workqueue"]


def test_layer_that_does_not_exist(python):
    program = """
        try:
            run(1003, 2, x, y, 2.0)
        except RuntimeError as error:
            print(error)
        run(1003, 1, x, y, 2.0)
    """
    assert python(programs(program), NUMBA_THREADING_LAYER="fast") == [
        "NUMBA_THREADING_LAYER must name a threading layer that loads on this machine, got 'fast': "
        "The threading layer requested 'fast' is unknown to Numba."
    ]


CALLERS = """
from concurrent.futures import ThreadPoolExecutor
run(1003, 1, x, y, 2.0)
def call(number):
    out = empty(1003)
    for _ in range(100):
        out[:] = np.nan
        run(1003, 2, x, out, 2.0)
        if out.tobytes() != y.tobytes():
            return False
    return True
with ThreadPoolExecutor(4) as pool:
    print(all(pool.map(call, range(8))), threading_layer(), threads._state.region.locked())
"""


def test_several_python_threads_at_once_on_workqueue(python):
    assert python(KERNEL + CALLERS, NUMBA_THREADING_LAYER="workqueue") == ["True workqueue False"]


def test_several_python_threads_at_once():
    x = np.linspace(-3, 3, 1003).astype(np.float32)
    expected = empty(1003)
    run_scale(1003, 1, x, expected, 3.0)

    def call(number):
        out = empty(1003)
        for _ in range(100):
            out[:] = np.nan
            run_scale(1003, 2, x, out, 3.0)
            if out.tobytes() != expected.tobytes():
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(8)))


def test_second_caller_runs_serially_where_one_is_allowed(monkeypatch):
    monkeypatch.setattr(threads, "_state", threads._State(threads._ONE_CALLER, forked=False))
    out = np.full(10, -1)
    with threads._state.region:
        threaded(mark)(10, 2, out)
    assert out.tolist() == [0] * 10
    threaded(mark)(10, 2, out)
    assert out.tolist() == [0] * 5 + [5] * 5
    assert not threads._state.region.locked()


# --------------------------------------------------------------------------------------------- forks and interrupts


FORK = """
import os
run(1003, 2, x, y, 2.0)
held = threads._state
held.region.acquire()
held.launching.acquire()
child = os.fork()
if child == 0:
    code = 1
    try:
        run(1003, 2, x, y1, 2.0)
        fresh = threads._state
        right = y.tobytes() == y1.tobytes() and thread_count() == 1 and threads_for(10**9, 1) == 1
        fresh_driver = threaded(scale)
        fresh_driver(1003, 2, x, y1, 2.0)
        code = 0 if right and not fresh.region.locked() and fresh_driver._driver is None else 2
    finally:
        os._exit(code)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), thread_count())
held.region.release()
held.launching.release()
run(1003, 2, x, y1, 2.0)
print(y.tobytes() == y1.tobytes())
"""


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_forked_child_is_serial(python, layer):
    assert python(KERNEL + FORK, NUMBA_THREADING_LAYER=layer) == ["0 3", "True"]


def test_forked_pool(python):
    program = """
        import multiprocessing
        run(1003, 2, x, y, 2.0)
        def work(factor):
            out = empty(1003)
            run(1003, 3, x, out, float(factor))
            return out
        with multiprocessing.get_context("fork").Pool(2) as pool:
            for factor, out in enumerate(pool.map(work, range(6))):
                run(1003, 1, x, y, float(factor))
                print(out.tobytes() == y.tobytes(), end=" ")
    """
    assert python(programs(program)) == ["True " * 6]


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_interrupt(python, layer):
    program = """
        import os, signal, threading
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with it ignored
        run(1003, 2, x, y, 2.0)
        for _ in range(20):
            begun = threading.Event()
            def interrupt():
                begun.wait()
                os.kill(os.getpid(), signal.SIGINT)
            sender = threading.Thread(target=interrupt)
            sender.start()
            try:
                for call in range(10**6):
                    run(1003, 2, x, y1, 2.0)
                    if call == 10:
                        begun.set()
                print("not interrupted")
            except KeyboardInterrupt:
                pass
            sender.join()
            y1[:] = 0
            run(1003, 2, x, y1, 2.0)
            assert y.tobytes() == y1.tobytes() and not threads._state.region.locked()
        print("done")
    """
    assert python(programs(program), NUMBA_THREADING_LAYER=layer) == ["done"]
