"""nnlib: networks on the kernels of this library, Keras in spelling and torch.nn.Module in substance.

    from nnlib import layers, models

    model = models.Sequential()
    model.add(layers.Conv2D(32, (3, 3), activation="relu", input_shape=(28, 28, 1)))
    ...
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x_train, y_train, epochs=5, batch_size=64)

All computation goes through `kernels`; `backend=` on a layer or a model, or model.to_backend(name), swaps it.
"""

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":  # torch is there and broken: its own message says more
        raise
    raise ImportError("nnlib needs PyTorch: pip install nnlib-kernels[torch]") from error

from nnlib import (
    callbacks,
    constraints,
    datasets,
    initializers,
    layers,
    losses,
    metrics,
    models,
    optimizers,
    regularizers,
    utils,
)
from nnlib.convert import from_keras, from_torch, to_keras, to_torch
from nnlib.layers import Input
from nnlib.models import Model, Sequential
from nnlib.random import set_seed
from nnlib.saving import load_model as load

__all__ = [
    "Input",
    "Model",
    "Sequential",
    "callbacks",
    "constraints",
    "datasets",
    "from_keras",
    "from_torch",
    "initializers",
    "layers",
    "load",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "regularizers",
    "set_seed",
    "to_keras",
    "to_torch",
    "utils",
]
