"""A small classifier and data for it."""

from __future__ import annotations

import numpy as np
import torch

import nnlib
from nnlib import layers, models


def draw(count=24):
    generator = np.random.default_rng(0)
    return generator.standard_normal((count, 8, 8, 2)).astype(np.float32), generator.integers(0, 3, count)


def classifier(optimizer="adam", **options):
    nnlib.set_seed(0)
    model = models.Sequential(name="small")
    model.add(layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", input_shape=(8, 8, 2)))
    model.add(layers.MaxPooling2D(2, name="middle"))
    model.add(layers.Flatten())
    model.add(layers.Dropout(0.2))
    model.add(layers.Dense(3, activation="softmax", use_bias=False))
    model.compile(optimizer, metrics=["accuracy"], **options)
    return model


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
