"""Sequential: layers one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from nnlib.configuration import describe
from nnlib.layers.base import Layer, Shape
from nnlib.layers.embedding import Embedding
from nnlib.layers.input_layer import InputLayer
from nnlib.models.fusion import fusion
from nnlib.models.model import Model
from nnlib.names import look_up


class Sequential(Model):
    """Layers one after the other, keras.Sequential.

    layers: the layers to start with (default none), of which the first may be an Input; `add` adds more. device,
    backend, name: see Model; a layer's own device and backend win. With an Input, or input_shape on the first layer,
    each layer is built when it is added, otherwise all are built from the first input. The parameters are called
    LAYER.weight and LAYER.bias in state_dict().
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
        self._inputs: list[InputLayer] = []  # one at most; it is no layer of the model
        for layer in layers:
            self.add(layer)

    @property
    def layers(self) -> list[Layer]:
        """The layers in order."""
        return [self._modules[name] for name in self._names]  # type: ignore[misc]

    def get_layer(self, name: str | None = None, index: int | None = None) -> Layer:
        """The layer of a name, or at an index.

        Raises ValueError for a name that no layer has (listing those there are), an index out of range, or not one of
        the two.
        """
        if (name is None) == (index is None):
            raise ValueError(f"get_layer: name or index is expected, got name={name!r} and index={index!r}")
        if name is None:
            layers = self.layers
            assert index is not None
            if not -len(layers) <= index < len(layers):
                raise ValueError(f"get_layer: an index of the {len(layers)} layers is expected, got {index}")
            return layers[index]
        known = {layer.name: layer for layer in self.layers}
        return known[name] if name in known else look_up("get_layer: name", name, known)

    @property
    def built(self) -> bool:
        """Whether all parameters exist."""
        return bool(self._names) and all(layer.built for layer in self.layers)

    @property
    def input_shape(self) -> Shape | None:
        """The shape of inputs, batch first, None while it is not known."""
        if self._inputs:
            return self._inputs[0].shape
        if not self._names:
            return None
        first = self.layers[0]
        return first.built_input_shape or first.given_input_shape

    @property
    def ends_in_softmax(self) -> bool:
        return bool(self._names) and self.layers[-1].ends_in_softmax

    def add(self, layer: Layer) -> None:
        """Appends a layer, and builds it if the model's input shape is known. An InputLayer can only be the first.

        Raises TypeError if it is no layer; ValueError if its name is taken, or the previous output does not fit it.
        """
        if isinstance(layer, InputLayer):
            if self._names or self._inputs:
                raise ValueError(f"layer: an Input must be the first of a model, got it behind {self._last_name()}")
            self._inputs.append(layer)
            return
        name = self._name_for(layer)
        previous = None
        if self.input_shape is not None:
            previous = self.compute_output_shape(self.input_shape)
        shape = previous or layer.given_input_shape
        if shape is not None:
            layer.build_once(shape)
        self.add_module(name, layer)
        self._names.append(name)

    def insert(self, index: int, layer: Layer) -> None:
        """Puts a layer before the one at `index`, as list.insert does; layers that are built stay as they are.

        Raises as add does, and ValueError if the layers behind no longer fit; the model is then what it was.
        """
        name = self._name_for(layer)
        shape, before = self.input_shape, list(self._names)
        self._modules[name] = layer
        self._names.insert(index, name)
        shape = shape if self._inputs else self.layers[0].given_input_shape or shape
        try:
            if shape is not None:
                self.build(shape)
        except (TypeError, ValueError):
            self._names = before
            del self._modules[name]
            raise
        for other in self._names:  # parameters come in the order of the layers
            self._modules[other] = self._modules.pop(other)

    def pop(self) -> Layer:
        """Takes the last layer out and returns it. Raises ValueError if there is none."""
        if not self._names:
            raise ValueError("pop: the model must have a layer, got none")
        layer = self._modules.pop(self._names.pop())
        assert isinstance(layer, Layer)
        return layer

    def check_inputs(self, inputs: Sequence[torch.Tensor]) -> None:
        """As Model.check_inputs; and ValueError if input_shape was given and the input has another number of axes."""
        super().check_inputs(inputs)
        given = self.layers[0].given_input_shape if self._names else None
        if given is not None and inputs[0].dim() != len(given):
            self.layers[0].check_input_shape((None, *inputs[0].shape[1:]))
            shape = ", ".join(("N", *(str(size or "any") for size in given[1:])))
            raise ValueError(
                f"x: {self.layers[0].name} must have samples in shape ({shape}), got {tuple(inputs[0].shape)}"
            )

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

    def _last_name(self) -> str:
        return self._names[-1] if self._names else "another"

    def get_config(self, classes: Mapping[str, type] | None = None) -> dict[str, Any]:
        """The layers that it has now, whoever added them, and its name, as Recorded.get_config."""
        layers = [*self._inputs, *self.layers]
        described = [describe(layer, classes) for layer in layers]
        for layer, entry in zip(layers, described, strict=True):
            entry["config"]["name"] = layer.name
        return {"layers": described, "name": self.name}

    def forward(self, x: torch.Tensor, *, apply_softmax: bool = True) -> torch.Tensor:
        """The last layer's output for x.

        apply_softmax: False leaves out the softmax at the end and gives logits; ValueError if there is none.
        """
        layers = self.layers
        if not layers:
            raise ValueError("layers: the model must have a layer: model.add(...)")
        if not apply_softmax and not self.ends_in_softmax:
            raise ValueError(f"apply_softmax=False: the last layer must be a softmax, got {layers[-1].name}")
        for first in self._inputs:
            x = first(x)
        position = 0
        while position < len(layers):
            layer = layers[position]
            absorbed, options = fusion(layers, position)
            position += 1 + absorbed
            if position == len(layers) and not apply_softmax:
                options["apply_softmax"] = False
            if absorbed and isinstance(x, torch.Tensor):
                _build_absorbed(layers[position - 1 - absorbed : position], tuple(x.shape))
            x = layer(x, **options)
        return x

    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        if not self.built or self.input_shape is None:
            raise RuntimeError("summary: the model must be built: give the first layer input_shape=, or call build")
        given = self._inputs[0].dtype if self._inputs else None
        tokens = isinstance(self.layers[0], Embedding) if given is None else not given.is_floating_point
        shape = (1, *(size or 1 for size in self.input_shape[1:]))
        return (torch.zeros(shape, dtype=torch.int64 if tokens else self.dtype, device=self.device),)

    def output_shapes(self) -> dict[str, Shape]:
        shape = self.input_shape
        assert shape is not None
        found = {}
        for layer in self.layers:
            found[layer.name] = shape = layer.compute_output_shape(shape)
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """torch's load_state_dict. Raises RuntimeError if the model is not built, since it has no parameters yet."""
        if not self.built:
            raise RuntimeError("load_state_dict: the model must be built: give the first layer input_shape=")
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _name_for(self, layer: Layer) -> str:
        """Readies a layer to be one of the model's, and gives it a name that is free."""
        if not isinstance(layer, Layer):
            raise TypeError(f"layer: a layer of nnlib.layers is expected, got {layer!r}")
        if any(layer is other for other in self.layers):
            raise ValueError(f"layer: {layer.name} is in the model already")
        layer.name = self._free_name(layer)
        layer.adopt(self.backend, self.made_on)
        return layer.name

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


def _build_absorbed(layers: Sequence[Layer], input_shape: Shape) -> None:
    """Builds layers that run as one, for inputs of this shape: the later ones never see theirs."""
    shape = input_shape
    for layer in layers:
        layer.build_once(shape)
        shape = layer.compute_output_shape(shape)
