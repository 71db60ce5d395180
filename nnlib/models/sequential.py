"""Sequential: layers one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from nnlib.configuration import describe
from nnlib.layers.base import Layer, Shape
from nnlib.models.model import Model
from nnlib.models.summary import summary_text


class Sequential(Model):
    """Layers one after the other, keras.Sequential.

    layers: the layers to start with (default none); `add` adds more. device, backend, name: see Model; a layer's own
    device and backend win. With input_shape on the first layer each layer is built when it is added, otherwise all
    are built from the first input. The parameters are called LAYER.weight and LAYER.bias in state_dict().
    """

    def __init__(
        self,
        layers: Iterable[Layer] = (),
        *,
        device: torch.device | str | None = None,
        backend: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(device=device, backend=backend, name=name)
        self._names: list[str] = []
        for layer in layers:
            self.add(layer)

    @property
    def layers(self) -> list[Layer]:
        """The layers in order."""
        return [self._modules[name] for name in self._names]  # type: ignore[misc]

    @property
    def built(self) -> bool:
        """Whether all parameters exist."""
        return bool(self._names) and all(layer.built for layer in self.layers)

    @property
    def input_shape(self) -> Shape | None:
        """The shape of inputs, batch first, None while it is not known."""
        if not self._names:
            return None
        first = self.layers[0]
        return first.built_input_shape or first.given_input_shape

    @property
    def ends_in_softmax(self) -> bool:
        return bool(self._names) and self.layers[-1].ends_in_softmax

    def add(self, layer: Layer) -> None:
        """Appends a layer, and builds it if the model's input shape is known.

        Raises TypeError if it is no layer; ValueError if its name is taken, or the previous output does not fit it.
        """
        if not isinstance(layer, Layer):
            raise TypeError(f"layer: a layer of nnlib.layers is expected, got {layer!r}")
        if any(layer is other for other in self.layers):
            raise ValueError(f"layer: {layer.name} is in the model already")
        previous = None
        if self._names and self.input_shape is not None:
            previous = self.compute_output_shape(self.input_shape)
        name = self._free_name(layer)
        if layer.backend is None:
            layer.backend = self.backend
        if layer.device is None:
            layer.device = self.made_on
        layer.name = name
        shape = previous or layer.given_input_shape
        if shape is not None:
            layer.build_once(shape)
        self.add_module(name, layer)
        self._names.append(name)

    def build(self, input_shape: Shape) -> None:
        """Builds all layers for inputs of this shape, batch first, such as (None, 28, 28, 1).

        Raises ValueError naming the layer if the shape does not fit, or if there is no layer.
        """
        if not self._names:
            raise ValueError("layers: the model must have a layer: model.add(...)")
        shape = tuple(input_shape)
        for layer in self.layers:
            layer.build_once(shape)
            shape = layer.compute_output_shape(shape)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        shape = tuple(input_shape)
        for layer in self.layers:
            layer.check_input_shape(shape)
            shape = layer.compute_output_shape(shape)
        return shape

    def get_config(self, classes: Mapping[str, type] | None = None) -> dict[str, Any]:
        """The layers that it has now, whoever added them, and its name, as Recorded.get_config."""
        described = [describe(layer, classes) for layer in self.layers]
        for layer, entry in zip(self.layers, described, strict=True):
            entry["config"]["name"] = layer.name
        return {"layers": described, "name": self.name}

    def forward(self, x: torch.Tensor, *, apply_softmax: bool = True) -> torch.Tensor:
        """The last layer's output for x.

        apply_softmax: False leaves out the softmax at the end and gives logits; ValueError if there is none.
        """
        layers = self.layers
        if not layers:
            raise ValueError("layers: the model must have a layer: model.add(...)")
        for layer in layers[:-1]:
            x = layer(x)
        if apply_softmax:
            return layers[-1](x)
        if not self.ends_in_softmax:
            raise ValueError(f"apply_softmax=False: the last layer must be a softmax, got {layers[-1].name}")
        return layers[-1](x, apply_softmax=False)

    def summary(self, print_fn: Callable[[str], object] = print) -> None:
        """Prints each layer's output shape and number of parameters. print_fn: what prints (default print).

        Raises RuntimeError if the model is not built.
        """
        if not self.built or self.input_shape is None:
            raise RuntimeError("summary: the model must be built: give the first layer input_shape=, or call build")
        print_fn(summary_text(self.name, self.layers, self.input_shape))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """torch's load_state_dict. Raises RuntimeError if the model is not built, since it has no parameters yet."""
        if not self.built:
            raise RuntimeError("load_state_dict: the model must be built: give the first layer input_shape=")
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _free_name(self, layer: Layer) -> str:
        name = layer.name
        if layer.has_own_name:
            if name in self._names:
                raise ValueError(f"name: layers must have different names, got {name!r} twice")
            if hasattr(self, name):
                raise ValueError(f"name: {name!r} is an attribute of the model, a layer needs another name")
            return name
        number = 0
        base = layer.default_name()
        name = base
        while name in self._names:
            number += 1
            name = f"{base}_{number}"
        return name
