"""Every layer against torch.nn.functional with the same weights: values, all gradients, odd sizes, real biases."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import nnlib
from nnlib import layers

TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


def channels_first(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 3, 1, 2)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1)


def assert_same_with_gradients(layer, x, twin):
    """layer(x) and twin(x, weight, bias) agree in values and in the gradients of x and of all parameters."""
    layer(x)  # builds
    layer.double()
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    ours = layer(x)
    weights = [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]
    theirs = twin(x, *weights)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    cotangent = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    our_gradients = torch.autograd.grad(ours, [x, *layer.parameters()], cotangent)
    their_gradients = torch.autograd.grad(theirs, [x, *weights], cotangent)
    for our, their in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(our, their, **TOLERANCE)
    assert tuple(ours.shape) == layer.compute_output_shape(tuple(x.shape))


@pytest.fixture(autouse=True)
def double_precision():
    """Layers are built in float64, where a wrong term cannot hide in rounding."""
    torch.set_default_dtype(torch.float64)
    nnlib.set_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu", "tanh", "sigmoid", "softmax"])
def test_conv2d_activations(activation, random_image):
    functions = {None: lambda y: y, "softmax": lambda y: y.softmax(1)}
    apply = functions.get(activation) or getattr(F, activation)
    layer = layers.Conv2D(5, 3, activation=activation)
    assert_same_with_gradients(
        layer,
        random_image(2, 7, 9, 3),
        lambda x, weight, bias: channels_last(apply(F.conv2d(channels_first(x), weight, bias))),
    )


def same_image(x, window, stride, dilation=(1, 1), value=0.0):
    """x (N, C, H, W) padded as TensorFlow's SAME pads, an odd row below and right."""
    pads = []
    for axis in (1, 0):
        size = x.shape[2 + axis]
        reach = dilation[axis] * (window[axis] - 1) + 1
        total = max((-(-size // stride[axis]) - 1) * stride[axis] + reach - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 2), (4, 5)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_conv2d_windows(kernel, strides, padding, data_format, random_image):
    layer = layers.Conv2D(4, kernel, strides, padding, data_format=data_format)

    def twin(x, weight, bias):
        image = channels_first(x) if data_format == "channels_last" else x
        image = same_image(image, kernel, strides) if padding == "same" else image
        y = F.conv2d(image, weight, bias, strides)
        return channels_last(y) if data_format == "channels_last" else y

    assert_same_with_gradients(layer, random_image(2, 8, 11, 5), twin)


def test_conv2d_groups_and_dilation(random_image):
    layer = layers.Conv2D(6, 3, padding="same", dilation_rate=2, groups=2)
    assert_same_with_gradients(
        layer,
        random_image(2, 7, 6, 4),
        lambda x, weight, bias: channels_last(
            F.conv2d(channels_first(x), weight, bias, padding=2, dilation=2, groups=2)
        ),
    )


def test_conv2d_without_bias(random_image):
    layer = layers.Conv2D(3, 2, use_bias=False)
    assert_same_with_gradients(
        layer, random_image(1, 5, 4, 2), lambda x, weight: channels_last(F.conv2d(channels_first(x), weight))
    )
    assert list(layer.state_dict()) == ["weight"]


@pytest.mark.parametrize("window", [(1, 1), (2, 2), (3, 2), (4, 5)])
@pytest.mark.parametrize("strides", [None, (1, 1), (2, 3), (5, 1)])
@pytest.mark.parametrize("size", [(6, 7), (11, 8)])
def test_pooling_same(window, strides, size, random_image):
    x = random_image(2, *size, 3)
    step = strides or window
    highest = layers.MaxPooling2D(window, strides, padding="same")
    assert_same_with_gradients(
        highest,
        x,
        lambda x: channels_last(
            F.max_pool2d(same_image(channels_first(x), window, step, value=-float("inf")), window, step)
        ),
    )

    def mean(x):
        image = channels_first(x)
        total = F.avg_pool2d(same_image(image, window, step), window, step)
        share = F.avg_pool2d(same_image(torch.ones_like(image), window, step), window, step)
        return channels_last(total / share)

    assert_same_with_gradients(layers.AveragePooling2D(window, strides, padding="same"), x, mean)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_pooling_valid(data_format, random_image):
    before, after = (channels_first, channels_last) if data_format == "channels_last" else (lambda x: x, lambda x: x)
    x = random_image(2, 7, 9, 5)
    assert_same_with_gradients(
        layers.MaxPooling2D((2, 3), data_format=data_format), x, lambda x: after(F.max_pool2d(before(x), (2, 3)))
    )
    assert_same_with_gradients(
        layers.AveragePooling2D(3, 2, data_format=data_format), x, lambda x: after(F.avg_pool2d(before(x), 3, 2))
    )


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("keepdims", [False, True])
def test_global_average_pooling(data_format, keepdims, random_image):
    axes = (1, 2) if data_format == "channels_last" else (2, 3)
    layer = layers.GlobalAveragePooling2D(data_format, keepdims)
    assert_same_with_gradients(layer, random_image(2, 3, 5, 7), lambda x: x.mean(axes, keepdim=keepdims))


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 4, 3, 5)])
@pytest.mark.parametrize("activation", [None, "relu", "tanh", "softmax", "log_softmax"])
def test_dense(shape, activation, random_image):
    functions = {
        None: lambda y: y,
        "softmax": lambda y: y.softmax(-1),
        "log_softmax": lambda y: y.log_softmax(-1),
    }
    apply = functions.get(activation) or getattr(F, activation)
    layer = layers.Dense(7, activation=activation)
    assert_same_with_gradients(layer, random_image(2, *shape), lambda x, weight, bias: apply(F.linear(x, weight, bias)))


