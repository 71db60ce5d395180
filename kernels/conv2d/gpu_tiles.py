"""Which tile a Triton convolution takes: pure functions of the sizes, the element type and the GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kernels.runtime.product_tiles import ProductTile
from kernels.runtime.row_tiles import power_of_two
from kernels.runtime.targets import Target
from kernels.runtime.tuning import asked


@dataclass(frozen=True)
class ConvTile(ProductTile):
    """Of a convolution: rows and columns are pixels and output channels, or in a weight's gradient output channels and
    taps; inner are terms of a sum at a time: channels, or in a weight's gradient pixels.

    Attributes:
        registers: that NVIDIA's assembler is told a thread may have; None leaves it to itself.
    """

    registers: int | None = None


#: The least side of a matrix product on tensor cores that Triton takes.
LEAST = 16
#: Pixels of a part of a weight's gradient, at least: with fewer, adding up the parts is the work.
LEAST_PART = 512
#: Most parts of a weight's gradient.
MOST_PARTS = 256


def conv_tile(
    rows: int,
    columns: int,
    inner: int,
    itemsize: int,
    target: Target,
    *,
    tensor_cores: bool,
    vectors: bool,
    across: bool = False,
    thrice: bool = False,
) -> ConvTile:
    """The tile of a product of (rows, inner) and (inner, columns).

    All is read by pointers, nothing by tensor descriptors: these copy boxes, and a tile's pixels follow each other
    through rows of an image and images, with steps and padding between, so that no box holds them. Weights would be
    boxes, but are the smaller part, which the L2 cache has.

    Args:
        rows, columns: of the result.
        inner: terms of its sums that lie together: the channels of a tap, or pixels.
        itemsize: bytes of an element.
        target: the GPU.
        tensor_cores: whether the product goes to tensor cores: half precision, or float32 as tf32.
        vectors: whether the elements of a tile lie side by side, 128 bits of them: channels-last. Without, each
            thread keeps the place of every element it loads, so that tiles must be small.
        across: the sum goes across these vectors, not along them: a weight's gradient.
        thrice: a product of float32 is three of tf32.
    """
    wanted = asked(ConvTile)
    if wanted is not None:
        return wanted
    tile = _tile(rows, columns, inner, itemsize, target, tensor_cores, vectors, across, thrice)
    told = _spills_untold(tile, itemsize, target, tensor_cores, vectors)
    return replace(tile, registers=255) if told else tile


def _spills_untold(tile: ConvTile, itemsize: int, target: Target, tensor_cores: bool, vectors: bool) -> bool:
    """Whether NVIDIA's assembler, left to itself, spills a few registers for the sake of one program more; found by
    compiling. Told of all registers elsewhere, it takes more of them than it needs."""
    if target.amd:
        return False
    sides = {tile.rows, tile.columns}
    if itemsize == 2:
        return (tile.rows, tile.columns) == (128, 32) and target.name.startswith("sm_8")
    if tensor_cores and vectors:
        return tile.rows == LEAST and target.name in ("sm_90", "sm_100")
    return sides in ({32}, {32, 64}) or itemsize == 8 and sides == {16, 64}


def _tile(
    rows: int, columns: int, inner: int, itemsize: int, target: Target, tensor_cores: bool, vectors: bool,
    across: bool, thrice: bool,
) -> ConvTile:  # fmt: skip
    """The tile of `conv_tile`, with as many registers as the assembler likes."""
    large = tensor_cores and vectors
    wide = min(max(power_of_two(columns), LEAST), 128 if large else 64)
    tall = 128 if large else 64
    # A GPU with idle multiprocessors gains by smaller tiles.
    while tall > 64 and -(-rows // tall) * -(-columns // wide) < target.multiprocessors:
        tall //= 2
    tall = min(tall, max(power_of_two(rows), LEAST))
    warps = 4
    if not tensor_cores:
        if itemsize == 8 and not vectors and target.name in ("sm_90", "sm_100"):
            wide = min(wide, 32)  # with 64 columns up to 68 registers spill
        # Asynchronous copies that turn a tile of float64 would be of 64 bits.
        return ConvTile(tall, wide, LEAST, warps, 1 if across and itemsize == 8 else 2)
    # 128 bytes of channels: a line of memory.
    deep = min(max(power_of_two(inner), LEAST), 128 // itemsize if vectors else LEAST * 4 // itemsize)
    if target.amd:
        return ConvTile(tall, wide, deep if vectors else LEAST, warps, 2)
    if not vectors:
        if itemsize == 4 and target.name.startswith("sm_8") and tall * wide == 64 * 64:
            warps = 8
        # Asynchronous copies are of 32 bits at least: halves that lie apart have none.
        return ConvTile(tall, wide, deep, warps, 1 if itemsize < 4 else 2)
    if target.name == "sm_90" and itemsize == 2 and across:
        # Measured on an H100: 56 us for 64 channels at 56x56, where 128 rows and 64 pixels at a time took 73.
        return ConvTile(min(tall, 64), min(wide, 64), max(deep, min(power_of_two(inner), 128)), warps, 3)
    if tall * wide >= 128 * 128 or (thrice and tall == 128) or (across and itemsize == 2 and target.name == "sm_100"):
        warps = 8  # with fewer, registers spill
    if across and itemsize == 4:
        # Asynchronous copies that turn a tile of float32 would be of 32 bits.
        return ConvTile(tall, wide, deep, warps, 1)
    return ConvTile(tall, wide, deep, warps, 4 if target.name == "sm_100" else 3)


def parts_of_pixels(pixels: int, tiles: int, target: Target) -> tuple[int, int]:
    """(parts that the pixels of a sum are cut into, pixels of a part), so that each multiprocessor has two programs.

    The parts are added in one order, so results have the same bits on every GPU of a kind.

    Args:
        pixels: of all images, at least 1.
        tiles: programs for each part.
        target: the GPU.
    """
    wanted = -(-2 * target.multiprocessors // tiles)
    parts = max(1, min(wanted, MOST_PARTS, pixels // LEAST_PART))
    part = -(-pixels // parts)
    part = -(-part // 128) * 128  # whole steps of any tile
    return -(-pixels // part), part
