"""The problems that rnn_layer, lstm_layer and gru_layer declare: arguments, rules, shapes, costs.

Sizes: T steps, B rows, I inputs, H units, P the size of the hidden state (H, or the LSTM's projection), D directions, G
gates. The order of the gates is in gates.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from kernels import checks
from kernels.arrays import ArraySpec
from kernels.op import Problem, ValueRange, input_names
from kernels.recurrence.gates import GATES

NONLINEARITIES = ("tanh", "relu")
INDICES = ("int64", "int32")
#: Ends of the names of each direction's weights.
SUFFIXES = ("", "_reverse")


class Weights(NamedTuple):
    """What one layer has in one direction: arrays, tensors or specs, in the order of a tuple of `params`."""

    w_ih: Any
    w_hh: Any
    b_ih: Any
    b_hh: Any
    w_hr: Any


class Layer(Problem):
    """What the three declarations share."""

    #: Names of the op and of its cell in gates.GATES.
    op: ClassVar[str]
    cell: ClassVar[str]

    x: ArraySpec
    w_ih: ArraySpec
    w_ih_reverse: ArraySpec | None
    w_hh: ArraySpec
    h0: ArraySpec | None
    lengths: ArraySpec | None
    batch_first: bool
    return_last: bool

    @property
    def gates(self) -> int:
        """G: how many gates the cell has."""
        return len(GATES[self.cell])

    @property
    def steps(self) -> int:
        """T."""
        return self.x.shape[1 if self.batch_first else 0]

    @property
    def batch(self) -> int:
        """B."""
        return self.x.shape[0 if self.batch_first else 1]

    @property
    def inputs(self) -> int:
        """I."""
        return self.x.shape[2]

    @property
    def units(self) -> int:
        """H."""
        return self.w_ih.shape[0] // self.gates

    @property
    def hidden(self) -> int:
        """P: size of the hidden state."""
        return self.w_hh.shape[1]

    @property
    def projects(self) -> bool:
        """Whether the hidden state is a projection of the units."""
        return False

    @property
    def is_torchs(self) -> bool:
        """Whether torch has an op for it."""
        return self.lengths is None

    @property
    def kept_gates(self) -> int:
        """How many numbers a unit keeps for backward as gate_values."""
        return self.gates

    @property
    def directions(self) -> int:
        """D."""
        return 1 if self.w_ih_reverse is None else 2

    def weights(self, named: Mapping[str, Any]) -> tuple[Weights, ...]:
        """The weights of each direction, of the inputs by name."""
        suffixes = SUFFIXES[: self.directions]
        return tuple(Weights(*[named.get(name + suffix) for name in Weights._fields]) for suffix in suffixes)

    def weight_specs(self) -> tuple[Weights, ...]:
        """The specs of each direction's weights."""
        suffixes = SUFFIXES[: self.directions]
        return tuple(Weights(*[getattr(self, name + suffix, None) for name in Weights._fields]) for suffix in suffixes)

    def named(self, inputs: tuple[Any, ...]) -> dict[str, Any]:
        """The op's inputs by name."""
        return dict(zip(input_names(type(self)), inputs, strict=True))

    @property
    def empty(self) -> bool:
        """Whether there is no row."""
        return bool(self.batch == 0)

    def _sequence(self) -> ArraySpec:
        """Spec of a hidden state for every step."""
        rows = (self.batch, self.steps) if self.batch_first else (self.steps, self.batch)
        return self.x.like((*rows, self.directions * self.hidden))

    def _outputs(self) -> tuple[ArraySpec, ArraySpec]:
        """Specs of output and h_n."""
        width = self.directions * self.hidden
        output = self.x.like((self.batch, width)) if self.return_last else self._sequence()
        return output, self.x.like((self.directions, self.batch, self.hidden))

    def _residual(self, features: int) -> ArraySpec | None:
        """Spec of something that is kept for every direction, step, row and unit; 0 past a row's length."""
        return self.x.like((self.directions, self.steps, self.batch, features)) if self.trains else None

    def _states(self) -> ArraySpec | None:
        """Spec of the hidden states of all steps, laid out as a full output, where the output is not that."""
        return self._sequence() if self.trains and self.return_last else None

    def saved(self) -> tuple[str, ...]:
        """All inputs (second derivatives read the biases), the hidden state of every step, and the residuals."""
        kept = ("hidden",) if self.return_last else ("output",)
        return (*input_names(type(self)), *kept)

    def gradients(self) -> tuple[ArraySpec | None, ...]:
        """Contiguous; lengths have none."""
        found = []
        for name in input_names(type(self)):
            form: ArraySpec | None = getattr(self, name)
            found.append(None if form is None or name == "lengths" else form.like(form.shape))
        return tuple(found)

    @cached_property
    def value_range(self) -> ValueRange | None:
        """Every length must lie in [0, T]."""
        return None if self.lengths is None else ValueRange("lengths", 0, self.steps)

    def value_error(self, value: int, where: str) -> Exception:
        """A ValueError."""
        rule = f"must lie in [0, {self.steps}], the number of steps of x"
        return ValueError(f"{self.op}: lengths {rule}, got {value}{where}")

    def flops(self) -> int:
        """Two for every multiply-add of the products; the gates' functions are not counted."""
        inner = self.gates * self.units * (self.inputs + self.hidden)
        if self.hidden != self.units:
            inner += self.units * self.hidden
        return 2 * self.directions * self.steps * self.batch * inner


