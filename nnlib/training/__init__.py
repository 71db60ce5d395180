"""What `fit` is made of: data, losses, metrics, optimizers, progress and history."""
