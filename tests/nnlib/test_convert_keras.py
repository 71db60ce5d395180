"""Models and weights from and to Keras 3."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import nnlib
from nnlib import layers
from tests.nnlib.converted import ROWS, TOKENS, noise
from tests.nnlib.keras_twin import assert_close

keras = pytest.importorskip("keras")


def keras_image_model():
    k = keras.layers
    return keras.Sequential(
        [
            keras.Input((9, 8, 4)),
            k.ZeroPadding2D(((0, 1), (2, 0))),
            k.Conv2D(6, 3, 2, "same", activation="relu", groups=2),
            k.BatchNormalization(momentum=0.9),
            k.DepthwiseConv2D(2, depth_multiplier=2, activation="softmax"),
            k.MaxPooling2D(2, 1, "same"),
            k.Dropout(0.2),
            k.SeparableConv2D(5, 2, activation="silu"),
            k.Conv2DTranspose(3, 3, 2, "same"),
            k.ReLU(),
            k.AveragePooling2D(2),
            k.Flatten(),
            k.Dense(7),
            k.Softmax(),
        ]
    )


def keras_text_model():
    k = keras.layers
    return keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            k.Embedding(10, 6, mask_zero=True),
            k.LSTM(4, return_sequences=True, dropout=0.1),
            k.Bidirectional(k.GRU(3, return_sequences=True, reset_after=False), merge_mode="sum"),
            k.LayerNormalization(),
            k.SimpleRNN(4, activation="relu"),
            k.Dense(3),
            k.RMSNormalization(),
            k.Reshape((3, 1)),
            k.Activation("tanh"),
        ]
    )


@pytest.mark.parametrize(("make", "shape"), [(keras_image_model, (2, 9, 8, 4)), (keras_text_model, TOKENS)])
def test_keras_models_both_ways(make, shape):
    keras.utils.set_random_seed(0)
    theirs = make()
    generator = np.random.default_rng(0)
    theirs.set_weights(
        [generator.uniform(0.2, 1, w.shape).astype(w.dtype) - 0.3 * (w.ndim > 1) for w in theirs.get_weights()]
    )
    x = noise(shape)
    expected = theirs(x, training=False).detach().numpy()
    ours = nnlib.from_keras(theirs).eval()
    assert [layer.name for layer in ours.layers] == [layer.name for layer in theirs.layers]
    assert_close(ours(x).detach().numpy(), expected)
    back = nnlib.to_keras(ours)
    for one, other in zip(back.get_weights(), theirs.get_weights(), strict=True):
        assert np.array_equal(one, other)
    assert_close(back(x, training=False).detach().numpy(), expected)


def test_keras_attention_both_ways():
    theirs = keras.layers.MultiHeadAttention(2, 3, 5, output_shape=7, dropout=0.1)
    query, value, key = noise(ROWS), noise((2, 4, 5)), noise((2, 4, 8))
    theirs(query, value, key)
    ours = nnlib.from_keras(theirs).eval()
    assert ours.dropout == 0.1
    expected = theirs(query, value, key).detach().numpy()
    assert_close(ours(query, value, key).detach().numpy(), expected)
    assert_close(nnlib.to_keras(ours)(query, value, key).detach().numpy(), expected)


def test_one_training_step_is_keras():
    """SGD on the same loss: the weights after a step, in Keras and here."""
    theirs = keras_image_model()
    ours = nnlib.from_keras(theirs)
    x, target = noise((6, 9, 8, 4)), torch.tensor([1, 4, 0, 6, 2, 2])
    rate = 0.5
    for layer in (*ours.layers, *theirs.layers):
        if isinstance(layer, (layers.Dropout, keras.layers.Dropout)):
            layer.rate = 0.0
    loss = -ours.train()(x).gather(1, target[:, None]).log().mean()
    loss.backward()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter -= rate * parameter.grad
    theirs.compile(optimizer=keras.optimizers.SGD(rate), loss="sparse_categorical_crossentropy")
    other = theirs.train_on_batch(x.numpy(), target.numpy())
    assert float(np.ravel(other)[0]) == pytest.approx(loss.item(), rel=1e-5)
    found = nnlib.to_keras(ours).get_weights()
    for one, other in zip(found, theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-6)


def test_a_layer_without_weights_converts_alone():
    x = noise((2, 6, 5, 4))
    for theirs in (keras.layers.MaxPooling2D(2, 1, "same"), keras.layers.ReLU(6.0), keras.layers.Reshape((4, -1))):
        expected = theirs(x)
        assert_close(nnlib.from_keras(theirs)(x).numpy(), expected.numpy())


@pytest.mark.parametrize(
    ("convert", "kind", "message"),
    [
        (
            lambda: nnlib.from_keras(keras.layers.Conv3D(2, 3)),
            TypeError,
            r"conv3d\w*: layers that convert are Activation, .*; got a Conv3D",
        ),
        (
            lambda: nnlib.from_keras(keras.layers.Dense(2, kernel_regularizer=torch.sum)),
            ValueError,
            r"dense\w*: kernel_regularizer does not convert, got .*",
        ),
        (
            lambda: nnlib.from_keras(keras.layers.Dense(2)),
            ValueError,
            r"dense\w*: the layer must be built to have weights, got one that is not",
        ),
        (
            lambda: nnlib.from_keras(keras.layers.LSTM(2, activation="glu")),
            ValueError,
            r"lstm\w*: activation: known names are linear, .*; got 'glu' \(did you mean 'gelu'\?\)",
        ),
        (
            lambda: nnlib.from_keras(keras.layers.GRU(2, recurrent_activation="sparsemax")),
            ValueError,
            r"gru\w*: recurrent_activation: known names are linear, .*; got 'sparsemax' \(did you mean .*\)",
        ),
        (
            lambda: nnlib.from_keras("model"),
            TypeError,
            "model: a keras.Sequential or a layer of Keras is expected, got a str",
        ),
        (
            lambda: nnlib.to_keras(layers.TransformerBlock(4, 2, 3)),
            TypeError,
            "transformer_block: layers that convert are .*; got a TransformerBlock",
        ),
        (
            lambda: nnlib.to_keras(layers.Dense(3)),
            ValueError,
            "dense: the layer must be built to have weights, got one that is not",
        ),
    ],
)
def test_keras_errors(convert, kind, message):
    with pytest.raises(kind, match=f"^{message}$"):
        convert()


def test_without_keras():
    program = "import sys; sys.modules['keras'] = None\nimport nnlib\nnnlib.to_keras(nnlib.layers.Dense(2))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    message = "ImportError: Keras is needed for this: pip install nnlib-kernels[keras]"
    assert result.stderr.splitlines()[-1] == message
