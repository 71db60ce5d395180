"""Which neighbours of a Sequential run as one kernel.

A layer says itself what its kernel can do of what comes after it (`Layer.absorb`); here is only what forbids it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnlib.layers.base import Layer


def fusion(layers: Sequence[Layer], position: int) -> tuple[int, dict[str, Any]]:
    """How many of the layers behind layers[position] run in its kernel, and the options of its `forward` for that."""
    layer = layers[position]
    if type(layer).absorb is Layer.absorb:
        return 0, {}
    following: list[Layer] = []
    if not _is_watched(layer):
        for other in layers[position + 1 :]:
            if _is_watched(other) or other.backend != layer.backend:
                break
            following.append(other)
    if not following:
        return 0, {}
    count, options = layer.absorb(following)
    return count, dict(options)


def _is_watched(layer: Layer) -> bool:
    """Whether somebody waits for calls of the layer, or for its output: it then cannot vanish in another one."""
    if layer.activity_regularizer is not None:
        return True
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
