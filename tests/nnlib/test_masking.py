"""Masking, and the masks that other layers take, held to Keras."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nnlib
from nnlib import layers, models
from nnlib.convert.keras_weights import keras_weights
from tests.nnlib.keras_twin import assert_close, randomize, tensors
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


FRONT_AND_GAPS = np.array([[0, 0, 1, 1, 1], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0]], dtype=bool)


def with_gaps():
    x = np.random.default_rng(1).standard_normal((4, 5, 4)).astype(np.float32)
    x[~FRONT_AND_GAPS] = 0
    return x


@pytest.mark.parametrize("options", [{}, {"return_sequences": True}, {"return_sequences": True, "go_backwards": True}])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_padding_may_be_anywhere(kind, options):
    """Gradients too: those of Keras' step by step loop over the mask."""
    options = {"return_state": True, **options}
    ours, theirs = getattr(layers, kind)(3, **options), getattr(keras.layers, kind)(3, **options)
    x = torch.from_numpy(with_gaps()).requires_grad_()
    mask = torch.from_numpy(FRONT_AND_GAPS)
    ours(x)
    randomize(ours)
    theirs(x)
    theirs.set_weights(keras_weights(ours))
    found, expected = ours(x, mask=mask), theirs(x, mask=mask)
    for mine, right in zip(found, expected, strict=True):
        assert_close(mine.detach().numpy(), right.detach().numpy())
    weight = torch.randn(found[0].shape, generator=torch.Generator().manual_seed(2))
    one, other = (torch.autograd.grad((output[0] * weight).sum(), x)[0] for output in (found, expected))
    assert_close(one.numpy(), other.numpy())
    assert one[mask].any() and not one[~mask].any()
    broken = x.detach().masked_fill(~mask[:, :, None], torch.nan)  # what is in padded steps is never read
    for mine, right in zip(ours(broken, mask=mask), found, strict=True):
        assert torch.equal(mine, right)


@pytest.mark.parametrize("merge_mode", ["concat", None])
@pytest.mark.parametrize("return_sequences", [False, True])
def test_padding_may_be_anywhere_both_ways(return_sequences, merge_mode):
    ours = layers.Bidirectional(layers.GRU(3, return_sequences=return_sequences), merge_mode)
    theirs = keras.layers.Bidirectional(keras.layers.GRU(3, return_sequences=return_sequences), merge_mode)
    x, mask = torch.from_numpy(with_gaps()), torch.from_numpy(FRONT_AND_GAPS)
    ours(x)
    randomize(ours)
    theirs(x)
    theirs.set_weights(keras_weights(ours))
    for mine, right in zip(tensors(ours(x, mask=mask)), tensors(theirs(x, mask=mask)), strict=True):
        assert_close(mine.detach().numpy(), right.detach().numpy())


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_a_program_with_padding_in_front(kind):
    """keras.utils.pad_sequences pads in front unless told otherwise."""
    tokens = np.array([[0, 0, 3, 1, 2], [4, 0, 2, 0, 1], [0, 0, 0, 0, 5]])
    cell = getattr(layers, kind)
    model = models.Sequential(
        [layers.Embedding(6, 4, mask_zero=True, input_length=5), cell(3, return_sequences=True), cell(2)]
    )
    randomize(model)
    assert_close(model(tokens).detach().numpy(), nnlib.to_keras(model)(tokens).detach().numpy())


def test_a_mask_goes_along_outside_of_a_sequential():
    tokens = np.array([[0, 3, 1], [2, 0, 0]])
    embedding, cell = layers.Embedding(6, 4, mask_zero=True), layers.LSTM(2)
    x = embedding(tokens)
    found = cell(layers.Dropout(0.5).eval()(x))
    assert torch.equal(found, cell(x, mask=tokens != 0))
    assert not torch.equal(found, cell(x.clone()))  # an op of torch forgets it
    attention = layers.MultiHeadAttention(2, 2)
    by_hand = attention(x.clone(), attention_mask=(tokens != 0)[:, :, None] & (tokens != 0)[:, None, :])
    torch.testing.assert_close(attention(x), by_hand)


