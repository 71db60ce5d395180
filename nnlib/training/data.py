"""Samples in, batches out: arrays and tensors, or a DataLoader, in an order that can be taken up again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch

from nnlib import random
from nnlib.calling import tensor_of
from nnlib.checks import positive_integer

Array = np.ndarray | torch.Tensor
# One array, or several for a model with several inputs.
Inputs = Array | Sequence[Array]
InputTensors = torch.Tensor | tuple[torch.Tensor, ...]


class Batch(NamedTuple):
    """Some samples: inputs, targets (None where nobody asks for them), one weight a sample or None."""

    x: InputTensors
    y: torch.Tensor | None
    weight: torch.Tensor | None

    def __len__(self) -> int:
        return len(first_of(self.x))

    def to(self, device: torch.device) -> Batch:
        """The batch on this device."""
        x = tuple(part.to(device) for part in self.x) if isinstance(self.x, tuple) else self.x.to(device)
        y, weight = (None if part is None else part.to(device) for part in (self.y, self.weight))
        return Batch(x, y, weight)


def first_of(x: InputTensors) -> torch.Tensor:
    """The input, or the first of several."""
    return x[0] if isinstance(x, tuple) else x


def is_arrays(x: Any) -> bool:
    """Whether x is an array or a tensor, or a list or tuple of them."""
    if isinstance(x, (list, tuple)):
        return len(x) > 0 and all(isinstance(part, (np.ndarray, torch.Tensor)) for part in x)
    return isinstance(x, (np.ndarray, torch.Tensor))


def is_loader(x: Any) -> bool:
    """Whether x is something to iterate over that gives batches: no array, and no list of numbers."""
    if is_arrays(x) or not isinstance(x, Iterable):
        return False
    return not isinstance(x, (list, tuple)) or _holds_arrays(x)


def _holds_arrays(x: Any) -> bool:
    if isinstance(x, (list, tuple)):
        return any(_holds_arrays(one) for one in x)
    return isinstance(x, (np.ndarray, torch.Tensor))


def to_tensor(argument: str, values: Any, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor of `values`, without a copy where it can be.

    dtype: what floating-point values are converted to (x / 255.0 is float64 in NumPy, a model float32); others
    keep their own. Raises TypeError if it is no array of numbers, ValueError if it has no rows.
    """
    if isinstance(values, np.ndarray):
        tensor = tensor_of(argument, values)
    elif isinstance(values, torch.Tensor):
        tensor = values
    else:
        given = type(values).__name__
        hint = {"list": "; np.array(...) makes one of lists", "tuple": "; np.array(...) makes one of tuples"}.get(
            given, ""
        )
        if isinstance(values, torch.utils.data.Dataset):
            hint = "; torch.utils.data.DataLoader reads a Dataset"
        raise TypeError(f"{argument}: a NumPy array or a torch tensor is expected, got {given}{hint}")
    if tensor.dim() == 0 or len(tensor) == 0:
        raise ValueError(f"{argument}: at least one sample is expected, got shape {tuple(tensor.shape)}")
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def to_inputs(argument: str, values: Any, *, dtype: torch.dtype | None = None) -> InputTensors:
    """The same for one input or a list or tuple of them. Raises ValueError if their rows differ in number."""
    if not isinstance(values, (list, tuple)) or not is_arrays(values):
        return to_tensor(argument, values, dtype=dtype)
    parts = tuple(to_tensor(f"{argument}[{i}]", part, dtype=dtype) for i, part in enumerate(values))
    if len({len(part) for part in parts}) > 1:
        counts = ", ".join(str(len(part)) for part in parts)
        raise ValueError(f"{argument}: all inputs must have the same number of samples, got {counts}")
    return parts


def check_lengths(x: InputTensors, other: Array, names: str = "x and y") -> None:
    """Raises ValueError if x and another array have different numbers of rows."""
    if len(first_of(x)) != len(other):
        raise ValueError(f"{names} must have the same number of samples, got {len(first_of(x))} and {len(other)}")


