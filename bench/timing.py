"""Several ways to do the same work, timed in turn in one process, so that what disturbs one disturbs the others too.

A round gives every contestant one turn: a few calls timed together. Ratios are taken within a round and their median
over all rounds, with quartiles: on a shared machine a ratio of two times taken seconds apart means little.

Engines with threads of their own let them spin for a while after a call, on the cores that the next one needs (ONNX
Runtime's for longer than 20 ms, seen on a core that they shared). So a contestant with another thread pool than the one
before sleeps until the process uses no processor time, and every turn begins with a call that is not timed. Contestants
in the same pool need not wait for each other.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: How long the process is watched for threads that spin, and how often at most.
PARK_SECONDS, PARK_WATCHES = 0.010, 100
#: Processor time of a thread that does not spin, as a share of the time watched.
_AT_REST = 0.05
#: Rounds at least, however short the time: quartiles of fewer say nothing.
MIN_ROUNDS = 5
#: Rounds at most: past it the quartiles no longer move.
MAX_ROUNDS = 500
_TURN_SECONDS = (0.0005, 0.010)


@dataclass(frozen=True)
class Contestant:
    """One way to do the work: ``run()`` does it once; `pool` names the thread pool that it uses."""

    run: Callable[[], Any]
    pool: str


@dataclass(frozen=True)
class Quartiles:
    """Median of a sample, and the quartiles around it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, sample: Sequence[float]) -> Quartiles:
        """Of at least one number."""
        low, median, high = np.percentile(np.asarray(sample, float), (25, 50, 75))
        return cls(float(low), float(median), float(high))

    @property
    def spread(self) -> float:
        """Distance of the quartiles as a share of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


def ratios(of: Sequence[float], to: Sequence[float]) -> Quartiles:
    """How many times as long as `to` the contestant `of` took, round by round."""
    return Quartiles.of([a / b for a, b in zip(of, to, strict=True)])


def _turn(run: Callable[[], Any], calls: int) -> float:
    """Seconds a call."""
    start = time.perf_counter_ns()
    for _ in range(calls):
        run()
    return (time.perf_counter_ns() - start) / calls * 1e-9


def _calls(run: Callable[[], Any], turn_seconds: float) -> int:
    """How many calls last about as long as a turn should."""
    run()
    calls = 1
    while True:
        seconds = _turn(run, calls)
        if seconds * calls >= turn_seconds / 4:
            return max(1, round(turn_seconds / seconds))
        calls *= 4


def _park() -> None:
    """Sleep until no thread of the process computes; one that never rests is no engine's idle thread."""
    for _ in range(PARK_WATCHES):
        used = time.process_time()
        time.sleep(PARK_SECONDS)
        if time.process_time() - used < _AT_REST * PARK_SECONDS:
            return


def in_turn(contestants: Mapping[str, Contestant], seconds: float, *, park: bool) -> dict[str, list[float]]:
    """Seconds a call of each contestant, one number for each round.

    Args:
        contestants: by name.
        seconds: how long to go on for each pair, that is for each contestant but one.
        park: let the pools of the others come to rest before each turn; needless with one thread.
    """
    turn_seconds = min(max(seconds / 50, _TURN_SECONDS[0]), _TURN_SECONDS[1])
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    counts: dict[str, int] = {}
    previous: str | None = None

    def enter(pool: str) -> None:
        nonlocal previous
        if park and previous not in (None, pool):
            _park()
        previous = pool

    was_collecting = gc.isenabled()
    gc.disable()
    try:
        for name, contestant in contestants.items():
            enter(contestant.pool)
            counts[name] = _calls(contestant.run, turn_seconds)
        end = time.perf_counter() + seconds * max(len(contestants) - 1, 1)
        order = list(contestants)
        for done in range(MAX_ROUNDS):
            if done >= MIN_ROUNDS and time.perf_counter() > end:
                break
            for name in order:
                contestant = contestants[name]
                enter(contestant.pool)
                contestant.run()
                samples[name].append(_turn(contestant.run, counts[name]))
            order.reverse()  # What drifts within a round then favours nobody.
            gc.collect(0)
    finally:
        if was_collecting:
            gc.enable()
    return samples
