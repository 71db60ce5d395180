"""Metrics by Keras' names and arguments, gathered batch by batch on the output's device: only reading one waits.

model.compile(..., metrics=["accuracy", metrics.SparseTopKCategoricalAccuracy(k=3), metrics.Precision()])
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from nnlib.calling import any_tensor
from nnlib.checks import default_dtype
from nnlib.configuration import Recorded
from nnlib.losses import LOSSES, Loss
from nnlib.names import look_up
from nnlib.training.reductions import total

MetricFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Metric(Recorded):
    """The base of metrics: sums that each batch adds to, and a number from them.

    A subclass writes `update_state`, which calls `add`, and `result`. name: the name in logs and in History. dtype:
    torch's default one, or its name; sums are in float64 whatever it is.
    """

    name = "metric"
    #: Which way is better, for callbacks that watch the metric: "max", "min", or None where nobody knows.
    direction: str | None = "max"
    #: True where logits give the same result as probabilities.
    takes_logits = False
    #: True where padded steps of the output are left out.
    skips_padding = False

    def __init__(self, name: str | None = None, dtype: Any = None) -> None:
        default_dtype(dtype)
        if name is not None:
            self.name = name
        self._sums: list[torch.Tensor | float] = []

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "update_state" in vars(cls):
            cls.update_state = _on_arrays_too(cls.update_state)  # type: ignore[method-assign]

    def update_state(
        self, y_true: torch.Tensor, y_pred: torch.Tensor, sample_weight: torch.Tensor | None = None
    ) -> None:
        """Adds a batch: targets, the model's output, and one weight a sample or none; tensors, arrays or lists."""
        raise NotImplementedError

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> float:
        """Adds a batch, and returns the result so far."""
        self.update_state(y_true, y_pred, sample_weight)
        return self.result()

    def result(self) -> float:
        """The value over all batches so far; NaN before the first."""
        raise NotImplementedError

    def reset_state(self) -> None:
        """Forgets all batches."""
        self._sums = []

    def add(self, *values: torch.Tensor | float) -> None:
        """Adds these to the sums, in float64; where numbers come, their sum is a number."""
        numbers = [v.detach().double() if isinstance(v, torch.Tensor) else float(v) for v in values]
        self._sums = [a + b for a, b in zip(self._sums, numbers)] if self._sums else numbers

    def read(self) -> list[float]:
        """The sums as numbers; empty before the first batch."""
        return [float(value) for value in self._sums]

    def state(self) -> list[torch.Tensor | float]:
        """What set_state takes: the sums so far."""
        return list(self._sums)

    def set_state(self, sums: list[torch.Tensor | float]) -> None:
        """Goes on from these sums."""
        self._sums = list(sums)


