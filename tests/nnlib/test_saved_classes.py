"""Every class of layers and models, saved and loaded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nnlib
from nnlib import layers, models
from nnlib.saving import PARTS, model_classes
from tests.nnlib.saved import same

IMAGE, SEQUENCE = (6, 7, 4), (5, 4)
# One of each class that a file may name, with arguments other than the defaults.
LAYERS = {
    "Activation": lambda: layers.Activation("gelu", input_shape=(3,)),
    "AveragePooling1D": lambda: layers.AveragePooling1D(3, 1, "same", input_shape=SEQUENCE),
    "AveragePooling2D": lambda: layers.AveragePooling2D((2, 3), strides=1, padding="same", input_shape=IMAGE),
    "BatchNormalization": lambda: layers.BatchNormalization(momentum=0.5, epsilon=1e-4, input_shape=IMAGE),
    "Bidirectional": lambda: layers.Bidirectional(
        layers.LSTM(3, return_sequences=True, unit_forget_bias=False), merge_mode="sum", input_shape=SEQUENCE
    ),
    "Conv1D": lambda: layers.Conv1D(4, 2, padding="causal", groups=2, dilation_rate=2, input_shape=SEQUENCE),
    "Conv2D": lambda: layers.Conv2D(4, (2, 3), groups=2, dilation_rate=2, activation="silu", input_shape=IMAGE),
    "Conv2DTranspose": lambda: layers.Conv2DTranspose(3, 3, strides=2, padding="same", input_shape=IMAGE),
    "Dense": lambda: layers.Dense(3, "tanh", use_bias=False, input_shape=SEQUENCE),
    "DepthwiseConv2D": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, input_shape=IMAGE),
    "Dropout": lambda: layers.Dropout(0.25, input_shape=SEQUENCE),
    "Embedding": lambda: layers.Embedding(9, 4, weights=np.ones((9, 4), np.float32), input_length=5),
    "Flatten": lambda: layers.Flatten("channels_first", input_shape=IMAGE),
    "GRU": lambda: layers.GRU(3, reset_after=False, go_backwards=True, input_shape=SEQUENCE),
    "GlobalAveragePooling1D": lambda: layers.GlobalAveragePooling1D("channels_first", input_shape=SEQUENCE),
    "GlobalAveragePooling2D": lambda: layers.GlobalAveragePooling2D(keepdims=True, input_shape=IMAGE),
    "GlobalMaxPooling1D": lambda: layers.GlobalMaxPooling1D(keepdims=True, input_shape=SEQUENCE),
    "GlobalMaxPooling2D": lambda: layers.GlobalMaxPooling2D(input_shape=IMAGE),
    "LSTM": lambda: layers.LSTM(3, return_sequences=True, use_bias=False, input_shape=SEQUENCE),
    "LayerNormalization": lambda: layers.LayerNormalization(epsilon=0.1, input_shape=SEQUENCE),
    "LocalResponseNormalization": lambda: layers.LocalResponseNormalization(3, k=1.0, input_shape=IMAGE),
    "Masking": lambda: layers.Masking(0.5, input_shape=SEQUENCE),
    "MaxPooling1D": lambda: layers.MaxPooling1D(2, data_format="channels_first", input_shape=SEQUENCE),
    "MaxPooling2D": lambda: layers.MaxPooling2D(3, strides=2, input_shape=IMAGE),
    "MultiHeadAttention": lambda: layers.MultiHeadAttention(
        2, 3, value_dim=2, relative="shaw", max_distance=3, input_shape=SEQUENCE
    ),
    "PositionalEncoding": lambda: layers.PositionalEncoding(7, base=100.0, input_shape=SEQUENCE),
    "RMSNormalization": lambda: layers.RMSNormalization(epsilon=0.1, input_shape=SEQUENCE),
    "ReLU": lambda: layers.ReLU(6, 0.1, 0.2, input_shape=SEQUENCE),
    "Reshape": lambda: layers.Reshape((4, -1), input_shape=SEQUENCE),
    "SeparableConv2D": lambda: layers.SeparableConv2D(5, 3, depth_multiplier=2, input_shape=IMAGE),
    "SimpleRNN": lambda: layers.SimpleRNN(3, activation="relu", input_shape=SEQUENCE),
    "Softmax": lambda: layers.Softmax(1, input_shape=SEQUENCE),
    "TransformerBlock": lambda: layers.TransformerBlock(
        4, 2, 8, norm_first=True, relative="t5", causal=True, input_shape=SEQUENCE
    ),
    "ZeroPadding2D": lambda: layers.ZeroPadding2D(((1, 2), (0, 3)), input_shape=IMAGE),
}
SMALL = {"num_layers": 2, "d_model": 8, "num_heads": 2, "dff": 16, "input_vocab_size": 20, "target_vocab_size": 5}
MODELS = {
    "Sequential": lambda: models.Sequential([layers.Dense(3, input_shape=(4,))]),
    **{
        f"TransformerModel {kind}": lambda kind=kind: models.TransformerModel(
            **SMALL, position_encoding_type=kind, norm_first=True, mask_zero=True
        )
        for kind in ("sinusoidal", "relative", "t5", "alibi", "none")
    },
    "EncoderDecoder": lambda: models.EncoderDecoder(**SMALL, maximum_position_encoding=12),
    "AlexNet": lambda: models.AlexNet(10, (67, 67, 3), grouped=False, rate=0.25),
}


def test_there_is_an_example_of_every_class():
    made = {*LAYERS, *(name.split()[0] for name in MODELS), "InputLayer"} - {"AlexNet"}
    assert made == set(model_classes()) - set(PARTS)  # which tests of their own keep


def scrambled(model):
    """Weights, and running statistics, that no initializer gives."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) + 0.1)
    return model.eval()


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_comes_back(name, path):
    layer = LAYERS[name]()
    model = scrambled(models.Sequential([layer]))
    model.save(path)
    loaded = nnlib.load(path).eval()
    assert type(loaded.layers[0]) is type(layer) and same(loaded, model)
    generator = torch.Generator().manual_seed(1)
    shape = (2, *(layer.given_input_shape or ())[1:])
    tokens = name == "Embedding"
    x = torch.randint(1, 9, shape, generator=generator) if tokens else torch.randn(shape, generator=generator)
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("name", MODELS)
def test_every_model_comes_back(name, path):
    model = scrambled(MODELS[name]())
    model.save(path)
    loaded = nnlib.load(path).eval()
    assert type(loaded) is type(model) and loaded.name == model.name and same(loaded, model)
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "Sequential": lambda: [torch.randn(2, 4, generator=generator)],
        "AlexNet": lambda: [torch.randn(1, 67, 67, 3, generator=generator)],
        "EncoderDecoder": lambda: [torch.randint(1, 5, (2, 6), generator=generator) for _ in range(2)],
    }.get(name, lambda: [torch.randint(1, 20, (2, 6), generator=generator)])()
    assert torch.equal(loaded(*inputs), model(*inputs))
