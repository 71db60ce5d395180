"""Placement: threads of a team that were put on one core are moved apart, unless the user places them."""

from __future__ import annotations

import os
import sys
import textwrap
from functools import partial

import pytest

from .conftest import KERNEL

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="threads are moved on Linux, with several cores"
)

# `crowd` binds every thread but the first to one core and brings the first one there; it may leave again at any time.
CROWD = """
import os
import torch  # noqa: F401: lends its threads
from kernels.runtime import placement
cores = os.sched_getaffinity(0)
me = os.getpid()
core = min(cores)

def others():
    return [int(task) for task in os.listdir("/proc/self/task") if int(task) != me]

def crowd():
    for task in others():
        os.sched_setaffinity(task, {core})
    os.sched_setaffinity(0, {core})
    os.sched_setaffinity(0, cores)

run(1003, 2, x, y, 2.0)
before = placement.moves()
for attempt in range(200):
    crowd()
    run(1003, 2, x, y, 2.0)
    if placement.moves() > before:
        break
"""


def program(text: str) -> str:
    return KERNEL + CROWD + textwrap.dedent(text)


@pytest.fixture
def python(python, package_root):
    """As in conftest.py, with one disk cache for all: compiling is not what these tests are about."""
    return partial(python, KERNELS_CACHE_DIR=str(package_root / "cache"))


def test_crowded_thread_leaves_the_core(python):
    text = """
        masks = [os.sched_getaffinity(task) for task in others()]
        print(placement.moves() - before, sum(core not in mask for mask in masks), all(mask <= cores for mask in masks))
        print(os.sched_getaffinity(0) == cores, np.allclose(y, 2 * np.exp(x)))
    """
    assert python(program(text)) == ["1 1 True", "True True"]


def test_moves_are_some_time_apart(python, tmp_path):
    """A thread that is crowded again too soon stays: moving costs more than a small region."""
    limit = "from kernels.runtime import placement; placement._CYCLES_BETWEEN_MOVES = 1 << 62\n"
    text = "print(attempt, placement.moves(), np.allclose(y, 2 * np.exp(x)))"
    assert python(limit + program(text), KERNELS_CACHE_DIR=str(tmp_path / "own")) == ["199 0 True"]


@pytest.mark.parametrize("name", ["OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"])
def test_users_placement_is_kept(python, name):
    value = {"OMP_PROC_BIND": "false", "OMP_PLACES": "cores", "GOMP_CPU_AFFINITY": "0", "KMP_AFFINITY": "none"}[name]
    text = "print(attempt, placement.moves(), np.allclose(y, 2 * np.exp(x)))"
    assert python(program(text), **{name: value}) == ["199 0 True"]


def test_bound_thread_does_not_make_the_rest_serial(python):
    """OpenMP binds the first thread to one core; Numba, which counts that thread's cores, would see one processor."""
    text = """
        import torch
        from kernels.runtime.numba_cpu import *
        import os
        print(len(os.sched_getaffinity(0)), thread_count() == torch.get_num_threads())
        torch.set_num_threads(64)
        print(thread_count())
    """
    processors = len(os.sched_getaffinity(0))
    settings = {"OMP_PROC_BIND": "true", "NUMBA_NUM_THREADS": None, "OMP_NUM_THREADS": str(processors)}
    assert python(textwrap.dedent(text), **settings) == ["1 True", str(processors)]


def test_numbers_of_numba_are_kept(python):
    text = """
        import numba, torch
        from kernels.runtime.numba_cpu import *
        torch.set_num_threads(2)
        print(thread_count())
        numba.set_num_threads(1)
        print(thread_count())
    """
    assert python(textwrap.dedent(text), NUMBA_NUM_THREADS=None) == ["2", "1"]
    assert python(textwrap.dedent(text), NUMBA_NUM_THREADS="1") == ["1", "1"]
