"""What compile was told, and what training has made of it so far."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nnlib.losses import Loss, get_loss
from nnlib.metrics import LossMean, Metric, get_metric
from nnlib.optimizers import Optimizer, get_optimizer, make_optimizer
from nnlib.precision import check_device, get_precision
from nnlib.training.gradients import GradientRules

if TYPE_CHECKING:
    from nnlib.models.model import Model


@dataclass
class Setup:
    """The arguments of compile, looked up. optimizer: made when training begins, since parameters may be built late.
    scaler: of float16 gradients. batches_held: whose gradients are summed up and not yet stepped with."""

    optimizer_choice: Any
    loss: Loss
    metrics: list[Metric]
    weighted_metrics: list[Metric]
    rules: GradientRules
    precision: torch.dtype | None
    optimizer: torch.optim.Optimizer | None = None
    scaler: torch.amp.GradScaler | None = None
    batches_held: int = 0

    def ready(self, model: Model) -> torch.optim.Optimizer:
        """Makes what training needs once the parameters exist. Raises as make_optimizer and check_device do."""
        if self.precision is not None:
            check_device(self.precision, model.device)
            if self.precision is torch.float16 and self.scaler is None:
                self.scaler = torch.amp.GradScaler(model.device.type)
        return self.make_optimizer(model)

    def make_optimizer(self, model: Model) -> torch.optim.Optimizer:
        """The optimizer, made once the parameters exist. Raises as make_optimizer does."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.optimizer_choice, _trainable(model))
        return self.optimizer

    def admit(self, model: Model) -> None:
        """Gives weights that were frozen when the optimizer was made to it, unless the user made it, from weights of
        their choice.

        Raises RuntimeError if the model is built and all its weights are frozen.
        """
        parameters = list(model.parameters())
        trainable = _trainable(model)
        if parameters and not trainable:
            raise RuntimeError("trainable: at least one weight of the model must be trainable, got all of them frozen")
        optimizer = self.optimizer
        if optimizer is None or optimizer is self.optimizer_choice:
            return
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        optimizer.param_groups[0]["params"] += [one for one in trainable if id(one) not in held]

    @property
    def value_names(self) -> list[str]:
        """The names of what is measured: the loss and the metrics."""
        return ["loss", *(metric.name for metric in (*self.metrics, *self.weighted_metrics))]


def _trainable(model: Model) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def make_setup(
    optimizer: Any,
    loss: Any,
    metrics: Sequence[Any] | None,
    weighted_metrics: Sequence[Any] | None,
    rules: GradientRules,
    mixed_precision: str | None,
) -> Setup:
    """Looks all names up. Raises ValueError and TypeError as compile says."""
    choice = get_optimizer(optimizer)
    if isinstance(choice, Optimizer):
        rules = rules.or_else(choice.gradient_rules())
    looked_up = []
    for argument, given in (("metrics", metrics), ("weighted_metrics", weighted_metrics)):
        if given is not None and not isinstance(given, (list, tuple)):
            raise TypeError(f"{argument}: a list is expected, got {given!r}")
        looked_up.append([get_metric(metric) for metric in given or ()])
    setup = Setup(choice, get_loss(loss), looked_up[0], looked_up[1], rules, get_precision(mixed_precision))
    names = setup.value_names
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"metrics: different names are expected, got {name!r} twice; give one of them name=")
    return setup


class Trackers:
    """The loss and the metrics of one pass over data, apart from those of any other pass."""

    def __init__(self, setup: Setup) -> None:
        self.loss = LossMean()
        self.metrics = copy.deepcopy(setup.metrics)
        self.weighted_metrics = copy.deepcopy(setup.weighted_metrics)
        for metric in self._all():
            metric.reset_state()

    def _all(self) -> list[Metric]:
        return [self.loss, *self.metrics, *self.weighted_metrics]

    def read(self) -> dict[str, float]:
        """The values so far, the loss first. It waits for the device."""
        return {metric.name: metric.result() for metric in self._all()}

    def state(self) -> list[Any]:
        """What set_state takes."""
        return [metric.state() for metric in self._all()]

    def set_state(self, state: list[Any]) -> None:
        """Goes on from another's state."""
        for metric, sums in zip(self._all(), state, strict=True):
            metric.set_state(sums)
