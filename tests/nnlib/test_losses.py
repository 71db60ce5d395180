"""Losses and metrics against Keras 3: values, weights, reductions, gradients; and what is refused."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import torch

from nnlib import layers, losses, metrics, models
from nnlib.metrics import get_metric


@pytest.fixture(scope="module")
def keras():
    os.environ.setdefault("KERAS_BACKEND", "torch")
    return pytest.importorskip("keras", reason="Keras is not installed: pip install nnlib-kernels[keras]")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def softmax(values):
    powers = np.exp(values)
    return powers / powers.sum(-1, keepdims=True)


LOGITS = draw(7, 5)
PROBABILITIES = softmax(LOGITS)
LABELS = np.array([0, 4, 2, 2, 1, 3, 0])
ROWS = softmax(draw(7, 5, seed=1))
YES = (draw(7, 5, seed=2) > 0).astype(np.float64)

# Name, arguments, targets, outputs.
LOSSES = [
    ("SparseCategoricalCrossentropy", {}, LABELS, PROBABILITIES),
    ("SparseCategoricalCrossentropy", {"from_logits": True}, LABELS, LOGITS),
    ("SparseCategoricalCrossentropy", {}, LABELS[:6].reshape(2, 3), PROBABILITIES[:6].reshape(2, 3, 5)),
    ("SparseCategoricalCrossentropy", {"ignore_class": 2}, LABELS, PROBABILITIES),
    ("SparseCategoricalCrossentropy", {"ignore_class": 2, "from_logits": True}, LABELS, LOGITS),
    ("CategoricalCrossentropy", {}, ROWS, PROBABILITIES),
    ("CategoricalCrossentropy", {"from_logits": True, "label_smoothing": 0.2}, ROWS, LOGITS),
    ("CategoricalCrossentropy", {"label_smoothing": 0.2}, np.eye(5)[LABELS], 3 * PROBABILITIES),
    ("BinaryCrossentropy", {}, YES, PROBABILITIES),
    ("BinaryCrossentropy", {"from_logits": True, "label_smoothing": 0.1}, YES, LOGITS),
    ("MeanSquaredError", {}, ROWS, LOGITS),
    ("MeanAbsoluteError", {}, ROWS, LOGITS),
    ("MeanAbsolutePercentageError", {}, ROWS, LOGITS),
    ("Huber", {}, 3 * YES, LOGITS),
    ("Huber", {"delta": 0.4}, 3 * YES, LOGITS),
    ("LogCosh", {}, 30 * YES, LOGITS),
    ("Poisson", {}, YES, PROBABILITIES),
    ("KLDivergence", {}, ROWS, PROBABILITIES),
    ("MeanSquaredLogarithmicError", {}, 3 * ROWS, 1 + 9 * PROBABILITIES),
    ("CosineSimilarity", {}, ROWS, LOGITS),
    ("Hinge", {}, 2 * YES - 1, LOGITS),
    ("SquaredHinge", {}, YES, LOGITS),
    ("CategoricalHinge", {}, np.eye(5)[LABELS], LOGITS),
    ("BinaryFocalCrossentropy", {}, YES, PROBABILITIES),
    (
        "BinaryFocalCrossentropy",
        {"apply_class_balancing": True, "alpha": 0.4, "gamma": 1.5, "from_logits": True, "label_smoothing": 0.1},
        YES,
        LOGITS,
    ),
    ("CategoricalFocalCrossentropy", {}, ROWS, PROBABILITIES),
    (
        "CategoricalFocalCrossentropy",
        {"alpha": 0.4, "gamma": 1.5, "from_logits": True, "label_smoothing": 0.1},
        ROWS,
        LOGITS,
    ),
]
IDS = [f"{name}{'-'.join(('', *options))}-{np.ndim(targets)}d" for name, options, targets, _ in LOSSES]


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight", None])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("name", "options", "targets", "outputs"), LOSSES, ids=IDS)
def test_losses_are_keras_own(name, options, targets, outputs, weighted, reduction, keras):
    if weighted and "ignore_class" in options and reduction != "sum":
        pytest.skip("Keras scales the weights of ignored samples, we leave them out of the count")
    weights = np.linspace(0.5, 2, len(targets)) if weighted else None
    output = torch.tensor(outputs, requires_grad=True)
    ours = getattr(losses, name)(reduction=reduction, **options)(targets, output, weights)
    kept = torch.tensor(outputs, requires_grad=True)
    if weights is not None:  # Keras wants one for each of the losses
        weights = np.broadcast_to(weights.reshape(-1, *(1,) * (outputs.ndim - 2)), outputs.shape[:-1]).copy()
    theirs = getattr(keras.losses, name)(reduction=reduction, dtype="float64", **options)(targets, kept, weights)
    # Some of Keras' reductions divide in float32.
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-6, atol=1e-9)
    ours.sum().backward()
    theirs.sum().backward()
    torch.testing.assert_close(output.grad, kept.grad, rtol=1e-5, atol=1e-9)


def test_targets_without_their_last_axis():
    """(N,) beside an output (N, 1), as Keras takes them."""
    output = torch.tensor([[0.25], [0.5]])
    assert losses.MeanSquaredError()(torch.tensor([0.0, 1.0]), output).item() == pytest.approx((0.0625 + 0.25) / 2)
    assert losses.BinaryCrossentropy()(torch.tensor([0, 1]), output).item() == pytest.approx(
        -(np.log(0.75) + np.log(0.5)) / 2
    )


def test_cosine_similarity_along_an_axis(keras):
    ours, theirs = (room.CosineSimilarity(axis=1, reduction=None) for room in (losses, keras.losses))
    found, expected = ours(ROWS[None], LOGITS[None]), theirs(ROWS[None], LOGITS[None])
    assert found.shape == (1, 5)
    torch.testing.assert_close(found.float(), expected, rtol=1e-6, atol=1e-7)


def test_log_cosh_of_large_errors_is_finite():
    value = losses.LogCosh()(torch.zeros(1, 1), torch.full((1, 1), -1e4))
    assert value.item() == pytest.approx(1e4 - np.log(2))


@pytest.mark.parametrize(
    ("loss", "targets", "shape", "message"),
    [
        (losses.BinaryCrossentropy(), [[0.0], [2.0]], (2, 1), "y: binary_crossentropy expects targets from 0 to 1, g"),
        (losses.MeanSquaredError(), [[0.0, 1.0]], (1, 3), "y: mean_squared_error expects the shape of the output, ('N"),
        (
            losses.SparseCategoricalCrossentropy(ignore_class=-1),
            [[0, -1, 7]],
            (1, 3, 5),
            "y: labels must be from 0 to 4 for an output of 5 classes, got 7 in row 0",
        ),
        (
            losses.SparseCategoricalCrossentropy(),
            [[0, 1]],
            (1, 3, 5),
            "y: sparse_categorical_crossentropy expects labels of shape (N, 3), got (1, 2)",
        ),
        (
            losses.SparseCategoricalCrossentropy(),
            [True],
            (1, 3),
            "y: sparse_categorical_crossentropy expects whole numbers as labels, got torch.bool",
        ),
    ],
)
def test_targets_that_do_not_fit(loss, targets, shape, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        loss(torch.tensor(targets), torch.full(shape, 0.5))


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: losses.Huber(delta=0), ValueError, "delta: a number above 0 is expected, got 0"),
        (
            lambda: losses.CategoricalCrossentropy(label_smoothing=2),
            ValueError,
            "label_smoothing: a number from 0 to 1 is expected, got 2",
        ),
        (
            lambda: losses.MeanSquaredError(reduction="average"),
            ValueError,
            "reduction: known names are sum_over_batch_size, mean, sum, mean_with_sample_weight, none; got 'average'",
        ),
        (
            lambda: models.Sequential().compile(loss=losses.MeanSquaredError(reduction=None)),
            ValueError,
            "loss: one number a batch is expected, got mean_squared_error with reduction None",
        ),
        (lambda: models.Sequential().compile(loss=3), TypeError, "loss: a name, an object of nnlib.losses or a f"),
        (lambda: models.Sequential().compile(metrics="accuracy"), TypeError, "metrics: a list is expected, got 'acc"),
        (lambda: models.Sequential().compile(metrics=[3]), TypeError, "metrics: names, objects of nnlib.metrics or "),
        (
            lambda: models.Sequential().compile(metrics=["mse", losses.MeanSquaredError(name="mse")]),
            ValueError,
            "metrics: different names are expected, got 'mse' twice; give one of them name=",
        ),
        (lambda: metrics.Precision(thresholds=[0.1]), TypeError, "thresholds: one number is expected, got [0.1]"),
        (lambda: metrics.TopKCategoricalAccuracy(k=0), ValueError, "k: a positive integer is expected, got 0"),
        (lambda: metrics.Precision(top_k=0), ValueError, "top_k: a positive integer is expected, got 0"),
        (lambda: metrics.F1Score(), ValueError, "average: one of micro, macro, weighted is expected, a metric is one"),
        (lambda: metrics.FBetaScore("macro", beta=0), ValueError, "beta: a number above 0 is expected, got 0"),
        (lambda: metrics.AUC(1), ValueError, "num_thresholds: an integer of at least 2 is expected, got 1"),
        (lambda: metrics.AUC(curve="PRGAIN"), ValueError, "curve: known names are roc, pr; got 'PRGAIN'"),
        (lambda: metrics.AUC(thresholds=[2.0]), ValueError, "thresholds: numbers from 0 to 1 are expected, got [2.0]"),
        (lambda: metrics.AUC(num_labels=3), ValueError, "num_labels: it goes with multi_label=True, got 3"),
        (
            lambda: metrics.AUC(label_weights=[1.0, 2.0])(YES, PROBABILITIES),
            ValueError,
            "auc: label_weights must be of the output's last axis, 5, got 2",
        ),
        (
            lambda: metrics.Recall(top_k=6)(YES, PROBABILITIES),
            ValueError,
            "recall: top_k must be at most the outputs, 5, got 6",
        ),
        (lambda: losses.CosineSimilarity(axis=None), TypeError, "axis: an integer is expected, got None"),
        (lambda: losses.BinaryFocalCrossentropy(alpha=2), ValueError, "alpha: a number in [0, 1] is expected, got 2"),
        (lambda: losses.CategoricalFocalCrossentropy(gamma=-1), ValueError, "gamma: a number of at least 0 is expect"),
    ],
)
def test_arguments(make, kind, message):
    with pytest.raises(kind, match="^" + re.escape(message)):
        make()


def test_from_logits_on_a_softmax_is_refused():
    model = models.Sequential([layers.Dense(3, "softmax", input_shape=(2,))])
    model.compile(loss=losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="^loss: from_logits=True needs a model without a softmax at its end, got seq"):
        model.fit(draw(4, 2), np.zeros(4, int), verbose=0)


def test_from_logits_is_the_loss_of_the_softmax_model():
    def made(activation, from_logits):
        torch.manual_seed(0)
        model = models.Sequential([layers.Dense(3, activation, input_shape=(2,))])
        model.compile(loss=losses.SparseCategoricalCrossentropy(from_logits=from_logits), metrics=["accuracy"])
        return model.fit(draw(40, 2), np.arange(40) % 3, epochs=2, shuffle=False, verbose=0).history

    assert made(None, True) == made("softmax", False)


def test_a_torch_module_is_called_as_torch_does():
    """nn.CrossEntropyLoss takes (output, target), Keras' functions (y_true, y_pred)."""
    history = []
    for loss in (torch.nn.CrossEntropyLoss(), losses.SparseCategoricalCrossentropy(from_logits=True)):
        torch.manual_seed(0)
        model = models.Sequential([layers.Dense(3, input_shape=(2,))])
        model.compile(loss=loss)
        history.append(model.fit(draw(40, 2), np.arange(40) % 3, shuffle=False, verbose=0).history["loss"])
    assert history[0] == pytest.approx(history[1], rel=1e-6)


