"""Models and weights from and to torch modules and Keras 3."""

from nnlib.convert.from_torch import from_torch
from nnlib.convert.keras_models import from_keras, to_keras
from nnlib.convert.to_torch import to_torch

__all__ = ["from_keras", "from_torch", "to_keras", "to_torch"]
