"""Layers by Keras' names, each a torch.nn.Module on our kernels."""

from nnlib.layers.attention import MultiHeadAttention
from nnlib.layers.base import Layer
from nnlib.layers.batch_normalization import BatchNormalization
from nnlib.layers.bidirectional import Bidirectional
from nnlib.layers.conv_transpose import Conv2DTranspose
from nnlib.layers.convolution import Conv2D, DepthwiseConv2D, SeparableConv2D
from nnlib.layers.core import Activation, Dense, Dropout, Flatten, Reshape
from nnlib.layers.embedding import Embedding, PositionalEncoding
from nnlib.layers.local_response import LocalResponseNormalization
from nnlib.layers.normalization import LayerNormalization, RMSNormalization
from nnlib.layers.pooling import (
    AveragePooling2D,
    GlobalAveragePooling1D,
    GlobalAveragePooling2D,
    GlobalMaxPooling2D,
    MaxPooling2D,
)
from nnlib.layers.recurrent import GRU, LSTM, SimpleRNN
from nnlib.layers.transformer import KeyValueCache, TransformerBlock
from nnlib.layers.zero_padding import ZeroPadding2D

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
    "Embedding",
    "Flatten",
    "GRU",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling2D",
    "KeyValueCache",
    "LSTM",
    "Layer",
    "LayerNormalization",
    "LocalResponseNormalization",
    "MaxPooling2D",
    "MultiHeadAttention",
    "PositionalEncoding",
    "RMSNormalization",
    "Reshape",
    "SeparableConv2D",
    "SimpleRNN",
    "TransformerBlock",
    "ZeroPadding2D",
]
