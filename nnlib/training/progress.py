"""How a run tells where it is: a bar on a terminal while it lasts, and one line an epoch that stays."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

VERBOSITY = ("auto", 0, 1, 2)


def check_verbose(verbose: str | int) -> None:
    """Raises ValueError for a value that is none of VERBOSITY."""
    if verbose not in VERBOSITY:
        raise ValueError(f"verbose: one of {VERBOSITY} is expected, got {verbose!r}")


class EpochProgress:
    """Reports one pass over the samples; a context manager.

    title: such as "Epoch 1/5". samples: how many there will be, None where nobody knows. verbose: 0 silent; 2 one line
    at the end; 1 and "auto" the line, and before it a bar where standard error is a terminal. ValueError for another
    value.
    """

    def __init__(self, title: str, samples: int | None, verbose: str | int) -> None:
        check_verbose(verbose)
        wants_bar = verbose in ("auto", 1) and sys.stderr.isatty()
        self.prints_line = verbose != 0
        self.title = title
        self.samples = 0
        self._bar = tqdm(
            total=samples, desc=title, unit=" samples", disable=not wants_bar, dynamic_ncols=True, leave=False
        )
        self._drawn = float("-inf")

    def __enter__(self) -> EpochProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def advance(self, samples: int, values: Callable[[], dict[str, float]]) -> None:
        """Moves on by so many samples. `values` gives the values so far; it is called only when the bar is drawn
        anew, since reading them may wait for a device."""
        self.samples += samples
        if self._bar.disable:
            return
        now = time.monotonic()
        if now - self._drawn >= self._bar.mininterval:
            self._drawn = now
            self._bar.set_postfix_str(format_values(values()), refresh=False)
        self._bar.update(samples)

    def finish(self, values: dict[str, float], seconds: float) -> None:
        """Puts the values of the whole pass, which took so many seconds, in the place of the bar."""
        self._bar.close()
        if self.prints_line:
            rate = self.samples / seconds if seconds > 0 else float("inf")
            print(f"{self.title}: {seconds:.1f} s, {rate:.0f} samples/s, {format_values(values)}", flush=True)


def format_values(values: dict[str, float]) -> str:
    """loss=0.1234, accuracy=0.9876"""
    return ", ".join(f"{name}={value:.4f}" for name, value in values.items())
