"""The gather kernel: every pass of a convolution that makes an image, in any layout, stride and dilation.

Vectors run over output channels. The register tile (`kernels.simd.multiply_gathered`) takes a dozen output pixels,
wherever they lie, and two vectors of channels; a pixel's inputs are read by broadcast straight from the (padded) image
through tables of offsets, so nothing is unfolded (no im2col), tiny images share a tile across the batch, and one
compiled function serves every shape. 128 taps are summed in registers before they join the total, which keeps the error
below that of one long sum.

Where all pixels are one block, each weight is used once: a run of channels is packed into L1 right before its use.

Pixels that meet the same taps form a class, and a tile takes pixels of one class: the remainders under the stride of a
transposed pass, and the edges of an image where leaving out what lies in the padding pays (`geometry.sides`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba.np.unsafe.ndarray import to_fixed_tuple

from kernels.conv2d.moves import Source, add_bias, apply_activation, clear, write_sums
from kernels.conv2d.pixels import FEW_ROWS, Meetings, Pass, sort_pixels
from kernels.runtime.numba_cpu import jit, threaded
from kernels.simd import (
    TILE_ROWS,
    advance,
    as_integers,
    lanes_of,
    load_first,
    multiply_gathered,
    peek,
    pointer,
    pointer_at,
    prefetch,
    store,
    transpose,
)

#: Values of float32 in a cache line.
LINE = 16
#: Taps summed in registers before they join the total in memory: about so many, and at most twice.
CHUNK = 128
#: Output pixels whose totals, and the same where all are one class, whose sources too stay in cache while all taps and
#: channels pass over them.
BLOCK = 144 * TILE_ROWS
PLAIN_BLOCK = 16 * TILE_ROWS
#: Pixels up to which weights are packed on the way.
FEW_PIXELS = 16 * TILE_ROWS


FIELDS, SOURCE_FIELDS = len(Pass._fields), len(Source._fields)


class Ahead(NamedTuple):
    """Weights to ask for while others are in use: `runs` runs of `run` elements, `apart` elements apart.

    No runs: what lies behind the weights in use, and after the last of these as much from `start` on.
    """

    start: Any
    runs: int
    run: int
    apart: int


@jit
def _weights_at(p, w, block, c):
    """The weights of a panel as they lie in memory: of a block of outputs and the channels from c on."""
    width = 2 * lanes_of(w)
    group_blocks = (p.group_outputs + width - 1) // width
    group = block // group_blocks
    channel = (block - group * group_blocks) * width
    outputs = min(width, p.group_outputs - channel)
    inputs = min(p.panel_inputs, p.group_inputs - c)
    start = advance(w, group * p.weight_group + channel * p.weight_out + c * p.weight_in)
    if p.weight_out < p.weight_in:
        return Ahead(start, inputs, outputs * p.weight_out, p.weight_in)
    return Ahead(start, outputs, inputs * p.weight_in, p.weight_out)


@jit
def _fetch(ahead, first, last):
    """Ask for runs [first, last)."""
    for i in range(first, last):
        for k in range(0, ahead.run, LINE):
            prefetch(ahead.start, i * ahead.apart + k)


@jit
def sum_class(
    p, taps, begin, end, inputs, first, last, chunk_inputs, source_taps, weight_taps, weights, lists, totals,
    ahead,
):  # fmt: skip
    """Totals of a class of pixels, entries [begin, end) of the lists, over channels [first, last) of its group.

    inputs: the group's first channel. weights: the panel of channel `first`. ahead: asked for on the way.
    """
    lanes = lanes_of(inputs)
    width = 2 * lanes
    for c in range(first, last, chunk_inputs):
        channels = min(chunk_inputs, last - c)
        count = channels * taps
        a = advance(inputs, c * p.padded_channel)
        b = advance(weights, (c - first) * p.kernel_taps * width)
        # Never past the panels: there begins what another thread writes, and a line asked for is taken from it.
        behind = advance(b, channels * p.kernel_taps * width) if c + channels < last else ahead.start
        lines = 0 if ahead.runs else channels * p.kernel_taps * width // LINE
        start = 0
        while True:
            length = count - start
            if length > 2 * CHUNK:
                length = CHUNK
            a_table, b_table = advance(source_taps, start), advance(weight_taps, start)
            q = begin
            while q < end:
                rows, outs = advance(lists, q), advance(lists, p.list_size + q)
                reached = min(q + TILE_ROWS, end)
                if ahead.runs:
                    _fetch(ahead, ahead.runs * q // end, ahead.runs * reached // end)
                elif start == 0:
                    for line in range(lines * q // end, lines * reached // end):
                        prefetch(behind, line * LINE)
                if end - q > FEW_ROWS:
                    multiply_gathered(
                        TILE_ROWS, 2, a, rows, a_table, b, b_table, length, totals, outs, lanes, c + start
                    )
                    q += TILE_ROWS
                else:
                    multiply_gathered(FEW_ROWS, 2, a, rows, a_table, b, b_table, length, totals, outs, lanes, c + start)
                    q += FEW_ROWS
            start += length
            if start >= count:
                break


@jit
def pack_panel(w, out_step, in_step, outputs, inputs, taps, panel):
    """panel[channel, tap, lane] of up to a tile width of outputs and some channels; zero past the outputs.

    w: elements from the first of both on; out_step, in_step: distances between output channels and between summed
    channels. taps: of a filter, which lie together.
    """
    lanes = lanes_of(w)
    width = 2 * lanes
    if out_step == 1:
        # Transposed, one tap: the channels of a row lie together.
        for c in range(inputs):
            for j in range(0, width, lanes):
                store(panel, c * width + j, load_first(w, c * in_step + j, outputs - j))
        return
    if outputs < width:
        clear(panel, inputs * taps * width)
    if in_step == taps:
        # Forward: a filter's taps lie together for all its channels, in the order of the panel.
        transpose(w, out_step, outputs, inputs * taps, panel, width)
    else:
        for c in range(inputs):
            transpose(advance(w, c * in_step), out_step, outputs, taps, advance(panel, c * taps * width), width)


@jit
def _gather_parts(first, last, settings, tables, x, w, bias, y, before, scratch):
    """Parts [first, last) of a pass.

    settings: int64, the fields of Pass and Source; arrays and numbers cost a call less than tuples do. tables: Meetings
    as a plain tuple. x, w, bias, y, before: addresses of the source's elements, the weight's, of [groups *
    group_outputs], of the output's, and of as many for the sums before the activation, which are p.keeps_sums.
    scratch: without p.panel_inputs panels, elements [groups * blocks, group_inputs, kernel_taps, tile width], zero past
    a group's channels; and from p.parts on for each part, p.part_size apart, the padded images; with p.panel_inputs
    panels [panel_inputs, kernel_taps, tile width]; totals [block + 1, tile width]; and int64 [3 * list_size + 2 *
    (classes + 1)].
    """
    p = Pass(*to_fixed_tuple(settings, FIELDS))
    s = Source(*to_fixed_tuple(settings[FIELDS:], SOURCE_FIELDS))
    m = Meetings(*tables)
    given, weight = pointer_at(x, scratch), pointer_at(w, scratch)
    shifts, results, kept = pointer_at(bias, scratch), pointer_at(y, scratch), pointer_at(before, scratch)
    lanes = lanes_of(scratch)
    width = 2 * lanes
    group_blocks = (p.group_outputs + width - 1) // width
    blocks = p.groups * group_blocks
    plane = p.rows * p.columns
    pixels = p.images * plane
    tiles = (pixels + TILE_ROWS - 1) // TILE_ROWS
    classes = m.classes.shape[0]
    step = p.panel_inputs if p.panel_inputs else p.group_inputs
    for part in range(first, last):
        pixel_part = part // p.block_parts
        block_part = part % p.block_parts
        begin = tiles * pixel_part // p.pixel_parts * TILE_ROWS
        end = min(pixels, tiles * (pixel_part + 1) // p.pixel_parts * TILE_ROWS)
        first_block = blocks * block_part // p.block_parts
        last_block = blocks * (block_part + 1) // p.block_parts
        own = pointer(scratch, p.parts + part * p.part_size)
        totals = advance(own, p.totals)
        sorted_lists = as_integers(advance(own, p.lists))
        bounds = advance(sorted_lists, 3 * p.list_size)
        source = own if p.slots else given
        ready = begin // plane  # images before this one are padded, or not ours
        while begin < end:
            count = min(p.block, end - begin)
            ready = sort_pixels(p, m, begin, count, given, s, source, ready, sorted_lists, bounds)
            for block in range(first_block, last_block):
                group = block // group_blocks
                channel = (block - group * group_blocks) * width
                valid = min(width, p.group_outputs - channel)
                inputs = advance(source, group * p.group_inputs * p.padded_channel)
                for c in range(0, p.group_inputs, step):
                    c_end = min(c + step, p.group_inputs)
                    panel = p.group_inputs * p.kernel_taps * width
                    weights = pointer(scratch, block * panel)
                    following = block + 1 if block + 1 < last_block else first_block
                    ahead = Ahead(pointer(scratch, following * panel), 0, 0, 0)
                    if p.panel_inputs:
                        weights = advance(own, p.panels)
                        ahead = Ahead(weights, 0, 0, 0)
                        at = _weights_at(p, weight, block, c)
                        pack_panel(at.start, p.weight_out, p.weight_in, valid, c_end - c, p.kernel_taps, weights)
                        if c_end < p.group_inputs:
                            ahead = _weights_at(p, weight, block, c_end)
                        elif block + 1 < last_block:
                            ahead = _weights_at(p, weight, block + 1, 0)
                    for k in range(classes):
                        sum_class(
                            p, m.classes[k, 0], peek(bounds, k), peek(bounds, k + 1), inputs, c, c_end, m.classes[k, 1],
                            pointer(m.source_taps, m.classes[k, 2]), pointer(m.weight_taps, m.classes[k, 2]),
                            weights, sorted_lists, totals, ahead,
                        )  # fmt: skip
                channel += group * p.group_outputs
                add_bias(totals, count, width, valid, advance(shifts, channel))
                if p.keeps_sums:
                    sums_out = advance(kept, channel * p.out_channel)
                    write_sums(totals, count, width, valid, begin, plane, sums_out, p.out_image, p.out_channel)
                apply_activation(totals, count * width, p.activation)
                out = advance(results, channel * p.out_channel)
                write_sums(totals, count, width, valid, begin, plane, out, p.out_image, p.out_channel)
            begin += count


gather_parts = threaded(_gather_parts)


@jit
def _pack_parts(first, last, w, out_step, in_step, group_step, group_outputs, inputs, taps, scratch, start):
    """Blocks [first, last) of the weight panels [block, channel, tap, lane] in scratch from `start` on.

    See `pack_panel`. w: the address of the weight's elements; group_step: its distance between groups.
    """
    weight = pointer_at(w, scratch)
    width = 2 * lanes_of(scratch)
    group_blocks = (group_outputs + width - 1) // width
    for block in range(first, last):
        group = block // group_blocks
        channel = (block - group * group_blocks) * width
        source = advance(weight, group * group_step + channel * out_step)
        panel = pointer(scratch, start + block * inputs * taps * width)
        pack_panel(source, out_step, in_step, min(width, group_outputs - channel), inputs, taps, panel)


pack_parts = threaded(_pack_parts)
