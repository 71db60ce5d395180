"""Learning-rate schedules: Keras' rates, step by step and in training; files, resumed runs, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nnlib
from nnlib import callbacks, models, optimizers
from nnlib.optimizers import schedules
from tests.nnlib.fitted import classifier, draw, weights_of
from tests.nnlib.messages import message

keras = pytest.importorskip("keras")

CHOICES = [
    ("ExponentialDecay", (0.1, 3, 0.5)),
    ("ExponentialDecay", (0.1, 3, 0.5, True)),
    ("InverseTimeDecay", (0.1, 3, 0.5)),
    ("InverseTimeDecay", (0.1, 3, 0.5, True)),
    ("PiecewiseConstantDecay", ([2, 5], [0.1, 0.01, 0.2])),
    ("PolynomialDecay", (0.1, 7)),
    ("PolynomialDecay", (0.1, 5, 0.01, 2.0, True)),
    ("CosineDecay", (0.1, 9)),
    ("CosineDecay", (0.01, 5, 0.1, "rise", 0.2, 3)),
    ("CosineDecayRestarts", (0.1, 3)),
    ("CosineDecayRestarts", (0.1, 3, 1.5, 0.8, 0.05)),
    ("CosineDecayRestarts", (0.1, 2, 1.0, 0.9)),
]


@pytest.mark.parametrize(("name", "arguments"), CHOICES)
def test_rates_are_keras_own(name, arguments):
    ours, theirs = getattr(schedules, name)(*arguments), getattr(keras.optimizers.schedules, name)(*arguments)
    found, expected = [ours(step) for step in range(40)], [float(theirs(step)) for step in range(40)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-7 * max(expected))
    assert len(set(np.round(found, 6))) > 2
    again = type(ours)(**ours.get_config())
    assert [again(step) for step in range(40)] == found


def test_training_is_keras_own():
    x, y = draw(40)
    theirs = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, "softmax")])
    ours = nnlib.from_keras(theirs)
    for model, room in ((ours, optimizers), (theirs, keras.optimizers)):
        model.compile(
            room.SGD(room.schedules.CosineDecay(0.01, 8, 0.1, "rise", 0.1, 3)), "sparse_categorical_crossentropy"
        )
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=3e-6 * np.abs(other).max())


def scheduled():
    model = classifier()
    model.compile(
        optimizers.SGD(schedules.PiecewiseConstantDecay([2, 7], [0.1, 0.01, 0.5])), "sparse_categorical_crossentropy"
    )
    return model


def test_the_rate_of_each_step():
    model, seen = scheduled(), []
    note = callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(model.optimizer.learning_rate))
    model.fit(*draw(40), batch_size=8, epochs=2, callbacks=[note], verbose=0)
    assert seen == [0.1] * 3 + [0.01] * 5 + [0.5] * 2


def test_a_kept_model_goes_on_where_it_was(tmp_path):
    path, data = tmp_path / "model.safetensors", draw(40)
    whole = scheduled()
    whole.fit(*data, batch_size=8, epochs=2, shuffle=False, verbose=0)
    half = scheduled()
    half.fit(*data, batch_size=8, shuffle=False, verbose=0)
    half.save(path)
    rest = models.load_model(path)
    rest.fit(*data, batch_size=8, shuffle=False, verbose=0)
    assert torch.equal(weights_of(rest), weights_of(whole))
    assert rest.optimizer.param_groups[0]["iterations"] == 10


def test_with_accumulation_it_counts_steps():
    model = classifier()
    rate = schedules.PiecewiseConstantDecay([1], [0.1, 0.01])
    model.compile(optimizers.SGD(rate, gradient_accumulation_steps=2), "sparse_categorical_crossentropy")
    model.fit(*draw(40), batch_size=8, epochs=2, verbose=0)  # 10 batches
    assert model.optimizer.param_groups[0]["iterations"] == 5 and model.optimizer.learning_rate == 0.01


def test_a_schedule_of_ones_own():
    class Half(schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.5**step

    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = optimizers.SGD(Half())([parameter])
    for _ in range(3):
        parameter.grad = torch.ones(1)
        optimizer.step()
    assert parameter.item() == -1.75
    with message(NotImplementedError, r"LearningRateSchedule must define __call__\(step\)"):
        schedules.LearningRateSchedule()(0)


def test_who_sets_the_rate():
    model = scheduled()
    for other in (
        callbacks.LearningRateScheduler(lambda epoch: 0.1),
        callbacks.ReduceLROnPlateau("loss", patience=0, min_delta=9),
    ):
        with message(TypeError, "learning rate: a callback cannot set it, the optimizer has the schedule Piecewise"):
            model.fit(*draw(8), epochs=9, callbacks=[other], verbose=0)
    with message(TypeError, "learning_rate: it is that of PiecewiseConstantDecay, and cannot be set, got 0.1"):
        model.optimizer.learning_rate = 0.1


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: schedules.ExponentialDecay(-1, 3, 0.5),
            "initial_learning_rate: a number of at least 0 is expected, got",
        ),
        (lambda: schedules.ExponentialDecay(0.1, 0, 0.5), "decay_steps: a positive integer is expected, got 0"),
        (lambda: schedules.InverseTimeDecay(0.1, 3, "a"), "decay_rate: a number of at least 0 is expected, got 'a'"),
        (
            lambda: schedules.PiecewiseConstantDecay([1], [0.1]),
            r"values: one more than boundaries \(1\) is expected, got 1",
        ),
        (
            lambda: schedules.PiecewiseConstantDecay([2, 1], [0.1, 0.2, 0.3]),
            r"boundaries: increasing steps are expected, got \[2, 1\]",
        ),
        (lambda: schedules.CosineDecay(0.1, 3, warmup_target=1.0), "warmup_target: it goes with warmup_steps above 0"),
        (
            lambda: schedules.CosineDecayRestarts(0.1, 3, t_mul=0.5),
            "t_mul: a number of at least 1 is expected, got 0.5",
        ),
    ],
)
def test_arguments(make, text):
    with message(ValueError, text):
        make()


def test_a_rate_that_is_none():
    class Wrong(schedules.LearningRateSchedule):
        def __call__(self, step):
            return float("nan")

    with message(ValueError, "learning_rate: a number of at least 0 is expected of Wrong, got nan"):
        optimizers.Adam(Wrong())([torch.nn.Parameter(torch.zeros(1))])
