"""Arrays of any library in, the same kind out: what is known of an array without reading it, and zero-copy views.

torch and CuPy are not imported here for arrays of theirs, which can only arrive once their library is loaded; but for
other libraries' arrays on a GPU, which are seen as CuPy's or torch's.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
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
    def floating(self) -> bool:
        """Whether the elements are floating-point numbers, the only ones that have gradients."""
        return "float" in self.dtype

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

    @property
    def dense(self) -> bool:
        """Whether the elements fill their memory without gaps or overlaps, in any order of the dimensions."""
        if self.strides is None:
            return True
        expected = 1
        for axis in sorted(range(self.ndim), key=self.strides.__getitem__):
            if self.shape[axis] == 1:
                continue
            if self.strides[axis] != expected:
                return False
            expected = expected * self.shape[axis]
        return True

    @property
    def memory_order(self) -> tuple[int, ...]:
        """The dimensions from the slowest to the fastest in memory: transposed so, a dense array is C-contiguous."""
        if self.strides is None:
            return tuple(range(self.ndim))
        strides = self.strides
        return tuple(sorted(range(self.ndim), key=lambda axis: -strides[axis]))

    def alike(self) -> ArraySpec:
        """A fresh array's spec in this one's shape, and in its strides when they are dense, else contiguous.

        That is the layout of torch's elementwise ops.
        """
        return ArraySpec(self.shape, self.dtype, self.device, self.strides if self.dense else None)

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


def sum_dtype(dtype: str) -> str:
    """The element type in which sums over numbers of `dtype` are taken and kept: float32 for half precision."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


# ----- keys: what of an array decides how a call runs, as cheaply as Python can say it -----------------------------


def _key_numpy(array: np.ndarray) -> Hashable:
    return array.shape, array.strides, array.dtype


def _numpy_key(array_type: type) -> Callable[[Any], Hashable]:
    """The key function for NumPy's arrays; a subclass never shares keys: see `plain`."""
    return _key_numpy if array_type is np.ndarray else lambda array: (array_type, _key_numpy(array))


def _torch_key(tensor_type: type) -> Callable[[Any], Hashable]:
    """The key function for torch.Tensor and Parameter; a subclass (a fake tensor, say) never shares their keys."""
    torch = sys.modules["torch"]
    is_grad_enabled = torch.is_grad_enabled

    def key_tensor(tensor: Any) -> Hashable:
        grad = tensor.requires_grad and is_grad_enabled()
        # A flag is cheaper than the strides or the device that it stands for.
        layout = tensor.is_contiguous() or tensor.stride()
        return tensor.shape, layout, tensor.dtype, tensor.is_cpu or tensor.device, grad

    if tensor_type in (torch.Tensor, torch.nn.Parameter):
        return key_tensor
    return lambda tensor: (tensor_type, key_tensor(tensor))


def _key_cupy(array: Any) -> Hashable:
    return array.shape, array.strides, array.dtype, array.device.id


class _Keys(dict[type, "Callable[[Any], Hashable]"]):
    """The key function of each type of array, found at the first array of the type."""

    def __missing__(self, array_type: type) -> Callable[[Any], Hashable]:
        array_kind = _kind_of(array_type)
        if array_kind is None or issubclass(array_type, np.ma.MaskedArray):  # see `unfit`
            raise TypeError(f"no key for {array_type.__name__}")
        found = {"numpy": _numpy_key, "torch": _torch_key, "cupy": lambda _: _key_cupy}
        make = self[array_type] = found[array_kind](array_type)
        return make


#: ``KEYS[type(array)](array)`` is a cheap hashable key: equal for two arrays on which the same call runs the same way.
#: A TypeError where it is no array.
KEYS = _Keys()


_torch: Any = None


def loaded_torch() -> Any:
    """torch where somebody has imported it, else None.

    sys.modules is asked until torch is there and no longer: torch.compile, which runs through this too, trips over
    modules that come in while it looks that dictionary through.
    """
    global _torch
    if _torch is None:
        _torch = sys.modules.get("torch")
    return _torch


def has_no_memory(array: Any) -> bool:
    """Whether it is a torch tensor without values that kernels could read: a fake one, or one on the meta device."""
    torch = loaded_torch()
    if torch is None or not isinstance(array, torch.Tensor):
        return False
    return array.is_meta or isinstance(array, torch._subclasses.FakeTensor)


def wants_grad(array: Any) -> bool:
    """Whether torch records operations on this array: it requires a gradient, and recording is on."""
    torch = loaded_torch()
    return torch is not None and isinstance(array, torch.Tensor) and array.requires_grad and torch.is_grad_enabled()


def kind(array: Any) -> str | None:
    """ "numpy", "torch" or "cupy"; None for anything that is not such an array."""
    return _kind_of(type(array))


