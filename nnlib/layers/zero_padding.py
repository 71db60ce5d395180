"""ZeroPadding2D."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from nnlib.layers.base import Shape
from nnlib.layers.images import ImageLayer

Sides = tuple[tuple[int, int], tuple[int, int]]


class ZeroPadding2D(ImageLayer):
    """Rows and columns of zeros around images, keras.layers.ZeroPadding2D.

    Input (N, H, W, C) (see data_format); output (N, H + top + bottom, W + left + right, C). padding: an integer for all
    sides, (vertical, horizontal), or ((top, bottom), (left, right)). Raises ValueError if it is none of them.
    """

    needs_floating_input = False

    def __init__(
        self, padding: int | Sequence[Any] = ((1, 1), (1, 1)), data_format: str | None = None, **options: Any
    ) -> None:
        super().__init__(data_format=data_format, **options)
        pairs = (padding, padding) if isinstance(padding, int) else tuple(padding)
        sides = [(one, one) if isinstance(one, int) else tuple(one) for one in pairs]
        if len(sides) != 2 or any(len(one) != 2 or min(one) < 0 for one in sides):
            forms = "an integer, (vertical, horizontal) or ((top, bottom), (left, right))"
            raise ValueError(f"padding: {forms} is expected, got {padding}")
        self.padding: Sides = (sides[0], sides[1])

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, size, channels = self.split_shape(input_shape)
        height, width = (None if extent is None else extent + sum(sides) for extent, sides in zip(size, self.padding))
        return self.join_shape(batch, (height, width), channels)

    def call(self, x: torch.Tensor) -> torch.Tensor:
        (top, bottom), (left, right) = self.padding
        sides = (left, right, top, bottom)
        return F.pad(x, (0, 0, *sides) if self.channels_last else sides)
