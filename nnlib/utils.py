"""What Keras' programs do to their data before they train: keras.utils, as far as it is needed here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nnlib.names import look_up
from nnlib.random import set_seed as set_random_seed

__all__ = ["pad_sequences", "set_random_seed", "to_categorical"]

_SIDES = {"pre": "pre", "post": "post"}


def to_categorical(x: Any, num_classes: int | None = None) -> np.ndarray[Any, Any]:
    """Labels as rows with a single 1, keras.utils.to_categorical.

    x: whole numbers of at least 0, of any shape (..., ) or (..., 1). num_classes: default the largest label and one
    more. Returns float32 (..., num_classes).

    Raises ValueError for a label that is none, or not below num_classes.
    """
    labels = np.asarray(x)
    if labels.ndim > 1 and labels.shape[-1] == 1:
        labels = labels[..., 0]
    classes = int(labels.max(initial=0)) + 1 if num_classes is None else num_classes
    wrong = (labels < 0) | (labels >= classes) | (labels != np.floor(labels))
    if wrong.any():
        raise ValueError(f"x: whole labels from 0 to {classes - 1} are expected, got {labels[wrong][0]}")
    return np.eye(classes, dtype=np.float32)[labels.astype(np.int64)]


def pad_sequences(
    sequences: Sequence[Sequence[Any]],
    maxlen: int | None = None,
    dtype: Any = "int32",
    padding: str = "pre",
    truncating: str = "pre",
    value: float = 0.0,
) -> np.ndarray[Any, Any]:
    """Rows of different lengths in one array (N, T, ...), keras.utils.pad_sequences.

    sequences: lists or arrays, one a row. maxlen: T (default the longest row's). padding, truncating: "pre" or "post",
    the side where rows are filled up with `value` or cut.

    Raises ValueError for another side, or a row that does not fit the first one.
    """
    look_up("padding", padding, _SIDES)
    look_up("truncating", truncating, _SIDES)
    rows = [np.asarray(row) for row in sequences]
    steps = max((len(row) for row in rows), default=0) if maxlen is None else maxlen
    features = next((row.shape[1:] for row in rows if len(row)), ())
    padded = np.full((len(rows), steps, *features), value, dtype)
    for number, row in enumerate(rows):
        if not len(row) or not steps:
            continue
        if row.shape[1:] != features:
            raise ValueError(f"sequences: steps of shape {features} are expected, got {row.shape[1:]} in row {number}")
        kept = row[-steps:] if truncating.lower() == "pre" else row[:steps]
        where = slice(steps - len(kept), None) if padding.lower() == "pre" else slice(len(kept))
        padded[number, where] = kept
    return padded
