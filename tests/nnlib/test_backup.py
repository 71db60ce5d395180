"""BackupAndRestore: a process that is really killed, and the run that goes on, to the same bits."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

import nnlib
from nnlib import callbacks, layers, models

# Everything that has a state: dropout, momentum, accumulation that does not divide the epoch, a plateau that lowers the
# rate, early stopping with kept weights, a CSV file; and draws from NumPy's and Python's generators on the way.
PROGRAM = """
import hashlib, os, random, signal, sys
import numpy as np
import torch
import nnlib
from nnlib import callbacks, layers, models

folder, kind, save_freq, kill_at = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
generator = np.random.default_rng(0)
x, y = generator.standard_normal((70, 6)).astype(np.float32), generator.integers(0, 3, 70)
nnlib.set_seed(1)
np.random.seed(1)
random.seed(1)
model = models.Sequential(
    [layers.Dense(16, "relu", input_shape=(6,)), layers.Dropout(0.3), layers.Dense(3, "softmax")])
model.compile("adam", metrics=["accuracy"], gradient_accumulation_steps=3)


class Killer(callbacks.Callback):
    batches = 0

    def on_train_batch_end(self, batch, logs=None):
        with torch.no_grad():
            model.layers[0].bias += 1e-3 * random.random() + 1e-3 * np.random.rand()
        self.batches += 1
        if self.batches == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def state(self):
        return {"batches": self.batches}

    def set_state(self, state):
        self.batches = state["batches"] + 1000


watchers = [
    callbacks.EarlyStopping("loss", patience=5, restore_best_weights=True),
    callbacks.ReduceLROnPlateau("accuracy", patience=1, factor=0.5),
    callbacks.CSVLogger(folder + "/log.csv"),
    Killer(),
]
if save_freq != "never":
    frequency = save_freq if save_freq == "epoch" else int(save_freq)
    watchers.append(callbacks.BackupAndRestore(folder + "/backup", save_freq=frequency))
options = {"epochs": 4, "validation_data": (x, y), "callbacks": watchers, "verbose": 0}
if kind == "loader":
    data = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    history = model.fit(torch.utils.data.DataLoader(data, batch_size=8, shuffle=True), **options)
elif kind == "steps":
    history = model.fit(x, y, batch_size=8, steps_per_epoch=5, **options)
else:
    history = model.fit(x, y, batch_size=8, **options)
flat = torch.cat([value.reshape(-1) for value in model.state_dict().values()])
print(hashlib.sha256(flat.numpy().tobytes()).hexdigest())
print(history.history, history.epoch)
print(open(folder + "/log.csv").read())
print(torch.rand(1), np.random.rand(), random.random())
"""


def run(folder, kind, save_freq, kill_at):
    command = [sys.executable, "-c", PROGRAM, str(folder), kind, str(save_freq), str(kill_at)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=os.getcwd())


@pytest.mark.parametrize(
    ("kind", "save_freq", "kill_at"),
    [("arrays", "epoch", 21), ("arrays", "4", 23), ("loader", "5", 17), ("steps", "2", 13)],
)
def test_a_killed_run_ends_with_the_same_bits(kind, save_freq, kill_at, tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = run(tmp_path / "whole", kind, "never", 0)
    assert whole.returncode == 0, whole.stderr
    killed = run(tmp_path / "killed", kind, save_freq, kill_at)
    assert killed.returncode == -signal.SIGKILL and killed.stdout == ""
    assert (tmp_path / "killed" / "backup" / "backup.safetensors").is_file()
    resumed = run(tmp_path / "killed", kind, save_freq, kill_at)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout == whole.stdout
    assert not (tmp_path / "killed" / "backup").exists()


def classifier(units=3):
    nnlib.set_seed(0)
    model = models.Sequential([layers.Dense(units, "softmax", input_shape=(6,))])
    model.compile("adam", metrics=["accuracy"])
    return model


class Interrupt(callbacks.Callback):
    def __init__(self, at=1):
        self.at = at

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.at:
            raise KeyboardInterrupt


X, Y = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32), np.arange(20) % 3


def interrupted(folder):
    with pytest.raises(KeyboardInterrupt):
        classifier().fit(X, Y, epochs=3, verbose=0, callbacks=[Interrupt(), callbacks.BackupAndRestore(folder)])


def test_it_says_where_it_takes_up(tmp_path, capsys):
    interrupted(tmp_path / "backup")
    keep = callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
    history = classifier().fit(X, Y, epochs=3, verbose=2, callbacks=[Interrupt(at=None), keep])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Taken up from {keep.path}: epoch 2, step 1" and len(lines) == 3
    assert history.epoch == [0, 1, 2] and len(history.history["loss"]) == 3
    assert keep.path.is_file()
    # A run that is done has no epoch left.
    again = classifier().fit(X, Y, epochs=3, verbose=0, callbacks=[Interrupt(at=None), keep])
    assert again.history == history.history


def test_a_backup_of_another_run_is_refused(tmp_path):
    interrupted(tmp_path)
    path = tmp_path / "backup.safetensors"
    message = f"^{re.escape(str(path))}: this backup is of another run, remove it to start anew: "
    with pytest.raises(ValueError, match=message + r"callbacks: those of the run that is taken up are expected, "):
        classifier().fit(X, Y, verbose=0, callbacks=[callbacks.BackupAndRestore(tmp_path)])
    with pytest.raises(ValueError, match=message + r"Error\(s\) in loading state_dict for Sequential: size mismatch"):
        classifier(4).fit(X, Y, epochs=1, verbose=0, callbacks=[Interrupt(), callbacks.BackupAndRestore(tmp_path)])


def test_a_damaged_backup_is_refused(tmp_path):
    interrupted(tmp_path)
    path = tmp_path / "backup.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: a whole safetensors file is expected: "):
        classifier().fit(X, Y, verbose=0, callbacks=[Interrupt(), callbacks.BackupAndRestore(tmp_path)])
    classifier().save(path)
    with pytest.raises(ValueError, match="a backup of nnlib's BackupAndRestore is expected, got another file"):
        classifier().fit(X, Y, verbose=0, callbacks=[Interrupt(), callbacks.BackupAndRestore(tmp_path)])


def test_arguments():
    with pytest.raises(ValueError, match="^backup_dir: a folder is expected, got ''$"):
        callbacks.BackupAndRestore("")
    with pytest.raises(ValueError, match="^save_freq: 'epoch' or a positive number of batches is expected"):
        callbacks.BackupAndRestore("a", save_freq="batch")


def test_double_checkpoint_also_writes_after_an_epoch(tmp_path):
    written = []
    backup = callbacks.BackupAndRestore(tmp_path, save_freq=2, double_checkpoint=True)
    backup._save = lambda: written.append((backup.loop.epoch, backup.loop.step))
    classifier().fit(X, Y, batch_size=4, epochs=2, verbose=0, callbacks=[backup])
    assert written == [(0, 2), (0, 4), (1, 0), (1, 2), (1, 4), (2, 0)]
