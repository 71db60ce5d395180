"""When layers are built, and with which sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nnlib
from nnlib import layers, models
from tests.nnlib.messages import message

BUILT = [
    (lambda: layers.Dense(3), (None, 4)),
    (lambda: layers.Conv2D(3, 2), (None, 5, 5, 2)),
    (lambda: layers.SeparableConv2D(3, 2), (None, 5, 5, 2)),
    (lambda: layers.GRU(3), (None, 5, 4)),
    (lambda: layers.Bidirectional(layers.LSTM(3)), (None, 5, 4)),
    (lambda: layers.MultiHeadAttention(2, 3), (None, 5, 4)),
    (lambda: layers.TransformerBlock(4, 2, 8), (None, 5, 4)),
    (lambda: layers.BatchNormalization(), (None, 5, 4)),
]


@pytest.mark.parametrize("make, shape", BUILT)
def test_build_by_itself_builds_once(make, shape):
    layer = make()
    layer.build(shape)
    assert layer.built and layer.built_input_shape == shape
    before = list(layer.parameters())
    layer.build(list(shape))
    layer(np.ones([size or 2 for size in shape]))
    assert all(one is other for one, other in zip(before, layer.parameters(), strict=True))


def test_build_without_a_shape():
    layer = layers.Embedding(5, 2)
    layer.build()
    assert layer.weight.shape == (5, 2)
    layer = layers.Dense(3, input_shape=(4,))
    layer.build()
    assert layer.weight.shape == (3, 4)
    with message(ValueError, "dense: build needs an input_shape, batch first, got None"):
        layers.Dense(3).build()
    with message(ValueError, r"lstm: input must have shape \(N, T, features\), got \(None, 4\)"):
        layers.LSTM(3).build((None, 4))


def test_a_failed_build_leaves_a_layer_that_can_be_built():
    layer = layers.Dense(3, kernel_initializer="identity", bias_initializer="identity")
    for _ in range(2):
        with message(ValueError, "dense: bias_initializer: identity: a weight of two axes is expected"):
            layer.build((None, 3))
        assert not layer.built
    layer.bias_initializer = "ones"
    layer.build((None, 3))
    assert torch.equal(layer(np.eye(3)), torch.eye(3) + 1)


def test_layers_in_a_layers_build():
    class Block(layers.Layer):
        def __init__(self, units):
            super().__init__()
            self.first, self.second = layers.Dense(units), layers.Dense(1)

        def build(self, input_shape):
            self.first.build(input_shape)
            self.second.build((*input_shape[:-1], self.first.units))

        def call(self, x):
            return self.second(self.first(x))

    model = models.Sequential([nnlib.Input((4,)), Block(3)])
    assert [tuple(parameter.shape) for parameter in model.parameters()] == [(3, 4), (3,), (1, 3), (1,)]
    before = [parameter.clone() for parameter in model.parameters()]
    model(np.ones((2, 4)))
    for one, other in zip(before, model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_layer_that_is_built_is_wrapped_as_in_keras():
    inner = layers.LSTM(3, return_sequences=True, kernel_initializer="ones")
    inner(np.ones((2, 5, 4)))
    both = layers.Bidirectional(inner)
    assert both.forward_layer is not inner and both.forward_layer.kernel_initializer == "ones"
    assert both(np.ones((2, 5, 4))).shape == (2, 5, 6)
    with message(ValueError, "layer: it must go forward"):
        layers.Bidirectional(layers.LSTM(3, go_backwards=True))


SIZES = [
    ("units", lambda size: layers.Dense(size)),
    ("units", lambda size: layers.LSTM(size)),
    ("input_dim", lambda size: layers.Embedding(size, 2)),
    ("output_dim", lambda size: layers.Embedding(2, size)),
    ("num_heads", lambda size: layers.MultiHeadAttention(size, 2)),
    ("value_dim", lambda size: layers.MultiHeadAttention(2, 2, size)),
    ("output_shape", lambda size: layers.MultiHeadAttention(2, 2, output_shape=size)),
]


@pytest.mark.parametrize("size", [0, -1, 2.0, "2", True, np.float32(2)])
@pytest.mark.parametrize("argument, make", SIZES)
def test_sizes_that_are_none(argument, make, size):
    with message(ValueError, f"{argument}: a positive integer is expected, got "):
        make(size)


@pytest.mark.parametrize("argument, make", SIZES)
def test_numpys_integers_are_sizes(argument, make):
    layer = make(np.int64(3))
    kept = getattr(layer, "output_features" if argument == "output_shape" else argument)
    assert kept == 3 and type(kept) is int


def test_sizes_of_convolutions_and_axes():
    for filters in (2.0, None, "2", 0):
        with message(ValueError, r"filters: a positive integer is expected, got"):
            layers.Conv2D(filters, 3)
    with message(TypeError, "axis: an integer or several are expected, got {'axis': -1}"):
        layers.LayerNormalization(axis={"axis": -1})
    with message(ValueError, "multi_head_attention: value and key must have as many steps, got"):
        layers.MultiHeadAttention(2, 3).compute_output_shape((2, 4, 8), (2, 5, 8), (2, 6, 8))
