from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ.setdefault("KERAS_BACKEND", "torch")  # read when keras is first imported

import nnlib
from nnlib import layers, models
from nnlib.losses import LossFunction

Images = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def images() -> Images:
    """200 real images, float32 (200, 28, 28, 1) from 0 to 1, with their labels (200,)."""
    (x, y), _ = nnlib.datasets.fashion_mnist(whole=False)
    return (x[:200, :, :, None] / 255.0).astype(np.float32), y[:200]


@pytest.fixture
def small_model() -> Callable[..., models.Sequential]:
    """A function that makes a compiled classifier of images (28, 28, 1) that trains in milliseconds."""

    def make(
        loss: str | LossFunction = "sparse_categorical_crossentropy", seed: int = 0, **options: str
    ) -> models.Sequential:
        nnlib.set_seed(seed)
        model = models.Sequential(**options)
        model.add(layers.Conv2D(4, 5, strides=2, activation="relu", input_shape=(28, 28, 1)))
        model.add(layers.MaxPooling2D(2))
        model.add(layers.Flatten())
        model.add(layers.Dropout(0.1))
        model.add(layers.Dense(10, activation="softmax"))
        model.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
        return model

    return make


@pytest.fixture
def random_image() -> Callable[..., torch.Tensor]:
    """A function that makes float64 noise of a shape, the same on each run, that wants a gradient."""

    def make(*shape: int, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    return make


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Layers are built in float64, where a wrong term cannot hide in rounding."""
    torch.set_default_dtype(torch.float64)
    nnlib.set_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file for a model."""
    return tmp_path / "model.safetensors"
