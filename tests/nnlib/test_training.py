"""compile, fit, evaluate, predict: the article's CNN against a twin in plain torch, and Keras' arithmetic by hand."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import nnlib
from nnlib import layers, models
from nnlib.losses import CategoricalCrossentropy, MeanSquaredError, SparseCategoricalCrossentropy
from nnlib.optimizers import Adam
from nnlib.programs import build_cnn
from nnlib.training import progress

STEPS = 20


class TorchCNN(torch.nn.Module):
    """The article's CNN in torch alone, with the weights of ours."""

    def __init__(self, model):
        super().__init__()
        for name, value in model.state_dict().items():
            self.register_parameter(name.replace(".", "_"), torch.nn.Parameter(value.clone()))

    def forward(self, x):
        x = x.permute(0, 3, 1, 2)
        x = F.max_pool2d(F.relu(F.conv2d(x, self.conv2d_weight, self.conv2d_bias)), 2)
        x = F.max_pool2d(F.relu(F.conv2d(x, self.conv2d_1_weight, self.conv2d_1_bias)), 2)
        x = F.relu(F.conv2d(x, self.conv2d_2_weight, self.conv2d_2_bias))
        x = x.permute(0, 2, 3, 1).flatten(1)
        x = F.relu(F.linear(x, self.dense_weight, self.dense_bias))
        return F.linear(x, self.dense_1_weight, self.dense_1_bias)


def cnn(dtype):
    nnlib.set_seed(0)
    model = build_cnn()
    with torch.no_grad():
        for layer in model.layers:
            if getattr(layer, "bias", None) is not None:
                layer.bias.uniform_(-0.1, 0.1)
    return model.to(dtype)


def our_losses(images, dtype):
    model = cnn(dtype)
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    x, y = images
    return np.array([model.train_on_batch(x[rows], y[rows])[0] for rows in batches(len(x))])


def torch_losses(images, dtype):
    twin = TorchCNN(cnn(dtype))
    optimizer = Adam()(twin.parameters())
    x, y = torch.from_numpy(images[0]).to(dtype), torch.from_numpy(images[1]).long()
    losses = []
    for rows in batches(len(x)):
        loss = F.cross_entropy(twin(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


def batches(count, size=32):
    starts = range(0, count - size + 1, size)
    return [slice(start, start + size) for start in starts][:STEPS] * (1 + STEPS // len(starts))


def test_cnn_losses_equal_the_twins_in_float64(images):
    ours, theirs = our_losses(images, torch.float64), torch_losses(images, torch.float64)
    np.testing.assert_allclose(ours, theirs, rtol=1e-8)
    assert theirs[-1] < 0.8 * theirs[0]


def test_cnn_losses_equal_the_twins_in_float32(images):
    """Held against the float64 run, ours is no further off than torch's own float32 run, but for a small factor."""
    exact = torch_losses(images, torch.float64)
    budget = np.abs(torch_losses(images, torch.float32) - exact).max()
    assert np.abs(our_losses(images, torch.float32) - exact).max() <= 3 * max(budget, 1e-6)


def test_cnn_learns_real_images():
    (x, y), (x_test, y_test) = nnlib.datasets.fashion_mnist(whole=False)
    nnlib.set_seed(0)
    model = build_cnn()
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x[:2000, :, :, None] / 255, y[:2000], epochs=3, batch_size=64, verbose=0)
    assert model.evaluate(x_test[:1000, :, :, None] / 255, y_test[:1000], verbose=0)[1] > 0.7


def test_history_evaluate_and_predict_agree(small_model, images):
    x, y = images
    model = small_model()
    history = model.fit(x[:150], y[:150], epochs=3, batch_size=64, validation_data=(x[150:], y[150:]), verbose=0)
    assert list(history.history) == ["loss", "accuracy", "val_loss", "val_accuracy"]
    assert {len(values) for values in history.history.values()} == {3}
    assert history.epoch == [0, 1, 2] and len(history.seconds) == 3
    loss, accuracy = model.evaluate(x[150:], y[150:], batch_size=7, verbose=0)
    assert loss == pytest.approx(history.history["val_loss"][-1], rel=1e-6)
    assert accuracy == history.history["val_accuracy"][-1]
    probabilities = model.predict(x[150:], batch_size=11)
    assert isinstance(probabilities, np.ndarray) and probabilities.shape == (50, 10)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    assert (probabilities.argmax(-1) == y[150:]).mean() == accuracy
    assert -np.log(probabilities[np.arange(50), y[150:]]).mean() == pytest.approx(loss, rel=1e-5)


def test_validation_split_takes_the_last_rows(small_model, images):
    x, y = images
    one = small_model().fit(x, y, epochs=2, validation_split=0.25, verbose=0)
    other = small_model().fit(x[:150], y[:150], epochs=2, validation_data=(x[150:], y[150:]), verbose=0)
    assert one.history == other.history


def test_initial_epoch_counts_on(small_model, images):
    assert small_model().fit(*images, epochs=4, initial_epoch=2, verbose=0).epoch == [2, 3]


def test_seeded_runs_repeat_bit_for_bit(small_model, images):
    def run(seed):
        model = small_model(seed=seed)
        history = model.fit(*images, epochs=2, batch_size=48, verbose=0)
        return history.history, model.state_dict()

    (first, weights), (second, same_weights), (other, _) = run(5), run(5), run(6)
    assert first == second != other
    assert all(torch.equal(value, same_weights[name]) for name, value in weights.items())


def test_shuffling_is_a_choice(small_model, images):
    x, y = images
    in_order = small_model().fit(x, y, shuffle=False, verbose=0).history
    assert in_order == small_model().fit(x, y, shuffle=False, verbose=0).history
    assert in_order != small_model().fit(x, y, verbose=0).history


def test_training_mode_is_put_back(small_model, images):
    model = small_model().eval()
    model.fit(*images, verbose=0)
    assert not model.training
    model.train()
    model.predict(images[0])
    assert model.training


def test_optimizer_state_lasts_from_fit_to_fit(small_model, images):
    x, y = images
    once = small_model()
    once.fit(x, y, epochs=2, shuffle=False, verbose=0)
    twice = small_model()
    for _ in range(2):
        twice.fit(x, y, shuffle=False, verbose=0)
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True))


