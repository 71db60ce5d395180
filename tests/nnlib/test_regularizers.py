"""Regularizers and constraints: Keras' numbers, in the loss of training and evaluation and after its steps."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

import nnlib
from nnlib import constraints, layers, models, regularizers
from nnlib.convert.keras_weights import keras_weights
from nnlib.layers.rules import apply_constraints
from tests.nnlib.keras_twin import assert_close, randomize
from tests.nnlib.messages import message

keras = pytest.importorskip("keras")

MATRIX = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
REGULARIZERS = {
    "L1": lambda room: room.L1(0.3),
    "l1": lambda room: room.l1(),
    "L2": lambda room: room.L2(0.2),
    "l2": lambda room: room.l2(),
    "L1L2": lambda room: room.L1L2(0.1, 0.2),
    "l1_l2": lambda room: room.l1_l2(l2=0.5),
    "rows": lambda room: room.OrthogonalRegularizer(0.7),
    "columns": lambda room: room.OrthogonalRegularizer(0.7, mode="columns"),
    "name l1": lambda room: room.get("l1"),
    "name l2": lambda room: room.get("l2"),
    "name L2": lambda room: room.get("L2"),
    "name orthogonal": lambda room: room.get("orthogonal_regularizer"),
}
CONSTRAINTS = {
    "MaxNorm": lambda room: room.MaxNorm(0.9),
    "max_norm": lambda room: room.max_norm(),
    "axis": lambda room: room.MaxNorm(0.9, axis=1),
    "axes": lambda room: room.MaxNorm(0.9, axis=[0, 1]),
    "NonNeg": lambda room: room.NonNeg(),
    "UnitNorm": lambda room: room.unit_norm(axis=1),
    "MinMaxNorm": lambda room: room.MinMaxNorm(0.5, 1.5, rate=0.4),
    "name max_norm": lambda room: room.get("max_norm"),
    "name NonNeg": lambda room: room.get("NonNeg"),
    "name min_max_norm": lambda room: room.get("min_max_norm"),
}


@pytest.mark.parametrize("name", REGULARIZERS)
def test_penalties_and_their_gradients_are_keras(name):
    found = []
    for room in (regularizers, keras.regularizers):
        x = torch.tensor(MATRIX, requires_grad=True)
        penalty = REGULARIZERS[name](room)(x)
        penalty.backward()
        found.append((penalty.detach().numpy(), x.grad.numpy()))
    for one, other in zip(*found, strict=True):
        assert_close(one, other)


def test_the_name_l1_l2_is_both_at_once():
    # (Keras documents 0.01 for both, and makes an object of zeros of this name.)
    assert vars(regularizers.get("l1_l2")) == vars(regularizers.L1L2(0.01, 0.01))


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints_are_keras(name):
    x = torch.tensor(MATRIX * 2)
    assert_close(CONSTRAINTS[name](constraints)(x).numpy(), CONSTRAINTS[name](keras.constraints)(x).detach().numpy())


# ----- a step of training ------------------------------------------------------------------------------------------

R, C = regularizers, constraints
IMAGE, SEQUENCE = (6, 7, 4), (5, 4)
KERNEL = {
    "kernel_regularizer": R.OrthogonalRegularizer(0.5),
    "bias_regularizer": R.L1(0.1),
    "activity_regularizer": R.L2(0.3),
    "kernel_constraint": C.MaxNorm(0.7),
    "bias_constraint": C.NonNeg(),
}
IMAGES = KERNEL | {"kernel_regularizer": R.L1L2(0.1, 0.2), "kernel_constraint": C.UnitNorm(axis=[0, 1, 2])}
DEPTHWISE = {
    "depthwise_regularizer": R.L2(0.3),
    "depthwise_constraint": C.MinMaxNorm(0.2, 0.4, axis=[0, 1]),
    "bias_regularizer": R.L2(0.4),
    "bias_constraint": C.NonNeg(),
}
RECURRENT = KERNEL | {"recurrent_regularizer": R.L2(0.2), "recurrent_constraint": C.UnitNorm()}
NORM = {
    "gamma_regularizer": R.L1(0.2),
    "beta_regularizer": R.L2(0.1),
    "gamma_constraint": C.MaxNorm(0.8),
    "beta_constraint": C.NonNeg(),
}
LAYERS = {
    "Dense": lambda: layers.Dense(3, "tanh", **KERNEL, input_shape=(4,)),
    "Conv2D": lambda: layers.Conv2D(3, (2, 3), activation="relu", **IMAGES, input_shape=IMAGE),
    "Conv2DTranspose": lambda: layers.Conv2DTranspose(3, 3, **IMAGES, input_shape=IMAGE),
    "DepthwiseConv2D": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, **DEPTHWISE, input_shape=IMAGE),
    "SeparableConv2D": lambda: layers.SeparableConv2D(
        3, 2, **DEPTHWISE, pointwise_regularizer=R.L1(0.2), pointwise_constraint=C.MaxNorm(0.5), input_shape=IMAGE
    ),
    "Embedding": lambda: layers.Embedding(
        9, 3, embeddings_regularizer=R.OrthogonalRegularizer(0.2), embeddings_constraint=C.UnitNorm(), input_shape=(5,)
    ),
    "SimpleRNN": lambda: layers.SimpleRNN(3, **RECURRENT, input_shape=SEQUENCE),
    "LSTM": lambda: layers.LSTM(3, return_sequences=True, **RECURRENT, input_shape=SEQUENCE),
    "GRU": lambda: layers.GRU(3, **RECURRENT, input_shape=SEQUENCE),
    "GRU before": lambda: layers.GRU(
        3, reset_after=False, **(RECURRENT | {"bias_constraint": C.MaxNorm(0.2)}), input_shape=SEQUENCE
    ),
    "Bidirectional": lambda: layers.Bidirectional(
        layers.LSTM(3, return_sequences=True, **RECURRENT), input_shape=SEQUENCE
    ),
    "BatchNormalization": lambda: layers.BatchNormalization(**NORM, input_shape=IMAGE),
    "LayerNormalization": lambda: layers.LayerNormalization(axis=[1, 2], **NORM, input_shape=SEQUENCE),
    "Activation": lambda: layers.Activation("relu", activity_regularizer=R.L1(0.3), input_shape=SEQUENCE),
}


def twins(make):
    """Compiled models of the one layer, ours and Keras', with the same weights, and a batch."""
    nnlib.set_seed(0)
    layer = make()
    model = models.Sequential([layer, layers.Flatten(), layers.Dense(2)])
    randomize(model)
    theirs = nnlib.to_keras(model)
    model.compile(nnlib.optimizers.SGD(0.1), "mse")
    theirs.compile(keras.optimizers.SGD(0.1), "mse")
    generator = np.random.default_rng(1)
    shape = (6, *layer.given_input_shape[1:])
    tokens = isinstance(layer, layers.Embedding)
    x = generator.integers(0, 9, shape) if tokens else generator.standard_normal(shape).astype(np.float32)
    return model, theirs, x, generator.standard_normal((6, 2)).astype(np.float32)


