"""embedding, and the table of sinusoidal positions that is added to it."""
