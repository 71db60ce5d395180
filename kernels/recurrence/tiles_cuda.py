"""What a block of the CUDA kernels works on at each step of a recurrence, and where it lies in shared memory.

A step multiplies the states of a few rows, in shared memory, by packed weights. The threads of a block stand in `lanes`
columns and in splits of the terms; each has `each` columns `lanes` apart and all rows, so that one load of 16 bytes of
weights serves rows x 16 bytes of products. In half precision tensor cores multiply, 16 columns and terms by eight rows
at a time. Sums go through shared memory, where the cells add the splits up.

Everything here is a pure function; the kernels get the numbers as compile-time constants.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from kernels.recurrence.plan_gpu import has_second_product, kind_of, recurrent_bytes
from kernels.recurrence.problem import Layer
from kernels.runtime.targets import Target

PATHS = ("held", "streamed", "stepwise")
#: Cells by their number in cells.cuh.
NUMBERS = {"rnn_tanh": 0, "rnn_relu": 1, "lstm": 2, "gru_after": 3, "gru_before": 4}
#: The most weights of a direction that one block streams at every step. A multiprocessor takes some 64 bytes a clock
#: from the L2 cache, so these cost about 5 us a step: more than a launch, which spreads them over all of the GPU.
STREAMED_BYTES = 512 << 10
#: Sums that a thread keeps, in 4 bytes.
MOST_SUMS = 32
#: Numbers of the input's sums that a thread asks for ahead, in 4 bytes.
MOST_AHEAD = 32
#: Sizes are rounded up to this, so that columns fill whole sectors of 32 bytes; on tensor cores to their tiles.
ROUND, CORES_ROUND = 8, 16
#: Units of a block where it has not all of them.
UNIT_TILES = (64, 32, 16, 8)


@dataclass(frozen=True)
class Cell:
    """What the tiles depend on besides the batch.

    Attributes:
        kind: of `plan_gpu.KINDS`.
        units: H.
        hidden: P, size of the hidden state.
        projects: whether the hidden state is a projection of the units.
        itemsize: bytes of a stored number.
        cores: whether tensor cores multiply.
    """

    kind: str
    units: int
    hidden: int
    projects: bool
    itemsize: int
    cores: bool

    @property
    def computed_size(self) -> int:
        """Bytes of a number that is computed with."""
        return max(self.itemsize, 4)

    @property
    def pack(self) -> int:
        """Stored numbers in 16 bytes."""
        return 16 // self.itemsize

    def wide(self, n: int) -> int:
        """A number of units or states rounded up to whole packs and tiles."""
        step = CORES_ROUND if self.cores else ROUND
        return -(-n // step) * step

    @property
    def gates(self) -> int:
        """G."""
        return {"lstm": 4, "gru_after": 3, "gru_before": 3}.get(self.kind, 1)

    @property
    def first_gates(self) -> int:
        """Gates of the first product of a step."""
        return 2 if self.kind == "gru_before" else self.gates

    @property
    def has_second(self) -> bool:
        """Whether a step has a second product, of the result of the first."""
        return self.projects or self.kind == "gru_before"


@dataclass(frozen=True)
class ProductTile:
    """How the threads of a block share a product.

    Attributes:
        lanes: columns that are taken side by side, by a thread each, or 16 of them by a warp with tensor cores.
        each: how many of a thread, `lanes` apart.
        split: groups of threads that share out the terms.
        row_stride: distance of the rows in the sums [rows][splits][columns], which keeps banks apart.
    """

    lanes: int
    each: int
    split: int
    row_stride: int


@dataclass(frozen=True)
class StepTile:
    """What a block works on.

    Attributes:
        cell: what is computed.
        path: one of `PATHS`.
        rows: rows of the batch, a power of two.
        threads: of a block.
        unit_tile: units of a block, all of them (rounded up) unless path is "stepwise".
        hidden_tile: states of a block, likewise.
        first, second: the products of a step; equal where there is one alone.
        constants: further compile-time constants by name: places in shared memory and strides.
        shared_bytes: shared memory of a block.
    """

    cell: Cell
    path: str
    rows: int
    threads: int
    unit_tile: int
    hidden_tile: int
    first: ProductTile
    second: ProductTile
    constants: tuple[tuple[str, int], ...] = field(repr=False)
    shared_bytes: int

    def named(self) -> dict[str, int]:
        """Every constant of the kernels that is a number."""
        cell = self.cell
        return {
            "KIND": NUMBERS[cell.kind],
            "PROJECTS": int(cell.projects),
            "STEPWISE": int(self.path == "stepwise"),
            "HELD": int(self.path == "held"),
            "CORES": int(cell.cores),
            "ROWS": self.rows,
            "THREADS": self.threads,
            "UNIT_TILE": self.unit_tile,
            "UNITS_WIDE": cell.wide(cell.units),
            "HIDDEN_TILE": self.hidden_tile,
            "HIDDEN_WIDE": cell.wide(cell.hidden),
            "FIRST_LANES": self.first.lanes,
            "FIRST_EACH": self.first.each,
            "FIRST_SPLIT": self.first.split,
            "FIRST_STRIDE": self.first.row_stride,
            "SECOND_LANES": self.second.lanes,
            "SECOND_EACH": self.second.each,
            "SECOND_SPLIT": self.second.split,
            "SECOND_STRIDE": self.second.row_stride,
            **dict(self.constants),
        }


@dataclass(frozen=True)
class Asked:
    """What `use_step_tile` asks for; None leaves it to the functions here."""

    path: str | None = None
    rows: int | None = None
    unit_tile: int | None = None
    cores: bool | None = None


_override: ContextVar[Asked | None] = ContextVar("step_tile", default=None)


@contextmanager
def use_step_tile(
    path: str | None = None, rows: int | None = None, unit_tile: int | None = None, cores: bool | None = None
) -> Iterator[None]:
    """For every recurrence inside: this path, so many rows and (stepwise) units a block, tensor cores or not."""
    token = _override.set(Asked(path, rows, unit_tile, cores))
    try:
        yield
    finally:
        _override.reset(token)


def cell_of(p: Layer) -> Cell:
    """The cell of a problem."""
    assert (kind_of(p) == "gru_before" or p.projects) == has_second_product(p)
    return Cell(kind_of(p), p.units, p.hidden, p.projects, p.x.itemsize, p.x.itemsize == 2)


def stride_for(width: int, tile: int) -> int:
    """The least stride from `width` on with which rows of `tile` neighbours follow each other through the banks."""
    return width + (tile - width) % 32


def threads_of(elements: int) -> int:
    """Threads for a block whose step multiplies so many weights by each row."""
    return 128 if elements <= 4096 else 256 if elements <= 32768 else 512


def _banks_apart(lanes: int, columns: int) -> bool:
    """Whether the sums of a warp, which may be of several splits, go to different banks."""
    if lanes >= 32:
        return True
    return len({(split * columns + lane) % 32 for split in range(32 // lanes) for lane in range(lanes)}) == 32


def product_tile(columns: int, terms: int, rows: int, threads: int, tile: int, cell: Cell) -> ProductTile:
    """How the threads share a product: the way of the least work for a thread.

    Args:
        columns: of the product.
        terms: of each sum.
        rows: of the block.
        threads: of the block.
        tile: units or states of which the columns are made up, gate by gate.
        cell: for the sizes of numbers.
    """
    chunks = -(-terms // (16 if cell.cores else cell.pack))
    step, most = (16, threads // 2) if cell.cores else (ROUND, threads)
    best: tuple[float, int, int] | None = None
    for lanes in range(step, most + 1, step):
        split = most // lanes
        apart = cell.cores or ((lanes <= 32 or lanes % 32 == 0) and _banks_apart(lanes, columns))
        if most % lanes or not apart:
            continue
        for each in range(1, 5):
            if each > 1 and not cell.cores and each * rows * cell.computed_size // 4 > MOST_SUMS:
                continue
            # Issue slots of a thread: loads of 16 bytes of weights take four, products one (on tensor cores two and two
            # loads of states), sums are stored and read.
            turn = 4 * each + rows * cell.pack * cell.computed_size // 16 + each * rows * cell.pack
            if cell.cores:
                turn = 4 * each + 2 + 2 * each
            work = -(-columns // (lanes * each)) * (-(-chunks // split) * turn + each * (4 if cell.cores else rows))
            cost = work + rows * columns / threads * split
            if best is None or cost < best[0]:
                best = cost, lanes, each
    assert best is not None  # a whole warp always does
    split = most // best[1]
    # Tensor cores leave the sums of rows 0, 2, 4, 6 of eight columns in a warp.
    stride = stride_for(split * columns, 4 if cell.cores else tile)
    return ProductTile(best[1], best[2], split, stride)


def _shared(
    tile: StepTile, *, backward: bool, held_elements: tuple[int, int]
) -> tuple[tuple[tuple[str, int], ...], int]:
    """(places in shared memory, in numbers that are computed with, and strides of factors; bytes)."""
    cell = tile.cell
    first_terms = cell.first_gates * cell.wide(cell.units) if backward else cell.wide(cell.hidden)
    second_terms = cell.wide(cell.hidden if backward and cell.projects else cell.units)
    if cell.cores:
        # Eight rows, four words apart: the pairs that the lanes of a warp take lie in different banks.
        factor_rows, factor_size = 8, cell.itemsize
        state_stride, between_stride = (2 * stride_for(n // 2, 4) for n in (first_terms, second_terms))
    else:
        factor_rows, factor_size = tile.rows, cell.computed_size
        second_tile = tile.hidden_tile if backward and cell.projects else tile.unit_tile
        state_stride, between_stride = stride_for(first_terms, tile.hidden_tile), stride_for(second_terms, second_tile)
    between_stride *= cell.has_second
    sums = max(tile.first.row_stride, tile.second.row_stride if cell.has_second else 0)
    held = tuple(n * cell.itemsize if tile.path == "held" else 0 for n in held_elements)
    biases = 0 if backward else cell.gates + (cell.kind == "gru_after")
    of_unit, of_state = (tile.rows * size * cell.computed_size for size in (tile.unit_tile, tile.hidden_tile))
    sizes = {
        "AT_ROWS": 2 * tile.rows * 4,
        "AT_WEIGHTS": held[0],
        "AT_SECOND": held[1],
        "AT_STATE": factor_rows * state_stride * factor_size,
        "AT_BETWEEN": factor_rows * between_stride * factor_size,
        "AT_BIAS": biases * tile.unit_tile * cell.computed_size,
        "AT_OWN": 0 if backward else of_state,
        "AT_CELL": of_unit if cell.kind == "lstm" else 0,
        "AT_UPDATE": of_unit if cell.kind == "gru_before" and not backward else 0,
        "AT_CARRIED": of_state if backward else 0,
        "AT_SUMS": tile.rows * sums * cell.computed_size,
    }
    places, at = {}, 0
    for name, size in sizes.items():
        places[name] = at
        at += -(-size // 16) * 16 // cell.computed_size
    places |= {"STATE_STRIDE": state_stride, "BETWEEN_STRIDE": between_stride}
    return tuple(places.items()), at * cell.computed_size


def _tile(cell: Cell, path: str, rows: int, unit_tile: int, hidden_tile: int, *, backward: bool) -> StepTile:
    """The tile of a path, of so many rows, units and states."""
    units, hidden = cell.wide(cell.units), cell.wide(cell.hidden)
    if backward:
        first = (hidden_tile, cell.first_gates * units, hidden_tile)
        second = (unit_tile, hidden if cell.projects else units, unit_tile)
    else:
        first = (cell.first_gates * unit_tile, hidden, unit_tile)
        second = (hidden_tile if cell.projects else unit_tile, units, hidden_tile if cell.projects else unit_tile)
    elements = first[0] * first[1]
    threads = threads_of(elements)
    products = [product_tile(c, k, rows, threads, t, cell) for c, k, t in (first, second)]
    if not cell.has_second:
        products[1] = products[0]
    tile = StepTile(cell, path, rows, threads, unit_tile, hidden_tile, products[0], products[1], (), 0)
    held = (elements, second[0] * second[1] if cell.has_second else 0)
    constants, shared = _shared(tile, backward=backward, held_elements=held)
    return replace(tile, constants=constants, shared_bytes=shared)


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def most_rows(cell: Cell) -> int:
    """The most rows of a block."""
    return MOST_SUMS // cell.computed_size


def step_tile(p: Layer, target: Target, *, backward: bool) -> StepTile:
    """The tile for a problem.

    Args:
        p: the problem.
        target: the GPU.
        backward: of the backward pass.

    Raises:
        ValueError: no tile fits the GPU's shared memory.
    """
    cell, asked = cell_of(p), _override.get() or Asked()
    if asked.cores is not None:
        cell = replace(cell, cores=asked.cores)
    if asked.path != "stepwise":
        tile = _whole(cell, p, target, asked, backward=backward)
        if tile is not None:
            return tile
    return _stepwise(cell, p, target, asked, backward=backward)


def _whole(cell: Cell, p: Layer, target: Target, asked: Asked, *, backward: bool) -> StepTile | None:
    """The tile that runs all steps in one launch, or None where the weights are too large for that."""
    rows = _power_of_two(-(-p.batch * p.directions // target.multiprocessors))
    rows = asked.rows or min(rows, most_rows(cell), _power_of_two(p.batch))
    units, hidden = cell.wide(cell.units), cell.wide(cell.hidden)
    # More units than this would need more registers for what is asked for ahead.
    ahead = -(-units // 512) * cell.gates * cell.computed_size // 4
    if asked.path is None and ahead > MOST_AHEAD:
        return None
    while asked.rows is None and rows > 1 and rows * ahead > MOST_AHEAD:
        rows //= 2
    if asked.path in (None, "held"):
        held = _tile(cell, "held", rows, units, hidden, backward=backward)
        if held.shared_bytes <= target.block_shared:
            return held
    if asked.path in (None, "streamed"):
        streamed = _tile(cell, "streamed", rows, units, hidden, backward=backward)
        if streamed.shared_bytes <= target.block_shared and (asked.path or recurrent_bytes(p) <= STREAMED_BYTES):
            return streamed
    if asked.path is not None:
        raise ValueError(f"use_step_tile: path {asked.path!r} must fit {target.block_shared} bytes of shared memory")
    return None


def _stepwise(cell: Cell, p: Layer, target: Target, asked: Asked, *, backward: bool) -> StepTile:
    """The tile that runs one step in a launch: the one with the least time by what blocks read and multiply."""
    best: tuple[float, StepTile] | None = None
    rows = asked.rows or min(most_rows(cell), _power_of_two(p.batch))
    while rows >= 1:
        # Rows of a tile are whole sectors of 32 bytes.
        usual = [size for size in UNIT_TILES if size * cell.itemsize >= 32]
        for size in (asked.unit_tile,) if asked.unit_tile else usual:
            tile = _tile(cell, "stepwise", rows, size, size, backward=backward)
            if tile.shared_bytes > target.block_shared:
                continue
            elements = _elements(tile, backward=backward)
            blocks = -(-p.batch // rows) * -(-cell.units // size) * p.directions
            # Clocks of a block: 64 bytes of weights each from the L2 cache, or 128 products; tensor cores 1024.
            clocks = max(elements * cell.itemsize / 64, elements * (1 / 128 if cell.cores else rows / 128))
            time = -(-blocks // target.multiprocessors) * clocks
            if best is None or time < best[0]:
                best = time, tile
        if asked.rows:
            break
        rows //= 2
    if best is None and cell.cores:
        # Tensor cores want eight rows of states, ordinary units do with one.
        return _stepwise(replace(cell, cores=False), p, target, asked, backward=backward)
    if best is None:
        raise ValueError(f"a step's {cell.units} units and {cell.hidden} states do not fit {target.block_shared} bytes")
    return best[1]


def _elements(tile: StepTile, *, backward: bool) -> int:
    """Weights of the first product that a block reads at a step."""
    cell = tile.cell
    if backward:
        return tile.hidden_tile * cell.first_gates * cell.wide(cell.units)
    return tile.unit_tile * cell.first_gates * cell.wide(cell.hidden)