def test_tensors_and_double_precision_arrays_are_taken(small_model, images):
    x, y = images
    arrays = small_model().fit(x, y, verbose=0).history
    assert small_model().fit(torch.from_numpy(x), torch.from_numpy(y), verbose=0).history == arrays
    assert small_model().fit(x.astype(np.float64), y.astype(np.int32)[:, None], verbose=0).history == arrays
    reversed_view = np.ascontiguousarray(x[::-1])[::-1]
    assert small_model().fit(reversed_view, y, verbose=0).history == arrays


def test_ready_optimizers_and_factories(images):
    x, y = images
    weights = []
    for choice in ("sgd", "object", "factory"):
        nnlib.set_seed(0)
        model = models.Sequential([layers.Flatten(input_shape=(28, 28, 1)), layers.Dense(10, "softmax")])
        options = {
            "sgd": "sgd",
            "object": torch.optim.SGD(model.parameters(), lr=0.01),
            "factory": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        }
        model.compile(optimizer=options[choice])
        model.fit(x, y, verbose=0)
        weights.append(model.state_dict()["dense.weight"])
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("loss", [SparseCategoricalCrossentropy(), CategoricalCrossentropy()])
def test_cross_entropies_agree_on_logits_and_probabilities(loss):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 3, 1])
    targets = labels if isinstance(loss, SparseCategoricalCrossentropy) else F.one_hot(labels, 4)
    expected = -logits.log_softmax(-1)[torch.arange(6), labels].mean()
    for output, from_logits in ((logits, True), (logits.softmax(-1), False)):
        prepared = loss.prepare(targets, tuple(output.shape))
        value = loss.compute(prepared, output, from_logits=from_logits)
        torch.testing.assert_close(value, expected)


def test_loss_of_a_softmax_model_comes_from_logits(images):
    """A probability that rounds to 0 in float32 still has its loss and its gradient."""
    model = models.Sequential([layers.Activation("softmax", input_shape=(2,))])
    model.compile(optimizer=lambda parameters: Adam()([torch.nn.Parameter(torch.zeros(1))]))
    loss, *_ = model.evaluate(np.array([[0.0, 500.0]], dtype=np.float32), np.array([0]), verbose=0)
    assert loss == 500.0


def test_mean_squared_error():
    value = MeanSquaredError()(torch.tensor([[0, 4]]), torch.tensor([[1.0, 2.0]]))
    assert value.item() == 2.5


def test_categorical_targets_give_the_same_run_as_labels(small_model, images):
    x, y = images
    labels = small_model().fit(x, y, verbose=0).history
    rows = small_model(loss="categorical_crossentropy").fit(x, np.eye(10, dtype=np.float32)[y], verbose=0).history
    assert rows["accuracy"] == labels["accuracy"]
    assert rows["loss"] == pytest.approx(labels["loss"], rel=1e-5)


def test_metric_functions_are_given_probabilities(small_model, images):
    def total(y_true, y_pred):
        return y_pred.sum(-1)

    model = small_model()
    model.compile(optimizer="adam", metrics=["accuracy", total])
    history = model.fit(*images, verbose=0).history
    assert history["total"] == [pytest.approx(1, rel=1e-5)]


def test_loss_functions_are_taken(small_model, images):
    def negative_log(y_true, y_pred):
        return -y_pred.gather(1, y_true.long()[:, None]).log()[:, 0]

    expected = small_model().fit(*images, verbose=0).history["loss"]
    by_function = small_model(loss=negative_log)
    assert by_function.fit(*images, verbose=0).history["loss"] == pytest.approx(expected, rel=1e-4)


def test_one_line_an_epoch_where_there_is_no_terminal(small_model, images, capsys):
    small_model().fit(*images, epochs=2, validation_data=images)
    output, errors = capsys.readouterr()
    lines = output.splitlines()
    assert [line.split(":")[0] for line in lines] == ["Epoch 1/2", "Epoch 2/2"]
    assert all(word in lines[0] for word in ("samples/s", "loss=", "accuracy=", "val_loss=", "val_accuracy="))
    assert errors == ""


def test_verbose_0_is_silent(small_model, images, capsys):
    model = small_model()
    model.fit(*images, verbose=0)
    model.evaluate(*images, verbose=0)
    model.predict(images[0], verbose=0)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(small_model, images, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(progress, "tqdm", functools.partial(progress.tqdm, mininterval=0))
    small_model().fit(*images)
    output, errors = capsys.readouterr()
    assert "Epoch 1/1:   0%" in errors and "| 32/200 [" in errors
    assert " samples/s, loss=" in errors and ", accuracy=" in errors
    assert len(output.splitlines()) == 1 and output.startswith("Epoch 1/1: ")
