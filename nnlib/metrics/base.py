"""What every metric is: sums that each batch adds to, and a number from them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from nnlib.calling import any_tensor
from nnlib.checks import default_dtype
from nnlib.configuration import Recorded
from nnlib.losses import Loss
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


class LossMetric(MeanMetric):
    """A loss watched as a metric."""

    direction = "min"

    def __init__(self, loss: Loss, name: str | None = None) -> None:
        super().__init__(name or loss.name)
        self.loss = loss

    def values(self, y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
        targets = self.loss.prepare(y_true, tuple(y_pred.shape))
        return self.loss.values(targets, y_pred, from_logits=self.loss.from_logits, backend=None)


class FunctionMetric(MeanMetric):
    """A function of (y_true, y_pred), as Keras calls it, that gives one value a sample or the batch's mean."""

    direction = None
    skips_padding = False  # it may give the mean alone

    def __init__(self, function: MetricFunction) -> None:
        super().__init__(getattr(function, "__name__", type(function).__name__))
        self.function = function

    def values(self, y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.function(y_true, y_pred))
