"""What many measurements come to: geometric means for each family, and the worst cases."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.providers import OURS
from bench.records import Measurement


@dataclass(frozen=True)
class FamilyMean:
    """Our ratios over the cases of a family, run in one way.

    Attributes:
        family, provider, dtype, passes, threads: what is summed up; the provider is one of ours.
        cases: how many have a ratio to eager.
        to_eager: geometric mean of eager's time as a multiple of ours; None when no case has one.
        to_peer: the same against the fastest other engine of each case.
        worst: the smallest ratio to eager, and its case.
        worst_case: name of that case.
    """

    family: str
    provider: str
    dtype: str
    passes: str
    threads: int
    cases: int
    to_eager: float | None
    to_peer: float | None
    worst: float | None
    worst_case: str


def geometric_mean(numbers: Sequence[float]) -> float | None:
    """Of positive numbers; None of none."""
    return math.exp(sum(map(math.log, numbers)) / len(numbers)) if numbers else None


def family_means(measurements: Iterable[Measurement]) -> list[FamilyMean]:
    """A line for each family, provider of ours, dtype, pass and number of threads, in the order of the measurements."""
    groups: dict[tuple[str, str, str, str, int], list[Measurement]] = defaultdict(list)
    for m in measurements:
        if m.provider in OURS and m.seconds is not None:
            groups[m.family, m.provider, m.dtype, m.passes, m.threads].append(m)
    found = []
    for key, members in groups.items():
        with_eager = [(m.eager_ratio.median, f"{m.op}: {m.name}") for m in members if m.eager_ratio is not None]
        to_peer = [m.peer_ratio.median for m in members if m.peer_ratio is not None]
        worst = min(with_eager, default=(None, ""))
        mean = geometric_mean([ratio for ratio, _ in with_eager])
        found.append(FamilyMean(*key, len(with_eager), mean, geometric_mean(to_peer), *worst))
    return found
