"""Callbacks: when each is called, Keras' own decisions on the same values, files, and what is refused."""

from __future__ import annotations

import csv
import importlib.util
import math
import os
import sys

import numpy as np
import pytest
import torch

import nnlib
from nnlib import callbacks, layers, models
from tests.nnlib.messages import raises


def draw(count=32, seed=0):
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, 6)).astype(np.float32), generator.integers(0, 3, count)


def classifier(**options):
    nnlib.set_seed(0)
    model = models.Sequential([layers.Dense(3, "softmax", input_shape=(6,))])
    model.compile(**{"optimizer": "sgd", "metrics": ["accuracy"], **options})
    return model


class Script(callbacks.Callback):
    """Puts given values of val_loss into logs, one an epoch, in place of a validation."""

    def __init__(self, values):
        self.values = values

    def on_epoch_end(self, epoch, logs=None):
        logs["val_loss"] = self.values[epoch]


def test_moments_come_in_keras_order():
    calls = []

    class Diary(callbacks.Callback):
        pass

    def writer(moment):
        def write(self, *arguments):
            *numbers, logs = arguments
            calls.append((moment.removeprefix("on_"), *numbers, sorted(logs or {})))

        return write

    for name in dir(callbacks.Callback):
        if name.startswith("on_"):
            setattr(Diary, name, writer(name))
    model, (x, y) = classifier(), draw(8)
    model.fit(x, y, batch_size=4, epochs=1, validation_data=(x, y), verbose=0, callbacks=[diary := Diary()])
    values, both = ["accuracy", "loss"], ["accuracy", "loss", "val_accuracy", "val_loss"]
    assert calls == [
        ("train_begin", []),
        ("epoch_begin", 0, []),
        ("train_batch_begin", 0, []),
        ("train_batch_end", 0, values),
        ("train_batch_begin", 1, []),
        ("train_batch_end", 1, values),
        ("test_begin", []),
        ("test_batch_begin", 0, []),
        ("test_batch_end", 0, values),
        ("test_batch_begin", 1, []),
        ("test_batch_end", 1, values),
        ("test_end", values),
        ("epoch_end", 0, both),
        ("train_end", both),
    ]
    assert diary.model is model and diary.params["epochs"] == 1 and diary.params["steps"] == 2
    calls.clear()
    model.evaluate(x, y, verbose=0, callbacks=[diary])
    model.predict(x, callbacks=[diary])
    assert [call[0] for call in calls] == [
        "test_begin", "test_batch_begin", "test_batch_end", "test_end",
        "predict_begin", "predict_batch_begin", "predict_batch_end", "predict_end",
    ]  # fmt: skip


def test_stop_training_ends_after_the_batch():
    model = classifier()
    steps = []

    def stop(batch, logs):
        steps.append(batch)
        model.stop_training = len(steps) == 3

    history = model.fit(*draw(), batch_size=8, epochs=5, verbose=0, callbacks=callbacks.LambdaCallback(
        on_train_batch_end=stop))  # fmt: skip
    assert steps == [0, 1, 2] and len(history.epoch) == 1


def test_lambda_callback_knows_its_moments():
    with raises(TypeError, "on_batch: a method of Callback is expected, such as on_epoch_end"):
        callbacks.LambdaCallback(on_batch=print)


# ----- what watches a value ------------------------------------------------------------------------------------------

CURVES = [
    [5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.4, 0.3],
    [3.0, 2.0, 2.5, 2.4, 1.9, 2.2, 2.1, 2.0],
    [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    [2.0, 1.95, 1.94, 1.93, 1.0, 0.999, 0.998, 0.997],
]


@pytest.fixture(scope="module")
def keras():
    os.environ.setdefault("KERAS_BACKEND", "torch")
    return pytest.importorskip("keras", reason="Keras is not installed: pip install nnlib-kernels[keras]")


def keras_run(keras, callback, curve):
    """The callback at work on a stand-in for Keras' model: (epochs run, learning rates)."""
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
    model.stop_training = False
    callback.set_model(model)
    callback.on_train_begin()
    rates = []
    for epoch, value in enumerate(curve):
        callback.on_epoch_end(epoch, {"val_loss": value})
        rates.append(float(model.optimizer.learning_rate))
        if model.stop_training:
            break
    return rates


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"patience": 2},
        {"patience": 1, "min_delta": 0.2},
        {"patience": 2, "baseline": 2.2},
        {"patience": 1, "start_from_epoch": 3},
        {"mode": "max", "patience": 1},
    ],
)
def test_early_stopping_stops_where_keras_does(options, curve, keras):
    expected = len(keras_run(keras, keras.callbacks.EarlyStopping(**options), curve))
    history = classifier().fit(
        *draw(), epochs=len(curve), verbose=0, callbacks=[Script(curve), callbacks.EarlyStopping(**options)]
    )
    assert len(history.epoch) == expected


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize(
    "options",
    [
        {"patience": 1},
        {"patience": 2, "factor": 0.5, "cooldown": 1},
        {"patience": 0, "min_lr": 0.005},
        {"patience": 1, "min_delta": 0.3, "mode": "min"},
    ],
)
def test_plateaus_lower_the_rate_where_keras_does(options, curve, keras):
    expected = keras_run(keras, keras.callbacks.ReduceLROnPlateau(**options), curve)
    model = classifier(optimizer=nnlib.optimizers.SGD(0.1))
    rates = []
    watch = callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: rates.append(model.optimizer.learning_rate))
    plateau = callbacks.ReduceLROnPlateau(**options)
    history = model.fit(*draw(), epochs=len(curve), verbose=0, callbacks=[Script(curve), plateau, watch])
    assert rates == pytest.approx(expected, rel=1e-6)
    assert history.history["learning_rate"] == pytest.approx([0.1, *expected[:-1]], rel=1e-6)


