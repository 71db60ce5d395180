"""Models and weights from and to torch modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nnlib
from nnlib import layers, models
from tests.nnlib.converted import IMAGE, ROWS, TOKENS, noise, output, randomized

keras = pytest.importorskip("keras")


def without_bias(module: nn.Module) -> nn.Module:
    """As bias=False makes it, where torch has that."""
    module.register_parameter("bias", None)
    return module


class Doubled(layers.Dense):
    def call(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().call(x)


TORCH_MODULES = [
    (nn.Linear(6, 3), ROWS),
    (nn.Linear(6, 3, bias=False), ROWS),
    (nn.Conv2d(4, 6, 3, padding=1, groups=2), IMAGE),
    (nn.Conv2d(4, 6, (3, 2), stride=2, padding=(2, 1)), IMAGE),
    (nn.Conv2d(4, 5, 2, padding="same", bias=False), IMAGE),
    (nn.Conv2d(4, 5, 3, dilation=2, padding=2), IMAGE),
    (nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1), IMAGE),
    (nn.ConvTranspose2d(4, 3, 2, stride=3), IMAGE),
    (nn.BatchNorm2d(4, momentum=0.3), IMAGE),
    (nn.BatchNorm2d(4, affine=False), IMAGE),
    (nn.BatchNorm1d(5), ROWS),
    (without_bias(nn.BatchNorm2d(4)), IMAGE),
    (nn.LayerNorm(6), ROWS),
    (nn.LayerNorm((5, 6), bias=False), ROWS),
    (nn.LayerNorm(6, elementwise_affine=False), ROWS),
    (nn.RMSNorm(6, eps=1e-5), ROWS),
    (nn.Embedding(10, 4), TOKENS),
    (nn.MaxPool2d(2), IMAGE),
    (nn.MaxPool2d(3, stride=(1, 2)), IMAGE),
    (nn.AvgPool2d(3, 2), IMAGE),
    (nn.AdaptiveAvgPool2d(1), IMAGE),
    (nn.AdaptiveMaxPool2d((1, 1)), IMAGE),
    (nn.Flatten(), IMAGE),
    (nn.Dropout(0.3), ROWS),
    *((kind(), ROWS) for kind in (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid)),
    *(
        (kind(), ROWS)
        for kind in (
            nn.CELU, nn.ELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid,
            nn.Mish, nn.ReLU6, nn.SELU, nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanhshrink, nn.Identity,
        )
    ),
    (nn.LeakyReLU(0.3), ROWS),
    (nn.Softmax(-1), ROWS),
    (nn.Softmax(1), IMAGE),
    (nn.LogSoftmax(-1), ROWS),
    (nn.LocalResponseNorm(3, 0.3, 0.6, 1.5), IMAGE),
    (nn.ZeroPad2d((1, 2, 0, 3)), IMAGE),
    (nn.AvgPool2d(3, 2, 1), IMAGE),
    (nn.MaxPool1d(2), ROWS),
    (nn.AvgPool1d(3, 2), ROWS),
    (nn.Sequential(nn.Flatten(), nn.Unflatten(1, (3, 10))), ROWS),
    (nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 7, batch_first=True), 2, nn.LayerNorm(6)), ROWS),
    *((kind(6, 3, batch_first=True, bias=bias), ROWS) for kind in (nn.LSTM, nn.GRU, nn.RNN) for bias in (True, False)),
    (nn.RNN(6, 3, batch_first=True, nonlinearity="relu"), ROWS),
    *(
        (kind(6, 3, num_layers=2, batch_first=True, bidirectional=True, dropout=0.2), ROWS)
        for kind in (nn.LSTM, nn.GRU, nn.RNN)
    ),
    (nn.TransformerEncoderLayer(6, 2, 7, activation="gelu", batch_first=True, norm_first=True), ROWS),
    (nn.TransformerEncoderLayer(6, 2, 7, batch_first=True), ROWS),
    (
        nn.Sequential(
            nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
            nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(24, 5)), nn.Softmax(-1),
        ),
        IMAGE,
    ),
    (nn.Sequential(nn.Embedding(10, 4), nn.LayerNorm(4), nn.Linear(4, 3)), TOKENS),
]  # fmt: skip


MODULES = [*TORCH_MODULES, (nn.Dropout2d(0.3), IMAGE)]


@pytest.mark.parametrize(("module", "shape"), MODULES, ids=lambda value: type(value).__name__)
def test_from_torch(module, shape):
    randomized(module)
    made = nnlib.from_torch(module)
    x = noise(shape)
    assert not made.training
    torch.testing.assert_close(made(x), output(module, x), rtol=2e-5, atol=2e-6)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_attention_from_torch_and_back():
    for options in ({}, {"kdim": 5, "vdim": 7}, {"bias": False}):
        module = randomized(nn.MultiheadAttention(6, 2, batch_first=True, dropout=0.1, **options))
        layer = nnlib.from_torch(module)
        query, key, value = noise(ROWS), noise((2, 4, module.kdim)), noise((2, 4, module.vdim))
        expected = module(query, key, value)[0]
        torch.testing.assert_close(layer(query, value, key), expected)
        back = nnlib.to_torch(layer)
        assert type(back) is nn.MultiheadAttention and back.dropout == 0.1
        assert torch.equal(back(query, key, value)[0], expected)


def test_dropout_of_channels():
    torch.manual_seed(0)
    y = nnlib.from_torch(nn.Dropout2d(0.5))(torch.ones(8, 6, 3, 2))
    assert torch.equal(y, y[:, :, :1, :1].expand_as(y)) and set(y.unique().tolist()) == {0.0, 2.0}


def test_pooling_of_steps_goes_both_ways():
    x = noise(ROWS)
    for layer in (layers.MaxPooling1D(2), layers.AveragePooling1D(3, 2, data_format="channels_first")):
        torch.testing.assert_close(nnlib.to_torch(layer)(x), layer(x))
    with pytest.raises(ValueError, match="^max_pooling1d: padding='same' does not convert: it depends on the number"):
        nnlib.to_torch(layers.MaxPooling1D(2, padding="same"))


def test_local_response_goes_both_ways():
    layer = layers.LocalResponseNormalization(3, 0.1, 0.6, 1.5, data_format="channels_first")
    x = noise(IMAGE)
    torch.testing.assert_close(nnlib.to_torch(layer)(x), layer(x))


def test_a_converted_model_trains_like_the_torch_one():
    module = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 7 * 6, 5))
    model = nnlib.from_torch(module)
    x, target = noise(IMAGE), torch.tensor([1, 4])
    losses = []
    for network in (model, module):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        losses.append([])
        for _ in range(3):
            loss = nn.functional.cross_entropy(network(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def image_model(data_format):
    shape = (9, 8, 4) if data_format == "channels_last" else (4, 9, 8)
    return models.Sequential(
        [
            layers.ZeroPadding2D(((0, 1), (2, 0)), data_format, input_shape=shape),
            layers.Conv2D(6, 3, 2, "same", data_format, activation="relu"),
            layers.BatchNormalization(-1 if data_format == "channels_last" else 1),
            layers.DepthwiseConv2D(2, depth_multiplier=2, data_format=data_format, activation="softmax"),
            layers.MaxPooling2D(2, 1, "same", data_format),
            layers.Dropout(0.2),
            layers.SeparableConv2D(5, 2, data_format=data_format, activation="silu"),
            layers.Conv2DTranspose(3, 3, 2, data_format=data_format),
            layers.AveragePooling2D(2, data_format=data_format),
            layers.Flatten(data_format=data_format),
            layers.Dense(7, activation="softmax"),
        ]
    )


TO_TORCH = [
    (lambda: image_model("channels_last"), (2, 9, 8, 4)),
    (lambda: image_model("channels_first"), (2, 4, 9, 8)),
    (
        lambda: models.Sequential(
            [
                layers.Conv2D(3, 2, input_shape=(9, 8, 4)),
                layers.GlobalMaxPooling2D(),
                layers.Reshape((3, 1)),
                layers.LayerNormalization((1, 2)),
            ]
        ),
        (2, 9, 8, 4),
    ),
    (lambda: models.Sequential([layers.Conv2D(3, 2, input_shape=(9, 8, 4)), layers.Activation("tanh")]), (2, 9, 8, 4)),
    (
        lambda: models.Sequential(
            [
                layers.Embedding(10, 6, input_length=5),
                layers.LSTM(4, return_sequences=True),
                layers.Bidirectional(layers.GRU(3, return_sequences=True)),
                layers.BatchNormalization(),
                layers.RMSNormalization(),
                layers.TransformerBlock(6, 2, 8),
                layers.Bidirectional(layers.LSTM(4)),
                layers.Dense(3),
            ]
        ),
        TOKENS,
    ),
    (
        lambda: models.Sequential(
            [layers.SimpleRNN(4, return_sequences=True, input_shape=(5, 6)), layers.GlobalAveragePooling1D()]
        ),
        ROWS,
    ),
    (lambda: models.Sequential([layers.GRU(4, input_shape=(5, 6)), layers.Activation("sigmoid")]), ROWS),
]


@pytest.mark.parametrize(("make", "shape"), TO_TORCH)
def test_to_torch(make, shape):
    model = randomized(make())
    module = nnlib.to_torch(model)
    assert isinstance(module, nn.Sequential) and not module.training
    assert not any(isinstance(child, layers.Layer) for child in module.modules())
    x = noise(shape)
    expected = model(x).detach().clone()
    torch.testing.assert_close(module(x), expected, rtol=2e-5, atol=2e-6)
    trainable = sum(parameter.numel() for parameter in module.parameters())
    ours = sum(parameter.numel() for parameter in model.parameters())
    second_biases = sum(p.numel() for n, p in module.named_parameters() if "bias_hh" in n)
    assert trainable - second_biases <= ours <= trainable
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(("module", "shape"), TORCH_MODULES, ids=lambda value: type(value).__name__)
def test_from_torch_and_back(module, shape):
    if isinstance(module, nn.Identity):
        return
    made = nnlib.from_torch(randomized(module))
    x = noise(shape)
    made(x)  # layers without weights learn their input here
    torch.testing.assert_close(output(nnlib.to_torch(made), x), output(module, x), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("convert", "kind", "message"),
    [
        (
            lambda: nnlib.from_torch(nn.Bilinear(2, 2, 2)),
            TypeError,
            r"module: modules that convert are AdaptiveAvgPool2d, .*, Sequential; got a Bilinear",
        ),
        (
            lambda: nnlib.from_torch(nn.Sequential(nn.ReLU(), nn.LSTM(2, 3))),
            ValueError,
            r"module\[1\] \(LSTM\): batch_first must be True to convert, got False",
        ),
        (
            lambda: nnlib.from_torch(nn.Conv2d(2, 2, 3, padding_mode="reflect")),
            ValueError,
            r"module \(Conv2d\): padding_mode must be 'zeros' to convert, got 'reflect'",
        ),
        (
            lambda: nnlib.from_torch(nn.MaxPool2d(3, padding=1)),
            ValueError,
            r"module \(MaxPool2d\): padding must be 0 to convert, got 1",
        ),
        (
            lambda: nnlib.from_torch(nn.MultiheadAttention(4, 2, add_bias_kv=True, batch_first=True)),
            ValueError,
            r"module \(MultiheadAttention\): bias_k must be None to convert, got a tensor \(1, 1, 4\)",
        ),
        (
            lambda: nnlib.from_torch(nn.ELU(0.5)),
            ValueError,
            r"module \(ELU\): alpha must be 1.0 to convert, got 0.5",
        ),
        (
            lambda: nnlib.from_torch(nn.Unflatten(1, (2, -1))),
            ValueError,
            r"module \(Unflatten\): unflattened_size must have no -1 to convert, got \(2, -1\)",
        ),
        (
            lambda: nnlib.from_torch(nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
            ValueError,
            r"module \(AvgPool2d\): count_include_pad must be True to convert, got False",
        ),
        (
            lambda: nnlib.from_torch(nn.Embedding(3, 2, padding_idx=0)),
            ValueError,
            r"module \(Embedding\): padding_idx must be None to convert, got 0",
        ),
        (
            lambda: nnlib.to_torch(models.Sequential([layers.Dense(2)])),
            ValueError,
            "sequential: the model must be built to have weights, got one that is not",
        ),
        (
            lambda: nnlib.to_torch(models.Sequential([layers.GRU(2, reset_after=False, input_shape=(3, 2))])),
            ValueError,
            "gru: reset_after=False does not convert: torch resets after the product",
        ),
        (
            lambda: nnlib.to_torch(models.Sequential([layers.Masking(input_shape=(3, 2))])),
            TypeError,
            "masking: layers that convert are .*; got a Masking",
        ),
        (
            lambda: nnlib.to_torch(models.Sequential([layers.Dense(2, activation=torch.square, input_shape=(3,))])),
            ValueError,
            "dense: activation='square' does not convert: it is a function",
        ),
        (
            lambda: nnlib.to_torch(Doubled(2, input_shape=(3,))),
            TypeError,
            "doubled: a Doubled has a call of its own, which does not convert",
        ),
        (
            lambda: nnlib.to_torch(nn.ReLU()),
            TypeError,
            "model: a Sequential or a layer of nnlib is expected, got a ReLU",
        ),
    ],
)
def test_torch_errors(convert, kind, message):
    with pytest.raises(kind, match=f"^{message}$"):
        convert()
