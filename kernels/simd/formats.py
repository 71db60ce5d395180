"""Layout and range of the element types, as the elementary functions need them."""

import struct
from dataclasses import dataclass

from numba import types


@dataclass(frozen=True)
class Format:
    """An element type's layout and range."""

    mantissa_bits: int
    bias: int
    exp_low: float
    """exp rounds to 0 from here down."""
    exp_high: float
    """exp overflows from here up."""
    tanh_one: float
    """tanh rounds to 1 from here up."""

    @property
    def shifter(self) -> float:
        """Added to a number, it leaves the nearest integer in the low bits of the mantissa."""
        return 1.5 * 2.0**self.mantissa_bits

    def bits(self, number: float) -> int:
        """The bit pattern of a number."""
        layouts = ("<f", "<i") if self.mantissa_bits == 23 else ("<d", "<q")
        return struct.unpack(layouts[1], struct.pack(layouts[0], number))[0]


FORMATS = {
    types.float32: Format(23, 127, -104.0, 89.0, 9.1),
    types.float64: Format(52, 1023, -746.0, 710.0, 19.1),
}
