"""Data sets that come with the library, or that every machine has, in the shape of keras.datasets."""

from nnlib.datasets.fashion_mnist_files import fashion_mnist
from nnlib.datasets.stdlib_source_files import stdlib_source

__all__ = ["fashion_mnist", "stdlib_source"]
