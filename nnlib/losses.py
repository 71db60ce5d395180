"""Losses by Keras' names, arguments and defaults.

A loss gives one value a sample, as a function of the targets and the model's output, and reduces them to a scalar.
Those on class probabilities also take logits (`from_logits`), which the model passes by itself where its last layer is
a softmax: log(softmax(x)) in one kernel neither overflows nor loses the small probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nnlib import ops
from nnlib.configuration import Recorded
from nnlib.names import look_up
from nnlib.training.reductions import last_axis_mean, total

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
OutputShape = tuple[int | None, ...]

# Keras' floor for probabilities before a logarithm.
EPSILON = 1e-7
REDUCTIONS = ("sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", "none")


class Loss(Recorded):
    """The base of losses. A subclass writes `values`.

    reduction: how one value a sample becomes one number. "sum_over_batch_size" or "mean": the (weighted) sum over
    their number; "mean_with_sample_weight": over the sum of the weights; "sum"; None or "none": not at all, which
    a model cannot train on. name: default the class' own.

    Called with (y_true, y_pred, sample_weight=None), arrays or tensors, it gives the reduced tensor.
    """

    name = "loss"
    #: True where `from_logits` is understood.
    takes_logits = False

    def __init__(self, *, reduction: str | None = "sum_over_batch_size", name: str | None = None) -> None:
        self.reduction = look_up("reduction", reduction or "none", {known: known for known in REDUCTIONS})
        self.from_logits = False
        if name is not None:
            self.name = name

    def prepare(self, targets: torch.Tensor, output_shape: OutputShape) -> torch.Tensor:
        """Targets in the type and shape that `values` wants, for a model with this output shape (batch first).

        Raises ValueError if they do not fit: shape, kind, labels out of range. Called once for a whole data set.
        """
        return targets

    def values(
        self, targets: torch.Tensor, output: torch.Tensor, *, from_logits: bool, backend: str | None
    ) -> torch.Tensor:
        """The loss of each sample, (N, ...), from prepared targets."""
        raise NotImplementedError

    def count(self, targets: torch.Tensor, values: torch.Tensor) -> float | torch.Tensor:
        """How many values the mean is over."""
        return values.numel()

    def compute(
        self,
        targets: torch.Tensor,
        output: torch.Tensor,
        weights: torch.Tensor | None = None,
        *,
        from_logits: bool = False,
        backend: str | None = None,
    ) -> torch.Tensor:
        """The reduced loss of a batch, from prepared targets. weights: one number a sample or a value, or None."""
        values = self.values(targets, output, from_logits=from_logits, backend=backend)
        count = self.count(targets, values)
        if weights is not None:
            if values.dim() < weights.dim():
                raise ValueError(f"sample_weight: {self.name} must give one value a sample, it gives one a batch")
            weights = weights.to(values.dtype)
            weights = weights.reshape(weights.shape + (1,) * (values.dim() - weights.dim()))
            values = values * weights
        if self.reduction == "none" or values.dim() == 0:
            return values
        if self.reduction == "sum":
            return total(values)
        if self.reduction == "mean_with_sample_weight" and weights is not None:
            return total(values) / total(weights.expand_as(values))
        return total(values) / count

    def __call__(
        self,
        y_true: np.ndarray | torch.Tensor,
        y_pred: np.ndarray | torch.Tensor,
        sample_weight: np.ndarray | torch.Tensor | None = None,
    ) -> torch.Tensor:
        output, targets = torch.as_tensor(y_pred), torch.as_tensor(y_true)
        weights = None if sample_weight is None else torch.as_tensor(sample_weight)
        return self.compute(
            self.prepare(targets, tuple(output.shape)), output, weights, from_logits=self.from_logits
        )


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
        if not _fits(targets, output_shape[:-1]):
            wanted = str(("N", *output_shape[1:-1])).replace("'N'", "N")
            hint = "; rows of probabilities go with categorical_crossentropy" * _fits(targets, output_shape)
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


class _OnSameShape(Loss):
    """Losses of targets and outputs of one shape (N, ..., n); targets (N, ...) are taken for outputs (N, ..., 1)."""

    def prepare(self, targets: torch.Tensor, output_shape: OutputShape) -> torch.Tensor:
        if output_shape[-1] == 1 and targets.dim() == len(output_shape) - 1:
            targets = targets.unsqueeze(-1)
        if not _fits(targets, output_shape):
            raise ValueError(
                f"y: {self.name} expects the shape of the output, {('N', *output_shape[1:])}, "
                f"got {tuple(targets.shape)}"
            )
        return targets

    def values(
        self, targets: torch.Tensor, output: torch.Tensor, *, from_logits: bool, backend: str | None
    ) -> torch.Tensor:
        return last_axis_mean(self.elements(targets.to(output.dtype), output))

    def elements(self, targets: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The loss of each number; the mean along the last axis is the sample's."""
        raise NotImplementedError


