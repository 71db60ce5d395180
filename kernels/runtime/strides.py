"""Strides of arrays that are walked together: pure functions."""

from __future__ import annotations


def collapse(
    shape: tuple[int, ...], strides: list[tuple[int, ...]]
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """(shape, strides of each array) with the fewest dimensions: size 1 goes, neighbours that lie as one join."""
    sizes: list[int] = []
    kept: list[list[int]] = [[] for _ in strides]
    for d, size in enumerate(shape):
        if size == 1:
            continue
        if sizes and all(k[-1] == s[d] * size for k, s in zip(kept, strides)):
            sizes[-1] *= size
            for k, s in zip(kept, strides):
                k[-1] = s[d]
        else:
            sizes.append(size)
            for k, s in zip(kept, strides):
                k.append(s[d])
    return tuple(sizes), [tuple(k) for k in kept]
