"""Recurrent weights as the CUDA kernels' products read them, and the input's weights of both directions together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kernels.recurrence.problem import Layer, Weights
from kernels.recurrence.tiles_cuda import StepTile
from kernels.runtime.cuda_source import storage
from kernels.runtime.cupy_gpu import dtype_name, element_strides, empty, index_type, launch

Array = Any


def blocks_for(total: int, tile: int) -> int:
    """How many tiles cover a number of things."""
    return -(-total // tile)


@dataclass(frozen=True)
class _Axis:
    """Columns or terms of a product: `groups` of `count` each, of which `width` lie side by side, and their strides."""

    groups: int
    count: int
    width: int
    group_stride: int
    stride: int


def _packed(sources: list[Array], columns: list[_Axis], terms: list[_Axis], *, cores: bool) -> Array:
    """Each direction's weights as pack_weights.cu lays them out, (D, tiles, terms * columns of a tile)."""
    first, dtype = columns[0], dtype_name(sources[0])
    tiles = blocks_for(first.count, first.width)
    tile_columns, all_terms = first.groups * first.width, terms[0].groups * terms[0].width
    packed = empty((len(sources), tiles, all_terms * tile_columns), dtype)
    for d, (source, column, term) in enumerate(zip(sources, columns, terms)):
        constants: dict[str, int | str] = {
            "STORAGE": storage(dtype),
            "INDEX": index_type(source, packed),
            "CORES": int(cores),
        }
        launch(
            "recurrence/pack_weights.cu", "pack_weights",
            (blocks_for(tile_columns, 32), blocks_for(all_terms, 32), tiles), (256,),
            source, packed[d], tile_columns, all_terms, column.width, term.width, column.count, term.count,
            term.stride == 1, column.group_stride, column.stride, term.group_stride, term.stride, constants=constants,
        )  # fmt: skip
    return packed


def packed_weights(tile: StepTile, directions: tuple[Weights, ...], *, backward: bool) -> tuple[Array, ...]:
    """(weights of the first product, of the second or None) of every direction."""
    cell = tile.cell
    units, hidden = cell.wide(cell.units), cell.wide(cell.hidden)

    def packed(sources: list[Array], rows: tuple[int, int, int], columns: tuple[int, int]) -> Array:
        """rows: groups, rows of each, of which so many side by side; columns: how many, side by side."""
        row_axes, column_axes = [], []
        for source in sources:
            down, across = element_strides(source)
            row_axes.append(_Axis(*rows, rows[1] * down, down))
            column_axes.append(_Axis(1, *columns, 0, across))
        return _packed(sources, *((column_axes, row_axes) if backward else (row_axes, column_axes)), cores=cell.cores)

    recurrent = [w.w_hh for w in directions]
    rows = (cell.first_gates, cell.units, units if backward else tile.unit_tile)
    first = packed(recurrent, rows, (cell.hidden, tile.hidden_tile if backward else hidden))
    if cell.kind == "gru_before":
        new = [w[2 * cell.units :] for w in recurrent]
        rows = (1, cell.units, units if backward else tile.unit_tile)
        return first, packed(new, rows, (cell.units, tile.unit_tile if backward else units))
    if cell.projects:
        rows = (1, cell.hidden, hidden if backward else tile.hidden_tile)
        columns = (cell.units, tile.unit_tile if backward else units)
        return first, packed([w.w_hr for w in directions], rows, columns)
    return first, None


def input_weights(p: Layer, directions: tuple[Weights, ...]) -> Array:
    """w_ih of every direction, one below the other."""
    if len(directions) == 1:
        return directions[0].w_ih
    rows = p.gates * p.units
    joined = empty((p.directions * rows, p.inputs), p.x.dtype)
    for d, w in enumerate(directions):
        joined[d * rows : (d + 1) * rows] = w.w_ih
    return joined
