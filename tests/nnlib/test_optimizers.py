"""Optimizers: Keras' arithmetic, against Keras 3 itself and by hand; clipping and accumulation; any torch optimizer."""

from __future__ import annotations

import copy
import os
import re

import numpy as np
import pytest
import torch

import nnlib
from nnlib import layers, models, optimizers
from nnlib.training.gradients import GradientRules
from nnlib.training.reductions import l2_norm, last_axis_mean, mean, total

STEPS = 6

RECIPES = [
    optimizers.SGD(),
    optimizers.SGD(0.1, momentum=0.9),
    optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    optimizers.RMSprop(),
    optimizers.RMSprop(0.01, rho=0.8, momentum=0.5, centered=True),
    optimizers.Adam(),
    optimizers.Adam(0.01, beta_1=0.8, beta_2=0.95, amsgrad=True, weight_decay=0.1),
    optimizers.AdamW(),
    optimizers.Adamax(),
    optimizers.Nadam(),
    optimizers.Adagrad(),
    optimizers.Adadelta(0.5),
    optimizers.Lion(),
]


def gradients_near_epsilon(shape=(4, 3)):
    """As small as epsilon and falling, where its place and amsgrad's maximum show."""
    generator = np.random.default_rng(0)
    return [10.0 ** -(3 + step) * generator.standard_normal(shape) for step in range(STEPS)]


def run(optimizer, parameter, gradients, rates):
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    return parameter.detach().numpy()


def label(recipe):
    return type(recipe).__name__ + "".join(f"-{name}" for name in ("momentum", "amsgrad") if getattr(recipe, name, 0))


@pytest.mark.parametrize("recipe", RECIPES, ids=label)
def test_steps_are_keras_own(recipe):
    """Six steps from the same start with the same gradients, the learning rate halved on the way."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="Keras is not installed: pip install nnlib-kernels[keras]")
    start = np.random.default_rng(1).standard_normal((4, 3))
    gradients = gradients_near_epsilon()
    rates = [recipe.learning_rate] * 3 + [recipe.learning_rate / 2] * 3
    ours = run(recipe([parameter := torch.nn.Parameter(torch.tensor(start))]), parameter, gradients, rates)

    theirs = getattr(keras.optimizers, type(recipe).__name__)(**recipe.get_config())
    variable = keras.Variable(start, dtype="float64")
    for gradient, rate in zip(gradients, rates, strict=True):
        theirs.learning_rate = rate
        theirs.apply([torch.from_numpy(gradient)], [variable])
    # Keras holds rates and shares in float32.
    moved = keras.ops.convert_to_numpy(variable) - start
    np.testing.assert_allclose(ours - start, moved, rtol=2e-4, atol=1e-12)
    assert np.abs(moved).min() > 0


def test_adam_by_hand():
    """To float64's own precision, which Keras' float32 rates cannot show."""
    p = np.random.default_rng(1).standard_normal((4, 3))
    gradients = gradients_near_epsilon()
    parameter = torch.nn.Parameter(torch.tensor(p))
    ours = run(optimizers.Adam()([parameter]), parameter, gradients, [0.001] * STEPS)
    m = v = np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        m, v = m + (g - m) * (1 - 0.9), v + (g * g - v) * (1 - 0.999)
        p = p - 0.001 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-7)
    np.testing.assert_allclose(ours, p, rtol=1e-13)


@pytest.mark.parametrize("name", ["Adam", "RMSprop"])
def test_torchs_own_goes_elsewhere(name):
    """What the recipes are there for: torch's placement of epsilon gives other steps."""
    start = np.random.default_rng(1).standard_normal((4, 3))
    results = []
    for make in (getattr(optimizers, name)(), getattr(torch.optim, name)):
        parameter = torch.nn.Parameter(torch.tensor(start))
        results.append(run(make([parameter]), parameter, gradients_near_epsilon(), [0.001] * STEPS))
    assert not np.allclose(*results, rtol=1e-6)


