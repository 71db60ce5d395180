"""Initial weights by Keras' names. The draws come from torch's generator, see nnlib.set_seed.

Variance scaling takes the fans, how many inputs an output of the layer has and how many outputs an input, as Keras
counts them: limit sqrt(6 / (fan_in + fan_out)) for Glorot (2010), sqrt(6 / fan_in) for He (2015), sqrt(3 / fan_in) for
LeCun (1998); the normal forms have the same variance and are cut at two standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from nnlib.names import look_up

Initializer = Callable[[torch.Tensor], object]
Fans = tuple[float, float]
_Filling = Callable[[torch.Tensor, Fans], object]

#: Standard deviation of a unit normal distribution that is cut at two.
_CUT_DEVIATION = 0.87962566103423978


def _scaled(share: Callable[[float, float], float], *, normal: bool) -> _Filling:
    """Fills with variance 1 / share(fan_in, fan_out)."""

    def fill(weight: torch.Tensor, fans: Fans) -> None:
        variance = 1 / max(share(*fans), 1e-12)
        if normal:
            deviation = math.sqrt(variance) / _CUT_DEVIATION
            torch.nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)
        else:
            limit = math.sqrt(3 * variance)
            weight.uniform_(-limit, limit)

    return fill


def _mean(fan_in: float, fan_out: float) -> float:
    return (fan_in + fan_out) / 2


_INITIALIZERS: dict[str, _Filling] = {
    "glorot_uniform": _scaled(_mean, normal=False),
    "glorot_normal": _scaled(_mean, normal=True),
    "he_uniform": _scaled(lambda fan_in, _: fan_in / 2, normal=False),
    "he_normal": _scaled(lambda fan_in, _: fan_in / 2, normal=True),
    "lecun_uniform": _scaled(lambda fan_in, _: fan_in, normal=False),
    "lecun_normal": _scaled(lambda fan_in, _: fan_in, normal=True),
    "orthogonal": lambda weight, _: torch.nn.init.orthogonal_(weight),
    "uniform": lambda weight, _: weight.uniform_(-0.05, 0.05),
    "normal": lambda weight, _: weight.normal_(0.0, 0.05),
    "zeros": lambda weight, _: weight.zero_(),
    "ones": lambda weight, _: weight.fill_(1.0),
}


def fans_of(shape: tuple[int, ...]) -> Fans:
    """(fan_in, fan_out) of a weight in torch's layout (out, in, *window)."""
    if len(shape) < 2:
        size = float(shape[0]) if shape else 1.0
        return size, size
    window = math.prod(shape[2:])
    return float(shape[1] * window), float(shape[0] * window)


def initializer(argument: str, choice: str | Initializer, fans: Fans | None = None) -> Initializer:
    """The function that fills a parameter in place.

    choice: a name of this module, or a function of one tensor. fans: (fan_in, fan_out) of the weights; by default
    read off their shape, see fans_of. Raises ValueError for an unknown name, TypeError for another kind; `argument` is
    the name in the message.
    """
    if isinstance(choice, str):
        filling = look_up(argument, choice, _INITIALIZERS)
        return lambda weight: filling(weight, fans or fans_of(tuple(weight.shape)))
    if not callable(choice):
        raise TypeError(f"{argument}: a name or a function is expected, got {choice!r}")
    return choice
