"""Losses by Keras' names, arguments and defaults.

A loss gives one value a sample, as a function of the targets and the model's output, and reduces them to a scalar.
Those on class probabilities also take logits (`from_logits`), which the model passes by itself where its last layer is
a softmax: log(softmax(x)) in one kernel neither overflows nor loses the small probabilities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from nnlib.losses.base import FunctionLoss, Loss, LossFunction
from nnlib.losses.classification import (
    BinaryCrossentropy,
    BinaryFocalCrossentropy,
    CategoricalCrossentropy,
    CategoricalFocalCrossentropy,
    CategoricalHinge,
    Hinge,
    SparseCategoricalCrossentropy,
    SquaredHinge,
)
from nnlib.losses.regression import (
    CosineSimilarity,
    Huber,
    KLDivergence,
    LogCosh,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
    Poisson,
)
from nnlib.names import attribute_error, look_up

__all__ = [
    "LOSSES", "BinaryCrossentropy", "BinaryFocalCrossentropy", "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy", "CategoricalHinge", "CosineSimilarity", "FunctionLoss", "Hinge", "Huber",
    "KLDivergence", "LogCosh", "Loss", "LossFunction", "MeanAbsoluteError", "MeanAbsolutePercentageError",
    "MeanSquaredError", "MeanSquaredLogarithmicError", "Poisson", "SparseCategoricalCrossentropy", "SquaredHinge",
    "get_loss",
]  # fmt: skip

LOSSES: dict[str, type[Loss]] = {
    "sparse_categorical_crossentropy": SparseCategoricalCrossentropy,
    "categorical_crossentropy": CategoricalCrossentropy,
    "binary_crossentropy": BinaryCrossentropy,
    "bce": BinaryCrossentropy,
    "categorical_focal_crossentropy": CategoricalFocalCrossentropy,
    "binary_focal_crossentropy": BinaryFocalCrossentropy,
    "mean_squared_error": MeanSquaredError,
    "mse": MeanSquaredError,
    "mean_absolute_error": MeanAbsoluteError,
    "mae": MeanAbsoluteError,
    "mean_absolute_percentage_error": MeanAbsolutePercentageError,
    "mape": MeanAbsolutePercentageError,
    "mean_squared_logarithmic_error": MeanSquaredLogarithmicError,
    "msle": MeanSquaredLogarithmicError,
    "cosine_similarity": CosineSimilarity,
    "huber": Huber,
    "log_cosh": LogCosh,
    "poisson": Poisson,
    "kl_divergence": KLDivergence,
    "kld": KLDivergence,
    "hinge": Hinge,
    "squared_hinge": SquaredHinge,
    "categorical_hinge": CategoricalHinge,
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


if not TYPE_CHECKING:

    def __getattr__(name: str) -> NoReturn:
        raise attribute_error(__name__, name, __all__)
