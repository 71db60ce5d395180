"""Which cases a user asked for. The cases themselves are each family's own (`kernels.case.all_cases`)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TypeVar

import kernels
from kernels.backends import BACKENDS, load
from kernels.case import TAGS, Case, all_cases
from kernels.op import OPS

C = TypeVar("C", bound=Case)

LAYOUTS = ("given", "channels-last", "contiguous")
PASSES = ("forward", "training")


def known_ops() -> tuple[str, ...]:
    """Names of the ops that have cases and a public function, sorted."""
    names = {case.op for case in all_cases()}
    return tuple(sorted(name for name in names if callable(getattr(kernels, name, None))))


def _nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name."""
    found = difflib.get_close_matches(name, list(known), n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(found)}?" if found else "."


def choose_ops(patterns: Sequence[str], known: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The ops that match one of the names or globs (all without any), and a complaint for each that matches none."""
    if not patterns:
        return tuple(known), []
    complaints = [
        f"unknown op {pattern!r}{_nearest(pattern, known)} Known: {', '.join(known)}"
        for pattern in patterns
        if not any(fnmatchcase(name, pattern) for name in known)
    ]
    return tuple(name for name in known if any(fnmatchcase(name, p) for p in patterns)), complaints


def containing(cases: Sequence[C], texts: Sequence[str], ops: Sequence[str]) -> tuple[list[C], list[str]]:
    """The cases of `ops` whose name contains one of `texts`, in any case (all without any), and what finds none."""
    if not (cases and texts):
        return list(cases), []

    def holds(case: Case, text: str) -> bool:
        return text.lower() in case.name.lower()

    complaints = [
        f"no case of {', '.join(ops)} contains {text!r}" for text in texts if not any(holds(c, text) for c in cases)
    ]
    return [case for case in cases if any(holds(case, text) for text in texts)], complaints


def choose_cases(
    patterns: Sequence[str] = (), texts: Sequence[str] = (), tags: Sequence[str] = ("bench",)
) -> tuple[tuple[Case, ...], list[str]]:
    """The cases with one of `tags` whose op matches one of `patterns` and whose name contains one of `texts`.

    Returns:
        the cases in the families' order, and one line for every wish that finds nothing.
    """
    complaints = [
        f"unknown tag {tag!r}{_nearest(tag, TAGS)} Known: {', '.join(TAGS)}" for tag in tags if tag not in TAGS
    ]
    ops, unknown = choose_ops(patterns, known_ops())
    complaints += unknown
    good = [tag for tag in tags if tag in TAGS]
    cases = [case for case in all_cases(*good) if case.op in ops] if good else []
    cases, without_text = containing(cases, texts, ops)
    complaints += without_text
    without = [op for op in ops if not any(case.op == op for case in cases)]
    if patterns and not texts and without:
        complaints.append(f"no case tagged {' or '.join(tags)}: {', '.join(without)}")
    return tuple(cases), complaints


def in_layout(case: Case, layout: str) -> Case | None:
    """The case with its images in the wanted layout; None for a case without images."""
    if layout == "given":
        return case
    if len(case.shapes.get("x", ())) != 4:
        return None
    return replace(case, channels_last=layout == "channels-last")


def dtype_complaint(op: str, dtype: str) -> str | None:
    """Why our kernels of an op cannot take a dtype; None when they can."""
    declared = OPS.get(op)
    if declared is None or not load(declared.family, BACKENDS["numba"]) or "numba" not in declared.implementations:
        return None
    taken = declared.implementations["numba"].dtypes
    return None if dtype in taken else f"{op}: no kernel for dtype {dtype}; there are {', '.join(taken)}"
