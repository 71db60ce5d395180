"""Trains the networks in turn and writes down times and accuracies."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine, timing
from bench.networks.trainers import TRAINERS
from bench.timing import Quartiles

#: What two batches take is compiled before anything is timed.
_WARM_UP_BATCHES = 2


@dataclass
class Entry:
    """One network on one trainer: seconds of each epoch, and the accuracy on the test half for each seed."""

    program: str
    trainer: str
    seconds: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)


def race(
    program: str,
    trainers: Sequence[str],
    *,
    epochs: int,
    seeds: int,
    batch_size: int,
    limit: int | None,
    report: Callable[[str], None] = lambda _: None,
    advance: Callable[[], None] = lambda: None,
) -> list[Entry]:
    """Every trainer's entry for one network.

    epochs: of each seed. limit: samples of each half, None for all. report: told what is going on; advance: called
    after each epoch of each trainer.
    """
    from nnlib.programs import PROGRAMS

    (x, y), (x_test, y_test) = ((a[:limit], b[:limit]) for a, b in PROGRAMS[program].load(False))
    entries = {name: Entry(program, name) for name in trainers}
    for name in trainers:
        report(f"{program}: {name} warms up")
        few = _WARM_UP_BATCHES * batch_size
        TRAINERS[name](program, x[:few], y[:few], batch_size, 0).train_epoch()
    for seed in range(seeds):
        running = {name: TRAINERS[name](program, x, y, batch_size, seed) for name in trainers}
        order = list(trainers)
        for epoch in range(epochs):
            for name in order:
                report(f"{program}: {name}, seed {seed}, epoch {epoch + 1}")
                start = time.perf_counter()
                running[name].train_epoch()
                entries[name].seconds.append(time.perf_counter() - start)
                advance()
            order.reverse()  # What drifts within a turn then favours nobody.
        for name in trainers:
            entries[name].accuracies.append(running[name].accuracy(x_test, y_test))
    return list(entries.values())


HEADINGS = ("network", "trainer", "seconds an epoch", "ours is faster by (quartiles)", "accuracy by seed", "mean")


def rows(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """The table's cells."""
    ours = {entry.program: entry for entry in entries if entry.trainer == "ours"}
    found: list[tuple[str, ...]] = []
    for entry in entries:
        base = ours.get(entry.program)
        faster = "-"
        if base is not None and entry is not base:
            ratio = timing.ratios(entry.seconds, base.seconds)
            faster = f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"
        found.append(
            (
                entry.program,
                entry.trainer,
                f"{Quartiles.of(entry.seconds).median:.2f}",
                faster,
                " ".join(f"{accuracy:.3f}" for accuracy in entry.accuracies),
                f"{np.mean(entry.accuracies):.3f}",
            )
        )
    return found


def save(entries: Sequence[Entry], settings: dict[str, Any], path: Path) -> None:
    """Everything as JSON, with the machine and the versions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"settings": settings, "machine": machine.facts(), "entries": [asdict(entry) for entry in entries]}
    path.write_text(json.dumps(told, indent=1) + "\n")
