"""Numbers as a GPU has them, for Triton's interpreter: bfloat16 arithmetic, and the rounding of tf32 products.

The interpreter of Triton 3.9.0 computes on the bit patterns of bfloat16 as if they were integers, truncates float32 to
bfloat16, and takes float32 products in full precision where a GPU rounds their factors to tf32 first. Here bfloat16 is
widened to float32, computed, and rounded to nearest even, as the compiled code does it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter

Array = np.ndarray[Any, Any]
Handle = interpreter.TensorHandle
Builder = interpreter.InterpreterBuilder


def _round_away(numbers: Array, bits: int) -> Array:
    """The bit patterns of float32 `numbers`, rounded to nearest even so that the last `bits` bits count nothing."""
    pattern = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    half = np.uint32((1 << (bits - 1)) - 1)
    rounded = (pattern + (((pattern >> np.uint32(bits)) & 1) + half)) & np.uint32(0xFFFFFFFF << bits & 0xFFFFFFFF)
    # Infinities stay, and NaN stays NaN though its payload be cut.
    quiet = ((pattern & 0x7FFFFF) != 0).astype(np.uint32) << 22
    return np.where((pattern & 0x7F800000) == 0x7F800000, pattern | quiet, rounded)


def to_bfloat16(numbers: Array) -> Array:
    """float32 as bit patterns of bfloat16 (uint16), rounded to nearest even."""
    return (_round_away(numbers, 16) >> 16).astype(np.uint16).reshape(np.shape(numbers))


def from_bfloat16(patterns: Array) -> Array:
    """Bit patterns of bfloat16 (uint16) as float32."""
    return (np.asarray(patterns).astype(np.uint32) << 16).view(np.float32)


def to_tf32(numbers: Array) -> Array:
    """float32 rounded to the 10 bits of mantissa that tf32 has."""
    return _round_away(numbers, 13).view(np.float32).reshape(np.shape(numbers))


def _is_bfloat16(handle: Any) -> bool:
    return isinstance(handle, Handle) and handle.dtype.scalar == tl.bfloat16 and handle.data.dtype == np.uint16


def _wide(handle: Any) -> Any:
    return Handle(from_bfloat16(handle.data), tl.float32) if _is_bfloat16(handle) else handle


def _narrow(handle: Any) -> Any:
    if handle.data.dtype == np.bool_:
        return Handle(handle.data, tl.int1)
    return Handle(to_bfloat16(handle.data), tl.bfloat16) if handle.data.dtype == np.float32 else handle


def _widened(name: str) -> Any:
    """The builder's operation `name`, which computes bfloat16 in float32."""
    original = getattr(Builder, name)

    def operation(self: Any, *handles: Any, **keywords: Any) -> Any:
        if not any(map(_is_bfloat16, handles)):
            return original(self, *handles, **keywords)
        return _narrow(original(self, *map(_wide, handles), **keywords))

    return operation


_cast, _dot = Builder.cast_impl, Builder.create_dot


def _cast_rounding(self: Any, source: Any, wanted: Any) -> Any:
    given, to = source.dtype.scalar, wanted.scalar
    if given == tl.bfloat16 and to != tl.bfloat16:
        return _wide(source) if to == tl.float32 else _cast(self, _wide(source), wanted)
    if to == tl.bfloat16 and given != tl.bfloat16:
        return Handle(to_bfloat16(source.data.astype(np.float32)), tl.bfloat16)
    return _cast(self, source, wanted)


def _dot_rounding(self: Any, a: Any, b: Any, total: Any, precision: Any, imprecise: Any) -> Any:
    a, b = _wide(a), _wide(b)
    if a.data.dtype == np.float16:
        # Tensor cores multiply float16 exactly; so does float32.
        a, b = (Handle(h.data.astype(np.float32), tl.float32) for h in (a, b))
    elif precision == ir.INPUT_PRECISION.TF32 and a.data.dtype == b.data.dtype == np.float32 and a.dtype == tl.float32:
        a, b = (Handle(to_tf32(h.data), h.dtype) for h in (a, b))
    elif precision == ir.INPUT_PRECISION.TF32x3 and a.data.dtype == b.data.dtype == np.float32:
        return _three_products(self, a, b, total, precision, imprecise)
    return _dot(self, a, b, total, precision, imprecise)


def _three_products(self: Any, a: Any, b: Any, total: Any, precision: Any, imprecise: Any) -> Any:
    """Factors as sums of two of tf32; the product of the small ones is left out."""
    (big_a, small_a), (big_b, small_b) = (
        (Handle(big, h.dtype), Handle(to_tf32(h.data - big), h.dtype)) for h in (a, b) for big in (to_tf32(h.data),)
    )
    nothing = Handle(np.zeros_like(total.data), total.dtype)
    corrections = _dot(self, small_a, big_b, nothing, precision, imprecise)
    corrections = _dot(self, big_a, small_b, corrections, precision, imprecise).data
    # What infinity leaves behind is no number, and counts nothing.
    corrected = total.data + np.where(np.isnan(corrections), 0, corrections)
    return _dot(self, big_a, big_b, Handle(corrected, total.dtype), precision, imprecise)


def _reduction(original: Any) -> Any:
    """A reduction or scan that takes bfloat16 as float32."""

    def apply(self: Any, inputs: Any) -> Any:
        if not any(t.dtype.scalar == tl.bfloat16 for t in inputs):
            return original(self, inputs)
        wide = tuple(
            self.to_tensor(from_bfloat16(t.handle.data), tl.float32) if _is_bfloat16(t.handle) else t for t in inputs
        )
        found = original(self, wide)
        found = found if isinstance(found, (list, tuple)) else [found]
        return [_like(self, r, t) for r, t in zip(found, inputs)]

    return apply


def _like(reduction: Any, result: Any, given: Any) -> Any:
    if given.dtype.scalar != tl.bfloat16:
        return reduction.to_tensor(result.handle.data, result.dtype)
    kind = tl.block_type(tl.bfloat16, list(result.shape)) if result.shape else tl.bfloat16
    return tl.core.tensor(Handle(to_bfloat16(result.handle.data), tl.bfloat16), kind)


#: What replaces what, by (class, name of its method).
REPLACEMENTS: dict[tuple[Any, str], Any] = {
    **{(Builder, n): _widened(n) for n in ("binary_op", "unary_op", "create_fma", "create_rsqrt", "create_erf")},
    (Builder, "cast_impl"): _cast_rounding,
    (Builder, "create_dot"): _dot_rounding,
    (interpreter.ReduceOps, "apply_impl"): _reduction(interpreter.ReduceOps.apply_impl),
    (interpreter.ScanOps, "apply_impl"): _reduction(interpreter.ScanOps.apply_impl),
}
