"""Depthwise, separable and transposed convolution, global pooling, reshape, batch normalization: against Keras."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F

import nnlib
from nnlib import layers, models, ops
from tests.nnlib.keras_twin import assert_like_keras

keras = pytest.importorskip("keras")

FORMATS = ["channels_last", "channels_first"]


def pair(name, *arguments, **options):
    return getattr(layers, name)(*arguments, **options), getattr(keras.layers, name)(*arguments, **options)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("data_format", FORMATS)
def test_depthwise_against_keras(padding, strides, data_format, random_image):
    options = {"strides": strides, "padding": padding, "depth_multiplier": 2, "data_format": data_format}
    assert_like_keras(*pair("DepthwiseConv2D", (3, 2), activation="relu", **options), [random_image(2, 7, 8, 5)])


@pytest.mark.parametrize("options", [{"use_bias": False}, {"dilation_rate": 2}, {"activation": "softmax"}])
def test_depthwise_options_against_keras(options, random_image):
    assert_like_keras(*pair("DepthwiseConv2D", 3, **options), [random_image(2, 7, 6, 3)])


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("use_bias", [False, True])
def test_separable_against_keras(padding, data_format, use_bias, random_image):
    ours, theirs = pair(
        "SeparableConv2D", 4, 3, 2, padding, data_format,
        depth_multiplier=3, activation="tanh", use_bias=use_bias,
    )  # fmt: skip
    x = random_image(2, 7, 9, 5)
    assert_like_keras(ours, theirs, [x])
    assert tuple(ours(x.float()).shape) == ours.compute_output_shape((2, 7, 9, 5))


def test_conv2d_against_keras(random_image):
    ours, theirs = pair("Conv2D", 6, (3, 2), 2, "same", groups=2, activation="gelu")
    theirs.activation = lambda y: F.gelu(y)
    assert_like_keras(ours, theirs, [random_image(2, 7, 8, 4)])


WINDOWS = [(1, 1, 1), (2, 3, 1), (3, 2, 1), (3, 1, 2), (4, 3, 1), (5, 2, 1), (2, 1, 3), (1, 3, 1)]


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    "kernel, stride, dilation, output_padding",
    [(*window, added) for window in WINDOWS for added in (None, 0, 1) if added is None or added < window[1]],
)
def test_conv_transpose_against_keras(kernel, stride, dilation, padding, output_padding, random_image):
    options = {"strides": stride, "padding": padding, "dilation_rate": dilation, "output_padding": output_padding}
    x = random_image(2, 4, 5, 3)
    ours, theirs = pair("Conv2DTranspose", 4, kernel, activation="relu", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras on torch may warn of what it then does right
        assert_like_keras(ours, theirs, [x])
    assert tuple(ours(x.float()).shape) == ours.compute_output_shape((2, 4, 5, 3))


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("kernel, stride, dilation", WINDOWS)
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("data_format", FORMATS)
def test_conv_transpose_is_the_gradient_of_a_convolution(kernel, stride, dilation, padding, data_format, random_image):
    """What Keras defines it by: the gradient of the Conv2D with the same window with respect to its input."""
    x = random_image(2, 4, 5, 3) if data_format == "channels_last" else random_image(2, 3, 4, 5)
    layer = layers.Conv2DTranspose(
        2, kernel, stride, padding, data_format=data_format, dilation_rate=dilation, bias_initializer="uniform"
    )
    y = layer(x)
    forward = layers.Conv2D(
        3, kernel, stride, padding, data_format, dilation, use_bias=False, kernel_initializer="zeros"
    )
    start = torch.zeros_like(y, requires_grad=True)
    image = forward(start)
    assert image.shape == x.shape
    forward.weight.data.copy_(layer.weight)
    (expected,) = torch.autograd.grad(forward(start), start, x)
    bias = layer.bias if data_format == "channels_last" else layer.bias[:, None, None]
    torch.testing.assert_close(y, expected + bias)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(y, [x, layer.weight, layer.bias], cotangent)
    torch.testing.assert_close(found[0], forward(cotangent))
    axes = (0, 1, 2) if data_format == "channels_last" else (0, 2, 3)
    torch.testing.assert_close(found[2], cotangent.sum(axes))


@pytest.mark.parametrize("name", ["GlobalMaxPooling2D", "GlobalAveragePooling2D"])
@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("keepdims", [False, True])
def test_global_pooling_against_keras(name, data_format, keepdims, random_image):
    ours, theirs = pair(name, data_format=data_format, keepdims=keepdims)
    x = random_image(2, 5, 7, 3)
    assert_like_keras(ours, theirs, [x])
    assert tuple(ours(x).shape) == ours.compute_output_shape((2, 5, 7, 3))


@pytest.mark.parametrize("keepdims", [False, True])
def test_pooling_of_sequences_against_keras(keepdims, random_image):
    lengths = torch.tensor([5, 2, 1])
    mask = torch.arange(5) < lengths[:, None]
    x = random_image(3, 5, 7)
    ours, theirs = pair("GlobalAveragePooling1D", keepdims=keepdims)
    assert_like_keras(ours, theirs, [x])
    assert_like_keras(ours, theirs, [x], {"lengths": lengths}, {"mask": mask})
    spoilt = x.masked_fill(~mask[:, :, None], float("nan"))
    torch.testing.assert_close(ours(spoilt, lengths=lengths), ours(x, lengths=lengths))
    assert (ours(x, lengths=torch.tensor([0, 1, 2]))[0] == 0).all()


@pytest.mark.parametrize("target", [(6, 5), (-1,), (2, -1, 3), (30,)])
def test_reshape_against_keras(target, random_image):
    ours, theirs = pair("Reshape", target)
    x = random_image(4, 5, 6)
    assert_like_keras(ours, theirs, [x])
    assert ours.compute_output_shape((None, 5, 6)) == theirs.compute_output_shape((None, 5, 6))


@pytest.mark.parametrize("shape, axis", [((6, 5), -1), ((4, 7, 5), -1), ((3, 4, 2, 5), 3), ((3, 5, 4, 2), 1)])
@pytest.mark.parametrize("center, scale", [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("training", [False, True])
def test_batch_normalization_against_keras(shape, axis, center, scale, training, random_image):
    ours, theirs = pair("BatchNormalization", axis, center=center, scale=scale, momentum=0.7, epsilon=0.01)
    x = random_image(*shape)
    ours.build_once(shape)
    ours.running_mean.copy_(torch.arange(5) / 3)
    ours.running_var.copy_(torch.arange(5) / 2 + 0.5)
    if training:
        x = (3 * x + 1).detach().requires_grad_()
    assert_like_keras(ours, theirs, [x], training=training)
    # Once when built and compared, twice after the weights were made equal.
    for found, expected in ((ours.running_mean, theirs.moving_mean), (ours.running_var, theirs.moving_variance)):
        torch.testing.assert_close(found, expected.value, rtol=1e-5, atol=1e-5)


def test_batch_normalization_starts_from_no_memory_as_it_comes(monkeypatch):
    """What torch multiplies by 0 may not be a NaN that lay there before."""
    monkeypatch.setattr(torch, "empty_like", lambda like: torch.full_like(like, float("nan")))
    layer = layers.BatchNormalization()
    layer.train()
    layer(torch.arange(12.0).reshape(4, 3))
    assert torch.isfinite(layer.running_mean).all() and torch.isfinite(layer.running_var).all()


def test_batch_normalization_of_padded_rows_against_keras(random_image):
    lengths = torch.tensor([5, 2, 0, 4])
    mask = torch.arange(5) < lengths[:, None]
    where = mask[:, :, None].float()
    ours, theirs = pair("BatchNormalization")
    x = random_image(4, 5, 3)
    assert_like_keras(ours, theirs, [x], {"lengths": lengths}, {"mask": mask}, where=where, training=True)
    broken = x.detach().float().masked_fill(~mask[:, :, None], torch.nan)  # padding is not read
    assert torch.equal(ours(broken, lengths=lengths), ours(x.float(), lengths=lengths))


def test_batch_normalization_of_one_value(random_image):
    ours, theirs = pair("BatchNormalization", center=True)
    assert_like_keras(ours, theirs, [random_image(1, 5)], training=True)


def test_batch_normalization_is_torchs_module():
    layer = layers.BatchNormalization(1, momentum=0.9, epsilon=1e-5, input_shape=(5, 4, 4))
    layer.build_once((None, 5, 4, 4))
    twin = torch.nn.BatchNorm2d(5)
    assert set(layer.state_dict()) == set(twin.state_dict()) - {"num_batches_tracked"}
    x = torch.randn(3, 5, 4, 4)
    torch.testing.assert_close(layer(x), twin(x))
    torch.testing.assert_close(layer.running_mean, twin.running_mean)


def test_initial_depthwise_weights_are_keras():
    nnlib.set_seed(0)
    layer = layers.DepthwiseConv2D(3, depth_multiplier=2)
    layer.build_once((None, 9, 9, 128))
    limit = (6 / (9 * 128 + 9 * 2)) ** 0.5
    assert 0.99 * limit < layer.weight.abs().max() <= limit


@pytest.mark.parametrize(
    "layer",
    [
        layers.DepthwiseConv2D(3, depth_multiplier=2),
        layers.SeparableConv2D(4, 3),
        layers.Conv2DTranspose(4, 3, 2, activation="relu"),
        layers.GlobalMaxPooling2D(),
    ],
    ids=lambda layer: layer.name,
)
def test_every_backend(layer):
    x = torch.randn(2, 6, 5, 3)
    model = models.Sequential([layer])
    results = {}
    for backend in ("numba", "torch", "reference"):
        with ops.recording() as uses:
            results[backend] = model.to_backend(backend)(x)
        assert {use.backend for use in uses} == {backend}
    torch.testing.assert_close(results["numba"], results["reference"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results["torch"], results["reference"], rtol=1e-5, atol=1e-5)


def test_an_activation_behind_a_separable_convolution_is_fused():
    model = models.Sequential([layers.SeparableConv2D(4, 3), layers.Activation("relu")])
    with ops.recording() as uses:
        y = model(torch.randn(1, 5, 5, 2))
    assert [use.op for use in uses] == ["conv2d", "conv2d"] and (y >= 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: layers.DepthwiseConv2D(3, depth_multiplier=0),
            "depth_multiplier: a positive integer is expected, got 0",
        ),
        (lambda: layers.Conv2DTranspose(0, 3), "filters: a positive integer is expected, got 0"),
        (
            lambda: layers.Conv2DTranspose(2, 3, 2, output_padding=2),
            r"output_padding: from 0 to less than the stride \(2, 2\) is expected, got 2",
        ),
        (
            lambda: layers.Reshape((2, -1, -1)),
            r"target_shape: positive sizes, at most one of them -1, are expected, got \(2, -1, -1\)",
        ),
        (
            lambda: layers.Reshape((4, 2))(torch.zeros(2, 3, 3)),
            r"reshape: input must have values for \(4, 2\), got \(2, 3, 3\)",
        ),
        (lambda: layers.BatchNormalization(momentum=2), r"momentum: a number in \[0, 1\] is expected, got 2"),
        (lambda: layers.BatchNormalization(epsilon=0), "epsilon: a positive number is expected, got 0"),
        (
            lambda: layers.BatchNormalization(3)(torch.zeros(2, 3)),
            r"batch_normalization: axis 3 must be one of the input's but the batch, got \(2, 3\)",
        ),
        (
            lambda: models.Sequential([layers.BatchNormalization(input_shape=(3,))])(torch.zeros(2, 4)),
            r"batch_normalization: input must have 3 channels in axis 1, got \(2, 4\)",
        ),
        (
            lambda: models.Sequential([layers.Conv2DTranspose(2, 3, input_shape=(4, 4, 3))])(torch.zeros(2, 4, 4, 5)),
            r"conv2d_transpose: input must have shape \(N, H, W, 3\), got \(2, 4, 4, 5\)",
        ),
    ],
)  # fmt: skip
def test_errors(make, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()
