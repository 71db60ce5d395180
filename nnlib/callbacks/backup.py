"""BackupAndRestore: a run that is killed goes on where it was, to the same bits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from nnlib.callbacks.base import Callback, Logs
from nnlib.callbacks.monitoring import check_save_freq
from nnlib.tensor_file import read_tree, write_tree

if TYPE_CHECKING:
    from nnlib.training.loop import FitLoop

_KIND = "backup of nnlib's BackupAndRestore"


class BackupAndRestore(Callback):
    """Writes the state of fit to a folder, and takes it up when the same program runs again,
    keras.callbacks.BackupAndRestore.

    Kept are the weights, the optimizer's state, gradients not yet stepped with, the place in the data, the states of
    torch's, NumPy's and Python's generators, the metrics so far, History, and the states of the other callbacks. Run
    again with the same data and arguments, fit ends with the weights, bit for bit, of a run that was never stopped.
    (A DataLoader with workers that draw at random must seed them itself.)

    backup_dir: the folder; it is made, and holds the one file backup.safetensors, which is replaced in one step.
    save_freq: "epoch", or so many batches. double_checkpoint: with a number of batches, also after each epoch.
    delete_checkpoint: remove the file when fit is done (default True).

    Raises ValueError for another save_freq; in fit, ValueError if the file is damaged or is of another model, optimizer
    or list of callbacks.
    """

    loop: FitLoop

    def __init__(
        self,
        backup_dir: str | os.PathLike[str],
        save_freq: str | int = "epoch",
        double_checkpoint: bool = False,
        delete_checkpoint: bool = True,
    ) -> None:
        if not os.fspath(backup_dir):
            raise ValueError("backup_dir: a folder is expected, got ''")
        self.backup_dir = Path(backup_dir)
        self.save_freq = check_save_freq(save_freq)
        self.double_checkpoint = double_checkpoint
        self.delete_checkpoint = delete_checkpoint
        if save_freq != "epoch":  # otherwise fit need not read a value after each batch
            vars(self)["on_train_batch_end"] = self._at_batch_end

    @property
    def path(self) -> Path:
        """The file."""
        return self.backup_dir / "backup.safetensors"

    def on_train_begin(self, logs: Logs | None = None) -> None:
        if not self.path.exists():
            return
        state = read_tree(self.path, _KIND)
        try:
            self.loop.set_state(state)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            message = " ".join(str(error).split())
            raise ValueError(
                f"{self.path}: this backup is of another run, remove it to start anew: {message}"
            ) from error
        if self.params["verbose"]:
            print(f"Taken up from {self.path}: epoch {self.loop.epoch + 1}, step {self.loop.step + 1}", flush=True)

    def _at_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        if (batch + 1) % int(self.save_freq) == 0:
            self._save()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if self.save_freq == "epoch" or self.double_checkpoint:
            self._save()

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self.delete_checkpoint and self.path.exists():
            self.path.unlink()
            if not any(self.backup_dir.iterdir()):
                self.backup_dir.rmdir()

    def _save(self) -> None:
        self.backup_dir.mkdir(parents=True, exist_ok=True)
        write_tree(self.path, self.loop.state(), _KIND)
