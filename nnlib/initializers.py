"""Initial weights by Keras' names, arguments and defaults.

    layers.Dense(64, kernel_initializer=initializers.HeNormal(seed=1))

A layer takes an object, its name ("he_normal", "HeNormal"), or a function of one tensor that fills it in place, such
as those of torch.nn.init. The draws come from torch's generator (see nnlib.set_seed), or from one of the object's own
where it has a seed: then each weight of a shape gets the same numbers, on any device. They are not the numbers that
Keras draws from the same seed.

Objects see a weight in Keras' layout: a matrix is (in, out), an image kernel (height, width, in, out). How many inputs
an output has and how many outputs an input, fan_in and fan_out, follow from that shape. Variance scaling has the limit
sqrt(6 / (fan_in + fan_out)) for Glorot (2010), sqrt(6 / fan_in) for He (2015), sqrt(3 / fan_in) for LeCun (1998); the
normal forms have the same variance and are cut at two standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from nnlib.configuration import Recorded
from nnlib.names import attribute_error, look_up

#: Standard deviation of a unit normal distribution that is cut at two.
_CUT_DEVIATION = 0.87962566103423978


class Initializer(Recorded):
    """The base of initializers. A subclass writes `fill`. Called with a shape it gives a new tensor, as in Keras."""

    def __init__(self) -> None:
        pass  # no arguments

    def fill(self, kernel: torch.Tensor) -> None:
        """Writes the initial values into a weight that is seen in Keras' layout."""
        raise NotImplementedError(f"{type(self).__name__} must define fill(kernel)")

    @torch.no_grad()
    def __call__(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor of this shape, in Keras' layout. dtype: default torch's default."""
        made = torch.empty(tuple(shape), dtype=dtype)
        self.fill(made)
        return made


class Constant(Initializer):
    """One value everywhere, or the values of an array of the weight's shape in Keras' layout.

    value: a number or an array. No file keeps an array: in it, the initializer becomes Constant(0), and the weights
    are kept as all weights are.
    """

    def __init__(self, value: Any = 0.0) -> None:
        number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if not number and not isinstance(value, (np.ndarray, torch.Tensor, list, tuple)):
            raise TypeError(f"value: a number or an array is expected, got {value!r}")
        self.value = float(value) if number else torch.as_tensor(np.asarray(value))

    def get_config(self, classes: Any = None) -> dict[str, Any]:
        """Recorded.get_config, without an array."""
        return {"value": self.value if isinstance(self.value, float) else 0.0}

    def fill(self, kernel: torch.Tensor) -> None:
        if isinstance(self.value, float):
            kernel.fill_(self.value)
            return
        if self.value.dim() and self.value.shape != kernel.shape:
            raise ValueError(f"value: shape {tuple(kernel.shape)} is expected, got {tuple(self.value.shape)}")
        kernel.copy_(self.value)


class Zeros(Initializer):
    """0 everywhere."""

    def fill(self, kernel: torch.Tensor) -> None:
        kernel.zero_()


class Ones(Initializer):
    """1 everywhere."""

    def fill(self, kernel: torch.Tensor) -> None:
        kernel.fill_(1.0)


class Identity(Initializer):
    """The identity matrix times `gain`; for matrices alone, which need not be square."""

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain

    def fill(self, kernel: torch.Tensor) -> None:
        if kernel.dim() != 2:
            raise ValueError(f"identity: a weight of two axes is expected, got shape {tuple(kernel.shape)}")
        kernel.copy_(torch.eye(*kernel.shape, dtype=kernel.dtype, device=kernel.device) * self.gain)


class _Random(Initializer):
    """What draws have in common: the seed, an integer, or None for torch's generator."""

    seed: int | None

    def _take_seed(self, seed: int | None) -> None:
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, (int, np.integer))):
            raise TypeError(f"seed: an integer or None is expected, got {seed!r}")
        self.seed = None if seed is None else int(seed)

    def draw(self, kernel: torch.Tensor, generator: torch.Generator | None) -> None:
        """Fills the tensor from this generator, or from torch's own."""
        raise NotImplementedError

    def fill(self, kernel: torch.Tensor) -> None:
        if self.seed is None:
            self.draw(kernel, None)
        elif not kernel.is_meta:
            drawn = torch.empty(kernel.shape, dtype=kernel.dtype, device="cpu")
            self.draw(drawn, torch.Generator().manual_seed(self.seed))
            kernel.copy_(drawn)


