"""Pooling over the steps of sequences: windows of one column of an image, and whole rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from typing_extensions import Unpack

from nnlib.layers.base import Shape
from nnlib.layers.options import LayerOptions
from nnlib.layers.padding import checked_mask, real_steps
from nnlib.layers.pooling import AveragePooling2D, MaxPooling2D
from nnlib.layers.steps import StepLayer, one


class _WindowPooling1D(StepLayer):
    """A window that slides over the steps.

    Input (N, T, C), or (N, C, T) with data_format "channels_first", floating point; output (N, T', C) or (N, C, T').
    pool_size: steps of the window; strides: default pool_size.
    padding: "valid" (none) or "same" (output ceil(T / strides)); padding never counts as a value.
    """

    on_images: ClassVar[type[MaxPooling2D] | type[AveragePooling2D]]

    def __init__(
        self,
        pool_size: int | Sequence[int] = 2,
        strides: int | Sequence[int] | None = None,
        padding: str = "valid",
        data_format: str | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(data_format, **options)
        self.pool_size = one("pool_size", pool_size)
        self.strides = self.pool_size if strides is None else one("strides", strides)
        self.window = self.on_images((self.pool_size, 1), (self.strides, 1), padding, data_format, name=self.name)
        self.padding = self.window.padding
        self.adopt(self.backend, self.device)

    def build(self, input_shape: Shape) -> None:
        self.window.name = self.name

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        column = 2 if self.channels_last else 3
        shape = self.window.compute_output_shape((*input_shape[:column], 1, *input_shape[column:]))
        return (*shape[:column], *shape[column + 1 :])

    def call(self, x: torch.Tensor) -> torch.Tensor:
        column = 2 if self.channels_last else 3
        return self.window(x.unsqueeze(column)).squeeze(column)


class MaxPooling1D(_WindowPooling1D):
    __doc__ = f"The largest value in each window, keras.layers.MaxPooling1D.\n\n{_WindowPooling1D.__doc__}"

    on_images = MaxPooling2D


class AveragePooling1D(_WindowPooling1D):
    __doc__ = f"The mean of each window, keras.layers.AveragePooling1D.\n\n{_WindowPooling1D.__doc__}"

    on_images = AveragePooling2D


class _GlobalPooling1D(StepLayer):
    """One number for each channel of a whole row.

    Input (N, T, C), or (N, C, T) with data_format "channels_first", floating point; output (N, C), or with
    keepdims=True the steps' axis with size 1.
    """

    #: The op in kernels.
    op: ClassVar[str]

    def __init__(self, data_format: str | None = None, keepdims: bool = False, **options: Unpack[LayerOptions]) -> None:
        super().__init__(data_format, **options)
        self.keepdims = keepdims

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, *axes = input_shape
        channels = axes[1] if self.channels_last else axes[0]
        if not self.keepdims:
            return (batch, channels)
        return (batch, 1, channels) if self.channels_last else (batch, channels, 1)

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        """x as a view (N, C, T)."""
        return x.transpose(1, 2) if self.channels_last else x

    def _laid_out(self, pooled: torch.Tensor) -> torch.Tensor:
        """(N, C) as the output."""
        return pooled if not self.keepdims else pooled[:, None] if self.channels_last else pooled[:, :, None]

    def call(self, x: torch.Tensor) -> torch.Tensor:
        return self._laid_out(self.run(self.op, self._rows(x)[..., None], 1).flatten(1))


class GlobalMaxPooling1D(_GlobalPooling1D):
    __doc__ = f"The largest value of each channel, keras.layers.GlobalMaxPooling1D.\n\n{_GlobalPooling1D.__doc__}"

    op = "adaptive_max_pool2d"


class GlobalAveragePooling1D(_GlobalPooling1D):
    __doc__ = f"""The mean of each channel, keras.layers.GlobalAveragePooling1D.

    {_GlobalPooling1D.__doc__.strip() if _GlobalPooling1D.__doc__ else ""}

    lengths (N,): only the first steps of a row count, or mask (N, T), bool or integers: those that are True; a row
    without any gives 0."""

    op = "adaptive_avg_pool2d"
    takes_lengths = True

    def call(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, *, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        rows = self._rows(x)
        if lengths is not None:
            if mask is not None:
                raise ValueError(f"{self.name}: lengths or mask must be given, got both")
            mask = real_steps(lengths, rows.shape[2])
        if mask is None:
            return super().call(x)
        mask = checked_mask(self.name, mask, (rows.shape[0], rows.shape[2]))
        sums = rows.masked_fill(~mask[:, None], 0).sum(2)
        return self._laid_out(sums / mask.sum(1).clamp(min=1)[:, None])
