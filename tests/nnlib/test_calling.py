"""What calls of layers and models take besides tensors: NumPy arrays, training=, and attention's keywords and masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nnlib
from nnlib import layers, models
from tests.nnlib.messages import message

keras = pytest.importorskip("keras")


def dropping():
    model = models.Sequential([layers.Dense(16), layers.Dropout(0.5), layers.LSTM(3, dropout=0.5)])
    model.build((None, 5, 4))
    return model


def modes(model):
    return [module.training for module in model.modules()]


X = np.random.default_rng(0).standard_normal((3, 5, 4))


def test_arrays_are_taken_as_tensors_of_the_models_type():
    model = dropping().eval()
    expected = model(torch.from_numpy(X).float())
    for array in (X, X.astype(np.float32), X.astype(np.float16).astype(np.float64) * 0 + X, X[:, ::-1][:, ::-1]):
        found = model(array)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert torch.equal(model(X.astype(">f8")), expected)  # foreign byte order
    frozen = X.astype(np.float32)
    frozen.flags.writeable = False
    assert torch.equal(model(frozen), expected)
    assert model.double()(X).dtype == torch.float64
    assert layers.Dropout(0.1).eval()(X.astype(np.float16)).dtype == torch.float32  # as Keras: no parameters, floatx
    assert layers.Flatten()(np.arange(6).reshape(1, 2, 3)).dtype == torch.int64


def test_arrays_are_taken_wherever_an_argument_is():
    layer = layers.LSTM(3, return_state=True)
    state = [np.full((3, 3), 0.5), np.full((3, 3), -0.5)]
    mask = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], dtype=bool)
    found = layer(X, initial_state=state, mask=mask)
    expected = layer(
        torch.tensor(X).float(),
        initial_state=[torch.tensor(one).float() for one in state],
        lengths=torch.tensor([2, 5, 1]),
    )
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(layer(X, lengths=np.array([2, 5, 1]), initial_state=tuple(state))[0], found[0])


def test_arrays_go_where_the_parameters_are():
    class Asked(layers.Layer):
        def build(self, input_shape):
            self.weight = self.add_weight((2,), "ones")

        def call(self, x, other):
            return x.device.type, other[0].device.type

    layer = Asked(device="meta")
    layer.build_once((None, 4))
    assert layer(np.zeros((3, 4)), other=[np.zeros(1)]) == ("meta", "meta")
    assert layers.Flatten(device="meta")(np.zeros((3, 4))).device.type == "meta"


def test_a_model_that_writes_takes_arrays():
    nnlib.set_seed(0)
    model = models.EncoderDecoder(1, 8, 2, 12, 9, 9)
    source = np.arange(6).reshape(2, 3)
    assert torch.equal(model.generate(source, 1, 4), model.generate(torch.from_numpy(source), 1, 4))
    assert model(source, source, training=False).shape == (2, 3, 9)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_training_is_the_mode_of_one_call(given, own):
    model = dropping().train(own)
    model.layers[1].train(not own)
    before = modes(model)
    nnlib.set_seed(1)
    found = model(X, training=given)
    assert modes(model) == before
    model.train(given)
    nnlib.set_seed(1)
    assert torch.equal(found, model(X))
    plain = dropping().eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(X), found) is not given


def test_no_training_leaves_the_mode_alone():
    model = dropping()
    outputs = [model.train(mode)(X, training=None) for mode in (False, True)]
    assert torch.equal(outputs[0], model.eval()(X))
    assert not torch.equal(outputs[0], outputs[1])


def test_the_mode_is_put_back_after_an_error():
    model = dropping()
    before = modes(model)
    with pytest.raises(ValueError, match="lstm: input must"):
        model.layers[2](np.zeros((3, 4)), training=False)
    with pytest.raises(ValueError, match="dense: input must have shape"):
        model(np.zeros((3, 5, 9)), training=False)
    assert modes(model) == before
    with pytest.raises(ValueError, match="dense: input must have shape"):
        model.predict(np.zeros((3, 5, 9)))
    assert modes(model) == before


def test_what_is_built_in_a_call_takes_the_layers_mode():
    class Late(layers.Layer):
        def build(self, input_shape):
            self.drop = layers.Dropout(0.5)

        def call(self, x):
            return self.drop(x)

    x = torch.ones(4, 8)
    assert torch.equal(Late()(x, training=False), x)
    layer = Late().eval()
    assert torch.equal(layer(x), x) and not layer.drop.training
    layer = Late()
    layer(x, training=False)
    assert layer.training and layer.drop.training


def test_a_subclass_in_keras_form_is_handed_the_mode():
    class Program(models.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3, activation="softmax")
            self.dropout = layers.Dropout(0.5)
            self.seen = []

        def call(self, x, training=False):
            self.seen.append(training)
            return self.dense(self.dropout(x, training=training))

    model = Program()
    x, y = X[:, 0].astype(np.float32), np.array([0, 1, 2])
    model(x)
    model(x, training=False)
    model.eval()(x)
    model.train()
    model.compile("sgd")
    model.fit(x, y, verbose=0)
    model.evaluate(x, y, verbose=0)
    model.predict(x, verbose=0)
    # (fit first tries the model on a sample, since it cannot tell its output's shape.)
    assert model.seen == [True, False, False, False, True, False, False, False]
    with message(NotImplementedError, r"Model must define forward\(x\), or call\(x\)"):
        models.Model()(x)


def test_training_compiles_into_one_graph():
    model = models.Sequential([layers.Dense(4, input_shape=(4,)), layers.Dropout(0.5)])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = torch.randn(3, 4)
    torch.testing.assert_close(compiled(x, training=False), model(x, training=False))
    assert model.training


def test_bad_arrays():
    layer = layers.Dense(2, name="head")
    for array, dtype in ((np.array([["a"]]), "<U1"), (np.array([[None]]), "object"), (np.ones((1, 1), complex), "c")):
        with pytest.raises(TypeError, match=f"^head: an array of numbers is expected, got dtype {dtype}"):
            layer(array)
        with pytest.raises(TypeError, match=f"^sequential: an array of numbers is expected, got dtype {dtype}"):
            models.Sequential([layers.Dense(2)])(array)
    with message(TypeError, "head: input must be a tensor or a NumPy array, got list"):
        layer([[1.0, 2.0]])
    with message(TypeError, "x: an array of numbers is expected, got dtype object"):
        models.Sequential([layers.Dense(2)]).predict(np.array([[None]]))


# ----- attention ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", [("query",), ("value",), ("key",), ("query", "value", "key", "attention", "causal")])
def test_attentions_masks_are_keras(masks):
    generator = np.random.default_rng(1)
    query, value, key = (
        generator.standard_normal(shape).astype(np.float32) for shape in ((2, 4, 6), (2, 5, 3), (2, 5, 4))
    )
    layer = layers.MultiHeadAttention(2, 3)
    layer(query=query, value=value, key=key)
    theirs = nnlib.to_keras(layer)
    options = {}
    for name, steps in (("query", 4), ("value", 5), ("key", 5)):
        if name in masks:
            options[f"{name}_mask"] = generator.random((2, steps)) < 0.7
            options[f"{name}_mask"][:, 0] = True
    if "attention" in masks:
        options["attention_mask"] = generator.integers(0, 2, (2, 4, 5))
        options["attention_mask"][:, :, 0] = 1
    if "causal" in masks:
        options["use_causal_mask"] = True
    found = layer(query=query, value=value, key=key, **options)
    plain = layer(query, value, key)
    for name in ("attention_mask",):
        if name in options:
            options[name] = options[name].astype(bool)
    expected = theirs(query, value, key=key, **options).detach()
    # A query that sees nothing has zeros here, and the mean of all values in Keras.
    sees = torch.from_numpy(options.get("query_mask", np.ones((2, 4), bool)))
    torch.testing.assert_close(found[sees], expected[sees], rtol=0, atol=2e-6)
    assert not torch.equal(found, plain)
    assert torch.equal(found[~sees], layer.out_proj.bias.expand_as(found[~sees]))


def test_attentions_masks_are_checked():
    layer = layers.MultiHeadAttention(2, 3)
    x = torch.randn(2, 4, 6)
    with message(ValueError, r"multi_head_attention: key_mask must have shape \(2, 4\), got \(2, 5\)"):
        layer(x, key_mask=torch.ones(2, 5, dtype=torch.bool))
    with message(ValueError, "multi_head_attention: value_mask must be bool, or 1 for True and 0 for False, got -inf"):
        layer(x, value_mask=torch.full((2, 4), -torch.inf))
    causal = torch.ones(4, 4).tril()
    expected = layer(x, use_causal_mask=True)
    for mask in (causal, causal.bool()[None], causal.expand(2, 4, 4), causal.expand(2, 2, 4, 4)):
        torch.testing.assert_close(layer(x, attention_mask=mask), expected)


def test_keras_ways_to_compute_are_accepted():
    x = torch.from_numpy(X).float()
    for kind in (layers.LSTM, layers.GRU, layers.SimpleRNN):
        nnlib.set_seed(3)
        plain = kind(4)(x)
        nnlib.set_seed(3)
        assert torch.equal(kind(4, implementation=1, use_cudnn=False, unroll=True)(x), plain)


@pytest.mark.parametrize("wrap", [lambda layer: layer, layers.Bidirectional])
def test_reset_state_forgets(wrap):
    layer = wrap(layers.GRU(4, stateful=True))
    first, second = layer(X), layer(X)
    assert not torch.equal(first, second)
    layer.reset_state()
    assert torch.equal(layer(X), first)
    layer.reset_states()
    assert torch.equal(layer(X), first)
