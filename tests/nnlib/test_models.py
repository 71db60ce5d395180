"""Sequential: building, names, summary, backends, keeping weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nnlib
from nnlib import layers, models, ops
from nnlib.programs import build_cnn

CNN_SUMMARY = """\
Model: cnn
Layer (type)                    Output shape        Parameters      FLOPs  Kernels
------------------------------  ------------------  ----------  ---------  ------------------------
conv2d (Conv2D)                 (None, 26, 26, 32)         320    411,008  numba: conv2d_max_pool2d
max_pooling2d (MaxPooling2D)    (None, 13, 13, 32)           0          0
conv2d_1 (Conv2D)               (None, 11, 11, 64)      18,496  4,466,944  numba: conv2d_max_pool2d
max_pooling2d_1 (MaxPooling2D)  (None, 5, 5, 64)             0          0
conv2d_2 (Conv2D)               (None, 3, 3, 64)        36,928    663,552  numba: conv2d
flatten (Flatten)               (None, 576)                  0          0
dense (Dense)                   (None, 64)              36,928     73,728  torch: linear
dense_1 (Dense)                 (None, 10)                 650      1,330  torch: linear, softmax
Parameters: 93,322, of which 93,322 trainable
FLOPs of a forward pass of one sample (28, 28, 1): 5,616,562, a multiply-add counted as two
Kernels are those of that pass; larger batches may run on others"""


def summary_of(model, *inputs):
    lines = []
    model.summary(*inputs, print_fn=lines.append)
    (text,) = lines
    return text


def test_summary_of_the_article_cnn():
    model = build_cnn()
    model.layers[-1].backend = "torch"
    assert summary_of(model) == CNN_SUMMARY


def test_summary_runs_no_kernel_and_changes_nothing(monkeypatch):
    model = models.TransformerModel(2, 8, 2, 12, 20, 3, maximum_position_encoding=7)
    names = [layer.name for layer in model.modules() if isinstance(layer, layers.Layer)]

    def fail(*_):
        raise AssertionError("a kernel ran")

    monkeypatch.setattr(ops, "call_op", fail)
    text = summary_of(model)
    row = next(line for line in text.splitlines() if line.startswith("encoder.blocks.1 (TransformerBlock)"))
    assert "(None, None, 8)" in row and row.endswith("torch: linear, layer_norm; numba: attention")
    assert "one sample (7,)" in text
    assert names == [layer.name for layer in model.modules() if isinstance(layer, layers.Layer)]
    assert model.training


def test_summary_leaves_states_as_they_are():
    model = models.Sequential([layers.LSTM(3, stateful=True, input_shape=(4, 2)), layers.Dense(1)])
    x = torch.ones(5, 4, 2)
    first = model(x)
    states = model.layers[0].kept_states
    assert "lstm (LSTM)" in summary_of(model)
    assert model.layers[0].kept_states is states
    after = model(x)
    assert not torch.equal(first, after)  # a state of zeros would give the first again


def test_summary_of_a_subclassed_model():
    class Two(models.Model):
        def __init__(self):
            super().__init__(backend="torch")
            self.first, self.second = layers.Dense(3), layers.Dense(2)

        def forward(self, x):
            return self.second(self.first(x))

    model = Two()
    with pytest.raises(NotImplementedError, match=r"^summary: Two needs inputs of one sample: model.summary\(x\)$"):
        model.summary()
    text = summary_of(model, torch.zeros(1, 4))
    assert "first (Dense)   (None, 3)             15     24  torch: linear" in text
    assert "second (Dense)  (None, 2)              8     12  torch: linear" in text


def test_layers_are_built_when_added_or_at_first_use():
    eager = models.Sequential([layers.Dense(3, input_shape=(4,)), layers.Dense(2)])
    assert eager.built and len(list(eager.parameters())) == 4
    late = models.Sequential([layers.Dense(3), layers.Dense(2)])
    assert not late.built and not list(late.parameters())
    assert late(torch.zeros(5, 4)).shape == (5, 2)
    assert late.built and late.input_shape == (None, 4)


def test_building_early_or_late_gives_the_same_weights():
    def make(**options):
        nnlib.set_seed(3)
        return models.Sequential([layers.Conv2D(3, 2, **options), layers.Flatten(), layers.Dense(2)])

    early, late = make(input_shape=(4, 4, 1)), make()
    late.build((None, 4, 4, 1))
    for one, other in zip(early.parameters(), late.parameters(), strict=True):
        assert torch.equal(one, other)


def test_names_do_not_depend_on_other_models():
    for _ in range(2):
        model = models.Sequential([layers.Dense(3, input_shape=(4,)), layers.Dense(3, name="middle"), layers.Dense(2)])
        assert list(model.state_dict()) == [
            "dense.weight", "dense.bias", "middle.weight", "middle.bias", "dense_1.weight", "dense_1.bias",
        ]  # fmt: skip


def test_every_layer_uses_the_models_backend(small_model, images):
    model = small_model(backend="torch")
    model.layers[-1].backend = "reference"
    with ops.recording() as uses:
        model.train_on_batch(*images)
    assert [(use.caller, use.op, use.backend) for use in uses] == [
        ("conv2d", "conv2d_max_pool2d", "torch"),
        ("dropout", "dropout", "torch"),
        ("dense", "linear", "reference"),
        ("sparse_categorical_crossentropy", "cross_entropy", "torch"),
    ]


def test_to_backend_changes_nothing_else(small_model, images):
    model = small_model().eval()
    before = model.state_dict()
    results = {}
    for backend in ("numba", "torch", "reference"):
        assert model.to_backend(backend) is model
        with ops.recording() as uses:
            results[backend] = model.predict(images[0])
        assert {use.backend for use in uses} == {backend}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    np.testing.assert_allclose(results["numba"], results["torch"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(results["reference"], results["torch"], rtol=1e-5, atol=1e-6)


def test_weights_are_kept_in_a_file(small_model, images, tmp_path):
    model, other = small_model(seed=0), small_model(seed=1)
    assert not np.array_equal(model.predict(images[0]), other.predict(images[0]))
    model.save_weights(tmp_path / "weights.safetensors")
    other.load_weights(tmp_path / "weights.safetensors")
    assert np.array_equal(model.predict(images[0]), other.predict(images[0]))


def test_weights_go_into_torch_modules():
    layer = layers.Conv2D(4, 3, padding="same", input_shape=(6, 5, 2))
    model = models.Sequential([layer])
    twin = torch.nn.Conv2d(2, 4, 3, padding="same")
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(2, 6, 5, 2)
    torch.testing.assert_close(model(x), twin(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def test_subclassed_model_trains():
    class Line(models.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(1, kernel_initializer="zeros", input_shape=(1,))
            self.dense.build_once((None, 1))

        def compute_output_shape(self, input_shape):
            return (*input_shape[:-1], 1)

        def forward(self, x):
            return self.dense(x)

    x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    model = Line()
    model.compile(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5), loss="mse")
    model.fit(x, 3 * x + 1, epochs=40, verbose=0)
    assert model.dense.weight.item() == pytest.approx(3, abs=1e-3)
    assert model.dense.bias.item() == pytest.approx(1, abs=1e-3)


def test_torch_compile_takes_a_model(small_model, images):
    model = small_model().eval()
    x = torch.from_numpy(images[0][:8])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


def ops_run(model, x):
    with ops.recording() as uses:
        result = model(x)
    return [use.op for use in uses], result


def test_an_activation_layer_runs_inside_the_kernel_before_it():
    def make():
        nnlib.set_seed(0)
        return models.Sequential(
            [
                layers.Conv2D(3, 2),
                layers.Activation("relu"),
                layers.Flatten(),
                layers.Dense(4),
                layers.Activation("tanh"),
            ]
        )

    x = torch.randn(2, 5, 4, 1)
    names, fused = ops_run(make(), x)
    assert names == ["conv2d", "linear"]
    watched = make()
    seen = []
    for layer in watched.layers:
        layer.register_forward_hook(lambda module, args, output: seen.append(module.name))
    names, apart = ops_run(watched, x)
    assert names == ["conv2d", "relu", "linear", "tanh"]
    assert seen == ["conv2d", "activation", "flatten", "dense", "activation_1"]
    torch.testing.assert_close(fused, apart)
    model = make()
    model(x)
    assert model.built
    model.layers[1].backend = "reference"
    assert ops_run(model, x)[0] == ["conv2d", "relu", "linear"]


def unfused(model):
    """The model with somebody waiting for each layer's call, so that none may vanish in another one."""
    for layer in model.layers:
        layer.register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("activation", ["relu", "layer", "gelu", None])
