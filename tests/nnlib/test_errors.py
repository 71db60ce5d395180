"""Bad input: one clear line that names the layer or argument, the rule and the value."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import nnlib
from nnlib import layers, models


def raises(kind, text):
    return pytest.raises(kind, match=f"^{re.escape(text)}$")


def starts(kind, text):
    return pytest.raises(kind, match=f"^{re.escape(text)}")


def test_wrong_channels_name_the_layer_and_both_shapes(small_model):
    with raises(ValueError, "conv2d: input must have shape (N, H, W, 1), got (8, 28, 28, 3)"):
        small_model()(torch.zeros(8, 28, 28, 3))


def test_wrong_rank_names_the_layer_and_both_shapes(small_model, images):
    with raises(ValueError, "conv2d: input must have shape (N, H, W, 1), got (None, 28, 28)"):
        small_model().fit(images[0][..., 0], images[1])


def test_wrong_features(small_model):
    with raises(ValueError, "dense: input must have shape (..., 144), got (2, 100)"):
        small_model()(torch.zeros(2, 24, 24, 1))


def test_a_window_that_does_not_fit_is_seen_when_the_layer_is_added():
    model = models.Sequential([layers.MaxPooling2D(4, input_shape=(8, 8, 3))])
    with raises(
        ValueError,
        "conv2d: a window of (3, 3) (dilation (1, 1), padding 'valid') must fit the image, got (height, width) (2, 2)",
    ):
        model.add(layers.Conv2D(4, 3))
    assert [layer.name for layer in model.layers] == ["max_pooling2d"]


def test_integer_images(small_model, images):
    with raises(TypeError, "conv2d: input must be floating point, got torch.uint8; images: x / 255.0"):
        small_model().predict((images[0] * 255).astype(np.uint8))


@pytest.mark.parametrize("label", [10, -1])
def test_labels_out_of_range(label, small_model, images):
    x, y = images
    y = y.astype(np.int64)
    y[7] = label
    for call in (small_model().fit, small_model().evaluate, small_model().train_on_batch):
        with raises(ValueError, f"y: labels must be from 0 to 9 for an output of 10 classes, got {label} in row 7"):
            call(x, y)


def test_labels_of_another_kind(small_model, images):
    x, y = images
    with raises(ValueError, "y: sparse_categorical_crossentropy expects whole numbers as labels, got torch.float32"):
        small_model().fit(x, y + np.float32(0.5))
    with raises(
        ValueError,
        "y: sparse_categorical_crossentropy expects labels of shape (N,), got (200, 10); "
        "rows of probabilities go with categorical_crossentropy",
    ):
        small_model().fit(x, np.eye(10, dtype=np.int64)[y])
    with raises(ValueError, "y: categorical_crossentropy expects the shape of the output, ('N', 10), got (200,)"):
        small_model(loss="categorical_crossentropy").fit(x, y)


@pytest.mark.parametrize("call", ["fit", "evaluate", "train_on_batch"])
def test_before_compile(call, images):
    model = models.Sequential([layers.Flatten(), layers.Dense(10)])
    with raises(RuntimeError, f"{call}: the model must be compiled first: model.compile(optimizer=..., loss=...)"):
        getattr(model, call)(*images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"optimizer": "adm"},
            "optimizer: known names are adam, adamw, sgd, rmsprop, adagrad, adadelta, adamax, nadam, lion; got 'adm' "
            "(did you mean 'adam'?)",
        ),
        (
            {"loss": "sparse_categorical_cross_entropy"},
            "loss: known names are sparse_categorical_crossentropy, categorical_crossentropy, binary_crossentropy, "
            "bce, categorical_focal_crossentropy, binary_focal_crossentropy, mean_squared_error, mse, "
            "mean_absolute_error, mae, mean_absolute_percentage_error, mape, mean_squared_logarithmic_error, msle, "
            "cosine_similarity, huber, log_cosh, poisson, kl_divergence, kld, hinge, squared_hinge, categorical_hinge; "
            "got 'sparse_categorical_cross_entropy' "
            "(did you mean 'sparse_categorical_crossentropy'?)",
        ),
        (
            {"metrics": ["acuracy"]},
            "metrics: known names are accuracy, acc, binary_accuracy, categorical_accuracy, "
            "sparse_categorical_accuracy, top_k_categorical_accuracy, sparse_top_k_categorical_accuracy, precision, "
            "recall, auc, true_positives, true_negatives, false_positives, false_negatives, f1_score, fbeta_score, "
            "root_mean_squared_error, cosine_similarity, mean_squared_error, mean_absolute_error, "
            "mean_absolute_percentage_error, mean_squared_logarithmic_error, logcosh, poisson, kl_divergence, hinge, "
            "squared_hinge, categorical_hinge, binary_crossentropy, categorical_crossentropy, "
            "sparse_categorical_crossentropy, bce, categorical_focal_crossentropy, binary_focal_crossentropy, mse, "
            "mae, mape, msle, huber, log_cosh, kld; got 'acuracy' "
            "(did you mean 'accuracy'?)",
        ),
    ],
)
def test_unknown_names_in_compile(options, message):
    with raises(ValueError, message):
        models.Sequential().compile(**options)


def test_unknown_activation():
    with raises(
        ValueError,
        "activation: known names are linear, relu, gelu, silu, swish, tanh, sigmoid, softmax, log_softmax, celu, "
        "elu, exponential, hard_sigmoid, hard_shrink, hard_silu, hard_swish, hard_tanh, leaky_relu, log_sigmoid, mish, "
        "relu6, selu, soft_shrink, softplus, softsign, sparse_plus, sparse_sigmoid, squareplus, tanh_shrink; "
        "got 'rellu' (did you mean 'relu'?)",
    ):
        layers.Dense(3, activation="rellu")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.Conv2D(0, 3), "filters: a positive integer is expected, got 0"),
        (lambda: layers.Conv2D(5, 3, groups=2), "filters: a positive multiple of groups (2) is expected, got 5"),
        (lambda: layers.Conv2D(4, 3, groups=0), "groups: a positive integer is expected, got 0"),
        (lambda: layers.Conv2D(4, (3, 0)), "kernel_size: a positive integer or a pair of them is expected, got (3, 0)"),
        (lambda: layers.Conv2D(4, 3, strides=-1), "strides: a positive integer or a pair of them is expected, got -1"),
        (lambda: layers.Conv2D(4, 3, padding="full"), "padding: known names are valid, same; got 'full'"),
        (
            lambda: layers.MaxPooling2D(2, data_format="channel_last"),
            "data_format: known names are channels_last, channels_first; got 'channel_last' "
            "(did you mean 'channels_last'?)",
        ),
        (lambda: layers.Dense(0), "units: a positive integer is expected, got 0"),
        (lambda: layers.Dropout(1.5), "rate: a number in [0, 1] is expected, got 1.5"),
        (
            lambda: models.Sequential([layers.Dense(2, kernel_initializer="glorot", input_shape=(3,))]),
            "dense: kernel_initializer: known names are glorot_uniform, glorot_normal, he_uniform, he_normal, "
            "lecun_uniform, lecun_normal, variance_scaling, orthogonal, random_uniform, uniform, random_normal, "
            "normal, truncated_normal, zeros, ones, constant, identity; got 'glorot' (did you mean 'glorot_normal'?)",
        ),
        (lambda: layers.Dense(2, name="a.b"), "name: letters, digits and underscores are expected, got 'a.b'"),
        (lambda: layers.Dense(2, name=3), "name: letters, digits and underscores are expected, got 3"),
        (
            lambda: layers.Dense(2, input_shape=5),
            "input_shape: a tuple of positive integers or None is expected, got 5",
        ),
        (
            lambda: layers.Dense(2, input_shape=(-1,)),
            "input_shape: a tuple of positive integers or None is expected, got (-1,)",
        ),
        (lambda: layers.Conv2D(4, 3, groups="2"), "groups: a positive integer is expected, got '2'"),
        (lambda: layers.Dropout("a"), "rate: a number in [0, 1] is expected, got 'a'"),
        (lambda: layers.LSTM(2, dropout=1.0), "dropout: a number in [0, 1) is expected, got 1.0"),
        (lambda: layers.Reshape(3), "target_shape: positive sizes, at most one of them -1, are expected, got 3"),
    ],
)
def test_layer_arguments(make, message):
    with raises(ValueError, message):
        make()


def test_arguments_of_another_kind():
    with raises(TypeError, "padding: one of the names valid, same is expected, got 1"):
        layers.Conv2D(4, 3, padding=1)
    with raises(TypeError, "mask_value: a number is expected, got 'a'"):
        layers.Masking("a")
    layer = layers.Conv2D(np.int64(4), np.int32(3), strides=(np.int64(2), 1))
    assert layer(torch.zeros(1, 9, 9, 1)).shape == (1, 4, 7, 4)


@pytest.mark.parametrize(
    ("room", "name", "nearest"),
    [
        (layers, "Conv2d", "Conv2D"),
        (nnlib.optimizers, "Adm", "Adam"),
        (nnlib.losses, "MeanSquareError", "MeanSquaredError"),
        (nnlib.callbacks, "EarlyStoping", "EarlyStopping"),
        (nnlib.initializers, "HeNorm", "HeNormal"),
        (models, "sequential_", "Sequential"),
    ],
)
def test_a_class_that_is_not_there(room, name, nearest):
    message = f"module {room.__name__!r} has no {name!r} (did you mean {nearest!r}?); it has "
    with starts(AttributeError, message) as got:
        getattr(room, name)
    assert f"{nearest}" in str(got.value).partition("it has")[2]


def test_what_a_kernel_refuses_names_the_layer():
    model = models.TransformerModel(1, 8, 2, 8, 11, 3)
    message = "embedding: input must lie in [0, 10] (the rows of weight), got 50 at (0, 0)"
    with raises(IndexError, message):
        model.predict(np.full((2, 5), 50))
    layer = layers.Dense(3, name="head")
    with raises(TypeError, "head: linear: weight must have the dtype of x (float64), got float32"):
        layer(torch.zeros(2, 4, dtype=torch.float64))


def test_devices_that_are_not_there(tmp_path):
    for make in (layers.Dense, lambda units, device: models.Sequential(device=device)):
        with raises(ValueError, "device: a device is expected, such as 'cpu' or 'cuda:0', got 'gpu'"):
            make(2, device="gpu")
    path = tmp_path / "model.safetensors"
    models.Sequential([layers.Dense(2, input_shape=(3,))]).save(path)
    if not torch.cuda.is_available():
        with raises(ValueError, "device: torch finds no CUDA device or driver, got 'cuda:1'"):
            nnlib.load(path, device="cuda:1")


def test_a_folder_that_is_not_there(tmp_path):
    path = tmp_path / "no" / "model.safetensors"
    with raises(FileNotFoundError, f"{path}: its folder must be there, got {str(path.parent)!r}, which is not"):
        models.Sequential([layers.Dense(2, input_shape=(3,))]).save(path)


def test_another_number_of_inputs():
    model = models.Sequential([layers.Dense(3, activation="softmax", input_shape=(4,))], name="one")
    model.compile()
    x, y = np.zeros((5, 4), np.float32), np.zeros(5, int)
    for call in (lambda: model.fit([x, x], y), lambda: model.predict([x, x]), lambda: model.train_on_batch([x, x], y)):
        with raises(ValueError, "x: one takes 1 inputs (arrays in a list), got 2"):
            call()
    pair = models.EncoderDecoder(1, 8, 2, 8, 11, 11, name="pair")
    with raises(ValueError, "x: pair takes 2 inputs (arrays in a list), got 1"):
        pair.predict(np.ones((2, 5), int))


def test_one_sample_without_its_batch():
    model = models.Sequential([layers.Dense(3, input_shape=(4,), name="first")])
    with raises(ValueError, "x: first must have samples in shape (N, 4), got (4,)"):
        model.predict(np.zeros(4, np.float32))
    assert models.Sequential([layers.Dense(3)]).predict(np.zeros((2, 5, 4), np.float32)).shape == (2, 5, 3)


def test_channels_that_groups_do_not_divide():
    with starts(ValueError, "conv2d: input channels must be known and a multiple of groups (2), got 3 in"):
        models.Sequential([layers.Conv2D(4, 3, groups=2, input_shape=(8, 8, 3))])


def test_names_of_layers():
    with raises(ValueError, "name: layers must have different names, got 'a' twice"):
        models.Sequential([layers.Dense(2, name="a"), layers.Dense(2, name="a")])
    with raises(ValueError, "name: 'fit' is an attribute of the model, a layer needs another name"):
        models.Sequential([layers.Dense(2, name="fit")])
    layer = layers.Dense(2)
    with raises(ValueError, "layer: dense is in the model already"):
        models.Sequential([layer, layer])
    with starts(TypeError, "layer: a layer of nnlib.layers is expected, got Linear("):
        models.Sequential([torch.nn.Linear(2, 2)])


def test_data_that_does_not_fit(small_model, images):
    x, y = images
    model = small_model()
    with raises(ValueError, "x and y must have the same number of samples, got 200 and 190"):
        model.fit(x, y[:190])
    with raises(ValueError, "validation x and validation y must have the same number of samples, got 200 and 10"):
        model.fit(x, y, validation_data=(x, y[:10]))
    with raises(ValueError, "x: at least one sample is expected, got shape (0, 28, 28, 1)"):
        model.fit(x[:0], y[:0])
    hint = "; np.array(...) makes one of lists"
    with raises(TypeError, f"x: a NumPy array or a torch tensor is expected, got list{hint}"):
        model.fit(x.tolist(), y)
    with raises(TypeError, f"x: a NumPy array or a torch tensor is expected, got list{hint}"):
        model.predict(x.tolist())
    with raises(
        TypeError,
        "x: a NumPy array or a torch tensor is expected, got TensorDataset; "
        "torch.utils.data.DataLoader reads a Dataset",
    ):
        model.fit(torch.utils.data.TensorDataset(torch.zeros(3, 28, 28, 1), torch.zeros(3)))
    with raises(ValueError, "batch_size: a positive integer is expected, got 0"):
        model.fit(x, y, batch_size=0)
    with raises(ValueError, "validation_split: a number between 0 and 1 is expected, got 2"):
        model.fit(x, y, validation_split=2)
    with raises(ValueError, "validation_split: a number between 0 and 1 is expected, got 'a'"):
        model.fit(x, y, validation_split="a")
    with raises(ValueError, "validation y: labels must be from 0 to 9 for an output of 10 classes, got 11 in row 0"):
        model.fit(x, y, validation_data=(x[:1], np.array([11])))
    for name in ("steps_per_epoch", "validation_steps", "validation_batch_size"):
        rule = "batch_size" if name == "validation_batch_size" else name
        with raises(ValueError, f"{rule}: a positive integer is expected, got 0"):
            model.fit(x, y, validation_data=(x, y), **{name: 0})
    with raises(TypeError, "shuffle: True or False is expected, got 'batch'"):
        model.fit(x, y, shuffle="batch")
    with raises(ValueError, "verbose: one of ('auto', 0, 1, 2) is expected, got 3"):
        model.fit(x, y, verbose=3)


@pytest.mark.parametrize(
    ("weights", "rule"),
    [
        ({10: 1.0}, "classes from 0 to 9 are expected, got 10"),
        ({1: float("nan")}, "finite weights are expected, got nan for class 1"),
        ({1: "a"}, "a dictionary from class numbers to weights is expected, got {1: 'a'}"),
        ([1.0, 2.0], "a dictionary from class numbers to weights is expected, got [1.0, 2.0]"),
    ],
)
def test_class_weights_that_are_none(weights, rule, small_model, images):
    with raises(ValueError, f"class_weight: {rule}"):
        small_model().fit(*images, class_weight=weights)


def test_numpy_integers_are_integers(small_model, images):
    x, y = images
    plain = small_model()
    plain.fit(x, y, batch_size=50, epochs=2, class_weight={1: 2.0, 4: 0.5}, verbose=0)
    weights = dict(zip(np.array([1, 4]), np.array([2.0, 0.5], np.float32)))  # as sklearn's helpers give them
    numpys = small_model()
    numpys.fit(x, y, batch_size=np.int64(50), epochs=np.int32(2), class_weight=weights, verbose=0)
    assert all(torch.equal(one, other) for one, other in zip(plain.parameters(), numpys.parameters(), strict=True))


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_spoilt(small_model, images):
    x, y = images
    x = x.copy()
    x[40] = float("nan")
    model = small_model()
    with raises(
        FloatingPointError,
        "Epoch 1/1, step 2: the loss must be finite, got nan; look for NaN in x, or lower the learning rate",
    ):
        model.fit(x, y, shuffle=False, verbose=0)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_an_optimizer_of_another_model(small_model, images):
    model = small_model()
    model.compile(optimizer=torch.optim.SGD(small_model().parameters(), lr=0.1))
    with starts(ValueError, "optimizer: it must hold parameters of this model, got one that holds none of them"):
        model.fit(*images, verbose=0)


def test_before_build():
    model = models.Sequential([layers.Dense(2)])
    with starts(RuntimeError, "summary: the model must be built"):
        model.summary()
    with starts(RuntimeError, "load_state_dict: the model must be built"):
        model.load_state_dict({})
    with starts(ValueError, "layers: the model must have a layer"):
        models.Sequential()(torch.zeros(1))


def test_seed_must_be_an_integer():
    with raises(TypeError, "seed: an integer is expected, got '0'"):
        nnlib.set_seed("0")


def test_import_without_torch():
    program = "import sys; sys.modules['torch'] = None\nimport nnlib"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stderr.splitlines()[-1] == "ImportError: nnlib needs PyTorch: pip install nnlib-kernels[torch]"
