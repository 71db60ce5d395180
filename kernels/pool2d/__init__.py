"""Two-dimensional pooling: maximum, average, their adaptive forms, and power average (Lp)."""