def test_a_compiled_model_refuses_padding_in_front():
    """It cannot look before it chooses its kernels."""
    model = models.Sequential([layers.Embedding(6, 4, mask_zero=True, input_length=3), layers.LSTM(2)])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    tokens = torch.tensor([[1, 2, 0], [3, 0, 0]])
    torch.testing.assert_close(compiled(tokens), model(tokens))
    with pytest.raises(RuntimeError, match="must have its padding at the end of each row .* under torch.compile"):
        compiled(tokens.flip(1))


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_metrics_leave_padded_steps_out(weighted, reduction):
    tokens = np.array([[1, 2, 0, 0], [3, 1, 2, 1], [0, 1, 0, 3]])
    labels = np.array([[0, 1, 2, 2], [2, 2, 1, 0], [1, 1, 1, 1]])
    model = models.Sequential(
        [
            layers.Embedding(4, 5, mask_zero=True, input_length=4),
            layers.GRU(4, return_sequences=True),
            layers.Dense(3, activation="softmax"),
        ]
    )
    randomize(model)
    theirs = nnlib.to_keras(model)
    more = {"sample_weight": np.linspace(0.5, 2.0, 12).reshape(3, 4)} if weighted else {}
    found = []
    for one, library in ((model, nnlib), (theirs, keras)):
        loss = library.losses.SparseCategoricalCrossentropy(reduction=reduction)
        one.compile("sgd", loss, metrics=["accuracy"], weighted_metrics=["sparse_categorical_crossentropy"])
        found.append(one.evaluate(tokens, labels, verbose=0, **more))
    np.testing.assert_allclose(*found, rtol=2e-6)
    everything = models.Sequential([layers.Embedding(4, 5, input_length=4), *model.layers[1:]])
    everything.layers[0].load_state_dict(model.layers[0].state_dict())
    everything.compile("sgd", nnlib.losses.SparseCategoricalCrossentropy(reduction=reduction))
    assert everything.evaluate(tokens, labels, verbose=0, **more) != pytest.approx(found[0][0], rel=1e-3)


def test_masking_needs_features():
    with message(ValueError, r"masking: input must have shape \(N, T, features\), got \(3, 4\)"):
        layers.Masking()(padded()[:, 0])


@pytest.mark.parametrize("kind", [bool, np.int64, np.float32])
def test_batch_normalization_counts_what_the_mask_says(kind):
    layer, theirs = layers.BatchNormalization(momentum=0.5), keras.layers.BatchNormalization(momentum=0.5)
    mask = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    x = padded() * mask[:, :, None]
    for training in (True, True, False):
        found = layer(np.where(mask[:, :, None], x, np.nan), mask=mask.astype(kind), training=training)
        expected = theirs(x, mask=mask.astype(bool), training=training).detach()
        assert_close(found.detach().numpy(), expected.numpy())
    assert_close(layer.running_mean.numpy(), theirs.moving_mean.numpy())
    assert_close(layer.running_var.numpy(), theirs.moving_variance.numpy())
    by_lengths = layer(x, lengths=np.array([3, 0, 5]), training=False)
    assert torch.equal(by_lengths, layer(x, mask=np.arange(5) < np.array([[3], [0], [5]]), training=False))
    with message(ValueError, "batch_normalization: lengths or mask must be given, got both"):
        layer(x, mask=mask, lengths=np.array([3, 0, 5]))
    with message(ValueError, r"batch_normalization: mask must have shape \(3, 5\), got \(3, 4\)"):
        layer(x, mask=mask[:, 1:])
    with message(ValueError, "batch_normalization: mask must be bool, or 1 for True and 0 for False, got 0.5"):
        layer(x, mask=mask * 0.5)


@pytest.mark.parametrize("axis", [-1, 1, (1, 2)])
def test_softmax_with_a_mask_is_keras(axis):
    x = np.random.default_rng(3).standard_normal((2, 3, 4)).astype(np.float32)
    mask = np.random.default_rng(4).random((2, 3, 4)) < 0.6
    mask[0, 1] = mask[:, :, 2] = False
    for given in (mask, mask[:1], mask[0, 0], None):
        found, expected = layers.Softmax(axis)(x, mask=given), keras.layers.Softmax(axis)(x, mask=given)
        assert_close(found.numpy(), expected.numpy())
    for given in (mask[..., :2], mask[None]):
        with message(ValueError, r"softmax: mask must have a shape that broadcasts to \(2, 3, 4\), got "):
            layers.Softmax(axis)(x, mask=given)
