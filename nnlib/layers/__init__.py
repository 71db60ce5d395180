"""Layers by Keras' names, each a torch.nn.Module on our kernels."""

from nnlib.layers.base import Layer
from nnlib.layers.convolution import Conv2D
from nnlib.layers.core import Activation, Dense, Dropout, Flatten
from nnlib.layers.pooling import AveragePooling2D, GlobalAveragePooling2D, MaxPooling2D

__all__ = [
    "Activation",
    "AveragePooling2D",
    "Conv2D",
    "Dense",
    "Dropout",
    "Flatten",
    "GlobalAveragePooling2D",
    "Layer",
    "MaxPooling2D",
]
