"""What an engine must offer to be measured."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from bench.workload import Answer, Workload


class Unsupported(Exception):
    """An engine has no way to run a case; the message is the reason, for the table."""


class NothingOfItsOwn(Unsupported):
    """An engine that is a variant of another one would do the same as that: no row in the table."""


@dataclass(frozen=True)
class Call:
    """A case made ready on an engine.

    Attributes:
        run: does it once and returns the engine's own results.
        answer: turns those into NumPy results and gradients by name, for the gate; not timed.
        pool: name of the thread pool that it runs on.
        checked: False where the results are random, so that there is nothing to compare.
        note: a remark for the report.
    """

    run: Callable[[], Any]
    answer: Callable[[Any], Answer]
    pool: str
    checked: bool = True
    note: str = ""


class Provider(Protocol):
    """An engine."""

    #: What a user types.
    name: str
    #: What tables and plots call it.
    title: str

    def missing(self) -> str | None:
        """Why it cannot run here, with what to do about it; None when it can."""
        ...

    def prepare(self, workload: Workload, threads: int) -> Call:
        """Make a case ready on `threads` threads.

        Raises:
            Unsupported: there is no way to run it; says why.
        """
        ...


def missing_package(*names: str) -> str | None:
    """One line when one of the packages is not installed, with the command that installs it."""
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    return f'{" and ".join(absent)} not installed: pip install "nnlib-kernels[bench]"'
