"""Pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from typing_extensions import Unpack

from nnlib.layers.base import Shape
from nnlib.layers.images import PADDINGS, ImageLayer, pair, window_output_size
from nnlib.layers.options import LayerOptions
from nnlib.names import look_up


class _WindowPooling2D(ImageLayer):
    """A window that slides over each channel.

    Input (N, H, W, C) (see data_format), floating point; output (N, H', W', C).
    pool_size: an integer or a pair; strides: the same, default pool_size.
    padding: "valid" (none) or "same" (output ceil(size / stride)); padding never counts as a value.
    """

    def __init__(
        self,
        pool_size: int | Sequence[int] = (2, 2),
        strides: int | Sequence[int] | None = None,
        padding: str = "valid",
        data_format: str | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(data_format=data_format, **options)
        self.pool_size = pair("pool_size", pool_size)
        self.strides = self.pool_size if strides is None else pair("strides", strides)
        look_up("padding", padding, PADDINGS)
        self.padding = padding.lower()

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, size, channels = self.split_shape(input_shape)
        return self.join_shape(
            batch, window_output_size(self, size, self.pool_size, self.strides, self.padding), channels
        )

    def pool(self, x: torch.Tensor, *, padding: tuple[int, int] = (0, 0), ceil_mode: bool = False) -> torch.Tensor:
        """Pools x (N, C, H, W), padded by `padding` on both sides of each axis."""
        raise NotImplementedError

    def call(self, x: torch.Tensor) -> torch.Tensor:
        image = self.to_kernel_order(x)
        if self.padding == "valid":
            return self.from_kernel_order(self.pool(image))
        padding, drop = zip(
            *(same_padding(image.shape[2 + axis], self.pool_size[axis], self.strides[axis]) for axis in (0, 1)),
            strict=True,
        )
        # With ceil_mode the last window may reach past the padding below, where the odd row of "same" is.
        pooled = self.pool(image, padding=padding, ceil_mode=True)
        return self.from_kernel_order(pooled[:, :, drop[0] :, drop[1] :])


def same_padding(size: int, window: int, stride: int) -> tuple[int, int]:
    """(padding for both sides, leading outputs to drop) that give Keras' "same" with ceil_mode.

    "Same" needs `total` rows of padding, an odd one below. Kernels pad both sides alike. An even total is just that.
    With an odd one and a stride above 1, ceil_mode adds the window that reaches one row further down. At stride 1 it
    adds none, so pad one row more on both sides and drop the output that starts in the extra row above.
    """
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + window - size, 0)
    if total % 2 and stride == 1:
        return total // 2 + 1, 1
    return total // 2, 0


class MaxPooling2D(_WindowPooling2D):
    __doc__ = f"The largest value in each window, keras.layers.MaxPooling2D.\n\n{_WindowPooling2D.__doc__}"

    def pool(self, x: torch.Tensor, *, padding: tuple[int, int] = (0, 0), ceil_mode: bool = False) -> torch.Tensor:
        return self.run("max_pool2d", x, self.pool_size, stride=self.strides, padding=padding, ceil_mode=ceil_mode)


class AveragePooling2D(_WindowPooling2D):
    __doc__ = f"The mean of each window, keras.layers.AveragePooling2D.\n\n{_WindowPooling2D.__doc__}"

    def pool(self, x: torch.Tensor, *, padding: tuple[int, int] = (0, 0), ceil_mode: bool = False) -> torch.Tensor:
        return self.run(
            "avg_pool2d",
            x,
            self.pool_size,
            stride=self.strides,
            padding=padding,
            ceil_mode=ceil_mode,
            count_include_pad=False,
        )


class _GlobalPooling2D(ImageLayer):
    """One number for each channel of a whole image.

    Input (N, H, W, C) (see data_format), floating point; output (N, C), or with keepdims=True the image axes with
    size 1.
    """

    #: The op in kernels.
    op: str

    def __init__(
        self,
        data_format: str | None = None,
        keepdims: bool = False,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(data_format=data_format, **options)
        self.keepdims = keepdims

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, _, channels = self.split_shape(input_shape)
        return self.join_shape(batch, (1, 1), channels) if self.keepdims else (batch, channels)

    def call(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.run(self.op, self.to_kernel_order(x), 1)
        return self.from_kernel_order(pooled) if self.keepdims else pooled.flatten(1)


class GlobalAveragePooling2D(_GlobalPooling2D):
    __doc__ = f"The mean of each channel, keras.layers.GlobalAveragePooling2D.\n\n{_GlobalPooling2D.__doc__}"

    op = "adaptive_avg_pool2d"


class GlobalMaxPooling2D(_GlobalPooling2D):
    __doc__ = f"The largest value of each channel, keras.layers.GlobalMaxPooling2D.\n\n{_GlobalPooling2D.__doc__}"

    op = "adaptive_max_pool2d"
