"""Optimizers by Keras' names with Keras' arguments, defaults and arithmetic.

    model.compile(optimizer=optimizers.Adam(learning_rate=3e-4, clipnorm=1.0))

Each is a recipe: called with parameters it makes a torch.optim.Optimizer, so that one works in a loop of your own too:
`optimizers.Adam()(model.parameters())`. torch's optimizers of the same names place epsilon elsewhere, and their
momentum does not hold the learning rate, so the same name would train to other weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, overload

import torch

from nnlib.configuration import Recorded
from nnlib.names import look_up
from nnlib.training.gradients import GradientRules

OptimizerFactory = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
OptimizerChoice = "str | Optimizer | torch.optim.Optimizer | OptimizerFactory"
Group = dict[str, Any]
Tensors = list[torch.Tensor]


@dataclass(frozen=True)
class Optimizer(Recorded):
    """What all recipes take.

    learning_rate: a number of at least 0 (the default is each rule's own); callbacks change it while training.
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
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                hint = "; a schedule is a callback: callbacks.LearningRateScheduler" if name == "learning_rate" else ""
                raise TypeError(f"{name}: a number is expected, got {value!r}{hint}")
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
    name `lr`. rule: the recipe.
    """

    def __init__(self, params: Iterable[torch.Tensor], rule: Optimizer) -> None:
        self.rule = rule
        gradient_options = {entry.name for entry in fields(GradientRules)} | {"name"}
        options = {name: value for name, value in rule.options().items() if name not in gradient_options}
        super().__init__(params, {"lr": options.pop("learning_rate"), **options})

    @property
    def learning_rate(self) -> float:
        """The first group's rate; setting it sets all groups'."""
        return self.param_groups[0]["lr"]

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
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
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            for parameter in parameters:
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    for slot in self.rule.slots:
                        state[slot] = torch.full_like(parameter, self.rule.first_value(slot))
                state["step"] += 1
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - group["weight_decay"] * group["lr"])
            gradients = [parameter.grad for parameter in parameters]
            self.rule.update(group, parameters, gradients, [self.state[parameter] for parameter in parameters])
        return loss


def _slot(states: list[dict[str, Any]], name: str) -> Tensors:
    return [state[name] for state in states]


def _decay(averages: Tensors, values: Tensors, keep: float) -> None:
    """averages = keep * averages + (1 - keep) * values, in place."""
    torch._foreach_lerp_(averages, values, 1 - keep)


def _decay_squares(averages: Tensors, values: Tensors, keep: float) -> None:
    """averages = keep * averages + (1 - keep) * values^2, in place."""
    torch._foreach_mul_(averages, keep)
    torch._foreach_addcmul_(averages, values, values, 1 - keep)


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, keras.optimizers.SGD: m = momentum * m - lr * g; p += m, or with nesterov
    p += momentum * m - lr * g."""

    learning_rate: float = 0.01
    momentum: float = 0.0
    nesterov: bool = False

    slots = ("velocity",)
    shares = ("momentum",)

    def update(self, group: Group, parameters: Tensors, gradients: Tensors, states: list[dict[str, Any]]) -> None:
        rate, momentum = group["lr"], group["momentum"]
        if momentum == 0:
            torch._foreach_add_(parameters, gradients, alpha=-rate)
            return
        velocities = _slot(states, "velocity")
        torch._foreach_mul_(velocities, momentum)
        torch._foreach_add_(velocities, gradients, alpha=-rate)
        if group["nesterov"]:
            torch._foreach_add_(parameters, velocities, alpha=momentum)
            torch._foreach_add_(parameters, gradients, alpha=-rate)
        else:
            torch._foreach_add_(parameters, velocities)


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """keras.optimizers.RMSprop: with v the running mean of g^2 (less the square of the running mean of g if centered),
    the step is lr * g / sqrt(v + epsilon), gathered by momentum where there is one."""

    learning_rate: float = 0.001
    rho: float = 0.9
    momentum: float = 0.0
    epsilon: float = 1e-7
    centered: bool = False

    slots = ("square", "mean", "velocity")
    shares = ("rho", "momentum")

    def update(self, group: Group, parameters: Tensors, gradients: Tensors, states: list[dict[str, Any]]) -> None:
        squares = _slot(states, "square")
        _decay_squares(squares, gradients, group["rho"])
        denominators = torch._foreach_add(squares, group["epsilon"])
        if group["centered"]:
            means = _slot(states, "mean")
            _decay(means, gradients, group["rho"])
            torch._foreach_addcmul_(denominators, means, means, -1)
        torch._foreach_sqrt_(denominators)
        if group["momentum"] == 0:
            torch._foreach_addcdiv_(parameters, gradients, denominators, -group["lr"])
            return
        velocities = _slot(states, "velocity")
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_addcdiv_(velocities, gradients, denominators, group["lr"])
        torch._foreach_sub_(parameters, velocities)


@dataclass(frozen=True)
class Adam(Optimizer):
    """keras.optimizers.Adam (Kingma and Ba 2014, section 2, the form before section 2.1).

    With m and v the running means of g and g^2 at step t (with amsgrad, v's largest value so far):
    p -= lr * sqrt(1 - beta_2^t) / (1 - beta_1^t) * m / (sqrt(v) + epsilon).
    """

    learning_rate: float = 0.001
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7
    amsgrad: bool = False

    slots = ("mean", "square")
    shares = ("beta_1", "beta_2")

    def update(self, group: Group, parameters: Tensors, gradients: Tensors, states: list[dict[str, Any]]) -> None:
        beta_1, beta_2, amsgrad = group["beta_1"], group["beta_2"], group["amsgrad"]
        if amsgrad:
            for state in states:
                state.setdefault("largest", torch.zeros_like(state["square"]))
        # Parameters may have had gradients a different number of times.
        for step in sorted({state["step"] for state in states}):
            members = [i for i, state in enumerate(states) if state["step"] == step]
            kept = [states[i] for i in members]
            # torch's kernel, one pass over memory, puts epsilon beside sqrt(v) / sqrt(1 - beta_2^t).
            torch._fused_adam_(
                [parameters[i] for i in members],
                [gradients[i] for i in members],
                _slot(kept, "mean"),
                _slot(kept, "square"),
                _slot(kept, "largest") if amsgrad else [],
                [torch.tensor(float(step), device=parameters[i].device) for i in members],
                lr=group["lr"],
                beta1=beta_1,
                beta2=beta_2,
                weight_decay=0.0,
                eps=group["epsilon"] / math.sqrt(1 - beta_2**step),
                amsgrad=amsgrad,
                maximize=False,
            )


@dataclass(frozen=True)
class AdamW(Adam):
    """keras.optimizers.AdamW: Adam with a weight decay of 0.004 by default (Loshchilov and Hutter 2017)."""

    weight_decay: float | None = field(default=0.004, kw_only=True)


@dataclass(frozen=True)
class Adamax(Optimizer):
    """keras.optimizers.Adamax: with m the running mean of g and u = max(beta_2 * u, |g|),
    p -= lr / (1 - beta_1^t) * m / (u + epsilon)."""

    learning_rate: float = 0.001
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7

    slots = ("mean", "largest")
    shares = ("beta_1", "beta_2")

    def update(self, group: Group, parameters: Tensors, gradients: Tensors, states: list[dict[str, Any]]) -> None:
        means, largest = _slot(states, "mean"), _slot(states, "largest")
        _decay(means, gradients, group["beta_1"])
        torch._foreach_mul_(largest, group["beta_2"])
        torch._foreach_maximum_(largest, torch._foreach_abs(gradients))
        denominators = torch._foreach_add(largest, group["epsilon"])
        rates = [-group["lr"] / (1 - group["beta_1"] ** state["step"]) for state in states]
        torch._foreach_addcdiv_(parameters, means, denominators, rates)


@dataclass(frozen=True)
class Nadam(Optimizer):
    """keras.optimizers.Nadam (Dozat 2016): Adam with Nesterov's momentum, whose weight at step t is
    u_t = beta_1 * (1 - 0.96^t / 2); epsilon stands beside the corrected root."""

    learning_rate: float = 0.001
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7

    slots = ("mean", "square")
    shares = ("beta_1", "beta_2")

    def update(self, group: Group, parameters: Tensors, gradients: Tensors, states: list[dict[str, Any]]) -> None:
        means, squares = _slot(states, "mean"), _slot(states, "square")
        _decay(means, gradients, group["beta_1"])
        _decay_squares(squares, gradients, group["beta_2"])
        mean_rates, gradient_rates, corrections = [], [], []
        for state in states:
            step = state["step"]
            weight, next_weight = (group["beta_1"] * (1 - 0.5 * 0.96**t) for t in (step, step + 1))
            product = state["product"] = state.get("product", 1.0) * weight
            mean_rates.append(-group["lr"] * next_weight / (1 - product * next_weight))
            gradient_rates.append(-group["lr"] * (1 - weight) / (1 - product))
            corrections.append(1 / math.sqrt(1 - group["beta_2"] ** step))
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_mul_(denominators, corrections)
        torch._foreach_add_(denominators, group["epsilon"])
        torch._foreach_addcdiv_(parameters, means, denominators, mean_rates)
        torch._foreach_addcdiv_(parameters, gradients, denominators, gradient_rates)


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """keras.optimizers.Adagrad: with a the sum of g^2, which starts at initial_accumulator_value,
    p -= lr * g / sqrt(a + epsilon)."""

    learning_rate: float = 0.001
    initial_accumulator_value: float = 0.1
    epsilon: float = 1e-7

    slots = ("sum",)

    def first_value(self, slot: str) -> float:
        return self.initial_accumulator_value

    def update(self, group: Group, parameters: Tensors, gradients: Tensors, states: list[dict[str, Any]]) -> None:
        sums = _slot(states, "sum")
        torch._foreach_addcmul_(sums, gradients, gradients)
        denominators = torch._foreach_add(sums, group["epsilon"])
        torch._foreach_sqrt_(denominators)
        torch._foreach_addcdiv_(parameters, gradients, denominators, -group["lr"])


@dataclass(frozen=True)
class Adadelta(Optimizer):
    """keras.optimizers.Adadelta (Zeiler 2012): with a and d the running means of g^2 and of the squared steps,
    the step is sqrt(d + epsilon) / sqrt(a + epsilon) * g, and p -= lr * step."""

    learning_rate: float = 0.001
    rho: float = 0.95
    epsilon: float = 1e-7

    slots = ("square", "step_square")
    shares = ("rho",)

    def update(self, group: Group, parameters: Tensors, gradients: Tensors, states: list[dict[str, Any]]) -> None:
        squares, step_squares = _slot(states, "square"), _slot(states, "step_square")
        _decay_squares(squares, gradients, group["rho"])
        steps = list(torch._foreach_add(step_squares, group["epsilon"]))
        torch._foreach_div_(steps, torch._foreach_add(squares, group["epsilon"]))
        torch._foreach_sqrt_(steps)
        torch._foreach_mul_(steps, gradients)
        _decay_squares(step_squares, steps, group["rho"])
        torch._foreach_add_(parameters, steps, alpha=-group["lr"])


@dataclass(frozen=True)
class Lion(Optimizer):
    """keras.optimizers.Lion (Chen et al. 2023): p -= lr * sign(beta_1 * m + (1 - beta_1) * g), and then m is moved
    towards g by beta_2."""

    learning_rate: float = 0.001
    beta_1: float = 0.9
    beta_2: float = 0.99

    slots = ("mean",)
    shares = ("beta_1", "beta_2")

    def update(self, group: Group, parameters: Tensors, gradients: Tensors, states: list[dict[str, Any]]) -> None:
        means = _slot(states, "mean")
        signs = torch._foreach_mul(means, group["beta_1"])
        torch._foreach_add_(signs, gradients, alpha=1 - group["beta_1"])
        torch._foreach_sign_(signs)
        torch._foreach_add_(parameters, signs, alpha=-group["lr"])
        _decay(means, gradients, group["beta_2"])


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adam": Adam,
    "adamw": AdamW,
    "sgd": SGD,
    "rmsprop": RMSprop,
    "adagrad": Adagrad,
    "adadelta": Adadelta,
    "adamax": Adamax,
    "nadam": Nadam,
    "lion": Lion,
}


