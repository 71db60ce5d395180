"""Losses by Keras' names.

A loss has `name`, takes the model's output and the targets, and gives a scalar. Those on class probabilities also
take logits (`from_logits`), which the model passes where its last layer is a softmax: log(softmax(x)) in one kernel
neither overflows nor loses the small probabilities.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from nnlib import ops
from nnlib.names import look_up

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Keras' floor for probabilities before a logarithm.
EPSILON = 1e-7


class Loss:
    """The base of losses."""

    name = "loss"
    #: True where `from_logits=True` is understood.
    takes_logits = False

    def check_targets(self, targets: torch.Tensor, output_shape: tuple[int | None, ...]) -> None:
        """Raises ValueError if targets (N, ...) do not fit a model with this output shape (batch first)."""

    def prepare(self, targets: torch.Tensor) -> torch.Tensor:
        """Targets in the type and shape that __call__ wants. Called once for a whole data set."""
        return targets

    def __call__(
        self, output: torch.Tensor, targets: torch.Tensor, *, from_logits: bool, backend: str | None
    ) -> torch.Tensor:
        """The mean loss of a batch, a scalar tensor."""
        raise NotImplementedError


class SparseCategoricalCrossentropy(Loss):
    """-log of the probability of the true class, averaged.

    Output (N, classes), floating point; targets integers (N,) or (N, 1) from 0 to classes - 1.
    """

    name = "sparse_categorical_crossentropy"
    takes_logits = True

    def check_targets(self, targets: torch.Tensor, output_shape: tuple[int | None, ...]) -> None:
        if targets.is_floating_point():
            raise ValueError(f"y: {self.name} expects integer labels, got {targets.dtype}")
        if targets.dim() != 1 and tuple(targets.shape[1:]) != (1,):
            raise ValueError(f"y: {self.name} expects labels of shape (N,), got {tuple(targets.shape)}")
        classes = output_shape[-1]
        if classes is None or not len(targets):
            return
        flat = targets.reshape(-1).to(torch.int64)
        wrong = torch.nonzero((flat < 0) | (flat >= classes))
        if len(wrong):
            row = int(wrong[0])
            raise ValueError(
                f"y: labels must be from 0 to {classes - 1} for an output of {classes} classes, "
                f"got {int(flat[row])} in row {row}"
            )

    def prepare(self, targets: torch.Tensor) -> torch.Tensor:
        return targets.reshape(-1).to(torch.int64)

    def __call__(
        self, output: torch.Tensor, targets: torch.Tensor, *, from_logits: bool, backend: str | None
    ) -> torch.Tensor:
        if from_logits:
            return ops.call(self.name, "cross_entropy", output, targets, backend=backend)
        chosen = output.clamp(EPSILON, 1 - EPSILON).gather(-1, targets[:, None])
        return -chosen.log().mean()


class CategoricalCrossentropy(Loss):
    """The cross-entropy to target probabilities, averaged. Output and targets (N, classes), floating point."""

    name = "categorical_crossentropy"
    takes_logits = True

    def check_targets(self, targets: torch.Tensor, output_shape: tuple[int | None, ...]) -> None:
        _check_same_shape(self.name, targets, output_shape)

    def __call__(
        self, output: torch.Tensor, targets: torch.Tensor, *, from_logits: bool, backend: str | None
    ) -> torch.Tensor:
        targets = targets.to(output.dtype)
        if from_logits:
            return ops.call(self.name, "cross_entropy", output, targets, backend=backend)
        # Keras makes the probabilities sum to 1 here, and does not for sparse targets.
        probabilities = output / output.sum(-1, keepdim=True)
        return -(targets * probabilities.clamp(EPSILON, 1 - EPSILON).log()).sum(-1).mean()


class MeanSquaredError(Loss):
    """The mean of (output - target)^2. Output and targets of the same shape."""

    name = "mse"

    def check_targets(self, targets: torch.Tensor, output_shape: tuple[int | None, ...]) -> None:
        _check_same_shape(self.name, targets, output_shape)

    def __call__(
        self, output: torch.Tensor, targets: torch.Tensor, *, from_logits: bool, backend: str | None
    ) -> torch.Tensor:
        return (output - targets.to(output.dtype)).square().mean()


class FunctionLoss(Loss):
    """A loss from a function of (output, targets) that gives a scalar tensor, such as a torch.nn loss module."""

    def __init__(self, function: LossFunction) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    def __call__(
        self, output: torch.Tensor, targets: torch.Tensor, *, from_logits: bool, backend: str | None
    ) -> torch.Tensor:
        return self.function(output, targets)


def _check_same_shape(name: str, targets: torch.Tensor, output_shape: tuple[int | None, ...]) -> None:
    pairs = zip(targets.shape[1:], output_shape[1:], strict=False)
    if targets.dim() != len(output_shape) or any(want not in (None, size) for size, want in pairs):
        raise ValueError(
            f"y: {name} expects the shape of the output, {('N', *output_shape[1:])}, got {tuple(targets.shape)}"
        )


_LOSSES: dict[str, Callable[[], Loss]] = {
    "sparse_categorical_crossentropy": SparseCategoricalCrossentropy,
    "categorical_crossentropy": CategoricalCrossentropy,
    "mse": MeanSquaredError,
    "mean_squared_error": MeanSquaredError,
}


def get_loss(choice: str | Loss | LossFunction) -> Loss:
    """The `loss` argument of compile: an unknown name raises ValueError, another kind TypeError."""
    if isinstance(choice, str):
        return look_up("loss", choice, _LOSSES)()
    if isinstance(choice, Loss):
        return choice
    if callable(choice):
        return FunctionLoss(choice)
    raise TypeError(f"loss: a name or a function of (output, targets) is expected, got {choice!r}")