def assert_same_weights(model, theirs):
    for layer, other in zip(model.layers, theirs.layers, strict=True):
        for one, two in zip(keras_weights(layer) if layer.built else [], other.get_weights(), strict=True):
            scale = float(np.abs(two).max(initial=1e-3))
            np.testing.assert_allclose(one, two, rtol=0, atol=1e-5 * scale)  # after some steps


@pytest.mark.parametrize("name", LAYERS)
def test_training_and_evaluation_are_keras(name):
    model, theirs, x, y = twins(LAYERS[name])
    plain = float(torch.nn.functional.mse_loss(model(x, training=False), torch.tensor(y)))
    ours, other = model.evaluate(x, y, verbose=0)[0], theirs.evaluate(x, y, verbose=0)
    assert ours == pytest.approx(other, rel=3e-6)
    assert abs(ours - plain) > 1e-3
    before = [array.copy() for array in keras_weights(model.layers[0])]
    for _ in range(3):
        assert model.train_on_batch(x, y)[0] == pytest.approx(float(theirs.train_on_batch(x, y)), rel=1e-5)
        assert_same_weights(model, theirs)
    assert float(sum(model.losses)) == pytest.approx(float(sum(theirs.losses)), rel=1e-5)
    after = keras_weights(model.layers[0])
    assert len(after) == len(before) and all((one != two).any() for one, two in zip(before, after))


@pytest.mark.parametrize("name", LAYERS)
def test_they_come_from_keras_too(name):
    model, theirs, x, y = twins(LAYERS[name])
    back = nnlib.from_keras(theirs)
    back.compile("sgd", "mse")
    assert back.evaluate(x, y, verbose=0) == model.evaluate(x, y, verbose=0)
    constrained = sum(
        rule.constraint is not None for m in model.modules() for rule in getattr(m, "weight_rules", {}).values()
    )
    assert constrained == sum(
        rule.constraint is not None for m in back.modules() for rule in getattr(m, "weight_rules", {}).values()
    )


def test_fit_is_keras():
    model, theirs, x, y = twins(LAYERS["Dense"])
    options = {"epochs": 3, "batch_size": 4, "shuffle": False, "verbose": 0, "validation_data": (x[:3], y[:3])}
    ours, other = model.fit(x, y, **options).history, theirs.fit(x, y, **options).history
    for key in ("loss", "val_loss"):
        np.testing.assert_allclose(ours[key], other[key], rtol=1e-5)
    assert_same_weights(model, theirs)


