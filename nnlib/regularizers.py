"""Penalties on weights and outputs by Keras' names, arguments and defaults.

    layers.Dense(64, kernel_regularizer=regularizers.L2(1e-4))      # or "l2", or a function of the weight

`layer.losses` and `model.losses` are what they come to; fit, train_on_batch, test_on_batch and evaluate add them to the
loss. A weight counts while it is trained (requires_grad), and is seen in Keras' layout: a matrix is (in, out).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from nnlib.configuration import Recorded
from nnlib.names import look_up
from nnlib.training.reductions import total


class Regularizer(Recorded):
    """The base of regularizers. A subclass writes `__call__`: from a tensor to a scalar tensor."""

    #: True where the order of the weight's axes does not matter.
    takes_any_layout = False

    def __init__(self) -> None:
        pass  # no arguments

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define __call__(x)")


class L1L2(Regularizer):
    """l1 * sum(abs(x)) + l2 * sum(x**2). Both are 0 by default, and 0.01 under the name "l1_l2"."""

    takes_any_layout = True

    def __init__(self, l1: float = 0.0, l2: float = 0.0) -> None:
        self.l1 = _factor("l1", l1)
        self.l2 = _factor("l2", l2)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        penalty = x.new_zeros(())
        if self.l1:
            penalty = penalty + self.l1 * total(x.abs())
        if self.l2:
            penalty = penalty + self.l2 * total(x.square())
        return penalty


class L1(L1L2):
    """l1 * sum(abs(x)), l1 0.01 by default."""

    def __init__(self, l1: float = 0.01) -> None:
        super().__init__(l1=l1)


class L2(L1L2):
    """l2 * sum(x**2), l2 0.01 by default."""

    def __init__(self, l2: float = 0.01) -> None:
        super().__init__(l2=l2)


class OrthogonalRegularizer(Regularizer):
    """factor times the mean of the absolute cosines between the rows of a matrix, or between its columns.

    factor: default 0.01. mode: "rows" or "columns".
    """

    def __init__(self, factor: float = 0.01, mode: str = "rows") -> None:
        self.factor = _factor("factor", factor)
        self.mode = look_up("mode", mode, {"rows": "rows", "columns": "columns"})

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() != 2:
            raise ValueError(f"OrthogonalRegularizer: a weight of two axes is expected, got shape {tuple(x.shape)}")
        rows = F.normalize(x if self.mode == "rows" else x.t(), dim=1)
        cosines = rows @ rows.t()
        count = len(rows)
        others = ~torch.eye(count, dtype=torch.bool, device=x.device)
        return self.factor * total((cosines * others).abs()) / (count * (count - 1))


# Keras' second names.
l1, l2, l1_l2, orthogonal_regularizer = L1, L2, L1L2, OrthogonalRegularizer

#: None, a name, an object, or a function from the weight to a scalar tensor.
RegularizerChoice = str | Regularizer | Callable[[torch.Tensor], torch.Tensor] | None

REGULARIZERS: dict[str, Callable[[], Regularizer]] = {
    "l1": L1,
    "l2": L2,
    "l1_l2": lambda: L1L2(0.01, 0.01),
    "orthogonal_regularizer": OrthogonalRegularizer,
}
_ALIASES = {"l1l2": "l1_l2", "orthogonalregularizer": "orthogonal_regularizer"}


def get(choice: Any, argument: str = "regularizer") -> Any:
    """The regularizer of a name or class; an object, a function and None as they are.

    Raises ValueError for an unknown name, TypeError for another kind; `argument` is the name in the message.
    """
    if isinstance(choice, str):
        return look_up(argument, _ALIASES.get(choice.lower(), choice), REGULARIZERS)()
    if isinstance(choice, type) and issubclass(choice, Regularizer):
        return choice()
    if choice is not None and not callable(choice):
        raise TypeError(f"{argument}: None, a name, a regularizer or a function is expected, got {choice!r}")
    return choice


def _factor(argument: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{argument}: a number of at least 0 is expected, got {value!r}")
    return float(value)
