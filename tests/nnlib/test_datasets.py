"""Fashion-MNIST: the embedded subset, the whole set where it is found, and damaged files."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

import nnlib
from nnlib.datasets import fashion_mnist_files
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
