"""Embedding and PositionalEncoding."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from typing_extensions import Unpack

import kernels
from nnlib.checks import positive_integer
from nnlib.initializers import InitializerChoice
from nnlib.layers.base import Layer, Shape
from nnlib.layers.options import EmbeddingOptions
from nnlib.layers.padding import lengths_of_mask
from nnlib.layers.rules import unchanged


class Embedding(Layer):
    """A vector for each of input_dim tokens, keras.layers.Embedding.

    Input (...), int64 or int32, from 0 to input_dim - 1; output (..., output_dim). The parameter: weight (input_dim,
    output_dim), as in torch.nn.Embedding.

    embeddings_initializer: see nnlib.initializers; embeddings_regularizer, embeddings_constraint: see Layer.
    mask_zero: token 0 is padding in rows (N, T); the output then tells the layers behind which steps are real.
    weights: an array (input_dim, output_dim), or a list of one, to start from (default None: embeddings_initializer).
    input_length: T, where it is fixed: the model is then built at once, and other lengths are refused.
    input_shape, device, backend, name: see Layer.

    Raises IndexError for a token out of range; TypeError for input that is not integer; ValueError if an argument is
    out of its range or an input does not fit.
    """

    needs_floating_input = False
    not_kept = (*Layer.not_kept, "weights")  # a saved model has them anyway
    regularized = constrained = ("embeddings",)
    shape_to_build = (None, None)

    weight: torch.Tensor

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        embeddings_initializer: InitializerChoice = "uniform",
        mask_zero: bool = False,
        weights: Any = None,
        input_length: int | None = None,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        if options.get("input_shape") is None and input_length is not None:
            options["input_shape"] = (input_length,)
        super().__init__(**options)
        self.input_dim = input_dim = positive_integer("input_dim", input_dim)
        self.output_dim = output_dim = positive_integer("output_dim", output_dim)
        if input_length is not None:
            input_length = positive_integer("input_length", input_length)
        self.embeddings_initializer = embeddings_initializer
        self.mask_zero = mask_zero
        self.input_length = input_length
        self._start: torch.Tensor | None = None
        if weights is not None:
            given = weights[0] if isinstance(weights, (list, tuple)) and len(weights) == 1 else weights
            self._start = torch.as_tensor(np.asarray(given) if isinstance(given, (list, tuple)) else given)
            if tuple(self._start.shape) != (input_dim, output_dim):
                shape = tuple(self._start.shape)
                raise ValueError(f"weights: an array of shape {(input_dim, output_dim)} is expected, got {shape}")

    def expected_input(self) -> tuple[int | str, ...]:
        return ("...", "N") if self.input_length is None else ("N", self.input_length)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape, self.output_dim)

    def output_lengths(self, x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor | None:
        if not self.mask_zero:
            return None
        return lengths_of_mask(self.name, x != 0, "input of a layer with mask_zero=True")

    def build(self, input_shape: Shape) -> None:
        choice = self.embeddings_initializer if self._start is None else self._copy_start
        self.add_parameter("weight", (self.input_dim, self.output_dim), choice, "embeddings_initializer", unchanged)

    def _copy_start(self, weight: torch.Tensor) -> None:
        assert self._start is not None
        weight.copy_(self._start)
        self._start = None

    def call(self, x: torch.Tensor) -> torch.Tensor:
        if x.is_floating_point() or x.dtype in (torch.bool, torch.uint8):
            raise TypeError(f"{self.name}: input must be int64 or int32 tokens, got {x.dtype}")
        return self.run("embedding", x, self.weight)


class PositionalEncoding(Layer):
    """Adds the sinusoidal position to each step (Vaswani et al., 2017): kernels.position_encoding.

    Input (N, T, D), floating point; output the same shape: to channel 2i of step p is added sin(p / base**(2i / D)), to
    channel 2i + 1 the cosine of the same angle. D may be odd. No parameters.

    max_length: the longest T (default None: any). base: of the wavelengths.
    Call: layer(x, offset=0); offset: the position of the first step.

    Raises ValueError if an argument is out of its range, or an input does not fit.
    """

    keeps_shape = True
    keeps_lengths = True

    def __init__(self, max_length: int | None = None, base: float = 10000.0, **options: Any) -> None:
        super().__init__(**options)
        if max_length is not None and (not isinstance(max_length, int) or max_length < 1):
            raise ValueError(f"max_length: a positive integer is expected, got {max_length}")
        if not 0 < base < float("inf"):
            raise ValueError(f"base: a positive number is expected, got {base}")
        self.max_length = max_length
        self.base = base
        self._table: torch.Tensor | None = None

    def expected_input(self) -> tuple[int | str, ...]:
        return ("N", "T", "D")

    def call(self, x: torch.Tensor, *, offset: int = 0) -> torch.Tensor:
        end = offset + x.shape[1]
        if self.max_length is not None and end > self.max_length:
            raise ValueError(f"{self.name}: input must have at most {self.max_length} positions, got {end}")
        table = self._table
        fits = table is not None and table.shape[0] >= end and table.shape[1] == x.shape[2]
        if table is None or not fits or table.dtype != x.dtype or table.device != x.device:
            # Twice the length, so that generation does not make it anew at each step.
            table = self._table = kernels.position_encoding(
                max(2 * end, 16), x.shape[2], base=self.base, like=x.detach()
            )
        return x + table[offset:end]
