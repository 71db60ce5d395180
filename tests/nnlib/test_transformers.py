"""Embedding, positions, Transformer blocks and models: against Keras, torch's modules, and themselves step by step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import nnlib
from nnlib import layers, models, ops
from nnlib.convert.keras_weights import keras_weights
from tests.nnlib import transformer_twin
from tests.nnlib.keras_twin import assert_close, assert_like_keras, randomize

keras = pytest.importorskip("keras")

TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0], [0, 0, 0, 0, 0], [5, 8, 9, 7, 0]])
LENGTHS = torch.tensor([5, 3, 0, 4])
SMALL = {"num_layers": 2, "d_model": 12, "num_heads": 3, "dff": 20, "input_vocab_size": 10, "target_vocab_size": 4}


# ----- embedding and positions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_embedding_against_keras(dtype):
    ours, theirs = layers.Embedding(10, 7), keras.layers.Embedding(10, 7)
    assert_like_keras(ours, theirs, [TOKENS.to(dtype)])
    assert ours.compute_output_shape((None, 5)) == (None, 5, 7)


def test_embedding_weights_and_length():
    nnlib.set_seed(0)
    layer = layers.Embedding(1000, 8, input_length=5)
    model = models.Sequential([layer])
    assert model.built and model.input_shape == (None, 5)
    assert 0.0499 < layer.weight.abs().max() <= 0.05
    with pytest.raises(ValueError, match=r"^embedding: input must have shape \(N, 5\), got \(4, 3\)$"):
        model(TOKENS[:, :3])
    start = np.arange(20, dtype=np.float32).reshape(10, 2)
    for given in (start, [start], torch.from_numpy(start)):
        layer = layers.Embedding(10, 2, weights=given)
        assert torch.equal(layer(TOKENS), torch.from_numpy(start)[TOKENS])


@pytest.mark.parametrize("name", ["SimpleRNN", "LSTM", "GRU"])
def test_mask_zero_against_keras(name):
    def make(library):
        return [
            library.Embedding(10, 6, mask_zero=True),
            library.Dropout(0.5),
            library.Bidirectional(getattr(library, name)(4, return_sequences=True)),
            library.Dense(7, activation="relu"),
            getattr(library, name)(5),
            library.Dense(3),
        ]

    ours, theirs = models.Sequential(make(layers)), keras.Sequential(make(keras.layers))
    ours.eval()
    ours(TOKENS)
    theirs(TOKENS)
    randomize(ours)
    theirs.set_weights([array for layer in ours.layers for array in keras_weights(layer)])
    found, expected = ours(TOKENS), theirs(TOKENS, training=False)
    assert_close(found.detach().numpy(), expected.detach().numpy())
    cut = ours(TOKENS[1:2, :3])  # what the row is without its padding
    torch.testing.assert_close(found[1:2], cut)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("channels", [1, 6, 7])
def test_positional_encoding(channels, random_image):
    x = random_image(2, 9, channels)
    layer = layers.PositionalEncoding()
    expected = x.detach().clone()
    for position in range(9):
        for channel in range(channels):
            angle = position / 10000 ** (channel // 2 * 2 / channels)
            expected[:, position, channel] += math.cos(angle) if channel % 2 else math.sin(angle)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x[:, 4:6], offset=4), expected[:, 4:6])
    torch.testing.assert_close(layer(x.float()), expected.float())
    with pytest.raises(ValueError, match="^positional_encoding: input must have at most 8 positions, got 9$"):
        layers.PositionalEncoding(8)(x)


# ----- blocks --------------------------------------------------------------------------------------------------------


def from_torch_block(block, twin):
    """Copies a torch block's weights into ours."""
    names = {
        "attention": "self_attn", "norm1": "norm1", "dense1": "linear1", "dense2": "linear2",
        "cross_attention": "multihead_attn",
    }  # fmt: skip
    names |= {"cross_norm": "norm2", "norm2": "norm3"} if block.cross_attention is not None else {"norm2": "norm2"}
    randomize(twin)
    for ours, theirs in names.items():
        if getattr(block, ours, None) is not None:
            getattr(block, ours).load_state_dict(getattr(twin, theirs).state_dict())
    return block