def _check_weights(problem: Layer, suffix: str, w: Weights) -> None:
    """One direction's weights fit x and each other. Sizes are those of the first direction's w_hh and w_hr."""
    op, x = problem.op, problem.x
    gates, inputs = problem.gates, problem.inputs
    size = f"(gates {', '.join(GATES[problem.cell])} one below the other)"
    for name, form in (("w_ih", w.w_ih), ("w_hh", w.w_hh), ("w_hr", w.w_hr)):
        if form is not None:
            checks.rank(op, name + suffix, form, (2,), "(rows, columns)")
    first = problem.weight_specs()[0]
    hidden = first.w_hh.shape[1]
    units = hidden if first.w_hr is None else first.w_hr.shape[1]
    if hidden == 0 or units == 0:
        checks.fail(op, "w_hh" + suffix, "must have at least one column", w.w_hh.shape)
    if w.w_hr is not None:
        checks.shape(op, "w_hr" + suffix, w.w_hr, (hidden, units), "(columns of w_hh, units)")
    checks.shape(op, "w_hh" + suffix, w.w_hh, (gates * units, hidden), size)
    checks.shape(op, "w_ih" + suffix, w.w_ih, (gates * units, inputs), f"{size[:-1]}, a column for each feature of x)")
    for name, bias in (("b_ih", w.b_ih), ("b_hh", w.b_hh)):
        if bias is not None:
            checks.shape(op, name + suffix, bias, (gates * units,), size)
    others = [(name + suffix, form) for name, form in zip(Weights._fields, w)]
    checks.same_dtype(op, ("x", x), *others)


def _check_layer(problem: Layer, c0: ArraySpec | None = None) -> None:
    """The rules of :func:`lstm_layer` and its kin."""
    op, x = problem.op, problem.x
    checks.boolean(op, "batch_first", problem.batch_first)
    checks.boolean(op, "return_last", problem.return_last)
    checks.dtype(op, "x", x)
    checks.rank(op, "x", x, (3,), "(B, T, I)" if problem.batch_first else "(T, B, I)")
    checks.no_zero_size(op, "x", x, (1 if problem.batch_first else 0, 2))
    reverse = [name for name in Weights._fields if getattr(problem, f"{name}_reverse", None) is not None]
    if reverse and not ("w_ih" in reverse and "w_hh" in reverse):
        rule = "must be given with w_ih_reverse and w_hh_reverse"
        checks.fail(op, f"{reverse[0]}_reverse", rule, f"only {', '.join(f'{name}_reverse' for name in reverse)}")
    directions = problem.weight_specs()
    for suffix, w in zip(SUFFIXES, directions):
        _check_weights(problem, suffix, w)
    if len(directions) == 2 and (directions[0].w_hr is None) != (directions[1].w_hr is None):
        checks.fail(op, "w_hr_reverse", "must be given exactly when w_hr is", "one of the two")
    for name, state, size in (("h0", problem.h0, problem.hidden), ("c0", c0, problem.units)):
        if state is not None:
            shape = (problem.directions, problem.batch, size)
            checks.shape(op, name, state, shape, "(directions, rows of x, size of the state)")
            checks.same_dtype(op, ("x", x), (name, state))
    if problem.lengths is not None:
        checks.dtype(op, "lengths", problem.lengths, INDICES)
        checks.shape(op, "lengths", problem.lengths, (problem.batch,), "(one for each row of x)")


