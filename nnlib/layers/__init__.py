"""Layers by Keras' names, each a torch.nn.Module on our kernels."""

from nnlib.layers.base import Layer
from nnlib.layers.bidirectional import Bidirectional
from nnlib.layers.convolution import Conv2D
from nnlib.layers.core import Activation, Dense, Dropout, Flatten
from nnlib.layers.pooling import AveragePooling2D, GlobalAveragePooling2D, MaxPooling2D
from nnlib.layers.recurrent import GRU, LSTM, SimpleRNN

__all__ = [
    "Activation",
    "AveragePooling2D",
    "Bidirectional",
    "Conv2D",
    "Dense",
    "Dropout",
    "Flatten",
    "GRU",
    "GlobalAveragePooling2D",
    "LSTM",
    "Layer",
    "MaxPooling2D",
    "SimpleRNN",
]
