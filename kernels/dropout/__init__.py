"""Dropout whose mask is a function of a seed: the same on every backend and for any number of threads."""
