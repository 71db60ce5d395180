"""Softmax attention that never holds the scores: masks, bias, relative positions, dropout, grouped heads, training."""
