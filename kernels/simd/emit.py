"""Writing LLVM code for vectors as if it were arithmetic: `Lanes` wraps an LLVM value and has Python's operators.

Everything in this package that makes code is written with it, once for every element type and lane count. It runs while
Numba compiles; kernels never see it.
"""

from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from kernels.simd.target import STORES_BY_BRANCH, TARGET
from kernels.simd.types import IntVector, Mask, SimdType, Vector

#: Coefficients from which a polynomial is computed in two halves.
_LONG_POLYNOMIAL = 9
int32, int64 = ir.IntType(32), ir.IntType(64)


class Lanes:
    """An LLVM vector value under construction. Python numbers beside it become constants of its type."""

    def __init__(self, builder: ir.IRBuilder, simd_type: SimdType, value: ir.Value) -> None:
        self.builder, self.type, self.value = builder, simd_type, value

    # -- making more values --

    def wrap(self, value: ir.Value, simd_type: SimdType | None = None) -> "Lanes":
        """A Lanes around an LLVM value, of this type unless another is named."""
        return Lanes(self.builder, simd_type or self.type, value)

    def constant(self, number: float) -> "Lanes":
        """The same number in each lane."""
        scalar = self.type.llvm_type().element
        return self.wrap(ir.Constant(self.type.llvm_type(), [ir.Constant(scalar, number)] * self.type.lanes))

    def _other(self, other: "Lanes | float") -> ir.Value:
        return other.value if isinstance(other, Lanes) else self.constant(other).value

    def _arithmetic(self, other: "Lanes | float", floating: str, integer: str | None) -> "Lanes":
        operation = floating if isinstance(self.type, Vector) else integer
        return self.wrap(getattr(self.builder, str(operation))(self.value, self._other(other)))

    def _call(self, name: str, *others: "Lanes | float") -> "Lanes":
        """An LLVM intrinsic from vectors of this type to the same."""
        values = [self.value, *map(self._other, others)]
        suffix = f"v{self.type.lanes}{'f' if isinstance(self.type, Vector) else 'i'}{self.type.dtype.bitwidth}"
        kind = ir.FunctionType(self.value.type, [self.value.type] * len(values))
        return self.wrap(self.builder.call(declare(self.builder, f"llvm.{name}.{suffix}", kind), values))

    # -- arithmetic --

    def __add__(self, other: "Lanes | float") -> "Lanes":
        return self._arithmetic(other, "fadd", "add")

    def __sub__(self, other: "Lanes | float") -> "Lanes":
        return self._arithmetic(other, "fsub", "sub")

    def __mul__(self, other: "Lanes | float") -> "Lanes":
        return self._arithmetic(other, "fmul", "mul")

    def __truediv__(self, other: "Lanes | float") -> "Lanes":
        return self._arithmetic(other, "fdiv", None)

    def __neg__(self) -> "Lanes":
        return self.wrap(
            self.builder.fneg(self.value) if isinstance(self.type, Vector) else self.builder.neg(self.value)
        )

    def __and__(self, other: "Lanes | int") -> "Lanes":
        return self.wrap(self.builder.and_(self.value, self._other(other)))

    def __or__(self, other: "Lanes | int") -> "Lanes":
        return self.wrap(self.builder.or_(self.value, self._other(other)))

    def __invert__(self) -> "Lanes":
        return self.wrap(self.builder.not_(self.value))

    def __lshift__(self, bits: int) -> "Lanes":
        return self.wrap(self.builder.shl(self.value, self._other(bits)))

    def shift_right(self, bits: int) -> "Lanes":
        """Bits to the right, zeros come in at the top."""
        return self.wrap(self.builder.lshr(self.value, self._other(bits)))

    def fma(self, factor: "Lanes | float", addend: "Lanes | float") -> "Lanes":
        """self * factor + addend: one instruction and one rounding where the target has it."""
        # llvm.fma without the instruction is a call of the C library for each lane.
        return self._call("fma" if TARGET.has_fma else "fmuladd", factor, addend)

    def sqrt(self) -> "Lanes":
        return self._call("sqrt")

    def floor(self) -> "Lanes":
        return self._call("floor")

    def round_even(self) -> "Lanes":
        return self._call("roundeven")

    def absolute(self) -> "Lanes":
        return self._call("fabs")

    def copysign(self, sign: "Lanes") -> "Lanes":
        return self._call("copysign", sign)

    def polynomial(self, coefficients: Iterable[float]) -> "Lanes":
        """sum of coefficients[i] * self**i, by Horner's rule; a long one as even powers and odd ones, side by side.

        In one chain each product waits for the one before, longer than a processor looks ahead.
        """
        coefficients = list(coefficients)
        if len(coefficients) >= _LONG_POLYNOMIAL:
            square = self * self
            return square.polynomial(coefficients[1::2]).fma(self, square.polynomial(coefficients[::2]))
        highest, *rest = reversed(coefficients)
        result = self.constant(highest)
        for coefficient in rest:
            result = result.fma(self, coefficient)
        return result

    # -- choice --

    def compare(self, comparison: str, other: "Lanes | float") -> "Lanes":
        """Mask of the lanes where `self comparison other` ("<", "==", ...) holds; with NaN only "!=" does."""
        right = self._other(other)
        if isinstance(self.type, Vector):
            unordered = comparison == "!="
            function = self.builder.fcmp_unordered if unordered else self.builder.fcmp_ordered
        else:
            function = self.builder.icmp_signed
        return self.wrap(function(comparison, self.value, right), Mask(self.type.lanes))

    def is_nan(self) -> "Lanes":
        return self.wrap(self.builder.fcmp_unordered("uno", self.value, self.value), Mask(self.type.lanes))

    def select(self, if_true: "Lanes", if_false: "Lanes | float") -> "Lanes":
        """For a mask: if_true where it is set, else if_false."""
        return if_true.wrap(self.builder.select(self.value, if_true.value, if_true._other(if_false)))

    def maximum(self, other: "Lanes | float") -> "Lanes":
        """self if self > other else other, in this form one instruction on x86."""
        other = self.wrap(self._other(other))
        return self.compare(">", other).select(self, other)

    def minimum(self, other: "Lanes | float") -> "Lanes":
        """self if self < other else other."""
        other = self.wrap(self._other(other))
        return self.compare("<", other).select(self, other)

    # -- bits, lanes --

    def bits(self) -> "Lanes":
        """The bit patterns of a float vector as integers."""
        return self.wrap(self.builder.bitcast(self.value, self.type.integers.llvm_type()), self.type.integers)

    def as_float(self, vector: SimdType) -> "Lanes":
        """Bit patterns of integers back as a float vector."""
        return self.wrap(self.builder.bitcast(self.value, vector.llvm_type()), vector)

    def shuffle(self, indices: Iterable[int], other: "Lanes | None" = None) -> "Lanes":
        """Lanes picked by number; those from `lanes` on are of `other`. The result has as many lanes as indices."""
        indices = list(indices)
        second = ir.Constant(self.value.type, ir.Undefined) if other is None else other.value
        picked = ir.Constant(ir.VectorType(int32, len(indices)), [ir.Constant(int32, i) for i in indices])
        lanes = len(indices)
        kind: Any = type(self.type)
        result = Mask(lanes) if isinstance(self.type, Mask) else kind(self.type.dtype, lanes)
        return self.wrap(self.builder.shuffle_vector(self.value, second, picked), result)

    def reduce(self, combine: "Callable[[Lanes, Lanes], Lanes]") -> ir.Value:
        """One scalar by halves: lane l with lane l + lanes/2, and so on. The order is part of the result's bits."""
        rest = self
        while rest.type.lanes > 1:
            half = rest.type.lanes // 2
            rest = combine(rest.shuffle(range(half)), rest.shuffle(range(half, 2 * half)))
        return self.builder.extract_element(rest.value, ir.Constant(int32, 0))