def get_optimizer(choice: Any) -> Any:
    """The `optimizer` argument of compile: a recipe for a name, or the choice itself.

    Raises ValueError for an unknown name, with the known ones; TypeError for another kind.
    """
    if isinstance(choice, str):
        return look_up("optimizer", choice, OPTIMIZERS)()
    if isinstance(choice, type) and issubclass(choice, Optimizer):
        return choice()
    if not isinstance(choice, torch.optim.Optimizer) and not callable(choice):
        raise TypeError(
            f"optimizer: a name, an object of nnlib.optimizers, a torch.optim.Optimizer or a function from parameters "
            f"to one is expected, got {choice!r}"
        )
    return choice


def make_optimizer(choice: Any, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer for these parameters: `choice` itself if it is one, or made by it.

    Raises ValueError if a ready optimizer holds none of the parameters (it would train nothing, in silence) or if
    there are no parameters; TypeError if what the choice makes is no optimizer, or needs a closure (LBFGS).
    """
    if not parameters:
        raise ValueError("optimizer: the model has no parameters to train")
    made = choice if isinstance(choice, torch.optim.Optimizer) else choice(parameters)
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(f"optimizer: the function must make a torch.optim.Optimizer, got {made!r}")
    if isinstance(made, torch.optim.LBFGS):
        raise TypeError("optimizer: one that takes a step from the gradients alone is expected, got LBFGS")
    held = {id(parameter) for group in made.param_groups for parameter in group["params"]}
    if not any(id(parameter) in held for parameter in parameters):
        raise ValueError(
            "optimizer: it must hold parameters of this model, got one that holds none of them; "
            "make it from model.parameters() once the model is built"
        )
    return made
