"""Losses on numbers, each compared with its target."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from nnlib.losses.base import EPSILON, OnSameShape


class MeanSquaredError(OnSameShape):
    """(output - target)^2."""

    name = "mean_squared_error"

    def elements(self, targets: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return (output - targets).square()


class MeanAbsoluteError(OnSameShape):
    """|output - target|."""

    name = "mean_absolute_error"

    def elements(self, targets: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return (output - targets).abs()


class MeanAbsolutePercentageError(OnSameShape):
    """100 |output - target| / max(|target|, 1e-7)."""

    name = "mean_absolute_percentage_error"

    def elements(self, targets: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return 100 * ((output - targets) / targets.abs().clamp_min(EPSILON)).abs()


class MeanSquaredLogarithmicError(OnSameShape):
    """(log(output + 1) - log(target + 1))^2, both taken as at least 1e-7."""

    name = "mean_squared_logarithmic_error"

    def elements(self, targets: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return (output.clamp_min(EPSILON).log1p() - targets.clamp_min(EPSILON).log1p()).square()


class CosineSimilarity(OnSameShape):
    """Minus the cosine of the angle between output and target, as vectors along `axis` (default the last)."""

    name = "cosine_similarity"

    def __init__(self, axis: int = -1, **options: Any) -> None:
        super().__init__(**options)
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise TypeError(f"axis: an integer is expected, got {axis!r}")
        self.axis = axis

    def values(
        self, targets: torch.Tensor, output: torch.Tensor, *, from_logits: bool, backend: str | None
    ) -> torch.Tensor:
        first, second = (F.normalize(one, dim=self.axis, eps=EPSILON) for one in (output, targets.to(output.dtype)))
        return -(first * second).sum(self.axis)


class Huber(OnSameShape):
    """Half the square of errors up to `delta` (default 1), and linear beyond."""

    name = "huber"

    def __init__(self, delta: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        if not delta > 0:
            raise ValueError(f"delta: a number above 0 is expected, got {delta}")
        self.delta = delta

    def elements(self, targets: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return F.huber_loss(output, targets, reduction="none", delta=self.delta)


class LogCosh(OnSameShape):
    """log(cosh(output - target))."""

    name = "log_cosh"

    def elements(self, targets: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        error = (output - targets).abs()  # even, and without overflow for positive numbers
        return error + torch.log1p(torch.exp(-2 * error)) - 0.6931471805599453


class Poisson(OnSameShape):
    """output - target * log(output)."""

    name = "poisson"

    def elements(self, targets: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return output - targets * (output + EPSILON).log()


class KLDivergence(OnSameShape):
    """The sum along the last axis of target * log(target / output), both probabilities."""

    name = "kl_divergence"

    def values(
        self, targets: torch.Tensor, output: torch.Tensor, *, from_logits: bool, backend: str | None
    ) -> torch.Tensor:
        targets = targets.to(output.dtype).clamp(EPSILON, 1)
        return (targets * (targets / output.clamp(EPSILON, 1)).log()).sum(-1)
