"""What layers on the steps of sequences share: axis order, and sizes along the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typing_extensions import Unpack

from nnlib.checks import positive_integer
from nnlib.layers.base import Layer
from nnlib.layers.images import DATA_FORMATS
from nnlib.layers.options import LayerOptions
from nnlib.names import look_up


class StepLayer(Layer):
    """A layer on sequences. data_format: "channels_last" (default, x is (N, T, C)) or "channels_first" ((N, C, T))."""

    def __init__(self, data_format: str | None, **options: Unpack[LayerOptions]) -> None:
        super().__init__(**options)
        self.data_format = look_up("data_format", data_format or "channels_last", DATA_FORMATS)
        self.channels_last = self.data_format == "channels_last"

    def expected_input(self) -> tuple[int | str, ...]:
        return self.step_pattern("C")

    def step_pattern(self, channels: int | str) -> tuple[int | str, ...]:
        """The input pattern in this layer's axis order."""
        return ("N", "T", channels) if self.channels_last else ("N", channels, "T")


def one(argument: str, value: int | Sequence[int]) -> int:
    """A positive integer, given as such or as a tuple of it alone, as Keras takes it. Raises ValueError otherwise."""
    given: Any = value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value
    try:
        return positive_integer(argument, given)
    except ValueError as error:
        raise ValueError(f"{argument}: a positive integer is expected, got {value!r}") from error
