"""What every loss is: one value a sample from targets and output, and how they become one number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from nnlib.calling import any_tensor
from nnlib.checks import default_dtype
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
    a model cannot train on. name: default the class' own. dtype: torch's default one, or its name; no other.

    Called with (y_true, y_pred, sample_weight=None), arrays or tensors, it gives the reduced tensor.
    """

    name = "loss"
    #: True where `from_logits` is understood.
    takes_logits = False

    def __init__(
        self, *, reduction: str | None = "sum_over_batch_size", name: str | None = None, dtype: Any = None
    ) -> None:
        default_dtype(dtype)
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
            if weights.dim() == values.dim() + 1 and weights.shape[-1] == 1:
                weights = weights.squeeze(-1)
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
        output, targets = any_tensor(f"{self.name}: y_pred", y_pred), any_tensor(f"{self.name}: y_true", y_true)
        output = output if output.is_floating_point() else output.to(torch.get_default_dtype())
        weights = None if sample_weight is None else any_tensor(f"{self.name}: sample_weight", sample_weight)
        return self.compute(self.prepare(targets, tuple(output.shape)), output, weights, from_logits=self.from_logits)


class OnSameShape(Loss):
    """Losses of targets and outputs of one shape (N, ..., n); targets (N, ...) are taken for outputs (N, ..., 1)."""

    def prepare(self, targets: torch.Tensor, output_shape: OutputShape) -> torch.Tensor:
        if output_shape[-1] == 1 and targets.dim() == len(output_shape) - 1:
            targets = targets.unsqueeze(-1)
        if not fits(targets, output_shape):
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


def fits(targets: torch.Tensor, shape: OutputShape) -> bool:
    pairs = zip(targets.shape[1:], shape[1:])
    return targets.dim() == len(shape) and all(want in (None, size) for size, want in pairs)
