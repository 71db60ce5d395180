"""What fit, evaluate and predict are given: loaders, weights, steps, several inputs, mixed precision; and threads."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import nnlib
from nnlib import layers, models, precision


def raises(kind, text):
    return pytest.raises(kind, match=f"^{re.escape(text)}")


def draw(count, seed=0):
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, 6)).astype(np.float32), generator.integers(0, 3, count)


def classifier(metrics=("accuracy",), **options):
    nnlib.set_seed(0)
    model = models.Sequential([layers.Dense(8, "relu", input_shape=(6,)), layers.Dense(3, "softmax")])
    model.compile(optimizer="adam", metrics=list(metrics), **options)
    return model


def weights_of(model):
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def dataset(count, seed=0):
    return TensorDataset(*map(torch.from_numpy, draw(count, seed)))


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
        ({"steps_per_epoch": 0}, ValueError, "steps: a positive integer or None is expected, got 0"),
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


# ----- mixed precision -----------------------------------------------------------------------------------------------


def test_mixed_precision_trains_in_half_and_keeps_float32_weights(monkeypatch):
    """On a processor without bfloat16 too: emulated, which fit refuses there and this test allows."""
    monkeypatch.setattr(precision, "check_device", lambda dtype, device: None)
    monkeypatch.setattr("nnlib.training.setup.check_device", lambda dtype, device: None)
    x, y = draw(200)
    seen = []
    full, mixed = classifier(), classifier(mixed_precision="bfloat16")
    mixed.layers[0].register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    expected = full.fit(x, y, epochs=3, verbose=0).history
    found = mixed.fit(x, y, epochs=3, verbose=0).history
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in mixed.parameters()} == {torch.float32}
    assert found["loss"] == pytest.approx(expected["loss"], rel=0.02) and found["loss"] != expected["loss"]
    assert mixed.predict(x).dtype == np.float32


def image_model():
    model = models.Sequential([layers.Conv2D(4, 3, activation="relu", input_shape=(8, 8, 2))])
    for layer in (layers.BatchNormalization(), layers.MaxPooling2D(2), layers.Flatten(), layers.Dense(5, "softmax")):
        model.add(layer)
    return model


def recurrent_model():
    model = models.Sequential([layers.Embedding(20, 8, input_length=7), layers.LSTM(8, return_sequences=True)])
    for layer in (layers.SimpleRNN(8, return_sequences=True), layers.GRU(8), layers.Dense(5, "softmax")):
        model.add(layer)
    return model


def transformer(kind):
    return lambda: models.TransformerModel(1, 8, 2, 16, 20, 5, position_encoding_type=kind, rate=0.0)


@pytest.mark.parametrize(
    "make",
    [image_model, recurrent_model, *(transformer(kind) for kind in ("sinusoidal", "shaw", "t5", "alibi"))],
    ids=["images", "recurrent", "sinusoidal", "shaw", "t5", "alibi"],
)
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_every_network_trains_in_mixed_precision(make, kind, monkeypatch):
    """Near the float32 run, by the precision of the products; float16's gradients are scaled and back."""
    monkeypatch.setattr("nnlib.training.setup.check_device", lambda dtype, device: None)
    generator = np.random.default_rng(0)
    x = generator.integers(1, 20, (64, 7))
    if make is image_model:
        x = generator.standard_normal((64, 8, 8, 2)).astype(np.float32)
    y = generator.integers(0, 5, 64)
    runs = []
    for chosen in (None, kind):
        nnlib.set_seed(0)
        model = make()
        model.compile(nnlib.optimizers.Adam(0.01), mixed_precision=chosen, global_clipnorm=1.0)
        if chosen == "float16":  # a scale at which no gradient overflows, so that no step is left out
            model.setup.scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
        runs.append(model.fit(x, y, epochs=4, shuffle=False, verbose=0).history["loss"])
        assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert kind == "bfloat16" or model.setup.scaler.get_scale() == 128
    assert runs[1] != runs[0] and runs[1] == pytest.approx(runs[0], rel=0.03)
    assert runs[1][-1] < runs[1][0]


def test_gradients_that_overflow_leave_the_step_out(monkeypatch):
    monkeypatch.setattr("nnlib.training.setup.check_device", lambda dtype, device: None)
    model = classifier(mixed_precision="float16")
    model.setup.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = weights_of(model)
    model.train_on_batch(*draw(16))
    assert torch.equal(weights_of(model), before) and model.setup.scaler.get_scale() == 2.0**39
    model.setup.scaler = None
    model.train_on_batch(*draw(16))
    assert not torch.equal(weights_of(model), before) and isinstance(model.setup.scaler, torch.amp.GradScaler)


def test_an_encoder_decoder_learns_to_copy():
    nnlib.set_seed(0)
    source = np.random.default_rng(0).integers(2, 8, (256, 5))
    given = np.concatenate([np.ones((256, 1), np.int64), source[:, :-1]], 1)
    model = models.EncoderDecoder(1, 32, 4, 64, 8, 8, rate=0.0)
    model.compile(nnlib.optimizers.Adam(0.005), metrics=["accuracy"])
    history = model.fit([source, given], source, epochs=12, batch_size=32, validation_split=0.25, verbose=0).history
    assert history["val_accuracy"][-1] > 0.9
    with raises(ValueError, "y: sparse_categorical_crossentropy expects labels of shape (N, 5), got (256, 4)"):
        model.fit([source, given], source[:, :4], verbose=0)


def test_our_ops_follow_torch_autocast():
    layer, x = layers.Dense(3, "softmax", input_shape=(6,)), torch.randn(4, 6)
    layer.build_once((None, 6))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x, apply_softmax=False).dtype is torch.bfloat16
        assert layer(x).dtype is torch.float32  # a softmax sums in float32
    assert layer(x, apply_softmax=False).dtype is torch.float32


@pytest.mark.parametrize(
    ("features", "name", "message"),
    [
        ({}, "bfloat16", "this processor computes in neither float16 nor bfloat16, got bfloat16; leave it out, or use"),
        ({"avx512bf16": True}, "mixed_float16", "this processor computes in bfloat16 alone, got float16; leave it out"),
    ],
)
def test_mixed_precision_where_there_is_none(features, name, message, monkeypatch):
    monkeypatch.setattr("nnlib.precision.binding.get_host_cpu_features", lambda: features)
    with raises(ValueError, f"mixed_precision: {message}"):
        classifier(mixed_precision=name).fit(*draw(8), verbose=0)


def test_mixed_precision_names():
    with raises(ValueError, "mixed_precision: known names are float16, bfloat16, mixed_float16, mixed_bfloat16; got"):
        classifier(mixed_precision="half")
    with raises(TypeError, "mixed_precision: None or one of float16, bfloat16, mixed_float16, mixed_bfloat16 is expec"):
        classifier(mixed_precision=torch.float16)
