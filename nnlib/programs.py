"""The networks that `python -m nnlib` trains, and the data for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nnlib import datasets, layers, models

Halves = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Program:
    """A network and its data: build(device, backend) -> model, load(whole) -> training and test arrays."""

    description: str
    build: Callable[[str | None, str | None], models.Model]
    load: Callable[[bool | None], Halves]


def build_cnn(device: str | None = None, backend: str | None = None) -> models.Sequential:
    """The article's CNN for images (N, 28, 28, 1): three convolutions, two poolings, ten classes."""
    model = models.Sequential(device=device, backend=backend, name="cnn")
    model.add(layers.Conv2D(32, (3, 3), activation="relu", input_shape=(28, 28, 1)))
    model.add(layers.MaxPooling2D((2, 2)))
    model.add(layers.Conv2D(64, (3, 3), activation="relu"))
    model.add(layers.MaxPooling2D((2, 2)))
    model.add(layers.Conv2D(64, (3, 3), activation="relu"))
    model.add(layers.Flatten())
    model.add(layers.Dense(64, activation="relu"))
    model.add(layers.Dense(10, activation="softmax"))
    return model


def build_rnn(device: str | None = None, backend: str | None = None) -> models.Sequential:
    """The article's RNN for 50 tokens (N, 50): an embedding, two LSTM layers, ten classes."""
    model = models.Sequential(device=device, backend=backend, name="rnn")
    model.add(layers.Embedding(input_dim=10000, output_dim=64, input_length=50))
    model.add(layers.LSTM(64, return_sequences=True))
    model.add(layers.LSTM(32))
    model.add(layers.Dense(64, activation="relu"))
    model.add(layers.Dense(10, activation="softmax"))
    return model


def build_transformer(device: str | None = None, backend: str | None = None) -> models.TransformerModel:
    """The article's Transformer for tokens (N, T): two layers of 512 features, relative positions, ten classes."""
    return models.TransformerModel(
        num_layers=2,
        d_model=512,
        num_heads=8,
        dff=2048,
        input_vocab_size=10000,
        target_vocab_size=10,
        position_encoding_type="relative",
        device=device,
        backend=backend,
        name="transformer",
    )


def load_source(whole: bool | None = None) -> Halves:
    """Stretches of source, see nnlib.datasets.stdlib_source; `whole` makes no difference."""
    return datasets.stdlib_source()


def load_images(whole: bool | None = None) -> Halves:
    """Fashion-MNIST as float32 (N, 28, 28, 1) from 0 to 1 and labels (N,). whole: see nnlib.datasets.fashion_mnist."""
    (x_train, y_train), (x_test, y_test) = datasets.fashion_mnist(whole=whole)
    return (_scaled(x_train), y_train), (_scaled(x_test), y_test)


def _scaled(images: np.ndarray) -> np.ndarray:
    return images[..., None].astype(np.float32) / np.float32(255)


PROGRAMS = {
    "cnn": Program("the article's CNN on Fashion-MNIST", build_cnn, load_images),
    "rnn": Program("the article's RNN on the standard library's source", build_rnn, load_source),
    "transformer": Program("the article's Transformer on the same source", build_transformer, load_source),
}
