"""model.save and nnlib.load: what comes back, and every way in which a file can be wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

import nnlib
from nnlib import layers, losses, metrics, models, optimizers
from nnlib.configuration import make
from nnlib.saving import PARTS, model_classes
from nnlib.tensor_file import read_file, read_tree, write_file, write_tree


def raises(kind, text):
    return pytest.raises(kind, match=f"^{re.escape(text)}")


def draw(count=24):
    generator = np.random.default_rng(0)
    return generator.standard_normal((count, 8, 8, 2)).astype(np.float32), generator.integers(0, 3, count)


def classifier(optimizer="adam", **options):
    nnlib.set_seed(0)
    model = models.Sequential(name="small")
    model.add(layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", input_shape=(8, 8, 2)))
    model.add(layers.MaxPooling2D(2, name="middle"))
    model.add(layers.Flatten())
    model.add(layers.Dropout(0.2))
    model.add(layers.Dense(3, activation="softmax", use_bias=False))
    model.compile(optimizer, metrics=["accuracy"], **options)
    return model


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


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


# ----- every layer and every model -----------------------------------------------------------------------------------

IMAGE, SEQUENCE = (6, 7, 4), (5, 4)
# One of each class that a file may name, with arguments other than the defaults.
LAYERS = {
    "Activation": lambda: layers.Activation("gelu", input_shape=(3,)),
    "AveragePooling1D": lambda: layers.AveragePooling1D(3, 1, "same", input_shape=SEQUENCE),
    "AveragePooling2D": lambda: layers.AveragePooling2D((2, 3), strides=1, padding="same", input_shape=IMAGE),
    "BatchNormalization": lambda: layers.BatchNormalization(momentum=0.5, epsilon=1e-4, input_shape=IMAGE),
    "Bidirectional": lambda: layers.Bidirectional(
        layers.LSTM(3, return_sequences=True, unit_forget_bias=False), merge_mode="sum", input_shape=SEQUENCE
    ),
    "Conv2D": lambda: layers.Conv2D(4, (2, 3), groups=2, dilation_rate=2, activation="silu", input_shape=IMAGE),
    "Conv2DTranspose": lambda: layers.Conv2DTranspose(3, 3, strides=2, padding="same", input_shape=IMAGE),
    "Dense": lambda: layers.Dense(3, "tanh", use_bias=False, input_shape=SEQUENCE),
    "DepthwiseConv2D": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, input_shape=IMAGE),
    "Dropout": lambda: layers.Dropout(0.25, input_shape=SEQUENCE),
    "Embedding": lambda: layers.Embedding(9, 4, weights=np.ones((9, 4), np.float32), input_length=5),
    "Flatten": lambda: layers.Flatten("channels_first", input_shape=IMAGE),
    "GRU": lambda: layers.GRU(3, reset_after=False, go_backwards=True, input_shape=SEQUENCE),
    "GlobalAveragePooling1D": lambda: layers.GlobalAveragePooling1D("channels_first", input_shape=SEQUENCE),
    "GlobalAveragePooling2D": lambda: layers.GlobalAveragePooling2D(keepdims=True, input_shape=IMAGE),
    "GlobalMaxPooling1D": lambda: layers.GlobalMaxPooling1D(keepdims=True, input_shape=SEQUENCE),
    "GlobalMaxPooling2D": lambda: layers.GlobalMaxPooling2D(input_shape=IMAGE),
    "LSTM": lambda: layers.LSTM(3, return_sequences=True, use_bias=False, input_shape=SEQUENCE),
    "LayerNormalization": lambda: layers.LayerNormalization(epsilon=0.1, input_shape=SEQUENCE),
    "LocalResponseNormalization": lambda: layers.LocalResponseNormalization(3, k=1.0, input_shape=IMAGE),
    "Masking": lambda: layers.Masking(0.5, input_shape=SEQUENCE),
    "MaxPooling1D": lambda: layers.MaxPooling1D(2, data_format="channels_first", input_shape=SEQUENCE),
    "MaxPooling2D": lambda: layers.MaxPooling2D(3, strides=2, input_shape=IMAGE),
    "MultiHeadAttention": lambda: layers.MultiHeadAttention(
        2, 3, value_dim=2, relative="shaw", max_distance=3, input_shape=SEQUENCE
    ),
    "PositionalEncoding": lambda: layers.PositionalEncoding(7, base=100.0, input_shape=SEQUENCE),
    "RMSNormalization": lambda: layers.RMSNormalization(epsilon=0.1, input_shape=SEQUENCE),
    "ReLU": lambda: layers.ReLU(6, 0.1, 0.2, input_shape=SEQUENCE),
    "Reshape": lambda: layers.Reshape((4, -1), input_shape=SEQUENCE),
    "SeparableConv2D": lambda: layers.SeparableConv2D(5, 3, depth_multiplier=2, input_shape=IMAGE),
    "SimpleRNN": lambda: layers.SimpleRNN(3, activation="relu", input_shape=SEQUENCE),
    "Softmax": lambda: layers.Softmax(1, input_shape=SEQUENCE),
    "TransformerBlock": lambda: layers.TransformerBlock(
        4, 2, 8, norm_first=True, relative="t5", causal=True, input_shape=SEQUENCE
    ),
    "ZeroPadding2D": lambda: layers.ZeroPadding2D(((1, 2), (0, 3)), input_shape=IMAGE),
}
SMALL = {"num_layers": 2, "d_model": 8, "num_heads": 2, "dff": 16, "input_vocab_size": 20, "target_vocab_size": 5}
MODELS = {
    "Sequential": lambda: models.Sequential([layers.Dense(3, input_shape=(4,))]),
    **{
        f"TransformerModel {kind}": lambda kind=kind: models.TransformerModel(
            **SMALL, position_encoding_type=kind, norm_first=True, mask_zero=True
        )
        for kind in ("sinusoidal", "relative", "t5", "alibi", "none")
    },
    "EncoderDecoder": lambda: models.EncoderDecoder(**SMALL, maximum_position_encoding=12),
    "AlexNet": lambda: models.AlexNet(10, (67, 67, 3), grouped=False, rate=0.25),
}


def test_there_is_an_example_of_every_class():
    made = {*LAYERS, *(name.split()[0] for name in MODELS), "InputLayer"} - {"AlexNet"}
    assert made == set(model_classes()) - set(PARTS)  # which tests of their own keep


def scrambled(model):
    """Weights, and running statistics, that no initializer gives."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) + 0.1)
    return model.eval()


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_comes_back(name, path):
    layer = LAYERS[name]()
    model = scrambled(models.Sequential([layer]))
    model.save(path)
    loaded = nnlib.load(path).eval()
    assert type(loaded.layers[0]) is type(layer) and same(loaded, model)
    generator = torch.Generator().manual_seed(1)
    shape = (2, *(layer.given_input_shape or ())[1:])
    tokens = name == "Embedding"
    x = torch.randint(1, 9, shape, generator=generator) if tokens else torch.randn(shape, generator=generator)
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("name", MODELS)
def test_every_model_comes_back(name, path):
    model = scrambled(MODELS[name]())
    model.save(path)
    loaded = nnlib.load(path).eval()
    assert type(loaded) is type(model) and loaded.name == model.name and same(loaded, model)
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "Sequential": lambda: [torch.randn(2, 4, generator=generator)],
        "AlexNet": lambda: [torch.randn(1, 67, 67, 3, generator=generator)],
        "EncoderDecoder": lambda: [torch.randint(1, 5, (2, 6), generator=generator) for _ in range(2)],
    }.get(name, lambda: [torch.randint(1, 20, (2, 6), generator=generator)])()
    assert torch.equal(loaded(*inputs), model(*inputs))


