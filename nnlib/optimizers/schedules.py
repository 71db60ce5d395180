"""Learning rates that change from step to step, by Keras' names and arguments.

    rate = schedules.CosineDecay(1e-3, decay_steps=1000, warmup_target=3e-3, warmup_steps=100)
    model.compile(optimizer=optimizers.Adam(rate), loss="mse")

A schedule is a function of the optimizer's step, from 0, in float64. With gradient_accumulation_steps a step comes once
in so many batches, and the schedule counts steps (Keras counts batches). A schedule of one's own is a subclass with
__call__; callbacks.LearningRateScheduler sets the rate once an epoch instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from nnlib.checks import positive_integer
from nnlib.configuration import Recorded


class LearningRateSchedule(Recorded):
    """The base of schedules. A subclass writes __call__. name: of no effect, as in Keras."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name or type(self).__name__

    def __call__(self, step: int) -> float:
        """The learning rate of the step, which counts from 0."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(step)")


class _Decay(LearningRateSchedule):
    """What follows decay_rate, once in decay_steps."""

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        decay_rate: float,
        staircase: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.initial_learning_rate = _at_least_0("initial_learning_rate", initial_learning_rate)
        self.decay_steps = positive_integer("decay_steps", decay_steps)
        self.decay_rate = _at_least_0("decay_rate", decay_rate)
        self.staircase = staircase

    def passed(self, step: int) -> float:
        """How many times decay_steps have passed."""
        return step // self.decay_steps if self.staircase else step / self.decay_steps


class ExponentialDecay(_Decay):
    """initial_learning_rate * decay_rate^(step / decay_steps), keras.optimizers.schedules.ExponentialDecay.

    staircase: the exponent is rounded down. Raises ValueError for a rate below 0, or decay_steps below 1.
    """

    def __call__(self, step: int) -> float:
        return self.initial_learning_rate * self.decay_rate ** self.passed(step)


class InverseTimeDecay(_Decay):
    """initial_learning_rate / (1 + decay_rate * step / decay_steps), keras.optimizers.schedules.InverseTimeDecay.

    staircase: step / decay_steps is rounded down. Raises ValueError for a rate below 0, or decay_steps below 1.
    """

    def __call__(self, step: int) -> float:
        return self.initial_learning_rate / (1 + self.decay_rate * self.passed(step))


class PiecewiseConstantDecay(LearningRateSchedule):
    """One rate up to each boundary, and another behind the last, keras.optimizers.schedules.PiecewiseConstantDecay.

    boundaries: steps, increasing; values: the rates, values[i] up to and with step boundaries[i], one more than
    boundaries. Raises ValueError otherwise.
    """

    def __init__(self, boundaries: Sequence[int], values: Sequence[float], name: str | None = None) -> None:
        super().__init__(name)
        if len(values) != len(boundaries) + 1:
            raise ValueError(
                f"values: one more than boundaries ({len(boundaries)}) is expected, got {len(values)}: {values!r}"
            )
        if not all(isinstance(one, Real) for one in boundaries) or list(boundaries) != sorted(set(boundaries)):
            raise ValueError(f"boundaries: increasing steps are expected, got {boundaries!r}")
        self.boundaries = list(boundaries)
        self.values = [_at_least_0("values", value) for value in values]

    def __call__(self, step: int) -> float:
        return self.values[sum(step > boundary for boundary in self.boundaries)]


class PolynomialDecay(LearningRateSchedule):
    """From initial_learning_rate to end_learning_rate (default 0.0001) in decay_steps, along
    (1 - step / decay_steps)^power (default 1), keras.optimizers.schedules.PolynomialDecay.

    cycle: from decay_steps on it goes on from there to 2 * decay_steps, and so on; otherwise the rate stays at the end.
    Raises ValueError for a rate below 0, or decay_steps below 1.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        end_learning_rate: float = 0.0001,
        power: float = 1.0,
        cycle: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.initial_learning_rate = _at_least_0("initial_learning_rate", initial_learning_rate)
        self.decay_steps = positive_integer("decay_steps", decay_steps)
        self.end_learning_rate = _at_least_0("end_learning_rate", end_learning_rate)
        self.power = _at_least_0("power", power)
        self.cycle = cycle

    def __call__(self, step: int) -> float:
        steps = self.decay_steps
        if self.cycle:
            steps *= max(math.ceil(step / steps), 1)
        left = 1 - min(step / steps, 1)
        return (self.initial_learning_rate - self.end_learning_rate) * left**self.power + self.end_learning_rate