def assert_same(found, expected, wanted, parameters, where=1.0):
    torch.testing.assert_close(found * where, expected * where)
    cotangent = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)) * where
    ours = torch.autograd.grad(found, [*wanted, *parameters[0]], cotangent)
    theirs = torch.autograd.grad(expected, [*wanted, *parameters[1]], cotangent)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("padded", [False, True])
def test_encoder_block_is_torchs(norm_first, activation, padded, random_image):
    twin = torch.nn.TransformerEncoderLayer(12, 3, 20, 0.0, activation, 1e-6, batch_first=True, norm_first=norm_first)
    block = layers.TransformerBlock(12, 3, 20, 0.0, activation, norm_first)
    x = random_image(4, 5, 12)
    block(x)
    from_torch_block(block, twin)
    assert block.count_parameters() == sum(parameter.numel() for parameter in twin.parameters())
    lengths = torch.tensor([5, 3, 1, 4]) if padded else None
    real = torch.ones(4, 5, dtype=torch.bool) if lengths is None else torch.arange(5) < lengths[:, None]
    found = block(x, lengths=lengths)
    expected = twin(x, src_key_padding_mask=~real)
    order = {"self_attn": 0, "norm1": 1, "linear1": 2, "linear2": 3, "norm2": 4}
    theirs = [p for _, p in sorted(twin.named_parameters(), key=lambda item: order[item[0].split(".")[0]])]
    ours = [
        p for part in ("attention", "norm1", "dense1", "dense2", "norm2") for p in getattr(block, part).parameters()
    ]
    assert_same(found, expected, [x], (ours, theirs), real[:, :, None].double())


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("norm_first", [False, True])
def test_decoder_block_is_torchs(norm_first, random_image):
    twin = torch.nn.TransformerDecoderLayer(12, 3, 20, 0.0, "relu", 1e-6, batch_first=True, norm_first=norm_first)
    block = layers.TransformerBlock(12, 3, 20, 0.0, norm_first=norm_first, causal=True, cross_attention=True)
    x, memory = random_image(2, 5, 12), random_image(2, 7, 12, seed=1)
    block(x, memory)
    from_torch_block(block, twin)
    ahead = torch.nn.Transformer.generate_square_subsequent_mask(5)
    expected = twin(x, memory, tgt_mask=ahead, tgt_is_causal=True)
    parts = (
        ("attention", "norm1", "cross_attention", "cross_norm", "dense1", "dense2", "norm2"),
        ("self_attn", "norm1", "multihead_attn", "norm2", "linear1", "linear2", "norm3"),
    )
    parameters = [
        [p for part in names for p in getattr(module, part).parameters()]
        for module, names in zip((block, twin), parts, strict=True)
    ]
    assert_same(block(x, memory), expected, [x, memory], parameters)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("relative", [None, "shaw", "t5", "alibi"])
def test_a_cached_block_gives_what_the_whole_sequence_gives(relative, random_image):
    block = layers.TransformerBlock(12, 3, 20, causal=True, cross_attention=True, relative=relative).eval()
    x, memory = random_image(2, 9, 12), random_image(2, 7, 12, seed=1)
    whole = block(x, memory)
    randomize(block)
    whole = block(x, memory)
    cache = layers.KeyValueCache(2, 9)
    with torch.no_grad():
        steps = [block(part, memory, cache=cache) for part in x.split((1, 3, 1, 1, 3), 1)]
    torch.testing.assert_close(torch.cat(steps, 1), whole)
    with pytest.raises(
        ValueError, match="^cache: there must be no more than 2 rows of at most 9 steps, got 2 rows of 10"
    ):
        block(x[:, :1], memory, cache=cache)


