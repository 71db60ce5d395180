"""What a trained model says: of files, and as a picture of some samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnlib.datasets.stdlib_source_files import LENGTH, encode, stretches, tokens_of
from nnlib.models import Model
from nnlib.programs import IMAGES, PROGRAMS, TEXT
from nnlib.training.data import first_of, to_inputs

MISSING_PICTURES = "pictures need the package matplotlib: pip install nnlib-kernels[plot]"


def predict_file(model: Model, path: Path, *, invert: bool = False) -> np.ndarray:
    """The model's probabilities, (classes,), for a file; of a file with several samples, their mean.

    An image model takes a .npy array, uint8 or floating point from 0 to 1, of shape (28, 28), (N, 28, 28) or
    (N, 28, 28, 1), or any image that Pillow reads, which is made grey and 28x28 (invert: a dark thing on a light ground
    is turned round, since the training images are light on black). A text model takes Python source, in stretches of 50
    tokens.

    Raises FileNotFoundError if there is none; ValueError naming the file if it does not fit, or if the model does not
    say how it was trained; ImportError if Pillow is needed and not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: a file is expected, there is none")
    told = told_by(model)
    if told["kind"] == TEXT:
        numbers = {token: number for number, token in enumerate(told["vocabulary"])}
        x = _read_source(path, numbers)
    else:
        x = read_images(path, invert=invert)
        enlarge = PROGRAMS[told["program"]].enlarge
        if enlarge is not None:
            x = enlarge(torch.from_numpy(x)).numpy()
    return model.predict(x, verbose=0).mean(0)


def told_by(model: Model) -> dict[str, Any]:
    """The model's metadata, as `train` saves it. Raises ValueError if it is not there."""
    told = model.metadata
    wanted = {"program", "kind", "classes"} | ({"vocabulary"} if told.get("kind") == TEXT else set())
    if not wanted <= set(told) or told["program"] not in PROGRAMS or told["kind"] not in (IMAGES, TEXT):
        raise ValueError("the model must say how it was trained, as those of `python -m nnlib train` do")
    return told


def read_images(path: Path, *, invert: bool = False) -> np.ndarray:
    """The images of a file as float32 (N, 28, 28, 1) from 0 to 1; see predict_file."""
    if path.suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path}: a .npy array is expected: {error}") from error
        if array.ndim == 2:
            array = array[None]
        if array.ndim == 4 and array.shape[-1] == 1:
            array = array[..., 0]
        if array.ndim != 3 or array.shape[1:] != (28, 28) or not len(array):
            raise ValueError(f"{path}: images of shape (28, 28), (N, 28, 28) or (N, 28, 28, 1), got {array.shape}")
        if array.dtype == np.uint8:
            array = array / np.float32(255)
        if not np.issubdtype(array.dtype, np.floating) or not (array.min() >= 0 and array.max() <= 1):
            raise ValueError(f"{path}: uint8, or numbers from 0 to 1 are expected, got {array.dtype}")
    else:
        array = _read_picture(path)[None]
    array = array.astype(np.float32)
    return (1 - array if invert else array)[..., None]


def _read_picture(path: Path) -> np.ndarray:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ImportError(MISSING_PICTURES) from error
    try:
        with Image.open(path) as image:
            small = image.convert("L").resize((28, 28), Image.Resampling.LANCZOS)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: an image is expected: {error}") from error
    return np.asarray(small, dtype=np.float32) / 255


def _read_source(path: Path, numbers: dict[str, int]) -> np.ndarray:
    try:
        tokens = tokens_of(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: Python source is expected: {error}") from error
    if len(tokens) < LENGTH:
        raise ValueError(f"{path}: at least {LENGTH} tokens of source are expected, got {len(tokens)}")
    return stretches(encode(tokens, numbers))


def best_classes(probabilities: np.ndarray, classes: Sequence[str], count: int = 3) -> str:
    """The likeliest classes with their probabilities: "Sneaker 97.1 %, Sandal 2.0 %, Ankle boot 0.9 %"."""
    order = np.argsort(-probabilities)[:count]
    return ", ".join(f"{classes[number]} {100 * probabilities[number]:.1f} %" for number in order)


def as_source(tokens: Sequence[str], width: int = 80) -> str:
    """Tokens as lines of Python again, as far as they tell; long lines are cut to `width` characters."""
    lines: list[list[str]] = [[]]
    depth = 0
    for token in tokens:
        if token in ("<indent>", "<dedent>"):
            depth = max(depth + (1 if token == "<indent>" else -1), 0)
        elif token == "<newline>":
            lines.append([])
        else:
            lines[-1] = lines[-1] or ["    " * depth]
            lines[-1].append(token)
    texts = ["".join(line[:1]) + " ".join(line[1:]) for line in lines if line]
    return "\n".join(text if len(text) <= width else text[: width - 3] + "..." for text in texts)


def draw_predictions(model: Model, x: Any, y: np.ndarray, path: Path) -> None:
    """Draws some samples of the test half with what the model says of them, right in green and wrong in red.

    x: samples, as the model takes them; y: their labels. path: where the picture goes. Raises ImportError if matplotlib
    is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(MISSING_PICTURES) from error
    told = told_by(model)
    probabilities = model.predict(x, verbose=0)
    columns = 5 if told["kind"] == IMAGES else 2
    rows = -(-len(y) // columns)
    figure = Figure(figsize=(2.0 * columns, 2.4 * rows) if columns == 5 else (11, 1.6 * rows), layout="constrained")
    inputs = first_of(to_inputs("x", x)).numpy()
    for number, axes in enumerate(figure.subplots(rows, columns, squeeze=False).reshape(-1)):
        axes.set_axis_off()
        if number >= len(y):
            continue
        guess, truth = int(probabilities[number].argmax()), int(y[number])
        title = f"{told['classes'][guess]} {100 * probabilities[number, guess]:.0f} %"
        if guess != truth:
            title += f"\nnot {told['classes'][truth]}"
        axes.set_title(title, fontsize=9, color="tab:green" if guess == truth else "tab:red")
        if told["kind"] == IMAGES:
            axes.imshow(inputs[number][..., 0], cmap="gray", vmin=0, vmax=1)
        else:
            text = as_source([told["vocabulary"][token] for token in inputs[number]])
            axes.text(
                0, 1, text, family="monospace", fontsize=6, va="top", transform=axes.transAxes, parse_math=False
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
