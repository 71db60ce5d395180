"""SimpleRNN, LSTM, GRU and Bidirectional against Keras with the same weights, padded rows, states, dropout."""

from __future__ import annotations

import itertools

import pytest
import torch

import kernels
import nnlib
from nnlib import layers, models, ops
from nnlib.convert.keras_weights import keras_weights
from tests.nnlib.keras_twin import assert_close, assert_like_keras, randomize
from tests.nnlib.messages import message

keras = pytest.importorskip("keras")

double_precision = pytest.mark.usefixtures("double_precision")

LAYERS = ["SimpleRNN", "LSTM", "GRU"]
LENGTHS = torch.tensor([5, 2, 0, 4])


def pair(name, units=5, **options):
    return getattr(layers, name)(units, **options), getattr(keras.layers, name)(units, **options)


def mask():
    return torch.arange(5) < LENGTHS[:, None]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("go_backwards", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_against_keras(name, return_sequences, go_backwards, padded, random_image):
    ours, theirs = pair(name, return_sequences=return_sequences, go_backwards=go_backwards, return_state=True)
    x = random_image(4, 5, 3)
    given = {"lengths": LENGTHS} if padded else {}
    assert_like_keras(ours, theirs, [x], given, {"mask": mask()} if padded else {})
    assert tuple(ours(x.float())[0].shape) == ours.compute_output_shape(tuple(x.shape))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SimpleRNN", {"activation": "relu"}),
        ("SimpleRNN", {"use_bias": False}),
        ("LSTM", {"use_bias": False}),
        ("GRU", {"use_bias": False}),
        ("GRU", {"reset_after": False}),
        ("GRU", {"reset_after": False, "use_bias": False}),
    ],
)
def test_options_against_keras(name, options, random_image):
    assert_like_keras(*pair(name, return_sequences=True, **options), [random_image(4, 5, 3)])


@pytest.mark.parametrize("name", LAYERS)
def test_initial_states_against_keras(name, random_image):
    count = 2 if name == "LSTM" else 1
    states = [random_image(4, 5, seed=number + 1) for number in range(count)]
    ours, theirs = pair(name, return_sequences=True)
    assert_like_keras(ours, theirs, [random_image(4, 7, 3), states])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("merge_mode", ["concat", "sum", "mul", "ave", None])
@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_bidirectional_against_keras(name, merge_mode, return_sequences, padded, random_image):
    ours, theirs = pair(name, return_sequences=return_sequences, return_state=True)
    ours, theirs = layers.Bidirectional(ours, merge_mode), keras.layers.Bidirectional(theirs, merge_mode=merge_mode)
    given = {"lengths": LENGTHS} if padded else {}
    assert_like_keras(ours, theirs, [random_image(4, 5, 3)], given, {"mask": mask()} if padded else {})


@double_precision
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("return_sequences", [False, True])
def test_both_ways_by_one_kernel_or_by_two(name, return_sequences, random_image):
    """What dropout in training needs two runs for is the same as the kernel for both."""
    x = random_image(4, 5, 3)
    layer = layers.Bidirectional(getattr(layers, name)(5, return_sequences=return_sequences))
    layer(x)
    randomize(layer)
    for lengths in (None, LENGTHS):
        with ops.recording() as uses:
            one = layer(x, lengths=lengths)
        assert len(uses) == 1
        layer.forward_layer.dropout = 1e-300
        with ops.recording() as uses:
            two = layer(x, lengths=lengths)
        assert [use.op for use in uses].count(layer.forward_layer.op) == 2
        layer.forward_layer.dropout = 0.0
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("name", LAYERS)
def test_stateful_against_keras(name, random_image):
    ours = getattr(layers, name)(5, stateful=True)
    keras_input = keras.Input(batch_shape=(4, 6, 3))
    theirs = getattr(keras.layers, name)(5, stateful=True)
    theirs(keras_input)
    x, y = random_image(4, 6, 3), random_image(4, 6, 3, seed=1)
    ours.build_once((None, None, 3))
    randomize(ours)
    theirs.set_weights(keras_weights(ours))  # forward alone: Keras' own backward pass fails for a stateful layer
    for batch in (x, y, x):
        assert_close(ours(batch.float()).detach().numpy(), theirs(batch.float()).detach().numpy())
    ours.double()
    whole = getattr(layers, name)(5)
    whole.build_once((None, None, 3))
    whole.double().load_state_dict(ours.state_dict())
    ours.reset_states()
    ours(x)
    second = ours(y)
    torch.testing.assert_close(second, whole(torch.cat([x, y], 1)))
    second.sum().backward()  # x's graph is not part of it
    with pytest.raises(ValueError, match=r"a stateful layer needs the batch size of the call before \(4\), got 2"):
        ours(x[:2])


