"""Things chosen by name (activations, losses, optimizers ...): one look-up, one style of message."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")


def look_up(argument: str, name: str, known: Mapping[str, Value]) -> Value:
    """The entry of `known` called `name`, in any case of letters, or as a class in Keras: "MeanSquaredError" is
    "mean_squared_error".

    Raises ValueError naming the argument and the value, listing the known names and suggesting the nearest.
    """
    key = name.lower()
    if key in known:
        return known[key]
    for entry, value in known.items():
        if entry.replace("_", "") == key:
            return value
    nearest = difflib.get_close_matches(key, list(known), n=1)
    suggestion = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    raise ValueError(f"{argument}: known names are {', '.join(known)}; got {name!r}{suggestion}")