class CategoricalCrossentropy(_OnSameShape):
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


class BinaryCrossentropy(_OnSameShape):
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


class MeanSquaredError(_OnSameShape):
    """(output - target)^2."""

    name = "mean_squared_error"

    def elements(self, targets: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return (output - targets).square()


class MeanAbsoluteError(_OnSameShape):
    """|output - target|."""

    name = "mean_absolute_error"

    def elements(self, targets: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return (output - targets).abs()


class MeanAbsolutePercentageError(_OnSameShape):
    """100 |output - target| / max(|target|, 1e-7)."""

    name = "mean_absolute_percentage_error"

    def elements(self, targets: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return 100 * ((output - targets) / targets.abs().clamp_min(EPSILON)).abs()


class Huber(_OnSameShape):
    """Half the square of errors up to `delta` (default 1), and linear beyond."""

    name = "huber"

    def __init__(self, delta: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        if not delta > 0:
            raise ValueError(f"delta: a number above 0 is expected, got {delta}")
        self.delta = delta

    def elements(self, targets: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return F.huber_loss(output, targets, reduction="none", delta=self.delta)


class LogCosh(_OnSameShape):
    """log(cosh(output - target))."""

    name = "log_cosh"

    def elements(self, targets: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        error = (output - targets).abs()  # even, and without overflow for positive numbers
        return error + torch.log1p(torch.exp(-2 * error)) - 0.6931471805599453


class Poisson(_OnSameShape):
    """output - target * log(output)."""

    name = "poisson"

    def elements(self, targets: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return output - targets * (output + EPSILON).log()


class KLDivergence(_OnSameShape):
    """The sum along the last axis of target * log(target / output), both probabilities."""

    name = "kl_divergence"

    def values(
        self, targets: torch.Tensor, output: torch.Tensor, *, from_logits: bool, backend: str | None
    ) -> torch.Tensor:
        targets = targets.to(output.dtype).clamp(EPSILON, 1)
        return (targets * (targets / output.clamp(EPSILON, 1)).log()).sum(-1)


class FunctionLoss(Loss):
    """A function of (y_true, y_pred), as Keras calls it, that gives one value a sample or a scalar; or a torch.nn
    module, which is called with (output, targets) as torch does."""

    def __init__(self, function: LossFunction) -> None:
        super().__init__(name=getattr(function, "__name__", type(function).__name__))
        self.function = function

    def values(
        self, targets: torch.Tensor, output: torch.Tensor, *, from_logits: bool, backend: str | None
    ) -> torch.Tensor:
        if isinstance(self.function, torch.nn.Module):
            return self.function(output, targets)
        return self.function(targets, output)


def _fits(targets: torch.Tensor, shape: OutputShape) -> bool:
    pairs = zip(targets.shape[1:], shape[1:])
    return targets.dim() == len(shape) and all(want in (None, size) for size, want in pairs)


def _log_probabilities(output: torch.Tensor) -> torch.Tensor:
    """The logarithms of outputs, made to sum to 1 and kept off 0, as Keras does on torch."""
    return (output / output.sum(-1, keepdim=True)).clamp(EPSILON, 1 - EPSILON).log()


def _smoothing(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"label_smoothing: a number from 0 to 1 is expected, got {value}")
    return value


LOSSES: dict[str, type[Loss]] = {
    "sparse_categorical_crossentropy": SparseCategoricalCrossentropy,
    "categorical_crossentropy": CategoricalCrossentropy,
    "binary_crossentropy": BinaryCrossentropy,
    "bce": BinaryCrossentropy,
    "mean_squared_error": MeanSquaredError,
    "mse": MeanSquaredError,
    "mean_absolute_error": MeanAbsoluteError,
    "mae": MeanAbsoluteError,
    "mean_absolute_percentage_error": MeanAbsolutePercentageError,
    "mape": MeanAbsolutePercentageError,
    "huber": Huber,
    "log_cosh": LogCosh,
    "poisson": Poisson,
    "kl_divergence": KLDivergence,
    "kld": KLDivergence,
}


def get_loss(choice: str | Loss | LossFunction) -> Loss:
    """The `loss` argument of compile. Raises ValueError for an unknown name or a loss that is not reduced, TypeError
    for another kind."""
    if isinstance(choice, str):
        return look_up("loss", choice, LOSSES)()
    made: Any = choice() if isinstance(choice, type) and issubclass(choice, Loss) else choice
    if isinstance(made, Loss):
        if made.reduction == "none":
            raise ValueError(f"loss: one number a batch is expected, got {made.name} with reduction None")
        return made
    if callable(made):
        return FunctionLoss(made)
    raise TypeError(
        f"loss: a name, an object of nnlib.losses or a function of (y_true, y_pred) is expected, got {choice!r}"
    )
