"""AlexNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nnlib import layers
from nnlib.models.sequential import Sequential


def AlexNet(
    classes: int = 1000,
    input_shape: Sequence[int] = (227, 227, 3),
    *,
    grouped: bool = True,
    local_response_normalization: bool = True,
    rate: float = 0.5,
    device: torch.device | str | None = None,
    backend: str | None = None,
    name: str = "alexnet",
) -> Sequential:
    """The network of Krizhevsky, Sutskever and Hinton (ImageNet Classification with Deep Convolutional Neural Networks,
    2012), built: five convolutions, three poolings, three dense layers, a softmax; 61 million parameters.

    Input (N, 227, 227, 3), floating point; output (N, classes), probabilities. Pooling is 3x3 with stride 2, and
    convolutions 2, 4 and 5 have two groups, which were two GPUs. The weights start as Keras' do, not as the paper's.

    classes: of the output. input_shape: of an image; 224x224, which the paper says and its sizes deny, works too.
    grouped: False for one tower, every convolution over all channels. local_response_normalization: False leaves it
    out. rate: dropout before the first two dense layers. device, backend, name: see Model.

    Raises ValueError if an argument is out of its range, or the image is too small.
    """
    shape = tuple(input_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"input_shape: (height, width, channels) is expected, got {shape}")
    groups = 2 if grouped else 1
    normalization = [layers.LocalResponseNormalization] if local_response_normalization else []
    return Sequential(
        [
            layers.Conv2D(96, 11, strides=4, activation="relu", input_shape=shape),
            *(make() for make in normalization),
            layers.MaxPooling2D(3, strides=2),
            layers.Conv2D(256, 5, padding="same", groups=groups, activation="relu"),
            *(make() for make in normalization),
            layers.MaxPooling2D(3, strides=2),
            layers.Conv2D(384, 3, padding="same", activation="relu"),
            layers.Conv2D(384, 3, padding="same", groups=groups, activation="relu"),
            layers.Conv2D(256, 3, padding="same", groups=groups, activation="relu"),
            layers.MaxPooling2D(3, strides=2),
            layers.Flatten(),
            layers.Dropout(rate),
            layers.Dense(4096, activation="relu"),
            layers.Dropout(rate),
            layers.Dense(4096, activation="relu"),
            layers.Dense(classes, activation="softmax"),
        ],
        device=device,
        backend=backend,
        name=name,
    )