@pytest.mark.parametrize("built", [True, False])
def test_a_max_pooling_runs_inside_the_convolution_before_it(data_format, activation, built):
    """Results and gradients of the unfused twin."""
    shape = (13, 12, 5) if data_format == "channels_last" else (5, 13, 12)

    def make():
        nnlib.set_seed(0)
        between = [layers.Activation("tanh")] if activation == "layer" else []
        model = models.Sequential(
            [
                layers.Conv2D(
                    6, 3, padding="same", data_format=data_format, activation=None if between else activation
                ),
                *between,
                layers.MaxPooling2D((3, 2), strides=2, data_format=data_format),
                layers.Flatten(),
                layers.Dense(2),
            ]
        )
        if built:
            model.build((None, *shape))
        return model

    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    found, wanted = [], []
    for model, results, names in (
        (make(), found, ["conv2d_max_pool2d", "linear"]),
        (unfused(make()), wanted, ["conv2d", *(["tanh"] if activation == "layer" else []), "max_pool2d", "linear"]),
    ):
        given = x.clone().requires_grad_()
        nnlib.set_seed(1)  # for the one that is built now
        ran, y = ops_run(model, given)
        assert ran == names and model.built
        y.square().sum().backward()
        results += [y, given.grad, *(parameter.grad for parameter in model.parameters())]
        pool = next(layer for layer in model.layers if isinstance(layer, layers.MaxPooling2D))
        assert pool.built_input_shape == model.layers[0].compute_output_shape((None, *shape))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_pooling_that_no_convolution_takes_in():
    x = torch.randn(2, 9, 9, 3)

    def names(*layer_list):
        return ops_run(models.Sequential(layer_list), x)[0]

    pool = layers.MaxPooling2D
    assert names(layers.Conv2D(5, 3), pool(2, padding="same")) == ["conv2d", "max_pool2d"]
    assert names(layers.Conv2D(9, 3), pool(2, data_format="channels_first")) == ["conv2d", "max_pool2d"]
    assert names(layers.Conv2D(5, 3), pool(2, backend="reference")) == ["conv2d", "max_pool2d"]
    assert names(layers.Conv2D(5, 3, activation="softmax"), pool(2)) == ["conv2d", "softmax", "max_pool2d"]
    assert names(layers.Conv2D(5, 3, activation=torch.sin), pool(2)) == ["conv2d", "max_pool2d"]
    assert names(layers.Conv2D(5, 3), layers.AveragePooling2D(2)) == ["conv2d", "avg_pool2d"]
    assert names(layers.Conv2D(5, 3), pool(2), pool(2)) == ["conv2d_max_pool2d", "max_pool2d"]
    assert names(layers.SeparableConv2D(5, 3), pool(2)) == ["conv2d", "conv2d_max_pool2d"]
    with pytest.raises(ValueError, match=r"^max_pooling2d: a window of \(8, 8\) .* must fit the image"):
        names(layers.Conv2D(5, 3), pool(8))


