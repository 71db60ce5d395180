"""Conv1D: Keras' values, gradients and weights; torch modules; fusion; and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nnlib
from nnlib import layers, models, ops
from tests.nnlib.keras_twin import assert_close, assert_like_keras, randomize
from tests.nnlib.messages import message

keras = pytest.importorskip("keras")

OPTIONS = [
    {},
    {"strides": 2, "padding": "same", "activation": "relu"},
    {"strides": (3,), "padding": "causal"},
    {"dilation_rate": 2, "padding": "causal", "activation": "tanh", "groups": 2},
    {"dilation_rate": (2,), "padding": "same", "use_bias": False},
    {"groups": 2, "activation": "softmax"},
    {"activation": "elu", "padding": "same"},
]


def sequence(data_format="channels_last", steps=9):
    shape = (2, steps, 4) if data_format == "channels_last" else (2, 4, steps)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("kernel_size", [1, 3, (4,)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_keras(options, kernel_size, data_format):
    ours = layers.Conv1D(6, kernel_size, data_format=data_format, **options)
    theirs = keras.layers.Conv1D(6, kernel_size, data_format=data_format, **options)
    x = sequence(data_format)
    assert_like_keras(ours, theirs, [x])
    assert ours.compute_output_shape(tuple(x.shape)) == tuple(ours(x).shape) == theirs.compute_output_shape(x.shape)
    assert ours.compute_output_shape((None, *x.shape[1:])) == (None, *ours(x).shape[1:])


def test_a_causal_output_sees_no_later_step():
    layer, x = layers.Conv1D(3, 3, padding="causal", dilation_rate=2), sequence().detach()
    before = layer(x)[:, :5]
    x[:, 5:] = float("nan")
    assert torch.equal(layer(x)[:, :5], before)


def test_models_with_it_convert_and_are_kept(tmp_path):
    model = models.Sequential(
        [
            nnlib.Input((9, 4)),
            layers.Conv1D(6, 3, padding="causal", kernel_regularizer="l2", kernel_constraint="max_norm"),
            layers.Activation("gelu"),
            layers.MaxPooling1D(2),
            layers.Conv1D(5, 2, padding="same", activation="relu"),
            layers.GlobalAveragePooling1D(),
        ]
    )
    randomize(model)
    x = sequence().detach()
    expected = model(x).detach()
    assert_close(nnlib.from_keras(nnlib.to_keras(model))(x).detach().numpy(), expected.numpy())
    torch.testing.assert_close(nnlib.to_torch(model)(x), expected, rtol=2e-5, atol=2e-6)
    path = tmp_path / "model.safetensors"
    model.save(path)
    assert torch.equal(nnlib.load(path)(x), expected)
    printed = []
    model.summary(print_fn=printed.append)
    row = next(line for line in printed[0].splitlines() if line.startswith("conv1d (Conv1D)"))
    assert "(None, 9, 6)" in row and " 78 " in row and "conv2d" in row


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv1d(4, 6, 3),
        nn.Conv1d(4, 6, 3, stride=2, groups=2, bias=False),
        nn.Conv1d(4, 6, 3, padding=2, dilation=2),
        nn.Conv1d(4, 6, 2, padding="same"),
    ],
    ids=str,
)
def test_torch_modules_go_both_ways(module):
    x = sequence("channels_first").detach()
    layer = nnlib.from_torch(module)
    torch.testing.assert_close(layer(x), module(x), rtol=2e-5, atol=2e-6)
    back = nnlib.to_torch(layer)
    assert type(back) is nn.Conv1d and torch.equal(back(x), module(x))


def test_an_activation_behind_it_runs_inside_its_kernel():
    model = models.Sequential([layers.Conv1D(3, 3, input_shape=(9, 4)), layers.Activation("relu")])
    with ops.recording() as uses:
        y = model(sequence())
    assert [use.op for use in uses] == ["conv2d"]
    torch.testing.assert_close(y, model.layers[0](sequence()).relu())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: layers.Conv1D(0, 3), "filters: a positive integer is expected, got 0"),
        (lambda: layers.Conv1D(3, 3, groups=2), r"filters: a positive multiple of groups \(2\) is expected"),
        (lambda: layers.Conv1D(3, (3, 3)), r"kernel_size: a positive integer is expected, got \(3, 3\)"),
        (lambda: layers.Conv1D(3, 3, strides=0), "strides: a positive integer is expected, got 0"),
        (lambda: layers.Conv1D(3, 3, padding="full"), "padding: known names are valid, same, causal; got 'full'"),
        (
            lambda: layers.Conv1D(3, 5)(torch.zeros(2, 4, 1)),
            r"conv1d: a window of 5 \(dilation 1, padding 'valid'\) must fit the steps, got 4",
        ),
        (
            lambda: layers.Conv1D(2, 3, groups=2)(torch.zeros(2, 4, 3)),
            r"conv1d: input channels must be known and a multiple of groups \(2\), got 3 in \(2, 4, 3\)",
        ),
        (
            lambda: models.Sequential([layers.Conv1D(2, 3, input_shape=(9, 4))])(torch.zeros(2, 9, 5)),
            r"conv1d: input must have shape \(N, T, 4\), got \(2, 9, 5\)",
        ),
        (
            lambda: nnlib.from_torch(nn.Conv1d(4, 6, 3, padding=2)),
            r"module \(Conv1d\): padding must be 0, or keep the steps' number, to convert, got 2",
        ),
        (
            lambda: nnlib.to_torch(models.Sequential([layers.Conv1D(2, 3, 2, "same", input_shape=(9, 4))])),
            "conv1d: padding='same' does not convert: with strides it depends on the number of steps",
        ),
    ],
)
def test_errors(make, text):
    with message(ValueError, text):
        make()
