"""Shares of right answers."""

from __future__ import annotations

from typing import Any

import torch

from nnlib.metrics.base import MeanMetric


class InferredAccuracy(MeanMetric):
    """What "accuracy" means, as Keras chooses it by shapes: binary accuracy for an output (N, 1), categorical accuracy
    for targets of the output's shape, sparse categorical accuracy otherwise."""

    name = "accuracy"
    takes_logits = True  # an output (N, 1) is no softmax's

    def values(self, y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
        if y_pred.shape[-1] == 1:
            return _hits_binary(y_true, y_pred, 0.5)
        return _hits_largest(y_true.argmax(-1) if y_true.shape == y_pred.shape else y_true, y_pred)


class BinaryAccuracy(MeanMetric):
    """The share of numbers on the right side of `threshold` (default 0.5), keras.metrics.BinaryAccuracy."""

    name = "binary_accuracy"

    def __init__(self, name: str | None = None, threshold: float = 0.5, dtype: Any = None) -> None:
        super().__init__(name, dtype)
        self.threshold = threshold

    def values(self, y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
        return _hits_binary(y_true, y_pred, self.threshold)


class CategoricalAccuracy(MeanMetric):
    """The share of samples whose largest output is at the largest target, keras.metrics.CategoricalAccuracy."""

    name = "categorical_accuracy"
    takes_logits = True

    def values(self, y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
        return _hits_largest(y_true.argmax(-1), y_pred)


class SparseCategoricalAccuracy(MeanMetric):
    """The share of samples whose largest output is the true class, keras.metrics.SparseCategoricalAccuracy."""

    name = "sparse_categorical_accuracy"
    takes_logits = True

    def values(self, y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
        return _hits_largest(y_true, y_pred)


class SparseTopKCategoricalAccuracy(MeanMetric):
    """The share of samples whose true class is among the k (default 5) largest outputs."""

    name = "sparse_top_k_categorical_accuracy"
    takes_logits = True

    def __init__(self, k: int = 5, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name, dtype)
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"k: a positive integer is expected, got {k!r}")
        self.k = k

    def labels(self, y_true: torch.Tensor) -> torch.Tensor:
        """The true classes."""
        return y_true

    def values(self, y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
        labels = self.labels(y_true).reshape(*y_pred.shape[:-1], 1).long()
        truth = y_pred.gather(-1, labels)
        # Fewer than k outputs are larger than the true class', as in Keras: ties count as hits.
        return (y_pred > truth).sum(-1) < self.k


class TopKCategoricalAccuracy(SparseTopKCategoricalAccuracy):
    """The same for targets that are one row of probabilities a sample."""

    name = "top_k_categorical_accuracy"

    def labels(self, y_true: torch.Tensor) -> torch.Tensor:
        return y_true.argmax(-1)


def _hits_binary(y_true: torch.Tensor, y_pred: torch.Tensor, threshold: float) -> torch.Tensor:
    return (y_pred > threshold) == (y_true.reshape(y_pred.shape) > 0.5)


def _hits_largest(labels: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
    return y_pred.argmax(-1) == labels.reshape(y_pred.shape[:-1])