def split_tail(parts: Sequence[Any], share: float) -> tuple[list[Any], list[Any]]:
    """Cuts the last `share` of the rows off for validation, before any shuffling, as Keras does.

    parts: [x, y, weights or None], where x may be several arrays. share: in (0, 1). Returns the parts for training
    and for validation. Raises ValueError if either is empty.
    """
    if isinstance(share, bool) or not isinstance(share, Real) or not 0 < share < 1:
        raise ValueError(f"validation_split: a number between 0 and 1 is expected, got {share!r}")
    count = len(parts[1])
    cut = int(count * (1 - share))
    if cut in (0, count):
        raise ValueError(f"validation_split: {share} of {count} samples leaves one part empty")

    def rows(part: Any, where: slice) -> Any:
        if part is None:
            return None
        return [entry[where] for entry in part] if isinstance(part, (list, tuple)) else part[where]

    return [rows(part, slice(cut)) for part in parts], [rows(part, slice(cut, None)) for part in parts]


def class_weights(
    weights: Mapping[int, float], targets: torch.Tensor, output_shape: Sequence[int | None]
) -> torch.Tensor:
    """One weight a sample, or a step, from its class; classes that are not named weigh 1.

    weights: class number -> weight, of Python's or NumPy's numbers. targets: class numbers in the shape of the output
    without its last axis, or of the output, (N, 1) or one row of probabilities a sample. output_shape: batch first.

    Raises ValueError for keys that are no classes, for weights that are no finite numbers, and for rows of
    probabilities of several steps.
    """
    kinds = (Integral, Real)
    if not isinstance(weights, Mapping) or any(
        isinstance(one, bool) or not isinstance(one, kind) for pair in weights.items() for one, kind in zip(pair, kinds)
    ):
        raise ValueError(f"class_weight: a dictionary from class numbers to weights is expected, got {weights!r}")
    classes = None if output_shape[-1] == 1 else output_shape[-1]
    for label, weight in weights.items():
        if classes is not None and not 0 <= label < classes:
            raise ValueError(f"class_weight: classes from 0 to {classes - 1} are expected, got {label}")
        if not math.isfinite(weight):
            raise ValueError(f"class_weight: finite weights are expected, got {weight} for class {label}")
    labels = targets
    if targets.dim() == len(output_shape) > 1:
        if targets.dim() > 2:
            shape = tuple(targets.shape)
            raise ValueError(f"class_weight: one class a sample is expected, got targets of shape {shape}")
        labels = targets.argmax(-1) if targets.shape[-1] > 1 else targets.squeeze(-1)
    labels = labels.long()
    result = torch.ones(labels.shape, device=labels.device)
    for label, weight in weights.items():
        result[labels == label] = float(weight)
    return result