# ----- metrics -------------------------------------------------------------------------------------------------------

METRICS = [
    ("BinaryAccuracy", {}, YES, PROBABILITIES),
    ("BinaryAccuracy", {"threshold": 0.2}, YES, PROBABILITIES),
    ("CategoricalAccuracy", {}, ROWS, PROBABILITIES),
    ("SparseCategoricalAccuracy", {}, LABELS, PROBABILITIES),
    ("TopKCategoricalAccuracy", {"k": 2}, ROWS, PROBABILITIES),
    ("SparseTopKCategoricalAccuracy", {"k": 2}, LABELS, PROBABILITIES),
    ("RootMeanSquaredError", {}, ROWS, LOGITS),
    ("Precision", {"thresholds": 0.2}, YES, PROBABILITIES),
    ("Recall", {"thresholds": 0.2}, YES, PROBABILITIES),
    ("Precision", {"class_id": 1, "thresholds": 0.2}, np.eye(5)[LABELS], PROBABILITIES),
    ("Recall", {"class_id": 2, "thresholds": 0.1}, np.eye(5)[LABELS], PROBABILITIES),
    ("Precision", {"top_k": 2}, np.eye(5)[LABELS], PROBABILITIES),
    ("Recall", {"top_k": 3, "thresholds": 0.2}, np.eye(5)[LABELS], PROBABILITIES),
    ("TruePositives", {"thresholds": 0.2}, YES, PROBABILITIES),
    ("TrueNegatives", {}, YES, PROBABILITIES),
    ("FalsePositives", {"thresholds": 0.1}, YES, PROBABILITIES),
    ("FalseNegatives", {}, YES, PROBABILITIES),
    *(
        ("F1Score", {"average": average}, np.eye(5)[LABELS], PROBABILITIES)
        for average in ("micro", "macro", "weighted")
    ),
    ("FBetaScore", {"average": "macro", "beta": 2.0, "threshold": 0.2}, YES, PROBABILITIES),
    ("AUC", {}, YES, PROBABILITIES),
    ("AUC", {"curve": "PR"}, YES, PROBABILITIES),
    ("AUC", {"curve": "PR", "summation_method": "majoring", "num_thresholds": 11}, YES, PROBABILITIES),
    ("AUC", {"summation_method": "minoring", "thresholds": [0.1, 0.25, 0.7]}, YES, PROBABILITIES),
    ("AUC", {"from_logits": True}, YES, LOGITS),
    ("AUC", {"multi_label": True, "label_weights": [1.0, 2.0, 3.0, 4.0, 5.0]}, YES, PROBABILITIES),
    ("AUC", {"multi_label": True, "num_labels": 5, "curve": "PR"}, YES, PROBABILITIES),
    *((name, {}, 3 * YES, LOGITS) for name in ("MeanSquaredError", "MeanAbsoluteError", "LogCoshError")),
    ("MeanAbsolutePercentageError", {}, ROWS, LOGITS),
    ("MeanSquaredLogarithmicError", {}, ROWS, LOGITS),
    ("CosineSimilarity", {}, ROWS, PROBABILITIES),
    ("Poisson", {}, ROWS, PROBABILITIES),
    ("KLDivergence", {}, ROWS, PROBABILITIES),
    *((name, {}, np.eye(5)[LABELS], LOGITS) for name in ("Hinge", "SquaredHinge", "CategoricalHinge")),
    ("BinaryCrossentropy", {"from_logits": True}, YES, LOGITS),
    ("CategoricalCrossentropy", {"label_smoothing": 0.1}, ROWS, PROBABILITIES),
    ("SparseCategoricalCrossentropy", {}, LABELS, PROBABILITIES),
]
SHARES = ("Accuracy", "Precision", "Recall", "AUC", "Score")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("name", "options", "targets", "outputs"), METRICS)
def test_metrics_are_keras_own(name, options, targets, outputs, weighted, keras):
    """Over two batches of different sizes."""
    ours, theirs = getattr(metrics, name)(**options), getattr(keras.metrics, name)(**options)
    weights = np.linspace(0.5, 2, len(targets))
    assert np.isnan(ours.result())
    for rows in (slice(0, 4), slice(4, 7)):
        weight = weights[rows] if weighted else None
        theirs.update_state(targets[rows], outputs[rows], weight)
        ours.update_state(
            torch.tensor(targets[rows]),
            torch.tensor(outputs[rows]),
            None if weight is None else torch.tensor(weight),
        )
    assert ours.result() == pytest.approx(float(theirs.result()), rel=1e-6)
    assert 0 < ours.result() and (not name.endswith(SHARES) or ours.result() < 1)
    assert theirs.name.startswith(ours.name)  # Keras counts its objects: precision_1
    ours.reset_state()
    assert np.isnan(ours.result())