class RandomNormal(_Random):
    """A normal distribution."""

    def __init__(self, mean: float = 0.0, stddev: float = 0.05, seed: int | None = None) -> None:
        self.mean = mean
        self.stddev = _at_least_0("stddev", stddev)
        self._take_seed(seed)

    def draw(self, kernel: torch.Tensor, generator: torch.Generator | None) -> None:
        kernel.normal_(self.mean, self.stddev, generator=generator)


class TruncatedNormal(RandomNormal):
    """A normal distribution without what lies more than two standard deviations from the mean."""

    def draw(self, kernel: torch.Tensor, generator: torch.Generator | None) -> None:
        if self.stddev == 0:
            kernel.fill_(self.mean)
            return
        low, high = self.mean - 2 * self.stddev, self.mean + 2 * self.stddev
        torch.nn.init.trunc_normal_(kernel, self.mean, self.stddev, low, high, generator=generator)


class RandomUniform(_Random):
    """A uniform distribution from minval to maxval."""

    def __init__(self, minval: float = -0.05, maxval: float = 0.05, seed: int | None = None) -> None:
        if not minval <= maxval:
            raise ValueError(f"maxval: at least minval ({minval}) is expected, got {maxval}")
        self.minval = minval
        self.maxval = maxval
        self._take_seed(seed)

    def draw(self, kernel: torch.Tensor, generator: torch.Generator | None) -> None:
        kernel.uniform_(self.minval, self.maxval, generator=generator)


_MODES: dict[str, Callable[[float, float], float]] = {
    "fan_in": lambda fan_in, _: fan_in,
    "fan_out": lambda _, fan_out: fan_out,
    "fan_avg": lambda fan_in, fan_out: (fan_in + fan_out) / 2,
}
_DISTRIBUTIONS = {name: name for name in ("truncated_normal", "untruncated_normal", "uniform")}


class VarianceScaling(_Random):
    """The variance scale / n, n being fan_in, fan_out or their mean.

    scale: above 0. mode: "fan_in", "fan_out" or "fan_avg". distribution: "truncated_normal", "untruncated_normal" or
    "uniform".
    """

    def __init__(
        self,
        scale: float = 1.0,
        mode: str = "fan_in",
        distribution: str = "truncated_normal",
        seed: int | None = None,
    ) -> None:
        if not scale > 0:
            raise ValueError(f"scale: a number above 0 is expected, got {scale}")
        self.scale = scale
        self._count = look_up("mode", mode, _MODES)
        self.mode = mode.lower()
        self.distribution = look_up("distribution", distribution, _DISTRIBUTIONS)
        self._take_seed(seed)

    def draw(self, kernel: torch.Tensor, generator: torch.Generator | None) -> None:
        variance = self.scale / max(self._count(*fans_of(kernel.shape)), 1.0)
        if self.distribution == "uniform":
            limit = math.sqrt(3 * variance)
            kernel.uniform_(-limit, limit, generator=generator)
        elif self.distribution == "untruncated_normal":
            kernel.normal_(0.0, math.sqrt(variance), generator=generator)
        else:
            deviation = math.sqrt(variance) / _CUT_DEVIATION
            torch.nn.init.trunc_normal_(kernel, 0.0, deviation, -2 * deviation, 2 * deviation, generator=generator)


class GlorotUniform(VarianceScaling):
    """VarianceScaling(1, "fan_avg", "uniform")."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(1.0, "fan_avg", "uniform", seed)


class GlorotNormal(VarianceScaling):
    """VarianceScaling(1, "fan_avg", "truncated_normal")."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(1.0, "fan_avg", "truncated_normal", seed)


class HeUniform(VarianceScaling):
    """VarianceScaling(2, "fan_in", "uniform")."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(2.0, "fan_in", "uniform", seed)


class HeNormal(VarianceScaling):
    """VarianceScaling(2, "fan_in", "truncated_normal")."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(2.0, "fan_in", "truncated_normal", seed)


class LecunUniform(VarianceScaling):
    """VarianceScaling(1, "fan_in", "uniform")."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(1.0, "fan_in", "uniform", seed)


class LecunNormal(VarianceScaling):
    """VarianceScaling(1, "fan_in", "truncated_normal")."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(1.0, "fan_in", "truncated_normal", seed)


