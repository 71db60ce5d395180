"""Masking."""

from __future__ import annotations

from numbers import Real

import torch
from typing_extensions import Unpack

from nnlib.layers.base import Layer
from nnlib.layers.options import LayerOptions
from nnlib.layers.padding import lengths_of_mask


class Masking(Layer):
    """Tells which steps are padding: those whose features all are mask_value, keras.layers.Masking.

    Input (N, T, ...), floating point; output the same, with 0 in the padded steps, which tells the layers behind which
    steps are real, as with Embedding(mask_zero=True).
    """

    keeps_shape = True

    def __init__(self, mask_value: float = 0.0, **options: Unpack[LayerOptions]) -> None:
        super().__init__(**options)
        if isinstance(mask_value, bool) or not isinstance(mask_value, Real):
            raise TypeError(f"mask_value: a number is expected, got {mask_value!r}")
        self.mask_value: float = mask_value

    def expected_input(self) -> tuple[int | str, ...]:
        return ("...", "T", "features")

    def _is_real(self, x: torch.Tensor) -> torch.Tensor:
        return (x != self.mask_value).flatten(2).any(-1)

    def output_lengths(self, x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor | None:
        if x.dim() < 3:  # call says so
            return None
        return lengths_of_mask(self.name, self._is_real(x), "input of Masking")

    def call(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() < 3:
            raise ValueError(f"{self.name}: input must have shape (N, T, features), got {tuple(x.shape)}")
        real = self._is_real(x)
        return x.masked_fill(~real.reshape(*real.shape, *(1,) * (x.dim() - 2)), 0)
