"""Things chosen by name (activations, losses, optimizers ...): one look-up, one style of message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

Value = TypeVar("Value")


def look_up(argument: str, name: str, known: Mapping[str, Value]) -> Value:
    """The entry of `known` called `name`, in any case of letters, or as a class in Keras: "MeanSquaredError" is
    "mean_squared_error".

    Raises ValueError naming the argument and the value, listing the known names and suggesting the nearest; TypeError
    where it is no text.
    """
    if not isinstance(name, str):
        raise TypeError(f"{argument}: one of the names {', '.join(known)} is expected, got {name!r}")
    key = name.lower()
    if key in known:
        return known[key]
    for entry, value in known.items():
        if entry.replace("_", "") == key:
            return value
    raise ValueError(f"{argument}: known names are {', '.join(known)}; got {name!r}{_nearest(known, key)}")


def attribute_error(module: str, name: str, known: Sequence[str]) -> AttributeError:
    """The error of a module that has no public name `name`: it lists those that it has and suggests the nearest."""
    return AttributeError(f"module {module!r} has no {name!r}{_nearest(known, name)}; it has {', '.join(known)}")


def _nearest(known: Iterable[str], name: str) -> str:
    by_lower = {entry.lower(): entry for entry in known}
    nearest = difflib.get_close_matches(name.lower(), list(by_lower), n=1)
    return f" (did you mean {by_lower[nearest[0]]!r}?)" if nearest else ""
