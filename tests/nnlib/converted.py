"""Shapes, noise and weights for models that are converted."""

from __future__ import annotations

import torch

from tests.nnlib.keras_twin import randomize

IMAGE, ROWS, TOKENS = (2, 4, 9, 8), (2, 5, 6), "tokens"


def noise(shape):
    generator = torch.Generator().manual_seed(2)
    if shape == TOKENS:
        tokens = torch.randint(1, 10, (2, 5), generator=generator)
        tokens[1, 3:] = 0
        return tokens
    return torch.randn(shape, generator=generator)


def randomized(module):
    randomize(module)
    for name, buffer in module.named_buffers():
        if "running_var" in name:
            buffer.uniform_(0.5, 2)
        elif "running_mean" in name:
            buffer.normal_()
    return module.eval()


def output(module, x):
    y = module(x)
    return y[0] if isinstance(y, tuple) else y