def test_best_weights_are_put_back(capsys):
    model = classifier()
    kept = {}

    def keep(epoch, logs):
        kept[epoch] = model.layers[0].weight.detach().clone()

    stopping = callbacks.EarlyStopping(patience=2, restore_best_weights=True, verbose=1)
    watchers = [Script([3, 1, 2, 2, 2]), callbacks.LambdaCallback(on_epoch_end=keep), stopping]
    history = model.fit(*draw(), epochs=5, verbose=0, callbacks=watchers)
    assert history.epoch == [0, 1, 2, 3] and stopping.best_epoch == 1
    assert torch.equal(model.layers[0].weight, kept[1]) and not torch.equal(kept[1], kept[3])
    assert capsys.readouterr().out == "Epoch 4: early stopping\nWeights of the best epoch, 2, are put back\n"


def test_a_monitor_that_logs_do_not_have():
    watcher = callbacks.EarlyStopping("val_los")
    with raises(ValueError, "EarlyStopping: monitor: known names are loss, accuracy, val_loss, val_accuracy; got 'val"):
        classifier().fit(*draw(), verbose=0, validation_data=draw(), callbacks=[watcher])
    # An epoch without a validation is passed over.
    classifier().fit(*draw(), epochs=3, verbose=0, validation_data=draw(), validation_freq=2,
                     callbacks=[callbacks.EarlyStopping("val_loss")])  # fmt: skip


def test_which_way_is_better():
    def wave(y_true, y_pred):
        return y_pred.mean()

    model = classifier(metrics=["accuracy", wave])
    for monitor in ("accuracy", "loss"):
        model.fit(*draw(), epochs=2, verbose=0, callbacks=[callbacks.EarlyStopping(monitor)])
    with raises(ValueError, "EarlyStopping: mode: 'min' or 'max' is expected where nobody knows which is better, got"):
        model.fit(*draw(), epochs=2, verbose=0, callbacks=[callbacks.EarlyStopping("wave")])
    with raises(ValueError, "mode: known names are auto, min, max; got 'best'"):
        callbacks.EarlyStopping(mode="best")


def test_checkpoints(tmp_path, capsys):
    model = classifier()
    best = callbacks.ModelCheckpoint(tmp_path / "best.safetensors", save_best_only=True, verbose=1)
    each = callbacks.ModelCheckpoint(str(tmp_path / "all" / "{epoch:02d}-{val_loss:.1f}.safetensors"))
    weights = callbacks.ModelCheckpoint(tmp_path / "weights-{epoch}-{batch}.st", save_weights_only=True, save_freq=3)
    model.fit(*draw(), batch_size=16, epochs=3, verbose=0, callbacks=[Script([2.0, 3.0, 1.0]), best, each, weights])
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [
        "01-2.0.safetensors", "02-3.0.safetensors", "03-1.0.safetensors",
    ]  # fmt: skip
    assert capsys.readouterr().out.splitlines() == [
        f"Epoch {epoch}: saved {tmp_path / 'best.safetensors'}" for epoch in (1, 3)
    ]
    assert sorted(path.name for path in tmp_path.glob("weights*")) == ["weights-2-1.st", "weights-3-2.st"]
    loaded = nnlib.load(tmp_path / "best.safetensors")
    assert torch.equal(loaded.layers[0].weight, model.layers[0].weight)
    wrong = callbacks.ModelCheckpoint(tmp_path / "{val_acc}.safetensors")
    with raises(ValueError, "filepath: names of epoch, loss, accuracy are expected, got 'val_acc' in"):
        model.fit(*draw(), verbose=0, callbacks=[wrong])
    with raises(ValueError, "save_freq: 'epoch' or a positive number of batches is expected, got 0"):
        callbacks.ModelCheckpoint("a", save_freq=0)


