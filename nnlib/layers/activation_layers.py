"""Activations that are layers with arguments of their own: Softmax and ReLU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from typing_extensions import Unpack

from nnlib.activations import ActivationChoice
from nnlib.layers.core import Activation
from nnlib.layers.options import LayerOptions
from nnlib.layers.padding import checked_mask


class Softmax(Activation):
    """The softmax along an axis, or over several at once, keras.layers.Softmax.

    Input of any shape, floating point; output the same shape. axis: default the last. Along the last axis,
    layer(x, apply_softmax=False) is x. Call: layer(x, mask=None); mask: bool, or 1 and 0, of a shape that broadcasts to
    the input's: where it is False the output is 0, and the others sum to 1.
    """

    def __init__(self, axis: int | Sequence[int] = -1, **options: Unpack[LayerOptions]) -> None:
        super().__init__("softmax", **options)
        axes = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
        if not axes or any(isinstance(one, bool) or not isinstance(one, int) for one in axes):
            raise TypeError(f"axis: an integer or several are expected, got {axis!r}")
        self.axis = axis
        self._axes = axes
        self.ends_in_softmax = self.ends_in_softmax and axes == (-1,)

    def call(self, x: torch.Tensor, mask: torch.Tensor | None = None, *, apply_softmax: bool = True) -> torch.Tensor:
        if self.ends_in_softmax and not apply_softmax and mask is None:
            return x
        axes = tuple(one % x.dim() for one in self._axes if -x.dim() <= one < x.dim())
        if len(set(axes)) < len(self._axes):
            raise ValueError(f"{self.name}: axis must be one of the input's, got {self.axis} for {tuple(x.shape)}")
        hidden = None
        if mask is not None:
            hidden = ~self._checked_mask(mask, x)
            x = x.masked_fill(hidden, -torch.inf)
        if len(axes) == 1:
            y = self.activation.apply(self.name, x, axis=axes[0], backend=self.backend)
        else:
            places = tuple(range(-len(axes), 0))
            moved = x.movedim(axes, places)
            y = self.activation.apply(self.name, moved.flatten(-len(axes)), axis=-1, backend=self.backend)
            y = y.reshape(moved.shape).movedim(places, axes)
        return y if hidden is None else y.masked_fill(hidden, 0)

    def _checked_mask(self, mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        shape = tuple(mask.shape)
        pairs = zip(reversed(shape), reversed(x.shape))
        if len(shape) > x.dim() or any(size not in (1, full) for size, full in pairs):
            raise ValueError(f"{self.name}: mask must have a shape that broadcasts to {tuple(x.shape)}, got {shape}")
        return checked_mask(self.name, mask, shape)


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
