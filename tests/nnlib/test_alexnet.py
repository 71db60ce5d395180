"""AlexNet at full size, against the same network of torch's functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import nnlib
from nnlib import layers, models


def twin(weights, x, grouped):
    """The logits by torch's own functions. weights: of the layers in order."""
    weights = iter(weights)
    groups = 2 if grouped else 1

    def conv(x, **options):
        return F.conv2d(x, next(weights), next(weights), **options).relu()

    def normalize_and_pool(x):
        return F.max_pool2d(F.local_response_norm(x, 5, 5e-4, 0.75, 2.0), 3, 2)

    x = normalize_and_pool(conv(x.permute(0, 3, 1, 2), stride=4))
    x = normalize_and_pool(conv(x, padding=2, groups=groups))
    x = conv(x, padding=1)
    x = conv(x, padding=1, groups=groups)
    x = F.max_pool2d(conv(x, padding=1, groups=groups), 3, 2)
    x = x.permute(0, 2, 3, 1).flatten(1)  # channels last, as Flatten has them
    for _ in range(2):
        x = F.linear(x, next(weights), next(weights)).relu()
    return F.linear(x, next(weights), next(weights))


@pytest.mark.parametrize(("size", "grouped", "parameters"), [(227, True, 60_965_224), (224, False, 50_844_008)])
def test_against_torch(size, grouped, parameters):
    nnlib.set_seed(0)
    model = models.AlexNet(input_shape=(size, size, 3), grouped=grouped).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.compute_output_shape((None, size, size, 3)) == (None, 1000)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(-0.1, 0.1)
    x = torch.randn(1, size, size, 3, requires_grad=True)
    weights = list(model.parameters())
    found, expected = model(x, apply_softmax=False), twin(weights, x, grouped)
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale)
    wanted = [x, *weights]
    cotangent = torch.randn(1, 1000, generator=torch.Generator().manual_seed(1))
    for one, other in zip(*(torch.autograd.grad(y, wanted, cotangent) for y in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5 * other.abs().max().item())


def test_local_response_normalization_is_the_papers():
    x = torch.randn(2, 3, 4, 7, dtype=torch.float64)
    found = layers.LocalResponseNormalization()(x)
    for channel in range(7):
        near = x[..., max(0, channel - 2) : channel + 3]
        expected = x[..., channel] / (2 + 1e-4 * near.square().sum(-1)) ** 0.75
        torch.testing.assert_close(found[..., channel], expected)
    first = layers.LocalResponseNormalization(data_format="channels_first")(x.permute(0, 3, 1, 2))
    torch.testing.assert_close(first, found.permute(0, 3, 1, 2))
    with pytest.raises(ValueError, match="^size: a positive integer is expected, got 0$"):
        layers.LocalResponseNormalization(0)


def test_errors():
    with pytest.raises(ValueError, match=r"^input_shape: \(height, width, channels\) is expected, got \(227, 227\)$"):
        models.AlexNet(input_shape=(227, 227))
    with pytest.raises(ValueError, match=r"^max_pooling2d_2: a window of \(3, 3\) .* must fit the image"):
        models.AlexNet(input_shape=(40, 40, 3))
