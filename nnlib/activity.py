"""Penalties on what layers put out (`activity_regularizer`), kept until the outermost module is called again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch

# Apart from the layers, which are copied and pickled; losses that hold a graph cannot be.
_losses: WeakKeyDictionary[torch.nn.Module, list[torch.Tensor]] = WeakKeyDictionary()


class _Calls(threading.local):
    inside = False


_calls = _Calls()


class Use:
    """ever: whether any layer regularizes its output; as long as none does, calls have nothing to do here."""

    ever = False


@contextmanager
def outermost_call(module: torch.nn.Module) -> Iterator[None]:
    """Around every call of a module: the outermost one forgets the losses of the call before."""
    if _calls.inside:
        yield
        return
    for inner in module.modules():
        _losses.pop(inner, None)
    _calls.inside = True
    try:
        yield
    finally:
        _calls.inside = False


def note(layer: torch.nn.Module, regularizer: Any, outputs: Any) -> None:
    """Adds the losses of a layer's output, a tensor or several: as in Keras, each over the number of its rows."""
    for output in outputs if isinstance(outputs, (tuple, list)) else (outputs,):
        rows = output.shape[0] if output.dim() else 1
        loss = regularizer(output)
        _losses.setdefault(layer, []).append(loss / rows if rows else torch.zeros_like(loss))


def losses_of(layer: torch.nn.Module) -> list[torch.Tensor]:
    """The losses of a layer's outputs since the outermost call began."""
    return list(_losses.get(layer, ()))