# ----- models --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("positions", ["sinusoidal", "relative", "none"])
def test_model_against_torch(norm_first, positions):
    model = models.TransformerModel(**SMALL, position_encoding_type=positions, rate=0.0, norm_first=norm_first)
    randomize(model)
    found = model(TOKENS, apply_softmax=False)
    expected = transformer_twin.logits(
        dict(model.named_parameters()), TOKENS, num_layers=2, num_heads=3, positions=positions, norm_first=norm_first
    )
    parameters = list(model.parameters())
    assert_same(found, expected, [], (parameters, parameters))
    torch.testing.assert_close(model(TOKENS), expected.softmax(-1))
    assert tuple(found.shape) == model.compute_output_shape((4, 5))


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("kind", ["sinusoidal", "relative", "shaw", "t5", "alibi", "none"])
def test_padding_does_not_count(kind):
    model = models.TransformerModel(**SMALL, position_encoding_type=kind, mask_zero=True).eval()
    randomize(model)
    found = model(TOKENS)
    for row, length in enumerate(LENGTHS):
        if length:
            torch.testing.assert_close(found[row : row + 1], model(TOKENS[row : row + 1, :length]))
    order = model(TOKENS[:1, [1, 0, 2, 3, 4]])
    assert torch.allclose(order, found[:1]) == (kind == "none")  # without positions a bag of tokens


