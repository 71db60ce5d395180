"""Convolution, bias, activation and max pooling in one pass."""