@dataclass(frozen=True)
class _PlainLayer(Layer):
    """Inputs of rnn_layer and gru_layer."""

    x: ArraySpec
    w_ih: ArraySpec
    w_hh: ArraySpec
    b_ih: ArraySpec | None
    b_hh: ArraySpec | None
    w_ih_reverse: ArraySpec | None
    w_hh_reverse: ArraySpec | None
    b_ih_reverse: ArraySpec | None
    b_hh_reverse: ArraySpec | None
    h0: ArraySpec | None
    lengths: ArraySpec | None
    batch_first: bool
    return_last: bool

    @property
    def returned(self) -> int:
        """output and h_n."""
        return 2


@dataclass(frozen=True)
class RnnProblem(_PlainLayer):
    """rnn_layer, checked."""

    nonlinearity: str

    op = "rnn_layer"
    cell = "rnn"

    @classmethod
    def check(cls, *arguments: Any) -> RnnProblem:
        """See :func:`rnn_layer` for the rules."""
        problem = cls(*arguments)
        _check_layer(problem)
        checks.one_of(cls.op, "nonlinearity", problem.nonlinearity, NONLINEARITIES)
        return problem

    def results(self) -> tuple[ArraySpec | None, ...]:
        """output, h_n, and every hidden state where the output does not have it."""
        return (*self._outputs(), self._states())


@dataclass(frozen=True)
class GruProblem(_PlainLayer):
    """gru_layer, checked."""

    reset_after: bool

    op = "gru_layer"
    cell = "gru"

    @classmethod
    def check(cls, *arguments: Any) -> GruProblem:
        """See :func:`gru_layer` for the rules."""
        problem = cls(*arguments)
        _check_layer(problem)
        checks.boolean(cls.op, "reset_after", problem.reset_after)
        return problem

    @property
    def is_torchs(self) -> bool:
        """Whether torch has an op for it: it has none with the reset before the product."""
        return self.reset_after and super().is_torchs

    @property
    def kept_gates(self) -> int:
        """How many numbers a unit keeps: r, z, n, and with reset_after also q = w_hn h + b_hn, which r multiplies."""
        return 4 if self.reset_after else 3

    def results(self) -> tuple[ArraySpec | None, ...]:
        """output, h_n, the activated gates (D, T, B, 3 H or 4 H), and every hidden state where the output lacks it."""
        return (*self._outputs(), self._residual(self.kept_gates * self.units), self._states())

    def saved(self) -> tuple[str, ...]:
        """Also the gates."""
        return (*super().saved(), "gate_values")


@dataclass(frozen=True)
class LstmProblem(Layer):
    """lstm_layer, checked."""

    x: ArraySpec
    w_ih: ArraySpec
    w_hh: ArraySpec
    b_ih: ArraySpec | None
    b_hh: ArraySpec | None
    w_hr: ArraySpec | None
    w_ih_reverse: ArraySpec | None
    w_hh_reverse: ArraySpec | None
    b_ih_reverse: ArraySpec | None
    b_hh_reverse: ArraySpec | None
    w_hr_reverse: ArraySpec | None
    h0: ArraySpec | None
    c0: ArraySpec | None
    lengths: ArraySpec | None
    batch_first: bool
    return_last: bool

    op = "lstm_layer"
    cell = "lstm"

    @classmethod
    def check(cls, *arguments: Any) -> LstmProblem:
        """See :func:`lstm_layer` for the rules."""
        problem = cls(*arguments)
        _check_layer(problem, problem.c0)
        return problem

    @property
    def returned(self) -> int:
        """output, h_n and c_n."""
        return 3

    @property
    def projects(self) -> bool:
        """Whether the hidden state is a projection of the units."""
        return self.w_hr is not None

    def results(self) -> tuple[ArraySpec | None, ...]:
        """output, h_n, c_n, the activated gates (D, T, B, 4 H), the cells (D, T, B, H), and as for the others."""
        c_n = self.x.like((self.directions, self.batch, self.units))
        kept = (self._residual(4 * self.units), self._residual(self.units))
        return (*self._outputs(), c_n, *kept, self._states())

    def saved(self) -> tuple[str, ...]:
        """Also the gates and the cells."""
        return (*super().saved(), "gate_values", "cells")
