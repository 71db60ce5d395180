"""InputLayer and Input: what goes into a Sequential, as its first entry."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nnlib.layers.base import Layer, Shape
from nnlib.names import look_up

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float16, torch.bfloat16, torch.float32, torch.float64,
        torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool,
    )
}  # fmt: skip


class InputLayer(Layer):
    """The shape and type of a Sequential's input, keras.layers.InputLayer: add it first, and each layer behind is built
    when it is added. It is none of model.layers, and has no parameters.

    shape: sizes of one sample, without the batch; None where a size is free. batch_size: accepted and, as in Keras,
    not held against the data. dtype: what input is converted to, such as "int32" (default None: not at all; all that a
    floating-point one does is to convert integers). batch_shape: (batch_size, *shape) in place of the two.

    Raises TypeError or ValueError if shape is none, or a floating-point dtype is not that of the layers.
    """

    keeps_shape = True
    needs_floating_input = False
    keeps_lengths = True
    #: Said where somebody takes it for a value.
    no_value = "; models here are Sequential or subclasses of Model, not Keras' functional form"

    def __init__(
        self,
        shape: Sequence[int | None] | None = None,
        batch_size: int | None = None,
        dtype: str | torch.dtype | None = None,
        *,
        batch_shape: Sequence[int | None] | None = None,
        input_shape: Sequence[int | None] | None = None,
        name: str | None = None,
    ) -> None:
        given = [one for one in (shape, batch_shape, input_shape) if one is not None]
        if len(given) != 1:
            raise ValueError(f"shape: one of shape and batch_shape is expected, got {len(given)} of them")
        sizes = given[0]
        if not isinstance(sizes, (list, tuple)) or any(size is not None and not _is_size(size) for size in sizes):
            raise TypeError(f"shape: a tuple of positive integers or None is expected, got {sizes!r}")
        if batch_shape is not None:
            if batch_size is not None or not sizes:
                raise ValueError(f"batch_shape: (batch, ...) alone is expected, got {batch_shape} and {batch_size=}")
            batch_size, *sizes = sizes
        if batch_size is not None and not _is_size(batch_size):
            raise ValueError(f"batch_size: a positive integer or None is expected, got {batch_size!r}")
        super().__init__(input_shape=sizes, name=name)
        self.batch_size = batch_size
        self.dtype: torch.dtype | None = None
        if dtype is not None:
            self.dtype = look_up("dtype", str(dtype).removeprefix("torch."), _DTYPES)
            if self.dtype.is_floating_point and self.dtype != torch.get_default_dtype():
                raise ValueError(
                    f"dtype: layers are made in {torch.get_default_dtype()}, and half precision is "
                    f"compile(mixed_precision=...); got {dtype}"
                )

    @property
    def shape(self) -> Shape:
        """The shape of inputs, batch first."""
        assert self.given_input_shape is not None
        return self.given_input_shape

    def expected_input(self) -> tuple[int | str, ...]:
        return ("N", *("any" if size is None else size for size in self.shape[1:]))

    def call(self, x: torch.Tensor) -> torch.Tensor:
        if self.dtype is None or (self.dtype.is_floating_point and x.is_floating_point()):
            return x
        return x.to(self.dtype)


def Input(
    shape: Sequence[int | None] | None = None,
    batch_size: int | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    batch_shape: Sequence[int | None] | None = None,
    name: str | None = None,
) -> InputLayer:
    """An InputLayer, which says what the arguments are; keras.Input for a Sequential."""
    return InputLayer(shape, batch_size, dtype, batch_shape=batch_shape, name=name)


def _is_size(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size > 0