@pytest.mark.parametrize("recipe", RECIPES, ids=label)
def test_state_goes_through_state_dict(recipe):
    """Half of the steps, the state into another optimizer, the other half: the same bits as without."""
    start, gradients = np.random.default_rng(1).standard_normal((4, 3)), gradients_near_epsilon()
    whole = torch.nn.Parameter(torch.tensor(start))
    rates = [recipe.learning_rate] * STEPS
    expected = run(recipe([whole]), whole, gradients, rates)
    first, second = torch.nn.Parameter(torch.tensor(start)), torch.nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
    before, after = recipe([first]), recipe([second])
    run(before, first, gradients[:3], rates[:3])
    second.data.copy_(first.data)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    assert np.array_equal(run(after, second, gradients[3:], rates[3:]), expected)


def test_parameters_without_a_gradient_stay():
    moved, still = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = optimizers.AdamW(weight_decay=0.5)([moved, still])
    moved.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(still, torch.ones(2)) and not torch.equal(moved, torch.ones(2))


def test_learning_rate_is_read_and_set():
    optimizer = optimizers.Adam(0.25)([torch.nn.Parameter(torch.ones(2))])
    assert optimizer.learning_rate == 0.25
    optimizer.learning_rate = 0.5
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: optimizers.Adam(-1.0), ValueError, "learning_rate: a number of at least 0 is expected, got -1.0"),
        (
            lambda: optimizers.SGD(lambda step: 0.1),
            TypeError,
            "learning_rate: a number or a schedule is expected, got <function",
        ),
        (lambda: optimizers.Adam(beta_1=1.0), ValueError, "beta_1: a number in [0, 1) is expected, got 1.0"),
        (lambda: optimizers.SGD(momentum=-0.1), ValueError, "momentum: a number in [0, 1) is expected, got -0.1"),
        (lambda: optimizers.SGD(clipnorm=0), ValueError, "clipnorm: a number above 0 is expected, got 0"),
        (
            lambda: optimizers.SGD(clipnorm=1, clipvalue=1),
            ValueError,
            "clipnorm, clipvalue, global_clipnorm: at most one is expected, got clipnorm, clipvalue",
        ),
        (
            lambda: optimizers.SGD(gradient_accumulation_steps=1),
            ValueError,
            "gradient_accumulation_steps: an integer of at least 2 is expected, got 1",
        ),
        (
            lambda: models.Sequential().compile(optimizers.SGD(clipnorm=1.0), clipnorm=2.0),
            ValueError,
            "clipnorm: compile and the optimizer both name one, got 2.0 and 1.0",
        ),
        (lambda: models.Sequential().compile(3), TypeError, "optimizer: a name, an object of nnlib.optimizers, "),
    ],
)
def test_arguments(make, kind, message):
    with pytest.raises(kind, match="^" + re.escape(message)):
        make()


# ----- clipping and accumulation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [{"clipnorm": 0.5}, {"clipvalue": 0.3}, {"global_clipnorm": 0.5}, {"clipnorm": 1e6}])
def test_clipping_is_keras_own(rule):
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="Keras is not installed: pip install nnlib-kernels[keras]")
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator) for shape in ((5, 3), (3,), (70, 41))]
    expected = keras.optimizers.SGD(**rule)._clip_gradients([gradient.clone() for gradient in gradients])
    GradientRules(**rule).clip(gradients)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=0)


def test_a_zero_gradient_is_clipped_to_zero():
    for rule in ({"clipnorm": 1.0}, {"global_clipnorm": 1.0}):
        gradients = [torch.zeros(3)]
        GradientRules(**rule).clip(gradients)
        assert torch.equal(gradients[0], torch.zeros(3))


def line(**options):
    nnlib.set_seed(0)
    model = models.Sequential([layers.Dense(3, input_shape=(5,))])
    model.compile(loss="mse", **options)
    return model


