"""Convolutions: Conv2D, DepthwiseConv2D and SeparableConv2D."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from typing_extensions import Unpack

from nnlib.activations import ActivationChoice, ActivationFunction
from nnlib.checks import positive_integer
from nnlib.initializers import InitializerChoice
from nnlib.layers.base import Layer, Shape
from nnlib.layers.core import absorb_activation
from nnlib.layers.images import PADDINGS, ImageLayer, pair, window_output_size
from nnlib.layers.options import DepthwiseOptions, KernelOptions, SeparableOptions
from nnlib.layers.pooling import MaxPooling2D
from nnlib.layers.rules import DepthwiseView
from nnlib.names import look_up


class Conv2D(ImageLayer):
    """2D convolution with bias and activation, keras.layers.Conv2D.

    Input (N, H, W, C) (see data_format), floating point; output (N, H', W', filters). The parameters are in torch's
    layout: weight (filters, C / groups, kernel height, kernel width), bias (filters,).

    filters: output channels. kernel_size, strides, dilation_rate: an integer or a pair.
    padding: "valid" (none) or "same" (output ceil(size / stride); an odd row goes below and right, as in Keras).
    groups: input channels are split into so many groups, each with its own filters.
    activation: see nnlib.activations. relu, gelu, silu, tanh and sigmoid run inside the kernel.
    use_bias: whether there is one. kernel_initializer, bias_initializer: see nnlib.initializers; kernel_regularizer,
    bias_regularizer, kernel_constraint, bias_constraint, and the other options: see Layer.

    Raises ValueError if an argument is out of its range, or an input does not fit.
    """

    regularized = constrained = ("kernel", "bias")

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = (1, 1),
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = (1, 1),
        groups: int = 1,
        activation: str | ActivationFunction | None = None,
        use_bias: bool = True,
        kernel_initializer: InitializerChoice = "glorot_uniform",
        bias_initializer: InitializerChoice = "zeros",
        **options: Unpack[KernelOptions],
    ) -> None:
        super().__init__(data_format=data_format, **options)
        groups = positive_integer("groups", groups)
        self.filters = positive_integer("filters", filters)
        if self.filters % groups:
            raise ValueError(f"filters: a positive multiple of groups ({groups}) is expected, got {filters}")
        self.kernel_size = pair("kernel_size", kernel_size)
        self.strides = pair("strides", strides)
        self.kernel_padding = look_up("padding", padding, PADDINGS)
        self.padding = padding.lower()
        self.dilation_rate = pair("dilation_rate", dilation_rate)
        self.groups = groups
        self.activation = ActivationChoice(activation)
        self.use_bias = use_bias
        self.kernel_initializer = kernel_initializer
        self.bias_initializer = bias_initializer
        self.input_channels: int | None = None

    def expected_input(self) -> tuple[int | str, ...]:
        return self.image_pattern("C" if self.input_channels is None else self.input_channels)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, size, channels = self.split_shape(input_shape)
        size = window_output_size(self, size, self.kernel_size, self.strides, self.padding, self.dilation_rate)
        return self.join_shape(batch, size, self.output_channels(channels))

    def output_channels(self, channels: int | None) -> int | None:
        """Channels of the output for so many of the input."""
        return self.filters

    def build(self, input_shape: Shape) -> None:
        channels = self.split_shape(input_shape)[2]
        if channels is None or channels % self.groups:
            raise ValueError(
                f"{self.name}: input channels must be known and a multiple of groups ({self.groups}), "
                f"got {channels} in {input_shape}"
            )
        shape = (self.filters, channels // self.groups, *self.kernel_size)
        self.add_parameter("weight", shape, self.kernel_initializer, "kernel_initializer")
        if self.use_bias:
            self.add_parameter("bias", (self.filters,), self.bias_initializer, "bias_initializer")
        else:
            self.register_parameter("bias", None)
        self.input_channels = channels

    def absorb(self, following: Sequence[Layer]) -> tuple[int, dict[str, Any]]:
        """An Activation, if it has none itself, and then a MaxPooling2D without padding."""
        count, options = absorb_activation(self.activation, following)
        pool = following[count] if count < len(following) else None
        kernel_activates = self.activation.is_identity or self.activation.fused
        if kernel_activates and type(pool) is MaxPooling2D and pool.padding == "valid":
            if pool.data_format == self.data_format:
                return count + 1, {**options, "windows": (pool.pool_size, pool.strides)}
        return count, options

    def call(
        self,
        x: torch.Tensor,
        *,
        activation: str | None = None,
        windows: tuple[tuple[int, int], tuple[int, int]] | None = None,
    ) -> torch.Tensor:
        """windows: size and stride of a max pooling that follows the activation, in the same pass."""
        fused = activation or self.activation.fused
        options: dict[str, Any] = {}
        if windows is not None:
            options = {"pool_kernel_size": windows[0], "pool_stride": windows[1]}
        y = self.run(
            "conv2d_max_pool2d" if windows else "conv2d",
            self.to_kernel_order(x),
            self.weight,
            self.bias,
            stride=self.strides,
            padding=self.kernel_padding,
            dilation=self.dilation_rate,
            groups=self.groups,
            activation=fused,
            **options,
        )
        y = self.from_kernel_order(y)
        if fused or windows:
            return y
        # Keras' softmax runs along the last axis, whatever it holds.
        return self.activation.apply(self.name, y, axis=-1, backend=self.backend)


class DepthwiseConv2D(Conv2D):
    """2D convolution of each channel by itself, keras.layers.DepthwiseConv2D.

    Input (N, H, W, C) (see data_format), floating point; output (N, H', W', C * depth_multiplier), the filters of a
    channel side by side. The parameters are in torch's layout: weight (C * depth_multiplier, 1, kernel height, kernel
    width), bias (C * depth_multiplier,).

    depth_multiplier: filters for each channel. depthwise_initializer, depthwise_regularizer, depthwise_constraint: of
    the kernel; all others: see Conv2D.

    Raises ValueError if an argument is out of its range, or an input does not fit.
    """

    regularized = constrained = ("depthwise", "bias")

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = (1, 1),
        padding: str = "valid",
        depth_multiplier: int = 1,
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = (1, 1),
        activation: str | ActivationFunction | None = None,
        use_bias: bool = True,
        depthwise_initializer: InitializerChoice = "glorot_uniform",
        bias_initializer: InitializerChoice = "zeros",
        **options: Unpack[DepthwiseOptions],
    ) -> None:
        super().__init__(  # type: ignore[misc]
            1, kernel_size, strides, padding, data_format, dilation_rate, 1, activation, use_bias,
            depthwise_initializer, bias_initializer, **options,
        )  # fmt: skip
        self.depth_multiplier = positive_integer("depth_multiplier", depth_multiplier)
        self.depthwise_initializer = depthwise_initializer

    def output_channels(self, channels: int | None) -> int | None:
        return None if channels is None else channels * self.depth_multiplier

    def build(self, input_shape: Shape) -> None:
        channels = self.split_shape(input_shape)[2]
        if channels is None:
            raise ValueError(f"{self.name}: input channels must be known, got {input_shape}")
        self.groups = channels
        self.filters = channels * self.depth_multiplier
        shape, view = (self.filters, 1, *self.kernel_size), DepthwiseView(self.depth_multiplier)
        self.add_parameter("weight", shape, self.depthwise_initializer, "depthwise_initializer", view)
        if self.use_bias:
            self.add_parameter("bias", (self.filters,), self.bias_initializer, "bias_initializer")
        else:
            self.register_parameter("bias", None)
        self.input_channels = channels


class SeparableConv2D(ImageLayer):
    """A DepthwiseConv2D without bias, then a 1x1 Conv2D that mixes the channels, keras.layers.SeparableConv2D.

    Input (N, H, W, C) (see data_format), floating point; output (N, H', W', filters). The two are the attributes
    `depthwise` and `pointwise`, whose parameters they are.

    Arguments: see DepthwiseConv2D and Conv2D; pointwise_initializer, pointwise_regularizer and pointwise_constraint are
    of the 1x1 kernel. Raises ValueError if one is out of its range, or an input does not fit.
    """

    regularized = constrained = ("depthwise", "pointwise", "bias")

    depthwise_regularizer: Any
    pointwise_regularizer: Any
    bias_regularizer: Any
    depthwise_constraint: Any
    pointwise_constraint: Any
    bias_constraint: Any

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = (1, 1),
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = (1, 1),
        depth_multiplier: int = 1,
        activation: str | ActivationFunction | None = None,
        use_bias: bool = True,
        depthwise_initializer: InitializerChoice = "glorot_uniform",
        pointwise_initializer: InitializerChoice = "glorot_uniform",
        bias_initializer: InitializerChoice = "zeros",
        **options: Unpack[SeparableOptions],
    ) -> None:
        super().__init__(data_format=data_format, **options)
        self.depthwise = DepthwiseConv2D(
            kernel_size, strides, padding, depth_multiplier, data_format, dilation_rate, None, False,
            depthwise_initializer, name=self.name, depthwise_regularizer=self.depthwise_regularizer,
            depthwise_constraint=self.depthwise_constraint,
        )  # fmt: skip
        self.pointwise = Conv2D(
            filters, 1, 1, "valid", data_format, 1, 1, activation, use_bias, pointwise_initializer, bias_initializer,
            name=self.name, kernel_regularizer=self.pointwise_regularizer, bias_regularizer=self.bias_regularizer,
            kernel_constraint=self.pointwise_constraint, bias_constraint=self.bias_constraint,
        )  # fmt: skip
        self.adopt(self.backend, self.device)

    def expected_input(self) -> tuple[int | str, ...]:
        return self.depthwise.expected_input()

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return self.pointwise.compute_output_shape(self.depthwise.compute_output_shape(input_shape))

    def build(self, input_shape: Shape) -> None:
        self.depthwise.name = self.pointwise.name = self.name
        self.depthwise.build_once(input_shape)
        self.pointwise.build_once(self.depthwise.compute_output_shape(input_shape))

    def absorb(self, following: Sequence[Layer]) -> tuple[int, dict[str, Any]]:
        return self.pointwise.absorb(following)

    def call(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        """options: of Conv2D.call, for the pointwise convolution."""
        return self.pointwise(self.depthwise(x), **options)