def test_accuracy_follows_the_shapes():
    for truth, output, expected in (
        (torch.tensor([1, 0, 1]), torch.tensor([[0.9], [0.8], [0.1]]), 1 / 3),
        (torch.tensor([1, 0]), torch.tensor([[0.1, 0.9], [0.2, 0.8]]), 1 / 2),
        (torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([[0.1, 0.9], [0.2, 0.8]]), 1.0),
        (torch.tensor([[1, 0, 1]]), torch.tensor([[[0.1, 0.9], [0.2, 0.8], [0.1, 0.9]]]), 2 / 3),
    ):
        metric = get_metric("accuracy")
        metric.update_state(truth, output)
        assert metric.result() == pytest.approx(expected)


def test_precision_of_class_numbers():
    metric = metrics.Precision(class_id=1)
    metric.update_state(torch.tensor([1, 0, 2]), torch.tensor([[0.1, 0.8, 0.1], [0.3, 0.6, 0.1], [0.1, 0.1, 0.8]]))
    assert metric.result() == 0.5


def test_metrics_are_kept_in_a_file(tmp_path):
    chosen = [metrics.AUC(curve="PR", name="pr"), metrics.F1Score("macro"), "cosine_similarity", "mse", "msle", "hinge"]
    model = models.Sequential([layers.Dense(5, "sigmoid", input_shape=(3,))])
    model.compile(
        "sgd", losses.BinaryFocalCrossentropy(gamma=3.0), chosen, weighted_metrics=[metrics.MeanSquaredError()]
    )
    values = model.fit(draw(7, 3), YES, verbose=0).history
    assert list(values)[1:] == ["pr", "f1_score", "cosine_similarity", "mse", "msle", "hinge", "mean_squared_error"]
    model.save(tmp_path / "model.safetensors")
    kept = models.load_model(tmp_path / "model.safetensors")
    assert kept.evaluate(draw(7, 3), YES, verbose=0) == model.evaluate(draw(7, 3), YES, verbose=0)
    assert [type(metric) for metric in kept.setup.metrics] == [type(metric) for metric in model.setup.metrics]


def test_an_auc_of_batches_is_that_of_all():
    one, several = metrics.AUC(), metrics.AUC()
    one.update_state(YES, PROBABILITIES)
    for row in range(7):
        several.update_state(YES[row : row + 1], PROBABILITIES[row : row + 1])
    assert several.result() == one.result()
    right = metrics.AUC()
    assert right([0, 0, 1, 1], [0.1, 0.4, 0.6, 0.9]) == 1.0


def test_losses_are_metrics_too():
    model = models.Sequential([layers.Dense(2, input_shape=(3,))])
    model.compile(loss="mse", metrics=["mae", "mse", "root_mean_squared_error"])
    loss, mae, mse, rmse = model.evaluate(draw(10, 3), draw(10, 2, seed=3), batch_size=4, verbose=0)
    error = model.predict(draw(10, 3)) - draw(10, 2, seed=3)
    assert mae == pytest.approx(np.abs(error).mean(), rel=1e-6)
    assert loss == pytest.approx(mse, rel=1e-6) and rmse == pytest.approx(mse**0.5, rel=1e-6)
    assert model.metric_directions == {"loss": "min", "mae": "min", "mse": "min", "root_mean_squared_error": "min"}
