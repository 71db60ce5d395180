"""Two results side by side: what became slower by more than the noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from bench import records
from bench.records import Measurement, Run
from bench.timing import Quartiles

#: Share by which two runs of the same code may differ even where the quartiles are close together.
BAND = 0.05

SLOWER, FASTER, SAME, BROKEN, GONE, NEW = "slower", "faster", "same", "broken", "gone", "new"
#: What makes the program fail.
REGRESSIONS = (SLOWER, BROKEN)


@dataclass(frozen=True)
class Change:
    """What became of one measurement.

    Attributes:
        key: which one, see `Measurement.key`.
        verdict: SLOWER, FASTER or SAME; BROKEN: it had a time and is wrong or fails now; GONE, NEW: it is in one file.
        measure: "ratio to eager" or "time".
        factor: how many times as long it takes now; None without two times.
        noise: share that the factor had to differ from 1 by.
        detail: the two numbers, or the reason.
    """

    key: tuple[str, str, str, str, int, str, str]
    verdict: str
    measure: str = ""
    factor: float | None = None
    noise: float = 0.0
    detail: str = ""

    def __str__(self) -> str:
        op, name, dtype, passes, threads, layout, provider = self.key
        where = f"{op}: {name} [{passes}, {threads} threads, {dtype}, {layout}] {provider}"
        if self.factor is None:
            return f"{self.verdict:<7} {where}: {self.detail}"
        return (
            f"{self.verdict:<7} {where}: {self.factor:.3f} times as long by {self.measure} "
            f"({self.detail}; noise band {100 * self.noise:.1f} %)"
        )


def noise_of(old: Quartiles, new: Quartiles, band: float) -> float:
    """The change that is no news: what the quartiles of the two samples cover, and at least `band`."""
    return max(band, math.hypot(old.spread, new.spread))


def _judged(old: Measurement, new: Measurement, band: float, by_time: bool) -> Change:
    if new.seconds is None:
        return Change(old.key, BROKEN, detail=f"{new.status}: {new.reason}")
    if old.seconds is None:
        return Change(old.key, NEW, detail=f"was {old.status}")
    # A ratio to eager, measured in turn, survives another machine or a busy one; eager's own rows have only the time.
    if old.eager_ratio is None or new.eager_ratio is None or old.provider == "torch":
        by_time = True
    if by_time:
        measure, factor = "time", new.seconds.median / old.seconds.median
        noise = noise_of(old.seconds, new.seconds, band)
        detail = f"{old.seconds.median:.3e} s, now {new.seconds.median:.3e} s"
    else:
        assert old.eager_ratio is not None and new.eager_ratio is not None
        measure, factor = "ratio to eager", old.eager_ratio.median / new.eager_ratio.median
        noise = noise_of(old.eager_ratio, new.eager_ratio, band)
        detail = f"{old.eager_ratio.median:.3f} x eager, now {new.eager_ratio.median:.3f}"
    verdict = SLOWER if factor > 1 + noise else FASTER if factor < 1 / (1 + noise) else SAME
    return Change(old.key, verdict, measure, factor, noise, detail)


def compare(
    old: Run, new: Run, *, band: float = BAND, by_time: bool = False, providers: tuple[str, ...] = ("ours",)
) -> Iterator[Change]:
    """What became of each measurement of `old` on the given providers, then what only `new` has.

    Args:
        old, new: the runs.
        band: least share that counts as a change.
        by_time: compare times where ratios to eager could be compared too (same, idle machine).
        providers: whose measurements count; all of them when empty.
    """
    found = {m.key: m for m in new.measurements}
    before = {m.key: m for m in old.measurements}
    for key, m in before.items():
        if providers and m.provider not in providers:
            continue
        if key not in found:
            yield Change(key, GONE, detail="not measured now")
        elif m.status == records.TIMED or found[key].status == records.TIMED:
            yield _judged(m, found[key], band, by_time)
    for key, m in found.items():
        if key not in before and (not providers or m.provider in providers):
            yield Change(key, NEW, detail="not measured before")


def remarks(old: Run, new: Run) -> Iterator[str]:
    """Differences between the machines or versions that explain changes by themselves."""
    for name in ("processor", "cores", "target"):
        if old.machine.get(name) != new.machine.get(name):
            yield f"{name} differs: {old.machine.get(name)}, {new.machine.get(name)}"
    versions = (old.machine.get("versions") or {}), (new.machine.get("versions") or {})
    for name in sorted({*versions[0], *versions[1]}):
        if versions[0].get(name) != versions[1].get(name):
            yield f"{name} differs: {versions[0].get(name)}, {versions[1].get(name)}"
