"""Callbacks that write down: CSVLogger, TensorBoard."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any, TextIO

from nnlib.callbacks.base import Callback, Logs


class CSVLogger(Callback):
    """One line an epoch in a CSV file, keras.callbacks.CSVLogger: epoch, and the values of logs by name.

    filename: the file; its folder must exist. separator: between values. append: add to a file that is there, whose
    columns are kept; otherwise it is written anew. A value that an epoch lacks is NA.
    """

    def __init__(self, filename: str | os.PathLike[str], separator: str = ",", append: bool = False) -> None:
        self.filename = Path(filename)
        self.separator = separator
        self.append = append
        self._columns: list[str] | None = None
        self._kept_bytes: int | None = None
        self._file: TextIO | None = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._columns = self._kept_bytes = None
        if self.append and self.filename.is_file():
            with self.filename.open(newline="") as file:
                self._columns = next(csv.reader(file, delimiter=self.separator), None)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        file = self._file = self._file or self._open()
        header = self._columns is None
        if self._columns is None:
            # A value that comes in later epochs has its column from the start.
            self._columns = ["epoch", *sorted({*(logs or {}), *self.params["metrics"]})]
        writer = csv.DictWriter(file, self._columns, "NA", extrasaction="ignore", delimiter=self.separator)
        if header:
            writer.writeheader()
        writer.writerow({"epoch": epoch, **(logs or {})})
        file.flush()

    def _open(self) -> TextIO:
        # Not before the first line: only then is it known whether BackupAndRestore takes an older run up again.
        if self._kept_bytes is not None:
            os.truncate(self.filename, self._kept_bytes)  # lines of epochs that are done again
        resumed = self.append or self._kept_bytes is not None
        return self.filename.open("a" if resumed else "w", newline="")

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def state(self) -> Any:
        written = self.filename.stat().st_size if self._file is not None else self._kept_bytes
        return {"columns": self._columns, "bytes": written}

    def set_state(self, state: Any) -> None:
        if state["bytes"] is not None and self.filename.is_file():
            self._columns, self._kept_bytes = state["columns"], state["bytes"]


class TensorBoard(Callback):
    """Scalars, and histograms of the weights, for TensorBoard, keras.callbacks.TensorBoard.

    log_dir: the folder; training and validation have the subfolders "train" and "validation", as in Keras.
    histogram_freq: the weights' histograms every so many epochs (default 0: never). update_freq: "epoch", or write the
    running means also every so many batches.

    Raises ImportError, when made, if the package tensorboard is not installed.
    """

    def __init__(
        self, log_dir: str | os.PathLike[str] = "logs", histogram_freq: int = 0, update_freq: str | int = "epoch"
    ) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "callbacks.TensorBoard needs the package tensorboard: pip install tensorboard"
            ) from error
        if update_freq != "epoch" and (isinstance(update_freq, (bool, str)) or update_freq < 1):
            raise ValueError(f"update_freq: 'epoch' or a positive number of batches is expected, got {update_freq!r}")
        self._make_writer = SummaryWriter
        self.log_dir = Path(log_dir)
        self.histogram_freq = histogram_freq
        self.update_freq = update_freq
        self._writers: dict[str, Any] = {}
        self._batches = 0
        if update_freq != "epoch":  # otherwise fit need not read a value after each batch
            vars(self)["on_train_batch_end"] = self._at_batch_end

    def _at_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._batches += 1
        if self._batches % int(self.update_freq) == 0:
            for name, value in (logs or {}).items():
                self._writer("train").add_scalar(f"batch_{name}", value, self._batches)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        for name, value in (logs or {}).items():
            half = "validation" if name.startswith("val_") else "train"
            self._writer(half).add_scalar(f"epoch_{name.removeprefix('val_')}", value, epoch)
        if self.histogram_freq and epoch % self.histogram_freq == 0:
            for name, parameter in self.model.named_parameters():
                self._writer("train").add_histogram(name.replace(".", "/"), parameter.detach().cpu(), epoch)
        for writer in self._writers.values():
            writer.flush()

    def on_train_end(self, logs: Logs | None = None) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _writer(self, half: str) -> Any:
        if half not in self._writers:
            self._writers[half] = self._make_writer(str(self.log_dir / half))
        return self._writers[half]

    def state(self) -> Any:
        return {"_batches": self._batches}

    def set_state(self, state: Any) -> None:
        vars(self).update(state)
