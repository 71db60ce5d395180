"""Initial weights: the same distributions, fans and fixed values as Keras', kept in files, and clear errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import nnlib
from nnlib import initializers, layers, models
from nnlib.convert.keras_weights import keras_weights
from tests.nnlib.messages import message

keras = pytest.importorskip("keras")

NAMES = list(initializers.INITIALIZERS)
SHAPES = [(40, 60), (3, 3, 16, 32), (5, 2, 4, 24)]


@pytest.fixture(autouse=True)
def seeded():
    nnlib.set_seed(0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("identity", "constant")])
def test_the_distributions_are_keras(name, shape):
    """Mean, deviation and extremes of many draws: what tells one distribution and its fans from another."""
    ours = torch.stack([initializers.get(name)(shape) for _ in range(8)])
    theirs = torch.stack([keras.initializers.get(name)(shape).detach() for _ in range(8)])
    scale = float(theirs.std()) or 1.0
    assert abs(float(ours.mean() - theirs.mean())) < 0.05 * scale
    assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.03)
    assert float(ours.abs().max()) == pytest.approx(float(theirs.abs().max()), rel=0.02 if "uniform" in name else 0.25)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (3, 3, 2, 5)])
def test_orthogonal_is_orthogonal_as_keras_is(shape):
    for made in (initializers.Orthogonal(2.0)(shape), keras.initializers.Orthogonal(2.0)(shape).detach()):
        matrix = made.reshape(-1, shape[-1])
        matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.t()
        torch.testing.assert_close(matrix.t() @ matrix, 4 * torch.eye(matrix.shape[1]), rtol=0, atol=1e-5)


VARIANTS = [
    (mode, distribution)
    for mode in ("fan_in", "fan_out", "fan_avg")
    for distribution in ("truncated_normal", "untruncated_normal", "uniform")
]


@pytest.mark.parametrize("mode, distribution", VARIANTS)
def test_variance_scaling_has_its_variance(mode, distribution):
    made = initializers.VarianceScaling(3.0, mode, distribution)((2, 5, 40, 80))
    fan = {"fan_in": 400, "fan_out": 800, "fan_avg": 600}[mode]
    assert float(made.var()) == pytest.approx(3.0 / fan, rel=0.03)
    limit = {"uniform": math.sqrt(3), "truncated_normal": 2 / 0.87962566103423978}.get(distribution)
    if limit is not None:
        largest = float(made.abs().max()) / math.sqrt(3.0 / fan)
        assert 0.98 * limit < largest <= limit * (1 + 1e-6)


# A layer, the input it is built for, and the argument of its first weight.
LAYERS = [
    (lambda **o: layers.Dense(64, **o), lambda **o: keras.layers.Dense(64, **o), (None, 96), "kernel_initializer"),
    (
        lambda **o: layers.Conv2D(32, 3, **o),
        lambda **o: keras.layers.Conv2D(32, 3, **o),
        (None, 9, 9, 16),
        "kernel_initializer",
    ),
    (
        lambda **o: layers.Conv2D(32, 3, groups=4, **o),
        lambda **o: keras.layers.Conv2D(32, 3, groups=4, **o),
        (None, 9, 9, 16),
        "kernel_initializer",
    ),
    (
        lambda **o: layers.Conv2DTranspose(32, 3, **o),
        lambda **o: keras.layers.Conv2DTranspose(32, 3, **o),
        (None, 9, 9, 16),
        "kernel_initializer",
    ),
    (
        lambda **o: layers.DepthwiseConv2D(3, depth_multiplier=4, **o),
        lambda **o: keras.layers.DepthwiseConv2D(3, depth_multiplier=4, **o),
        (None, 9, 9, 64),
        "depthwise_initializer",
    ),
    (
        lambda **o: layers.Embedding(300, 20, **o),
        lambda **o: keras.layers.Embedding(300, 20, **o),
        (None, 5),
        "embeddings_initializer",
    ),
    (lambda **o: layers.LSTM(20, **o), lambda **o: keras.layers.LSTM(20, **o), (None, 5, 30), "kernel_initializer"),
]


@pytest.mark.parametrize("name", ["he_uniform", "lecun_normal", "glorot_uniform"])
@pytest.mark.parametrize("ours, theirs, shape, argument", LAYERS)
def test_layers_count_fans_as_keras_does(ours, theirs, shape, argument, name):
    deviations = []
    for layer in (ours(**{argument: name}), theirs(**{argument: name})):
        if isinstance(layer, torch.nn.Module) and isinstance(layer, layers.Layer):
            layer.build_once(shape)
            deviations.append(float(keras_weights(layer)[0].std()))
        else:
            layer.build(shape)
            deviations.append(float(np.asarray(layer.get_weights()[0]).std()))
    assert deviations[0] == pytest.approx(deviations[1], rel=0.1)


@pytest.mark.parametrize("ours, theirs, shape, argument", LAYERS)
def test_arrays_go_where_keras_has_them(ours, theirs, shape, argument):
    theirs = theirs()
    theirs.build(shape)
    values = np.random.default_rng(0).standard_normal(theirs.get_weights()[0].shape).astype(np.float32)
    layer = ours(**{argument: initializers.Constant(values)})
    layer.build_once(shape)
    np.testing.assert_array_equal(keras_weights(layer)[0], values)


@pytest.mark.parametrize("kind", ["SimpleRNN", "LSTM", "GRU"])
def test_the_identity_of_recurrent_layers_is_keras(kind):
    options = {"recurrent_initializer": "identity", "kernel_initializer": "identity"}
    ours = getattr(layers, kind)(4, **options)
    theirs = getattr(keras.layers, kind)(4, **options)
    ours.build_once((None, 5, 6))
    theirs.build((None, 5, 6))
    for one, other in zip(keras_weights(ours), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "name", [*NAMES, "zero", "one", *sorted({kind.__name__ for kind in initializers.INITIALIZERS.values()})]
)
def test_every_name_makes_what_keras_makes(name):
    ours = initializers.get(name)
    if name.lower() == "constant":  # which Keras' get does not make
        assert ours.get_config() == {"value": keras.initializers.Constant().value}
        return
    theirs = keras.initializers.get(name)
    assert type(ours).__name__ == type(theirs).__name__.replace("Initializer", "")
    config = {"gain": 1.0} | theirs.get_config()  # Keras' Identity does not tell its own
    assert ours.get_config() == {key: config[key] for key in ours.get_config()}
    assert not {"mean", "stddev", "minval", "maxval", "scale", "mode"} & (set(theirs.get_config()) - set(vars(ours)))


def test_seeds_repeat_and_leave_the_generator_alone():
    state = torch.get_rng_state()
    made = [initializers.HeNormal(seed=7)((5, 6)) for _ in range(2)]
    assert torch.equal(*made)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(initializers.HeNormal(seed=8)((5, 6)), made[0])
    weights = [
        keras_weights(_built(layers.Dense(6, kernel_initializer=initializers.HeNormal(seed=7))))[0] for _ in "ab"
    ]
    np.testing.assert_array_equal(weights[0], made[0].numpy())
    np.testing.assert_array_equal(weights[1], made[0].numpy())
    plain = initializers.HeNormal()
    assert not torch.equal(plain((5, 6)), plain((5, 6)))
    for kind in (
        initializers.RandomNormal,
        initializers.RandomUniform,
        initializers.TruncatedNormal,
        initializers.Orthogonal,
    ):
        assert torch.equal(kind(seed=3)((4, 4)), kind(seed=3)((4, 4)))


def _built(layer):
    layer.build_once((None, 5))
    return layer


def test_glove_in_constant_is_kept(tmp_path):
    table = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    model = models.Sequential(
        [layers.Embedding(9, 4, embeddings_initializer=initializers.Constant(table), input_length=3)]
    )
    np.testing.assert_array_equal(model(np.array([[1, 8, 0]])).detach(), table[[[1, 8, 0]]])
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(nnlib.load(tmp_path / "model").layers[0].weight.detach(), table)


def test_objects_are_kept_in_files(tmp_path):
    choices = [initializers.get(name) for name in NAMES if name not in ("identity",)]
    choices += [initializers.VarianceScaling(2.0, "fan_out", "uniform", seed=3), initializers.Orthogonal(0.5, seed=1)]
    model = models.Sequential([nnlib.Input((5,))])
    for choice in choices:
        model.add(layers.Dense(5, kernel_initializer=choice))
    model.save(tmp_path / "model")
    read = nnlib.load(tmp_path / "model")
    for one, other, choice in zip(model.layers, read.layers, choices, strict=True):
        assert type(other.kernel_initializer) is type(choice)
        assert other.kernel_initializer.get_config() == choice.get_config()
        assert torch.equal(one.weight, other.weight)


def test_functions_fill_in_place():
    layer = _built(
        layers.Dense(6, kernel_initializer=torch.nn.init.kaiming_normal_, bias_initializer=lambda b: b.fill_(2))
    )
    assert torch.equal(layer.bias, torch.full((6,), 2.0))
    with message(
        ValueError, "dense: kernel_initializer: a function must fill the tensor that it is given, in place, got"
    ):
        _built(layers.Dense(6, kernel_initializer=lambda shape, dtype=None: torch.zeros(5, 6)))
    with message(
        TypeError, "dense: kernel_initializer: a name, one of nnlib.initializers or a function is expected, got <"
    ):
        _built(layers.Dense(6, kernel_initializer=keras.initializers.Zeros()))


@pytest.mark.parametrize(
    "call, kind, text",
    [
        (lambda: initializers.get("he_norml"), ValueError, "initializer: known names are .*did you mean 'he_normal'"),
        (
            lambda: initializers.get(3),
            TypeError,
            "initializer: a name, one of nnlib.initializers or a function is expected",
        ),
        (lambda: initializers.HeNormal(seed=1.5), TypeError, "seed: an integer or None is expected, got 1.5"),
        (
            lambda: initializers.RandomNormal(stddev=-1),
            ValueError,
            "stddev: a number of at least 0 is expected, got -1",
        ),
        (lambda: initializers.RandomUniform(1, 0), ValueError, r"maxval: at least minval \(1\) is expected, got 0"),
        (lambda: initializers.VarianceScaling(0), ValueError, "scale: a number above 0 is expected, got 0"),
        (
            lambda: initializers.VarianceScaling(mode="fan"),
            ValueError,
            "mode: known names are fan_in, fan_out, fan_avg",
        ),
        (
            lambda: initializers.VarianceScaling(distribution="n"),
            ValueError,
            "distribution: known names are truncated_",
        ),
        (lambda: initializers.Constant("a"), TypeError, "value: a number or an array is expected, got 'a'"),
        (
            lambda: _built(layers.Dense(6, kernel_initializer=initializers.Constant(np.ones((6, 5))))),
            ValueError,
            r"dense: kernel_initializer: value: shape \(5, 6\) is expected, got \(6, 5\)",
        ),
        (
            lambda: _built(layers.Dense(6, bias_initializer="orthogonal")),
            ValueError,
            r"dense: bias_initializer: orthogonal: a weight of two axes or more is expected, got shape \(6,\)",
        ),
        (
            lambda: layers.Conv2D(2, 3, kernel_initializer="identity")(np.zeros((1, 5, 5, 2))),
            ValueError,
            r"conv2d: kernel_initializer: identity: a weight of two axes is expected, got shape \(3, 3, 2, 2\)",
        ),
    ],
)
def test_errors(call, kind, text):
    with message(kind, text):
        call()


@pytest.mark.parametrize("mean", ["zeros", "ones", initializers.Constant(0.5)])
def test_batch_normalization_starts_its_statistics(mean):
    ours = layers.BatchNormalization(
        moving_mean_initializer=mean, moving_variance_initializer=initializers.Constant(4.0)
    )
    x = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    expected = keras.layers.BatchNormalization(
        moving_mean_initializer=mean if isinstance(mean, str) else keras.initializers.Constant(0.5),
        moving_variance_initializer=keras.initializers.Constant(4.0),
    )
    for training in (False, True, False):
        torch.testing.assert_close(ours(x, training=training), expected(x, training=training), rtol=0, atol=1e-6)
    with message(ValueError, "synchronized: False is expected, statistics are of one process, got True"):
        layers.BatchNormalization(synchronized=True)
    layers.BatchNormalization(synchronized=False)