class CosineDecay(LearningRateSchedule):
    """Half a cosine from a rate to `alpha` times it (default 0), keras.optimizers.schedules.CosineDecay (Loshchilov and
    Hutter, 2016).

    initial_learning_rate: where it starts. decay_steps: of the cosine; the rate then stays. warmup_target: with it the
    rate first rises from initial_learning_rate to this one in a straight line of warmup_steps, and falls from there.

    Raises ValueError for a rate below 0, decay_steps below 1, or one of warmup_target and warmup_steps alone.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        alpha: float = 0.0,
        name: str | None = None,
        warmup_target: float | None = None,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(name)
        if (warmup_target is None) != (warmup_steps == 0):
            raise ValueError(
                f"warmup_target: it goes with warmup_steps above 0, got {warmup_target!r} and {warmup_steps!r}"
            )
        self.initial_learning_rate = _at_least_0("initial_learning_rate", initial_learning_rate)
        self.decay_steps = positive_integer("decay_steps", decay_steps)
        self.alpha = _at_least_0("alpha", alpha)
        self.warmup_target = None if warmup_target is None else _at_least_0("warmup_target", warmup_target)
        self.warmup_steps = 0 if warmup_target is None else positive_integer("warmup_steps", warmup_steps)

    def __call__(self, step: int) -> float:
        start = self.initial_learning_rate
        if self.warmup_target is not None:
            if step < self.warmup_steps:
                return start + (self.warmup_target - start) * step / self.warmup_steps
            start = self.warmup_target
        passed = min((step - self.warmup_steps) / self.decay_steps, 1)
        return start * ((1 - self.alpha) * _half_cosine(passed) + self.alpha)


class CosineDecayRestarts(LearningRateSchedule):
    """One half cosine after another, keras.optimizers.schedules.CosineDecayRestarts (Loshchilov and Hutter, 2016).

    first_decay_steps: of the first. t_mul: each is so many times as long as the one before (default 2); m_mul: and
    starts from so many times its rate (default 1). alpha: the least rate, as a share of initial_learning_rate.

    Raises ValueError for a rate below 0, first_decay_steps below 1, or t_mul below 1.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        first_decay_steps: int,
        t_mul: float = 2.0,
        m_mul: float = 1.0,
        alpha: float = 0.0,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.initial_learning_rate = _at_least_0("initial_learning_rate", initial_learning_rate)
        self.first_decay_steps = positive_integer("first_decay_steps", first_decay_steps)
        self.t_mul = _at_least_0("t_mul", t_mul)
        self.m_mul = _at_least_0("m_mul", m_mul)
        self.alpha = _at_least_0("alpha", alpha)
        if self.t_mul < 1:
            raise ValueError(f"t_mul: a number of at least 1 is expected, got {t_mul!r}")

    def __call__(self, step: int) -> float:
        restarts, length, passed = 0, float(self.first_decay_steps), float(step)
        if self.t_mul == 1:
            restarts, passed = int(passed // length), passed % length
        while passed >= length:
            passed -= length
            length *= self.t_mul
            restarts += 1
        decayed = self.m_mul**restarts * _half_cosine(passed / length)
        return self.initial_learning_rate * ((1 - self.alpha) * decayed + self.alpha)


SCHEDULES: tuple[type[LearningRateSchedule], ...] = (
    CosineDecay,
    CosineDecayRestarts,
    ExponentialDecay,
    InverseTimeDecay,
    PiecewiseConstantDecay,
    PolynomialDecay,
)


def _half_cosine(share: float) -> float:
    """From 1 at 0 to 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * share))


def _at_least_0(argument: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise ValueError(f"{argument}: a number of at least 0 is expected, got {value!r}")
    return float(value)
