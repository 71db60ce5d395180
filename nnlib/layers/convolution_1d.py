"""Conv1D: convolution over the steps of sequences."""

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
from nnlib.layers.options import KernelOptions
from nnlib.layers.steps import StepLayer, one
from nnlib.names import look_up

#: Keras' name -> kernels' name; the padding of "causal" depends on the kernel.
_PADDINGS = {"valid": "valid", "same": "same_upper", "causal": None}


class Conv1D(StepLayer):
    """1D convolution with bias and activation, keras.layers.Conv1D: a 2D one of images of one row, on the same kernel.

    Input (N, T, C) (see data_format), floating point; output (N, T', filters). The parameters are in torch's layout:
    weight (filters, C / groups, kernel size), bias (filters,).

    filters: output channels. kernel_size, strides, dilation_rate: an integer, or a tuple of one.
    padding: "valid" (none), "same" (output ceil(T / strides)) or "causal" (all before the first step, so that no output
    sees later steps; output ceil(T / strides)).
    data_format: "channels_last" (default) or "channels_first" ((N, C, T)). groups: input channels are split into so
    many groups, each with its own filters. activation: see nnlib.activations; relu, gelu, silu, tanh and sigmoid run
    inside the kernel. use_bias: whether there is one. kernel_initializer, bias_initializer: see nnlib.initializers;
    kernel_regularizer, bias_regularizer, kernel_constraint, bias_constraint, and the other options: see Layer.

    Raises ValueError if an argument is out of its range, or an input does not fit.
    """

    regularized = constrained = ("kernel", "bias")

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = 1,
        groups: int = 1,
        activation: str | ActivationFunction | None = None,
        use_bias: bool = True,
        kernel_initializer: InitializerChoice = "glorot_uniform",
        bias_initializer: InitializerChoice = "zeros",
        **options: Unpack[KernelOptions],
    ) -> None:
        super().__init__(data_format, **options)  # type: ignore[misc]
        groups = positive_integer("groups", groups)
        self.filters = positive_integer("filters", filters)
        if self.filters % groups:
            raise ValueError(f"filters: a positive multiple of groups ({groups}) is expected, got {filters}")
        self.kernel_size = one("kernel_size", kernel_size)
        self.strides = one("strides", strides)
        self.dilation_rate = one("dilation_rate", dilation_rate)
        known = look_up("padding", padding, _PADDINGS)
        self.padding = padding.lower()
        #: How many steps the kernel reaches back from its last.
        self.reach = self.dilation_rate * (self.kernel_size - 1)
        self.kernel_padding: Any = known or ((0, 0), (self.reach, 0))
        self.groups = groups
        self.activation = ActivationChoice(activation)
        self.use_bias = use_bias
        self.kernel_initializer = kernel_initializer
        self.bias_initializer = bias_initializer
        self.input_channels: int | None = None

    def expected_input(self) -> tuple[int | str, ...]:
        return self.step_pattern("C" if self.input_channels is None else self.input_channels)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, *axes = input_shape
        steps = axes[0] if self.channels_last else axes[1]
        if steps is not None:
            whole = steps - self.reach if self.padding == "valid" else steps
            if whole < 1:
                raise ValueError(
                    f"{self.name}: a window of {self.kernel_size} (dilation {self.dilation_rate}, padding 'valid') "
                    f"must fit the steps, got {steps}"
                )
            steps = -(-whole // self.strides)
        return (batch, steps, self.filters) if self.channels_last else (batch, self.filters, steps)

    def build(self, input_shape: Shape) -> None:
        channels = input_shape[2] if self.channels_last else input_shape[1]
        if channels is None or channels % self.groups:
            raise ValueError(
                f"{self.name}: input channels must be known and a multiple of groups ({self.groups}), "
                f"got {channels} in {input_shape}"
            )
        shape = (self.filters, channels // self.groups, self.kernel_size)
        self.add_parameter("weight", shape, self.kernel_initializer, "kernel_initializer")
        if self.use_bias:
            self.add_parameter("bias", (self.filters,), self.bias_initializer, "bias_initializer")
        else:
            self.register_parameter("bias", None)
        self.input_channels = channels

    def absorb(self, following: Sequence[Layer]) -> tuple[int, dict[str, Any]]:
        """An Activation, if it has none itself."""
        return absorb_activation(self.activation, following)

    def call(self, x: torch.Tensor, *, activation: str | None = None) -> torch.Tensor:
        fused = activation or self.activation.fused
        row = x.transpose(1, 2) if self.channels_last else x
        y = self.run(
            "conv2d",
            row.unsqueeze(2),
            self.weight.unsqueeze(2),
            self.bias,
            stride=(1, self.strides),
            padding=self.kernel_padding,
            dilation=(1, self.dilation_rate),
            groups=self.groups,
            activation=fused,
        ).squeeze(2)
        y = y.transpose(1, 2) if self.channels_last else y
        # Keras' softmax runs along the last axis, whatever it holds.
        return y if fused else self.activation.apply(self.name, y, axis=-1, backend=self.backend)
