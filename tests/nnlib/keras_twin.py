"""A layer of ours and Keras' own, on the torch backend, with the same weights: values and all gradients.

In float32: Keras on torch has nothing finer (it rounds the results of its own ops, whatever a layer's dtype).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from nnlib.convert.keras_weights import keras_weights
from nnlib.layers.base import Layer

#: Of the largest magnitude of an array: some roundings of float32.
TOLERANCE = 3e-6


def randomize(layer: torch.nn.Module) -> None:
    """Fills all parameters, biases too, with noise that is the same on each run."""
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)


def tensors(result: Any) -> list[torch.Tensor]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


def as_float32(x: Any) -> Any:
    """A tensor, or several, as float32 leaves that want a gradient where those do; other dtypes stay."""
    if isinstance(x, (tuple, list)):
        return [as_float32(one) for one in x]
    return x.detach().float().requires_grad_(x.requires_grad) if x.is_floating_point() else x


def assert_close(found: np.ndarray, expected: np.ndarray, least: float = 1e-3) -> None:
    """Equal within TOLERANCE of the largest magnitude in `expected`, or of `least` where that is more."""
    scale = float(np.abs(expected).max(initial=least))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * scale)


def gradients_in_keras_layout(layer: Layer) -> list[np.ndarray]:
    """The gradients of a layer's parameters, laid out as Keras lays out the weights."""
    holder = copy.deepcopy(layer)
    with torch.no_grad():
        for mine, theirs in zip(holder.parameters(), layer.parameters(), strict=True):
            assert theirs.grad is not None
            mine.copy_(theirs.grad)
    return keras_weights(holder)


def assert_like_keras(
    layer: Layer,
    keras_layer: Any,
    inputs: Sequence[torch.Tensor],
    ours: dict[str, Any] | None = None,
    theirs: dict[str, Any] | None = None,
    where: torch.Tensor | None = None,
    training: bool = False,
) -> None:
    """Same outputs and gradients. The layers are built here and given the same noise as weights.

    ours, theirs: further arguments of the two calls. where: factor on the first output before it is compared.
    """
    ours, theirs = ours or {}, theirs or {}
    inputs = [as_float32(x) for x in inputs]
    layer.train(training)
    layer(*inputs, **ours)  # builds
    randomize(layer)
    keras_layer(*inputs, training=training, **theirs)
    keras_layer.set_weights(keras_weights(layer))
    if hasattr(layer, "reset_states"):
        layer.reset_states()
    if getattr(keras_layer, "stateful", False):
        keras_layer.reset_states()
    found = tensors(layer(*inputs, **ours))
    expected = tensors(keras_layer(*inputs, training=training, **theirs))
    assert len(found) == len(expected)
    if where is not None:
        found[0], expected[0] = found[0] * where, expected[0] * where
    generator = torch.Generator().manual_seed(9)
    cotangents = [torch.randn(one.shape, generator=generator, dtype=one.dtype) for one in expected]
    grads: list[list[Any]] = []
    for results, module in ((found, layer), (expected, keras_layer)):
        for parameter in module.parameters():
            parameter.grad = None
        wanted = [x for one in inputs for x in tensors(one) if x.requires_grad]
        total = sum((one * cotangent).sum() for one, cotangent in zip(results, cotangents, strict=True))
        total.backward(inputs=[*wanted, *(p for p in module.parameters() if p.requires_grad)])
        grads.append([x.grad.clone() for x in wanted])
        for x in wanted:
            x.grad = None
    for one, other in zip((*found, *grads[0]), (*expected, *grads[1]), strict=True):
        assert_close(one.detach().numpy(), other.detach().numpy())
    of_keras = [weight.value.grad.numpy() for weight in keras_layer.trainable_weights]
    of_ours = gradients_in_keras_layout(layer)
    if len(of_ours) != len(of_keras):  # statistics are weights without a gradient
        trainable = [any(weight is one for one in keras_layer.trainable_weights) for weight in keras_layer.weights]
        of_ours = [one for one, trains in zip(of_ours, trainable, strict=True) if trains]
    # A gradient that is 0 but for rounding (that of the keys' bias) is held to the size of the others.
    largest = max((float(np.abs(one).max(initial=0.0)) for one in of_keras), default=0.0)
    for one, other in zip(of_ours, of_keras, strict=True):
        assert_close(one, other, least=largest / 10)
