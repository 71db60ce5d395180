"""Initial weights by Keras' names. The draws come from torch's generator, see nnlib.set_seed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from nnlib.names import look_up

Initializer = Callable[[torch.Tensor], object]

# Glorot's and He's limits follow from the fans, which torch reads off its own weight layout (out, in, *window):
# sqrt(6 / (fan_in + fan_out)) and sqrt(6 / fan_in), as in Keras.
_INITIALIZERS: dict[str, Initializer] = {
    "glorot_uniform": torch.nn.init.xavier_uniform_,
    "he_uniform": lambda weight: torch.nn.init.kaiming_uniform_(weight, nonlinearity="relu"),
    "zeros": torch.nn.init.zeros_,
    "ones": torch.nn.init.ones_,
}


def initializer(argument: str, choice: str | Initializer) -> Initializer:
    """The function that fills a parameter in place.

    choice: glorot_uniform, he_uniform, zeros, ones, or a function of one tensor. Raises ValueError for an unknown
    name, TypeError for another kind; `argument` is the name in the message.
    """
    if isinstance(choice, str):
        return look_up(argument, choice, _INITIALIZERS)
    if not callable(choice):
        raise TypeError(f"{argument}: a name or a function is expected, got {choice!r}")
    return choice