def _kind_of(array_type: type) -> str | None:
    if issubclass(array_type, np.ndarray):
        return "numpy"
    torch = loaded_torch()
    if torch is not None and issubclass(array_type, torch.Tensor):
        return "torch"
    cupy = sys.modules.get("cupy")
    if cupy is not None and issubclass(array_type, cupy.ndarray):
        return "cupy"
    return None


def unfit(array: Any) -> str | None:
    """The rule that an array of one of `KINDS` breaks all the same, and what it is; None where it is fit."""
    if isinstance(array, np.ndarray):
        if not array.dtype.isnative:
            return f"must be in native byte order, got {array.dtype.str}"
        if isinstance(array, np.ma.MaskedArray):
            return "must be an array without a mask (filled() gives one), got a MaskedArray"
        return None
    if kind(array) == "torch" and (array.layout is not loaded_torch().strided or array.is_nested):
        layout = "nested" if array.is_nested else str(array.layout).removeprefix("torch.").lstrip("_")
        return f"must be a dense tensor (to_dense() or to_padded_tensor() gives one), got a {layout} one"
    if kind(array) == "torch" and isinstance(array, loaded_torch().nn.parameter.UninitializedTensorMixin):
        return f"must have a shape and values, got an {type(array).__name__}"
    return None


def plain(array: Any) -> Any:
    """An array of a subclass as one of the library's own type, without a copy, and what `from_dlpack` sees as that.

    What a subclass makes of indices, sums and products is nothing that kernels could follow, so that results would
    depend on which of them runs. All else is left as it is: arrays that are `unfit`, and tensors that torch's
    operations do not read from their memory (`has_own_dispatch`).
    """
    if isinstance(array, np.ndarray):
        return array if type(array) is np.ndarray or isinstance(array, np.ma.MaskedArray) else np.asarray(array)
    if kind(array) != "torch":
        return from_dlpack(array)
    torch = loaded_torch()
    if type(array) in (torch.Tensor, torch.nn.Parameter) or has_own_dispatch(array) or unfit(array) is not None:
        return array
    with torch._C.DisableTorchFunctionSubclass():
        return array.as_subclass(torch.Tensor)


def has_own_dispatch(tensor: Any) -> bool:
    """Whether a torch tensor's class has torch's operations done its own way, perhaps on tensors that it holds."""
    return type(tensor).__torch_dispatch__ is not loaded_torch().Tensor.__torch_dispatch__


def from_dlpack(array: Any) -> Any:
    """An array of a library that is none of `KINDS`, seen without a copy by DLPack's protocol; all else as it is.

    On a CUDA device it is seen as CuPy's, where CuPy is not installed as torch's; on the CPU as NumPy's. An array on
    any other device is left, and so is one where its device has neither library.
    """
    # Of the type, as Python looks up protocols: a class that is handed over in place of an array has the method too.
    if not hasattr(type(array), "__dlpack_device__") or kind(array) is not None:
        return array
    device = int(array.__dlpack_device__()[0])
    for name in ("numpy",) if device in _DLPACK_CPU else ("cupy", "torch") if device in _DLPACK_CUDA else ():
        if name in sys.modules or find_spec(name) is not None:
            return import_module(name).from_dlpack(array)
    return array


#: DLPack's numbers of devices whose memory the CPU reads, and that a GPU of NVIDIA's does (managed memory with it).
_DLPACK_CPU, _DLPACK_CUDA = (1, 3), (2, 13)


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


def _from_contiguous(array: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """The transpose that undoes ``transpose(order)``."""
    return array.transpose(sorted(range(len(order)), key=order.__getitem__))


def unexpanded(array: Any) -> Any:
    """An array of any kind without the repetitions of an expanded one: dimensions of stride 0 have one element."""
    steps = array.stride() if kind(array) == "torch" else array.strides
    return array[tuple(slice(1) if step == 0 else slice(None) for step in steps)] if 0 in steps else array


def first_true(mask: Any) -> tuple[int, ...]:
    """Place of the first True in an array of bool of any kind; there must be one."""
    if isinstance(mask, np.ndarray):
        return tuple(np.argwhere(mask)[0].tolist())
    if kind(mask) == "torch":
        return tuple(mask.nonzero()[0].tolist())
    return tuple(int(places[0]) for places in mask.nonzero()) if mask.ndim else ()


def laid_out(array: np.ndarray, form: ArraySpec | None) -> np.ndarray:
    """`array` in the memory layout that `form` declares; copied only where it lies differently."""
    if form is None or form.strides is None:
        return np.ascontiguousarray(array).reshape(array.shape)
    order = form.memory_order
    return _from_contiguous(np.ascontiguousarray(array.transpose(order)), order)


def empty_numpy(form: ArraySpec, fill: float | None = None) -> np.ndarray:
    """A fresh NumPy array of the given spec (its layout included), filled with `fill` where given."""
    order = form.memory_order
    shape = tuple(form.shape[axis] for axis in order)
    fresh = np.empty(shape, form.dtype) if fill is None else np.full(shape, fill, form.dtype)
    return fresh if form.strides is None else _from_contiguous(fresh, order)
