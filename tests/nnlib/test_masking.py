"""Masking, and the masks that other layers take, held to Keras."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nnlib
from nnlib import layers, models
from tests.nnlib.keras_twin import assert_close, randomize
from tests.nnlib.messages import message

keras = pytest.importorskip("keras")


def padded(mask_value=0.0):
    x = np.random.default_rng(0).standard_normal((3, 5, 4)).astype(np.float32)
    x[0, 3:] = x[2, 1:] = mask_value
    return x


@pytest.mark.parametrize("mask_value", [0.0, -1.0])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_a_masked_program_is_keras(kind, mask_value):
    model = models.Sequential([nnlib.Input((5, 4)), layers.Masking(mask_value), getattr(layers, kind)(3)])
    randomize(model)
    theirs = nnlib.to_keras(model)
    x = padded(mask_value)
    assert_close(model(x).detach().numpy(), theirs(x).detach().numpy())
    assert_close(nnlib.from_keras(theirs)(x).detach().numpy(), model(x).detach().numpy())
    x[0, 1, 2] = np.nan  # a step with any other value is real
    assert torch.isnan(model(x)[0]).any() and torch.isfinite(model(x)[1:]).all()


def test_the_output_of_masking_is_keras():
    x = padded(0.5)
    x[1, 2, :3] = 0.5
    found = layers.Masking(0.5)(x)
    assert torch.equal(found, keras.layers.Masking(0.5)(x).detach())
    assert not found[0, 3:].any() and found[1, 2].all()


def test_padding_in_front_is_refused():
    x = padded()[:, ::-1]
    model = models.Sequential([layers.Masking(), layers.LSTM(2)])
    with message(ValueError, r"masking: input of Masking must have its padding at the end of each row"):
        model(x)
    with message(ValueError, r"masking: input must have shape \(N, T, features\), got \(3, 4\)"):
        model(x[:, 0])


@pytest.mark.parametrize("kind", [bool, np.int64])
def test_batch_normalization_counts_what_the_mask_says(kind):
    layer, theirs = layers.BatchNormalization(momentum=0.5), keras.layers.BatchNormalization(momentum=0.5)
    x = padded()
    mask = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    for _ in range(2):
        found = layer(x, mask=mask.astype(kind), training=True)
        expected = theirs(x, mask=mask.astype(bool), training=True).detach()
    real = torch.tensor(mask).bool()
    assert_close(found[real].detach().numpy(), expected[real].numpy())
    assert not found[~real].any()
    assert_close(layer.running_mean.numpy(), theirs.moving_mean.numpy())
    assert_close(layer.running_var.numpy(), theirs.moving_variance.numpy())
    by_lengths = layer(x, lengths=np.array([3, 0, 5]), training=False)
    assert torch.equal(by_lengths, layer(x, mask=np.arange(5) < np.array([[3], [0], [5]]), training=False))
    with message(ValueError, "batch_normalization: lengths or mask must be given, got both"):
        layer(x, mask=mask, lengths=np.array([3, 0, 5]))
    with message(ValueError, r"batch_normalization: mask must have shape \(3, 5\), got \(3, 4\)"):
        layer(x, mask=mask[:, 1:])
    with message(TypeError, "batch_normalization: mask must be bool, True for real steps, got torch.float32"):
        layer(x, mask=mask.astype(np.float32))