class Orthogonal(_Random):
    """A random orthogonal matrix times `gain` (Saxe et al., 2013): its columns, or where they are more its rows, are
    orthonormal. A weight of more axes is the matrix with all but the last as its rows."""

    def __init__(self, gain: float = 1.0, seed: int | None = None) -> None:
        self.gain = gain
        self._take_seed(seed)

    def draw(self, kernel: torch.Tensor, generator: torch.Generator | None) -> None:
        if kernel.dim() < 2:
            raise ValueError(f"orthogonal: a weight of two axes or more is expected, got shape {tuple(kernel.shape)}")
        columns = kernel.shape[-1]
        turned = kernel.new_empty(columns, math.prod(kernel.shape[:-1]))
        torch.nn.init.orthogonal_(turned, self.gain, generator=generator)
        kernel.copy_(turned.t().reshape(kernel.shape))


# Keras' second names.
OrthogonalInitializer = Orthogonal
IdentityInitializer = Identity

#: A name, an object, or a function of one tensor that fills it in place.
InitializerChoice = str | Initializer | Callable[[torch.Tensor], object]

INITIALIZERS: dict[str, type[Initializer]] = {
    "glorot_uniform": GlorotUniform,
    "glorot_normal": GlorotNormal,
    "he_uniform": HeUniform,
    "he_normal": HeNormal,
    "lecun_uniform": LecunUniform,
    "lecun_normal": LecunNormal,
    "variance_scaling": VarianceScaling,
    "orthogonal": Orthogonal,
    "random_uniform": RandomUniform,
    "uniform": RandomUniform,
    "random_normal": RandomNormal,
    "normal": RandomNormal,
    "truncated_normal": TruncatedNormal,
    "zeros": Zeros,
    "ones": Ones,
    "constant": Constant,
    "identity": Identity,
}
# Other spellings, which no message lists.
_ALIASES = {kind.__name__.lower(): name for name, kind in reversed(INITIALIZERS.items())}
_ALIASES |= {"zero": "zeros", "one": "ones"}


def get(choice: InitializerChoice | type[Initializer], argument: str = "initializer") -> Any:
    """The initializer of a name or class, an object or a function as it is.

    Raises ValueError for an unknown name, TypeError for another kind; `argument` is the name in the message.
    """
    if isinstance(choice, str):
        return look_up(argument, _ALIASES.get(choice.lower(), choice), INITIALIZERS)()
    if isinstance(choice, type) and issubclass(choice, Initializer):
        return choice()
    if not callable(choice) or (hasattr(choice, "get_config") and not isinstance(choice, Initializer)):  # Keras' own
        raise TypeError(f"{argument}: a name, one of nnlib.initializers or a function is expected, got {choice!r}")
    return choice


@torch.no_grad()
def fill(
    argument: str,
    choice: InitializerChoice,
    weight: torch.Tensor,
    keras_view: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Fills a weight in place. keras_view: the weight -> a view of it in Keras' layout, which objects fill.

    Raises as `get` does, and ValueError naming the argument for a weight that the initializer is not for, or a function
    that does not fill the tensor that it is given.
    """
    found = get(choice, argument)
    try:
        if isinstance(found, Initializer):
            found.fill(keras_view(weight))
            return
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error
    weight.fill_(torch.nan)
    found(weight)
    if not weight.is_meta and bool(weight.isnan().any()):
        raise ValueError(f"{argument}: a function must fill the tensor that it is given, in place, got {choice!r}")


def fans_of(shape: Sequence[int]) -> tuple[float, float]:
    """(fan_in, fan_out) of a weight in Keras' layout (*window, in, out); of one axis, its size twice."""
    if len(shape) < 2:
        size = float(shape[0]) if shape else 1.0
        return size, size
    window = math.prod(shape[:-2])
    return float(shape[-2] * window), float(shape[-1] * window)


def _at_least_0(argument: str, value: float) -> float:
    if not value >= 0:
        raise ValueError(f"{argument}: a number of at least 0 is expected, got {value}")
    return value


if not TYPE_CHECKING:

    def __getattr__(name: str) -> NoReturn:
        raise attribute_error(__name__, name, [kind.__name__ for kind in INITIALIZERS.values()])
