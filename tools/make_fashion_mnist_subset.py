"""Makes nnlib/datasets/data/fashion_mnist_subset.npz, the Fashion-MNIST images that travel with the package.

The source is the four idx files of Debian's package `dataset-fashion-mnist` (apt-get install dataset-fashion-mnist),
or any folder with the same four files. The first 800 training and the first 200 test images of each of the ten
classes are kept, in file order, so the result is balanced and the same on every run, byte for byte.

    python tools/make_fashion_mnist_subset.py [--source FOLDER] [--output FILE]
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np

from nnlib.datasets.fashion_mnist_files import CLASS_NAMES, EMBEDDED_FILE, find_source_folder, read_folder

TRAIN_PER_CLASS = 800
TEST_PER_CLASS = 200


def first_of_each_class(images: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` images of each class in file order.

    images: uint8 (N, 28, 28); labels: uint8 (N,). Returns the same two arrays with 10 * count rows.
    Raises ValueError if a class has fewer than `count` images.
    """
    chosen = []
    for index, name in enumerate(CLASS_NAMES):
        rows = np.flatnonzero(labels == index)[:count]
        if len(rows) < count:
            raise ValueError(f"class {index} ({name}): {count} images are wanted, the source has {len(rows)}")
        chosen.append(rows)
    order = np.sort(np.concatenate(chosen))
    return images[order], labels[order]


def write_reproducible_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a compressed .npz with fixed time stamps: numpy.savez would put today's date in every copy."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, buffer.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="folder with the four idx files (default: where Debian puts them)")
    parser.add_argument("--output", type=Path, default=EMBEDDED_FILE, help="file to write (default: %(default)s)")
    arguments = parser.parse_args()
    source = arguments.source or find_source_folder()
    if source is None:
        parser.error("the four idx files were not found: apt-get install dataset-fashion-mnist, or give --source")
    (x_train, y_train), (x_test, y_test) = read_folder(source)
    x_train, y_train = first_of_each_class(x_train, y_train, TRAIN_PER_CLASS)
    x_test, y_test = first_of_each_class(x_test, y_test, TEST_PER_CLASS)
    write_reproducible_npz(
        arguments.output, {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    )
    size = arguments.output.stat().st_size
    print(f"{arguments.output}: {len(x_train)} training and {len(x_test)} test images, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
