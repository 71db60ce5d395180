"""python -m nnlib, on a few samples: train, predict, compare."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import nnlib
from nnlib import cli, models, predictions, programs
from nnlib.cli import main
from nnlib.programs import PROGRAMS

FEW = ["--subset", "--limit", "128", "--epochs", "1"]
SMALL_TRANSFORMER = {
    "num_layers": 1, "d_model": 16, "num_heads": 2, "dff": 16, "input_vocab_size": 10000, "target_vocab_size": 10,
}  # fmt: skip
CNN_KERNELS = [
    ["conv2d", "conv2d_max_pool2d", "torch"],
    ["conv2d_1", "conv2d_max_pool2d", "torch"],
    ["conv2d_2", "conv2d", "torch"],
    ["dense", "linear", "torch"],
    ["dense_1", "linear", "torch"],
    ["sparse_categorical_crossentropy", "cross_entropy", "torch"],
]


def train(*arguments):
    return main(["train", *arguments, *FEW])


def test_train_reports_accuracy_time_and_kernels(capsys):
    assert train("cnn", "--backend", "torch", "--no-files") == 0
    output = capsys.readouterr().out
    assert "Epoch 1/1: " in output and "samples/s" in output
    assert "Test accuracy 0." in output and "s an epoch" in output
    table = output[output.index("Which kernel ran where") :]
    assert [line.split() for line in table.splitlines()[3:] if line] == CNN_KERNELS


def test_train_saves_the_model_and_two_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train("cnn", "--backend", "torch") == 0
    output = capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "cnn-history.png", "cnn-predictions.png", "cnn.safetensors",
    ]  # fmt: skip
    for name in ("cnn-history.png", "cnn-predictions.png"):
        assert (tmp_path / "runs" / name).read_bytes().startswith(b"\x89PNG")
    assert "model        runs/cnn.safetensors" in output
    # The saved model is the one whose accuracy was reported.
    model = nnlib.load("runs/cnn.safetensors")
    x, y = (half[:128] for half in programs.load_images(False)[1])
    accuracy = model.evaluate(x, y, verbose=0)[1]
    assert f"Test accuracy {accuracy:.4f}" in output
    assert model.metadata["classes"][0] == "T-shirt/top" and model.metadata["program"] == "cnn"


def test_predict_says_what_images_are(tmp_path, capsys):
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    model = tmp_path / "m.safetensors"
    pictures = ["--plot", str(tmp_path / "h.svg"), "--predictions", str(tmp_path / "p.png")]
    assert train("cnn", "--backend", "torch", "--save", str(model), *pictures) == 0
    assert (tmp_path / "h.svg").read_text().startswith("<?xml")
    images = nnlib.datasets.fashion_mnist(whole=False)[1][0][:3]
    np.save(tmp_path / "all.npy", images)
    np.save(tmp_path / "one.npy", images[1] / 255)
    pillow.fromarray(images[1]).save(tmp_path / "one.png")
    pillow.fromarray(255 - images[1]).convert("RGB").save(tmp_path / "dark.png")
    capsys.readouterr()
    files = [str(tmp_path / name) for name in ("all.npy", "one.npy", "one.png")]
    assert main(["predict", str(model), *files]) == 0
    assert main(["predict", "--invert", str(model), str(tmp_path / "dark.png")]) == 0
    all_npy, one_npy, one_png, dark = capsys.readouterr().out.splitlines()
    pattern = r"^.*: ([\w/ -]+ \d+\.\d %, ){2}[\w/ -]+ \d+\.\d %$"
    assert all(re.match(pattern, line) for line in (all_npy, one_npy, one_png, dark))
    answers = [line.split(": ")[1] for line in (all_npy, one_npy, one_png, dark)]
    assert answers[1] == answers[2] == answers[3] != answers[0]
    expected = nnlib.load(model).predict(programs.scaled(images[1:2]))[0]
    assert answers[1].startswith(PROGRAMS["cnn"].classes[expected.argmax()])


@pytest.mark.parametrize("program", ["rnn", "transformer"])
def test_text_programs(program, tmp_path, monkeypatch, capsys):
    def build(device, backend):
        return models.TransformerModel(**SMALL_TRANSFORMER, device=device, backend=backend)

    monkeypatch.setitem(PROGRAMS, "transformer", dataclasses.replace(PROGRAMS["transformer"], build=build))
    monkeypatch.chdir(tmp_path)
    assert train(program, "--backend", "torch") == 0
    assert (tmp_path / "runs" / f"{program}-predictions.png").read_bytes().startswith(b"\x89PNG")
    source = tmp_path / "some.py"
    source.write_text("import asyncio\n\nasync def main(loop):\n    await asyncio.sleep(1, loop=loop)\n" * 4)
    short = tmp_path / "short.py"
    short.write_text("x = 1\n")
    capsys.readouterr()
    assert main(["predict", f"runs/{program}.safetensors", str(source)]) == 0
    assert re.match(rf"^{source}: \w+ \d+\.\d %, \w+ \d+\.\d %, \w+ \d+\.\d %$", capsys.readouterr().out)
    assert main(["predict", f"runs/{program}.safetensors", str(short)]) == 1
    assert capsys.readouterr().err == f"nnlib: {short}: at least 50 tokens of source are expected, got 4\n"


def test_alexnet_is_fed_large_images_batch_by_batch(capsys, monkeypatch):
    seen = []

    def build(device, backend):
        model = models.Sequential([nnlib.layers.Conv2D(4, 11, strides=16, input_shape=(227, 227, 3))], backend=backend)
        model.add(nnlib.layers.Flatten())
        model.add(nnlib.layers.Dense(10, "softmax"))
        return model

    monkeypatch.setitem(PROGRAMS, "alexnet", dataclasses.replace(PROGRAMS["alexnet"], build=build))
    monkeypatch.setattr(cli, "_kernel_table", lambda runs: seen.append(runs[0].history.history) or "")
    assert train("alexnet", "--backend", "torch", "--no-files", "--limit", "40", "--batch-size", "16") == 0
    assert len(seen[0]["val_accuracy"]) == 1
    large = programs.enlarged(torch.rand(2, 28, 28, 1, generator=torch.Generator().manual_seed(0)))
    assert large.shape == (2, 227, 227, 3) and torch.equal(large[..., 0], large[..., 2])


def test_compare_trains_the_same_network_twice(capsys):
    assert main(["compare", "cnn", *FEW]) == 0
    output = capsys.readouterr().out
    kernels, table = output.split("The same program, data and seed")
    assert ["conv2d_2", "conv2d", "numba", "torch"] in [line.split() for line in kernels.splitlines()]
    header, _, *rows = table.strip().splitlines()
    assert header.split("  ")[0] == "backend"
    results = {row.split()[0]: [float(value) for value in row.split()[1:]] for row in rows}
    assert list(results) == ["numba", "torch"]
    assert results["numba"][1] == pytest.approx(results["torch"][1], abs=2e-3)  # test loss after two steps


def test_a_seed_repeats_a_run(capsys):
    outputs = []
    for seed in ("1", "1", "2"):
        train("cnn", "--backend", "torch", "--no-files", "--seed", seed)
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch"))
        outputs.append(line.partition("loss=")[2])
    assert outputs[0] == outputs[1] != outputs[2]


def test_an_unknown_backend_is_one_line(capsys):
    assert train("cnn", "--backend", "nubma", "--no-files") == 1
    errors = capsys.readouterr().err
    assert errors.startswith("nnlib: ") and "nubma" in errors


def test_missing_pictures_are_told_before_the_training(monkeypatch, capsys):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    assert train("cnn") == 1
    output, errors = capsys.readouterr()
    assert output == "" and errors == (
        "nnlib: pictures need the package matplotlib: pip install nnlib-kernels[plot], or leave them out: --no-files\n"
    )


def test_what_predict_refuses(tmp_path, capsys):
    model = tmp_path / "m.safetensors"
    nnlib.models.Sequential([nnlib.layers.Dense(2, input_shape=(3,))]).save(model)
    for arguments, message in (
        ([str(tmp_path / "none"), "x.png"], f"{tmp_path / 'none'}: a file is expected, there is none"),
        ([str(model), "x.png"], f"{model}: the model must say how it was trained, as those of `python"),
    ):
        assert main(["predict", *arguments]) == 1
        assert capsys.readouterr().err.startswith(f"nnlib: {message}")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 3)), "images of shape (28, 28), (N, 28, 28) or (N, 28, 28, 1), got (1, 3, 3)"),
        (np.zeros((0, 28, 28)), "images of shape (28, 28), (N, 28, 28) or (N, 28, 28, 1), got (0, 28, 28)"),
        (np.full((28, 28), 3.0), "uint8, or numbers from 0 to 1 are expected, got float64"),
        (np.full((28, 28), np.nan), "uint8, or numbers from 0 to 1 are expected, got float64"),
        (np.zeros((28, 28), np.int64), "uint8, or numbers from 0 to 1 are expected, got int64"),
        (np.array([object()]), "a .npy array is expected: "),
    ],
)
def test_arrays_that_are_no_images(array, message, tmp_path):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match="^" + re.escape(f"{tmp_path / 'x.npy'}: {message}")):
        predictions.read_images(tmp_path / "x.npy")


def test_pictures_that_are_none(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="x.png: an image is expected: "):
        predictions.read_images(tmp_path / "x.png")


def test_tokens_become_lines_again():
    tokens = ["if", "x", ":", "<newline>", "<indent>", "y", "<newline>", "<dedent>", "<dedent>", "z", "(", ")"]
    assert predictions.as_source(tokens) == "if x :\n    y\nz ( )"
    assert predictions.as_source(["a" * 30], width=10) == "aaaaaaa..."


def test_the_module_runs():
    result = subprocess.run([sys.executable, "-m", "nnlib", "train", "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "--batch-size" in result.stdout