def declare(builder: ir.IRBuilder, name: str, kind: ir.FunctionType) -> ir.Function:
    """The function of this name in the module, declared when it is not there yet."""
    return cgutils.get_or_insert_function(builder.module, kind, name)


def splat(builder: ir.IRBuilder, simd_type: SimdType, scalar: ir.Value) -> Lanes:
    """A scalar in each lane."""
    undefined = ir.Constant(simd_type.llvm_type(), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(int32, 0))
    zeros = ir.Constant(ir.VectorType(int32, simd_type.lanes), None)
    return Lanes(builder, simd_type, builder.shuffle_vector(first, undefined, zeros))


def count(builder: ir.IRBuilder, integers: IntVector) -> Lanes:
    """0, 1, 2, ... by lane."""
    scalar = integers.llvm_type().element
    numbers = [ir.Constant(scalar, lane) for lane in range(integers.lanes)]
    return Lanes(builder, integers, ir.Constant(integers.llvm_type(), numbers))


def lanes_below(builder: ir.IRBuilder, integers: IntVector, bound: ir.Value) -> Lanes:
    """Mask of the lanes whose number is below `bound`, any int64."""
    # Held to 0 .. lanes first, so that a narrow lane can hold it.
    zero, most = ir.Constant(int64, 0), ir.Constant(int64, integers.lanes)
    bound = builder.select(builder.icmp_signed(">", bound, zero), bound, zero)
    bound = builder.select(builder.icmp_signed("<", bound, most), bound, most)
    if integers.dtype == types.int32:
        bound = builder.trunc(bound, int32)
    return count(builder, integers).compare("<", splat(builder, integers, bound))