def test_the_articles_call_runs():
    """With the article's arguments, four rows of 50 tokens."""
    model = models.TransformerModel(num_layers=2, d_model=512, num_heads=8, dff=2048,
        input_vocab_size=10000, target_vocab_size=10, position_encoding_type='relative')  # fmt: skip
    x = torch.randint(10000, (4, 50), generator=torch.Generator().manual_seed(0))
    y = model(x)
    assert y.shape == (4, 10)
    torch.testing.assert_close(y.sum(1), torch.ones(4))
    y.log().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_every_backend_and_device():
    model = models.TransformerModel(**SMALL, position_encoding_type="t5", backend="torch", device="cpu").eval()
    results = {}
    kinds = {"embedding", "linear", "attention", "layer_norm", "adaptive_avg_pool2d", "softmax"}
    for backend in ("torch", "numba", "reference"):
        if backend != "torch":
            model.to_backend(backend)
        with ops.recording() as uses:
            results[backend] = model(TOKENS)
        assert {use.backend for use in uses} == {backend}
        assert {use.op for use in uses} == kinds
    torch.testing.assert_close(results["numba"], results["reference"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(results["torch"], results["reference"], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("kind", ["sinusoidal", "relative", "t5", "alibi"])
@pytest.mark.parametrize("mask_zero", [False, True])
def test_generation_with_and_without_a_cache(kind, mask_zero):
    nnlib.set_seed(1)
    model = models.EncoderDecoder(**SMALL, position_encoding_type=kind, mask_zero=mask_zero)
    randomize(model)
    source = TOKENS[[0, 1, 3]]
    cached = model.generate(source, 1, 12)
    assert model.training and cached.shape == (3, 12)
    assert torch.equal(cached, model.generate(source, 1, 12, use_cache=False))
    nnlib.set_seed(5)
    drawn = model.generate(source, 1, 12, temperature=1.5)
    nnlib.set_seed(5)
    assert torch.equal(drawn, model.generate(source, 1, 12, temperature=1.5, use_cache=False))
    end = int(cached[0, 4])
    ended = model.generate(source, 1, 12, end_token=end)
    first = int((cached[0] == end).nonzero()[0])
    assert (ended[0, first:] == end).all() and torch.equal(ended[0, :first], cached[0, :first])


@pytest.mark.usefixtures("double_precision")
def test_the_decoder_does_not_look_ahead():
    model = models.EncoderDecoder(**SMALL).eval()
    target = torch.tensor([[1, 2, 3, 0, 2]])
    other = torch.tensor([[1, 2, 3, 1, 1]])
    first, second = model(TOKENS[:1], target), model(TOKENS[:1], other)
    torch.testing.assert_close(first[:, :3], second[:, :3])
    assert not torch.allclose(first[:, 3], second[:, 3])
    assert first.shape == (1, 5, 4)


def test_it_learns_to_reverse():
    """A sequence-to-sequence task that needs the memory, the order and the causal decoder."""
    nnlib.set_seed(0)
    model = models.EncoderDecoder(1, 32, 4, 64, 12, 12, rate=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        source = torch.randint(2, 12, (64, 5), generator=generator)
        target = torch.cat([torch.ones(64, 1, dtype=torch.int64), source.flip(1)], 1)
        logits = model(source, target[:, :-1], apply_softmax=False)
        loss = F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    source = torch.randint(2, 12, (32, 5), generator=generator)
    right = (model.generate(source, 1, 5) == source.flip(1)).double().mean()
    assert right > 0.9, f"{right:.2f} of the tokens are right"


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: layers.Embedding(0, 3), ValueError, "input_dim: a positive integer is expected, got 0"),
        (
            lambda: layers.Embedding(3, 2, weights=np.zeros((2, 2))),
            ValueError,
            r"weights: an array of shape \(3, 2\) is .*",
        ),
        (
            lambda: layers.Embedding(3, 2)(torch.zeros(2, 2)),
            TypeError,
            "embedding: input must be int64 or int32 tokens, got torch.float32",
        ),
        (lambda: layers.Embedding(3, 2)(torch.tensor([[0, 3]])), IndexError, ".*3.*"),
        (lambda: layers.TransformerBlock(12, 5, 8), ValueError, r"num_heads: a divisor of d_model \(12\) is .*, got 5"),
        (
            lambda: layers.TransformerBlock(12, 3, 8)(torch.zeros(2, 5, 11)),
            ValueError,
            r"transformer_block: input must have shape \(N, T, 12\), got \(2, 5, 11\)",
        ),
        (
            lambda: layers.TransformerBlock(12, 3, 8, cross_attention=True)(torch.zeros(2, 5, 12)),
            ValueError,
            r"transformer_block: memory must be \(N, S, 12\) for cross_attention, got None",
        ),
        (
            lambda: layers.TransformerBlock(12, 3, 8)(torch.zeros(2, 5, 12), cache=layers.KeyValueCache(2, 5)),
            ValueError,
            "transformer_block: a cache needs causal=True, got False",
        ),
        (
            lambda: models.TransformerModel(**SMALL, position_encoding_type="sinusoid"),
            ValueError,
            "position_encoding_type: known names are sinusoidal, relative, shaw, t5, alibi, none; got 'sinusoid' "
            r"\(did you mean 'sinusoidal'\?\)",
        ),
        (
            lambda: models.TransformerModel(**SMALL, maximum_position_encoding=4)(TOKENS),
            ValueError,
            "embedding: input must have at most maximum_position_encoding=4 tokens, got 5",
        ),
        (
            lambda: models.TransformerModel(**SMALL)(TOKENS[0]),
            ValueError,
            r"transformermodel: input must be tokens of shape \(N, T\), T at least 1, got \(5,\)",
        ),
        (
            lambda: models.TransformerModel(**{**SMALL, "num_layers": 0}),
            ValueError,
            "num_layers: a positive integer .*",
        ),
        (
            lambda: models.EncoderDecoder(**SMALL).generate(TOKENS, 4, 3),
            ValueError,
            "start_token: a token below 4 is expected, got 4",
        ),
        (
            lambda: models.EncoderDecoder(**SMALL)(TOKENS, TOKENS[:2]),
            ValueError,
            "encoderdecoder: source and target must have as many rows, got 4, 2",
        ),
    ],
)
def test_errors(make, kind, message):
    with pytest.raises(kind, match=f"^{message}$"):
        make()
