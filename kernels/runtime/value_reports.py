"""Wrong values (indices, lengths) on a GPU: found there, raised later, so that no call waits.

A kernel in front of the op's own looks at the values (values_triton.py, values.cu). Where one is wrong it stores which
call it was, where and what, in memory of the host that the GPU can write to. The host looks there at the next call of
the kind on that device, without waiting; `check_device_errors` waits and looks. The op's own kernels are safe with
wrong values: they use none as an address.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.arrays import ArraySpec, contiguous_strides
from kernels.checks import place
from kernels.op import Problem, input_names
from kernels.runtime.strides import collapse

#: Programs of the kernel at most. Each has three words of a report to itself: call, position, value.
PROGRAMS = 64
WORDS = 3 * PROGRAMS
#: Values that a program looks at at least.
LEAST_EACH = 1024
#: Calls that are told apart; behind so many the host waits once and begins anew.
MOST_CALLS = 1 << 14

_NOTHING = bytes(8 * PROGRAMS)


@dataclass(frozen=True)
class Places:
    """How the values of a spec are walked through: rows of columns, each with its stride in elements.

    Attributes:
        rows, columns, row_stride, column_stride: position p is row p // columns, column p % columns.
        shape: sizes of the dimensions in the order of the walk.
        order: which dimension of the array each of them is.
    """

    rows: int
    columns: int
    row_stride: int
    column_stride: int
    shape: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def programs(self) -> int:
        """How many of the kernel look at them."""
        return min(PROGRAMS, -(-self.rows * self.columns // LEAST_EACH))

    @property
    def each(self) -> int:
        """How many values a program looks at."""
        return -(-self.rows * self.columns // max(self.programs, 1))

    def index(self, position: int) -> tuple[int, ...]:
        """The place in the array of a position."""
        found = dict(zip(self.order, np.unravel_index(position, self.shape) if self.shape else ()))
        return tuple(int(found[axis]) for axis in range(len(self.order)))


def places(form: ArraySpec) -> Places | None:
    """How to walk through an array in the order of its memory; None where two strides are not enough."""
    strides = contiguous_strides(form.shape) if form.strides is None else form.strides
    order = form.memory_order
    shape = tuple(form.shape[axis] for axis in order)
    sizes, (steps,) = collapse(shape, [tuple(strides[axis] for axis in order)])
    if len(sizes) > 2:
        return None
    (rows, columns), (row_stride, column_stride) = ((1, 1, *sizes)[-2:], (0, 0, *steps)[-2:])
    return Places(rows, columns, row_stride, column_stride, shape, order)


@dataclass(frozen=True)
class Checked:
    """What a call's values are looked at for: its problem, and how they are walked through."""

    problem: Problem
    places: Places


class Report:
    """What was found on one device and has not been raised.

    Args:
        words: `WORDS` of int64 that the device writes to: calls, positions and values of each program; zeros at first.
        wait: waits until the device has done everything.
    """

    def __init__(self, words: np.ndarray[Any, Any], wait: Callable[[], None]) -> None:
        self._words = words
        self._calls_found = words[:PROGRAMS]
        self._wait = wait
        self._calls: list[Checked] = []
        self._lock = threading.Lock()
        _reports.append(self)

    def begin(self, checked: Checked) -> int:
        """The number of a call that is about to be looked at, from 1.

        Raises:
            IndexError, ValueError: what was found of an earlier call.
        """
        if self._calls_found.tobytes() != _NOTHING or len(self._calls) >= MOST_CALLS:
            self.finish()
        with self._lock:
            self._calls.append(checked)
            return len(self._calls)

    def finish(self) -> None:
        """Wait for the device and raise what was found, the first wrong value of the earliest call."""
        with self._lock:
            if not self._calls:
                return
            self._wait()
            calls, self._calls = self._calls, []
            found = self._words.reshape(3, PROGRAMS).copy()
            self._words[:] = 0
        wrong = [tuple(map(int, column)) for column in found.T if column[0]]
        if wrong:
            call, position, value = min(wrong)
            checked = calls[call - 1]
            raise _told(checked, position, value)


def _told(checked: Checked, position: int, value: int) -> Exception:
    error = checked.problem.value_error(value, place(checked.places.index(position)))
    return type(error)(f"{error} (in an earlier call: those with values on a GPU do not wait for them)")


#: Every report that was made, one for each backend and device.
_reports: list[Report] = []


def check_device_errors() -> None:
    """Wait for the GPUs and raise what earlier calls were given that is wrong: an index or a length out of range.

    Such values on a GPU are looked at there, and an error is raised by a later call that has values of the kind, or
    here. Calls inside a CUDA graph that is being captured are not checked.

    Raises:
        IndexError: a class index of `cross_entropy` or `linear_cross_entropy`, or an index of `embedding`; the message
            has the first one's value and position.
        ValueError: a length of `attention`, `rnn_layer`, `lstm_layer` or `gru_layer`.
    """
    for report in tuple(_reports):
        report.finish()


def checker(problem: Problem, backend: str, kind: str) -> Callable[[Sequence[Any]], None] | None:
    """What looks at the values of a call's inputs before it runs; None where nothing is to be looked at.

    Args:
        problem: of the call.
        backend: name of the backend that runs it.
        kind: of the arrays that are looked at: those of "numpy" are always looked at at once.
    """
    if not problem.checks_values:
        return None
    if kind != "numpy" and backend == "triton":
        from kernels.runtime import values_triton

        return values_triton.Check(problem)
    if kind != "numpy" and backend == "cupy":
        from kernels.runtime import values_cupy

        return values_cupy.Check(problem)
    return lambda inputs: problem.check_values(*inputs)


def behind(check: Callable[[Sequence[Any]], None], function: Callable[..., Any]) -> Callable[..., Any]:
    """``function(problem, *inputs)`` of an implementation, behind a look at the values of its inputs."""

    def run(problem: Problem, *inputs: Any) -> Any:
        check(inputs)
        return function(problem, *inputs)

    return run


class Check:
    """Looks at the values of a problem's calls on a GPU: what the backends' own share.

    Attributes:
        input: which of the inputs has them.
        copies: whether they are copied into order first, because two strides do not say where they lie.
        checked: the problem, and how they are walked through.
        limits: the least and the greatest value, and the ignored one or 0.
        ignores: whether there is an ignored one.
    """

    def __init__(self, problem: Problem) -> None:
        rule = problem.value_range
        assert rule is not None
        form: ArraySpec = getattr(problem, rule.input)
        direct = places(form)
        self.input = input_names(type(problem)).index(rule.input)
        self.copies = direct is None
        if direct is None:
            direct = Places(1, form.size, 0, 1, form.shape, tuple(range(form.ndim)))
        self.checked = Checked(problem, direct)
        self.limits = (rule.least, rule.greatest, rule.ignored or 0)
        self.ignores = rule.ignored is not None