@pytest.mark.parametrize("same_features", [True, False])
def test_attention_is_keras(same_features):
    layer = layers.MultiHeadAttention(2, 3, kernel_regularizer=R.L1L2(0.1, 0.2), bias_regularizer=R.L2(0.3))
    query, value = torch.randn(2, 4, 6), torch.randn(2, 5, 6 if same_features else 3)
    layer(query, value)
    randomize(layer)
    theirs = nnlib.to_keras(layer)
    assert float(sum(layer.losses)) == pytest.approx(float(sum(theirs.losses)), rel=1e-6)
    with message(ValueError, "OrthogonalRegularizer: a weight of two axes is expected, got shape"):
        bad = layers.MultiHeadAttention(2, 3, kernel_regularizer="orthogonal_regularizer")
        bad(query)
        bad.losses  # noqa: B018
    with message(ValueError, "activity_regularizer: None is expected, since Keras' is one of each projection inside"):
        layers.MultiHeadAttention(2, 3, activity_regularizer="l2")


@pytest.mark.parametrize("constraint", ["non_neg", constraints.UnitNorm(), constraints.MaxNorm(0.3, axis=[0, 1])])
@pytest.mark.parametrize("same_features", [True, False])
def test_constraints_of_attention_are_keras(same_features, constraint):
    """Each projection by itself, as Keras lays it out: kernels (D, heads, size) and (heads, size, D)."""
    layer = layers.MultiHeadAttention(2, 3, value_dim=4, kernel_constraint=constraint, bias_constraint="max_norm")
    query, value = torch.randn(2, 4, 6), torch.randn(2, 5, 6 if same_features else 3)
    layer(query, value)
    randomize(layer)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(5)
    theirs = nnlib.to_keras(layer)
    apply_constraints(layer)
    for weight in theirs.weights:
        weight.assign(weight.constraint(weight.value))
    for found, expected in zip(keras_weights(layer), theirs.get_weights(), strict=True):
        assert_close(found, expected)


# ----- what counts and when ----------------------------------------------------------------------------------------


def test_weights_that_do_not_train_count_for_nothing():
    layer = layers.Dense(
        3, kernel_regularizer="l2", bias_regularizer="l2", kernel_constraint="unit_norm", input_shape=(2,)
    )
    model = models.Sequential([layer])
    randomize(model)
    assert len(model.losses) == 2
    layer.weight.requires_grad_(False)
    before = layer.weight.clone()
    assert len(model.losses) == 1
    model.compile("sgd", "mse")
    model.train_on_batch(np.ones((4, 2)), np.ones((4, 3)))
    assert torch.equal(layer.weight, before)


def test_losses_of_outputs_are_of_the_outermost_call():
    dense = layers.Dense(3, activity_regularizer=lambda y: y.sum())

    class Twice(models.Model):
        def __init__(self):
            super().__init__()
            self.dense = dense
            self.branch = layers.Dense(3, activity_regularizer=R.L1(1.0))

        def call(self, x, both=True):
            return self.dense(x) + self.dense(2 * x) + (self.branch(x) if both else 0)

    model, x = Twice(), torch.ones(4, 2)
    model(x)
    assert len(model.losses) == 3 and len(dense.losses) == 2
    y = dense.weight.sum(1)
    torch.testing.assert_close(dense.losses[0], y.sum())  # over four rows of the same
    model(x)
    assert len(model.losses) == 3
    model(x, both=False)
    assert len(model.losses) == 2 and model.branch.losses == []
    dense(x)
    assert len(dense.losses) == 1
    with pytest.raises(ValueError, match="input must have shape"):
        model(torch.ones(4, 5))
    model(x)  # an error leaves no call open
    assert len(model.losses) == 3
    copied = pickle.loads(pickle.dumps(layers.Dense(3, activity_regularizer="l2", kernel_regularizer="l1")))
    copied(x)
    assert len(copied.losses) == 2 and len(copy.deepcopy(copied).losses) == 1  # what is kept of a call is not copied


def test_an_output_that_counts_is_not_fused_away():
    def losses(first, second):
        nnlib.set_seed(0)
        model = models.Sequential([first, second, layers.Dense(2, "softmax", activity_regularizer=R.L2(1.0))])
        model.compile("sgd")
        value = model.evaluate(np.linspace(-1, 1, 12).reshape(3, 4), np.array([0, 1, 1]), verbose=0)[0]
        return value, [float(loss) for loss in model.losses]

    plain, of_plain = losses(layers.Dense(3, use_bias=False), layers.Activation("relu"))
    value, (before, after) = losses(
        layers.Dense(3, use_bias=False, activity_regularizer=R.L1(1.0)), layers.Activation("relu")
    )
    assert value - plain == pytest.approx(before, rel=1e-5)
    assert len(of_plain) == 1 and 1 / 2 <= of_plain[0] <= 1  # of probabilities, not of logits
    assert after == of_plain[0]
    value, (found, _) = losses(
        layers.Dense(3, use_bias=False), layers.Activation("relu", activity_regularizer=R.L1(1.0))
    )
    assert value - plain == pytest.approx(found, rel=1e-5)
    assert 0 < found < before  # the values below 0 are gone


