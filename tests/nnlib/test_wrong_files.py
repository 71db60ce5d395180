"""What is wrong with a file of a model: truncated, altered, hostile. Nothing in it is run."""

from __future__ import annotations

import re

import pytest
import safetensors.torch
import torch

import nnlib
from nnlib import layers, models
from nnlib.configuration import make
from nnlib.tensor_file import read_file, write_file, write_tree
from tests.nnlib.messages import raises
from tests.nnlib.saved import classifier, draw


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


def test_a_transformer_of_any_number_of_layers_is_not_begun(path):
    models.TransformerModel(2, 8, 2, 16, 20, 5).save(path)

    def many(document, tensors):
        document["model"]["config"]["num_layers"] = 10**9

    rewritten(path, many)
    refused(path, "TransformerModel: layers: at most 10270 are expected for 27 weights, there are more")
