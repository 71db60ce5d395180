"""Conv2DTranspose."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from typing_extensions import Unpack

from nnlib.activations import ActivationChoice, ActivationFunction
from nnlib.checks import positive_integer
from nnlib.initializers import InitializerChoice
from nnlib.layers.base import Shape
from nnlib.layers.images import PADDINGS, ImageLayer, pair
from nnlib.layers.options import KernelOptions
from nnlib.names import look_up


class Conv2DTranspose(ImageLayer):
    """The transpose of a 2D convolution: the map of its gradients, keras.layers.Conv2DTranspose.

    Input (N, H, W, C) (see data_format), floating point; output (N, H', W', filters), in both directions H' = H *
    stride for "same", and for "valid" (H - 1) * stride + max(reach, stride), a kernel reaching dilation * (size - 1) +
    1. The parameters are in torch's layout: weight (C, filters, kernel height, kernel width), bias (filters,).

    output_padding: None, or an integer or a pair less than the stride: rows and columns by which the output is larger
    than (H - 1) * stride + reach ("valid") or (H - 1) * stride + reach % 2 ("same").
    The others: see Conv2D. The activation runs on its own.

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
        output_padding: int | Sequence[int] | None = None,
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = (1, 1),
        activation: str | ActivationFunction | None = None,
        use_bias: bool = True,
        kernel_initializer: InitializerChoice = "glorot_uniform",
        bias_initializer: InitializerChoice = "zeros",
        **options: Unpack[KernelOptions],
    ) -> None:
        super().__init__(data_format=data_format, **options)
        self.filters = positive_integer("filters", filters)
        self.kernel_size = pair("kernel_size", kernel_size)
        self.strides = pair("strides", strides)
        look_up("padding", padding, PADDINGS)
        self.padding = padding.lower()
        self.dilation_rate = pair("dilation_rate", dilation_rate)
        self.output_padding: tuple[int, ...] | None = None
        if output_padding is not None:
            both = (output_padding,) * 2 if isinstance(output_padding, int) else tuple(output_padding)
            if len(both) != 2 or any(not 0 <= one < stride for one, stride in zip(both, self.strides)):
                raise ValueError(
                    f"output_padding: from 0 to less than the stride {self.strides} is expected, got {output_padding}"
                )
            self.output_padding = both
        self.activation = ActivationChoice(activation)
        self.use_bias = use_bias
        self.kernel_initializer = kernel_initializer
        self.bias_initializer = bias_initializer
        self.input_channels: int | None = None
        self._crops = [self._crop(axis) for axis in (0, 1)]

    def _crop(self, axis: int) -> tuple[int, int]:
        """(rows cut before, rows cut behind) of the whole transpose, (size - 1) * stride + reach; a negative number of
        rows is added as zeros. "Same" is centred, an odd row is cut behind, as TensorFlow does."""
        stride = self.strides[axis]
        reach = self.dilation_rate[axis] * (self.kernel_size[axis] - 1) + 1
        if self.padding == "valid":
            return 0, -max(stride - reach, 0) if self.output_padding is None else -self.output_padding[axis]
        total = reach - stride if self.output_padding is None else reach - reach % 2 - self.output_padding[axis]
        before = max(total // 2, 0)
        return before, total - before

    def expected_input(self) -> tuple[int | str, ...]:
        return self.image_pattern("C" if self.input_channels is None else self.input_channels)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, size, _ = self.split_shape(input_shape)
        height, width = (self._output_size(axis, extent) for axis, extent in enumerate(size))
        return self.join_shape(batch, (height, width), self.filters)

    def _output_size(self, axis: int, size: int | None) -> int | None:
        if size is None:
            return None
        whole = (size - 1) * self.strides[axis] + self.dilation_rate[axis] * (self.kernel_size[axis] - 1) + 1
        return whole - sum(self._crops[axis])

    def build(self, input_shape: Shape) -> None:
        channels = self.split_shape(input_shape)[2]
        if channels is None:
            raise ValueError(f"{self.name}: input channels must be known, got {input_shape}")
        self.add_parameter(
            "weight", (channels, self.filters, *self.kernel_size), self.kernel_initializer, "kernel_initializer"
        )
        if self.use_bias:
            self.add_parameter("bias", (self.filters,), self.bias_initializer, "bias_initializer")
        else:
            self.register_parameter("bias", None)
        self.input_channels = channels

    def call(self, x: torch.Tensor) -> torch.Tensor:
        # The kernel cuts the same on both sides and adds behind; what is left to cut is cut from a view.
        padding = [max(min(crop), 0) for crop in self._crops]
        added = [max(-behind, 0) for _, behind in self._crops]
        y = self.run(
            "conv_transpose2d",
            self.to_kernel_order(x),
            self.weight,
            self.bias,
            stride=self.strides,
            padding=tuple(padding),
            output_padding=tuple(added),
            dilation=self.dilation_rate,
        )
        cuts = []
        for axis, (before, behind) in enumerate(self._crops):
            end = y.shape[2 + axis] - max(behind - padding[axis], 0)
            cuts.append(slice(before - padding[axis], end))
        y = self.from_kernel_order(y[:, :, cuts[0], cuts[1]])
        return self.activation.apply(self.name, y, axis=-1, backend=self.backend)
