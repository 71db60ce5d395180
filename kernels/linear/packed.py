"""Weights packed once for many calls: `pack_linear` and what it returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kernels import arrays, checks
from kernels.backends import BACKENDS, BackendError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kernels.arrays import ArraySpec

DTYPES = ("float32", "float64")


class PackedLinear:
    """A snapshot of a weight in the order in which the kernels read it; made by `pack_linear`.

    It takes part in no gradient and knows nothing of the array it was made from: what is written into that one later
    does not show here. Its memory, that of the weight with out_features rounded up to whole vectors, goes with it. No
    call writes to it, so any number of threads may share it. Pickled or copied it becomes a weight again and is packed
    anew, for the machine where it arrives.

    Attributes:
        out_features, in_features: sizes of the weight.
        shape: (out_features, in_features).
        dtype: NumPy's name of the element type, "float32" or "float64".
        nbytes: bytes that it holds.
    """

    __slots__ = (
        "__weakref__", "_array", "_tensor", "address", "dtype", "form", "in_features", "nbytes", "out_features",
        "quick_call", "runs", "tensor_dtype",
    )  # fmt: skip

    def __init__(self, array: np.ndarray[Any, Any], in_features: int, form: tuple[int, int, int]) -> None:
        self._array = array
        #: Of `packed_tensors`, once torch is there: its function, and what that needs: where the panels begin, their
        #: dtype as torch's, and how calls of a form run.
        self.quick_call: Callable[..., Any] | None = None
        self.address: int = array.__array_interface__["data"][0]
        self.tensor_dtype: Any = None
        self.runs: dict[Any, Callable[..., Any]] = {}
        self._tensor: Any = None
        if arrays.loaded_torch() is not None:
            self._meet_torch()
        #: Attribute `packed` of the op's declaration.
        self.form = form
        self.out_features, self.in_features = form[0], in_features
        self.dtype: str = array.dtype.name
        self.nbytes: int = array.nbytes

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.out_features, self.in_features

    def panels(self, like: Any) -> Any:
        """What the kernels read, as the kind of array that `like` is: NumPy's or torch's, of the same memory."""
        if isinstance(like, np.ndarray):
            return self._array
        if self._tensor is None and arrays.loaded_torch() is not None:
            self._meet_torch()
        return self._array if self._tensor is None else self._tensor

    def _meet_torch(self) -> None:
        from kernels.linear.packed_tensors import quick_call

        self._tensor = arrays.loaded_torch().from_numpy(self._array)
        self.tensor_dtype, self.quick_call = self._tensor.dtype, quick_call

    def unpack(self) -> np.ndarray[Any, Any]:
        """The weight (out_features, in_features), a new NumPy array."""
        return np.array(unpacked(self._array, self.in_features, self.form))

    def __reduce__(self) -> tuple[Any, ...]:
        return pack_linear, (self.unpack(),)

    def __repr__(self) -> str:
        sizes = f"out_features={self.out_features}, in_features={self.in_features}"
        return f"PackedLinear({sizes}, dtype={self.dtype}, {self.nbytes} bytes)"


def unpacked(panels: Any, inputs: int, form: tuple[int, ...]) -> Any:
    """The weight (outputs, inputs) of panels in NumPy or torch.

    panels: [count - 1, inputs, width] and behind them [inputs, last], one-dimensional. form: (outputs, width, last).
    """
    outputs, width, last = form
    cut = (-(-outputs // width) - 1) * width * inputs
    whole = panels[:cut].reshape(cut // (width * inputs), inputs, width).swapaxes(1, 2).reshape(cut // inputs, inputs)
    rest = panels[cut:].reshape(inputs, last).swapaxes(0, 1)
    join = np.concatenate if isinstance(panels, np.ndarray) else arrays.loaded_torch().cat
    return join((whole, rest))[:outputs]


def check_form(x: ArraySpec, panels: ArraySpec, form: tuple[int, int, int]) -> None:
    """Refuse an x whose features are not those that were packed."""
    outputs, width, last = form
    inputs = panels.size // ((-(-outputs // width) - 1) * width + last)
    if x.shape[-1] != inputs:
        rule = f"must have {x.shape[-1]} input features, the last dimension of x"
        checks.fail("linear", "weight", rule, f"a packed weight of shape {(outputs, inputs)}")


def pack_linear(weight: Any) -> PackedLinear:
    """Pack the weight of `linear` once for many calls, for inference with a weight that stays the same.

    ``linear(x, pack_linear(weight), bias)`` gives what ``linear(x, weight, bias)`` gives, but for the order of its sums
    in some shapes. A call with a plain weight brings it into the kernels' order first, each time; on the CPU that is
    worth a tenth to a half of the time for 10 to 100 rows of x, and little for one row or for very many.

    Args:
        weight: (out_features, in_features), neither of them 0, float32 or float64, a NumPy array or a torch tensor on
            the CPU. Any strides. It must not require a gradient while gradients are recorded: pack ``weight.detach()``,
            or under ``torch.no_grad()``.

    Returns:
        a `PackedLinear`: a copy, to be made anew when the weight changes. It serves NumPy and torch alike.

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above.
        MemoryError: there is no memory for the copy.
        NotImplementedError: inside a transform of torch.func (grad, vmap, jvp).
        BackendError: the CPU kernels cannot run here (`info` says why).

    Example:
        >>> packed = kernels.pack_linear(layer.weight.detach())
        >>> y = kernels.linear(x, packed, bias, activation="relu")
    """
    op = "pack_linear"
    kind = arrays.kind(weight)
    if kind not in ("numpy", "torch"):
        checks.fail_type_name(op, "weight", "must be a NumPy array or a torch tensor", type(weight).__name__)
    if arrays.has_no_memory(weight):
        checks.fail_type_name(op, "weight", "must have values to pack", "a fake tensor or one on the meta device")
    unfit = arrays.unfit(weight)
    if unfit is not None:
        raise TypeError(f"{op}: weight {unfit}")
    weight = arrays.plain(weight)
    given = arrays.spec(weight)
    checks.rank(op, "weight", given, (2,), "(out_features, in_features)")
    checks.dtype(op, "weight", given, DTYPES)
    checks.no_zero_size(op, "weight", given, (0, 1))
    if given.device != "cpu":
        checks.fail(op, "weight", "must be on the CPU", given.device)
    checks.addressable(op, "weight", given)
    checks.memory(op, "the packed weight", (given,), f"weight {given.dtype} {given.shape}")
    if arrays.wants_grad(weight):
        checks.fail(op, "weight", "must not require a gradient (pack weight.detach())", "requires_grad=True")
    missing = BACKENDS["numba"].missing()
    if missing is not None:
        raise BackendError(f"pack_linear: the CPU kernels cannot run here: {missing}")
    from kernels.linear.numba_cpu import pack

    if kind == "numpy":
        return PackedLinear(*pack(weight))
    from kernels.linear.packed_tensors import values_of

    return PackedLinear(*pack(values_of(weight)))
