"""What calling a layer or a model takes, as in Keras: NumPy arrays, and `training=` for one call."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch

from nnlib import activity
from nnlib.freezing import Freezable


class Called(Freezable):
    """The base of layers and models: a torch.nn.Module that also takes arrays, and a mode for one call.

    module(x, ..., training=None): every NumPy array among the arguments, in lists and tuples too, becomes a tensor on
    the module's device; floating-point ones get the type of its parameters (torch's default dtype while it has none),
    the others keep theirs. The result is a tensor. training: True or False is the mode of the module and all inside it
    during this call alone; None (default) leaves the mode that .train() or .eval() set. A `call` or `forward` of a
    subclass that has a parameter `training` is handed the mode.

    Raises TypeError naming the module for an array of objects, text or complex numbers.
    """

    name: str
    _hands_mode_on: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        methods = (getattr(cls, "call", None), cls.forward)
        cls._hands_mode_on = any(one is not None and "training" in inspect.signature(one).parameters for one in methods)

    def __call__(self, *inputs: Any, training: bool | None = None, **options: Any) -> Any:
        inputs = tuple([x if isinstance(x, torch.Tensor) else self._with_tensors(x) for x in inputs])
        if options:
            options = {key: self._with_tensors(value) for key, value in options.items()}
        if self._hands_mode_on:
            options["training"] = self.training if training is None else bool(training)
        if activity.Use.ever and not torch.compiler.is_compiling():
            with activity.outermost_call(self):
                return self._call_in_mode(training, inputs, options)
        return self._call_in_mode(training, inputs, options)

    def _call_in_mode(self, training: bool | None, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if training is None:
            return super().__call__(*inputs, **options)
        with in_mode(self, training=bool(training)):
            return super().__call__(*inputs, **options)

    def _with_tensors(self, value: Any) -> Any:
        """An argument with tensors in place of the arrays in it."""
        if isinstance(value, np.ndarray):
            return self._tensor_of(value)
        if type(value) in (list, tuple):
            return type(value)(self._with_tensors(one) for one in value)
        return value

    def _tensor_of(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        tensor = tensor_of(self.name, array)
        first = next((one for one in self.parameters() if one.is_floating_point()), None)
        device = getattr(self, "device", None) if first is None else first.device
        dtype = torch.get_default_dtype() if first is None else first.dtype
        return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)


def tensor_of(caller: str, array: np.ndarray[Any, Any]) -> torch.Tensor:
    """The tensor of an array, without a copy where it can be.

    Raises TypeError naming the caller for an array of objects, text or complex numbers.
    """
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{caller}: an array of numbers is expected, got dtype {array.dtype}")
    # torch has no negative strides and no foreign byte order, and warns on arrays that cannot be written to.
    ready = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)
    return torch.from_numpy(ready if ready.flags.writeable else ready.copy())


def any_tensor(caller: str, values: Any) -> torch.Tensor:
    """A tensor of a tensor, an array, or numbers in lists. Raises as tensor_of."""
    return values if isinstance(values, torch.Tensor) else tensor_of(caller, np.asarray(values))


@contextmanager
def in_mode(module: torch.nn.Module, *, training: bool) -> Iterator[None]:
    """Within the block the module and all inside it train or evaluate; afterwards each is in the mode that it was in,
    and what was made meanwhile in that of the module."""
    before = {inner: inner.training for inner in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for inner in module.modules():
            inner.training = before.get(inner, before[module])
