"""Optimizers by Keras' names with Keras' arithmetic, as torch.optim.Optimizer.

torch's own Adam and RMSprop add epsilon in another place, so the same name would train to other weights:
Keras' Adam adds it outside the bias correction, Keras' RMSprop under the root.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch

from nnlib.names import look_up

OptimizerFactory = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
OptimizerChoice = str | torch.optim.Optimizer | OptimizerFactory


class _ElementwiseOptimizer(torch.optim.Optimizer):
    """A rule that updates lists of parameters at once: torch's foreach functions loop in C++, not in Python."""

    #: The tensors kept for each parameter, zero at the start.
    slots: tuple[str, ...] = ()

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
                    for slot in self.slots:
                        state[slot] = torch.zeros_like(parameter)
                state["step"] += 1
            self.update(group, parameters, [parameter.grad for parameter in parameters])
        return loss

    def update(self, group: dict[str, Any], parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        """The rule for the parameters of one group."""
        raise NotImplementedError


class Adam(_ElementwiseOptimizer):
    """Adam as keras.optimizers.Adam computes it (Kingma and Ba 2014, section 2, the form before section 2.1).

    With m and v the running means of the gradient and its square at step t:
    p -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps).

    params: as in torch.optim. lr: default 0.001. betas: default (0.9, 0.999). eps: default 1e-7.
    """

    slots = ("mean", "square")

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-7,
    ) -> None:
        _check_rate(lr)
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    def update(self, group: dict[str, Any], parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        beta1, beta2 = group["betas"]
        means = [self.state[parameter]["mean"] for parameter in parameters]
        squares = [self.state[parameter]["square"] for parameter in parameters]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_add_(denominators, group["eps"])
        # Parameters may have had gradients a different number of times.
        steps = [self.state[parameter]["step"] for parameter in parameters]
        rates = [-group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step) for step in steps]
        torch._foreach_addcdiv_(parameters, means, denominators, rates)


class RMSprop(_ElementwiseOptimizer):
    """RMSprop as keras.optimizers.RMSprop computes it: with v the running mean of the squared gradient g,
    p -= lr * g / sqrt(v + eps).

    params: as in torch.optim. lr: default 0.001. rho: default 0.9. eps: default 1e-7.
    """

    slots = ("square",)

    def __init__(self, params: Iterable[torch.Tensor], lr: float = 0.001, rho: float = 0.9, eps: float = 1e-7) -> None:
        _check_rate(lr)
        super().__init__(params, {"lr": lr, "rho": rho, "eps": eps})

    def update(self, group: dict[str, Any], parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        squares = [self.state[parameter]["square"] for parameter in parameters]
        torch._foreach_mul_(squares, group["rho"])
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - group["rho"])
        denominators = torch._foreach_add(squares, group["eps"])
        torch._foreach_sqrt_(denominators)
        torch._foreach_addcdiv_(parameters, gradients, denominators, -group["lr"])


def _check_rate(rate: float) -> None:
    if not rate >= 0:
        raise ValueError(f"lr: a number of at least 0 is expected, got {rate}")


def _sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01)  # Keras' default rate; the rule is the same


_OPTIMIZERS: dict[str, OptimizerFactory] = {"adam": Adam, "sgd": _sgd, "rmsprop": RMSprop}


def check_optimizer(choice: OptimizerChoice) -> OptimizerChoice:
    """The `optimizer` argument of compile: an unknown name raises ValueError, another kind TypeError."""
    if isinstance(choice, str):
        return look_up("optimizer", choice, _OPTIMIZERS)
    if not isinstance(choice, torch.optim.Optimizer) and not callable(choice):
        raise TypeError(
            f"optimizer: a name, a torch.optim.Optimizer or a function from parameters to one is expected, "
            f"got {choice!r}"
        )
    return choice


def make_optimizer(choice: OptimizerChoice, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer for these parameters: `choice` itself if it is one, or made by it.

    Raises ValueError if a ready optimizer holds none of the parameters: it would train nothing, in silence.
    """
    if isinstance(choice, torch.optim.Optimizer):
        held = {id(parameter) for group in choice.param_groups for parameter in group["params"]}
        if not any(id(parameter) in held for parameter in parameters):
            raise ValueError(
                "optimizer: it must hold parameters of this model, got one that holds none of them; "
                "make it from model.parameters() once the model is built"
            )
        return choice
    factory = check_optimizer(choice)
    assert callable(factory)
    return factory(parameters)
