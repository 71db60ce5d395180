"""Where a convolution reads and writes: pure functions from a problem to tables of element offsets.

Every pass of a convolution is a *gather*: output pixel (i, j) of a grid sums, over channels and taps, source pixels
(i * step + a_r, j * step + b_s). The forward pass is one grid. Its transpose (the gradient of the image, and
conv_transpose2d) with stride s is up to s * s grids, one for each remainder of the output coordinates, since a pixel
meets only the taps whose distance from it is a multiple of the stride. Remainders that meet no tap have no grid.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Table = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True)
class Grid:
    """A grid of output pixels that share their taps.

    Attributes:
        size: rows and columns of the grid.
        step: source rows and columns between neighbouring pixels of the grid.
        taps: the filter's taps (r, s) that its pixels meet.
        shifts: for each tap the source row and column, relative to the pixel's, before padding.
        place: output row and column of pixel (0, 0).
        spacing: output rows and columns between neighbouring pixels.
    """

    size: tuple[int, int]
    step: tuple[int, int]
    taps: tuple[tuple[int, int], ...]
    shifts: tuple[tuple[int, int], ...]
    place: tuple[int, int]
    spacing: tuple[int, int]


def forward_grid(
    output: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    top: int,
    left: int,
) -> tuple[Grid, ...]:
    """The grid of conv2d: every output pixel meets every tap."""
    taps = tuple((r, s) for r in range(kernel[0]) for s in range(kernel[1]))
    shifts = tuple((r * dilation[0] - top, s * dilation[1] - left) for r, s in taps)
    return (Grid(output, stride, taps, shifts, (0, 0), (1, 1)),)


def transposed_grids(
    image: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    top: int,
    left: int,
) -> tuple[Grid, ...]:
    """The grids of conv2d's transpose, whose output is `image` (height, width) and whose source is conv2d's output.

    Image row h meets tap r of output row o when h = o * stride + r * dilation - top. Pixels that meet no tap are in no
    grid, however far the stride; only where all of them are such there is one, of a pixel without taps.
    """
    sides: list[list[tuple[int, int, list[int], list[int]]]] = []
    for d, before in ((0, top), (1, left)):
        met: dict[int, list[int]] = {}
        for r in range(kernel[d]):
            phase = (r * dilation[d] - before) % stride[d]
            if phase < image[d]:
                met.setdefault(phase, []).append(r)
        phases = []
        for phase, taps_met in sorted(met.items()):
            distances = [(phase + before - r * dilation[d]) // stride[d] for r in taps_met]
            phases.append((phase, -(-(image[d] - phase) // stride[d]), taps_met, distances))
        sides.append(phases)
    grids = []
    for row, rows, met_rows, row_shifts in sides[0]:
        for column, columns, met_columns, column_shifts in sides[1]:
            taps = tuple((r, s) for r in met_rows for s in met_columns)
            shifts = tuple((a, b) for a in row_shifts for b in column_shifts)
            grids.append(Grid((rows, columns), (1, 1), taps, shifts, (row, column), stride))
    return tuple(grids) or (Grid((1, 1), (1, 1), (), (), (0, 0), stride),)


@dataclass(frozen=True)
class Layout:
    """Element distances in an image of the given channels: channel, row and column apart, and the whole image."""

    channel: int
    row: int
    column: int
    image: int


def layout(channels: int, height: int, width: int, channels_last: bool) -> Layout:
    """Distances in a dense image, (C, H, W) or (H, W, C)."""
    if channels_last:
        return Layout(1, width * channels, channels, height * width * channels)
    return Layout(height * width, width, 1, channels * height * width)


def margins(source: tuple[int, int], grids: tuple[Grid, ...]) -> tuple[int, int, int, int]:
    """Rows and columns of zeros (top, bottom, left, right) around the source that the grids reach into."""
    found = [0, 0, 0, 0]
    for grid in grids:
        for shift in grid.shifts:
            for d in (0, 1):
                found[2 * d] = max(found[2 * d], -shift[d])
                last = (grid.size[d] - 1) * grid.step[d] + shift[d]
                found[2 * d + 1] = max(found[2 * d + 1], last - (source[d] - 1))
    return found[0], found[1], found[2], found[3]


@dataclass(frozen=True, eq=False)
class Gather:
    """A convolution pass as tables, for one memory layout. Plans are cached, so that two are equal when they are one.

    Attributes:
        grids: the grids.
        channels: channels of the source, all groups.
        source: height and width of the source.
        target: height and width of the output.
        margin: zeros around it (top, bottom, left, right); all 0: it is read where it lies.
        padded: distances in the source with its margin.
        given: distances in the source as it comes.
        output: distances in the output.
        tap_offsets: for each grid an int64 table [channels of a group, taps of the grid]: where in the padded source a
            pixel finds them, relative to its own place.
        tap_index: for each grid an int64 table of its taps as r * kw + s.
    """

    grids: tuple[Grid, ...]
    channels: int
    source: tuple[int, int]
    target: tuple[int, int]
    margin: tuple[int, int, int, int]
    padded: Layout
    given: Layout
    output: Layout
    tap_offsets: tuple[Table, ...]
    tap_index: tuple[Table, ...]

    @property
    def pads(self) -> bool:
        """Whether the source must be copied into a larger image of zeros."""
        return any(self.margin)

    @property
    def leaves_gaps(self) -> bool:
        """Whether some output pixels are in no grid, since they meet no tap: their sums are 0."""
        return sum(grid.size[0] * grid.size[1] for grid in self.grids) < self.target[0] * self.target[1]

    @property
    def only_grid(self) -> Grid | None:
        """The grid of all output pixels; None where there are several, or gaps."""
        return self.grids[0] if len(self.grids) == 1 and not self.leaves_gaps else None


def gather(
    grids: tuple[Grid, ...],
    channels: int,
    source: tuple[int, int],
    groups: int,
    kernel_width: int,
    out_channels: int,
    output: tuple[int, int],
    channels_last: bool,
) -> Gather:
    """Tables for `grids` over a source of `channels` channels and an output of `out_channels`."""
    margin = margins(source, grids)
    top, bottom, left, right = margin
    padded = layout(channels, source[0] + top + bottom, source[1] + left + right, channels_last)
    offsets = []
    index = []
    for grid in grids:
        places = [(a + top) * padded.row + (b + left) * padded.column for a, b in grid.shifts]
        lanes = np.arange(channels // groups, dtype=np.int64)[:, None] * padded.channel
        offsets.append(np.ascontiguousarray(lanes + np.asarray(places, np.int64)[None, :]).reshape(-1))
        index.append(np.asarray([r * kernel_width + s for r, s in grid.taps], np.int64))
    given = layout(channels, *source, channels_last)
    out = layout(out_channels, *output, channels_last)
    return Gather(grids, channels, source, output, margin, padded, given, out, tuple(offsets), tuple(index))


@lru_cache(1024)
def filter_order(plan: Gather) -> Table | None:
    """The places in a 3x3 filter (r * 3 + s) in the order of the source's rows and columns; None where a pass is none
    of 3x3 neighbouring taps and stride 1."""
    grid = plan.only_grid
    if grid is None or grid.step != (1, 1) or len(grid.taps) != 9:
        return None
    order = sorted(range(9), key=lambda t: grid.shifts[t])
    top, left = grid.shifts[order[0]]
    if [grid.shifts[t] for t in order] != [(top + i, left + j) for i in range(3) for j in range(3)]:
        return None
    return plan.tap_index[0][order]


@lru_cache(1024)
def forward_gather(
    channels: int,
    source: tuple[int, int],
    out_channels: int,
    output: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    corner: tuple[int, int],
    groups: int,
    channels_last: bool,
) -> Gather:
    """conv2d from `source` to `output`; `corner` is the padding (top, left)."""
    grids = forward_grid(output, kernel, stride, dilation, *corner)
    return gather(grids, channels, source, groups, kernel[1], out_channels, output, channels_last)


@lru_cache(1024)
def transposed_gather(
    channels: int,
    source: tuple[int, int],
    out_channels: int,
    output: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    corner: tuple[int, int],
    groups: int,
    channels_last: bool,
) -> Gather:
    """The transpose of conv2d, from `source` (conv2d's output) to `output` (conv2d's image)."""
    grids = transposed_grids(output, kernel, stride, dilation, *corner)
    return gather(grids, channels, source, groups, kernel[1], out_channels, output, channels_last)


@dataclass(frozen=True, eq=False)
class Side:
    """What the coordinates of an output meet along one dimension.

    Attributes:
        kinds: the class of each output coordinate.
        places: the source coordinate that the first tap of each meets; 0 where there is none.
        taps: the taps of each class, along this dimension.
        shifts: for each class the source coordinates that its taps meet, relative to the first.
        counts: how many coordinates are of each class.
        reach: first and last source coordinate that is met; (0, 0) if none is.
    """

    kinds: Table
    places: Table
    taps: tuple[tuple[int, ...], ...]
    shifts: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]
    reach: tuple[int, int]

    @property
    def meetings(self) -> int:
        """Pairs of a coordinate and a tap."""
        return sum(count * len(taps) for count, taps in zip(self.counts, self.taps, strict=True))


#: Meetings of classes with taps up to which edges can be classes of their own: tables of more take too long to make.
_MOST_MEETINGS = 2**22
#: Some coordinates of a grid that meet the same taps: the first, how many, and the pairs of tap and source coordinate
#: that the first one meets.
_Run = tuple[int, int, list[tuple[int, int]]]


def _runs_inside(count: int, step: int, pairs: list[tuple[int, int]], source: int) -> list[_Run] | None:
    """The runs of a grid's `count` coordinates, without the taps that meet a margin; None where these are too many.

    pairs: tap and shift, by the shift.
    """
    shifts = [shift for _, shift in pairs]
    edges = {0, count}
    for shift in shifts:
        # The first coordinates whose source coordinate is at least 0, and at least the source's size.
        edges |= {min(max(-((shift - begin) // step), 0), count) for begin in (0, source)}
    runs, meetings = [], 0
    for begin, end in itertools.pairwise(sorted(edges)):
        first, last = (bisect_left(shifts, at - begin * step) for at in (0, source))
        meetings += last - first + 1
        if meetings > _MOST_MEETINGS:
            return None
        runs.append((begin, end - begin, [(tap, begin * step + shift) for tap, shift in pairs[first:last]]))
    return runs


@lru_cache(4096)
def side(plan: Gather, dimension: int, leaves_out: bool) -> Side:
    """The classes along rows (dimension 0) or columns (1); leaves_out: taps that meet a margin are left out, so that
    the coordinates near the edges are classes of their own, unless these would be too many."""
    size, source = plan.target[dimension], plan.source[dimension]
    phases: dict[tuple[int, ...], set[tuple[int, int]]] = {}
    for grid in plan.grids:
        # Grids whose rows are the same ones may differ in their columns.
        same = (grid.place[dimension], grid.size[dimension], grid.step[dimension], grid.spacing[dimension])
        taps, shifts = ([pair[dimension] for pair in pairs] for pairs in (grid.taps, grid.shifts))
        phases.setdefault(same, set()).update(zip(taps, shifts, strict=True))
    # Runs of coordinates that meet the same taps: first, how many, spacing, step, and what the first one meets.
    runs = []
    for (first, count, step, spacing), met_by in phases.items():
        pairs = sorted(met_by, key=lambda pair: pair[1])
        inside = _runs_inside(count, step, pairs, source) if leaves_out else None
        for begin, length, met in [(0, count, pairs)] if inside is None else inside:
            runs.append((first + begin * spacing, length, spacing, step, sorted(met)))
    kinds, places = np.full(size, -1, np.int64), np.zeros(size, np.int64)
    numbers: dict[tuple[tuple[int, int], ...], int] = {}
    reached = []
    for first, count, spacing, step, met in sorted(runs):
        place = met[0][1] if met else 0
        here = slice(first, first + (count - 1) * spacing + 1, spacing)
        kinds[here] = numbers.setdefault(tuple((tap, at - place) for tap, at in met), len(numbers))
        if met:
            places[here] = place + step * np.arange(count)
            ats = [at for _, at in met]
            reached += [min(ats), max(ats) + step * (count - 1)]
    gaps = kinds < 0
    if gaps.any():
        kinds[gaps] = numbers.setdefault((), len(numbers))
    return Side(
        kinds,
        places,
        tuple(tuple(tap for tap, _ in form) for form in numbers),
        tuple(tuple(shift for _, shift in form) for form in numbers),
        tuple(np.bincount(kinds, minlength=len(numbers)).tolist()),
        (min(reached, default=0), max(reached, default=0)),
    )


def tiles_cost(pixels: int, taps: int, tile_rows: int, few_rows: int) -> float:
    """About the time of a class of pixels on tiles of two sizes, in rows x taps of the larger one."""
    whole, rest = divmod(pixels, tile_rows)
    overhead = 4  # A tile's loads and stores, in taps.
    cost = float(whole * tile_rows * (taps + overhead))
    if rest:
        cost += (few_rows * 1.3 if rest <= few_rows else tile_rows) * (taps + overhead)
    return cost


@lru_cache(4096)
def sides(plan: Gather, images: int, block: int, tile_rows: int, few_rows: int) -> tuple[Side, Side]:
    """Rows and columns of a pass, with edges as classes of their own where that is less work.

    Args:
        plan: the geometry.
        images: N.
        block: output pixels that are sorted into classes together.
        tile_rows, few_rows: pixels of the two tiles.
    """
    best: tuple[float, tuple[Side, Side]] | None = None
    for choice in ((False, False), (True, False), (False, True), (True, True)):
        rows, columns = side(plan, 0, choice[0]), side(plan, 1, choice[1])
        plane = len(rows.kinds) * len(columns.kinds)
        # Whole images share a block, or blocks are bands of an image.
        together = max(1, min(images, block // plane))
        bands = -(-plane // block)
        cost = 0.0
        for r, row_taps in enumerate(rows.taps):
            for c, column_taps in enumerate(columns.taps):
                pixels = rows.counts[r] * columns.counts[c] * together
                cost += bands * tiles_cost(-(-pixels // bands), len(row_taps) * len(column_taps), tile_rows, few_rows)
        if best is None or cost < 0.97 * best[0]:
            best = cost, (rows, columns)
    assert best is not None
    return best[1]
