"""Fashion-MNIST: 28x28 grey images of ten kinds of clothing (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747).

The whole set (60,000 + 10,000) is read from the four idx files where they are found; a balanced subset
(8,000 + 2,000) travels with the package, made by tools/make_fashion_mnist_subset.py.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
EMBEDDED_FILE = Path(__file__).parent / "data" / "fashion_mnist_subset.npz"
# Where Debian's package dataset-fashion-mnist puts the files.
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DATA_FOLDER_VARIABLE = "NNLIB_DATA"
IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def fashion_mnist(whole: bool | None = None) -> tuple[Arrays, Arrays]:
    """Loads Fashion-MNIST as (x_train, y_train), (x_test, y_test), like keras.datasets.fashion_mnist.load_data().

    whole: None (default) takes the whole set where its files are found and the embedded subset elsewhere; True
    takes the whole set; False takes the subset. The files are looked for in the folder that the environment
    variable NNLIB_DATA names (or its subfolder fashion-mnist) and, when it is not set, where Debian's package
    dataset-fashion-mnist puts them.

    Returns images uint8 (N, 28, 28) from 0 to 255 and labels uint8 (N,) from 0 to 9 (names in CLASS_NAMES); N is
    60,000 and 10,000 for the whole set, 8,000 and 2,000 for the subset.

    Raises FileNotFoundError if the whole set is asked for and not found, or if NNLIB_DATA names a folder without
    the files; ValueError if a file is damaged.
    """
    source = None if whole is False else find_source_folder()
    if source is not None:
        return read_folder(source)
    if whole:
        raise FileNotFoundError(
            f"whole=True needs the files {', '.join(IDX_FILES)}: install Debian's package dataset-fashion-mnist, "
            f"or name their folder in the environment variable {DATA_FOLDER_VARIABLE}"
        )
    with np.load(EMBEDDED_FILE, allow_pickle=False) as data:
        return (data["x_train"], data["y_train"]), (data["x_test"], data["y_test"])


def find_source_folder() -> Path | None:
    """The folder that has the four idx files, or None.

    Raises FileNotFoundError if NNLIB_DATA is set and the files are not there: a folder named by hand and passed
    over in silence would train on other data than was meant.
    """
    named = os.environ.get(DATA_FOLDER_VARIABLE)
    candidates = [Path(named), Path(named) / "fashion-mnist"] if named else [DEBIAN_FOLDER]
    for folder in candidates:
        if all((folder / name).is_file() for name in IDX_FILES):
            return folder
    if named:
        raise FileNotFoundError(
            f"{DATA_FOLDER_VARIABLE}: the folder (or its subfolder fashion-mnist) must have the files "
            f"{', '.join(IDX_FILES)}, got {named}"
        )
    return None


def read_folder(folder: Path) -> tuple[Arrays, Arrays]:
    """Reads the four idx files of `folder` as (x_train, y_train), (x_test, y_test).

    Raises ValueError if a file is damaged or images and labels differ in number.
    """
    train_images, train_labels, test_images, test_labels = (read_idx(folder / name) for name in IDX_FILES)
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{folder}: images (N, 28, 28) and labels (N,) are expected, got {images.shape} and {labels.shape}"
            )
    return (train_images, train_labels), (test_images, test_labels)


def read_idx(path: Path) -> np.ndarray:
    """Reads one gzip-compressed idx file of unsigned bytes (the format of MNIST) as a uint8 array.

    Header: two zero bytes, 0x08 (unsigned byte), the rank, then each size as a big-endian 32-bit integer.
    Raises ValueError naming the file if the header or the length is wrong.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: a complete gzip file is expected: {error}") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path}: an idx file of unsigned bytes starts with 00 00 08, got {content[:3].hex(' ')}")
    rank = content[3]
    header = 4 + 4 * rank
    if len(content) < header:
        raise ValueError(f"{path}: rank {rank} is announced, the file ends within its {rank} sizes")
    shape = struct.unpack(f">{rank}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise ValueError(f"{path}: shape {shape} is announced, the file has {len(content) - header} values")
    # A copy, since frombuffer's array cannot be written to.
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy()
