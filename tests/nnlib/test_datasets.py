"""Fashion-MNIST: the embedded subset, the whole set where it is found, damaged files. Python source: its samples."""

from __future__ import annotations

import gzip
import hashlib
import struct
import subprocess
import sys

import numpy as np
import pytest

import nnlib
from nnlib.datasets import fashion_mnist_files, stdlib_source_files
from nnlib.datasets.fashion_mnist_files import IDX_FILES, read_idx


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def whole_set(tmp_path):
    """A folder with the four files: 30 training and 20 test images of noise."""
    generator = np.random.default_rng(0)
    arrays = [
        generator.integers(0, 256, (30, 28, 28), dtype=np.uint8),
        np.arange(30, dtype=np.uint8) % 10,
        generator.integers(0, 256, (20, 28, 28), dtype=np.uint8),
        np.arange(20, dtype=np.uint8) % 10,
    ]
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for name, array in zip(IDX_FILES, arrays, strict=True):
        write_idx(folder / name, array)
    return folder, arrays


def test_subset_is_balanced_and_real():
    (x_train, y_train), (x_test, y_test) = nnlib.datasets.fashion_mnist(whole=False)
    assert x_train.shape == (8000, 28, 28) and x_test.shape == (2000, 28, 28)
    assert y_train.shape == (8000,) and y_test.shape == (2000,)
    assert {array.dtype for array in (x_train, y_train, x_test, y_test)} == {np.dtype(np.uint8)}
    assert np.bincount(y_train).tolist() == [800] * 10
    assert np.bincount(y_test).tolist() == [200] * 10
    assert (x_train.min(), x_train.max()) == (0, 255)
    assert y_train[:5].tolist() == [9, 0, 0, 3, 0]  # the set's well-known first labels: no class is full yet
    assert len(np.unique(x_train.reshape(8000, -1), axis=0)) > 7990


@pytest.mark.parametrize("inside", [True, False])
def test_whole_set_where_the_variable_says(whole_set, inside, monkeypatch):
    folder, arrays = whole_set
    monkeypatch.setenv("NNLIB_DATA", str(folder if inside else folder.parent))
    (x_train, y_train), (x_test, y_test) = nnlib.datasets.fashion_mnist()
    for found, expected in zip((x_train, y_train, x_test, y_test), arrays, strict=True):
        assert np.array_equal(found, expected)
    x_train[0] = 0  # the caller's own copy
    assert len(nnlib.datasets.fashion_mnist(whole=False)[0][0]) == 8000


def test_subset_where_there_is_no_whole_set(tmp_path, monkeypatch):
    monkeypatch.delenv("NNLIB_DATA", raising=False)
    monkeypatch.setattr(fashion_mnist_files, "DEBIAN_FOLDER", tmp_path)
    assert len(nnlib.datasets.fashion_mnist()[0][0]) == 8000
    with pytest.raises(FileNotFoundError, match=r"^whole=True needs the files train-images-idx3-ubyte\.gz, "):
        nnlib.datasets.fashion_mnist(whole=True)


