"""TransformerModel (an encoder that classifies) and EncoderDecoder (one that writes a sequence)."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from nnlib import ops
from nnlib.activations import ActivationFunction
from nnlib.calling import in_mode
from nnlib.layers.base import Layer, Shape
from nnlib.layers.core import Dense, Dropout
from nnlib.layers.embedding import Embedding, PositionalEncoding
from nnlib.layers.normalization import LayerNormalization
from nnlib.layers.padding import lengths_of_mask
from nnlib.layers.pooling_1d import GlobalAveragePooling1D
from nnlib.layers.transformer import KeyValueCache, TransformerBlock
from nnlib.models.model import Model
from nnlib.names import look_up

#: position_encoding_type -> the `relative` of the attention; None where positions are added to the embeddings.
POSITIONS: dict[str, str | None] = {
    "sinusoidal": None,
    "relative": "shaw",
    "shaw": "shaw",
    "t5": "t5",
    "alibi": "alibi",
    "none": None,
}


class _Stack(torch.nn.Module):
    """Tokens in, features out: embedding, positions, blocks; the half of a Transformer. Its parts are attributes."""

    def __init__(
        self,
        num_layers: int,
        d_model: int,
        num_heads: int,
        dff: int,
        vocab_size: int,
        positions: str,
        max_length: int | None,
        rate: float,
        mask_zero: bool,
        block: dict[str, Any],
        *,
        device: torch.device | str | None,
        backend: str | None,
        name: str,
    ) -> None:
        super().__init__()
        self.name = name
        self.d_model = d_model
        self.mask_zero = mask_zero
        self.max_length = max_length
        self.embedding = Embedding(vocab_size, d_model, mask_zero=mask_zero, name=f"{name}embedding")
        self.position: PositionalEncoding | None = None
        if positions == "sinusoidal":
            self.position = PositionalEncoding(name=f"{name}position")
        self.dropout = Dropout(rate, name=f"{name}dropout")
        self.blocks = torch.nn.ModuleList(
            TransformerBlock(
                d_model, num_heads, dff, rate, relative=POSITIONS[positions], name=f"{name}block{number}", **block
            )
            for number in range(num_layers)
        )
        self.norm: LayerNormalization | None = None
        if block["norm_first"]:
            self.norm = LayerNormalization(epsilon=block["epsilon"], name=f"{name}norm")
        for module in self.modules():
            if isinstance(module, Layer):
                module.adopt(backend, device)
        self.embedding.build_once((None, None))
        for layer in (self.position, self.dropout, *self.blocks, self.norm):
            if layer is not None:
                assert isinstance(layer, Layer)
                layer.build_once((None, None, d_model))

    def lengths(self, tokens: torch.Tensor) -> torch.Tensor | None:
        """The lengths of the rows where token 0 is padding."""
        if not self.mask_zero:
            return None
        return lengths_of_mask(self.embedding.name, tokens != 0, "input of a model with mask_zero=True")

    def forward(
        self,
        tokens: torch.Tensor,
        memory: torch.Tensor | None = None,
        *,
        lengths: torch.Tensor | None = None,
        memory_lengths: torch.Tensor | None = None,
        caches: list[KeyValueCache] | None = None,
    ) -> torch.Tensor:
        """Features (N, T, d_model) of tokens (N, T)."""
        offset = 0 if caches is None else caches[0].length
        if self.max_length is not None and offset + tokens.shape[1] > self.max_length:
            raise ValueError(
                f"{self.embedding.name}: input must have at most maximum_position_encoding={self.max_length} tokens, "
                f"got {offset + tokens.shape[1]}"
            )
        x = self.embedding(tokens) * math.sqrt(self.d_model)
        if self.position is not None:
            x = self.position(x, offset=offset)
        x = self.dropout(x)
        for number, block in enumerate(self.blocks):
            cache = None if caches is None else caches[number]
            x = block(x, memory, lengths=lengths, memory_lengths=memory_lengths, cache=cache)
        return x if self.norm is None else self.norm(x)


def _check_sizes(**sizes: int | None) -> None:
    for argument, size in sizes.items():
        if size is not None and (not isinstance(size, int) or size < 1):
            raise ValueError(f"{argument}: a positive integer is expected, got {size}")


class _Transformer(Model):
    """What both models share: the classifier over a vocabulary behind their last features."""

    final: Dense
    maximum_position_encoding: int | None

    @property
    def ends_in_softmax(self) -> bool:
        return True

    def _read_out(self, features: torch.Tensor, apply_softmax: bool) -> torch.Tensor:
        return self.final(features, apply_softmax=apply_softmax)

    def _example_tokens(self) -> torch.Tensor:
        """Tokens (1, T) of the longest row, or of 50."""
        return torch.zeros(1, self.maximum_position_encoding or 50, dtype=torch.int64, device=self.device)

    def _check_tokens(self, argument: str, tokens: torch.Tensor) -> None:
        if not isinstance(tokens, torch.Tensor) or tokens.dim() != 2 or tokens.shape[1] == 0:
            got = tuple(tokens.shape) if isinstance(tokens, torch.Tensor) else type(tokens).__name__
            raise ValueError(f"{self.name}: {argument} must be tokens of shape (N, T), T at least 1, got {got}")


class TransformerModel(_Transformer):
    """A Transformer's encoder that classifies sequences (Vaswani et al., 2017): the mean of its last features over the
    tokens, then a softmax.

    Input (N, T), int64 or int32 tokens from 0 to input_vocab_size - 1; output (N, target_vocab_size), probabilities;
    with apply_softmax=False logits. Embeddings are multiplied by sqrt(d_model).

    num_layers: blocks. d_model: features. num_heads: heads of attention, a divisor of d_model. dff: features inside a
    block's dense network. input_vocab_size: tokens; target_vocab_size: classes.
    position_encoding_type: "sinusoidal" (added to the embeddings), "relative" or "shaw", "t5", "alibi" (terms of the
    distance in the scores, see MultiHeadAttention), or "none".
    maximum_position_encoding: the longest T (default None: any). rate: dropout, see TransformerBlock.
    activation, norm_first, epsilon: see TransformerBlock. mask_zero: token 0 is padding.
    device, backend, name: see Model.

    Raises ValueError if an argument is out of its range or input does not fit, IndexError for a token out of range.
    """

    def __init__(
        self,
        num_layers: int,
        d_model: int,
        num_heads: int,
        dff: int,
        input_vocab_size: int,
        target_vocab_size: int,
        position_encoding_type: str = "sinusoidal",
        maximum_position_encoding: int | None = None,
        rate: float = 0.1,
        *,
        activation: str | ActivationFunction | None = "relu",
        norm_first: bool = False,
        epsilon: float = 1e-6,
        mask_zero: bool = False,
        device: torch.device | str | None = None,
        backend: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(device=device, backend=backend, name=name)
        _check_sizes(num_layers=num_layers, input_vocab_size=input_vocab_size, target_vocab_size=target_vocab_size)
        _check_sizes(maximum_position_encoding=maximum_position_encoding)
        look_up("position_encoding_type", position_encoding_type, POSITIONS)
        self.target_vocab_size = target_vocab_size
        self.maximum_position_encoding = maximum_position_encoding
        self.encoder = _Stack(
            num_layers, d_model, num_heads, dff, input_vocab_size, position_encoding_type.lower(),
            maximum_position_encoding, rate, mask_zero,
            {"activation": activation, "norm_first": norm_first, "epsilon": epsilon},
            device=device, backend=backend, name="",
        )  # fmt: skip
        self.pooling = GlobalAveragePooling1D(name="pooling")
        self.final = Dense(target_vocab_size, activation="softmax", name="final")
        self.pooling.build_once((None, None, d_model))
        self.final.build_once((None, d_model))

    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        return (self._example_tokens(),)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 2:
            raise ValueError(f"{self.name}: input must have shape (N, T), got {tuple(input_shape)}")
        return (input_shape[0], self.target_vocab_size)

    def forward(self, x: torch.Tensor, *, apply_softmax: bool = True) -> torch.Tensor:
        """The probabilities, or with apply_softmax=False the logits, of each row of tokens."""
        self._check_tokens("input", x)
        lengths = self.encoder.lengths(x)
        features = self.encoder(x, lengths=lengths)
        return self._read_out(self.pooling(features, lengths=lengths), apply_softmax)


class EncoderDecoder(_Transformer):
    """The whole Transformer (Vaswani et al., 2017): an encoder, and a decoder that writes a sequence token by token.

    model(source, target): source (N, S) and target (N, T), int64 or int32 tokens; output (N, T, target_vocab_size),
    for each step the probabilities of the token that comes after target's first T ones (with apply_softmax=False
    logits). So target begins with a start token, and is trained on as the sequence without its last token against the
    sequence without its first. generate(source, ...) writes.

    Arguments: see TransformerModel; target_vocab_size is the decoder's vocabulary, and num_layers are blocks of each.
    The decoder's steps see what is before them alone; relative positions are in self-attention alone. mask_zero: token
    0 is padding in source and in target.

    Raises ValueError if an argument is out of its range or input does not fit, IndexError for a token out of range.
    """

    def __init__(
        self,
        num_layers: int,
        d_model: int,
        num_heads: int,
        dff: int,
        input_vocab_size: int,
        target_vocab_size: int,
        position_encoding_type: str = "sinusoidal",
        maximum_position_encoding: int | None = None,
        rate: float = 0.1,
        *,
        activation: str | ActivationFunction | None = "relu",
        norm_first: bool = False,
        epsilon: float = 1e-6,
        mask_zero: bool = False,
        device: torch.device | str | None = None,
        backend: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(device=device, backend=backend, name=name)
        _check_sizes(num_layers=num_layers, input_vocab_size=input_vocab_size, target_vocab_size=target_vocab_size)
        _check_sizes(maximum_position_encoding=maximum_position_encoding)
        look_up("position_encoding_type", position_encoding_type, POSITIONS)
        self.target_vocab_size = target_vocab_size
        self.maximum_position_encoding = maximum_position_encoding
        block = {"activation": activation, "norm_first": norm_first, "epsilon": epsilon}
        sizes = (num_layers, d_model, num_heads, dff)
        settings = (position_encoding_type.lower(), maximum_position_encoding, rate, mask_zero)
        place: dict[str, Any] = {"device": device, "backend": backend}
        self.encoder = _Stack(*sizes, input_vocab_size, *settings, block, name="encoder_", **place)
        self.decoder = _Stack(
            *sizes, target_vocab_size, *settings, {**block, "causal": True, "cross_attention": True},
            name="decoder_", **place,
        )  # fmt: skip
        self.final = Dense(target_vocab_size, activation="softmax", name="final")
        self.final.build_once((None, None, d_model))

    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        return self._example_tokens(), self._example_tokens()

    def forward(self, source: torch.Tensor, target: torch.Tensor, *, apply_softmax: bool = True) -> torch.Tensor:
        """The probabilities, or with apply_softmax=False the logits, of the token after each of target's."""
        self._check_tokens("source", source)
        self._check_tokens("target", target)
        if source.shape[0] != target.shape[0]:
            raise ValueError(f"{self.name}: source and target must have as many rows, got {len(source)}, {len(target)}")
        memory_lengths = self.encoder.lengths(source)
        memory = self.encoder(source, lengths=memory_lengths)
        features = self.decoder(target, memory, lengths=self.decoder.lengths(target), memory_lengths=memory_lengths)
        return self._read_out(features, apply_softmax)

    @torch.no_grad()
    def generate(
        self,
        source: np.ndarray[Any, Any] | torch.Tensor,
        start_token: int,
        max_length: int,
        end_token: int | None = None,
        *,
        temperature: float = 0.0,
        use_cache: bool = True,
    ) -> torch.Tensor:
        """Writes up to max_length tokens for each row of source, from start_token on; in evaluation mode.

        source: (N, S) tokens. end_token: a row ends with it (default None: none does), and is filled up with it; when
        all rows have ended, so does the writing. temperature: 0 takes the likeliest token each time, above 0 draws from
        softmax(logits / temperature) with torch's generator (see nnlib.set_seed). use_cache: False computes every step
        from the start, to compare with.

        Returns (N, L) int64, L at most max_length, without the start token. Raises ValueError for an argument out of
        its range.
        """
        tokens: torch.Tensor = self._with_tensors(source)
        self._check_tokens("source", tokens)
        _check_sizes(max_length=max_length)
        longest = self.maximum_position_encoding
        if longest is not None and max_length > longest:
            raise ValueError(f"max_length: at most maximum_position_encoding={longest} is expected, got {max_length}")
        for argument, token in (("start_token", start_token), ("end_token", end_token)):
            known = isinstance(token, Integral) and 0 <= token < self.target_vocab_size
            if not known and (token is not None or argument == "start_token"):
                raise ValueError(f"{argument}: a token below {self.target_vocab_size} is expected, got {token!r}")
        if not isinstance(temperature, Real) or not temperature >= 0:
            raise ValueError(f"temperature: a number of at least 0 is expected, got {temperature!r}")
        with in_mode(self, training=False):
            return self._write(tokens, start_token, max_length, end_token, temperature, use_cache)

    def _write(
        self,
        source: torch.Tensor,
        start_token: int,
        max_length: int,
        end_token: int | None,
        temperature: float,
        use_cache: bool,
    ) -> torch.Tensor:
        rows = source.shape[0]
        memory_lengths = self.encoder.lengths(source)
        memory = self.encoder(source, lengths=memory_lengths)
        caches = [KeyValueCache(rows, max_length) for _ in self.decoder.blocks] if use_cache else None
        written = torch.full((rows, 1), start_token, dtype=torch.int64, device=source.device)
        ended = torch.zeros(rows, dtype=torch.bool, device=source.device)
        for _ in range(max_length):
            given = written if caches is None else written[:, -1:]
            features = self.decoder(given, memory, memory_lengths=memory_lengths, caches=caches)
            logits = self._read_out(features[:, -1], apply_softmax=False)
            if temperature == 0:
                token = logits.argmax(-1)
            else:
                chances = ops.call(self.name, "softmax", logits / temperature, -1, backend=self.backend)
                token = torch.multinomial(chances, 1)[:, 0]
            if end_token is not None:
                token = token.masked_fill(ended, end_token)
                ended = ended | (token == end_token)
            written = torch.cat([written, token[:, None]], 1)
            if end_token is not None and bool(ended.all()):
                break
        return written[:, 1:]
