"""Losses on classes: the cross-entropies, and the hinges."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F

from nnlib import ops
from nnlib.checks import share
from nnlib.losses.base import EPSILON, Loss, OnSameShape, OutputShape, fits


class SparseCategoricalCrossentropy(Loss):
    """-log of the probability of the true class.

    Output (N, ..., classes), floating point; targets whole numbers (N, ...) or (N, ..., 1) from 0 to classes - 1.
    from_logits: the output is before the softmax. ignore_class: a label whose samples count for nothing.
    """

    name = "sparse_categorical_crossentropy"
    takes_logits = True

    def __init__(self, from_logits: bool = False, ignore_class: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.from_logits = from_logits
        self.ignore_class = ignore_class

    def prepare(self, targets: torch.Tensor, output_shape: OutputShape) -> torch.Tensor:
        if targets.dtype == torch.bool or (targets.is_floating_point() and not torch.equal(targets, targets.round())):
            raise ValueError(f"y: {self.name} expects whole numbers as labels, got {targets.dtype}")
        if tuple(targets.shape[1:]) == (*output_shape[1:-1], 1):
            targets = targets.squeeze(-1)
        if not fits(targets, output_shape[:-1]):
            wanted = str(("N", *output_shape[1:-1])).replace("'N'", "N")
            hint = "; rows of probabilities go with categorical_crossentropy" * fits(targets, output_shape)
            raise ValueError(f"y: {self.name} expects labels of shape {wanted}, got {tuple(targets.shape)}{hint}")
        targets = targets.to(torch.int64)
        classes = output_shape[-1]
        if classes is not None:
            wrong = (targets < 0) | (targets >= classes)
            if self.ignore_class is not None:
                wrong &= targets != self.ignore_class
            if wrong.any():
                row = int(wrong.reshape(len(targets), -1).any(-1).nonzero()[0])
                raise ValueError(
                    f"y: labels must be from 0 to {classes - 1} for an output of {classes} classes, "
                    f"got {int(targets[row][wrong[row]].reshape(-1)[0])} in row {row}"
                )
        return targets

    def values(
        self, targets: torch.Tensor, output: torch.Tensor, *, from_logits: bool, backend: str | None
    ) -> torch.Tensor:
        rows, labels = output.reshape(-1, output.shape[-1]), targets.reshape(-1)
        ignored = None if self.ignore_class is None else labels == self.ignore_class
        if from_logits:
            options = {} if self.ignore_class is None else {"ignore_index": self.ignore_class}
            values = ops.call(self.name, "cross_entropy", rows, labels, reduction="none", backend=backend, **options)
        else:
            chosen = labels if ignored is None else labels.masked_fill(ignored, 0)
            values = -_log_probabilities(rows).gather(-1, chosen[:, None]).squeeze(-1)
            if ignored is not None:
                values = values.masked_fill(ignored, 0)
        return values.reshape(targets.shape)

    def count(self, targets: torch.Tensor, values: torch.Tensor) -> float | torch.Tensor:
        if self.ignore_class is None:
            return values.numel()
        return (targets != self.ignore_class).sum().clamp_min(1)

    def compute(
        self,
        targets: torch.Tensor,
        output: torch.Tensor,
        weights: torch.Tensor | None = None,
        *,
        from_logits: bool = False,
        backend: str | None = None,
    ) -> torch.Tensor:
        plain = self.ignore_class is None and self.reduction in ("sum_over_batch_size", "mean")
        if from_logits and weights is None and plain:  # the kernel's own mean
            rows = output.reshape(-1, output.shape[-1])
            return ops.call(self.name, "cross_entropy", rows, targets.reshape(-1), backend=backend)
        return super().compute(targets, output, weights, from_logits=from_logits, backend=backend)


class CategoricalCrossentropy(OnSameShape):
    """The cross-entropy to target probabilities. Output and targets (N, ..., classes), targets of any type.

    from_logits: the output is before the softmax. label_smoothing: in [0, 1], how far targets go to 1 / classes.
    """

    name = "categorical_crossentropy"
    takes_logits = True

    def __init__(self, from_logits: bool = False, label_smoothing: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.from_logits = from_logits
        self.label_smoothing = _smoothing(label_smoothing)

    def values(
        self, targets: torch.Tensor, output: torch.Tensor, *, from_logits: bool, backend: str | None
    ) -> torch.Tensor:
        targets = targets.to(output.dtype)
        if self.label_smoothing:
            targets = targets * (1 - self.label_smoothing) + self.label_smoothing / targets.shape[-1]
        if from_logits:
            rows, truth = (values.reshape(-1, values.shape[-1]) for values in (output, targets))
            values = ops.call(self.name, "cross_entropy", rows, truth, reduction="none", backend=backend)
            return values.reshape(output.shape[:-1])
        return -(targets * _log_probabilities(output)).sum(-1)


class BinaryCrossentropy(OnSameShape):
    """The cross-entropy of probabilities of yes and no, each number by itself. Output and targets (N, ..., n).

    Targets from 0 to 1. from_logits: the output is before the sigmoid. label_smoothing: in [0, 1], how far targets go
    to one half.
    """

    name = "binary_crossentropy"

    def __init__(self, from_logits: bool = False, label_smoothing: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.from_logits = from_logits
        self.label_smoothing = _smoothing(label_smoothing)

    def prepare(self, targets: torch.Tensor, output_shape: OutputShape) -> torch.Tensor:
        targets = super().prepare(targets, output_shape)
        wrong = (targets < 0) | (targets > 1)
        if wrong.any():
            row = int(wrong.reshape(len(targets), -1).any(-1).nonzero()[0])
            value = targets[row][wrong[row]].reshape(-1)[0].item()
            raise ValueError(f"y: {self.name} expects targets from 0 to 1, got {value} in row {row}")
        return targets

    def elements(self, targets: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if self.label_smoothing:
            targets = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        if self.from_logits:
            return F.binary_cross_entropy_with_logits(output, targets, reduction="none")
        output = output.clamp(EPSILON, 1 - EPSILON)
        return -(targets * output.log() + (1 - targets) * (1 - output).log())


class BinaryFocalCrossentropy(BinaryCrossentropy):
    """Binary cross-entropy times (1 - p)^gamma, with p the probability of what is so: easy numbers weigh less (Lin et
    al., 2017). Output and targets (N, ..., n).

    apply_class_balancing: yes also weighs alpha and no 1 - alpha. from_logits, label_smoothing: see BinaryCrossentropy.
    """

    name = "binary_focal_crossentropy"

    def __init__(
        self,
        apply_class_balancing: bool = False,
        alpha: float = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(from_logits, label_smoothing, **options)
        self.apply_class_balancing = apply_class_balancing
        self.alpha = share("alpha", alpha)
        self.gamma = _at_least_0("gamma", gamma)

    def elements(self, targets: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        values = super().elements(targets, output)
        if self.label_smoothing:
            targets = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        output = torch.sigmoid(output) if self.from_logits else output
        right = targets * output + (1 - targets) * (1 - output)
        values = (1 - right) ** self.gamma * values
        if self.apply_class_balancing:
            values = values * (targets * self.alpha + (1 - targets) * (1 - self.alpha))
        return values


class CategoricalFocalCrossentropy(CategoricalCrossentropy):
    """The cross-entropy to target probabilities, each class' term times alpha * (1 - p)^gamma with p its probability
    (Lin et al., 2017). Output and targets (N, ..., classes).

    from_logits, label_smoothing: see CategoricalCrossentropy.
    """

    name = "categorical_focal_crossentropy"

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(from_logits, label_smoothing, **options)
        self.alpha = _at_least_0("alpha", alpha)
        self.gamma = _at_least_0("gamma", gamma)

    def values(
        self, targets: torch.Tensor, output: torch.Tensor, *, from_logits: bool, backend: str | None
    ) -> torch.Tensor:
        targets = targets.to(output.dtype)
        if self.label_smoothing:
            targets = targets * (1 - self.label_smoothing) + self.label_smoothing / targets.shape[-1]
        if from_logits:
            logarithms = ops.call(self.name, "log_softmax", output, -1, backend=backend)
        else:
            logarithms = _log_probabilities(output)
        factors = self.alpha * (1 - logarithms.exp()) ** self.gamma
        return -(factors * targets * logarithms).sum(-1)


class Hinge(OnSameShape):
    """max(1 - target * output, 0), targets -1 and 1; where all are 0 and 1, 0 is taken for -1."""

    name = "hinge"

    def prepare(self, targets: torch.Tensor, output_shape: OutputShape) -> torch.Tensor:
        targets = super().prepare(targets, output_shape)
        if ((targets == 0) | (targets == 1)).all():
            return 2 * targets.to(torch.get_default_dtype()) - 1
        return targets

    def elements(self, targets: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return (1 - targets * output).clamp_min(0)


class SquaredHinge(Hinge):
    """max(1 - target * output, 0)^2, targets as for Hinge."""

    name = "squared_hinge"

    def elements(self, targets: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return super().elements(targets, output).square()


class CategoricalHinge(OnSameShape):
    """max(wrong - right + 1, 0), with `right` the output of the true class and `wrong` the largest of the others', or
    0. Output and targets (N, ..., classes), targets 0 and 1."""

    name = "categorical_hinge"

    def values(
        self, targets: torch.Tensor, output: torch.Tensor, *, from_logits: bool, backend: str | None
    ) -> torch.Tensor:
        targets = targets.to(output.dtype)
        right, wrong = (targets * output).sum(-1), ((1 - targets) * output).amax(-1)
        return (wrong - right + 1).clamp_min(0)


def _at_least_0(argument: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not value >= 0:
        raise ValueError(f"{argument}: a number of at least 0 is expected, got {value!r}")
    return float(value)


def _log_probabilities(output: torch.Tensor) -> torch.Tensor:
    """The logarithms of outputs, made to sum to 1 and kept off 0, as Keras does on torch."""
    return (output / output.sum(-1, keepdim=True)).clamp(EPSILON, 1 - EPSILON).log()


def _smoothing(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"label_smoothing: a number from 0 to 1 is expected, got {value}")
    return value