def _on_arrays_too(method: Callable[..., None]) -> Callable[..., None]:
    """An update_state that is handed tensors, whatever it is called with."""

    @wraps(method)
    def update_state(self: Metric, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        given = (y_true, y_pred, sample_weight)
        method(self, *(None if one is None else any_tensor(self.name, one) for one in given))

    return update_state


class MeanMetric(Metric):
    """The (weighted) mean of one value a sample. A subclass writes `values`."""

    skips_padding = True

    def values(self, y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
        """One value a sample, (N, ...), or the batch's mean as a scalar."""
        raise NotImplementedError

    def update_state(
        self, y_true: torch.Tensor, y_pred: torch.Tensor, sample_weight: torch.Tensor | None = None
    ) -> None:
        values = self.values(y_true, y_pred)
        if values.dtype is torch.bool and values.dim() and sample_weight is None:
            # Counted: exact in any order. A number where reading it waits for nothing.
            hits = values.count_nonzero()
            self.add(int(hits) if hits.device.type == "cpu" else hits, values.numel())
            return
        values = values.double()
        if values.dim() == 0:
            if sample_weight is not None:
                raise ValueError(f"{self.name}: one value a sample is expected where there are weights, got a scalar")
            self.add(values * len(y_pred), len(y_pred))
        elif sample_weight is None:
            self.add(total(values), values.numel())
        else:
            weights = sample_weight.double().reshape(sample_weight.shape + (1,) * (values.dim() - sample_weight.dim()))
            self.add(total(values * weights), total(weights.expand_as(values)))

    def result(self) -> float:
        if not self._sums:
            return float("nan")
        summed, count = self.read()
        return summed / count if count else 0.0


class LossMean(MeanMetric):
    """The running mean of the loss, weighted by the batches' sizes."""

    direction = "min"

    def __init__(self) -> None:
        super().__init__("loss")

    def add_loss(self, loss: torch.Tensor, samples: int) -> None:
        """Adds a batch's loss, a scalar tensor."""
        loss = loss.detach()
        # A number where reading it waits for nothing: the same float64 product without three small tensors.
        self.add((float(loss) if loss.device.type == "cpu" else loss.double()) * samples, samples)


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


class LossMetric(MeanMetric):
    """A loss watched as a metric."""

    direction = "min"

    def __init__(self, loss: Loss, name: str | None = None) -> None:
        super().__init__(name or loss.name)
        self.loss = loss

    def values(self, y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
        targets = self.loss.prepare(y_true, tuple(y_pred.shape))
        return self.loss.values(targets, y_pred, from_logits=self.loss.from_logits, backend=None)


class RootMeanSquaredError(MeanMetric):
    """The root of the mean of (output - target)^2."""

    name = "root_mean_squared_error"
    direction = "min"

    def values(self, y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
        return (y_pred - y_true.reshape(y_pred.shape).to(y_pred.dtype)).square()

    def result(self) -> float:
        return super().result() ** 0.5


class _Confusion(Metric):
    """Counts of true positives and of what they are a share of.

    thresholds: from which probability an output is a yes (default 0.5: above it). class_id: look at this class alone
    (default None: all numbers of the output). Targets: of the output's shape, or class numbers (N,).
    """

    def __init__(
        self,
        thresholds: float | None = None,
        class_id: int | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(name, dtype)
        self.threshold = 0.5 if thresholds is None else thresholds
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, (int, float)):
            raise TypeError(f"thresholds: one number is expected, got {thresholds!r}")
        self.class_id = class_id

    def update_state(
        self, y_true: torch.Tensor, y_pred: torch.Tensor, sample_weight: torch.Tensor | None = None
    ) -> None:
        if y_pred.shape[-1] == 1 or y_true.numel() == y_pred.numel():
            truth = y_true.reshape(y_pred.shape) > 0
        else:
            truth = torch.nn.functional.one_hot(y_true.reshape(y_pred.shape[:-1]).long(), y_pred.shape[-1]) > 0
        guess = y_pred > self.threshold
        if self.class_id is not None:
            truth, guess = truth[..., self.class_id], guess[..., self.class_id]
        weights = torch.ones((), dtype=torch.float64, device=y_pred.device)
        if sample_weight is not None:
            weights = sample_weight.double().reshape(sample_weight.shape + (1,) * (truth.dim() - sample_weight.dim()))
        self.add(((truth & guess) * weights).sum(), (self.whole(truth, guess) * weights).sum())

    def whole(self, truth: torch.Tensor, guess: torch.Tensor) -> torch.Tensor:
        """What the true positives are a share of."""
        raise NotImplementedError

    def result(self) -> float:
        if not self._sums:
            return float("nan")
        hits, whole = self.read()
        return hits / whole if whole else 0.0


class Precision(_Confusion):
    """The share of what the model says yes to that is so, keras.metrics.Precision."""

    name = "precision"

    def whole(self, truth: torch.Tensor, guess: torch.Tensor) -> torch.Tensor:
        return guess


class Recall(_Confusion):
    """The share of what is so that the model says yes to, keras.metrics.Recall."""

    name = "recall"

    def whole(self, truth: torch.Tensor, guess: torch.Tensor) -> torch.Tensor:
        return truth


class FunctionMetric(MeanMetric):
    """A function of (y_true, y_pred), as Keras calls it, that gives one value a sample or the batch's mean."""

    direction = None
    skips_padding = False  # it may give the mean alone

    def __init__(self, function: MetricFunction) -> None:
        super().__init__(getattr(function, "__name__", type(function).__name__))
        self.function = function

    def values(self, y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.function(y_true, y_pred))


def _hits_binary(y_true: torch.Tensor, y_pred: torch.Tensor, threshold: float) -> torch.Tensor:
    return (y_pred > threshold) == (y_true.reshape(y_pred.shape) > 0.5)


def _hits_largest(labels: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
    return y_pred.argmax(-1) == labels.reshape(y_pred.shape[:-1])


_CLASSES: tuple[type[Metric], ...] = (
    BinaryAccuracy,
    CategoricalAccuracy,
    SparseCategoricalAccuracy,
    TopKCategoricalAccuracy,
    SparseTopKCategoricalAccuracy,
    Precision,
    Recall,
    RootMeanSquaredError,
)
METRICS: dict[str, type[Metric]] = {
    "accuracy": InferredAccuracy,
    "acc": InferredAccuracy,
    **{kind.name: kind for kind in _CLASSES},
}


def get_metric(choice: Any) -> Metric:
    """One entry of compile's `metrics`. Raises ValueError for an unknown name, TypeError for another kind."""
    if isinstance(choice, str):
        known: dict[str, Any] = {**METRICS, **LOSSES}
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
