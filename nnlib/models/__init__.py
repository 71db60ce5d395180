"""Models by Keras' names, and networks that are ready."""

from nnlib.models.alexnet import AlexNet
from nnlib.models.model import Model
from nnlib.models.sequential import Sequential
from nnlib.models.transformer import EncoderDecoder, TransformerModel

__all__ = ["AlexNet", "EncoderDecoder", "Model", "Sequential", "TransformerModel"]
