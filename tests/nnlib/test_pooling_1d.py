"""Pooling over steps, and the activations that are layers, held to Keras."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nnlib
from nnlib import layers, models
from tests.nnlib.keras_twin import assert_close, assert_like_keras
from tests.nnlib.messages import message

keras = pytest.importorskip("keras")

WINDOWS = [
    {"pool_size": 2},
    {"pool_size": 3, "strides": 1},
    {"pool_size": 3, "strides": 2, "padding": "same"},
    {"pool_size": 2, "strides": 1, "padding": "same"},
    {"pool_size": (2,), "strides": (3,), "padding": "same"},
]


def sequence(data_format, seed=0):
    shape = (2, 7, 3) if data_format == "channels_last" else (2, 3, 7)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("options", WINDOWS, ids=str)
@pytest.mark.parametrize("kind", ["MaxPooling1D", "AveragePooling1D"])
def test_windows_are_keras(kind, options, data_format):
    ours = getattr(layers, kind)(**options, data_format=data_format)
    theirs = getattr(keras.layers, kind)(**options, data_format=data_format)
    x = sequence(data_format)
    assert_like_keras(ours, theirs, [x])
    assert ours.compute_output_shape(tuple(x.shape)) == tuple(ours(x).shape) == theirs.compute_output_shape(x.shape)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("kind", ["GlobalMaxPooling1D", "GlobalAveragePooling1D"])
def test_whole_rows_are_keras(kind, keepdims, data_format):
    ours = getattr(layers, kind)(data_format, keepdims)
    theirs = getattr(keras.layers, kind)(data_format, keepdims)
    x = sequence(data_format)
    assert_like_keras(ours, theirs, [x])
    assert ours.compute_output_shape(tuple(x.shape)) == tuple(ours(x).shape)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("keepdims", [False, True])
def test_masked_means_are_keras(keepdims, data_format):
    mask = torch.tensor([[True, False, True, True, False, False, True], [True] * 3 + [False] * 4])
    ours = layers.GlobalAveragePooling1D(data_format, keepdims)
    theirs = keras.layers.GlobalAveragePooling1D(data_format, keepdims)
    assert_like_keras(ours, theirs, [sequence(data_format)], ours={"mask": mask}, theirs={"mask": mask})
    x = sequence(data_format).detach()
    lengths = torch.tensor([3, 0])
    by_mask = ours(x, mask=torch.arange(7) < lengths[:, None])
    assert torch.equal(ours(x, lengths=lengths), by_mask)
    assert not by_mask[1].any()
    with message(ValueError, "global_average_pooling1d: lengths or mask must be given, got both"):
        ours(x, lengths=lengths, mask=mask)
    with message(ValueError, r"global_average_pooling1d: mask must have shape \(2, 7\), got \(2, 6\)"):
        ours(x, mask=mask[:, 1:])


def test_pooling_runs_by_the_layers_backend():
    model = models.Sequential(
        [nnlib.Input((7, 3)), layers.MaxPooling1D(2), layers.GlobalMaxPooling1D()], backend="torch"
    )
    printed = []
    model.summary(print_fn=printed.append)
    assert "max_pooling1d (MaxPooling1D)" in printed[0] and printed[0].count("torch: ") == 2


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: layers.MaxPooling1D(0), "pool_size: a positive integer is expected, got 0"),
        (lambda: layers.MaxPooling1D((2, 2)), r"pool_size: a positive integer is expected, got \(2, 2\)"),
        (lambda: layers.AveragePooling1D(2, 0), "strides: a positive integer is expected, got 0"),
        (lambda: layers.AveragePooling1D(2, padding="full"), "padding: known names are valid, same; got 'full'"),
        (lambda: layers.GlobalMaxPooling1D("last"), "data_format: known names are channels_last, channels_first; got"),
        (lambda: layers.MaxPooling1D(2)(torch.zeros(2, 3)), r"max_pooling1d: input must have shape \(N, T, C\), got"),
        (lambda: layers.MaxPooling1D(4)(torch.zeros(2, 3, 1)), r"max_pooling1d: a window of \(4, 1\)"),
        (lambda: layers.ReLU(-1), "max_value: a number of at least 0 is expected, got -1"),
        (lambda: layers.ReLU(negative_slope=None), "negative_slope: a number of at least 0 is expected, got None"),
        (lambda: layers.ReLU(threshold=-0.1), "threshold: a number of at least 0 is expected, got -0.1"),
        (lambda: layers.Softmax(2)(torch.zeros(2, 3)), r"softmax: axis must be one of the input's, got 2 for \(2, 3\)"),
    ],
)
def test_errors(call, text):
    with message(ValueError, text):
        call()


@pytest.mark.parametrize("options", [{}, {"max_value": 1.0}, {"negative_slope": 0.3}, {"threshold": 0.5},
                                     {"max_value": 1.5, "negative_slope": 0.1, "threshold": 0.2}], ids=str)  # fmt: skip
def test_relu_is_keras(options):
    x = torch.linspace(-3, 3, 24).reshape(2, 4, 3).requires_grad_()
    assert_like_keras(layers.ReLU(**options), keras.layers.ReLU(**options), [x])


@pytest.mark.parametrize("axis", [-1, 1, 2])
def test_softmax_is_keras(axis):
    x = sequence("channels_last")
    assert_like_keras(layers.Softmax(axis), keras.layers.Softmax(axis), [x])
    assert torch.equal(layers.Softmax()(x, apply_softmax=False), x)
    assert not layers.Softmax(1).ends_in_softmax


def test_activation_layers_are_fused_and_give_logits_as_activation_does():
    def made(relu, softmax):
        nnlib.set_seed(0)
        return models.Sequential([layers.Dense(4, input_shape=(3,)), relu, layers.Dense(2), softmax])

    plain = made(layers.Activation("relu"), layers.Activation("softmax"))
    model, cut = made(layers.ReLU(), layers.Softmax()), made(layers.ReLU(0.1), layers.Softmax())
    x = torch.randn(6, 3)
    assert torch.equal(model(x), plain(x))
    assert torch.equal(model(x, apply_softmax=False), plain(x, apply_softmax=False))
    assert model.ends_in_softmax and not torch.equal(cut(x), plain(x))
    printed = []
    model.summary(print_fn=printed.append)
    line = next(line for line in printed[0].splitlines() if "re_lu" in line)
    assert "numba" not in line  # it runs in the dense layer's kernel


@pytest.mark.parametrize("make", [
    lambda: layers.MaxPooling1D(2, data_format="channels_first"),
    lambda: layers.AveragePooling1D(3, 1, "same"),
    lambda: layers.GlobalMaxPooling1D(keepdims=True),
    lambda: layers.GlobalAveragePooling1D("channels_first"),
    lambda: layers.ReLU(6.0, 0.1, 0.2),
    lambda: layers.Softmax(1),
])  # fmt: skip
def test_they_convert_to_keras_and_back(make):
    model = models.Sequential([nnlib.Input((7, 3)), make()])
    theirs = nnlib.to_keras(model)
    x = sequence("channels_last").detach()
    assert_close(nnlib.from_keras(theirs)(x).numpy(), model(x).numpy())
    assert_close(theirs(x).numpy(), model(x).numpy())


@pytest.mark.parametrize(
    "layer, kind",
    [
        (lambda: layers.ReLU(), torch.nn.ReLU),
        (lambda: layers.ReLU(6), torch.nn.ReLU6),
        (lambda: layers.ReLU(negative_slope=0.3), torch.nn.LeakyReLU),
        (lambda: layers.Softmax(1), torch.nn.Softmax),
    ],
)
def test_activations_convert_to_torch(layer, kind):
    model = models.Sequential([nnlib.Input((7, 3)), layer()])
    found = nnlib.to_torch(model)
    assert any(type(module) is kind for module in found.modules())
    x = 5 * sequence("channels_last").detach()
    assert_close(found(x).numpy(), model(x).numpy())


def test_what_torch_lacks_is_refused():
    with message(ValueError, "re_lu: max_value=5 does not convert: torch has ReLU, ReLU6 and LeakyReLU"):
        nnlib.to_torch(models.Sequential([nnlib.Input((3,)), layers.ReLU(5)]))
    with message(ValueError, "global_average_pooling1d: data_format='channels_first' does not convert: it converts"):
        nnlib.to_torch(models.Sequential([nnlib.Input((3, 4)), layers.GlobalAveragePooling1D("channels_first")]))
    np.testing.assert_array_equal(layers.Softmax(0)(np.zeros((2, 3))), np.full((2, 3), 0.5, np.float32))
