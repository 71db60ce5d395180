"""backend=, device=, to_backend and use_backend swap every kernel and change nothing else."""

from __future__ import annotations

import pytest
import torch

import kernels
import nnlib
from nnlib import layers, models, ops

BACKENDS = ("reference", "torch", "numba")


def image_network(**options):
    return models.Sequential(
        [
            layers.Conv2D(4, 3, activation="relu", input_shape=(8, 7, 2)),
            layers.SeparableConv2D(4, 2),
            layers.MaxPooling2D(2),
            layers.Conv2DTranspose(3, 2, 2),
            layers.Flatten(),
            layers.LayerNormalization(),
            layers.Dense(3, activation="softmax"),
        ],
        **options,
    )


def text_network(**options):
    return models.Sequential(
        [
            layers.Embedding(20, 6, mask_zero=True, input_length=5),
            layers.LSTM(4, return_sequences=True),
            layers.Bidirectional(layers.GRU(3, return_sequences=True)),
            layers.TransformerBlock(6, 2, 8, relative="shaw"),
            layers.Dropout(0.2),
            layers.SimpleRNN(4),
            layers.Dense(3, activation="softmax"),
        ],
        **options,
    )


def transformer(**options):
    return models.TransformerModel(2, 8, 2, 12, 20, 3, "relative", mask_zero=True, **options)


class Subclassed(models.Model):
    """Two layers that only the model says where to compute."""

    def __init__(self, **options):
        super().__init__(**options)
        self.embedding = layers.Embedding(20, 6, input_length=5)
        self.rest = torch.nn.ModuleList([layers.GRU(3), layers.Dense(3, activation="softmax")])
        self.embedding.build_once((None, 5))
        self.rest[0].build_once((None, 5, 6))
        self.rest[1].build_once((None, 3))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], 3)

    def forward(self, x):
        x = self.embedding(x)
        for layer in self.rest:
            x = layer(x)
        return x


NETWORKS = [image_network, text_network, transformer, Subclassed]
LABELS = torch.tensor([0, 2, 1, 1])


def example(make):
    generator = torch.Generator().manual_seed(0)
    if make is image_network:
        return torch.randn(4, 8, 7, 2, generator=generator)
    tokens = torch.randint(1, 20, (4, 5), generator=generator)
    tokens[1, 3:] = 0
    return tokens


def step(model, x):
    """Loss, metrics and new weights after a step of training, and the kernels that ran for it."""
    model.compile(optimizer=torch.optim.SGD(model.parameters(), lr=0.1), loss="sparse_categorical_crossentropy")
    nnlib.set_seed(3)  # dropout
    with ops.recording() as uses:
        loss = model.train_on_batch(x, LABELS)
    return loss, {name: value.clone() for name, value in model.state_dict().items()}, uses


def made(make, **options):
    nnlib.set_seed(1)
    return make(**options)


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_four_ways_to_say_it(make, backend):
    x = example(make)
    expected = step(made(make, backend="reference"), x)
    later = made(make)
    assert later.to_backend(backend) is later
    inside = made(make)
    with kernels.use_backend(backend):
        in_block = step(inside, x)
    layerwise = made(make)
    for module in layerwise.modules():
        if isinstance(module, layers.Layer):
            module.to_backend(backend)
    layerwise.backend = backend  # of the loss
    found = [step(made(make, backend=backend), x), step(later, x), in_block, step(layerwise, x)]
    for loss, weights, uses in found:
        assert {(use.backend, use.backward) for use in uses} == {(backend, backend)}
        assert [use.op for use in uses] == [use.op for use in expected[2]]
        assert loss == pytest.approx(expected[0], rel=1e-5)
        assert list(weights) == list(expected[1])
        for name, value in weights.items():
            torch.testing.assert_close(value, expected[1][name], rtol=1e-3, atol=1e-5)
        assert all(torch.equal(value, found[0][1][name]) for name, value in weights.items())


@pytest.mark.parametrize("make", NETWORKS)
def test_the_model_says_where_parameters_are_made(make):
    """The meta device has no memory, so that every machine has a second device."""
    model = make(device="meta")
    assert model.device.type == "meta"
    tensors = [*model.parameters(), *model.buffers()]
    assert tensors and {tensor.device.type for tensor in tensors} == {"meta"}
    here = make(device="cpu")
    assert {tensor.device.type for tensor in here.parameters()} == {"cpu"}


def test_a_layer_says_it_for_itself():
    model = models.Sequential(backend="torch", device="cpu")
    model.add(layers.Dense(3, input_shape=(4,)))
    model.add(layers.Dense(2, backend="reference"))
    with ops.recording() as uses:
        model(torch.zeros(1, 4))
    assert [use.backend for use in uses] == ["torch", "reference"]
    block = layers.TransformerBlock(4, 2, 3, backend="reference")
    with ops.recording() as uses:
        block(torch.zeros(1, 2, 4))
    assert {use.backend for use in uses} == {"reference"}


def test_an_unknown_backend_lists_the_known_ones():
    model = image_network(backend="nubma")
    known = "auto, triton, cupy, numba, torch, reference"
    with pytest.raises(kernels.BackendError, match=f"^conv2d: backend must be one of {known}, got 'nubma'$"):
        model(example(image_network))
