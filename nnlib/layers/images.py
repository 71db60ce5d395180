"""What layers on images share: pairs, axis order, padding names and output sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nnlib.checks import positive_integer
from nnlib.layers.base import Layer, Shape
from nnlib.names import look_up

DATA_FORMATS = {"channels_last": "channels_last", "channels_first": "channels_first"}
# Keras' name -> kernels' name. Keras' "same" gives ceil(size / stride) and puts an odd row below and right.
PADDINGS = {"valid": "valid", "same": "same_upper"}


def pair(argument: str, value: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from one positive integer or two. Raises ValueError naming the argument otherwise."""
    given = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
    try:
        height, width = (positive_integer(argument, size) for size in given)
    except ValueError as error:
        raise ValueError(f"{argument}: a positive integer or a pair of them is expected, got {value!r}") from error
    return height, width


class ImageLayer(Layer):
    """A layer on batches of images.

    data_format: "channels_last" (default, x is (N, H, W, C)) or "channels_first" ((N, C, H, W)). Kernels take
    (N, C, H, W) with any strides, so that either order is a view and nothing is copied.
    """

    def __init__(self, *, data_format: str | None = None, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.data_format = look_up("data_format", data_format or "channels_last", DATA_FORMATS)

    @property
    def channels_last(self) -> bool:
        return self.data_format == "channels_last"

    def expected_input(self) -> tuple[int | str, ...]:
        return self.image_pattern("C")

    def image_pattern(self, channels: int | str) -> tuple[int | str, ...]:
        """The input pattern in this layer's axis order."""
        return ("N", "H", "W", channels) if self.channels_last else ("N", channels, "H", "W")

    def to_kernel_order(self, x: torch.Tensor) -> torch.Tensor:
        """x in this layer's axis order -> a view (N, C, H, W)."""
        return x.permute(0, 3, 1, 2) if self.channels_last else x

    def from_kernel_order(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> a view in this layer's axis order."""
        return x.permute(0, 2, 3, 1) if self.channels_last else x

    def split_shape(self, shape: Shape) -> tuple[int | None, tuple[int | None, int | None], int | None]:
        """(batch, (height, width), channels) of a shape in this layer's axis order."""
        batch, first, second, third = shape
        return (batch, (first, second), third) if self.channels_last else (batch, (second, third), first)

    def join_shape(self, batch: int | None, size: tuple[int | None, int | None], channels: int | None) -> Shape:
        """The reverse of split_shape."""
        return (batch, *size, channels) if self.channels_last else (batch, channels, *size)


def window_output_size(
    layer: Layer,
    size: tuple[int | None, int | None],
    window: tuple[int, int],
    stride: tuple[int, int],
    padding: str,
    dilation: tuple[int, int] = (1, 1),
) -> tuple[int | None, int | None]:
    """Output (height, width) of a window that slides over an image; a size that is not known stays None.

    padding: "valid" or "same". Raises ValueError naming the layer if the window does not fit.
    """
    result: list[int | None] = []
    for axis in range(2):
        extent = size[axis]
        if extent is None:
            result.append(None)
            continue
        if padding == "same":
            result.append(-(-extent // stride[axis]))
            continue
        reach = dilation[axis] * (window[axis] - 1) + 1
        if reach > extent:
            raise ValueError(
                f"{layer.name}: a window of {window} (dilation {dilation}, padding 'valid') must fit the image, "
                f"got (height, width) {size}"
            )
        result.append((extent - reach) // stride[axis] + 1)
    return result[0], result[1]