def element(builder: ir.IRBuilder, base: ir.Value, offset: ir.Value | int) -> ir.Value:
    """The address `offset` elements after `base`."""
    return builder.gep(base, [offset if isinstance(offset, ir.Value) else ir.Constant(int64, offset)])


def prefetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    """Asks for the cache line at an address to be read soon; a bad address has no effect."""
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, *[int32] * 3])
    # For reading; wanted in all caches; data, not instructions.
    flags = [ir.Constant(int32, flag) for flag in (0, 3, 1)]
    builder.call(declare(builder, "llvm.prefetch.p0", kind), [builder.bitcast(address, byte), *flags])


def load_lanes(builder: ir.IRBuilder, simd_type: SimdType, address: ir.Value) -> Lanes:
    """`lanes` elements from an address aligned to one element."""
    address = builder.bitcast(address, simd_type.llvm_type().as_pointer())
    return Lanes(builder, simd_type, builder.load(address, align=simd_type.dtype.bitwidth // 8))


def store_lanes(lanes: Lanes, address: ir.Value) -> None:
    """`lanes` elements to an address aligned to one element."""
    address = lanes.builder.bitcast(address, lanes.value.type.as_pointer())
    lanes.builder.store(lanes.value, address, align=lanes.type.dtype.bitwidth // 8)


def _masked(kind: str, simd_type: SimdType) -> str:
    floating = isinstance(simd_type, Vector)
    return f"llvm.masked.{kind}.v{simd_type.lanes}{'f' if floating else 'i'}{simd_type.dtype.bitwidth}.p0"


def load_lanes_masked(mask: Lanes, address: ir.Value, other: Lanes) -> Lanes:
    """Lanes in the mask from memory, the rest from `other`; memory outside the mask is not touched."""
    builder, vector = mask.builder, other.type.llvm_type()
    kind = ir.FunctionType(vector, [vector.as_pointer(), int32, mask.value.type, vector])
    function = declare(builder, _masked("load", other.type), kind)
    alignment = ir.Constant(int32, other.type.dtype.bitwidth // 8)
    address = builder.bitcast(address, vector.as_pointer())
    return other.wrap(builder.call(function, [address, alignment, mask.value, other.value]))


def store_lanes_masked(mask: Lanes, lanes: Lanes, address: ir.Value) -> None:
    """Lanes in the mask to memory; memory outside the mask is not touched."""
    if not STORES_BY_BRANCH:
        _store_by_mask(mask, lanes, address)
        return
    builder, bits = lanes.builder, ir.IntType(mask.type.lanes)
    every = builder.icmp_unsigned("==", builder.bitcast(mask.value, bits), ir.Constant(bits, -1))
    with builder.if_else(every, likely=True) as (whole, part):
        with whole:
            store_lanes(lanes, address)
        with part:
            _store_by_mask(mask, lanes, address)


def _store_by_mask(mask: Lanes, lanes: Lanes, address: ir.Value) -> None:
    builder, vector = mask.builder, lanes.type.llvm_type()
    kind = ir.FunctionType(ir.VoidType(), [vector, vector.as_pointer(), int32, mask.value.type])
    function = declare(builder, _masked("store", lanes.type), kind)
    alignment = ir.Constant(int32, lanes.type.dtype.bitwidth // 8)
    address = builder.bitcast(address, vector.as_pointer())
    builder.call(function, [lanes.value, address, alignment, mask.value])


def store_first_lanes(n: ir.Value, lanes: Lanes, address: ir.Value) -> None:
    """The first n lanes to memory, n any int64; memory behind them is not touched."""
    builder, count = lanes.builder, lanes.type.lanes
    if not STORES_BY_BRANCH:
        integers: Any = lanes.type.integers if isinstance(lanes.type, Vector) else lanes.type
        store_lanes_masked(lanes_below(builder, integers, n), lanes, address)
        return
    with builder.if_else(builder.icmp_signed(">=", n, ir.Constant(int64, count)), likely=True) as (whole, part):
        with whole:
            store_lanes(lanes, address)
        with part, builder.if_then(builder.icmp_signed(">", n, ir.Constant(int64, 0))):
            _store_by_halves(n, lanes, address)


def _store_by_halves(n: ir.Value, lanes: Lanes, address: ir.Value) -> None:
    """The first n lanes, 0 <= n < their number: by the bits of n, half a vector, a quarter, ..."""
    builder, half = lanes.builder, lanes.type.lanes // 2
    if half == 0:
        return
    low, high = lanes.shuffle(range(half)), lanes.shuffle(range(half, 2 * half))
    has_half = builder.icmp_unsigned("!=", builder.and_(n, ir.Constant(int64, half)), ir.Constant(int64, 0))
    with builder.if_then(has_half):
        store_lanes(low, address)
    if half > 1:
        rest = high.wrap(builder.select(has_half, high.value, low.value))
        _store_by_halves(n, rest, builder.select(has_half, element(builder, address, half), address))