class ArrayBatches:
    """Batches of the rows of tensors. A new order each pass if shuffled, from torch's generator.

    y and weight may be None. Raises ValueError if batch_size is below 1.
    """

    def __init__(
        self,
        x: InputTensors,
        y: torch.Tensor | None = None,
        weight: torch.Tensor | None = None,
        *,
        batch_size: int,
        shuffle: bool = False,
    ) -> None:
        batch_size = positive_integer("batch_size", batch_size)
        self.samples: int | None = len(first_of(x))
        self.batch_size: int | None = batch_size
        self.steps: int | None = -(-len(first_of(x)) // batch_size)
        self._parts = (x, y, weight)
        self._shuffle = shuffle

    def open(self, skip: int = 0) -> Iterator[Batch]:
        """One pass, from batch number `skip` on."""
        x, y, weight = self._parts
        assert self.samples is not None and self.batch_size is not None
        order = torch.randperm(self.samples).to(first_of(x).device) if self._shuffle else None
        # Drawn at once, before anything else draws, so that a pass can be opened again from the same seed.
        return self._batches(order, skip * self.batch_size, self.samples, self.batch_size)

    def _batches(self, order: torch.Tensor | None, first: int, samples: int, size: int) -> Iterator[Batch]:
        x, y, weight = self._parts
        for start in range(first, samples, size):
            rows = slice(start, start + size) if order is None else order[start : start + size]
            yield Batch(
                tuple(part[rows] for part in x) if isinstance(x, tuple) else x[rows],
                None if y is None else y[rows],
                None if weight is None else weight[rows],
            )


class LoaderBatches:
    """Batches from a torch DataLoader or another thing to iterate over that gives x, (x, y) or (x, y, weight).

    convert: what makes a Batch of such an item. Its length and batch size are read off it where it has them.
    """

    def __init__(self, loader: Iterable[Any], convert: Callable[[Any], Batch]) -> None:
        self._loader = loader
        self._convert = convert
        length = getattr(loader, "__len__", None)
        self.steps: int | None = None
        if length is not None:
            try:
                self.steps = length()
            except TypeError:  # a DataLoader of an iterable data set has the method, and no length
                self.steps = None
        size = getattr(loader, "batch_size", None)
        self.batch_size: int | None = size if isinstance(size, int) else None
        self.samples: int | None = None
        if self.steps is not None and self.batch_size is not None:
            self.samples = self.steps * self.batch_size
            if isinstance(loader, torch.utils.data.DataLoader) and not loader.drop_last:
                self.samples = min(self.samples, len(loader.sampler))  # type: ignore[arg-type]

    def open(self, skip: int = 0) -> Iterator[Batch]:
        """One pass, from batch number `skip` on; those before are read and dropped."""
        items = iter(self._loader)
        for _ in range(skip):
            next(items, None)
        return map(self._convert, items)


Source = ArrayBatches | LoaderBatches


class Stream:
    """Batches epoch by epoch. Without steps an epoch is one pass over the source; with steps it is so many batches, and
    the next epoch goes on where it ended, as in Keras.

    Its state says where it is: the state of the generators when the pass was opened, and how many batches ago.
    argument: what the caller calls `steps`, for messages.
    """

    def __init__(self, source: Source, steps: int | None, device: torch.device, *, argument: str = "steps") -> None:
        self.source = source
        self.steps = None if steps is None else positive_integer(argument, steps)
        self._device = device
        self._pass: Iterator[Batch] | None = None
        self._opened_at: dict[str, Any] | None = None
        self._position = 0

    @property
    def steps_expected(self) -> int | None:
        """How many batches an epoch has, where that is known."""
        return self.steps or self.source.steps

    @property
    def samples_expected(self) -> int | None:
        """How many samples an epoch has, where that is known."""
        if self.steps is None or self.steps == self.source.steps:
            return self.source.samples
        return None if self.source.batch_size is None else self.steps * self.source.batch_size

    def epoch(self, done: int = 0) -> Iterator[Batch]:
        """The batches of an epoch of which `done` are done. Raises ValueError if the source gives none."""
        while self.steps is None or done < self.steps:
            if self._pass is None:
                self._opened_at = random.get_state()
                self._pass = self.source.open()
            batch = next(self._pass, None)
            if batch is None:
                if self._position == 0:
                    raise ValueError("x: at least one batch is expected in each pass, got none; can it be read again?")
                self._pass, self._position = None, 0
                if self.steps is None:
                    return
                continue
            self._position += 1
            done += 1
            yield batch.to(self._device)

    def rewind(self) -> None:
        """Has the next epoch begin at the source's beginning."""
        self._pass, self._position = None, 0

    def state(self) -> dict[str, Any]:
        """What set_state takes."""
        return {"position": self._position, "opened_at": self._opened_at if self._position else None}

    def set_state(self, state: dict[str, Any]) -> None:
        """Opens the pass of this state anew and goes to its position. It leaves the generators elsewhere."""
        self._pass, self._position, self._opened_at = None, state["position"], state["opened_at"]
        if self._opened_at is not None:
            random.set_state(self._opened_at)
            self._pass = self.source.open(self._position)