def test_dense_gives_logits_on_request(random_image):
    layer = layers.Dense(4, activation="softmax")
    x = random_image(3, 5)
    torch.testing.assert_close(layer(x, apply_softmax=False).softmax(-1), layer(x), **TOLERANCE)


def test_flatten_has_one_order_of_features(random_image):
    x = random_image(2, 3, 4, 5)
    last = layers.Flatten()(x)
    torch.testing.assert_close(last, x.reshape(2, 60))
    first = layers.Flatten(data_format="channels_first")(channels_first(x))
    assert torch.equal(first, last)


def test_dropout_in_training_and_evaluation():
    layer = layers.Dropout(0.25)
    x = torch.ones(4000)
    y = layer(x)
    assert set(y.unique().tolist()) == {0.0, 1 / 0.75}
    assert abs((y == 0).double().mean().item() - 0.25) < 0.03
    assert torch.equal(layer.eval()(x), x)


def test_activation_layer_and_functions(random_image):
    x = random_image(3, 4)
    torch.testing.assert_close(layers.Activation("swish")(x), F.silu(x), **TOLERANCE)
    assert torch.equal(layers.Activation(torch.square)(x), x.square())
    assert torch.equal(layers.Activation("softmax")(x, apply_softmax=False), x)


def test_channels_last_is_not_copied(random_image):
    """The kernel is given a view of the input, and its result is handed on as a view."""
    layer = layers.MaxPooling2D(1)
    x = random_image(2, 4, 5, 3)
    assert layer.to_kernel_order(x).data_ptr() == x.data_ptr()
    assert layers.Conv2D(8, 3)(x).is_contiguous()


def test_initial_weights_are_keras():
    layer = layers.Conv2D(64, 3, groups=2, input_shape=(9, 9, 32))
    layer.build_once((None, 9, 9, 32))
    limit = (6 / (9 * 16 + 9 * 64)) ** 0.5  # Glorot's: fans are window times channels in, window times filters
    assert 0.99 * limit < layer.weight.abs().max() <= limit
    assert abs(layer.weight.std().item() - limit / 3**0.5) < 0.02 * limit
    assert torch.count_nonzero(layer.bias) == 0


def test_layers_are_torch_modules(random_image):
    seen = []
    layer = layers.Dense(2)
    layer.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    layer(random_image(3, 4))
    assert seen == [(3, 2)]
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == {"weight": (2, 4), "bias": (2,)}
