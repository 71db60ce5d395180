"""The article's three networks beside Keras 3 with converted weights: the forward pass and one training step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import kernels
import nnlib
from nnlib import models
from nnlib.convert.keras_weights import keras_weights
from nnlib.programs import build_cnn
from tests.nnlib.keras_twin import assert_close, randomize

keras = pytest.importorskip("keras")

LABELS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])


def build_rnn():
    layers = nnlib.layers
    return models.Sequential(
        [
            layers.Embedding(input_dim=10000, output_dim=64, input_length=50),
            layers.LSTM(64, return_sequences=True),
            layers.LSTM(32),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )


def tokens():
    return torch.randint(10000, (8, 50), generator=torch.Generator().manual_seed(0))


def images():
    (x, _), _ = nnlib.datasets.fashion_mnist(whole=False)
    return torch.from_numpy((x[:8, :, :, None] / 255).astype(np.float32))


def compare_step(ours, theirs, weights_of, x, stays=0):
    """Equal outputs, and after a step of SGD equal losses and weights.

    weights_of: of our model, in Keras' order. stays: how many of them have a gradient of 0.

    SGD, since its step is the gradient: Adam's first one is its sign, which rounding decides where a gradient is 0.
    """
    expected = theirs(x, training=False).detach().numpy()
    assert_close(ours.eval()(x).detach().numpy(), expected)
    before = theirs.get_weights()
    rate = 0.1
    ours.compile(optimizer=torch.optim.SGD(ours.parameters(), lr=rate), loss="sparse_categorical_crossentropy")
    theirs.compile(optimizer=keras.optimizers.SGD(rate), loss="sparse_categorical_crossentropy")
    loss = ours.train_on_batch(x, LABELS)[0]
    assert loss == pytest.approx(float(np.ravel(theirs.train_on_batch(x.numpy(), LABELS.numpy()))[0]), rel=1e-5)
    still = 0
    for found, expected, start in zip(weights_of(ours), theirs.get_weights(), before, strict=True):
        moved = np.abs(expected - start).max()
        unit = np.spacing(np.abs(start).max())
        still += moved < 4 * unit
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * moved + 2 * unit)
    assert still <= stays, "weights that stay where they are show nothing"


def of_layers(model):
    return [array for layer in model.layers for array in keras_weights(layer)]


@pytest.mark.parametrize(("make", "x"), [(build_cnn, images), (build_rnn, tokens)])
def test_sequential_programs(make, x):
    nnlib.set_seed(0)
    model = make()
    compare_step(model, nnlib.to_keras(model), of_layers, x())


class KerasTransformer(keras.Model):
    """TransformerModel with sinusoidal positions, of Keras' layers."""

    def __init__(self, num_layers, d_model, num_heads, dff, input_vocab_size, target_vocab_size):
        super().__init__()
        k = keras.layers
        self.d_model = d_model
        self.embedding = k.Embedding(input_vocab_size, d_model)
        self.blocks = [
            (
                k.MultiHeadAttention(num_heads, d_model // num_heads),
                k.LayerNormalization(epsilon=1e-6),
                k.Dense(dff, activation="relu"),
                k.Dense(d_model),
                k.LayerNormalization(epsilon=1e-6),
            )
            for _ in range(num_layers)
        ]
        self.pooling = k.GlobalAveragePooling1D()
        self.final = k.Dense(target_vocab_size, activation="softmax")

    def call(self, x, training=False):
        x = self.embedding(x) * self.d_model**0.5
        x = x + kernels.position_encoding(x.shape[1], self.d_model, like=x.detach())
        for attention, norm1, dense1, dense2, norm2 in self.blocks:
            x = norm1(x + attention(x, x))
            x = norm2(x + dense2(dense1(x)))
        return self.final(self.pooling(x))


def of_transformer(model):
    found = keras_weights(model.encoder.embedding)
    for block in model.encoder.blocks:
        for layer in (block.attention, block.norm1, block.dense1, block.dense2, block.norm2):
            found += keras_weights(layer)
    return found + keras_weights(model.final)


def test_transformer():
    sizes = (2, 64, 4, 128, 10000, 10)
    ours, theirs = models.TransformerModel(*sizes, rate=0.0), KerasTransformer(*sizes)
    theirs(tokens())
    randomize(ours)
    start = of_transformer(ours)
    by_shape = [array.shape for array in theirs.get_weights()]
    assert sorted(by_shape) == sorted(array.shape for array in start)
    order = keras_order(theirs)
    theirs.set_weights([start[position] for position in order])
    # The bias of a block's keys shifts all scores of a query alike.
    compare_step(ours, theirs, lambda model: [of_transformer(model)[position] for position in order], tokens(), 2)


def keras_order(theirs):
    """Where each of Keras' weights is in of_transformer's list: Keras lists them in the order it has built layers."""
    layers = [theirs.embedding, *(layer for block in theirs.blocks for layer in block), theirs.final]
    own = [weight for layer in layers for weight in layer.weights]
    return [next(i for i, weight in enumerate(own) if weight is one) for one in theirs.weights]
