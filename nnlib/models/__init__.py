"""Models by Keras' names, and networks that are ready."""

from os import PathLike
from typing import TYPE_CHECKING, NoReturn

import torch

from nnlib.models.alexnet import AlexNet
from nnlib.models.model import Model
from nnlib.models.sequential import Sequential
from nnlib.models.transformer import EncoderDecoder, TransformerModel
from nnlib.names import attribute_error

__all__ = ["AlexNet", "EncoderDecoder", "Model", "Sequential", "TransformerModel", "load_model"]


def load_model(
    path: str | PathLike[str], *, device: torch.device | str | None = None, backend: str | None = None
) -> Model:
    """nnlib.load, by Keras' name."""
    from nnlib.saving import load_model as load  # which needs all models

    return load(path, device=device, backend=backend)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> NoReturn:
        raise attribute_error(__name__, name, __all__)