@pytest.mark.parametrize(
    ("first", "second"),
    [(layers.Dense(3, activation="relu"), layers.Activation("tanh")), (layers.Dense(3), layers.Activation("softmax"))],
)
def test_what_no_kernel_fuses_stays_apart(first, second):
    x = torch.randn(2, 4)
    names, found = ops_run(models.Sequential([first, second]), x)
    assert len(names) == 2
    torch.testing.assert_close(found, second(first(x)))


def test_insert_and_pop():
    model = models.Sequential([layers.Dense(3, input_shape=(4,)), layers.Dense(2)])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.insert(1, layers.Dense(3, activation="relu"))
    assert [layer.name for layer in model.layers] == ["dense", "dense_2", "dense_1"]
    assert [name.split(".")[0] for name, _ in model.named_parameters()][::2] == ["dense", "dense_2", "dense_1"]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert model(torch.zeros(5, 4)).shape == (5, 2)
    with pytest.raises(ValueError, match=r"^dense_1: input must have shape \(..., 3\), got \(None, 7\)$"):
        model.insert(2, layers.Dense(7))
    assert [layer.name for layer in model.layers] == ["dense", "dense_2", "dense_1"]
    last = model.pop()
    assert last.units == 2 and model(torch.zeros(5, 4)).shape == (5, 3)
    assert not any(name.startswith("dense_1") for name in model.state_dict())
    model.pop(), model.pop()
    with pytest.raises(ValueError, match="^pop: the model must have a layer, got none$"):
        model.pop()


def test_layers_of_a_subclassed_model_take_its_backend():
    class Two(models.Model):
        def __init__(self, **options):
            super().__init__(**options)
            self.blocks = torch.nn.ModuleList([layers.Dense(3), layers.Dense(2, backend="reference")])

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    with ops.recording() as uses:
        Two(backend="torch")(torch.zeros(2, 4))
    assert [use.backend for use in uses] == ["torch", "reference"]


def test_padding_goes_from_layer_to_layer(recwarn):
    class Padded(layers.Layer):
        needs_floating_input = False

        def output_lengths(self, x, lengths):
            return torch.tensor([2, 3])

        def call(self, x):
            return x

    x = torch.randn(2, 3, 4)
    model = models.Sequential([Padded(), layers.Dense(4), layers.Dropout(0.1), layers.LSTM(3, return_sequences=True)])
    model.eval()
    found = model(x)
    expected = model.layers[3](model.layers[1](x), lengths=torch.tensor([2, 3]))
    assert torch.equal(found, expected) and torch.equal(found[0, 1], found[0, 2])
    assert not recwarn.list
    model.add(layers.Flatten())
    with pytest.warns(
        UserWarning, match="^flatten: a Flatten treats padded steps like any other; the lengths end here"
    ):
        model(x)


def test_get_layer():
    model = models.Sequential([layers.Dense(2, name="First"), layers.Dense(2, name="last")])
    assert model.get_layer("First") is model.layers[0] is model.get_layer(index=-2)
    for arguments, message in (
        ({"name": "frist"}, "get_layer: name: known names are First, last; got 'frist'"),
        ({"index": 2}, "get_layer: an index of the 2 layers is expected, got 2"),
        ({}, "get_layer: name or index is expected, got name=None and index=None"),
    ):
        with pytest.raises(ValueError) as caught:
            model.get_layer(**arguments)
        assert str(caught.value).startswith(message)
