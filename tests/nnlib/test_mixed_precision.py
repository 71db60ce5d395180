"""Mixed precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nnlib
from nnlib import layers, models, precision
from tests.nnlib.fitted import classifier, draw, weights_of
from tests.nnlib.messages import raises


def test_mixed_precision_trains_in_half_and_keeps_float32_weights(monkeypatch):
    """On a processor without bfloat16 too: emulated, which fit refuses there and this test allows."""
    monkeypatch.setattr(precision, "check_device", lambda dtype, device: None)
    monkeypatch.setattr("nnlib.training.setup.check_device", lambda dtype, device: None)
    x, y = draw(200)
    seen = []
    full, mixed = classifier(), classifier(mixed_precision="bfloat16")
    mixed.layers[0].register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    expected = full.fit(x, y, epochs=3, verbose=0).history
    found = mixed.fit(x, y, epochs=3, verbose=0).history
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in mixed.parameters()} == {torch.float32}
    assert found["loss"] == pytest.approx(expected["loss"], rel=0.02) and found["loss"] != expected["loss"]
    assert mixed.predict(x).dtype == np.float32


def image_model():
    model = models.Sequential([layers.Conv2D(4, 3, activation="relu", input_shape=(8, 8, 2))])
    for layer in (layers.BatchNormalization(), layers.MaxPooling2D(2), layers.Flatten(), layers.Dense(5, "softmax")):
        model.add(layer)
    return model


def recurrent_model():
    model = models.Sequential([layers.Embedding(20, 8, input_length=7), layers.LSTM(8, return_sequences=True)])
    for layer in (layers.SimpleRNN(8, return_sequences=True), layers.GRU(8), layers.Dense(5, "softmax")):
        model.add(layer)
    return model


def transformer(kind):
    return lambda: models.TransformerModel(1, 8, 2, 16, 20, 5, position_encoding_type=kind, rate=0.0)


@pytest.mark.parametrize(
    "make",
    [image_model, recurrent_model, *(transformer(kind) for kind in ("sinusoidal", "shaw", "t5", "alibi"))],
    ids=["images", "recurrent", "sinusoidal", "shaw", "t5", "alibi"],
)
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_every_network_trains_in_mixed_precision(make, kind, monkeypatch):
    """Near the float32 run, by the precision of the products; float16's gradients are scaled and back."""
    monkeypatch.setattr("nnlib.training.setup.check_device", lambda dtype, device: None)
    generator = np.random.default_rng(0)
    x = generator.integers(1, 20, (64, 7))
    if make is image_model:
        x = generator.standard_normal((64, 8, 8, 2)).astype(np.float32)
    y = generator.integers(0, 5, 64)
    runs = []
    for chosen in (None, kind):
        nnlib.set_seed(0)
        model = make()
        model.compile(nnlib.optimizers.Adam(0.01), mixed_precision=chosen, global_clipnorm=1.0)
        if chosen == "float16":  # a scale at which no gradient overflows, so that no step is left out
            model.setup.scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
        runs.append(model.fit(x, y, epochs=4, shuffle=False, verbose=0).history["loss"])
        assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert kind == "bfloat16" or model.setup.scaler.get_scale() == 128
    assert runs[1] != runs[0] and runs[1] == pytest.approx(runs[0], rel=0.03)
    assert runs[1][-1] < runs[1][0]


def test_gradients_that_overflow_leave_the_step_out(monkeypatch):
    monkeypatch.setattr("nnlib.training.setup.check_device", lambda dtype, device: None)
    model = classifier(mixed_precision="float16")
    model.setup.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = weights_of(model)
    model.train_on_batch(*draw(16))
    assert torch.equal(weights_of(model), before) and model.setup.scaler.get_scale() == 2.0**39
    model.setup.scaler = None
    model.train_on_batch(*draw(16))
    assert not torch.equal(weights_of(model), before) and isinstance(model.setup.scaler, torch.amp.GradScaler)


def test_an_encoder_decoder_learns_to_copy():
    nnlib.set_seed(0)
    source = np.random.default_rng(0).integers(2, 8, (256, 5))
    given = np.concatenate([np.ones((256, 1), np.int64), source[:, :-1]], 1)
    model = models.EncoderDecoder(1, 32, 4, 64, 8, 8, rate=0.0)
    model.compile(nnlib.optimizers.Adam(0.005), metrics=["accuracy"])
    history = model.fit([source, given], source, epochs=12, batch_size=32, validation_split=0.25, verbose=0).history
    assert history["val_accuracy"][-1] > 0.9
    with raises(ValueError, "y: sparse_categorical_crossentropy expects labels of shape (N, 5), got (256, 4)"):
        model.fit([source, given], source[:, :4], verbose=0)


def test_our_ops_follow_torch_autocast():
    layer, x = layers.Dense(3, "softmax", input_shape=(6,)), torch.randn(4, 6)
    layer.build_once((None, 6))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x, apply_softmax=False).dtype is torch.bfloat16
        assert layer(x).dtype is torch.float32  # a softmax sums in float32
    assert layer(x, apply_softmax=False).dtype is torch.float32


@pytest.mark.parametrize(
    ("features", "name", "message"),
    [
        ({}, "bfloat16", "this processor computes in neither float16 nor bfloat16, got bfloat16; leave it out, or use"),
        ({"avx512bf16": True}, "mixed_float16", "this processor computes in bfloat16 alone, got float16; leave it out"),
    ],
)
def test_mixed_precision_where_there_is_none(features, name, message, monkeypatch):
    monkeypatch.setattr("nnlib.precision.binding.get_host_cpu_features", lambda: features)
    with raises(ValueError, f"mixed_precision: {message}"):
        classifier(mixed_precision=name).fit(*draw(8), verbose=0)


def test_mixed_precision_names():
    with raises(ValueError, "mixed_precision: known names are float16, bfloat16, mixed_float16, mixed_bfloat16; got"):
        classifier(mixed_precision="half")
    with raises(TypeError, "mixed_precision: None or one of float16, bfloat16, mixed_float16, mixed_bfloat16 is expec"):
        classifier(mixed_precision=torch.float16)
