"""Optimizers by Keras' names with Keras' arguments, defaults and arithmetic.

    model.compile(optimizer=optimizers.Adam(learning_rate=3e-4, clipnorm=1.0))

Each is a recipe: called with parameters it makes a torch.optim.Optimizer, so that one works in a loop of your own too:
`optimizers.Adam()(model.parameters())`. torch's optimizers of the same names place epsilon elsewhere, and their
momentum does not hold the learning rate, so the same name would train to other weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from nnlib.names import attribute_error, look_up
from nnlib.optimizers import schedules
from nnlib.optimizers.base import Optimizer, RuleOptimizer
from nnlib.optimizers.rules import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, Lion, Nadam, RMSprop

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "Nadam",
    "Optimizer",
    "OptimizerChoice",
    "OptimizerFactory",
    "RMSprop",
    "RuleOptimizer",
    "get_optimizer",
    "make_optimizer",
    "schedules",
]

OptimizerFactory = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
OptimizerChoice = "str | Optimizer | torch.optim.Optimizer | OptimizerFactory"

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


if not TYPE_CHECKING:

    def __getattr__(name: str) -> NoReturn:
        raise attribute_error(__name__, name, __all__)
