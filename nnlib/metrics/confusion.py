"""Metrics of yes and no: counts of right and wrong ones, and what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch

from nnlib.checks import positive_integer
from nnlib.metrics.base import Metric
from nnlib.names import look_up


def truth_of(y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
    """What is so, bool in the output's shape, from targets of that shape or class numbers (N, ...)."""
    if y_pred.shape[-1] == 1 or y_true.numel() == y_pred.numel():
        return y_true.reshape(y_pred.shape) > 0
    return torch.nn.functional.one_hot(y_true.reshape(y_pred.shape[:-1]).long(), y_pred.shape[-1]) > 0


def weights_of(sample_weight: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """Weights of samples in float64, with as many axes as `like`; a 1 where there are none."""
    if sample_weight is None:
        return torch.ones((), dtype=torch.float64, device=like.device)
    return sample_weight.double().reshape(sample_weight.shape + (1,) * (like.dim() - sample_weight.dim()))


class _Confusion(Metric):
    """Sums over what the model says yes to and what is so.

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
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, Real):
            raise TypeError(f"thresholds: one number is expected, got {thresholds!r}")
        self.class_id: int | None = class_id

    def update_state(
        self, y_true: torch.Tensor, y_pred: torch.Tensor, sample_weight: torch.Tensor | None = None
    ) -> None:
        truth, guess = truth_of(y_true, y_pred), self.guess(y_pred)
        if self.class_id is not None:
            truth, guess = truth[..., self.class_id], guess[..., self.class_id]
        weights = weights_of(sample_weight, truth)
        self.add(*((part * weights).sum() for part in self.parts(truth, guess)))

    def guess(self, y_pred: torch.Tensor) -> torch.Tensor:
        """What the model says yes to, bool in the output's shape."""
        return y_pred > self.threshold

    def parts(self, truth: torch.Tensor, guess: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What is summed, bool in the shape of both."""
        raise NotImplementedError


class _Share(_Confusion):
    """True positives as a share of something. top_k: the model says yes to its k largest outputs alone (default None:
    to any); a threshold then counts only where it is given. The others: see _Confusion."""

    def __init__(
        self,
        thresholds: float | None = None,
        top_k: int | None = None,
        class_id: int | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(thresholds, class_id, name, dtype)
        self.top_k = None if top_k is None else positive_integer("top_k", top_k)
        if top_k is not None and thresholds is None:
            self.threshold = -float("inf")

    def guess(self, y_pred: torch.Tensor) -> torch.Tensor:
        chosen = super().guess(y_pred)
        if self.top_k is None:
            return chosen
        if self.top_k > y_pred.shape[-1]:
            raise ValueError(f"{self.name}: top_k must be at most the outputs, {y_pred.shape[-1]}, got {self.top_k}")
        largest = torch.zeros_like(chosen).scatter_(-1, y_pred.topk(self.top_k, -1).indices, True)
        return chosen & largest

    def result(self) -> float:
        if not self._sums:
            return float("nan")
        hits, whole = self.read()
        return hits / whole if whole else 0.0


class Precision(_Share):
    """The share of what the model says yes to that is so, keras.metrics.Precision."""

    name = "precision"

    def parts(self, truth: torch.Tensor, guess: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return truth & guess, guess


class Recall(_Share):
    """The share of what is so that the model says yes to, keras.metrics.Recall."""

    name = "recall"

    def parts(self, truth: torch.Tensor, guess: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return truth & guess, truth


class _Count(_Confusion):
    """How many, or with weights the sum of these. thresholds: see _Confusion."""

    def __init__(self, thresholds: float | None = None, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(thresholds, None, name, dtype)

    def result(self) -> float:
        return self.read()[0] if self._sums else float("nan")


class TruePositives(_Count):
    """What the model says yes to and is so, keras.metrics.TruePositives."""

    name = "true_positives"

    def parts(self, truth: torch.Tensor, guess: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (truth & guess,)


class TrueNegatives(_Count):
    """What the model says no to and is not so, keras.metrics.TrueNegatives."""

    name = "true_negatives"

    def parts(self, truth: torch.Tensor, guess: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (~truth & ~guess,)


class FalsePositives(_Count):
    """What the model says yes to and is not so, keras.metrics.FalsePositives."""

    name = "false_positives"
    direction = "min"

    def parts(self, truth: torch.Tensor, guess: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (~truth & guess,)


class FalseNegatives(_Count):
    """What the model says no to and is so, keras.metrics.FalseNegatives."""

    name = "false_negatives"
    direction = "min"

    def parts(self, truth: torch.Tensor, guess: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (truth & ~guess,)


_AVERAGES = {name: name for name in ("micro", "macro", "weighted")}


class FBetaScore(Metric):
    """(1 + beta^2) * precision * recall / (beta^2 * precision + recall), keras.metrics.FBetaScore.

    Output and targets (N, classes), targets 0 and 1, or class numbers (N,). average: "micro" counts over all classes;
    "macro" is the mean of the classes' scores, "weighted" with each weighing as often as it is so. Keras' default,
    None, is one score a class, and no number: it raises ValueError. beta: above 0. threshold: above it an output is a
    yes (default None: the largest output is, unless it is 0).
    """

    name = "fbeta_score"

    def __init__(
        self,
        average: str | None = None,
        beta: float = 1.0,
        threshold: float | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(name, dtype)
        if average is None:
            raise ValueError("average: one of micro, macro, weighted is expected, a metric is one number; got None")
        self.average = look_up("average", average, _AVERAGES)
        for argument, value in (("beta", beta), ("threshold", threshold)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, Real) or not value > 0):
                raise ValueError(f"{argument}: a number above 0 is expected, got {value!r}")
        self.beta = beta
        self.threshold = threshold

    def update_state(
        self, y_true: torch.Tensor, y_pred: torch.Tensor, sample_weight: torch.Tensor | None = None
    ) -> None:
        truth = truth_of(y_true, y_pred).flatten(0, -2)
        output = y_pred.flatten(0, -2)
        if self.threshold is None:
            guess = (output >= output.amax(-1, keepdim=True)) & (output.abs() > 1e-9)
        else:
            guess = output > self.threshold
        flat = None if sample_weight is None else sample_weight.flatten()
        weights = weights_of(flat, truth)
        self.add(*((part * weights).sum(0) for part in (truth & guess, guess, truth)))

    def result(self) -> float:
        if not self._sums:
            return float("nan")
        hits, guesses, truths = (torch.as_tensor(one) for one in self._sums)
        if self.average == "micro":
            hits, guesses, truths = hits.sum(), guesses.sum(), truths.sum()
        square = self.beta**2
        # The same as by precision and recall, without their zeros below.
        below = square * truths + guesses
        scores = torch.where(below > 0, (1 + square) * hits / below.clamp_min(1e-300), 0.0)
        if self.average == "weighted":
            whole = truths.sum()
            return float((scores * truths).sum() / whole) if float(whole) else 0.0
        return float(scores.mean())


class F1Score(FBetaScore):
    """FBetaScore with beta 1, keras.metrics.F1Score."""

    name = "f1_score"

    def __init__(
        self,
        average: str | None = None,
        threshold: float | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(average, 1.0, threshold, name, dtype)


_CURVES = {"roc": "roc", "pr": "pr"}
_SUMMATIONS = {name: name for name in ("interpolation", "minoring", "majoring")}


class AUC(Metric):
    """The area under a curve of two shares at many thresholds, keras.metrics.AUC.

    curve: "ROC", true positive rate over false positive rate, or "PR", precision over recall. num_thresholds: how many,
    evenly from 0 to 1 (default 200), or thresholds: those between. summation_method: "interpolation" (trapezoids; for
    "PR" the interpolation of Davis and Goadrich, 2006), "minoring" or "majoring" (the lower or the higher rectangle).
    Output and targets of one shape; they are flattened, or with multi_label the area is the mean over the last axis'
    labels. num_labels: their number. label_weights: of the labels, one each. from_logits: the output is before the
    sigmoid.

    Raises ValueError for a value out of its range.
    """

    name = "auc"

    def __init__(
        self,
        num_thresholds: int = 200,
        curve: str = "ROC",
        summation_method: str = "interpolation",
        name: str | None = None,
        dtype: Any = None,
        thresholds: Sequence[float] | None = None,
        multi_label: bool = False,
        num_labels: int | None = None,
        label_weights: Sequence[float] | None = None,
        from_logits: bool = False,
    ) -> None:
        super().__init__(name, dtype)
        count = positive_integer("num_thresholds", num_thresholds)
        if count < 2:
            raise ValueError(f"num_thresholds: an integer of at least 2 is expected, got {num_thresholds}")
        self.curve = look_up("curve", curve, _CURVES)
        self.summation_method = look_up("summation_method", summation_method, _SUMMATIONS)
        if thresholds is None:
            between = [number / (count - 1) for number in range(1, count - 1)]
        else:
            if not all(isinstance(one, Real) and 0 <= one <= 1 for one in thresholds):
                raise ValueError(f"thresholds: numbers from 0 to 1 are expected, got {thresholds!r}")
            between = sorted(thresholds)
        #: The outermost two say yes to all and to nothing.
        self.thresholds = [-1e-7, *between, 1 + 1e-7]
        self.multi_label = multi_label
        if num_labels is not None and not multi_label:
            raise ValueError(f"num_labels: it goes with multi_label=True, got {num_labels}")
        self.num_labels = num_labels
        self.label_weights = None if label_weights is None else [float(weight) for weight in label_weights]
        self.from_logits = from_logits

    def update_state(
        self, y_true: torch.Tensor, y_pred: torch.Tensor, sample_weight: torch.Tensor | None = None
    ) -> None:
        output = torch.sigmoid(y_pred) if self.from_logits else y_pred
        output = output[:, None] if output.dim() == 1 else output
        truth, labels = truth_of(y_true, output), output.shape[-1]
        for argument, wanted in (("num_labels", self.num_labels), ("label_weights", self.label_weights)):
            size = len(wanted) if isinstance(wanted, list) else wanted
            if size not in (None, labels):
                raise ValueError(f"{self.name}: {argument} must be of the output's last axis, {labels}, got {size}")
        weights = weights_of(sample_weight, truth).expand(output.shape)
        if self.label_weights is not None and not self.multi_label:
            weights = weights * torch.tensor(self.label_weights, dtype=torch.float64, device=output.device)
        edges = torch.tensor(self.thresholds, dtype=output.dtype, device=output.device)
        # An output lies above so many thresholds: counts by that number, summed from the top, are counts at each one.
        above = torch.searchsorted(edges, output.detach().contiguous())
        columns = labels if self.multi_label else 1
        column = torch.arange(labels, device=output.device) if self.multi_label else 0
        place = above * columns + column
        size = (len(self.thresholds) + 1) * columns
        for_each = [
            torch.zeros(size, dtype=torch.float64, device=output.device).index_add_(
                0, place.flatten(), (weights * part).flatten()
            )
            for part in (truth, ~truth)
        ]
        at_thresholds = (one.reshape(-1, columns).flip(0).cumsum(0).flip(0)[1:] for one in for_each)
        self.add(*at_thresholds, *(one.reshape(-1, columns).sum(0) for one in for_each))

    def result(self) -> float:
        if not self._sums:
            return float("nan")
        hits, wrong, positives, negatives = (torch.as_tensor(one) for one in self._sums)
        if self.curve == "pr" and self.summation_method == "interpolation":
            areas = _interpolated(hits, hits + wrong, positives)
        else:
            recall = _ratio(hits, positives)
            if self.curve == "roc":
                across, height = _ratio(wrong, negatives), recall
            else:
                across, height = recall, _ratio(hits, hits + wrong)
            low, high = height[1:], height[:-1]
            heights = {
                "interpolation": (low + high) / 2,
                "minoring": torch.minimum(low, high),
                "majoring": torch.maximum(low, high),
            }[self.summation_method]
            areas = ((across[:-1] - across[1:]) * heights).sum(0)
        if not self.multi_label or self.label_weights is None:
            return float(areas.mean())
        weights = torch.tensor(self.label_weights, dtype=areas.dtype, device=areas.device)
        return float(_ratio((areas * weights).sum(), weights.sum()))


def _ratio(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """above / below, 0 where below is 0."""
    return torch.where(below != 0, above / torch.where(below != 0, below, 1.0), 0.0)


def _interpolated(hits: torch.Tensor, guesses: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
    """The area under precision over recall, where between two thresholds true positives grow in proportion to what the
    model says yes to: the integral of the precision hits / guesses (Davis and Goadrich, 2006). (T, labels) -> (labels,)
    """
    gained = hits[:-1] - hits[1:]
    slope = _ratio(gained, (guesses[:-1] - guesses[1:]).clamp_min(0))
    offset = hits[1:] - slope * guesses[1:]
    both = (guesses[:-1] > 0) & (guesses[1:] > 0)
    growth = torch.where(both, _ratio(guesses[:-1], guesses[1:].clamp_min(0)), 1.0)
    return _ratio(slope * (gained + offset * growth.log()), positives.clamp_min(0)).sum(0)
