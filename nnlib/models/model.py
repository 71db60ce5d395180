"""Model: a torch.nn.Module that can be compiled, fitted, evaluated, asked and kept, as in Keras."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

import torch

from nnlib.calling import Called
from nnlib.checks import usable_device
from nnlib.configuration import Recorded
from nnlib.layers.base import Layer, Shape
from nnlib.layers.rules import losses_of
from nnlib.models.summary import summary_text
from nnlib.tensor_file import read_tensors, write_file
from nnlib.training.trainable import Trainable


class Model(Recorded, Called, Trainable):
    """The base of models. A subclass writes `forward`, or `call` as in Keras, and where it can tell them before
    `compute_output_shape` and `build`. Calls take NumPy arrays too, and training=True or False for one call (see
    nnlib.calling.Called).

    device: where parameters are made (default: torch's default device). backend: the kernels' backend for all layers
    that name none (default None: kernels' own choice). name: default the class' name in lower case.

    metadata: what else a saved model is to tell, such as the names of its classes: plain JSON values under any names.
    """

    def __init__(
        self,
        *,
        device: torch.device | str | None = None,
        backend: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        usable_device("device", device)
        self.made_on = device
        self.backend = backend
        self.name = name or type(self).__name__.lower()
        self.metadata: dict[str, Any] = {}

    # What a subclass is asked for.

    def call(self, *inputs: Any, **options: Any) -> Any:
        """The model's output, where a subclass writes no `forward`."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(x), or call(x)")

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """The model's output: that of `call`."""
        return self.call(*inputs, **options)

    def check_inputs(self, inputs: Sequence[torch.Tensor]) -> None:
        """Raises ValueError if a call takes another number of inputs than these, batch first."""
        call = self.call if type(self).forward is Model.forward else self.forward
        named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(call).parameters.values()
        taken = [one for one in parameters if one.kind in named]
        least = sum(one.default is one.empty for one in taken)
        any_number = any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters)
        if len(inputs) < least or (len(inputs) > len(taken) and not any_number):
            raise ValueError(f"x: {self.name} takes {least} inputs (arrays in a list), got {len(inputs)}")

    def build(self, input_shape: Shape) -> None:
        """Makes all parameters for inputs of this shape, batch first. By default they exist from the start."""

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """The output's shape for inputs of this shape, batch first. By default it cannot be told before a first
        call."""
        raise NotImplementedError(f"{type(self).__name__} must define compute_output_shape(input_shape)")

    @property
    def tells_output_shape(self) -> bool:
        """Whether compute_output_shape is there to be asked."""
        return type(self).compute_output_shape is not Model.compute_output_shape

    @property
    def ends_in_softmax(self) -> bool:
        """Whether forward takes apply_softmax=False to give logits."""
        return False

    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        """Inputs of one sample, of zeros, for `summary`."""
        raise NotImplementedError(f"summary: {type(self).__name__} needs inputs of one sample: model.summary(x)")

    def output_shapes(self) -> dict[str, Shape]:
        """Output shapes of layers by their path in the model, where they are known better than by the layers."""
        return {}

    def summary(self, *inputs: torch.Tensor, print_fn: Callable[[str], object] = print) -> None:
        """Prints for each layer its output shape, its parameters, the floating-point operations for one sample, and the
        kernels that will run for it (for larger batches they may be others), which are not run here.

        inputs: of one sample, (1, ...) (default: zeros, where the model knows its input). print_fn: what prints.

        Raises RuntimeError if the model is not built, BackendError if its backend cannot run it.
        """
        inputs = inputs or self.example_inputs()
        print_fn(summary_text(self, self.name, self.output_shapes(), inputs))

    @property
    def losses(self) -> list[torch.Tensor]:
        """What the regularizers of all layers come to, which fit adds to the loss: scalar tensors, those of outputs in
        the last call first."""
        return losses_of(self)

    # Where and with what it computes.

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        first = next(self.parameters(), None)
        return torch.device(self.made_on or torch.get_default_device()) if first is None else first.device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' floating-point type."""
        kinds = (parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())
        return next(kinds, torch.get_default_dtype())

    def to_backend(self, backend: str | None) -> Model:
        """Has every layer, and the loss, computed by this backend of kernels; None leaves the choice to kernels.

        Nothing else changes: weights, device and optimizer state stay. Returns the model. A name that is unknown or
        cannot run is reported by kernels at the first call, with its reasons.
        """
        self.backend = backend
        for module in self.modules():
            if isinstance(module, Layer):
                module.backend = backend
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, torch.nn.Module):
            self._adopt(value)

    def _adopt(self, module: torch.nn.Module) -> None:
        """Hands the model's backend and device to the layers of a module that name none."""
        for layer in module.modules():
            if isinstance(layer, Layer):
                layer.adopt(self.backend, self.made_on)

    # Keeping.

    def save(self, path: str | PathLike[str], *, include_optimizer: bool = True) -> None:
        """Writes the model to one file, which nnlib.load(path) makes it of again: layers, weights, what compile was
        told and the optimizer's state. A file that is there is replaced only when the new one is whole.

        path: any name; model.safetensors says what it is (other programs find the weights in it under their names).
        include_optimizer: False leaves out how it trains. Where it computes (device, backend) is not kept, nor are
        gradients that accumulate and are not yet stepped with.

        Raises RuntimeError if the model is not built; ValueError naming it for what no file can hold: a function as an
        activation, initializer, loss, metric or optimizer, or a class of your own.
        """
        from nnlib.saving import save_model  # which needs all layers and models

        save_model(self, path, include_optimizer=include_optimizer)

    def save_weights(self, path: str | PathLike[str]) -> None:
        """Writes state_dict() to a safetensors file, in one step."""
        write_file(path, dict(self.state_dict()), {"kind": "weights"})

    def load_weights(self, path: str | PathLike[str]) -> None:
        """Reads the weights of a safetensors file, by save_weights, save or another program, into a built model.

        Raises FileNotFoundError if there is none, ValueError if it is damaged, RuntimeError if names or shapes differ.
        """
        tensors = read_tensors(path)
        self.load_state_dict({name: value for name, value in tensors.items() if not name.startswith("optimizer/")})