def noise(count, seed=0):
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, 5)), generator.standard_normal((count, 3))


@pytest.mark.parametrize("by", ["compile", "optimizer"])
def test_accumulation_steps_with_the_mean_of_batches(by):
    """Four batches of 8 with accumulation over 2 are two steps with batches of 16."""
    x, y = noise(32)
    if by == "compile":
        accumulated = line(optimizer="adam", gradient_accumulation_steps=2).double()
    else:
        accumulated = line(optimizer=optimizers.Adam(gradient_accumulation_steps=2)).double()
    large = line(optimizer="adam").double()
    accumulated.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    large.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    for ours, expected in zip(accumulated.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)


def test_accumulation_goes_on_in_the_next_epoch():
    """Three batches an epoch, steps after the 2nd, 4th and 6th."""
    x, y = noise(24)
    model = line(optimizer=optimizers.SGD(0.1, gradient_accumulation_steps=2))
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert model.optimizer.state[model.layers[0].weight]["step"] == 3


def test_clipping_reaches_the_weights():
    x, y = noise(16)
    model = line(optimizer=torch.optim.SGD, global_clipnorm=1e-3)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model.compile(lambda parameters: torch.optim.SGD(parameters, lr=1.0), loss="mse", global_clipnorm=1e-3)
    model.train_on_batch(x, 100 * y)
    moved = torch.cat([(a - b).reshape(-1) for a, b in zip(model.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


# ----- torch's optimizers --------------------------------------------------------------------------------------------

TORCH = ["ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"]


@pytest.mark.parametrize("name", TORCH)
def test_any_torch_optimizer(name):
    """fit takes the steps of a loop in plain torch."""
    x, y = noise(32)
    kind = getattr(torch.optim, name)
    model = line(optimizer=lambda parameters: kind(parameters, lr=0.01))
    twin = torch.nn.Linear(5, 3)
    twin.load_state_dict(model.layers[0].state_dict())
    optimizer = kind(twin.parameters(), lr=0.01)
    model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0)
    inputs, targets = torch.from_numpy(x).float(), torch.from_numpy(y).float()
    for _ in range(3):
        for rows in range(0, 32, 8):
            optimizer.zero_grad()
            (twin(inputs[rows : rows + 8]) - targets[rows : rows + 8]).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(model.layers[0].weight, twin.weight, rtol=1e-4, atol=1e-5)


def test_an_optimizer_that_needs_a_closure_is_refused():
    model = line(optimizer=torch.optim.LBFGS)
    with pytest.raises(TypeError, match="^optimizer: one that takes a step from the gradients alone is exp"):
        model.fit(*noise(8), verbose=0)


def test_a_model_without_parameters_is_refused():
    model = models.Sequential([layers.Flatten(input_shape=(5,))])
    model.compile(loss="mse")
    with pytest.raises(ValueError, match="^optimizer: the model has no parameters to train$"):
        model.fit(noise(8)[0], noise(8)[0], verbose=0)


# ----- sums with the same bits at any number of threads --------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 1000, 1025, 100_000, 3_000_001])
def test_reductions_have_the_same_bits_at_any_number_of_threads(size):
    values = torch.randn(size, generator=torch.Generator().manual_seed(size))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            results.append((total(values), l2_norm(values), mean(values), last_axis_mean(values[None])[0]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
    exact = values.double()
    assert results[0][0].item() == pytest.approx(exact.sum().item(), abs=1e-6 * exact.abs().sum().item())
    assert results[0][1].item() == pytest.approx(exact.norm().item(), rel=1e-6)


def test_reductions_have_gradients():
    values = torch.randn(5000, dtype=torch.float64, requires_grad=True)
    assert torch.equal(torch.autograd.grad(total(values), values)[0], torch.ones(5000, dtype=torch.float64))
    torch.testing.assert_close(torch.autograd.grad(mean(values), values)[0], torch.full((5000,), 1 / 5000).double())
