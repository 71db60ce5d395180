"""`trainable`: frozen weights stay, the others train, before and after building, compiling, saving and converting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import nnlib
from nnlib import layers, models, optimizers


def _data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((32, 6)).astype("float32"), rng.integers(0, 3, 32)


def _model(optimizer: object = "adam") -> models.Sequential:
    nnlib.set_seed(0)
    model = models.Sequential(
        [
            layers.Dense(5, activation="relu", input_shape=(6,), name="first"),
            layers.BatchNormalization(name="norm"),
            layers.Dense(3, activation="softmax", name="last"),
        ]
    )
    model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy")
    return model


def _kept(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _changed(before: dict[str, torch.Tensor], model: torch.nn.Module) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def _of(model: models.Sequential, *layers_: str) -> set[str]:
    """Names in state_dict of what these layers hold."""
    ids = {id(value) for one in layers_ for value in model.get_layer(one).state_dict(keep_vars=True).values()}
    return {name for name, value in model.state_dict(keep_vars=True).items() if id(value) in ids}


def test_frozen_layers_stay_and_the_others_train():
    model, (x, y) = _model(), _data()
    model.get_layer("first").trainable = False
    before = _kept(model)
    model.fit(x, y, batch_size=8, verbose=0)
    assert _changed(before, model) == _of(model, "norm", "last")
    assert model.trainable and not model.get_layer("first").trainable


def test_frozen_batch_normalization_computes_as_in_evaluation():
    model, (x, y) = _model(), _data()
    norm = model.get_layer("norm")
    norm.trainable = False
    before = _kept(model)
    model.fit(x, y, batch_size=8, verbose=0)
    assert _changed(before, model) == _of(model, "first", "last")
    z = torch.randn(7, 5)
    torch.testing.assert_close(norm(z, training=True), norm(z, training=False), rtol=0, atol=0)
    norm.trainable = True
    assert (norm(z, training=True) - norm(z, training=False)).abs().max() > 0.1


@pytest.mark.parametrize("optimizer", ["adam", "sgd", torch.optim.AdamW, optimizers.RMSprop(momentum=0.5)])
def test_frozen_while_training_and_thawed_again(optimizer: object):
    """Whatever the optimizer was made for."""
    model, (x, y) = _model(optimizer), _data()
    first = model.get_layer("first")
    first.trainable = False
    model.fit(x, y, batch_size=8, verbose=0)
    first.trainable = True
    before = _kept(model)
    model.train_on_batch(x, y)
    assert _changed(before, model) == set(before)
    first.trainable = False
    before = _kept(model)
    model.fit(x, y, batch_size=8, verbose=0)
    assert _changed(before, model) == _of(model, "norm", "last")


def test_an_optimizer_of_the_users_keeps_its_weights():
    model, (x, y) = _model(), _data()
    model.compile(
        optimizer=torch.optim.SGD(model.get_layer("last").parameters(), lr=0.1), loss="sparse_categorical_crossentropy"
    )
    before = _kept(model)
    model.fit(x, y, batch_size=8, verbose=0)
    statistics = {name for name in before if "running" in name}
    assert _changed(before, model) == _of(model, "last") | statistics


def test_frozen_before_it_is_built():
    layer = layers.Bidirectional(layers.LSTM(4), trainable=False)
    layer.build((None, 5, 3))
    assert not layer.forward_layer.trainable and not any(p.requires_grad for p in layer.parameters())
    assert layer.trainable_weights == [] and len(layer.non_trainable_weights) == len(list(layer.parameters())) > 0
    model = models.Sequential([layers.Dense(2), layers.Dense(2)])
    model.trainable = False
    model.build((None, 3))
    assert not any(p.requires_grad for p in model.parameters())


def test_weights_in_two_lists():
    model = _model()
    model.get_layer("last").trainable = False
    first, norm, last = model.layers
    assert {id(w) for w in model.trainable_weights} == {id(p) for one in (first, norm) for p in one.parameters()}
    frozen = [*last.parameters(), norm.running_mean, norm.running_var]
    assert {id(w) for w in model.non_trainable_weights} == {id(w) for w in frozen}
    assert len(model.weights) == len(model.state_dict())


def test_nothing_to_train():
    model, (x, y) = _model(), _data()
    model.trainable = False
    with pytest.raises(RuntimeError, match="^trainable: at least one weight of the model must be trainable, got all"):
        model.fit(x, y, verbose=0)
    with pytest.raises(TypeError, match="^trainable: True or False is expected, got 0$"):
        model.trainable = 0


@pytest.mark.parametrize("trained", [False, True])
def test_saved_and_loaded(tmp_path: Path, trained: bool):
    model, (x, y) = _model(), _data()
    model.get_layer("norm").trainable = False
    if trained:
        model.fit(x, y, batch_size=8, verbose=0)
        model.get_layer("first").trainable = False
    model.save(tmp_path / "model")
    loaded = nnlib.load(tmp_path / "model")
    assert [one.trainable for one in loaded.layers] == [not trained, False, True]
    before = _kept(loaded)
    loaded.fit(x, y, batch_size=8, verbose=0)
    assert _changed(before, loaded) == _of(loaded, "last", *() if trained else ("first",))


def test_made_frozen_and_saved_thawed(tmp_path: Path):
    model = models.Sequential([layers.Dense(3, input_shape=(2,), trainable=False)])
    model.layers[0].trainable = True
    model.save(tmp_path / "model")
    loaded = nnlib.load(tmp_path / "model")
    assert loaded.layers[0].trainable and all(p.requires_grad for p in loaded.parameters())
    again = type(model.layers[0])(**model.layers[0].get_config())
    assert again.trainable


def test_as_keras_has_it():
    keras = pytest.importorskip("keras", reason="needs Keras")
    theirs = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5), keras.layers.Dense(3)])
    theirs.layers[0].trainable = False
    ours = nnlib.from_keras(theirs)
    assert [one.trainable for one in ours.layers] == [False, True]
    assert [one.trainable for one in nnlib.to_keras(ours).layers] == [False, True]
