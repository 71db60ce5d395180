"""TransformerBlock, of encoders and decoders, and what a decoder keeps while it generates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from typing_extensions import Unpack

from nnlib.activations import ActivationFunction
from nnlib.layers.attention import Heads, MultiHeadAttention
from nnlib.layers.base import Layer, Shape
from nnlib.layers.core import Dense, Dropout
from nnlib.layers.normalization import LayerNormalization
from nnlib.layers.options import LayerOptions


class KeyValueCache:
    """The keys and values of a decoder block's past steps, and of its memory: what generation need not compute again.

    rows: N; steps: for how many steps there is room, at most.
    """

    def __init__(self, rows: int, steps: int) -> None:
        self.rows = rows
        self.steps = steps
        #: Steps that are kept.
        self.length = 0
        #: Keys and values of the memory, once the block has seen it.
        self.memory: Heads | None = None
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> Heads:
        """Adds the steps of keys (N, heads, T, size) and values, and returns all that are kept, as views.

        Raises ValueError where there is no more room, or for another number of rows.
        """
        end = self.length + keys.shape[2]
        if keys.shape[0] != self.rows or end > self.steps:
            room = f"{self.rows} rows of at most {self.steps} steps"
            raise ValueError(f"cache: there must be no more than {room}, got {keys.shape[0]} rows of {end} steps")
        if self._keys is None or self._values is None:
            self._keys = keys.new_empty(*keys.shape[:2], self.steps, keys.shape[3])
            self._values = values.new_empty(*values.shape[:2], self.steps, values.shape[3])
        self._keys[:, :, self.length : end] = keys
        self._values[:, :, self.length : end] = values
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]


class TransformerBlock(Layer):
    """A layer of a Transformer (Vaswani et al., 2017): self-attention and a dense network, each with a residual.

    Input (N, T, d_model), floating point; output the same shape. Post-norm computes norm(x + dropout(part(x))) for each
    part, as in the paper; pre-norm x + dropout(part(norm(x))) (Xiong et al., 2020), and wants a norm behind the last
    block. Its layers are attributes: attention, norm1, [cross_attention, cross_norm,] dense1, dense2, norm2.

    d_model: features. num_heads: divides d_model. dff: features inside the dense network. dropout: share that is zeroed
    of each part's output, and of the attention weights. activation: of the dense network's first layer.
    norm_first: pre-norm in place of post-norm. epsilon: of the norms.
    relative, max_distance: see MultiHeadAttention. causal: a step sees itself and what was before it.
    cross_attention: between the two parts is a third, attention to a memory: a decoder's block.
    input_shape, device, backend, name: see Layer.

    Call: layer(x, memory=None, lengths=None, memory_lengths=None, cache=None). memory (N, S, d_model): what
    cross_attention attends to; lengths, memory_lengths (N,): how many of the steps are real. cache: a KeyValueCache
    that holds the steps before x, which x's steps are added to; for a causal block.

    Raises ValueError if an argument is out of its range, or an input does not fit.
    """

    keeps_shape = True
    takes_lengths = True
    keeps_lengths = True

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        dff: int,
        dropout: float = 0.1,
        activation: str | ActivationFunction | None = "relu",
        norm_first: bool = False,
        epsilon: float = 1e-6,
        *,
        relative: str | None = None,
        max_distance: int | None = None,
        causal: bool = False,
        cross_attention: bool = False,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(**options)
        for argument, size in (("d_model", d_model), ("num_heads", num_heads), ("dff", dff)):
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{argument}: a positive integer is expected, got {size}")
        if d_model % num_heads:
            raise ValueError(f"num_heads: a divisor of d_model ({d_model}) is expected, got {num_heads}")
        self.d_model = d_model
        self.norm_first = norm_first
        self.causal = causal
        size = d_model // num_heads
        self.attention = MultiHeadAttention(
            num_heads, size, dropout=dropout, relative=relative, max_distance=max_distance,
            relative_bidirectional=not causal,
        )  # fmt: skip
        self.norm1 = LayerNormalization(epsilon=epsilon)
        self.cross_attention: MultiHeadAttention | None = None
        if cross_attention:
            self.cross_attention = MultiHeadAttention(num_heads, size, dropout=dropout)
            self.cross_norm = LayerNormalization(epsilon=epsilon)
        self.dense1 = Dense(dff, activation)
        self.dense2 = Dense(d_model)
        self.norm2 = LayerNormalization(epsilon=epsilon)
        self.dropout = Dropout(dropout)
        self.adopt(self.backend, self.device)

    def expected_input(self) -> tuple[int | str, ...]:
        return ("N", "T", self.d_model)

    def build(self, input_shape: Shape) -> None:
        shape: Shape = (None, None, self.d_model)
        for name, layer in self.named_children():
            assert isinstance(layer, Layer)
            layer.name = f"{self.name}_{name}"
            layer.build_once((None, None, self.dense1.units) if name == "dense2" else shape)

    def call(
        self,
        x: torch.Tensor,
        memory: torch.Tensor | None = None,
        *,
        lengths: torch.Tensor | None = None,
        memory_lengths: torch.Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> torch.Tensor:
        if memory is None and self.cross_attention is not None:
            raise ValueError(f"{self.name}: memory must be (N, S, {self.d_model}) for cross_attention, got None")
        if memory is not None and self.cross_attention is None:
            raise ValueError(f"{self.name}: memory must be None without cross_attention, got {tuple(memory.shape)}")
        if cache is not None and not self.causal:
            raise ValueError(f"{self.name}: a cache needs causal=True, got False")
        x = self._add(x, self.norm1, lambda y: self._attend(y, lengths, cache))
        if self.cross_attention is not None and memory is not None:
            attention, seen = self.cross_attention, memory
            x = self._add(x, self.cross_norm, lambda y: self._attend_to(attention, y, seen, memory_lengths, cache))
        return self._add(x, self.norm2, lambda y: self.dense2(self.dense1(y)))

    def _add(self, x: torch.Tensor, norm: Layer, part: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        if self.norm_first:
            return x + self.dropout(part(norm(x)))
        return norm(x + self.dropout(part(x)))

    def _attend(self, y: torch.Tensor, lengths: torch.Tensor | None, cache: KeyValueCache | None) -> torch.Tensor:
        if cache is None:
            return self.attention(y, use_causal_mask=self.causal, lengths=lengths)
        kept = cache.append(*self.attention.project(y))
        return self.attention(y, use_causal_mask=True, keys_values=kept)

    @staticmethod
    def _attend_to(
        attention: MultiHeadAttention,
        y: torch.Tensor,
        memory: torch.Tensor,
        lengths: torch.Tensor | None,
        cache: KeyValueCache | None,
    ) -> torch.Tensor:
        if cache is None:
            return attention(y, memory, lengths=lengths)
        if cache.memory is None:
            cache.memory = attention.project(memory)
        return attention(y, lengths=lengths, keys_values=cache.memory)
