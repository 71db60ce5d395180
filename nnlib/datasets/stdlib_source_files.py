"""A text set that every machine has: which package of the standard library does a stretch of Python source come from?

It is read out of the running interpreter's own library, whose files differ a little from version to version of Python,
and so do the samples; on one version they are always the same.
"""

from __future__ import annotations

import functools
import io
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]

#: The classes: packages of some size that are in every Python from 3.10 on, also where tests and tkinter are left out.
PACKAGES = (
    "asyncio",
    "email",
    "encodings",
    "http",
    "importlib",
    "logging",
    "multiprocessing",
    "unittest",
    "urllib",
    "xml",
)
LENGTH = 50
VOCABULARY = 10_000
#: What is no token of its own: nothing (free for padding), a token that is not in the vocabulary, a long string.
PADDING, UNKNOWN, LONG_STRING = "<padding>", "<unknown>", "<string>"

_LONGEST = 30
_TEST_SHARE = 0.27
# Overlapping stretches make more of the training files; those of the test do not overlap.
_TRAINING_STRIDE = 10
_LEFT_OUT = (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER)


def stdlib_source() -> tuple[Arrays, Arrays]:
    """Loads the set as (x_train, y_train), (x_test, y_test), like keras.datasets.reuters.load_data().

    x: tokens int64 (N, 50) from 1 to 9,999, see `vocabulary`; 0 is free for padding. y: labels int64 (N,) from 0 to 9,
    the index in PACKAGES. Every class has as many samples as any other, in training some 1,500 and in the test some
    100, in an order that is mixed, once and for all. No file is in both halves. It takes about two seconds, the next
    time none, and no network.

    Raises FileNotFoundError if the interpreter has no source of one of the packages.
    """
    numbers = {token: number for number, token in enumerate(vocabulary())}
    halves = []
    for half, stride in zip(_halves(), (_TRAINING_STRIDE, LENGTH), strict=True):
        samples = [
            np.concatenate([stretches(encode(tokens, numbers), stride) for tokens in files]) for files in half.values()
        ]
        count = min(len(rows) for rows in samples)
        x = np.concatenate([rows[np.linspace(0, len(rows) - 1, count).astype(int)] for rows in samples])
        y = np.repeat(np.arange(len(samples)), count)
        order = np.random.default_rng(0).permutation(len(x))
        halves.append((x[order], y[order]))
    return halves[0], halves[1]


@functools.lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """The tokens by their numbers, 10,000 at most: padding, unknown, and the most frequent of the training files."""
    counts: Counter[str] = Counter()
    for files in _halves()[0].values():
        for tokens in files:
            counts.update(tokens)
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    return (PADDING, UNKNOWN, *ranked[: VOCABULARY - 2])


def tokens_of(source: str) -> list[str]:
    """The tokens of Python source: names, numbers, operators, strings, and the ends and indents of lines.

    Comments are left out, and strings of more than 30 characters, docstrings above all, are one and the same token:
    what they say is no longer Python. Raises ValueError if the source is not Python.
    """
    found = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type in _LEFT_OUT:
                continue
            if token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
                found.append(f"<{tokenize.tok_name[token.type].lower()}>")
            else:
                found.append(token.string if len(token.string) <= _LONGEST else LONG_STRING)
    except (tokenize.TokenError, SyntaxError) as error:
        raise ValueError(f"source: Python is expected: {error}") from error
    return found


def encode(tokens: Sequence[str], numbers: Mapping[str, int]) -> np.ndarray:
    """The tokens' numbers, int64 (len(tokens),). numbers: token -> number, from `vocabulary`."""
    return np.array([numbers.get(token, numbers[UNKNOWN]) for token in tokens], dtype=np.int64)


def stretches(numbers: np.ndarray, stride: int = LENGTH) -> np.ndarray:
    """The stretches of 50 numbers that begin at every stride-th, (N, 50); what is left at the end is dropped."""
    if len(numbers) < LENGTH:
        return np.empty((0, LENGTH), dtype=numbers.dtype)
    return np.lib.stride_tricks.sliding_window_view(numbers, LENGTH)[::stride].copy()


@functools.lru_cache(maxsize=1)
def _halves() -> tuple[dict[str, list[list[str]]], dict[str, list[list[str]]]]:
    """The tokens of each file of each package: of the training half, and of the test half."""
    root = Path(sysconfig.get_paths()["stdlib"])
    training: dict[str, list[list[str]]] = {}
    test: dict[str, list[list[str]]] = {}
    for package in PACKAGES:
        files = {}
        for path in sorted((root / package).rglob("*.py")):
            if not {"test", "tests"} & set(path.relative_to(root).parts):
                with tokenize.open(path) as file:  # it finds the encoding out
                    files[path.relative_to(root).as_posix()] = tokens_of(file.read())
        total = sum(len(tokens) for tokens in files.values())
        if not total:
            raise FileNotFoundError(f"stdlib_source: the source of {package} is expected in {root}, got none")
        training[package], test[package] = [], []
        room = _TEST_SHARE * total
        # The largest files that fit, so that the share is met with a few.
        for name in sorted(files, key=lambda name: (-len(files[name]), name)):
            fits = len(files[name]) <= room
            (test if fits else training)[package].append(files[name])
            room -= len(files[name]) if fits else 0
    return training, test
