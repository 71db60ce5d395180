"""linear_cross_entropy: the loss of a linear layer's outputs, which are never in memory as a whole."""
