"""A small classifier and data for it."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import TensorDataset

import nnlib
from nnlib import layers, models


def draw(count, seed=0):
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, 6)).astype(np.float32), generator.integers(0, 3, count)


def classifier(metrics=("accuracy",), **options):
    nnlib.set_seed(0)
    model = models.Sequential([layers.Dense(8, "relu", input_shape=(6,)), layers.Dense(3, "softmax")])
    model.compile(optimizer="adam", metrics=list(metrics), **options)
    return model


def weights_of(model):
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def dataset(count, seed=0):
    return TensorDataset(*map(torch.from_numpy, draw(count, seed)))
