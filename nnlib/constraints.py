"""What weights must keep to, by Keras' names, arguments and defaults.

    layers.Dense(64, kernel_constraint=constraints.MaxNorm(2))      # or "max_norm", or a function of the weight

fit and train_on_batch bring a weight back to it after each step of the optimizer. A weight is seen in Keras' layout,
a matrix (in, out) and an image kernel (height, width, in, out), which is what `axis` counts in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from nnlib.configuration import Recorded
from nnlib.names import look_up

#: Keras' term that keeps a division from 0.
EPSILON = 1e-7
Axes = int | Sequence[int]


class Constraint(Recorded):
    """The base of constraints. A subclass writes `__call__`: from a weight to the nearest one that is allowed."""

    def __init__(self) -> None:
        pass  # no arguments

    def __call__(self, w: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define __call__(w)")


class NonNeg(Constraint):
    """No number below 0."""

    def __call__(self, w: torch.Tensor) -> torch.Tensor:
        return w.clamp(min=0)


class _Norm(Constraint):
    """What constraints on Euclidean norms share. axis: the axis or axes that a norm is taken along (default 0)."""

    axis: Axes

    def wanted(self, norms: torch.Tensor) -> torch.Tensor | float:
        """The norms to have in place of these."""
        raise NotImplementedError

    def __call__(self, w: torch.Tensor) -> torch.Tensor:
        axes = self.axis if isinstance(self.axis, int) else tuple(self.axis)
        norms = w.square().sum(axes, keepdim=True).sqrt()
        return w * (self.wanted(norms) / (EPSILON + norms))


class MaxNorm(_Norm):
    """Norms of at most max_value (Srivastava et al., 2014)."""

    def __init__(self, max_value: float = 2, axis: Axes = 0) -> None:
        self.max_value = _positive("max_value", max_value)
        self.axis = axis

    def wanted(self, norms: torch.Tensor) -> torch.Tensor:
        return norms.clamp(max=self.max_value)


class UnitNorm(_Norm):
    """Norms of 1."""

    def __init__(self, axis: Axes = 0) -> None:
        self.axis = axis

    def wanted(self, norms: torch.Tensor) -> float:
        return 1.0


class MinMaxNorm(_Norm):
    """Norms from min_value to max_value; `rate` of the way there at each step, 1 being all of it."""

    def __init__(self, min_value: float = 0.0, max_value: float = 1.0, rate: float = 1.0, axis: Axes = 0) -> None:
        if not 0 <= min_value <= max_value:
            raise ValueError(f"min_value: from 0 to max_value ({max_value}) is expected, got {min_value}")
        if not 0 <= rate <= 1:
            raise ValueError(f"rate: a number in [0, 1] is expected, got {rate}")
        self.min_value = min_value
        self.max_value = max_value
        self.rate = rate
        self.axis = axis

    def wanted(self, norms: torch.Tensor) -> torch.Tensor:
        return self.rate * norms.clamp(self.min_value, self.max_value) + (1 - self.rate) * norms


# Keras' second names.
max_norm, non_neg, unit_norm, min_max_norm = MaxNorm, NonNeg, UnitNorm, MinMaxNorm

#: None, a name, an object, or a function from the weight to one of the same shape.
ConstraintChoice = str | Constraint | Callable[[torch.Tensor], torch.Tensor] | None

CONSTRAINTS: dict[str, type[Constraint]] = {
    "max_norm": MaxNorm,
    "non_neg": NonNeg,
    "unit_norm": UnitNorm,
    "min_max_norm": MinMaxNorm,
}
_ALIASES = {kind.__name__.lower(): name for name, kind in CONSTRAINTS.items()}


def get(choice: Any, argument: str = "constraint") -> Any:
    """The constraint of a name or class; an object, a function and None as they are.

    Raises ValueError for an unknown name, TypeError for another kind; `argument` is the name in the message.
    """
    if isinstance(choice, str):
        return look_up(argument, _ALIASES.get(choice.lower(), choice), CONSTRAINTS)()
    if isinstance(choice, type) and issubclass(choice, Constraint):
        return choice()
    if choice is not None and not callable(choice):
        raise TypeError(f"{argument}: None, a name, a constraint or a function is expected, got {choice!r}")
    return choice


def _positive(argument: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{argument}: a number above 0 is expected, got {value!r}")
    return value
