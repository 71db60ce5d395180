"""How turns are taken, and what memory is counted. Nothing here depends on how fast anything is."""

from __future__ import annotations

import gc
import itertools

import numpy as np
import pytest

from bench import limits, memory, timing
from bench.limits import Limits
from bench.timing import Contestant, Quartiles
from kernels.runtime.numba_cpu import empty


def test_turns(monkeypatch):
    log: list[str] = []
    parked: list[str] = []
    monkeypatch.setattr(timing.time, "sleep", lambda _: parked.append(log[-1]))
    pools = {"a": "shared", "b": "shared", "c": "own"}
    contestants = {name: Contestant(lambda name=name: log.append(name), pool) for name, pool in pools.items()}
    samples = timing.in_turn(contestants, 0.001, park=True)
    rounds = len(samples["a"])
    assert set(samples) == set(pools) and {len(s) for s in samples.values()} == {rounds}
    assert timing.MIN_ROUNDS <= rounds <= timing.MAX_ROUNDS
    # a and b share a pool: nothing is waited for between them. "c" is entered and left.
    assert set(parked) == {"b", "c"} | ({"a"} & set(parked))
    turns = [name for name, before in zip(log, [""] + log) if name != before]
    assert "".join(turns).startswith("abc")
    assert gc.isenabled()


@pytest.mark.parametrize(("spinning", "sleeps"), [(0, 1), (3, 4), (10**6, timing.PARK_WATCHES)])
def test_others_are_at_rest_before_a_turn(monkeypatch, spinning: int, sleeps: int):
    """An idle thread that spins for so many watches is waited for, and one that always computes is not."""
    slept: list[float] = []
    # What was used by each look at the clock: within a watch, and not from one watch to the next.
    used = itertools.chain([0.0, 0.5 * timing.PARK_SECONDS] * spinning, itertools.repeat(0.0))
    clock = [0.0]

    def process_time() -> float:
        clock[0] += next(used)
        return clock[0]

    monkeypatch.setattr(timing.time, "process_time", process_time)
    monkeypatch.setattr(timing.time, "sleep", slept.append)
    timing._park()
    assert slept == [timing.PARK_SECONDS] * sleeps


def test_nothing_is_parked_with_one_thread(monkeypatch):
    monkeypatch.setattr(timing.time, "sleep", lambda _: pytest.fail("slept"))
    timing.in_turn({name: Contestant(lambda: None, name) for name in "ab"}, 0.001, park=False)


def test_a_contestant_that_raises_leaves_the_collector_on():
    with pytest.raises(ZeroDivisionError):
        timing.in_turn({"a": Contestant(lambda: 1 / 0, "")}, 0.001, park=False)
    assert gc.isenabled()


def test_ratios_are_taken_within_a_round():
    # Each round twice as slow as the one before, for both alike: the ratio is 2 all along.
    assert timing.ratios([2, 4, 8, 16], [1, 2, 4, 8]) == Quartiles(2, 2, 2)
    assert Quartiles(1.0, 2.0, 2.5).spread == 0.75


def test_limits():
    found = Limits(1, "float32", 1e11, {1 << 20: 5e10, 1 << 25: 1e10})
    assert (found.bandwidth(100), found.bandwidth((1 << 20) + 1), found.bandwidth(1 << 30)) == (5e10, 1e10, 1e10)
    assert found.seconds(10**9, 1000)[1] == "flops" and found.seconds(10, 10**7)[1] == "bytes"
    assert limits.peak_flops(1, "float32", 1e-4) > 0
    assert limits.copy_bandwidth(1, 1 << 17, 1e-4) > 0


def test_memory_that_our_kernels_ask_for():
    def run() -> np.ndarray:
        scratch = empty(1000, np.float32)
        view = scratch[:10].reshape(2, 5)
        del scratch
        first = empty(500, np.float32)  # 4000 of the scratch, seen through its view, and 2000
        del view
        return np.concatenate([first, empty(250, np.float32)])  # 3000 at most

    assert memory.asked(run) == 6000


def test_resident_memory():
    grown = memory.resident(lambda: np.ones(8_000_000))
    if grown is None:
        pytest.skip("this system does not tell the peak of resident memory")
    assert 60e6 < grown < 100e6
