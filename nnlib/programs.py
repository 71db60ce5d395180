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
    build: Callable[[str | None, str | None], models.Sequential]
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


def load_images(whole: bool | None = None) -> Halves:
    """Fashion-MNIST as float32 (N, 28, 28, 1) from 0 to 1 and labels (N,). whole: see nnlib.datasets.fashion_mnist."""
    (x_train, y_train), (x_test, y_test) = datasets.fashion_mnist(whole=whole)
    return (_scaled(x_train), y_train), (_scaled(x_test), y_test)


def _scaled(images: np.ndarray) -> np.ndarray:
    return images[..., None].astype(np.float32) / np.float32(255)


PROGRAMS = {"cnn": Program("the article's CNN on Fashion-MNIST", build_cnn, load_images)}
