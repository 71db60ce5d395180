"""Models by Keras' names."""

from nnlib.models.model import Model
from nnlib.models.sequential import Sequential

__all__ = ["Model", "Sequential"]
