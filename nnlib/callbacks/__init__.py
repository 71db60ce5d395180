"""Callbacks of fit, evaluate and predict, with Keras' names and arguments."""

from typing import TYPE_CHECKING, NoReturn

from nnlib.callbacks.backup import BackupAndRestore
from nnlib.callbacks.base import Callback, LambdaCallback
from nnlib.callbacks.control import LearningRateScheduler, TerminateOnNaN
from nnlib.callbacks.logging import CSVLogger, TensorBoard
from nnlib.callbacks.monitoring import EarlyStopping, ModelCheckpoint, ReduceLROnPlateau
from nnlib.names import attribute_error

__all__ = [
    "BackupAndRestore",
    "CSVLogger",
    "Callback",
    "EarlyStopping",
    "LambdaCallback",
    "LearningRateScheduler",
    "ModelCheckpoint",
    "ReduceLROnPlateau",
    "TensorBoard",
    "TerminateOnNaN",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> NoReturn:
        raise attribute_error(__name__, name, __all__)
