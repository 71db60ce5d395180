"""What every optimizer is: a recipe with Keras' arguments, and the torch.optim.Optimizer that it makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, overload

import torch

from nnlib.configuration import Recorded
from nnlib.optimizers.schedules import LearningRateSchedule
from nnlib.training.gradients import GradientRules

Group = dict[str, Any]
Rate = float | LearningRateSchedule
Tensors = list[torch.Tensor]


@dataclass(frozen=True)
class Optimizer(Recorded):
    """What all recipes take.

    learning_rate: a number of at least 0 (the default is each rule's own), which callbacks can change while training;
    or a schedule of nnlib.optimizers.schedules, which they cannot.
    weight_decay: each step first takes this share, times the learning rate, off the weights (default None).
    clipnorm, clipvalue, global_clipnorm, gradient_accumulation_steps: see nnlib.training.gradients.GradientRules.
    name: for messages (default: the class' name in lower case).

    Raises ValueError for a value out of its range, TypeError for one of another kind.
    """

    weight_decay: float | None = field(default=None, kw_only=True)
    clipnorm: float | None = field(default=None, kw_only=True)
    clipvalue: float | None = field(default=None, kw_only=True)
    global_clipnorm: float | None = field(default=None, kw_only=True)
    gradient_accumulation_steps: int | None = field(default=None, kw_only=True)
    name: str | None = field(default=None, kw_only=True)

    #: The tensors kept for each parameter, and what they hold at the start.
    slots: ClassVar[tuple[str, ...]] = ()
    #: Arguments that must lie in [0, 1).
    shares: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon", "weight_decay", "initial_accumulator_value"):
            value = getattr(self, name, None)
            if value is None or (name == "learning_rate" and isinstance(value, LearningRateSchedule)):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                wanted = "a number or a schedule" if name == "learning_rate" else "a number"
                raise TypeError(f"{name}: {wanted} is expected, got {value!r}")
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}: a number of at least 0 is expected, got {value}")
        for name in self.shares:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: a number in [0, 1) is expected, got {getattr(self, name)}")
        self.gradient_rules()  # raises

    def gradient_rules(self) -> GradientRules:
        """What is done to the gradients before the rule sees them."""
        return GradientRules(self.clipnorm, self.clipvalue, self.global_clipnorm, self.gradient_accumulation_steps)

    def options(self) -> dict[str, Any]:
        """The arguments that make this recipe again."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    def __call__(self, parameters: Iterable[torch.Tensor]) -> RuleOptimizer:
        """A torch.optim.Optimizer for these parameters. Clipping and accumulation are compile's to do, not its own."""
        return RuleOptimizer(parameters, self)

    def first_value(self, slot: str) -> float:
        """What a slot holds at the start."""
        return 0.0

    def update(self, group: Group, parameters: Tensors, gradients: Tensors, states: list[dict[str, Any]]) -> None:
        """Updates the parameters of one group in place. states: for each parameter its slots, and "step" from 1."""
        raise NotImplementedError


class RuleOptimizer(torch.optim.Optimizer):
    """A recipe at work. It updates lists of parameters at once: torch's foreach functions loop in C++, not in Python.

    params: as in torch.optim; the options of a group are the recipe's arguments, with the learning rate under torch's
    name `lr`; with a schedule it is that of the last step, and `iterations` counts the steps. rule: the recipe.
    """

    def __init__(self, params: Iterable[torch.Tensor], rule: Optimizer) -> None:
        self.rule = rule
        gradient_options = {entry.name for entry in fields(GradientRules)} | {"name"}
        options = {name: value for name, value in rule.options().items() if name not in gradient_options}
        rate = options.pop("learning_rate")
        #: The rate of each step, None where it stays as it is.
        self.schedule: LearningRateSchedule | None = rate if isinstance(rate, LearningRateSchedule) else None
        if self.schedule is not None:
            rate, options["iterations"] = self._scheduled(0), 0
        super().__init__(params, {"lr": rate, **options})

    def _scheduled(self, step: int) -> float:
        assert self.schedule is not None
        rate = float(self.schedule(step))
        if not 0 <= rate < math.inf:
            raise ValueError(f"learning_rate: a number of at least 0 is expected of {self.schedule.name}, got {rate}")
        return rate

    @property
    def learning_rate(self) -> float:
        """The first group's rate; setting it sets all groups', and is a TypeError where a schedule does."""
        return self.param_groups[0]["lr"]

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        if self.schedule is not None:
            raise TypeError(f"learning_rate: it is that of {self.schedule.name}, and cannot be set, got {rate}")
        for group in self.param_groups:
            group["lr"] = rate

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates every parameter that has a gradient. closure: computes the loss anew (default None)."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if self.schedule is not None:
                group["lr"] = self._scheduled(group["iterations"])
                group["iterations"] += 1
            pairs = [(parameter, parameter.grad) for parameter in group["params"]]
            parameters = [parameter for parameter, gradient in pairs if gradient is not None]
            if not parameters:
                continue
            states = [self.state[parameter] for parameter in parameters]
            for parameter, state in zip(parameters, states):
                if not state:
                    state["step"] = 0
                    for slot in self.rule.slots:
                        state[slot] = torch.full_like(parameter, self.rule.first_value(slot))
                state["step"] += 1
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - group["weight_decay"] * group["lr"])
            gradients = [gradient for _, gradient in pairs if gradient is not None]
            self.rule.update(group, parameters, gradients, states)
        return loss
