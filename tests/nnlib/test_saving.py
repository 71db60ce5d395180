"""model.save and nnlib.load: what comes back, and what no file can hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

import nnlib
from nnlib import layers, losses, metrics, models, optimizers
from nnlib.tensor_file import read_file, read_tree, write_tree
from tests.nnlib.messages import raises
from tests.nnlib.saved import classifier, draw, same

OPTIMIZERS = {
    "adam": "adam",
    "nadam": optimizers.Nadam(0.01, clipnorm=1.0),
    "sgd": optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "torch": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, betas=(0.8, 0.9)),
    "torch class": torch.optim.RMSprop,
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_goes_on_to_the_same_bits(optimizer, path):
    x, y = draw()
    model = classifier(OPTIMIZERS[optimizer])
    model.fit(x, y, epochs=2, verbose=0)
    model.save(path)
    state = torch.get_rng_state()
    loaded = nnlib.load(path)
    assert torch.equal(torch.get_rng_state(), state)  # loading draws nothing from it
    assert same(loaded, model) and np.array_equal(loaded.predict(x), model.predict(x))
    assert type(loaded.optimizer) is type(model.optimizer)
    expected = model.fit(x, y, epochs=2, verbose=0).history
    torch.set_rng_state(state)
    assert loaded.fit(x, y, epochs=2, verbose=0).history == expected
    assert same(loaded, model)


def test_layers_come_back_as_they_were(path):
    model = classifier()
    model.layers[0].weight.requires_grad_(False)
    model.save(path)
    loaded = nnlib.load(path, backend="torch")
    assert loaded.name == "small" and [layer.name for layer in loaded.layers] == [
        "conv2d", "middle", "flatten", "dropout", "dense",
    ]  # fmt: skip
    for ours, theirs in zip(model.layers, loaded.layers, strict=True):
        given, found = ours.get_config(), theirs.get_config()
        assert type(ours) is type(theirs) and {**given, "name": ours.name} == {**found, "name": theirs.name}
    assert [p.requires_grad for p in loaded.parameters()] == [False, True, True]
    assert loaded.setup.optimizer is None and {layer.backend for layer in loaded.layers} == {"torch"}


def test_what_compile_was_told_comes_back(path):
    model = classifier(
        optimizers.AdamW(1e-2, weight_decay=0.1),
        loss=losses.CategoricalCrossentropy(label_smoothing=0.1),
        weighted_metrics=["mse", metrics.TopKCategoricalAccuracy(k=2, name="top2"), metrics.Precision(class_id=1)],
        global_clipnorm=2.0,
        gradient_accumulation_steps=3,
        mixed_precision="bfloat16",
    )
    model.save(path)
    setup, kept = nnlib.load(path).setup, model.setup
    assert setup.optimizer_choice == kept.optimizer_choice and setup.rules == kept.rules
    assert setup.precision is torch.bfloat16 and setup.value_names == kept.value_names
    assert setup.loss.label_smoothing == 0.1 and setup.weighted_metrics[1].k == 2
    assert setup.weighted_metrics[2].class_id == 1


def test_a_model_that_was_not_compiled(path):
    model = models.Sequential([layers.Dense(2, input_shape=(3,))])
    model.save(path)
    loaded = nnlib.load(path)
    assert same(loaded, model) and not loaded.compiled
    model.compile(loss=lambda y_true, y_pred: (y_true - y_pred).abs().mean())
    model.save(path, include_optimizer=False)
    assert not nnlib.load(path).compiled


def test_types_of_weights_come_back(path):
    model = classifier().double()
    model.fit(*draw(), verbose=0)
    model.save(path)
    loaded = nnlib.load(path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float64}
    assert same(loaded, model)


def test_a_model_built_from_data_remembers_its_shape(path):
    model = models.Sequential([layers.Dense(4), layers.Dense(2)])
    with raises(RuntimeError, "save: the model must be built: give the first layer input_shape="):
        model.save(path)
    model.predict(draw()[0][:, 0, 0])
    model.save(path)
    assert same(nnlib.load(path), model) and nnlib.load(path).input_shape == (None, 2)


def test_other_programs_read_the_weights(path):
    model = classifier()
    model.save(path)
    read = safetensors.torch.load_file(path)
    assert sorted(read) == sorted(model.state_dict())
    assert torch.equal(read["conv2d.weight"], model.layers[0].weight)


def test_weights_alone(path):
    model = classifier()
    model.fit(*draw(), verbose=0)
    for save in (model.save, model.save_weights):
        save(path)
        other = classifier()
        assert not same(other, model)
        other.load_weights(path)
        assert same(other, model)
    path.write_bytes(path.read_bytes()[:-1])
    with raises(ValueError, f"{path}: a whole safetensors file is expected: "):
        other.load_weights(path)


def test_a_file_is_replaced_in_one_step(path, monkeypatch):
    model = classifier()
    model.save(path)
    before = path.read_bytes()

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with raises(OSError, "disk full"):
        classifier("sgd").save(path)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_the_process_that_loads_need_not_be_the_one_that_saved(path):
    model = classifier()
    model.save(path)
    program = f"import nnlib; print(nnlib.load({str(path)!r}).layers[0].weight.double().sum().item())"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == str(model.layers[0].weight.double().sum().item()), result.stderr


# ----- what no file can hold -----------------------------------------------------------------------------------------


def square(x):
    return x * x


class OwnLayer(layers.Layer):
    pass


class OwnModel(models.Model):
    def forward(self, x):
        return x


def own_loss(y_true, y_pred):
    return (y_true - y_pred).abs().mean(-1)


HINT = "save(path, include_optimizer=False) keeps layers and weights alone"


@pytest.mark.parametrize(
    ("make_model", "message"),
    [
        (
            lambda: models.Sequential([layers.Dense(3, activation=square, input_shape=(2,))]),
            "dense: activation: a function cannot be kept in a file, a name or plain values can; got <function square",
        ),
        (
            lambda: models.Sequential(
                [layers.Dense(3, kernel_initializer=torch.nn.init.zeros_, name="first", input_shape=(2,))]
            ),
            "first: kernel_initializer: a function cannot be kept in a file, a name or plain values can; got <function",
        ),
        (
            lambda: models.Sequential([OwnLayer(input_shape=(2,))]),
            "own_layer: OwnLayer is no class of nnlib's own, so that nnlib.load could not make it",
        ),
        (OwnModel, "ownmodel: OwnModel is no class of nnlib's own, so that nnlib.load could not make it"),
        (lambda: classifier(loss=own_loss), f"save: own_loss is a function, which no file can hold; {HINT}"),
        (
            lambda: classifier(lambda parameters: torch.optim.SGD(parameters, lr=1.0)),
            f"save: the optimizer is a function or a class of your own, which no file can hold; {HINT}",
        ),
        (
            lambda: classifier(weighted_metrics=[own_loss]),
            f"save: own_loss is a function, which no file can hold; {HINT}",
        ),
    ],
)
def test_what_no_file_can_hold(make_model, message, path):
    with raises(ValueError, message):
        make_model().save(path)
    assert not path.exists()


def test_trees_of_tensors(tmp_path):
    shared = torch.arange(3.0)
    tree = {"a": [1, 2.5, None, True, "text", float("inf")], "b": (shared, shared, {0: shared[:2], 1: ()}), "c": {}}
    write_tree(tmp_path / "tree", tree, "test")
    read = read_tree(tmp_path / "tree", "test")
    assert read["a"] == tree["a"] and read["c"] == {} and isinstance(read["b"], tuple)
    assert torch.equal(read["b"][1], shared) and torch.equal(read["b"][2][0], shared[:2]) and read["b"][2][1] == ()
    with raises(TypeError, "tree/a: tensors and plain values are expected, got <object"):
        write_tree(tmp_path / "tree", {"a": object()}, "test")
    with raises(ValueError, f"{tmp_path / 'tree'}: a other is expected, got another file of nnlib's"):
        read_tree(tmp_path / "tree", "other")


def test_descriptions_are_plain_json(path):
    classifier().save(path)
    _, document = read_file(path)
    assert document["model"]["config"]["layers"][1] == {
        "$class": "MaxPooling2D",
        "config": {
            "pool_size": 2, "strides": None, "padding": "valid", "data_format": None, "name": "middle",
        },
    }  # fmt: skip
    assert json.loads(json.dumps(document)) == document
