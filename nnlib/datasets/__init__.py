"""Data sets that come with the library, in the shape of keras.datasets."""

from nnlib.datasets.fashion_mnist_files import fashion_mnist

__all__ = ["fashion_mnist"]
