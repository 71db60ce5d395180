"""Layers by Keras' names, each a torch.nn.Module on our kernels."""

from typing import TYPE_CHECKING, NoReturn

from nnlib.layers.activation_layers import ReLU, Softmax
from nnlib.layers.attention import MultiHeadAttention
from nnlib.layers.base import Layer
from nnlib.layers.batch_normalization import BatchNormalization
from nnlib.layers.bidirectional import Bidirectional
from nnlib.layers.conv_transpose import Conv2DTranspose
from nnlib.layers.convolution import Conv2D, DepthwiseConv2D, SeparableConv2D
from nnlib.layers.convolution_1d import Conv1D
from nnlib.layers.core import Activation, Dense, Dropout, Flatten, Reshape
from nnlib.layers.embedding import Embedding, PositionalEncoding
from nnlib.layers.input_layer import Input, InputLayer
from nnlib.layers.local_response import LocalResponseNormalization
from nnlib.layers.masking import Masking
from nnlib.layers.normalization import LayerNormalization, RMSNormalization
from nnlib.layers.pooling import (
    AveragePooling2D,
    GlobalAveragePooling2D,
    GlobalMaxPooling2D,
    MaxPooling2D,
)
from nnlib.layers.pooling_1d import AveragePooling1D, GlobalAveragePooling1D, GlobalMaxPooling1D, MaxPooling1D
from nnlib.layers.recurrent import GRU, LSTM, SimpleRNN
from nnlib.layers.transformer import KeyValueCache, TransformerBlock
from nnlib.layers.zero_padding import ZeroPadding2D
from nnlib.names import attribute_error

# Keras' other names for some of them.
AvgPool1D, AvgPool2D = AveragePooling1D, AveragePooling2D
Convolution1D, Convolution2D, Convolution2DTranspose = Conv1D, Conv2D, Conv2DTranspose
GlobalAvgPool1D, GlobalAvgPool2D = GlobalAveragePooling1D, GlobalAveragePooling2D
GlobalMaxPool1D, GlobalMaxPool2D = GlobalMaxPooling1D, GlobalMaxPooling2D
MaxPool1D, MaxPool2D = MaxPooling1D, MaxPooling2D
SeparableConvolution2D = SeparableConv2D

__all__ = [
    "Activation",
    "AveragePooling1D",
    "AveragePooling2D",
    "AvgPool1D",
    "AvgPool2D",
    "BatchNormalization",
    "Bidirectional",
    "Conv1D",
    "Conv2D",
    "Conv2DTranspose",
    "Convolution1D",
    "Convolution2D",
    "Convolution2DTranspose",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Embedding",
    "Flatten",
    "GRU",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "GlobalAvgPool1D",
    "GlobalAvgPool2D",
    "GlobalMaxPool1D",
    "GlobalMaxPool2D",
    "GlobalMaxPooling1D",
    "GlobalMaxPooling2D",
    "Input",
    "InputLayer",
    "KeyValueCache",
    "LSTM",
    "Layer",
    "LayerNormalization",
    "LocalResponseNormalization",
    "Masking",
    "MaxPool1D",
    "MaxPool2D",
    "MaxPooling1D",
    "MaxPooling2D",
    "MultiHeadAttention",
    "PositionalEncoding",
    "RMSNormalization",
    "ReLU",
    "Reshape",
    "SeparableConv2D",
    "SeparableConvolution2D",
    "SimpleRNN",
    "Softmax",
    "TransformerBlock",
    "ZeroPadding2D",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> NoReturn:
        raise attribute_error(__name__, name, __all__)
