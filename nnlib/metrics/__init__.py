"""Metrics by Keras' names and arguments, gathered batch by batch on the output's device: only reading one waits.

model.compile(..., metrics=["accuracy", metrics.SparseTopKCategoricalAccuracy(k=3), metrics.AUC(curve="PR")])
"""

from typing import TYPE_CHECKING, Any, NoReturn

from nnlib.losses import LOSSES, Loss
from nnlib.metrics.accuracy import (
    BinaryAccuracy,
    CategoricalAccuracy,
    InferredAccuracy,
    SparseCategoricalAccuracy,
    SparseTopKCategoricalAccuracy,
    TopKCategoricalAccuracy,
)
from nnlib.metrics.base import FunctionMetric, LossMean, LossMetric, MeanMetric, Metric, MetricFunction
from nnlib.metrics.confusion import (
    AUC,
    F1Score,
    FalseNegatives,
    FalsePositives,
    FBetaScore,
    Precision,
    Recall,
    TrueNegatives,
    TruePositives,
)
from nnlib.metrics.of_losses import (
    BinaryCrossentropy,
    CategoricalCrossentropy,
    CategoricalHinge,
    CosineSimilarity,
    Hinge,
    KLDivergence,
    LogCoshError,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
    Poisson,
    RootMeanSquaredError,
    SparseCategoricalCrossentropy,
    SquaredHinge,
)
from nnlib.names import attribute_error, look_up

__all__ = [
    "AUC", "METRICS", "BinaryAccuracy", "BinaryCrossentropy", "CategoricalAccuracy", "CategoricalCrossentropy",
    "CategoricalHinge", "CosineSimilarity", "F1Score", "FBetaScore", "FalseNegatives", "FalsePositives",
    "FunctionMetric", "Hinge", "InferredAccuracy", "KLDivergence", "LogCoshError", "LossMean", "LossMetric",
    "MeanAbsoluteError", "MeanAbsolutePercentageError", "MeanMetric", "MeanSquaredError",
    "MeanSquaredLogarithmicError", "Metric", "MetricFunction", "Poisson", "Precision", "Recall",
    "RootMeanSquaredError", "SparseCategoricalAccuracy", "SparseCategoricalCrossentropy",
    "SparseTopKCategoricalAccuracy", "SquaredHinge", "TopKCategoricalAccuracy", "TrueNegatives", "TruePositives",
    "get_metric",
]  # fmt: skip

_CLASSES: tuple[type[Metric], ...] = (
    BinaryAccuracy,
    CategoricalAccuracy,
    SparseCategoricalAccuracy,
    TopKCategoricalAccuracy,
    SparseTopKCategoricalAccuracy,
    Precision,
    Recall,
    AUC,
    TruePositives,
    TrueNegatives,
    FalsePositives,
    FalseNegatives,
    F1Score,
    FBetaScore,
    RootMeanSquaredError,
    CosineSimilarity,
    MeanSquaredError,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredLogarithmicError,
    LogCoshError,
    Poisson,
    KLDivergence,
    Hinge,
    SquaredHinge,
    CategoricalHinge,
    BinaryCrossentropy,
    CategoricalCrossentropy,
    SparseCategoricalCrossentropy,
)
METRICS: dict[str, type[Metric]] = {
    "accuracy": InferredAccuracy,
    "acc": InferredAccuracy,
    **{kind.name: kind for kind in _CLASSES},
}


def get_metric(choice: Any) -> Metric:
    """One entry of compile's `metrics`. Raises ValueError for an unknown name, TypeError for another kind."""
    if isinstance(choice, str):
        known: dict[str, Any] = {**LOSSES, **METRICS}
        known = {name: known[name] for name in (*METRICS, *(name for name in LOSSES if name not in METRICS))}
        kind = look_up("metrics", choice, known)
        name = choice.lower() if choice.lower() in known else None  # of a class' name the class has its own
        return LossMetric(kind(), name) if issubclass(kind, Loss) else kind(name=name)
    if isinstance(choice, type) and issubclass(choice, (Metric, Loss)):
        choice = choice()
    if isinstance(choice, Loss):
        return LossMetric(choice)
    if isinstance(choice, Metric):
        return choice
    if callable(choice):
        return FunctionMetric(choice)
    raise TypeError(
        f"metrics: names, objects of nnlib.metrics or functions of (y_true, y_pred) are expected, got {choice!r}"
    )


if not TYPE_CHECKING:

    def __getattr__(name: str) -> NoReturn:
        raise attribute_error(__name__, name, __all__)
