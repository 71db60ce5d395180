"""Affine maps of the last dimension: x weight^T + bias, with an activation in the same pass."""
