"""What fit, evaluate and predict are given: loaders, weights, steps, several inputs; and threads."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import nnlib
from nnlib import layers, models
from tests.nnlib.fitted import classifier, dataset, draw, weights_of
from tests.nnlib.messages import raises

# ----- loaders -------------------------------------------------------------------------------------------------------


def test_a_loader_gives_the_run_of_the_arrays():
    x, y = draw(50)
    arrays, loader = classifier(), classifier()
    expected = arrays.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0, validation_data=draw(20, 1))
    batches = DataLoader(dataset(50), batch_size=16)
    found = loader.fit(batches, epochs=2, verbose=0, validation_data=DataLoader(dataset(20, 1), batch_size=16))
    assert found.history == expected.history
    assert torch.equal(weights_of(arrays), weights_of(loader))
    assert loader.evaluate(batches, verbose=0) == arrays.evaluate(x, y, batch_size=16, verbose=0)
    assert np.array_equal(loader.predict(batches), arrays.predict(x, batch_size=16))


def test_any_sequence_of_batches_is_a_loader():
    x, y = draw(48)
    batches = [(x[start : start + 16], y[start : start + 16]) for start in (0, 16, 32)]
    expected = classifier().fit(x, y, batch_size=16, shuffle=False, verbose=0).history
    assert classifier().fit(batches, verbose=0).history == expected


def test_a_loader_without_length():
    class Endless(IterableDataset):
        def __iter__(self):
            x, y = draw(64)
            while True:
                yield from zip(x, y)

    x, y = draw(64)
    expected = classifier().fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0).history
    found = classifier().fit(DataLoader(Endless(), batch_size=32), epochs=2, steps_per_epoch=2, verbose=0)
    assert found.history == expected


def test_a_loader_that_can_be_read_once():
    x, y = draw(16)
    with raises(ValueError, "x: at least one batch is expected in each pass, got none; can it be read again?"):
        classifier().fit(iter([(x, y)]), epochs=2, verbose=0)


def test_batches_of_a_loader_are_checked():
    x, y = draw(16)
    with raises(ValueError, "x: each batch must be (x, y) or (x, y, weight), got Tensor"):
        classifier().fit([torch.from_numpy(x)[:, None]] and iter([torch.from_numpy(x)]), verbose=0)
    wrong = y.copy()
    wrong[3] = 5
    with raises(ValueError, "y: labels must be from 0 to 2 for an output of 3 classes, got 5 in row 3"):
        classifier().fit([(x, y), (x, wrong)], verbose=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 4}, "batch_size: it is the DataLoader's to give, got batch_size= beside one"),
        ({"sample_weight": np.ones(8)}, "sample_weight: it is the DataLoader's to give, got sample_weight= beside one"),
        ({"validation_split": 0.5}, "validation_split: arrays x and y are expected; of a DataLoader give validation_d"),
    ],
)
def test_what_does_not_go_with_a_loader(arguments, message):
    with raises(ValueError, message):
        classifier().fit(DataLoader(dataset(8)), verbose=0, **arguments)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"y": None}, ValueError, "y: targets are expected beside x, got None"),
        ({"x": None, "y": None}, TypeError, "x: a NumPy array or a torch tensor is expected, got NoneType"),
        ({"epochs": -1}, ValueError, "epochs: a number of epochs is expected, got -1"),
        ({"epochs": 1.5}, ValueError, "epochs: a number of epochs is expected, got 1.5"),
        ({"validation_freq": 0}, ValueError, "validation_freq: a number of epochs is expected, got 0"),
        ({"steps_per_epoch": 0}, ValueError, "steps_per_epoch: a positive integer is expected, got 0"),
        ({"validation_data": 3}, ValueError, "validation_data: (x, y), (x, y, weight) or a DataLoader is expected, go"),
        ({"callbacks": [3]}, TypeError, "callbacks: objects of nnlib.callbacks.Callback are expected, got 3"),
        ({"class_weight": {"a": 1.0}}, ValueError, "class_weight: a dictionary from class numbers to weights is expe"),
        ({"sample_weight": np.ones(7)}, ValueError, "x and sample_weight must have the same number of samples, got 8 "),
        ({"sample_weight": np.ones((8, 2))}, ValueError, "sample_weight: one weight a sample is expected, got shape "),
        (
            {"sample_weight": np.ones(8), "class_weight": {0: 1.0}},
            ValueError,
            "class_weight and sample_weight: one of the two is expected, got both",
        ),
        ({"x": [draw(8)[0], draw(7)[0]]}, ValueError, "x: all inputs must have the same number of samples, got 8, 7"),
    ],
)
def test_arguments(arguments, kind, message):
    x, y = draw(8)
    with raises(kind, message):
        classifier().fit(**{"x": x, "y": y, "verbose": 0, **arguments})


# ----- weights -------------------------------------------------------------------------------------------------------


def test_whole_weights_are_repetitions():
    """A sample of weight 2 counts as two, in the gradient; the loss is divided by the number of samples."""
    x, y = draw(12)
    counts = np.arange(12) % 3 + 1
    weighted, repeated = classifier().double(), classifier().double()
    loss, _ = weighted.train_on_batch(x, y, sample_weight=counts / counts.mean())
    expected, _ = repeated.train_on_batch(np.repeat(x, counts, axis=0), np.repeat(y, counts))
    assert loss == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(weights_of(weighted), weights_of(repeated), rtol=1e-5, atol=1e-7)


def test_class_weights_are_sample_weights():
    x, y = draw(40)
    table = {0: 3.0, 2: 0.5}
    by_class, by_sample, by_row = classifier(), classifier(), classifier(loss="categorical_crossentropy")
    weights = np.array([table.get(label, 1.0) for label in y])
    expected = by_sample.fit(x, y, sample_weight=weights, shuffle=False, verbose=0).history
    assert by_class.fit(x, y, class_weight=table, shuffle=False, verbose=0).history == expected
    rows = by_row.fit(x, np.eye(3)[y], class_weight=table, shuffle=False, verbose=0).history
    assert rows["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    loaders = classifier().fit([(x, y)], class_weight=table, verbose=0).history
    assert loaders == classifier().fit([(x, y, weights.astype(np.float32))], verbose=0).history


def test_class_weights_of_steps_are_weights_of_steps():
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((6, 5, 4)).astype(np.float32), generator.integers(0, 3, (6, 5))
    table = {0: 3.0, 2: 0.5}
    weights = np.vectorize(lambda label: table.get(label, 1.0))(y)

    def losses(**options):
        nnlib.set_seed(0)
        first = layers.GRU(3, return_sequences=True, input_shape=(5, 4))
        model = models.Sequential([first, layers.Dense(3, "softmax")])
        model.compile("sgd", "sparse_categorical_crossentropy")
        return model.fit(x, y, epochs=2, shuffle=False, verbose=0, **options).history["loss"]

    assert losses(class_weight=table) == losses(sample_weight=weights) != losses()
    nnlib.set_seed(0)
    model = models.Sequential([layers.Dense(3, "softmax", input_shape=(5, 4))])
    model.compile("sgd", "categorical_crossentropy")
    with raises(ValueError, "class_weight: one class a sample is expected, got targets of shape (6, 5, 3)"):
        model.fit(x, np.eye(3)[y], class_weight=table, verbose=0)


def test_weights_count_in_weighted_metrics_alone():
    x, y = draw(30)
    weights = np.linspace(0, 2, 30)
    model = classifier(weighted_metrics=["sparse_categorical_accuracy"])
    loss, plain, weighted = model.evaluate(x, y, batch_size=7, sample_weight=weights, verbose=0)
    output = model.predict(x)
    hits = output.argmax(-1) == y
    assert plain == pytest.approx(hits.mean())
    assert weighted == pytest.approx((hits * weights).sum() / weights.sum(), rel=1e-6)
    assert loss == pytest.approx(-(np.log(output[np.arange(30), y]) * weights).mean(), rel=1e-5)


def test_validation_takes_its_part_of_the_weights():
    x, y = draw(40)
    weights = np.linspace(0, 2, 40)
    one = classifier().fit(x, y, sample_weight=weights, validation_split=0.25, verbose=0)
    data = (x[30:], y[30:], weights[30:])
    other = classifier().fit(x[:30], y[:30], sample_weight=weights[:30], validation_data=data, verbose=0)
    assert one.history == other.history


# ----- steps and epochs ----------------------------------------------------------------------------------------------


def test_steps_per_epoch_go_on_where_the_last_epoch_ended():
    """Five epochs of 2 batches are two passes over 5 batches."""
    x, y = draw(80)
    passes = classifier()
    passes.fit(x, y, batch_size=16, epochs=2, verbose=0)
    parts = classifier()
    history = parts.fit(x, y, batch_size=16, epochs=5, steps_per_epoch=2, verbose=0)
    assert len(history.epoch) == 5
    assert torch.equal(weights_of(passes), weights_of(parts))


def test_validation_steps_and_frequency():
    x, y = draw(32)
    model = classifier()
    options = {"validation_batch_size": 8, "validation_steps": 2, "validation_freq": 2}
    history = model.fit(x, y, epochs=4, validation_data=(x, y), verbose=0, **options).history
    assert len(history["loss"]) == 4 and len(history["val_loss"]) == 2
    assert history["val_loss"][-1] == pytest.approx(model.evaluate(x[:16], y[:16], verbose=0)[0], rel=1e-6)


def test_on_batch_methods_agree_with_the_whole():
    x, y = draw(20)
    model = classifier()
    assert model.test_on_batch(x, y) == pytest.approx(model.evaluate(x, y, verbose=0))
    assert model.test_on_batch(x, y, return_dict=True).keys() == {"loss", "accuracy"}
    assert model.evaluate(x, y, verbose=0, return_dict=True)["loss"] == model.test_on_batch(x, y)[0]
    assert np.array_equal(model.predict_on_batch(x), model.predict(x))
    assert model.predict(x, batch_size=4, steps=2).shape == (8, 3)
    before = model.test_on_batch(x, y)[0]
    assert model.train_on_batch(x, y, return_dict=True)["loss"] == pytest.approx(before)
    assert model.test_on_batch(x, y)[0] < before


def test_history_plots(tmp_path):
    history = classifier().fit(*draw(32), epochs=4, validation_data=draw(8, 1), validation_freq=2, verbose=0)
    figure = history.plot(tmp_path / "history.png")
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    training, validation = figure.axes[0].lines
    assert list(training.get_xdata()) == [1, 2, 3, 4] and list(validation.get_xdata()) == [2, 4]
    assert list(training.get_ydata()) == history.history["loss"]


def test_history_says_that_matplotlib_is_missing(monkeypatch):
    history = classifier().fit(*draw(8), verbose=0)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with raises(ImportError, "History.plot needs the package matplotlib: pip install nnlib-kernels[plot]"):
        history.plot()


# ----- models --------------------------------------------------------------------------------------------------------


class Pair(models.Model):
    """Two inputs, layers that are built at the first call, no compute_output_shape."""

    def __init__(self):
        super().__init__()
        self.left, self.right = layers.Dense(4), layers.Dense(4)
        self.head = layers.Dense(3, "softmax")

    def forward(self, left, right):
        return self.head(torch.relu(self.left(left) + self.right(right)))


def test_a_model_of_two_inputs():
    x, y = draw(40)
    nnlib.set_seed(0)
    model = Pair()
    model.compile("adam", metrics=["accuracy"])
    halves = [x[:, :2], x[:, 2:]]
    history = model.fit(halves, y, epochs=3, batch_size=8, validation_split=0.2, verbose=0).history
    assert history["loss"][-1] < history["loss"][0] and len(history["val_loss"]) == 3
    assert model.predict(halves, batch_size=16).shape == (40, 3)
    assert model.evaluate(halves, y, verbose=0)[0] == pytest.approx(
        -np.log(model.predict(halves)[np.arange(40), y]).mean(), rel=1e-5
    )
    loader = [([half[:20] for half in halves], y[:20]), ([half[20:] for half in halves], y[20:])]
    assert model.evaluate(loader, verbose=0) == pytest.approx(model.evaluate(halves, y, verbose=0))


# ----- seeds and threads ---------------------------------------------------------------------------------------------

SEEDED = """
import sys, torch, numpy as np
torch.set_num_threads(int(sys.argv[1]))
import nnlib
from nnlib import datasets, layers, models
(x, y), _ = datasets.fashion_mnist(whole=False)
nnlib.set_seed(3)
model = models.Sequential([
    layers.Conv2D(16, 3, activation="relu", input_shape=(28, 28, 1)), layers.MaxPooling2D(2), layers.Flatten(),
    layers.Dropout(0.3), layers.Dense(300, activation="relu"), layers.Dense(10, activation="softmax")])
model.compile("adam", metrics=["accuracy"], global_clipnorm=0.5)
history = model.fit(x[:300, :, :, None] / 255, y[:300], batch_size=64, epochs=2, verbose=0)
flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()
import hashlib
print(history.history["loss"], hashlib.sha256(flat.tobytes()).hexdigest())
"""


def test_seeded_runs_repeat_bit_for_bit_at_any_number_of_threads():
    """In processes of their own, as Numba's number of threads is a process' own. The first weight of Dense has 811,200
    numbers, whose norm torch would sum in as many parts as there are threads."""
    outputs = set()
    for threads in ("1", "3"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}
        command = [sys.executable, "-c", SEEDED, threads]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert result.returncode == 0, result.stderr
        outputs.add(result.stdout)
    assert len(outputs) == 1, outputs
