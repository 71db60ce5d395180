"""Elementwise activations: relu, gelu, silu, sigmoid, tanh; as ops of their own and as epilogues of others."""
