"""Input as the first entry of a Sequential."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nnlib
from nnlib import layers, models
from tests.nnlib.messages import message

keras = pytest.importorskip("keras")


def program(k, first):
    """Keras 3's own way to write the CNN."""
    return k.Sequential(
        [
            first(shape=(28, 28, 1)),
            k.layers.Conv2D(4, (3, 3), activation="relu"),
            k.layers.MaxPooling2D((2, 2)),
            k.layers.Flatten(),
            k.layers.Dropout(0.5),
            k.layers.Dense(10, activation="softmax"),
        ]
    )


class Ours:
    layers = layers
    Sequential = models.Sequential


@pytest.mark.parametrize("first", [nnlib.Input, layers.Input, layers.InputLayer])
def test_a_program_is_built_as_in_keras(first):
    ours, theirs = program(Ours, first), program(keras, keras.Input)
    assert ours.built and ours.input_shape == theirs.input_shape == (None, 28, 28, 1)
    assert [type(layer).__name__ for layer in ours.layers] == [type(layer).__name__ for layer in theirs.layers]
    assert sum(p.numel() for p in ours.parameters()) == theirs.count_params()
    assert list(ours.state_dict()) == ["conv2d.weight", "conv2d.bias", "dense.weight", "dense.bias"]
    x = np.random.default_rng(0).random((3, 28, 28, 1)).astype(np.float32)
    back = nnlib.to_keras(ours)
    torch.testing.assert_close(ours(x, training=False), back(x, training=False), rtol=0, atol=1e-6)


def test_add_and_the_first_layer(tmp_path):
    model = models.Sequential()
    model.add(nnlib.Input((4,), batch_size=2, name="features"))
    assert not model.built and model.layers == [] and model.input_shape == (None, 4)
    model.add(layers.Dense(3, input_shape=(9,)))  # as in Keras, the Input has the word
    assert model.layers[0].weight.shape == (3, 4)
    model.insert(0, layers.Dense(4))
    assert model.layers[0].built
    model.pop()
    x = np.ones((5, 4))
    model.compile("sgd", "mse")
    model.save(tmp_path / "model")
    read = nnlib.load(tmp_path / "model")
    assert read.get_config() == model.get_config()
    assert read.get_config()["layers"][0] == {
        "$class": "InputLayer",
        "config": {
            "shape": [4], "batch_size": 2, "dtype": None, "batch_shape": None, "input_shape": None, "name": "features",
        },
    }  # fmt: skip
    assert torch.equal(read(x), model(x))
    with message(ValueError, r"features: input must have shape \(N, 4\), got \(5, 3\)"):
        model(np.ones((5, 3)))
    model.pop()
    model.add(layers.Dense(2))
    assert model(x).shape == (5, 2)


def test_dtype_is_what_input_is_converted_to():
    tokens = np.array([[1.0, 2.0, 0.0]])
    model = models.Sequential([nnlib.Input((3,), dtype="int32"), layers.Embedding(5, 2)])
    assert torch.equal(model(tokens), model(tokens.astype(np.int64)))
    assert model.example_inputs()[0].dtype == torch.int64
    images = models.Sequential([nnlib.Input((2,), dtype=torch.float32), layers.Dense(2)])
    assert torch.equal(images(np.array([[1, 255]], np.uint8)), images(np.array([[1.0, 255.0]])))
    assert images.double()(np.array([[1.0, 2.0]])).dtype == torch.float64
    with message(TypeError, "dense: input must be floating point, got torch.uint8"):
        models.Sequential([nnlib.Input((2,)), layers.Dense(2)])(np.array([[1, 255]], np.uint8))
    ours = models.Sequential(
        [nnlib.Input((3,), dtype="int32"), layers.Embedding(5, 2), layers.LSTM(2), layers.Dense(1)]
    )
    ours.compile("sgd", "mse")
    ours.fit(tokens, np.ones((1, 1)), verbose=0)
    ours.summary(print_fn=lambda text: None)


def test_batch_shape():
    assert nnlib.Input(batch_shape=(8, None, 3)).shape == (None, None, 3)
    assert nnlib.Input(batch_shape=(8, None, 3)).batch_size == 8
    assert nnlib.Input(batch_shape=[None, 3]).batch_size is None
    assert layers.InputLayer(input_shape=(3,)).shape == (None, 3)


@pytest.mark.parametrize(
    "call, kind, text",
    [
        (lambda: nnlib.Input(), ValueError, "shape: one of shape and batch_shape is expected, got 0 of them"),
        (lambda: nnlib.Input((3,), batch_shape=(1, 3)), ValueError, "shape: one of shape and batch_shape is expected"),
        (lambda: nnlib.Input(3), TypeError, "shape: a tuple of positive integers or None is expected, got 3"),
        (
            lambda: nnlib.Input((3, 0)),
            TypeError,
            r"shape: a tuple of positive integers or None is expected, got \(3, 0\)",
        ),
        (lambda: nnlib.Input((3,), 0), ValueError, "batch_size: a positive integer or None is expected, got 0"),
        (lambda: nnlib.Input(batch_shape=()), ValueError, r"batch_shape: \(batch, ...\) alone is expected, got \(\)"),
        (lambda: nnlib.Input((3,), 2, "string"), ValueError, "dtype: known names are float16, .*, bool; got 'string'"),
        (
            lambda: nnlib.Input((3,), dtype="float64"),
            ValueError,
            r"dtype: layers are made in torch.float32, and half precision is compile\(mixed_precision=...\); got",
        ),
        (
            lambda: models.Sequential([layers.Dense(2), nnlib.Input((3,))]),
            ValueError,
            "layer: an Input must be the first of a model, got it behind dense",
        ),
        (
            lambda: models.Sequential([nnlib.Input((3,)), nnlib.Input((3,))]),
            ValueError,
            "layer: an Input must be the first of a model, got it behind another",
        ),
        (
            lambda: layers.Dense(2)(nnlib.Input((3,))),
            TypeError,
            "dense: input must be a tensor or a NumPy array, got InputLayer; models here are Sequential or subclasses",
        ),
        (
            lambda: models.Sequential([nnlib.Input((5, 5)), layers.Conv2D(2, 3)]),
            ValueError,
            r"conv2d: input must have shape \(N, H, W, C\), got \(None, 5, 5\)",
        ),
    ],
)
def test_errors(call, kind, text):
    with message(kind, text):
        call()
