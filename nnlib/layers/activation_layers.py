"""Activations that are layers with arguments of their own: Softmax and ReLU."""

from __future__ import annotations

import torch
from typing_extensions import Unpack

from nnlib.activations import ActivationChoice
from nnlib.layers.core import Activation
from nnlib.layers.options import LayerOptions


class Softmax(Activation):
    """The softmax along an axis, keras.layers.Softmax.

    Input of any shape, floating point; output the same shape. axis: default the last. Along the last axis,
    layer(x, apply_softmax=False) is x.
    """

    def __init__(self, axis: int = -1, **options: Unpack[LayerOptions]) -> None:
        super().__init__("softmax", **options)
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise TypeError(f"axis: an integer is expected, got {axis!r}")
        self.axis = axis
        self.ends_in_softmax = self.ends_in_softmax and axis == -1

    def call(self, x: torch.Tensor, *, apply_softmax: bool = True) -> torch.Tensor:
        if self.ends_in_softmax and not apply_softmax:
            return x
        if not -x.dim() <= self.axis < x.dim():
            raise ValueError(f"{self.name}: axis must be one of the input's, got {self.axis} for {tuple(x.shape)}")
        return self.activation.apply(self.name, x, axis=self.axis, backend=self.backend)


class ReLU(Activation):
    """max(x, 0), keras.layers.ReLU.

    Input of any shape, floating point; output the same shape. max_value: what larger values are cut to (default None:
    they stay). threshold: larger values stay, the others become negative_slope * (x - threshold). None of the three may
    be below 0; ValueError otherwise.
    """

    def __init__(
        self,
        max_value: float | None = None,
        negative_slope: float = 0.0,
        threshold: float = 0.0,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__("relu", **options)
        for argument, value in (("max_value", max_value), ("negative_slope", negative_slope), ("threshold", threshold)):
            if (value is None and argument != "max_value") or (value is not None and not value >= 0):
                raise ValueError(f"{argument}: a number of at least 0 is expected, got {value}")
        self.max_value = max_value
        self.negative_slope = negative_slope
        self.threshold = threshold
        if max_value is not None or negative_slope or threshold:  # no kernel has these
            self.activation = ActivationChoice(self._cut)

    def _cut(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.where(x > self.threshold, x, self.negative_slope * (x - self.threshold))
        return y if self.max_value is None else y.clamp(max=self.max_value)
