"""What a Keras user types without thinking: weights as arrays, names, data, layers of one's own. Held to Keras."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nnlib
from nnlib import layers, losses, metrics, models, utils
from tests.nnlib.keras_twin import assert_close, randomize
from tests.nnlib.messages import message

keras = pytest.importorskip("keras")

X = np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, 12)


def classifier():
    model = nnlib.Sequential([nnlib.Input((8,)), layers.Dense(6, "relu"), layers.Dense(3, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


# ----- weights -------------------------------------------------------------------------------------------------------


def test_weights_of_a_model_are_keras():
    model = models.Sequential(
        [
            layers.Conv2D(3, 2, input_shape=(6, 6, 2)),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(4),
        ]
    )
    randomize(model)
    theirs = nnlib.to_keras(model)
    for found, expected in zip(model.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert model.count_params() == theirs.count_params()
    assert model.layers[1].count_params() == 12 and layers.Dense(3).count_params() == 0
    for name in ("weights", "variables", "trainable_variables", "non_trainable_variables"):
        mine, right = getattr(model, name), getattr(theirs, name)
        assert sorted(w.numel() for w in mine) == sorted(int(np.prod(w.shape)) for w in right)
    doubled = [2 * array for array in model.get_weights()]
    model.set_weights(doubled)
    theirs.set_weights(doubled)
    x = np.random.default_rng(2).standard_normal((2, 6, 6, 2)).astype(np.float32)
    assert_close(model(x, training=False).detach().numpy(), theirs(x, training=False).detach().numpy())
    with message(ValueError, "sequential: set_weights needs 8 arrays, got 7"):
        model.set_weights(doubled[1:])
    with message(ValueError, r"sequential: weight 1 must have shape \(3,\), got \(2,\)"):
        model.set_weights([doubled[0], doubled[1][:2], *doubled[2:]])
    assert layers.Dense(3).get_weights() == []


def test_weights_of_what_keras_does_not_have():
    class Mixed(models.Model):
        def __init__(self):
            super().__init__()
            self.first = layers.Dense(4, input_shape=(8,))
            self.first.build((None, 8))
            self.second = torch.nn.Linear(4, 2)

        def call(self, x):
            return self.second(self.first(x))

    model = Mixed()
    assert [array.shape for array in model.get_weights()] == [(8, 4), (4,), (2, 4), (2,)]
    other = Mixed()
    other.set_weights(model.get_weights())
    assert torch.equal(model(torch.from_numpy(X)), other(torch.from_numpy(X)))
    block = layers.TransformerBlock(4, 2, 8, input_shape=(5, 4))
    block.build_once((None, 5, 4))
    assert sum(array.size for array in block.get_weights()) == block.count_params()


# ----- models --------------------------------------------------------------------------------------------------------


def test_what_a_model_remembers(tmp_path):
    model = classifier()
    assert model.metrics_names == ["loss", "accuracy"] and model.history is None
    assert model.optimizer.learning_rate == 0.001
    model.optimizer.learning_rate = 0.01
    history = model.fit(X, Y, verbose=0)
    assert model.history is history and set(history.history) == {"loss", "accuracy"}
    assert model.optimizer.learning_rate == 0.01
    model.save(tmp_path / "model.safetensors")
    assert torch.equal(models.load_model(tmp_path / "model.safetensors")(X), model(X))
    unbuilt = models.Sequential([layers.Dense(2)])
    with message(RuntimeError, r"metrics_names: the model must be compiled first: model.compile\("):
        unbuilt.metrics_names  # noqa: B018
    unbuilt.compile("sgd", "mse")
    assert unbuilt.optimizer is None


def test_other_names_of_layers():
    for name in ("AvgPool2D", "MaxPool2D", "GlobalAvgPool2D", "GlobalMaxPool2D", "MaxPool1D", "AvgPool1D"):
        assert getattr(layers, name).__name__ == getattr(keras.layers, name).__name__
    for name in ("GlobalAvgPool1D", "GlobalMaxPool1D", "Convolution2D", "SeparableConvolution2D"):
        assert getattr(layers, name).__name__ == getattr(keras.layers, name).__name__


def test_options_of_keras_2_and_dtype():
    model = models.Sequential([layers.Dense(4, input_dim=8, dtype="float32"), layers.Dense(2, dtype=torch.float32)])
    assert model.built and model.input_shape == (None, 8)
    with message(ValueError, r"dtype: torch.float32 is expected, torch's default .*, got 'float64'"):
        layers.Dense(4, dtype="float64")
    with message(ValueError, "input_dim: input_shape or input_dim is expected, got both, 8"):
        layers.Dense(4, input_dim=8, input_shape=(8,))


def test_keras_ways_to_run_change_nothing():
    losses_of = []
    for options in ({}, {"run_eagerly": True, "steps_per_execution": 4, "jit_compile": True}):
        nnlib.set_seed(0)
        model = classifier()
        model.compile("sgd", "sparse_categorical_crossentropy", **options)
        losses_of.append(model.fit(X, Y, batch_size=4, verbose=0).history["loss"])
    assert losses_of[0] == losses_of[1]


def test_class_names_as_strings():
    model = classifier()
    model.compile("RMSprop", "SparseCategoricalCrossentropy", metrics=["SparseCategoricalAccuracy", "acc"])
    assert set(model.fit(X, Y, verbose=0).history) == {"loss", "sparse_categorical_accuracy", "acc"}
    model.compile("sgd", "MeanSquaredError", metrics=["MeanAbsoluteError", "mae"])
    assert set(model.fit(X, np.eye(3)[Y], verbose=0).history) == {"loss", "mean_absolute_error", "mae"}


def test_labels_may_be_whole_floats():
    model = classifier()
    expected = model.evaluate(X, Y, verbose=0)
    assert model.evaluate(X, Y.astype(np.float64), verbose=0) == expected
    with message(ValueError, "y: sparse_categorical_crossentropy expects whole numbers as labels, got torch.float64"):
        model.evaluate(X, Y + 0.5, verbose=0)
    with message(ValueError, r"y: .* expects labels of shape \(N,\), got \(12, 3\); rows of probabilities go with "):
        model.evaluate(X, np.eye(3)[Y], verbose=0)


def test_metrics_take_arrays():
    probabilities = np.random.default_rng(3).dirichlet([1, 1, 1], 12)
    for name, truth in (
        ("SparseCategoricalAccuracy", Y),
        ("CategoricalAccuracy", np.eye(3)[Y]),
        ("Precision", np.eye(3)[Y]),
        ("RootMeanSquaredError", np.eye(3)[Y]),
    ):
        mine, right = getattr(metrics, name)(), getattr(keras.metrics, name)()
        weight = np.linspace(0, 1, 12)
        for given in (truth, truth.tolist()):
            assert mine(given, probabilities) == pytest.approx(float(right(truth, probabilities)), rel=1e-6)
        mine.update_state(truth, probabilities, sample_weight=weight)
        right.update_state(truth, probabilities, sample_weight=weight)
        assert mine.result() == pytest.approx(float(right.result()), rel=1e-6)


NUMBERS = (
    "MeanSquaredError", "MeanAbsoluteError", "Huber", "LogCosh", "KLDivergence", "Poisson", "Hinge", "CategoricalHinge",
    "MeanSquaredLogarithmicError", "CosineSimilarity",
)  # fmt: skip


@pytest.mark.parametrize("name", [*NUMBERS, "BinaryCrossentropy", "CategoricalCrossentropy"])
def test_losses_called_alone_are_keras(name):
    generator = np.random.default_rng(5)
    truth, output = generator.dirichlet([1, 1, 1], (4, 2)), generator.dirichlet([1, 1, 1], (4, 2)).astype(np.float32)
    mine, right = getattr(losses, name)(dtype="float32"), getattr(keras.losses, name)(dtype="float32")
    for weight in (None, np.arange(8.0).reshape(4, 2), np.arange(8.0).reshape(4, 2, 1)):
        found, expected = mine(truth, output, sample_weight=weight), right(truth, output, sample_weight=weight)
        assert float(found) == pytest.approx(float(expected), rel=2e-6)
    whole = np.array([[1, 0, 0], [0, 1, 0]])
    if name in NUMBERS:
        assert float(mine(whole, whole[::-1])) == pytest.approx(float(right(whole, whole[::-1])), rel=2e-6)
    with message(ValueError, "dtype: torch.float32 is expected, .*, got 'bfloat16'"):
        getattr(losses, name)(dtype="bfloat16")


ACTIVATIONS = (
    "elu", "selu", "softplus", "softsign", "exponential", "hard_sigmoid", "hard_silu", "hard_tanh", "leaky_relu",
    "log_sigmoid", "mish", "relu6", "celu", "hard_shrink", "soft_shrink", "sparse_plus", "sparse_sigmoid",
    "squareplus", "tanh_shrink",
)  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_without_a_kernel_are_keras(name):
    x = torch.linspace(-8, 8, 101)
    assert_close(layers.Activation(name)(x).numpy(), keras.activations.get(name)(x).numpy())
    model = models.Sequential([layers.Dense(4, name, input_shape=(8,))])
    assert_close(model(X).detach().numpy(), nnlib.to_keras(model)(X).detach().numpy())
    if name not in ("exponential", "sparse_plus", "sparse_sigmoid", "squareplus"):
        assert torch.equal(nnlib.to_torch(model)(torch.from_numpy(X)), model(X))


# ----- data ----------------------------------------------------------------------------------------------------------


def test_to_categorical_is_keras():
    for labels, classes in (([0, 2, 1], None), ([[0], [2]], 4), ([[0, 1], [2, 0]], None), ([], 3)):
        found, expected = utils.to_categorical(labels, classes), keras.utils.to_categorical(labels, classes)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.float32
    for labels in ([0, 3], [-1, 0], [0.5, 1]):
        with message(ValueError, "x: whole labels from 0 to 2 are expected, got "):
            utils.to_categorical(labels, 3)


@pytest.mark.parametrize("padding", ["pre", "post"])
@pytest.mark.parametrize("truncating", ["pre", "post"])
@pytest.mark.parametrize("maxlen", [None, 2, 5])
def test_pad_sequences_is_keras(maxlen, truncating, padding):
    for rows in ([[1, 2, 3], [4], []], [np.ones((2, 3)), np.full((4, 3), 2.0)]):
        options = {"maxlen": maxlen, "padding": padding, "truncating": truncating, "value": 7.0}
        found, expected = utils.pad_sequences(rows, **options), keras.utils.pad_sequences(rows, **options)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    with message(ValueError, "padding: known names are pre, post; got 'both'"):
        utils.pad_sequences([[1]], padding="both")
    with message(ValueError, r"sequences: steps of shape \(\) are expected, got \(2,\) in row 1"):
        utils.pad_sequences([[1], [[1, 2]]])


# ----- Dropout -------------------------------------------------------------------------------------------------------


def test_noise_shape_of_dropout():
    x = torch.ones(3, 4, 5)
    whole = layers.Dropout(0.5, noise_shape=(None, 1, None))(x, training=True)
    assert torch.equal(whole, whole[:, :1].expand_as(whole)) and set(whole.unique().tolist()) == {0.0, 2.0}
    assert not layers.Dropout(1.0)(x, training=True).any()
    for given in (3, "13", (0, 1), (1.5,), ()):
        with message(ValueError, "noise_shape: a tuple of positive integers or None is expected, got "):
            layers.Dropout(0.5, noise_shape=given)
    with message(ValueError, r"dropout: noise_shape \(1, 2\) must fit the input, got \(3, 4\)"):
        layers.Dropout(0.5, noise_shape=(1, 2))(x[..., 0], training=True)


def test_seed_of_dropout(tmp_path):
    """Its draws repeat whatever else draws, differ from call to call, and go on after loading."""
    x = np.ones((4, 50), np.float32)
    model = models.Sequential([layers.Dropout(0.5, seed=3, input_shape=(50,)), layers.Dense(1)])
    dropout = model.layers[0]
    first, second = dropout(x, training=True), dropout(x, training=True)
    torch.rand(7)
    again = layers.Dropout(0.5, seed=3)
    assert torch.equal(again(x, training=True), first) and torch.equal(again(x, training=True), second)
    assert not torch.equal(first, second)
    assert not torch.equal(layers.Dropout(0.5, seed=4)(x, training=True), first)
    model.save(tmp_path / "model")
    loaded = nnlib.load(tmp_path / "model").layers[0]
    assert torch.equal(loaded(x, training=True), dropout(x, training=True))
    kept = nnlib.from_keras(nnlib.to_keras(models.Sequential([layers.Dropout(0.5, (None, 1), 3, input_shape=(5,))])))
    assert kept.layers[0].get_config() == layers.Dropout(0.5, (None, 1), 3, name="dropout").get_config()
    with message(ValueError, "dropout: seed=3 does not convert: "):
        nnlib.to_torch(model)
    with message(ValueError, "seed: an integer of less than 63 bits is expected, got 'x'"):
        layers.Dropout(0.5, seed="x")


# ----- layers of one's own -------------------------------------------------------------------------------------------


class Linear(layers.Layer):
    """As in Keras' guide."""

    def __init__(self, units, **options):
        super().__init__(**options)
        self.units = units

    def build(self, input_shape):
        self.w = self.add_weight(shape=(input_shape[-1], self.units), initializer="random_normal", regularizer="l2")
        self.b = self.add_weight(shape=(self.units,), initializer="ones", constraint="non_neg", name="bias")
        self.calls = self.add_weight(trainable=False)

    def call(self, inputs):
        return torch.matmul(inputs, self.w) + self.b


def test_a_layer_of_ones_own():
    model = models.Sequential([nnlib.Input((8,)), Linear(4), layers.Dense(3, "softmax")])
    assert model.built and model.compute_output_shape((None, 8)) == (None, 3)
    assert set(model.layers[0].state_dict()) == {"w", "b", "calls"}
    (penalty,) = model.losses
    assert float(penalty) == pytest.approx(0.01 * float(model.layers[0].w.detach().square().sum()), rel=1e-6)
    model.compile("sgd", losses.SparseCategoricalCrossentropy())
    before = model.get_weights()
    model.fit(X, Y, epochs=3, verbose=0)
    changed = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert changed == [True, True, False, True, True]
    assert (model.layers[0].b >= 0).all()


def test_a_weight_that_is_no_attribute_is_refused():
    class Lost(layers.Layer):
        def build(self, input_shape):
            self.kept = [self.add_weight((2,))]

    with message(TypeError, "lost: what add_weight makes must become an attribute of the layer itself"):
        Lost()(torch.zeros(1, 2))
