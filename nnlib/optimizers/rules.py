"""The rules: what a step does to the weights, in lists of tensors at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from nnlib.optimizers.base import Group, Optimizer, Rate, Tensors


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

    learning_rate: Rate = 0.01
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

    learning_rate: Rate = 0.001
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

    learning_rate: Rate = 0.001
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
        devices = [parameter.device for parameter in parameters]
        steps = [state["step"] for state in states]
        # Parameters may have had gradients a different number of times.
        for step in sorted(set(steps)):
            step_tensors = {device: torch.tensor(float(step), device=device) for device in set(devices)}
            members = [i for i, of_parameter in enumerate(steps) if of_parameter == step]
            kept = [states[i] for i in members]
            # torch's kernel, one pass over memory, puts epsilon beside sqrt(v) / sqrt(1 - beta_2^t).
            torch._fused_adam_(
                [parameters[i] for i in members],
                [gradients[i] for i in members],
                _slot(kept, "mean"),
                _slot(kept, "square"),
                _slot(kept, "largest") if amsgrad else [],
                [step_tensors[devices[i]] for i in members],
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

    learning_rate: Rate = 0.001
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

    learning_rate: Rate = 0.001
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

    learning_rate: Rate = 0.001
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

    learning_rate: Rate = 0.001
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

    learning_rate: Rate = 0.001
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
