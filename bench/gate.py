"""Gate, then time: a provider whose answer is outside the error budget gets no time."""

from __future__ import annotations

from bench import budget
from bench.workload import Answer


def complaint(found: Answer, exact: Answer, torchs: Answer | None) -> str | None:
    """The first thing that is wrong with an answer, in one line; None when all of it is within the budget.

    Args:
        found: the provider's answer.
        exact: the float64 reference's.
        torchs: torch's own in the dtype under test, whose error sets the budget; None where it has none.
    """
    for name, wanted in exact.items():
        if name not in found:
            return f"{name}: missing"
        theirs = None if torchs is None else torchs.get(name)
        wrong = budget.complaint(found[name], wanted, theirs)
        if wrong is not None:
            return f"{name}: {wrong}"
    if len(found) > len(exact):
        return f"{len(found)} results, must be {len(exact)}"
    return None
