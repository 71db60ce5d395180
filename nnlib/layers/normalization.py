"""LayerNormalization and RMSNormalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from typing_extensions import Unpack

from nnlib.initializers import InitializerChoice
from nnlib.layers.base import Layer, Shape
from nnlib.layers.options import LayerOptions, NormOptions
from nnlib.layers.rules import unchanged


class _Normalization(Layer):
    """What normalizing within a sample shares: the axes, and their weights."""

    keeps_shape = True
    keeps_lengths = True

    weight: torch.Tensor | None
    bias: torch.Tensor | None

    def __init__(
        self,
        axis: int | Sequence[int],
        epsilon: float,
        center: bool,
        scale: bool,
        beta_initializer: InitializerChoice,
        gamma_initializer: InitializerChoice,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not all(isinstance(one, int) for one in (axis if isinstance(axis, (list, tuple)) else (axis,))):
            raise TypeError(f"axis: an integer or several are expected, got {axis!r}")
        if not epsilon > 0:
            raise ValueError(f"epsilon: a positive number is expected, got {epsilon}")
        self.axis = axis
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        self.beta_initializer = beta_initializer
        self.gamma_initializer = gamma_initializer
        self.normalized_shape: tuple[int, ...] | None = None

    def _axes(self, shape: Sequence[int | None]) -> list[int]:
        """The normalized axes in order."""
        given = (self.axis,) if isinstance(self.axis, int) else tuple(self.axis)
        axes = sorted(axis + len(shape) if axis < 0 else axis for axis in given)
        if not axes or len(set(axes)) < len(axes) or not 1 <= axes[0] <= axes[-1] < len(shape):
            raise ValueError(f"{self.name}: axis {self.axis} must be of the input's but the batch, got {tuple(shape)}")
        return axes

    def check_input_shape(self, shape: Shape) -> None:
        super().check_input_shape(shape)
        wanted, sizes = self.normalized_shape, [shape[axis] for axis in self._axes(shape)]
        if wanted is not None and any(size not in (want, None) for size, want in zip(sizes, wanted)):
            raise ValueError(
                f"{self.name}: input must have sizes {self.normalized_shape} in axis {self.axis}, got {tuple(shape)}"
            )

    def build(self, input_shape: Shape) -> None:
        sizes = [input_shape[axis] for axis in self._axes(input_shape)]
        known = tuple(size for size in sizes if size is not None)
        if len(known) < len(sizes):
            raise ValueError(f"{self.name}: the normalized axes must be known, got {input_shape}")
        for name, wanted, choice, argument in (
            ("weight", self.scale, self.gamma_initializer, "gamma_initializer"),
            ("bias", self.center, self.beta_initializer, "beta_initializer"),
        ):
            if wanted:
                self.add_parameter(name, known, choice, argument, unchanged)
            else:
                self.register_parameter(name, None)
        self.normalized_shape = known

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        """x normalized over its last axes, of sizes self.normalized_shape."""
        raise NotImplementedError

    def call(self, x: torch.Tensor) -> torch.Tensor:
        axes = self._axes(tuple(x.shape))
        last = list(range(x.dim() - len(axes), x.dim()))
        if axes == last:
            return self.normalize(x)
        return self.normalize(x.movedim(axes, last)).movedim(last, axes)


class LayerNormalization(_Normalization):
    """Each sample less its mean, by its standard deviation (Ba et al., 2016), keras.layers.LayerNormalization.

    Input of two or more axes, floating point; output the same shape. The parameters, of the sizes of the normalized
    axes: weight (gamma) and bias (beta), as in torch.nn.LayerNorm.

    axis: the normalized axes, one or several (default the last). epsilon: is added to the variance.
    center: whether there is a bias; scale: whether there is a weight.
    beta_initializer, gamma_initializer: see nnlib.initializers; beta_regularizer, gamma_regularizer, beta_constraint,
    gamma_constraint, and the other options: see Layer.

    Raises ValueError if an argument is out of its range, or an input does not fit.
    """

    regularized = constrained = ("beta", "gamma")

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        epsilon: float = 0.001,
        center: bool = True,
        scale: bool = True,
        beta_initializer: InitializerChoice = "zeros",
        gamma_initializer: InitializerChoice = "ones",
        **options: Unpack[NormOptions],
    ) -> None:
        super().__init__(
            axis, epsilon, center, scale, beta_initializer, gamma_initializer,
            **options,
        )  # fmt: skip

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        return self.run("layer_norm", x, self.normalized_shape, self.weight, self.bias, self.epsilon)


class RMSNormalization(_Normalization):
    """Each sample by its root mean square (Zhang and Sennrich, 2019), keras.layers.RMSNormalization.

    Input of two or more axes, floating point; output the same shape. One parameter, of the size of the normalized axis:
    weight, as in torch.nn.RMSNorm.

    axis: the normalized axis (default the last). epsilon: is added to the mean square.
    input_shape, device, backend, name: see Layer.

    Raises ValueError if an argument is out of its range, or an input does not fit.
    """

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        epsilon: float = 1e-6,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(
            axis, epsilon, False, True, "zeros", "ones",
            **options,
        )  # fmt: skip

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        return self.run("rms_norm", x, self.normalized_shape, self.weight, self.epsilon)
