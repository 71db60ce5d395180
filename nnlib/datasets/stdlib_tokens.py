"""A text set that every machine has: which package of Python's standard library a stretch of source comes from."""

from __future__ import annotations

import functools
import hashlib
import io
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

#: The packages, in the order of their labels: those that every supported Python has in several files.
PACKAGES = (
    "asyncio",
    "ctypes",
    "email",
    "http",
    "importlib",
    "logging",
    "multiprocessing",
    "unittest",
    "urllib",
    "xml",
)
VOCABULARY = 10_000
LENGTH = 50
#: Numbers with a meaning of their own: 0 is for padding (there is none here), 1 for words outside of the vocabulary.
UNKNOWN = 1
FIRST_WORD = 2
#: At most so many stretches of one package in a half, so that the largest does not decide everything.
MOST = {"train": 1200, "test": 300}
#: The least share of a package's tokens that is in the files of the test half.
TEST_SHARE = 0.2

Half = tuple[np.ndarray, np.ndarray]

_SKIPPED = {tokenize.ENCODING, tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER}
# The parts of an f-string from Python 3.12 on; what stands in its braces are tokens as elsewhere.
_SKIPPED |= {getattr(tokenize, name) for name in ("FSTRING_MIDDLE", "FSTRING_END") if hasattr(tokenize, name)}
_NAMED = {
    tokenize.STRING: "<string>",
    tokenize.NUMBER: "<number>",
    tokenize.NEWLINE: "<newline>",
    tokenize.INDENT: "<indent>",
    tokenize.DEDENT: "<dedent>",
}
if hasattr(tokenize, "FSTRING_START"):
    _NAMED[tokenize.FSTRING_START] = "<string>"


def words(source: str) -> list[str]:
    """The tokens of Python source as words: names and operators as they are, other kinds by name; no comments.

    Raises ValueError if it is no Python source.
    """
    found = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type not in _SKIPPED:
                found.append(_NAMED.get(token.type, token.string))
    except (tokenize.TokenError, SyntaxError) as error:
        raise ValueError(f"source: Python source is expected, got {error}") from None
    return found


def encode(found: list[str], vocabulary: dict[str, int]) -> np.ndarray:
    """Words as rows of LENGTH token numbers, int64 (N, LENGTH); a rest shorter than a row is left out."""
    numbers = np.array([vocabulary.get(word, UNKNOWN) for word in found], np.int64)
    rows = len(numbers) // LENGTH
    return numbers[: rows * LENGTH].reshape(rows, LENGTH)


def stdlib_source() -> tuple[Half, Half]:
    """Stretches of 50 tokens of Python source and the package of the standard library that each comes from.

    Made from the running Python's own library, so the numbers differ from version to version and are the same at every
    call. No file has stretches in both halves. The vocabulary is that of the training half, see `vocabulary`.

    Returns:
        (x_train, y_train), (x_test, y_test): tokens int64 (N, 50) in [0, 10000), 0 for padding (which does not occur)
        and 1 for words that are not in the vocabulary; labels int64 (N,), places in PACKAGES.

    Raises FileNotFoundError if this Python comes without the source of its library.
    """
    train, test = _halves()
    found = vocabulary()
    return _rows(train, found, "train"), _rows(test, found, "test")


@functools.cache
def vocabulary() -> dict[str, int]:
    """The number of each word: the commonest of the training half, commonest first."""
    counts: Counter[str] = Counter()
    for files in _halves()[0]:
        for file in files:
            counts.update(file)
    # Equally common words in the order of the alphabet: nothing is left to the order of reading.
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: VOCABULARY - FIRST_WORD]
    return {word: place for place, (word, _) in enumerate(common, FIRST_WORD)}


@functools.cache
def _halves() -> tuple[list[list[list[str]]], list[list[list[str]]]]:
    """(train, test): for each package its files, each as words."""
    train, test = [], []
    for package in PACKAGES:
        files = [words(source) for source in _sources(package)]
        total, taken, inside = sum(map(len, files)), 0, 0
        while taken < TEST_SHARE * total and inside < len(files) - 1:
            taken += len(files[inside])
            inside += 1
        test.append(files[:inside])
        train.append(files[inside:])
    return train, test


def _sources(package: str) -> Iterator[str]:
    """The text of a package's files, without its tests, in an order that has nothing to do with their names."""
    folder = Path(sysconfig.get_path("stdlib")) / package
    found = [p for p in folder.rglob("*.py") if not {"test", "tests"} & set(p.relative_to(folder).parts)]
    if len(found) < 2:
        rule = f"the source of {package} is expected in {folder}"
        raise FileNotFoundError(f"stdlib_source: {rule}, got {len(found)} files")

    def mixed(path: Path, folder: Path = folder) -> str:
        return hashlib.sha256(path.relative_to(folder).as_posix().encode()).hexdigest()

    for path in sorted(found, key=mixed):
        with tokenize.open(path) as file:  # which reads the encoding that the file declares
            yield file.read()


def _rows(packages: list[list[list[str]]], numbers: dict[str, int], half: str) -> Half:
    tokens, labels = [], []
    for label, files in enumerate(packages):
        rows = np.concatenate([encode(file, numbers) for file in files])
        if len(rows) > MOST[half]:  # evenly from all of them
            rows = rows[np.arange(MOST[half]) * len(rows) // MOST[half]]
        tokens.append(rows)
        labels.append(np.full(len(rows), label, np.int64))
    x, y = np.concatenate(tokens), np.concatenate(labels)
    # So that the first rows, or the last ones, are a sample of them all; the same order at every call.
    order = np.random.default_rng(0).permutation(len(x))
    return x[order], y[order]
