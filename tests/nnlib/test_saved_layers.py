"""Every kind of layer and model in a file and out of it: the same outputs, bit for bit."""

from __future__ import annotations

import pytest
import torch

import nnlib
from nnlib import layers, models


def image_layers():
    return models.Sequential(
        [
            layers.ZeroPadding2D(((0, 1), (2, 0)), input_shape=(9, 8, 4)),
            layers.Conv2D(6, 3, 2, "same", activation="relu"),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(2, depth_multiplier=2),
            layers.SeparableConv2D(5, 2),
            layers.Activation("silu"),
            layers.Conv2DTranspose(3, 3, 2, output_padding=1),
            layers.LocalResponseNormalization(3),
            layers.MaxPooling2D(2, padding="same"),
            layers.AveragePooling2D(2),
            layers.GlobalMaxPooling2D(keepdims=True),
            layers.GlobalAveragePooling2D(keepdims=True),
            layers.Reshape((3, 1)),
            layers.LayerNormalization((1, 2)),
            layers.RMSNormalization(),
            layers.Flatten(),
            layers.Dropout(0.1),
            layers.Dense(2),
        ]
    )


def sequence_layers():
    back = layers.LSTM(3, return_sequences=True, go_backwards=True, dropout=0.1)
    return models.Sequential(
        [
            layers.Embedding(20, 6, mask_zero=True, input_length=5),
            layers.PositionalEncoding(),
            layers.SimpleRNN(6, return_sequences=True),
            layers.Conv1D(6, 2, padding="causal", activation="relu"),
            layers.Masking(),
            layers.MaxPooling1D(2, 1, "same"),
            layers.AveragePooling1D(2, 1, "same"),
            layers.Bidirectional(layers.GRU(3, return_sequences=True, reset_after=False), "sum"),
            layers.Bidirectional(layers.LSTM(3, return_sequences=True), backward_layer=back),
            layers.MultiHeadAttention(2, 3, relative="alibi"),
            layers.TransformerBlock(6, 2, 5, relative="t5", norm_first=True),
            layers.ReLU(6.0),
            layers.GlobalMaxPooling1D(keepdims=True),
            layers.GlobalAveragePooling1D(),
            layers.Softmax(),
            layers.Dense(3),
        ]
    )


MODELS = [
    image_layers,
    sequence_layers,
    lambda: models.TransformerModel(2, 8, 2, 12, 20, 3, "relative", mask_zero=True, norm_first=True),
    lambda: models.EncoderDecoder(1, 8, 2, 12, 20, 20),
]


@pytest.mark.parametrize("make", MODELS)
def test_out_of_a_file_comes_what_went_in(make, tmp_path):
    model = make().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.01)  # a variance is above 0
    inputs = [
        torch.randint(1, 20, x.shape, generator=generator) if x.dtype == torch.int64 else torch.randn(x.shape)
        for x in model.example_inputs()
    ]
    model.save(tmp_path / "model.safetensors")
    read = nnlib.load(tmp_path / "model.safetensors").eval()
    assert torch.equal(read(*inputs), model(*inputs))
    assert torch.isfinite(model(*inputs)).all()


def test_every_layer_is_in_one_of_the_models():
    kinds = {type(layer).__name__ for make in MODELS for layer in make().modules() if isinstance(layer, layers.Layer)}
    known = {getattr(layers, name).__name__ for name in layers.__all__}  # some have several names
    assert kinds == known - {"Layer", "KeyValueCache", "Input", "InputLayer"}