def test_accumulated_gradients_take_each_batchs_penalty():
    made = []
    for steps in (None, 2):
        nnlib.set_seed(0)
        model = models.Sequential(
            [layers.Dense(3, kernel_regularizer=R.L2(0.5), kernel_constraint="max_norm", input_shape=(2,))]
        )
        model.compile(nnlib.optimizers.SGD(0.1, gradient_accumulation_steps=steps), "mse")
        for _ in range(steps or 1):
            model.train_on_batch(np.ones((4, 2)), np.ones((4, 3)))
        made.append(model.layers[0].weight.detach())
    torch.testing.assert_close(*made)


# ----- files and errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_they_are_kept_in_files(name, tmp_path):
    model, _, x, y = twins(LAYERS[name])
    model.save(tmp_path / "model")
    read = nnlib.load(tmp_path / "model")
    for _ in range(2):
        assert read.train_on_batch(x, y) == model.train_on_batch(x, y)
    for one, other in zip(model.state_dict().values(), read.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_functions_work_and_are_kept_nowhere(tmp_path):
    seen = []
    layer = layers.Dense(
        3, kernel_regularizer=lambda w: w.sum(), kernel_constraint=lambda w: seen.append(w.shape) or w * 0
    )
    model = models.Sequential([nnlib.Input((5,)), layer])
    torch.testing.assert_close(model.losses[0], layer.weight.sum())
    model.compile("sgd", "mse")
    model.train_on_batch(np.ones((4, 5)), np.ones((4, 3)))
    assert seen == [(5, 3)]  # in Keras' layout
    assert not layer.weight.any()
    with pytest.raises(ValueError, match="^dense: kernel_regularizer: a function cannot be kept in a file"):
        model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="^dense: kernel_regularizer does not convert, got <function"):
        nnlib.to_keras(model)


@pytest.mark.parametrize(
    "call, kind, text",
    [
        (
            lambda: layers.Dense(3, kernel_regularizer="l3"),
            ValueError,
            "kernel_regularizer: known names are l1, l2, l1_l2, ",
        ),
        (
            lambda: layers.Dense(3, kernel_regularizer=0.1),
            TypeError,
            "kernel_regularizer: None, a name, a regularizer or a",
        ),
        (
            lambda: layers.Dense(3, activity_regularizer=0.1),
            TypeError,
            "activity_regularizer: None, a name, a regularizer",
        ),
        (
            lambda: layers.Dense(3, bias_constraint="norm"),
            ValueError,
            "bias_constraint: known names are max_norm, non_neg, ",
        ),
        (
            lambda: layers.Dense(3, bias_constraint=1),
            TypeError,
            "bias_constraint: None, a name, a constraint or a function",
        ),
        (
            lambda: layers.Dense(3, gamma_regularizer="l2"),
            TypeError,
            "Dense: got an unexpected argument 'gamma_regularizer'",
        ),
        (
            lambda: layers.Flatten(kernel_regularizer="l2"),
            TypeError,
            "Flatten: got an unexpected argument 'kernel_regul",
        ),
        (lambda: layers.Dense(3, sparse=True), TypeError, "Dense: got an unexpected argument 'sparse'"),
        (lambda: R.L2(-1), ValueError, "l2: a number of at least 0 is expected, got -1"),
        (lambda: R.L1(float("nan")), ValueError, "l1: a number of at least 0 is expected, got nan"),
        (lambda: R.L1L2(0.1, "a"), ValueError, "l2: a number of at least 0 is expected, got 'a'"),
        (lambda: R.OrthogonalRegularizer(mode="all"), ValueError, "mode: known names are rows, columns; got 'all'"),
        (lambda: C.MaxNorm(0), ValueError, "max_value: a number above 0 is expected, got 0"),
        (lambda: C.MinMaxNorm(2, 1), ValueError, r"min_value: from 0 to max_value \(1\) is expected, got 2"),
        (lambda: C.MinMaxNorm(rate=2), ValueError, r"rate: a number in \[0, 1\] is expected, got 2"),
        (
            lambda: layers.GRU(3, bias_constraint="max_norm"),
            ValueError,
            "bias_constraint: with reset_after=True, None or NonNeg is expected, since Keras' other ones",
        ),
    ],
)
def test_errors(call, kind, text):
    with message(kind, text):
        call()
