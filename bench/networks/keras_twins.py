"""The networks in Keras 3 on its torch backend, as Keras' users write them. Imported when Keras is wanted."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras

from bench.networks.torch_twins import MAX_DISTANCE


def _cnn() -> Any:
    k = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            k.Conv2D(32, (3, 3), activation="relu"),
            k.MaxPooling2D((2, 2)),
            k.Conv2D(64, (3, 3), activation="relu"),
            k.MaxPooling2D((2, 2)),
            k.Conv2D(64, (3, 3), activation="relu"),
            k.Flatten(),
            k.Dense(64, activation="relu"),
            k.Dense(10, activation="softmax"),
        ]
    )


def _rnn() -> Any:
    k = keras.layers
    return keras.Sequential(
        [
            keras.Input((50,), dtype="int64"),
            k.Embedding(10000, 64),
            k.LSTM(64, return_sequences=True),
            k.LSTM(32),
            k.Dense(64, activation="relu"),
            k.Dense(10, activation="softmax"),
        ]
    )


class RelativeAttention(keras.layers.Layer):
    """Self-attention with Shaw's term, which Keras' own layer has not: of Keras' ops and Dense layers."""

    def __init__(self, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.dropout = keras.layers.Dropout(dropout)
        self.in_proj, self.out_proj = keras.layers.Dense(3 * width), keras.layers.Dense(width)

    def build(self, shape: Any) -> None:
        """The table of the distances."""
        self.table = self.add_weight(shape=(2 * MAX_DISTANCE + 1, self.width // self.heads), name="table")
        self.in_proj.build(shape)
        self.out_proj.build(shape)
        steps = np.arange(shape[1])
        self.rows = np.clip(steps[None] - steps[:, None], -MAX_DISTANCE, MAX_DISTANCE) + MAX_DISTANCE

    def call(self, x: Any) -> Any:
        """(N, T, width) -> (N, T, width)."""
        ops, steps = keras.ops, x.shape[1]
        split = ops.reshape(self.in_proj(x), (-1, steps, 3, self.heads, self.width // self.heads))
        q, k, v = (split[:, :, i] for i in range(3))
        by_row = ops.einsum("nthd,rd->nhtr", q, self.table) * (self.width // self.heads) ** -0.5
        rows = ops.broadcast_to(ops.convert_to_tensor(self.rows), (*by_row.shape[:2], steps, steps))
        bias = ops.take_along_axis(by_row, rows, axis=-1)
        scores = ops.einsum("nthd,nshd->nhts", q, k) * (self.width // self.heads) ** -0.5 + bias
        y = ops.einsum("nhts,nshd->nthd", self.dropout(ops.softmax(scores)), v)
        return self.out_proj(ops.reshape(y, (-1, steps, self.width)))


def _transformer() -> Any:
    k = keras.layers
    width, hidden = 512, 2048
    tokens = keras.Input((50,), dtype="int64")
    x = k.Dropout(0.1)(k.Embedding(10000, width)(tokens) * width**0.5)
    for _ in range(2):
        x = k.LayerNormalization(epsilon=1e-6)(x + k.Dropout(0.1)(RelativeAttention(8, width, 0.1)(x)))
        y = k.Dense(width)(k.Dense(hidden, activation="relu")(x))
        x = k.LayerNormalization(epsilon=1e-6)(x + k.Dropout(0.1)(y))
    return keras.Model(tokens, k.Dense(10, activation="softmax")(k.GlobalAveragePooling1D()(x)))


BUILDERS = {"cnn": _cnn, "rnn": _rnn, "transformer": _transformer}


class KerasTrainer:
    """compile and fit, as in the article."""

    def __init__(self, name: str, x: np.ndarray, y: np.ndarray, batch_size: int, seed: int) -> None:
        keras.utils.set_random_seed(seed)
        self.model = BUILDERS[name]()
        self.model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        self.x, self.y, self.batch_size = x, y, batch_size

    def train_epoch(self) -> None:
        """One pass over the data."""
        self.model.fit(self.x, self.y, batch_size=self.batch_size, epochs=1, verbose=0)

    def accuracy(self, x: np.ndarray, y: np.ndarray) -> float:
        """Share of right answers."""
        return float(self.model.evaluate(x, y, batch_size=self.batch_size, verbose=0, return_dict=True)["accuracy"])