def test_a_transformer_of_any_number_of_layers_is_not_begun(path):
    models.TransformerModel(**SMALL).save(path)

    def many(document, tensors):
        document["model"]["config"]["num_layers"] = 10**9

    rewritten(path, many)
    refused(path, "TransformerModel: layers: at most 10270 are expected for 27 weights, there are more")


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


# ----- what is wrong with a file -------------------------------------------------------------------------------------


def rewritten(path, change):
    """The file with its description changed, and a checksum that fits: what a hostile hand would write."""
    tensors, document = read_file(path)
    change(document, tensors)
    write_file(path, tensors, document)


def refused(path, message):
    with raises(ValueError, f"{path}: {message}"):
        nnlib.load(path)


def test_no_file(tmp_path):
    with raises(FileNotFoundError, f"{tmp_path / 'a'}: a file is expected, there is none"):
        nnlib.load(tmp_path / "a")
    refused(tmp_path, "a file is expected, got a folder")


def test_every_truncation_is_refused(path):
    classifier().save(path)
    content = path.read_bytes()
    for length in {0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1}:
        path.write_bytes(content[:length])
        refused(path, "a whole safetensors file is expected: ")


def test_every_altered_byte_is_refused(path):
    model = classifier()
    model.fit(*draw(), verbose=0)
    model.save(path)
    content = path.read_bytes()
    for place in [*range(0, 64, 3), *range(64, len(content), len(content) // 150), len(content) - 1]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x15]) + content[place + 1 :])
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: ") as caught:
            nnlib.load(path)
        assert "\n" not in str(caught.value)


def test_other_files(path, tmp_path):
    path.write_bytes(b"PK\x03\x04 a zip file, or a pickle in one")
    refused(path, "a whole safetensors file is expected: ")
    safetensors.torch.save_file({"a": torch.zeros(2)}, path)
    refused(path, "a file written by nnlib is expected, got one without its description")
    write_tree(path, {"a": 1}, "backup")
    refused(path, "a model in format 1 is expected, got another file of nnlib's")
    classifier().save(path)
    rewritten(path, lambda document, tensors: document.update(format=2))
    refused(path, "a model in format 1 is expected, got another file of nnlib's")


def layer_of(document, index):
    return document["model"]["config"]["layers"][index]


def unknown_layer(document, tensors):
    layer_of(document, 0)["$class"] = "Conv2d_"


def a_layer_of_torch(document, tensors):
    layer_of(document, 0)["$class"] = "torch.nn.Linear"


def a_program(document, tensors):
    layer_of(document, 4)["config"]["activation"] = {"$class": "os.system", "config": {"command": "true"}}


def unknown_activation(document, tensors):
    layer_of(document, 4)["config"]["activation"] = "__import__('os').system('true')"


def unknown_argument(document, tensors):
    layer_of(document, 4)["config"]["filters"] = 3


def wrong_kind(document, tensors):
    layer_of(document, 4)["config"]["units"] = "three"


def wrong_shape(document, tensors):
    layer_of(document, 4)["config"]["units"] = 5


def absurd_size(document, tensors):
    layer_of(document, 4)["config"]["units"] = 10**15


def more_layers(document, tensors):
    document["model"]["config"]["layers"] += [{"$class": "Dense", "config": {"units": 1}}] * 100


def a_million_layers(document, tensors):
    document["model"]["config"]["layers"] = [{"$class": "Flatten", "config": {}}] * 1_000_000


def no_description(document, tensors):
    document["model"] = "Sequential"


def a_layer_alone(document, tensors):
    document["model"] = layer_of(document, 4)


def deep(document, tensors):
    value = []
    for _ in range(300):
        value = [value]
    layer_of(document, 0)["config"]["strides"] = value


def missing_weight(document, tensors):
    del tensors["dense.weight"]


def another_weight(document, tensors):
    tensors["dense.bias"] = torch.zeros(3)


def integer_weight(document, tensors):
    tensors["dense.weight"] = torch.zeros(3, 4, dtype=torch.int32)


def missing_key(document, tensors):
    del document["frozen"]


def unknown_frozen(document, tensors):
    document["frozen"] = ["nothing"]


def unknown_loss(document, tensors):
    document["training"]["loss"] = {"$class": "FunctionLoss", "config": {"function": "print"}}


def unknown_optimizer(document, tensors):
    document["training"]["optimizer"] = "Optimizer.__init__"


def wrong_state_shape(document, tensors):
    tensors["optimizer/state/0/mean"] = torch.zeros(2, 2)


def missing_state(document, tensors):
    del tensors["optimizer/state/0/mean"]


def no_such_parameter(document, tensors):
    document["training"]["groups"] = [["dense.weight", "nothing"]]


def wrong_options(document, tensors):
    document["training"]["state"]["param_groups"][0]["evil"] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unknown_layer, "$class: known names are activation, averagepooling1d, "),
        (a_layer_of_torch, "$class: known names are activation, averagepooling1d, "),
        (a_program, "$class: known names are activation, averagepooling1d, "),
        (unknown_activation, "Dense: activation: known names are linear, relu, "),
        (unknown_argument, "Dense: "),
        (wrong_kind, "Dense: "),
        (wrong_shape, "weights: dense.weight must have shape (5, 16), got (3, 16)"),
        (absurd_size, "weights: dense.weight must have shape (1000000000000000, 16), got (3, 16)"),
        (more_layers, "Sequential: weights: exactly those of the layers are expected, got 3 where there are more"),
        (a_million_layers, "layers: at most 1000 are expected, got 1000001"),
        (no_description, "an object is expected, as {$class, config}, got 'Sequential'"),
        (a_layer_alone, "a model is expected, got a Dense"),
        (deep, "Conv2D: strides: a positive integer or a pair of them is expected, got [[["),
        (missing_weight, "weights: exactly those of the layers are expected, missing dense.weight"),
        (another_weight, "weights: exactly those of the layers are expected, unknown dense.bias"),
        (integer_weight, "weights: dense.weight must have shape (3, 16), got (3, 4)"),
        (missing_key, "'frozen'"),
        (unknown_frozen, "'nothing'"),
        (unknown_loss, "$class: known names are sparsecategoricalcrossentropy, "),
        (unknown_optimizer, "optimizer: one of torch.optim is expected, got 'Optimizer.__init__'"),
        (wrong_state_shape, "optimizer: mean must have shape (4, 2, 3, 3), got (2, 2)"),
        (missing_state, "tensor 'optimizer/state/0/mean' is expected in the file, it is missing"),
        (no_such_parameter, "'nothing'"),
        (wrong_options, "optimizer: options ["),
    ],
)
def test_hostile_descriptions_are_refused(change, message, path):
    model = classifier()
    model.fit(*draw(), verbose=0)
    model.save(path)
    rewritten(path, change)
    refused(path, message)


def test_descriptions_make_objects_of_their_table_alone():
    table = {"Dense": layers.Dense}
    assert make({"$class": "Dense", "config": {"units": 2}}, table).units == 2
    for description in (3, {}, {"$class": "Dense"}, {"$class": 3, "config": {}}, {"$class": "Dense", "config": []}):
        with pytest.raises(ValueError, match="expected, "):
            make(description, table)
    with raises(ValueError, "$class: known names are dense; got 'Layer'"):
        make({"$class": "Layer", "config": {}}, table)


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
