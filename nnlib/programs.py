"""The networks that `python -m nnlib` trains, and the data for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from nnlib import datasets, layers, models
from nnlib.datasets import fashion_mnist_files, stdlib_source_files

Halves = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
IMAGES, TEXT = "images", "text"


@dataclass(frozen=True)
class Program:
    """A network and its data.

    build(device, backend): makes the model. load(whole): training and test arrays; whole: see datasets.fashion_mnist.
    kind: IMAGES or TEXT. classes: the names of the labels. enlarge: images are small arrays that each batch makes
    large, since all together they would not fit.
    """

    description: str
    build: Callable[[str | None, str | None], models.Model]
    load: Callable[[bool | None], Halves]
    kind: str
    classes: tuple[str, ...]
    enlarge: Callable[[torch.Tensor], torch.Tensor] | None = None

    def metadata(self, name: str) -> dict[str, Any]:
        """What a saved model must tell `predict`."""
        told: dict[str, Any] = {"program": name, "kind": self.kind, "classes": list(self.classes)}
        if self.kind == TEXT:
            told["vocabulary"] = list(stdlib_source_files.vocabulary())
        return told

    def arguments(self, x: np.ndarray, y: np.ndarray, batch_size: int, *, shuffle: bool) -> dict[str, Any]:
        """These samples as arguments of fit, or of evaluate with shuffle False."""
        if self.enlarge is None:
            return {"x": x, "y": y, "batch_size": batch_size, **({"shuffle": True} if shuffle else {})}
        enlarge = self.enlarge

        def collate(samples: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
            images, labels = zip(*samples)
            return enlarge(torch.stack(images)), torch.stack(labels)

        data = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
        return {"x": DataLoader(data, batch_size=batch_size, shuffle=shuffle, collate_fn=collate)}


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
    """The article's RNN for tokens (N, 50) below 10,000: an embedding, two LSTMs, ten classes."""
    model = models.Sequential(device=device, backend=backend, name="rnn")
    model.add(layers.Embedding(input_dim=10000, output_dim=64, input_length=50))
    model.add(layers.LSTM(64, return_sequences=True))
    model.add(layers.LSTM(32))
    model.add(layers.Dense(64, activation="relu"))
    model.add(layers.Dense(10, activation="softmax"))
    return model


def build_transformer(device: str | None = None, backend: str | None = None) -> models.TransformerModel:
    """The article's Transformer for tokens (N, T) below 10,000: two blocks of eight heads, ten classes."""
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


def build_alexnet(device: str | None = None, backend: str | None = None) -> models.Sequential:
    """AlexNet at full size, for images (N, 227, 227, 3) and ten classes."""
    return models.AlexNet(10, device=device, backend=backend)


def load_images(whole: bool | None = None) -> Halves:
    """Fashion-MNIST as float32 (N, 28, 28, 1) from 0 to 1 and labels (N,). whole: see nnlib.datasets.fashion_mnist."""
    (x_train, y_train), (x_test, y_test) = datasets.fashion_mnist(whole=whole)
    return (scaled(x_train), y_train), (scaled(x_test), y_test)


def load_source(whole: bool | None = None) -> Halves:
    """Stretches of Python source, tokens (N, 50), and their packages, (N,). whole has no meaning here."""
    return datasets.stdlib_source()


def scaled(images: np.ndarray) -> np.ndarray:
    """uint8 (N, 28, 28) as float32 (N, 28, 28, 1) from 0 to 1."""
    return images[..., None].astype(np.float32) / np.float32(255)


def enlarged(images: torch.Tensor) -> torch.Tensor:
    """(N, 28, 28, 1) as (N, 227, 227, 3), bilinear, the same in each channel."""
    large = F.interpolate(images.permute(0, 3, 1, 2), size=(227, 227), mode="bilinear")
    return large.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)


_CLOTHES, _PACKAGES = fashion_mnist_files.CLASS_NAMES, stdlib_source_files.PACKAGES
PROGRAMS = {
    "cnn": Program("the article's CNN on Fashion-MNIST", build_cnn, load_images, IMAGES, _CLOTHES),
    "rnn": Program("the article's RNN on Python source", build_rnn, load_source, TEXT, _PACKAGES),
    "transformer": Program(
        "the article's Transformer on Python source", build_transformer, load_source, TEXT, _PACKAGES
    ),
    "alexnet": Program(
        "AlexNet on Fashion-MNIST, enlarged to 227x227",
        build_alexnet,
        load_images,
        IMAGES,
        _CLOTHES,
        enlarge=enlarged,
    ),
}