def test_a_named_folder_without_the_files(tmp_path, monkeypatch):
    monkeypatch.setenv("NNLIB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"^NNLIB_DATA: the folder .* must have the files .*, got /"):
        nnlib.datasets.fashion_mnist()


def test_damaged_files(tmp_path, whole_set, monkeypatch):
    path = tmp_path / "file.gz"
    good = gzip.compress(bytes([0, 0, 8, 1]) + struct.pack(">I", 5) + bytes(5))
    for content, message in (
        (good[:-6], "a complete gzip file is expected"),
        (b"plain", "a complete gzip file is expected"),
        (gzip.compress(b"\x00\x00\x0d\x01"), "an idx file of unsigned bytes starts with 00 00 08, got 00 00 0d"),
        (gzip.compress(bytes([0, 0, 8, 1]) + struct.pack(">I", 9) + bytes(5)), r"shape \(9,\) is announced"),
        (gzip.compress(bytes([0, 0, 8, 2, 0, 0])), "rank 2 is announced, the file ends within its 2 sizes"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_idx(path)
    folder, _ = whole_set
    write_idx(folder / IDX_FILES[1], np.zeros(29, dtype=np.uint8))
    monkeypatch.setenv("NNLIB_DATA", str(folder))
    with pytest.raises(ValueError, match=r"images \(N, 28, 28\) and labels \(N,\) are expected, got \(30, 28, 28\)"):
        nnlib.datasets.fashion_mnist()


def test_the_licence_is_beside_the_data():
    notice = (fashion_mnist_files.EMBEDDED_FILE.parent / "fashion_mnist_LICENSE.txt").read_text()
    assert "MIT License" in notice and "Zalando SE" in notice


# ----- Python source -------------------------------------------------------------------------------------------------


def test_stretches_of_source():
    (x_train, y_train), (x_test, y_test) = nnlib.datasets.stdlib_source()
    for x, y in ((x_train, y_train), (x_test, y_test)):
        assert x.shape == (len(y), 50) and x.dtype == y.dtype == np.int64
        assert x.min() == 1 and x.max() < 10_000  # 0 is free for padding
        assert len(set(np.bincount(y, minlength=10))) == 1
    assert len(y_train) > 12_000 and len(y_test) > 900
    assert not np.array_equal(y_train[:100], np.sort(y_train[:100]))
    words = stdlib_source_files.vocabulary()
    assert len(words) == 10_000 == len(set(words)) and words[:2] == ("<padding>", "<unknown>")
    assert set(words[2:8]) >= {".", ",", "(", ")", "<newline>"}  # the most frequent come first


def test_the_source_can_be_told_apart():
    """Word counts alone (naive Bayes) find six of ten, so that the labels are those of the samples."""
    (x_train, y_train), (x_test, y_test) = nnlib.datasets.stdlib_source()
    counts = np.ones((10, 10_000))
    np.add.at(counts, (np.repeat(y_train, 50), x_train.reshape(-1)), 1)
    scores = np.log(counts / counts.sum(1, keepdims=True))[:, x_test].sum(-1)
    assert 0.5 < (scores.argmax(0) == y_test).mean() < 0.8


def test_no_file_is_in_both_halves():
    training, test = stdlib_source_files._halves()
    for package in stdlib_source_files.PACKAGES:
        seen = {tuple(tokens) for tokens in training[package] if len(tokens) > 50}
        assert seen and not seen & {tuple(tokens) for tokens in test[package]}
        sizes = [sum(len(tokens) for tokens in half[package]) for half in (training, test)]
        assert 0.15 < sizes[1] / sum(sizes) < 0.3


def test_the_set_is_the_same_in_every_process():
    program = (
        "import hashlib; from nnlib import datasets; (x, y), (v, w) = datasets.stdlib_source();"
        "print(hashlib.sha256(b''.join(a.tobytes() for a in (x, y, v, w))).hexdigest())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    halves = nnlib.datasets.stdlib_source()
    digest = hashlib.sha256(b"".join(array.tobytes() for half in halves for array in half)).hexdigest()
    assert result.stdout.strip() == digest, result.stderr


def test_arrays_are_the_callers_own():
    x = nnlib.datasets.stdlib_source()[0][0]
    before = x[0, 0]
    x[:] = 0
    assert nnlib.datasets.stdlib_source()[0][0][0, 0] == before


def test_tokens():
    source = 'def f(x):  # a comment\n    """%s"""\n\n    return x + 1.5\n' % ("a long docstring " * 3)
    assert stdlib_source_files.tokens_of(source) == [
        "def", "f", "(", "x", ")", ":", "<newline>", "<indent>", "<string>", "<newline>",
        "return", "x", "+", "1.5", "<newline>", "<dedent>",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="^source: Python is expected: "):
        stdlib_source_files.tokens_of("f(")
    numbers = {"<unknown>": 1, "x": 2}
    assert stdlib_source_files.encode(["x", "y"], numbers).tolist() == [2, 1]
    assert stdlib_source_files.stretches(np.arange(119), 20)[:, 0].tolist() == [0, 20, 40, 60]
    assert stdlib_source_files.stretches(np.arange(49)).shape == (0, 50)


def test_a_python_without_its_source(monkeypatch, tmp_path):
    stdlib_source_files._halves.cache_clear()
    monkeypatch.setattr(stdlib_source_files.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match="^stdlib_source: the source of asyncio is expected in /"):
        nnlib.datasets.stdlib_source()
    stdlib_source_files._halves.cache_clear()
