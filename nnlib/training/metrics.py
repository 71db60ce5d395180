"""Metrics by Keras' names: means over samples, gathered batch by batch on the output's device."""

from __future__ import annotations

from collections.abc import Callable

import torch

from nnlib.names import look_up

#: (output, targets) -> the mean over the batch, a scalar tensor.
MetricFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def accuracy(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The share of samples whose largest output is the true class, a scalar.

    output: (N, classes), probabilities or logits; targets: class numbers (N,), or one row of probabilities a sample.
    An output (N, 1) is one probability, compared with one half.
    """
    if output.shape[-1] == 1:
        return ((output > 0.5).reshape(-1) == (targets.reshape(-1) > 0.5)).double().mean()
    truth = targets.argmax(-1) if targets.shape == output.shape else targets.reshape(-1)
    return (output.argmax(-1).reshape(-1) == truth).double().mean()


class Mean:
    """A running mean, weighted by samples. It lives on the values' device: only reading it waits for them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._total: torch.Tensor | None = None
        self._samples = 0

    def add(self, value: torch.Tensor, samples: int) -> None:
        """Adds a batch's mean, a scalar tensor."""
        weighted = value.detach().double() * samples
        self._total = weighted if self._total is None else self._total + weighted
        self._samples += samples

    def value(self) -> float:
        """The mean so far; NaN before the first batch."""
        return float("nan") if self._total is None else float(self._total) / self._samples


_METRICS: dict[str, tuple[str, MetricFunction]] = {
    "accuracy": ("accuracy", accuracy),
    "acc": ("acc", accuracy),
}


def get_metric(choice: str | MetricFunction) -> tuple[str, MetricFunction]:
    """(name, function) of one entry of compile's `metrics`. Raises ValueError for an unknown name, TypeError for
    another kind."""
    if isinstance(choice, str):
        return look_up("metrics", choice, _METRICS)
    if callable(choice):
        return getattr(choice, "__name__", type(choice).__name__), choice
    raise TypeError(f"metrics: names or functions of (output, targets) are expected, got {choice!r}")
