"""Layers by Keras' names, each a torch.nn.Module on our kernels."""

from nnlib.layers.base import Layer
from nnlib.layers.batch_normalization import BatchNormalization
from nnlib.layers.bidirectional import Bidirectional
from nnlib.layers.conv_transpose import Conv2DTranspose
from nnlib.layers.convolution import Conv2D, DepthwiseConv2D, SeparableConv2D
from nnlib.layers.core import Activation, Dense, Dropout, Flatten, Reshape
from nnlib.layers.pooling import (
    AveragePooling2D,
    GlobalAveragePooling1D,
    GlobalAveragePooling2D,
    GlobalMaxPooling2D,
    MaxPooling2D,
)
from nnlib.layers.recurrent import GRU, LSTM, SimpleRNN

__all__ = [
    "Activation",
    "AveragePooling2D",
    "BatchNormalization",
    "Bidirectional",
    "Conv2D",
    "Conv2DTranspose",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Flatten",
    "GRU",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling2D",
    "LSTM",
    "Layer",
    "MaxPooling2D",
    "Reshape",
    "SeparableConv2D",
    "SimpleRNN",
]
