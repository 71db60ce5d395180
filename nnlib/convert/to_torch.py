"""Layers and Sequentials as torch modules, with copies of their weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from nnlib import layers
from nnlib.convert.torch_layers import CONVERTERS, GLOBAL_POOLINGS, NEVER_BUILT
from nnlib.convert.torch_modules import Output, Permute
from nnlib.layers.base import Layer
from nnlib.layers.images import ImageLayer
from nnlib.models.sequential import Sequential


def to_torch(model: Sequential | Layer) -> nn.Module:
    """A built Sequential as a nn.Sequential, or a built layer as a torch module, with copies of its weights.

    A Sequential's module takes what the model takes: where layers on images are channels_last, modules that permute
    stand between, and a recurrent layer is a module of nnlib.convert.torch_modules that gives its output alone. A
    single layer on images becomes a module that takes (N, C, H, W), a single recurrent layer a nn.LSTM, nn.GRU or
    nn.RNN with batch_first. Training mode is kept; regularizers and constraints, which torch's modules do not have, are
    not.

    Raises TypeError for a layer that has no counterpart in torch; ValueError naming the layer for an option that has
    none, or for a model that is not built.
    """
    if isinstance(model, Sequential):
        if not model.built:
            raise ValueError(f"{model.name}: the model must be built to have weights, got one that is not")
        return nn.Sequential(*_modules(model)).train(model.training)
    if not isinstance(model, Layer):
        raise TypeError(f"model: a Sequential or a layer of nnlib is expected, got a {type(model).__name__}")
    found = _convert(model)
    module = found[0] if len(found) == 1 else nn.Sequential(*found)
    return module.train(model.training)


def _modules(model: Sequential) -> list[nn.Module]:
    found: list[nn.Module] = []
    turned = False  # whether channels stand first where the model has them last
    for layer in model.layers:
        on_images = isinstance(layer, ImageLayer) and layer.channels_last
        if on_images and not turned:
            found.append(Permute(0, 3, 1, 2))
        if turned and not on_images and not isinstance(layer, layers.Dropout):
            found.append(Permute(0, 2, 3, 1))
            turned = False
        for module in _convert(layer):
            if isinstance(module, (nn.LSTM, nn.GRU, nn.RNN)):
                inner: Any = layer.forward_layer if isinstance(layer, layers.Bidirectional) else layer
                module = Output(module, inner.return_sequences)
            found.append(module)
        if on_images:
            turned = not (isinstance(layer, GLOBAL_POOLINGS) and not layer.keepdims)
    return [*found, Permute(0, 2, 3, 1)] if turned else found


def _convert(layer: Layer) -> list[nn.Module]:
    for kind in type(layer).__mro__:
        if issubclass(kind, Layer) and kind in CONVERTERS:
            if type(layer).call is not kind.call or type(layer).forward is not kind.forward:
                raise TypeError(f"{layer.name}: a {type(layer).__name__} has a call of its own, which does not convert")
            if not layer.built and list(layer.expected_input()) and kind not in NEVER_BUILT:
                raise ValueError(f"{layer.name}: the layer must be built to have weights, got one that is not")
            return CONVERTERS[kind](layer)
    known = ", ".join(kind.__name__ for kind in CONVERTERS)
    raise TypeError(f"{layer.name}: layers that convert are {known}; got a {type(layer).__name__}")
