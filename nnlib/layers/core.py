"""Layers of every network: Dense, Flatten, Reshape, Dropout, Activation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from typing_extensions import Unpack

from nnlib.activations import ActivationChoice, ActivationFunction
from nnlib.checks import positive_integer, share
from nnlib.initializers import InitializerChoice
from nnlib.layers.base import Layer, Shape
from nnlib.layers.images import DATA_FORMATS
from nnlib.layers.options import KernelOptions, LayerOptions
from nnlib.names import look_up


class Dense(Layer):
    """Matrix product with bias and activation over the last axis, keras.layers.Dense.

    Input (..., features), floating point; output (..., units). The parameters are in torch's layout: weight
    (units, features), bias (units,).

    units: output features. activation: see nnlib.activations; relu, gelu, silu, tanh and sigmoid run inside the
    kernel. use_bias: whether there is one. kernel_initializer, bias_initializer: see nnlib.initializers;
    kernel_regularizer, bias_regularizer, kernel_constraint, bias_constraint, and the other options: see Layer. With a
    softmax, layer(x, apply_softmax=False) gives the logits.

    Raises ValueError if an argument is out of its range, or an input does not fit.
    """

    keeps_lengths = True
    regularized = constrained = ("kernel", "bias")

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self,
        units: int,
        activation: str | ActivationFunction | None = None,
        use_bias: bool = True,
        kernel_initializer: InitializerChoice = "glorot_uniform",
        bias_initializer: InitializerChoice = "zeros",
        **options: Unpack[KernelOptions],
    ) -> None:
        super().__init__(**options)
        self.units = positive_integer("units", units)
        self.activation = ActivationChoice(activation)
        self.ends_in_softmax = self.activation.is_softmax and self.activity_regularizer is None
        self.use_bias = use_bias
        self.kernel_initializer = kernel_initializer
        self.bias_initializer = bias_initializer
        self.input_features: int | None = None

    def expected_input(self) -> tuple[int | str, ...]:
        return ("...", "features" if self.input_features is None else self.input_features)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.units)

    def build(self, input_shape: Shape) -> None:
        features = input_shape[-1]
        if features is None:
            raise ValueError(f"{self.name}: the last axis of the input must be known, got {input_shape}")
        self.add_parameter("weight", (self.units, features), self.kernel_initializer, "kernel_initializer")
        if self.use_bias:
            self.add_parameter("bias", (self.units,), self.bias_initializer, "bias_initializer")
        else:
            self.register_parameter("bias", None)
        self.input_features = features

    def absorb(self, following: Sequence[Layer]) -> tuple[int, dict[str, Any]]:
        return absorb_activation(self.activation, following)

    def call(self, x: torch.Tensor, *, activation: str | None = None, apply_softmax: bool = True) -> torch.Tensor:
        fused = activation or self.activation.fused
        y = self.run("linear", x, self.weight, self.bias, activation=fused)
        if fused or (self.ends_in_softmax and not apply_softmax):
            return y
        return self.activation.apply(self.name, y, axis=-1, backend=self.backend)


class Flatten(Layer):
    """All axes but the batch in one, keras.layers.Flatten.

    Input (N, ...); output (N, features). data_format "channels_first" moves the channels of (N, C, ...) last first, so
    that the weights after it mean the same in either format (the only case that copies).
    """

    needs_floating_input = False

    def __init__(self, data_format: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.data_format = look_up("data_format", data_format or "channels_last", DATA_FORMATS)

    def expected_input(self) -> tuple[int | str, ...]:
        return ("...", "N")

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, *sizes = input_shape
        known = [size for size in sizes if size is not None]
        return (batch, math.prod(known) if len(known) == len(sizes) else None)

    def call(self, x: torch.Tensor) -> torch.Tensor:
        if self.data_format == "channels_first" and x.dim() > 2:
            x = x.movedim(1, -1)
        return x.reshape(x.shape[0], math.prod(x.shape[1:]))


class Reshape(Layer):
    """The same values in another shape, keras.layers.Reshape.

    Input (N, ...); output (N, *target_shape). target_shape: sizes without the batch; one may be -1, which is then what
    the others leave. Raises ValueError if it holds another number of values than the input.
    """

    needs_floating_input = False

    def __init__(self, target_shape: Sequence[int], **options: Any) -> None:
        super().__init__(**options)
        given = isinstance(target_shape, (list, tuple))
        sizes = tuple(target_shape) if given else ()
        fit = all(isinstance(size, Integral) and (size > 0 or size == -1) for size in sizes)
        if not given or not fit or sizes.count(-1) > 1:
            raise ValueError(f"target_shape: positive sizes, at most one of them -1, are expected, got {target_shape}")
        self.target_shape = sizes

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, *sizes = input_shape
        known = math.prod(size for size in self.target_shape if size != -1)
        if None in sizes:
            return (batch, *(None if size == -1 else size for size in self.target_shape))
        values = math.prod(size for size in sizes if size is not None)
        if values != known and (-1 not in self.target_shape or values % known):
            raise ValueError(f"{self.name}: input must have values for {self.target_shape}, got {tuple(input_shape)}")
        return (batch, *(values // known if size == -1 else size for size in self.target_shape))

    def call(self, x: torch.Tensor) -> torch.Tensor:
        shape = self.compute_output_shape(tuple(x.shape))
        return x.reshape([size for size in shape if size is not None])


class Dropout(Layer):
    """Zeroes a share `rate` of the values in training and scales the others by 1 / (1 - rate), keras.layers.Dropout.

    Input of any shape, floating point; output the same shape, in evaluation the input itself. rate: in [0, 1].
    noise_shape: sizes of what is drawn, batch first, None for the input's: along a size of 1 all values are kept or
    dropped together (default: each by itself). seed: draws of the layer's own, which start from it, a buffer `draws`
    counting them; default None: from torch's generator (see nnlib.set_seed).

    Raises ValueError if an argument is out of its range, or noise_shape does not fit the input.
    """

    keeps_shape = True
    keeps_lengths = True

    draws: torch.Tensor

    def __init__(
        self,
        rate: float,
        noise_shape: Sequence[int | None] | None = None,
        seed: int | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(**options)
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or abs(seed) >= 2**62):
            raise ValueError(f"seed: an integer of less than 63 bits is expected, got {seed!r}")
        self.rate = share("rate", rate)
        self.noise_shape = None if noise_shape is None else _noise_shape(noise_shape)
        self.seed = seed
        if seed is not None:
            self.register_buffer("draws", torch.zeros((), dtype=torch.int64, device=self.device))

    def call(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0:
            return x
        seed = None
        if self.seed is not None:
            seed = self.draws + self.seed
            self.draws.add_(1)
        if self.noise_shape is None:
            return self.run("dropout", x, self.rate, seed=seed)
        pairs = list(zip(self.noise_shape, x.shape))
        if len(self.noise_shape) != x.dim() or any(size not in (None, 1, full) for size, full in pairs):
            raise ValueError(f"{self.name}: noise_shape {self.noise_shape} must fit the input, got {tuple(x.shape)}")
        noise = x.new_ones([full if size is None else size for size, full in pairs])
        return x * self.run("dropout", noise, self.rate, seed=seed)


def _noise_shape(given: Any) -> tuple[int | None, ...]:
    sizes = tuple(given) if isinstance(given, (tuple, list)) else ()
    if not sizes or any(size is not None and (isinstance(size, bool) or not isinstance(size, int)) for size in sizes):
        raise ValueError(f"noise_shape: a tuple of positive integers or None is expected, got {given!r}")
    if any(size is not None and size < 1 for size in sizes):
        raise ValueError(f"noise_shape: a tuple of positive integers or None is expected, got {given!r}")
    return sizes


class Activation(Layer):
    """An activation as a layer of its own, keras.layers.Activation.

    Input of any shape, floating point; output the same shape. activation: see nnlib.activations. With a softmax,
    layer(x, apply_softmax=False) is x.
    """

    keeps_shape = True
    keeps_lengths = True

    def __init__(self, activation: str | ActivationFunction | None, **options: Any) -> None:
        super().__init__(**options)
        self.activation = ActivationChoice(activation)
        self.ends_in_softmax = self.activation.is_softmax and self.activity_regularizer is None

    def call(self, x: torch.Tensor, *, apply_softmax: bool = True) -> torch.Tensor:
        if self.ends_in_softmax and not apply_softmax:
            return x
        return self.activation.apply(self.name, x, axis=-1, backend=self.backend)


def absorb_activation(own: ActivationChoice, following: Sequence[Layer]) -> tuple[int, dict[str, Any]]:
    """`Layer.absorb` of a layer whose kernel ends in an activation: an Activation behind one that has none itself."""
    first = following[0]
    if own.is_identity and isinstance(first, Activation) and first.activation.fused:
        return 1, {"activation": first.activation.fused}
    return 0, {}
