"""Two-dimensional convolution and its transpose."""
