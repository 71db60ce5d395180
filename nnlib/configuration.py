"""Objects as plain JSON: which class, made with which arguments. What saved models and optimizers are written in.

Reading makes objects of the classes in a given table by calling them with plain values. Nothing is imported by a name
out of a file, and nothing in a file is run.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

from nnlib.names import look_up

Self = TypeVar("Self", bound="Recorded")

_CLASS, _CONFIG = "$class", "config"


class Recorded:
    """Objects that remember the arguments they were made with, so that `get_config` needs no code in any class."""

    #: Arguments that are left out: where an object computes is no part of what it is.
    not_kept: ClassVar[tuple[str, ...]] = ("device", "backend")
    #: The class' name in files, where another class has its own (default None).
    kept_as: ClassVar[str | None] = None
    constructor_arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls: type[Self], *arguments: Any, **options: Any) -> Self:
        made = super().__new__(cls)
        # Past __setattr__, which frozen dataclasses and torch.nn.Module have for their own ends.
        made.__dict__["constructor_arguments"] = (arguments, options)
        return made

    def get_config(self, classes: Mapping[str, type] | None = None) -> dict[str, Any]:
        """The arguments that make this object again, defaults included, as plain JSON values; those in `not_kept` are
        left out.

        classes: the table that objects among the arguments must be of (default None: any). Raises ValueError naming
        the object and the argument if one is a function or another thing that no file can hold.
        """
        arguments, options = self.constructor_arguments
        signature = inspect.signature(type(self))
        bound = signature.bind(*arguments, **options)
        bound.apply_defaults()
        where = getattr(self, "name", None) or type(self).__name__
        values: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                values.update(value)
            else:
                values[name] = value
        return {
            name: encode(value, f"{where}: {name}", classes)
            for name, value in values.items()
            if name not in self.not_kept
        }


def encode(value: Any, where: str, classes: Mapping[str, type] | None = None) -> Any:
    """`value` as plain JSON: None, bools, numbers, text, lists, dictionaries, and Recorded objects of `classes`.

    where: begins the message. Raises ValueError for anything else.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        return value.item()
    if isinstance(value, torch.dtype):
        return {_CLASS: "dtype", _CONFIG: {"name": str(value).removeprefix("torch.")}}
    if isinstance(value, (list, tuple)):
        return [encode(entry, where, classes) for entry in value]
    if isinstance(value, dict) and all(isinstance(key, str) and key != _CLASS for key in value):
        return {key: encode(entry, where, classes) for key, entry in value.items()}
    if isinstance(value, Recorded):
        return describe(value, classes)
    kind = "a function" if inspect.isroutine(value) else f"a {type(value).__name__}"
    raise ValueError(f"{where}: {kind} cannot be kept in a file, a name or plain values can; got {value!r}")


def describe(made: Recorded, classes: Mapping[str, type] | None = None) -> dict[str, Any]:
    """{"$class": ..., "config": ...}, which `make` turns back into such an object.

    Raises ValueError if its class is not in the table `classes` (default None: any is taken).
    """
    kind = type(made)
    key = class_key(kind)
    if classes is not None and classes.get(key) is not kind:
        name = getattr(made, "name", kind.__name__)
        raise ValueError(f"{name}: {kind.__name__} is no class of nnlib's own, so that nnlib.load could not make it")
    return {_CLASS: key, _CONFIG: made.get_config(classes)}


def class_key(kind: type) -> str:
    """Under which name a table of classes has this one."""
    return getattr(kind, "kept_as", None) or kind.__name__


def make(description: Any, classes: Mapping[str, type], **more: Any) -> Any:
    """The object of a description, whose class must be in the table `classes`.

    more: further arguments. Raises ValueError for a description that is none, a class that is not in the table, or
    arguments that the class refuses.
    """
    if not isinstance(description, dict) or set(description) != {_CLASS, _CONFIG}:
        raise ValueError(f"an object is expected, as {{{_CLASS}, {_CONFIG}}}, got {str(description)[:80]!r}")
    name, config = description[_CLASS], description[_CONFIG]
    if not isinstance(name, str) or not isinstance(config, dict):
        raise ValueError(f"{_CLASS}: a name and {_CONFIG}: a dictionary are expected, got {str(description)[:80]!r}")
    if name == "dtype":
        found = getattr(torch, str(config.get("name")), None)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"dtype: a dtype of torch is expected, got {config!r}")
        return found
    kind = look_up(_CLASS, name, {known.lower(): kind for known, kind in classes.items()})
    arguments = {key: decode(value, classes) for key, value in config.items()}
    try:
        return kind(**arguments, **more)
    # Any kind of error: the arguments are a stranger's, and the classes check them for people's mistakes.
    except Exception as error:
        raise ValueError(f"{name}: {error}") from error


def count(description: Any) -> int:
    """How many objects a description asks for. RecursionError if it is nested without end."""
    if isinstance(description, list):
        return sum(count(entry) for entry in description)
    if isinstance(description, dict):
        return (_CLASS in description) + sum(count(entry) for entry in description.values())
    return 0


def decode(value: Any, classes: Mapping[str, type]) -> Any:
    """The reverse of `encode`; lists stay lists. Raises ValueError as `make` does."""
    if isinstance(value, list):
        return [decode(entry, classes) for entry in value]
    if isinstance(value, dict):
        if _CLASS in value:
            return make(value, classes)
        return {key: decode(entry, classes) for key, entry in value.items()}
    return value