@double_precision
@pytest.mark.parametrize("name", LAYERS)
def test_padding_is_never_read(name, random_image):
    x = random_image(4, 5, 3)
    layer = getattr(layers, name)(5, return_sequences=True)
    clean = layer(x, mask=mask())
    spoilt = x.detach().masked_fill(~mask()[:, :, None], float("nan")).requires_grad_()
    found = layer(spoilt, mask=mask())
    assert torch.equal(found, clean)
    (gradient,) = torch.autograd.grad(found.sum(), spoilt)
    assert torch.isfinite(gradient).all() and (gradient[~mask()] == 0).all()
    layer.zero_output_for_mask = True
    zeros = layer(spoilt, mask=mask())
    assert (zeros[~mask()] == 0).all() and torch.equal(zeros[mask()], clean[mask()])


def keras_step(name, x, state, drop, w, reset_after):
    """One step with dropout on h in the products alone, written out."""
    h = state[0]
    if name == "SimpleRNN":
        return (torch.tanh(x @ w["weight_ih"].T + w["bias_ih"] + (h * drop) @ w["weight_hh"].T),)
    a = x @ w["weight_ih"].T + w["bias_ih"]
    if name == "LSTM":
        i, f, g, o = (a + (h * drop) @ w["weight_hh"].T).chunk(4, -1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    a_r, a_z, a_n = a.chunk(3, -1)
    w_r, w_z, w_n = w["weight_hh"].chunk(3)
    b_r, b_z, b_n = w["bias_hh"].chunk(3) if reset_after else (0, 0, 0)
    r = (a_r + (h * drop) @ w_r.T + b_r).sigmoid()
    z = (a_z + (h * drop) @ w_z.T + b_z).sigmoid()
    n = (a_n + r * ((h * drop) @ w_n.T + b_n)) if reset_after else (a_n + (r * h * drop) @ w_n.T)
    return (z * h + (1 - z) * n.tanh(),)


@double_precision
@pytest.mark.parametrize(("name", "reset_after"), [("SimpleRNN", None), ("LSTM", None), ("GRU", True), ("GRU", False)])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("return_sequences", [False, True])
def test_recurrent_dropout(name, reset_after, padded, return_sequences, random_image):
    x = random_image(4, 5, 3)
    options = {} if reset_after is None else {"reset_after": reset_after}
    layer = getattr(layers, name)(
        6, dropout=0.25, recurrent_dropout=0.4, return_sequences=return_sequences, zero_output_for_mask=True, **options
    )
    layer(x)
    randomize(layer)
    nnlib.set_seed(4)
    found = layer(x, lengths=LENGTHS if padded else None)
    nnlib.set_seed(4)
    on_x = kernels.dropout(torch.ones(4, 3), 0.25)
    on_h = kernels.dropout(torch.ones(4, 6), 0.4)
    assert 0 < (on_h == 0).sum() < 24 and 0 < (on_x == 0).sum() < 12
    states = (torch.zeros(4, 6),) * layer.state_count
    weights = dict(layer.named_parameters())
    outputs = []
    for step in range(5):
        new = keras_step(name, x[:, step] * on_x, states, on_h, weights, reset_after)
        going = (step < LENGTHS)[:, None] if padded else torch.ones(4, 1, dtype=torch.bool)
        states = tuple(torch.where(going, one, other) for one, other in zip(new, states, strict=True))
        outputs.append(new[0] * going)
    expected = torch.stack(outputs, 1) if return_sequences else states[0]
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    wanted = [x, *layer.parameters()]
    for one, other in zip(*(torch.autograd.grad(y, wanted, cotangent) for y in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)
    layer.eval()
    still = layer(x)
    assert torch.equal(still, layer(x))


@double_precision
def test_initial_weights_are_keras():
    for name, gates in (("SimpleRNN", 1), ("LSTM", 4), ("GRU", 3)):
        layer = getattr(layers, name)(64, input_shape=(None, 32))
        layer.build_once((None, None, 32))
        limit = (6 / (32 + 64 * gates)) ** 0.5  # Glorot's, of Keras' kernel (32, gates * 64)
        assert 0.99 * limit < layer.weight_ih.abs().max() <= limit
        torch.testing.assert_close(layer.weight_hh.T @ layer.weight_hh, torch.eye(64), rtol=0, atol=1e-12)
        biases = [bias for bias in (layer.bias_ih, layer.bias_hh) if bias is not None]
        assert len(biases) == (2 if name == "GRU" else 1)
        ones = torch.zeros(64 * gates)
        if name == "LSTM":
            ones[64:128] = 1  # the forget gate
        assert all(torch.equal(bias, ones) for bias in biases)
    plain = layers.LSTM(3, unit_forget_bias=False, input_shape=(None, 2))
    plain.build_once((None, None, 2))
    assert not plain.bias_ih.any()


@double_precision
def test_in_a_sequential_with_every_backend(random_image):
    model = models.Sequential([layers.LSTM(6, return_sequences=True, input_shape=(None, 3)), layers.GRU(4)])
    model.add(layers.Dense(2))
    x = random_image(3, 7, 3)
    results = {}
    for backend in ("numba", "torch", "reference"):
        model.to_backend(backend)
        with ops.recording() as uses:
            results[backend] = model(x)
        assert [(use.op, use.backend) for use in uses] == [
            ("lstm_layer", backend), ("gru_layer", backend), ("linear", backend),
        ]  # fmt: skip
    torch.testing.assert_close(results["numba"], results["reference"])
    torch.testing.assert_close(results["torch"], results["reference"])


def test_a_layers_backend_is_that_of_the_layers_inside():
    layer = layers.Bidirectional(layers.LSTM(3), backend="torch")
    assert layer.forward_layer.backend == layer.backward_layer.backend == "torch"
    layer.to_backend("reference")
    assert layer.forward_layer.backend == layer.backward_layer.backend == "reference"


ACTIVATIONS = [("relu", "sigmoid"), ("tanh", "hard_sigmoid"), (None, "sigmoid"), ("softsign", "tanh")]


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("activation, recurrent_activation", ACTIVATIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_other_activations_are_keras(name, activation, recurrent_activation, both_ways):
    """Step by step, where no kernel has them: values, gradients, padding."""
    options = {"activation": activation or "linear", "return_sequences": True}
    if name != "SimpleRNN":
        options["recurrent_activation"] = recurrent_activation
    ours, theirs = getattr(layers, name)(3, **options), getattr(keras.layers, name)(3, **options)
    if both_ways:
        ours, theirs = layers.Bidirectional(ours), keras.layers.Bidirectional(theirs)
    x = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert_like_keras(ours, theirs, [x], {"mask": mask()}, {"mask": mask()})
    if name == "LSTM" and activation == "relu":
        with pytest.raises(ValueError, match="does not convert: torch's modules have tanh and sigmoid"):
            nnlib.to_torch(ours)


@pytest.mark.parametrize("one, other", [("tanh", "relu"), ("softsign", "tanh")])
@pytest.mark.parametrize("name", LAYERS)
def test_each_way_has_its_own_activation(name, one, other):
    def pair(room):
        kind = getattr(room, name)
        back = kind(3, activation=other, return_sequences=True, go_backwards=True)
        return room.Bidirectional(kind(3, activation=one, return_sequences=True), backward_layer=back)

    x = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert_like_keras(pair(layers), pair(keras.layers), [x], {"mask": mask()}, {"mask": mask()})


def test_errors():
    with message(ValueError, "activation: known names are linear, relu, .*; got 'rellu' .did you mean 'relu'"):
        layers.LSTM(3, activation="rellu")
    with message(TypeError, "recurrent_activation: a name or None is expected, got <"):
        layers.GRU(3, recurrent_activation=torch.tanh)
    with message(ValueError, "units: a positive integer is expected, got 0$"):
        layers.SimpleRNN(0)
    with message(ValueError, r"recurrent_dropout: a number in \[0, 1\) is expected, got 1.0$"):
        layers.SimpleRNN(2, recurrent_dropout=1.0)
    layer = layers.LSTM(3)
    with message(ValueError, r"lstm: input must have shape \(N, T, features\), got \(2, 3\)$"):
        layer(torch.zeros(2, 3))
    layer(torch.zeros(2, 5, 4))
    with message(ValueError, r"lstm: input must have shape \(N, T, 4\), got \(2, 5, 3\)$"):
        layer(torch.zeros(2, 5, 3))
    with message(ValueError, r"lstm: initial_state must be 2 of shape \(2, 3\), got \[\(2, 3\)\]$"):
        layer(torch.zeros(2, 5, 4), torch.zeros(2, 3))
    bad = torch.tensor([[True, True, False], [True, False, True]])
    with message(ValueError, r"lstm: mask must have shape \(2, 5\), got \(2, 3\)$"):
        layer(torch.zeros(2, 5, 4), mask=bad)
    with message(ValueError, "lstm: mask must be bool, or 1 for True and 0 for False, got 2$"):
        layer(torch.zeros(2, 3, 4), mask=bad.long() * 2)
    with message(ValueError, "lstm: lengths or mask must be given, got both$"):
        layer(torch.zeros(2, 3, 4), mask=bad, lengths=LENGTHS)
    with message(TypeError, "layer: a SimpleRNN, LSTM or GRU is expected, got Dense"):
        layers.Bidirectional(layers.Dense(3))
    with message(ValueError, r"merge_mode: known names are concat, sum, mul, ave; got 'add'"):
        layers.Bidirectional(layers.LSTM(3), "add")
    with message(ValueError, "backward_layer: it must have return_sequences=True as layer has, got False$"):
        layers.Bidirectional(layers.LSTM(3, return_sequences=True), backward_layer=layers.LSTM(3, go_backwards=True))
    with message(TypeError, "lstm: input must be a tensor or a NumPy array, got tuple$"):
        layer((torch.zeros(2, 5, 4),))


@double_precision
def test_every_pair_of_options_runs(random_image):
    """Options that meet: the layer gives what its shape says."""
    x = random_image(4, 5, 3)
    switches = ("return_sequences", "return_state", "go_backwards", "unroll", "use_bias")
    for name, values in itertools.product(LAYERS, itertools.product((False, True), repeat=len(switches))):
        layer = getattr(layers, name)(2, dropout=0.1, **dict(zip(switches, values, strict=True)))
        found = layer(x, lengths=LENGTHS)
        output = found[0] if layer.return_state else found
        assert tuple(output.shape) == layer.compute_output_shape((4, 5, 3))
