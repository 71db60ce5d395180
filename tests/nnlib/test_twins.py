"""The article's three programs beside twins of torch's ops: same weights, same batches, the loss of each of 50 steps.

The twin runs in float64 too, which says what float32's rounding does to its losses by then; ours may be as far off.
"""

from __future__ import annotations

import re
import sysconfig
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import nnlib
from nnlib import layers, models
from tests.nnlib import transformer_twin

STEPS = 50
Batches = list[tuple[torch.Tensor, torch.Tensor]]


def losses(parameters, logits: Callable[[torch.Tensor], torch.Tensor], batches: Batches) -> list[float]:
    """The loss of each step of Adam, by torch."""
    optimizer = torch.optim.Adam(parameters, lr=1e-3, eps=1e-7)
    found = []
    for x, y in batches:
        loss = F.cross_entropy(logits(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def our_losses(model: models.Model, batches: Batches) -> list[float]:
    """The same by the model's own training."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-7)
    model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return [model.train_on_batch(x, y)[0] for x, y in batches]


def assert_within_noise(ours: list[float], theirs: list[float], exact: list[float]) -> None:
    """Our losses stray no further from the float64 twin's than twice what torch's float32 does, up to each step."""
    strayed = np.maximum.accumulate(np.abs(np.subtract(theirs, exact)))
    allowed = 2 * strayed + 4 * np.spacing(np.float32(np.max(exact)))
    error = np.abs(np.subtract(ours, exact))
    worst = int(np.argmax(error / allowed))
    assert (error <= allowed).all(), f"step {worst}: {ours[worst]}, torch {theirs[worst]}, in float64 {exact[worst]}"
    assert np.mean(exact[-10:]) < 0.98 * np.mean(exact[:5]), "it must have learned something by then"


@pytest.fixture(scope="module")
def images() -> Batches:
    (x, y), _ = nnlib.datasets.fashion_mnist(whole=False)
    order = np.random.default_rng(0).permutation(len(x))[: 32 * STEPS]
    pictures = torch.from_numpy((x[order, :, :, None] / 255).astype(np.float32))
    return list(zip(pictures.split(32), torch.from_numpy(y[order]).long().split(32), strict=True))


PACKAGES = ("asyncio", "email", "json", "logging", "multiprocessing", "unittest", "xml", "http", "ctypes", "importlib")


@pytest.fixture(scope="module")
def texts() -> Batches:
    """Rows of 50 tokens of the standard library's source, and which of ten packages they are from."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    words = {}
    for package in PACKAGES:
        files = sorted((folder / package).rglob("*.py"))
        source = "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
        words[package] = re.findall(r"\w+|[^\w\s]", source)[:20000]
    counts = Counter(word for found in words.values() for word in found)
    vocabulary = {word: number + 1 for number, (word, _) in enumerate(counts.most_common(9999))}
    rows, labels = [], []
    for label, found in enumerate(words.values()):
        tokens = [vocabulary.get(word, 0) for word in found]
        pieces = [tokens[start : start + 50] for start in range(0, len(tokens) - 49, 50)]
        rows += pieces
        labels += [label] * len(pieces)
    order = np.random.default_rng(0).permutation(len(rows))[: 32 * STEPS]
    x, y = torch.tensor(rows)[order], torch.tensor(labels)[order]
    assert len(x) == 32 * STEPS
    return list(zip(x.split(32), y.split(32), strict=True))


def as_double(batches: Batches) -> Batches:
    return [(x.double() if x.is_floating_point() else x, y) for x, y in batches]


def compare_with_converted(model: models.Sequential, batches: Batches) -> None:
    """Against nnlib.to_torch(model), whose last module is the softmax."""
    found = []
    for dtype in (torch.float32, torch.float64):
        twin = nnlib.to_torch(model)[:-1].to(dtype).train()
        for name, parameter in twin.named_parameters():
            # torch's LSTM has two biases for our one, which would learn twice as fast.
            parameter.requires_grad_("bias_hh" not in name)
        given = batches if dtype == torch.float32 else as_double(batches)
        found.append(losses([p for p in twin.parameters() if p.requires_grad], twin, given))
    assert_within_noise(our_losses(model, batches), *found)


def test_cnn(images):
    nnlib.set_seed(0)
    # fmt: off
    model = models.Sequential()
    model.add(layers.Conv2D(32, (3, 3), activation='relu', input_shape=(28, 28, 1)))
    model.add(layers.MaxPooling2D((2, 2)))
    model.add(layers.Conv2D(64, (3, 3), activation='relu'))
    model.add(layers.MaxPooling2D((2, 2)))
    model.add(layers.Conv2D(64, (3, 3), activation='relu'))
    model.add(layers.Flatten())
    model.add(layers.Dense(64, activation='relu'))
    model.add(layers.Dense(10, activation='softmax'))
    # fmt: on
    compare_with_converted(model, images)


def test_rnn(texts):
    # Not 0: from there an activation comes so near to ReLU's kink that rounding decides on which side it falls, and
    # torch itself, started with weights one unit in the last place apart, is 8e-3 off by the last step.
    nnlib.set_seed(1)
    # fmt: off
    model = models.Sequential()
    model.add(layers.Embedding(input_dim=10000, output_dim=64, input_length=50))
    model.add(layers.LSTM(64, return_sequences=True))
    model.add(layers.LSTM(32))
    model.add(layers.Dense(64, activation='relu'))
    model.add(layers.Dense(10, activation='softmax'))
    # fmt: on
    compare_with_converted(model, texts)


@pytest.mark.parametrize("positions", ["relative", "sinusoidal"])
def test_transformer(positions, texts):
    """The third program with a small d_model and no dropout, whose draws torch's ops do not share."""
    nnlib.set_seed(0)
    model = models.TransformerModel(num_layers=2, d_model=64, num_heads=4, dff=128,
        input_vocab_size=10000, target_vocab_size=10, position_encoding_type=positions, rate=0.0)  # fmt: skip
    found = []
    for dtype in (torch.float32, torch.float64):
        state = {name: p.detach().to(dtype).clone().requires_grad_() for name, p in model.named_parameters()}

        def logits(x, state=state):
            return transformer_twin.logits(state, x, num_layers=2, num_heads=4, positions=positions)

        found.append(losses(list(state.values()), logits, texts))
    assert_within_noise(our_losses(model, texts), *found)