# ----- what steers ---------------------------------------------------------------------------------------------------


def test_schedules(capsys):
    model = classifier(optimizer=torch.optim.SGD)
    for schedule, expected in (
        (lambda epoch, rate: rate / 2 if epoch else 0.8, [0.8, 0.4, 0.2]),
        (lambda epoch: 1 / (epoch + 1), [1, 1 / 2, 1 / 3]),
    ):
        history = model.fit(*draw(), epochs=3, verbose=0, callbacks=[callbacks.LearningRateScheduler(schedule, 1)])
        assert history.history["learning_rate"] == pytest.approx(expected)
    assert capsys.readouterr().out.splitlines()[:2] == ["Epoch 1: learning rate 0.8", "Epoch 2: learning rate 0.4"]
    with raises(ValueError, "schedule: a number of at least 0 is expected for epoch 0, got None"):
        model.fit(*draw(), verbose=0, callbacks=[callbacks.LearningRateScheduler(lambda epoch: None)])


def test_terminate_on_nan(capsys):
    x, y = draw()
    x[20] = math.nan
    model = classifier()
    history = model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0, callbacks=[callbacks.TerminateOnNaN()])
    assert len(history.epoch) == 1 and math.isnan(history.history["loss"][0])
    assert capsys.readouterr().out == "Batch 2: the loss is nan, fit ends\n"
    # The two batches before count, the third changed nothing.
    twin = classifier()
    twin.fit(x[:16], y[:16], batch_size=8, shuffle=False, verbose=0)
    assert torch.equal(model.layers[0].weight, twin.layers[0].weight)


# ----- what writes ---------------------------------------------------------------------------------------------------


def test_csv_logger(tmp_path):
    path = tmp_path / "log.csv"
    model = classifier()
    data = {"validation_data": draw(), "validation_freq": 2, "verbose": 0}
    history = model.fit(*draw(), epochs=2, callbacks=[callbacks.CSVLogger(path)], **data)
    model.fit(*draw(), epochs=3, initial_epoch=2, callbacks=[callbacks.CSVLogger(path, append=True)], **data)
    rows = list(csv.DictReader(path.open()))
    assert list(rows[0]) == ["epoch", "accuracy", "loss", "val_accuracy", "val_loss"]
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert [float(row["loss"]) for row in rows[:2]] == history.history["loss"]
    assert [row["val_loss"] for row in rows] == ["NA", str(history.history["val_loss"][0]), "NA"]
    model.fit(*draw(), callbacks=[callbacks.CSVLogger(path, separator=";")], verbose=0)
    assert path.read_text().startswith("epoch;accuracy;loss\n0;")


def test_tensorboard_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with raises(ImportError, "callbacks.TensorBoard needs the package tensorboard: pip install tensorboard"):
        callbacks.TensorBoard()


class Writer:
    """A stand-in for torch.utils.tensorboard.SummaryWriter that keeps what it is given."""

    seen: list[tuple] = []

    def __init__(self, folder):
        self.half = folder.rpartition("/")[2]

    def add_scalar(self, name, value, step):
        self.seen.append((self.half, name, step))

    def add_histogram(self, name, values, step):
        self.seen.append((self.half, name, step))

    def flush(self):
        pass

    close = flush


def test_tensorboard_writes_both_halves(tmp_path, monkeypatch):
    class Module:
        SummaryWriter = Writer

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", Module)
    monkeypatch.setattr(Writer, "seen", [])
    board = callbacks.TensorBoard(tmp_path, histogram_freq=1, update_freq=2)
    classifier(metrics=[]).fit(*draw(), batch_size=8, verbose=0, validation_data=draw(), callbacks=[board])
    assert Writer.seen == [
        ("train", "batch_loss", 2),
        ("train", "batch_loss", 4),
        ("train", "epoch_loss", 0),
        ("validation", "epoch_loss", 0),
        ("train", "dense/weight", 0),
        ("train", "dense/bias", 0),
    ]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_files(tmp_path):
    classifier().fit(*draw(), verbose=0, validation_data=draw(), callbacks=[callbacks.TensorBoard(tmp_path)])
    assert len(list(tmp_path.glob("train/events*"))) == 1 and len(list(tmp_path.glob("validation/events*"))) == 1
