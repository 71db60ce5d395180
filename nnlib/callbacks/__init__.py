"""Callbacks of fit, evaluate and predict, with Keras' names and arguments."""

from nnlib.callbacks.backup import BackupAndRestore
from nnlib.callbacks.base import Callback, LambdaCallback
from nnlib.callbacks.control import LearningRateScheduler, TerminateOnNaN
from nnlib.callbacks.logging import CSVLogger, TensorBoard
from nnlib.callbacks.monitoring import EarlyStopping, ModelCheckpoint, ReduceLROnPlateau

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
