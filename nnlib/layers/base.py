"""What every layer is: a torch.nn.Module that is built on first use, with a name, a backend and clear errors."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch

from nnlib import ops
from nnlib.configuration import Recorded
from nnlib.initializers import Initializer, initializer

# Sizes of a tensor, the batch first; None is a size that is not fixed, as in Keras.
Shape = tuple[int | None, ...]


class Layer(Recorded, torch.nn.Module):
    """The base of all layers.

    A subclass writes `call`, and where it has them `build` (its parameters), `compute_output_shape` and
    `expected_input`. Parameters are made by `build`, on first use or when `input_shape` is known.

    input_shape: sizes of one sample, without the batch; given, a Sequential builds the layer at once.
    device: where the parameters are made (default: torch's default device); `.to()` moves them later.
    backend: the kernels' backend for this layer (default None: the model's, or else kernels' own choice).
    name: unique within a model (default: the class' name in lower case, with a number where it is needed).
    """

    #: False for layers that also take integers.
    needs_floating_input = True
    #: True where `forward` takes apply_softmax=False, to give the logits under a final softmax.
    ends_in_softmax = False

    def __init__(
        self,
        *,
        input_shape: Sequence[int | None] | None = None,
        device: torch.device | str | None = None,
        backend: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        if name is not None and not re.fullmatch(r"\w+", name):
            raise ValueError(f"name: letters, digits and underscores are expected, got {name!r}")
        self.name = name or self.default_name()
        self.has_own_name = name is not None
        self.device = device
        self.backend = backend
        self.built = False
        self.given_input_shape: Shape | None = None if input_shape is None else (None, *input_shape)
        self.built_input_shape: Shape | None = None

    @classmethod
    def default_name(cls) -> str:
        """Keras' name of a layer: the class' in snake case (MaxPooling2D -> max_pooling2d)."""
        return re.sub(r"([a-z0-9])([A-Z][a-z])", r"\1_\2", cls.__name__).lower()

    def build(self, input_shape: Shape) -> None:
        """Makes the parameters for inputs of this shape, batch first. A layer without parameters has nothing to do."""

    def call(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output for x."""
        raise NotImplementedError(f"{type(self).__name__} must define call(x)")

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """The output's shape for inputs of this shape, batch first. By default the same."""
        return input_shape

    def expected_input(self) -> tuple[int | str, ...]:
        """The pattern that input shapes must fit: a number is fixed, a letter free, a leading "..." any axes."""
        return ("...",)

    def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        """Builds the layer on first use, checks x, and returns call(x, **options).

        Raises ValueError if x's shape does not fit the layer, TypeError if it must be floating point and is not.
        """
        self.build_once(tuple(x.shape))
        if self.needs_floating_input and not x.is_floating_point():
            raise TypeError(f"{self.name}: input must be floating point, got {x.dtype}; images: x / 255.0")
        return self.call(x, **options)

    def build_once(self, input_shape: Shape) -> None:
        """Builds the layer for inputs of this shape, batch first; a layer that is built stays as it is.

        Raises ValueError naming the layer if the shape does not fit.
        """
        self.check_input_shape(input_shape)
        if self.built:
            return
        self.compute_output_shape(input_shape)  # raises if a window does not fit
        self.build(input_shape)
        self.built_input_shape = (None, *input_shape[1:])
        self.built = True

    def add_weight(self, name: str, shape: Sequence[int], choice: str | Initializer, argument: str) -> None:
        """Registers a parameter `name` of torch's default dtype, filled by the initializer called `choice`."""
        fill = initializer(f"{self.name}: {argument}", choice)
        weight = torch.empty(tuple(shape), device=self.device)
        with torch.no_grad():
            fill(weight)
        self.register_parameter(name, torch.nn.Parameter(weight))

    def run(self, op: str, *arguments: Any, **options: Any) -> Any:
        """Calls kernels.<op> with this layer's backend."""
        return ops.call(self.name, op, *arguments, backend=self.backend, **options)

    def check_input_shape(self, shape: Shape) -> None:
        """Raises ValueError naming the layer, the shape that it expects and this one, if they do not fit."""
        pattern = self.expected_input()
        sizes: Sequence[int | None] = shape
        fixed: Sequence[int | str] = pattern
        if pattern[0] == "...":
            fixed = pattern[1:]
            sizes = shape[len(shape) - len(fixed) :] if len(shape) >= len(fixed) else shape
        fits = len(sizes) == len(fixed) and all(
            isinstance(want, str) or size == want for size, want in zip(sizes, fixed, strict=True)
        )
        if not fits:
            wanted = f"({', '.join(str(size) for size in pattern)}{',' if len(pattern) == 1 else ''})"
            raise ValueError(f"{self.name}: input must have shape {wanted}, got {tuple(shape)}")

    def count_parameters(self) -> int:
        """How many numbers the layer's parameters hold."""
        return sum(math.prod(parameter.shape) for parameter in self.parameters())

    def extra_repr(self) -> str:
        return f"name={self.name!r}" + (f", backend={self.backend!r}" if self.backend else "")
