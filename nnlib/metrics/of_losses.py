"""Losses as metrics, by Keras' names and arguments, and two means that are none."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from nnlib import losses
from nnlib.losses import Loss
from nnlib.metrics.base import LossMetric, MeanMetric


class _OfLoss(LossMetric):
    """The mean of a loss over all samples. options: the loss' own."""

    of: ClassVar[type[Loss]]

    def __init__(self, name: str | None = None, dtype: Any = None, **options: Any) -> None:
        super().__init__(self.of(dtype=dtype, **options), name or type(self).name)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.kept_as = f"metrics.{cls.__name__}"  # the loss has the name in files
        cls.__doc__ = f"nnlib.losses.{cls.of.__name__} as a metric, keras.metrics.{cls.__name__}."


class MeanSquaredError(_OfLoss):
    name, of = "mean_squared_error", losses.MeanSquaredError


class MeanAbsoluteError(_OfLoss):
    name, of = "mean_absolute_error", losses.MeanAbsoluteError


class MeanAbsolutePercentageError(_OfLoss):
    name, of = "mean_absolute_percentage_error", losses.MeanAbsolutePercentageError


class MeanSquaredLogarithmicError(_OfLoss):
    name, of = "mean_squared_logarithmic_error", losses.MeanSquaredLogarithmicError


class LogCoshError(_OfLoss):
    name, of = "logcosh", losses.LogCosh


class Poisson(_OfLoss):
    name, of = "poisson", losses.Poisson


class KLDivergence(_OfLoss):
    name, of = "kl_divergence", losses.KLDivergence


class Hinge(_OfLoss):
    name, of = "hinge", losses.Hinge


class SquaredHinge(_OfLoss):
    name, of = "squared_hinge", losses.SquaredHinge


class CategoricalHinge(_OfLoss):
    name, of = "categorical_hinge", losses.CategoricalHinge


class BinaryCrossentropy(_OfLoss):
    name, of = "binary_crossentropy", losses.BinaryCrossentropy


class CategoricalCrossentropy(_OfLoss):
    name, of = "categorical_crossentropy", losses.CategoricalCrossentropy


class SparseCategoricalCrossentropy(_OfLoss):
    name, of = "sparse_categorical_crossentropy", losses.SparseCategoricalCrossentropy


class RootMeanSquaredError(MeanMetric):
    """The root of the mean of (output - target)^2."""

    name = "root_mean_squared_error"
    direction = "min"

    def values(self, y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
        return (y_pred - y_true.reshape(y_pred.shape).to(y_pred.dtype)).square()

    def result(self) -> float:
        return super().result() ** 0.5


class CosineSimilarity(MeanMetric):
    """The cosine of the angle between output and target along `axis` (default -1), keras.metrics.CosineSimilarity."""

    name = "cosine_similarity"
    kept_as = "metrics.CosineSimilarity"

    def __init__(self, name: str | None = None, dtype: Any = None, axis: int = -1) -> None:
        super().__init__(name, dtype)
        self.loss = losses.CosineSimilarity(axis=axis)

    def values(self, y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
        targets = self.loss.prepare(y_true, tuple(y_pred.shape))
        return -self.loss.values(targets, y_pred, from_logits=False, backend=None)
