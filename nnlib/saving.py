"""Models as files: one safetensors file with the weights under their names in state_dict(), and in its metadata a JSON
description: which classes, made with which arguments, and how the model trains.

Reading makes objects of the classes in nnlib's own tables alone, from plain values, and runs nothing out of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from os import PathLike
from typing import Any

import torch
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from nnlib import constraints, initializers, layers, models, regularizers
from nnlib.checks import usable_device
from nnlib.configuration import Recorded, count, describe, encode, make
from nnlib.tensor_file import read_file, write_file
from nnlib.training.kept import describe_setup, restore_setup, take_tensors

_FORMAT = 1
#: What layers are made with.
PARTS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *initializers.INITIALIZERS.values(),
        *(type(one()) for one in regularizers.REGULARIZERS.values()),
        *constraints.CONSTRAINTS.values(),
    )
}
# Tables that layers compute and no file holds (of positions, for one), in bytes, all together.
_LARGEST_TABLES = 2**30
# Many times the layers of any network yet; building takes time that grows faster than their number.
_MOST_OBJECTS = 1000


def save_model(model: models.Model, path: str | PathLike[str], *, include_optimizer: bool = True) -> None:
    """See nnlib.models.Model.save."""
    if not getattr(model, "built", True):
        raise RuntimeError("save: the model must be built: give the first layer input_shape=, or call build")
    input_shape = getattr(model, "input_shape", None)
    described = describe(model, model_classes())
    if count(described) > _MOST_OBJECTS:
        raise ValueError(f"save: at most {_MOST_OBJECTS} layers are expected, got {count(described)}")
    document: dict[str, Any] = {
        "format": _FORMAT,
        "model": described,
        "input_shape": None if input_shape is None else list(input_shape),
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "metadata": encode(model.metadata, "metadata"),
        "training": None,
    }
    tensors = dict(model.state_dict())
    if include_optimizer and model.setup is not None:
        document["training"], state = describe_setup(model.setup, model)
        tensors |= state
    write_file(path, tensors, document)


def load_model(
    path: str | PathLike[str], *, device: torch.device | str | None = None, backend: str | None = None
) -> models.Model:
    """Makes the model that `model.save(path)` wrote: layers, weights, and if it was compiled how it trains, with the
    optimizer's state, so that training goes on.

    device: where the weights go (default: torch's default device). backend: the kernels' backend for all layers
    (default None: kernels' own choice). Neither is kept in a file.

    Raises FileNotFoundError if there is no such file; ValueError naming the file if it is cut off, altered or
    another's, names a class that nnlib does not have, or its weights do not fit its layers. Nothing in a file is run.
    """
    usable_device("device", device)
    tensors, document = read_file(path)
    try:
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise ValueError(f"a model in format {_FORMAT} is expected, got another file of nnlib's")
        state = take_tensors(tensors)
        # First without memory or time: a few bytes of text can ask for layers of any size.
        with torch.device("meta"), _at_most(len(tensors)):
            _check_tensors(_build(document).state_dict(), tensors)
        # The initial weights are written over; drawing them leaves the generators as they were.
        with torch.random.fork_rng(), nullcontext() if device is None else torch.device(device):
            model = _build(document)
        if device is not None:
            model.made_on = device
        if backend is not None:
            model.to_backend(backend)
        _fill(model, tensors, document["frozen"])
        model.note_frozen()
        model.metadata = dict(document["metadata"])
        if document["training"] is not None:
            model.setup = restore_setup(document["training"], state, model)
    # All that a description can be wrong in comes to these.
    except (AttributeError, LookupError, MemoryError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: {message}") from error
    return model


def model_classes() -> dict[str, type]:
    """All that a model's description may name: the layers and models of nnlib, their bases left out, and PARTS."""
    found = {}
    for module in (layers, models):
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, type) and issubclass(value, Recorded) and value not in (layers.Layer, models.Model):
                found[value.__name__] = value  # it may have several names
    return found | PARTS


def _build(document: Mapping[str, Any]) -> models.Model:
    objects = count(document["model"])
    if objects > _MOST_OBJECTS:
        raise ValueError(f"layers: at most {_MOST_OBJECTS} are expected, got {objects}")
    model = make(document["model"], model_classes())
    if not isinstance(model, models.Model):
        raise ValueError(f"a model is expected, got a {type(model).__name__}")
    shape = document["input_shape"]
    if shape is not None:
        model.build(tuple(shape))
    return model


@contextmanager
def _at_most(tensors: int) -> Iterator[None]:
    """Within the block, making more parameters than a file has tensors, or tables or layers without measure, is a
    ValueError."""
    made = size = modules = 0

    def number(module: torch.nn.Module, name: str, parameter: Any) -> None:
        nonlocal made
        made += parameter is not None
        if made > tensors + 100:  # with few too many, their names can be told
            raise ValueError(f"weights: exactly those of the layers are expected, got {tensors} where there are more")

    def weigh(module: torch.nn.Module, name: str, buffer: Any) -> None:
        nonlocal size
        size += 0 if buffer is None else buffer.numel() * buffer.element_size()
        if size > _LARGEST_TABLES:
            raise ValueError(f"tables: at most {_LARGEST_TABLES} bytes are expected, the layers ask for {size}")

    def tally(module: torch.nn.Module, name: str, inner: Any) -> None:
        nonlocal modules
        modules += 1
        if modules > most_modules:
            raise ValueError(f"layers: at most {most_modules} are expected for {tensors} weights, there are more")

    # Layers may be made before the weights of the first.
    most_modules = 10 * (_MOST_OBJECTS + tensors)
    hooks = [
        register_module_module_registration_hook(tally),
        register_module_parameter_registration_hook(number),
        register_module_buffer_registration_hook(weigh),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_tensors(wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError if names, shapes or kinds of a file's tensors are not those of the model."""
    missing = [name for name in wanted if name not in given]
    unknown = [name for name in given if name not in wanted]
    if missing or unknown:
        found = (("missing", missing), ("unknown", unknown))
        lists = [f"{what} {', '.join(names[:5])}" for what, names in found if names]
        raise ValueError(f"weights: exactly those of the layers are expected, {', '.join(lists)}")
    for name, expected in wanted.items():
        tensor = given[name]
        if tensor.shape != expected.shape:
            raise ValueError(f"weights: {name} must have shape {tuple(expected.shape)}, got {tuple(tensor.shape)}")
        if tensor.is_floating_point() != expected.is_floating_point():
            raise ValueError(f"weights: {name} must be of a kind with {expected.dtype}, got {tensor.dtype}")


@torch.no_grad()
def _fill(model: models.Model, tensors: Mapping[str, torch.Tensor], frozen: Any) -> None:
    """Weights of a built model from the file's, in the types of the file; those called `frozen` do not train."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if name in tensors and value.dtype != tensors[name].dtype:
            value.data = value.data.to(tensors[name].dtype)
    model.load_state_dict(dict(tensors))
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    for name in frozen:
        parameters[name].requires_grad_(False)
