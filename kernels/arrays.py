"""Arrays of any library in, the same kind out: what is known of an array without reading it, and zero-copy views.

torch and CuPy are never imported here: an array of theirs can only arrive once its library is loaded.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

#: The kinds of array that the library takes, by the top-level module of their type.
KINDS = ("numpy", "torch", "cupy")


@dataclass(frozen=True)
class ArraySpec:
    """Shape, element type, device and strides of an array, hashable.

    Attributes:
        shape: sizes of the dimensions.
        dtype: NumPy's name of the element type ("float32", "bfloat16", ...).
        device: "cpu", "cuda:0", ...
        strides: distances between neighbours in elements; None for a C-contiguous array.
    """

    shape: tuple[int, ...]
    dtype: str
    device: str = "cpu"
    strides: tuple[int, ...] | None = None

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        total = 1
        for extent in self.shape:
            total *= extent
        return total

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.itemsize

    @property
    def channels_last(self) -> bool:
        """Whether a 4-d array lies in memory as (N, H, W, C).

        The ambiguous cases (C = 1, or H = W = 1) are decided as torch decides them: by the strides, and for the
        contiguous one.
        """
        if self.ndim != 4 or self.strides is None:
            return False
        least = 0
        for axis in (1, 3, 2, 0):
            if self.strides[axis] < least or (axis == 0 and least == self.strides[1]):
                return False
            least = self.strides[axis] * max(self.shape[axis], 1)
        return self.strides[1] > 0

    def like(self, shape: tuple[int, ...], *, dtype: str | None = None, channels_last: bool = False) -> ArraySpec:
        """A fresh array's spec on this device: contiguous, or channels-last where asked for."""
        strides = channels_last_strides(shape) if channels_last else None
        return ArraySpec(tuple(shape), dtype or self.dtype, self.device, strides)


def channels_last_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of an (N, C, H, W) array that lies in memory as (N, H, W, C)."""
    _, channels, height, width = shape
    row = width * channels
    return (height * row, 1, row, channels)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a C-contiguous array."""
    strides: list[int] = []
    step = 1
    for extent in reversed(shape):
        strides.append(step)
        step = step * (extent if extent > 1 else 1) if isinstance(extent, int) else step * extent
    return tuple(reversed(strides))


# ----- keys: what of an array decides how a call runs, as cheaply as Python can say it -----------------------------


def _key_numpy(array: np.ndarray) -> Hashable:
    return array.shape, array.strides, array.dtype


def _key_none(_: None) -> Hashable:
    return None


def _torch_key(tensor_type: type) -> Callable[[Any], Hashable]:
    """The key function for torch.Tensor and Parameter; a subclass (a fake tensor, say) never shares their keys."""
    torch = sys.modules["torch"]
    is_grad_enabled = torch.is_grad_enabled
    mark = None if tensor_type in (torch.Tensor, torch.nn.Parameter) else tensor_type

    def key_torch(tensor: Any) -> Hashable:
        grad = tensor.requires_grad and is_grad_enabled()
        return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, grad, mark

    return key_torch


def _key_cupy(array: Any) -> Hashable:
    return array.shape, array.strides, array.dtype, array.device.id


_KEYS: dict[type, Callable[[Any], Hashable]] = {np.ndarray: _key_numpy, type(None): _key_none}


def key(array: Any) -> Hashable:
    """A cheap hashable key: equal for two arrays on which the same call runs the same way. None has one too.

    Raises:
        TypeError: it is no array.
    """
    make = _KEYS.get(type(array))
    if make is None:
        array_kind = kind(array)
        if array_kind is None:
            raise TypeError(f"no key for {type(array).__name__}")
        make = _KEYS[type(array)] = {
            "numpy": lambda: _key_numpy,
            "torch": lambda: _torch_key(type(array)),
            "cupy": lambda: _key_cupy,
        }[array_kind]()
    return make(array)


def wants_grad(array: Any) -> bool:
    """Whether torch records operations on this array: it requires a gradient, and recording is on."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor) and array.requires_grad and torch.is_grad_enabled()


def kind(array: Any) -> str | None:
    """ "numpy", "torch" or "cupy"; None for anything that is not such an array."""
    if isinstance(array, np.ndarray):
        return "numpy"
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return "torch"
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return "cupy"
    return None


def spec(array: Any) -> ArraySpec:
    """The spec of an array of any kind that :func:`kind` knows."""
    if isinstance(array, np.ndarray):
        strides = None
        if not array.flags.c_contiguous:
            item = array.itemsize or 1
            strides = tuple(step // item for step in array.strides)
        return ArraySpec(array.shape, array.dtype.name, "cpu", strides)
    if kind(array) == "torch":
        strides = None if array.is_contiguous() else tuple(array.stride())
        return ArraySpec(tuple(array.shape), str(array.dtype).removeprefix("torch."), str(array.device), strides)
    strides = None if array.flags.c_contiguous else tuple(step // array.itemsize for step in array.strides)
    return ArraySpec(array.shape, array.dtype.name, f"cuda:{array.device.id}", strides)


def numpy_view(array: Any) -> np.ndarray:
    """A CPU array of any kind as NumPy, without a copy."""
    if isinstance(array, np.ndarray):
        return array
    view: np.ndarray = array.numpy(force=True)
    return view


def laid_out(array: np.ndarray, form: ArraySpec | None) -> np.ndarray:
    """`array` in the memory layout that `form` declares; copied only where it lies differently."""
    if form is None or form.strides is None:
        return np.ascontiguousarray(array).reshape(array.shape)
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def empty_numpy(form: ArraySpec, fill: float | None = None) -> np.ndarray:
    """A fresh NumPy array of the given spec (its layout included), filled with `fill` where given."""
    order = form.shape
    if form.strides is not None:
        n, c, h, w = form.shape
        order = (n, h, w, c)
    fresh = np.empty(order, form.dtype) if fill is None else np.full(order, fill, form.dtype)
    return fresh if form.strides is None else fresh.transpose(0, 3, 1, 2)
