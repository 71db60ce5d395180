"""The recurrent layers in CUDA C++: matrix products for all steps, and kernels that walk through the steps.

Forward: the inputs' products of all steps, both directions in one; then the steps. Backward: the steps again, which
leave the gradients of all sums; of these, one matrix product each for the gradients of x and of the weights. A place is
a row's step; places lie in the order of x. tiles_cuda.py decides whether a launch runs all steps or one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kernels.recurrence.gpu_speeds import measured
from kernels.recurrence.op import GRU_LAYER, LSTM_LAYER, RNN_LAYER, implement
from kernels.recurrence.plan_gpu import sequence_strides
from kernels.recurrence.problem import SUFFIXES, Layer, Weights
from kernels.recurrence.tiles_cuda import StepTile, step_tile
from kernels.recurrence.weights_cupy import blocks_for, input_weights, packed_weights
from kernels.runtime.cuda_source import storage
from kernels.runtime.cupy_gpu import (
    DTYPES,
    computed_dtype,
    contiguous,
    dtype_name,
    element_strides,
    empty,
    empty_results,
    full,
    index_type,
    launch,
    prepare,
    target_of,
    types,
    vector_of,
    zero_gradients,
    zeros,
)
from kernels.runtime.cupy_missing import missing
from kernels.runtime.cupy_products import matrix_product
from kernels.runtime.targets import TARGETS

Array = Any
_OPS = {"rnn": RNN_LAYER, "lstm": LSTM_LAYER, "gru": GRU_LAYER}


def _dense(array: Array | None) -> Array | None:
    return None if array is None else contiguous(array)


# ----- steps -------------------------------------------------------------------------------------------------------


def _constants(p: Layer, tile: StepTile, lengths: Array | None, *arrays: Array | None) -> dict[str, Any]:
    length = "long long" if lengths is None else storage(dtype_name(lengths))
    return {**types(p.x.dtype), "INDEX": index_type(*arrays), "LENGTH": length, **tile.named()}


def _order(p: Layer, tile: StepTile, lengths: Array | None) -> Array | None:
    """The rows by falling length, so that a block costs its longest row; None where that changes nothing."""
    if lengths is None or tile.path == "stepwise" or not 1 < tile.rows < p.batch:
        return None
    return (-lengths).argsort()


def forward(p: Layer, *inputs: Array | None) -> tuple[Array | None, ...]:
    """The op's inputs -> its results."""
    if p.empty:
        return empty_results(p)
    named = p.named(inputs)
    x, lengths, directions = named["x"], _dense(named["lengths"]), p.weights(named)
    tile = step_tile(p, target_of(x), backward=False)
    cell = tile.cell
    calculated, places = computed_dtype(p.x.dtype), p.steps * p.batch
    sums = empty((places, p.directions * p.gates * p.units), calculated)
    matrix_product(x.reshape(places, p.inputs), input_weights(p, directions).T, sums)
    weights, second = packed_weights(tile, directions, backward=False)
    make = empty if lengths is None else zeros  # what lies past a row's length is 0
    op = _OPS[p.cell]
    made = {name: form and make(form.shape, form.dtype) for name, form in zip(op.results, p.results())}
    all_states, last = made.get("hidden"), None
    if p.return_last:
        last = made["output"]
    else:
        all_states = made["output"]
    kept, cells, c_n = made.get("gate_values"), made.get("cells"), made.get("c_n")
    biases = [_dense(bias) for w in directions for bias in (w.b_ih, w.b_hh)]
    biases += [None] * (4 - len(biases))
    h0, c0 = _dense(named["h0"]), _dense(named.get("c0"))
    constants = _constants(p, tile, lengths, sums, weights, second, all_states, kept, made["h_n"])
    sizes = (
        p.steps,
        p.batch,
        p.units,
        p.hidden,
        *sequence_strides(p, 1),
        *sequence_strides(p, p.directions * p.hidden),
    )
    rows = blocks_for(p.batch, tile.rows)
    written = (all_states, last, made["h_n"], c_n, kept, cells)
    given = (sums, weights, second, *biases, h0, c0, lengths, _order(p, tile, lengths))

    def prepared(phase: int, tiles: int, states: tuple[Array | None, ...]) -> Any:
        """A launch from the first step to the last."""
        return prepare(
            "recurrence/forward.cu", "recurrence_forward", (rows, tiles, p.directions), (tile.threads,),
            *given, *states, *written, 0, p.steps, *sizes,
            constants={**constants, "PHASE": phase}, shared_bytes=tile.shared_bytes,
        )  # fmt: skip

    if tile.path != "stepwise":
        prepared(0, 1, (None,) * 5)()
        return tuple(made.values())
    before, after = (zeros((p.directions, p.batch, cell.wide(p.hidden)), calculated) for _ in range(2))
    of_cells = empty((p.directions, p.batch, p.units), calculated) if p.cell == "lstm" else None
    between = update = None
    if cell.has_second:
        between = zeros((p.directions, p.batch, cell.wide(p.units)), calculated)
        update = empty((p.directions, p.batch, p.units), calculated)
    tiles = (blocks_for(p.units, tile.unit_tile), blocks_for(p.hidden, tile.hidden_tile))
    phases = ((1, tiles[0]), (2, tiles[1])) if cell.has_second else ((0, tiles[0]),)
    launches = [prepared(*phase, (before, after, of_cells, between, update)) for phase in phases]
    for step in range(p.steps):
        for run in launches:
            run(state_before=before, state_after=after, begin=step, end=step + 1)
        before, after = after, before
    return tuple(made.values())


def backward(p: Layer, *incoming: Array | None, **saved: Array | None) -> tuple[Array | None, ...]:
    """Gradients of output, h_n (and c_n), each possibly None -> gradients of the inputs."""
    if p.empty:
        return zero_gradients(p)
    x: Array = saved["x"]
    lengths, directions = _dense(saved["lengths"]), p.weights(saved)
    wanted = dict(zip(_OPS[p.cell].inputs, p.needs_grad))
    walked = _walk_back(p, directions, wanted, incoming, saved)
    found: dict[str, Array] = {"h0": walked.h0, "c0": walked.c0}
    places, rows = p.steps * p.batch, p.gates * p.units
    sums = walked.sums.reshape(places, p.directions * rows)
    if wanted["x"]:
        found["x"] = empty(p.x.shape, p.x.dtype)
        matrix_product(sums, input_weights(p, directions), found["x"].reshape(places, p.inputs))
    if _wants(wanted, "w_ih"):
        x = x.reshape(places, p.inputs) if lengths is None else _without_padding(p, x, lengths)
    totals = _totals(p, walked, wanted)
    for d, suffix in enumerate(SUFFIXES[: p.directions]):
        mine = sums[:, d * rows : (d + 1) * rows]
        if wanted["w_ih" + suffix]:
            found["w_ih" + suffix] = matrix_product(mine.T, x, empty((rows, p.inputs), p.x.dtype))
        if wanted["w_hh" + suffix]:
            found["w_hh" + suffix] = _recurrent_gradient(p, d, mine, walked)
        if wanted.get("w_hr" + suffix):
            of_states, taken = walked.arrived[:, d], walked.met[:, d]
            found["w_hr" + suffix] = matrix_product(of_states.T, taken, empty((p.hidden, p.units), p.x.dtype))
        for name, total in zip(("b_ih", "b_hh"), totals):
            if wanted[name + suffix]:
                found[name + suffix] = total[d].copy()
    return tuple(found[name] if wants else None for name, wants in wanted.items())


def _wants(wanted: dict[str, bool], *names: str) -> bool:
    """Whether any direction's gradient of these is wanted."""
    return any(wanted.get(name + suffix) for name in names for suffix in SUFFIXES)


@dataclass(frozen=True)
class _Walked:
    """What the steps backward leave. Where none of it is wanted it is None.

    Attributes:
        sums: (places, D, G H), gradients of the inputs' sums.
        new: (places, D, H), of w_hn h + b_hn; of a GRU with the reset after.
        old: (places, D, P), the state before each step.
        met: (places, D, H), what the second product took forward.
        arrived: (places, D, P), gradients of projected states.
        h0, c0: gradients of the initial states.
    """

    sums: Array
    new: Array
    old: Array
    met: Array
    arrived: Array
    h0: Array
    c0: Array


def _walk_back(
    p: Layer, directions: tuple[Weights, ...], wanted: dict[str, bool], incoming: tuple[Array | None, ...],
    saved: dict[str, Any],
) -> _Walked:  # fmt: skip
    """Backward through time."""
    tile = step_tile(p, target_of(saved["x"]), backward=True)
    cell = tile.cell
    dtype, calculated, lengths = p.x.dtype, computed_dtype(p.x.dtype), _dense(saved["lengths"])
    weights, second = packed_weights(tile, directions, backward=True)
    make = empty if lengths is None else zeros  # what lies past a row's length is 0

    def of_places(width: int, *, needed: bool = True) -> Array | None:
        return make((p.steps * p.batch, p.directions, width), dtype) if needed else None

    met_by = ("w_hh", "w_hr") if cell.kind == "gru_before" else ("w_hr",)
    walked = _Walked(
        sums=of_places(p.gates * p.units),
        new=of_places(p.units, needed=cell.kind == "gru_after"),
        old=of_places(p.hidden, needed=_wants(wanted, "w_hh")),
        met=of_places(p.units, needed=cell.has_second and _wants(wanted, *met_by)),
        arrived=of_places(p.hidden, needed=_wants(wanted, "w_hr")),
        h0=empty((p.directions, p.batch, p.hidden), dtype),
        c0=empty((p.directions, p.batch, p.units), dtype) if p.cell == "lstm" else None,
    )
    h0, c0, states, kept, cells, grad_h, grad_c = (
        _dense(a)
        for a in (
            saved["h0"], saved.get("c0"), saved["hidden" if p.return_last else "output"], saved.get("gate_values"),
            saved.get("cells"), incoming[1], incoming[2] if len(incoming) > 2 else None,
        )
    )  # fmt: skip
    grad_strides: tuple[int, ...] = (0, 0, 0)
    if incoming[0] is not None:
        grad_strides = element_strides(incoming[0])
        if p.return_last:
            grad_strides = (0, *grad_strides)
        elif p.batch_first:
            grad_strides = (grad_strides[1], grad_strides[0], grad_strides[2])
    given = (
        weights,
        second,
        h0,
        c0,
        lengths,
        _order(p, tile, lengths),
        states,
        kept,
        cells,
        incoming[0],
        grad_h,
        grad_c,
    )
    written = (walked.sums, walked.new, walked.old, walked.met, walked.arrived, walked.h0, walked.c0)
    constants = _constants(
        p, tile, lengths, weights, second, states, kept, incoming[0], walked.sums, walked.old, walked.h0
    )  # fmt: skip
    width = p.directions * p.hidden
    sizes = (p.steps, p.batch, p.units, p.hidden, p.return_last, *sequence_strides(p, 1), *sequence_strides(p, width))
    rows = blocks_for(p.batch, tile.rows)

    def prepared(phase: int, tiles: int, carried: tuple[Array | None, ...]) -> Any:
        """A launch from the last step to what is left after the first."""
        return prepare(
            "recurrence/backward.cu", "recurrence_backward", (rows, tiles, p.directions), (tile.threads,),
            *given, *carried, *written, 0, p.steps + 1, *sizes, *grad_strides,
            constants={**constants, "PHASE": phase}, shared_bytes=tile.shared_bytes,
        )  # fmt: skip

    if tile.path != "stepwise":
        prepared(0, 1, (None,) * 5)()
        return walked
    terms = cell.first_gates * cell.wide(p.units)
    before, after = (zeros((p.directions, p.batch, terms), calculated) for _ in range(2))
    of_states = empty((p.directions, p.batch, p.hidden), calculated)
    of_cells = empty((p.directions, p.batch, p.units), calculated) if p.cell == "lstm" else None
    between = zeros((p.directions, p.batch, cell.wide(p.hidden)), calculated) if cell.has_second else None
    tiles = (blocks_for(p.hidden, tile.hidden_tile), blocks_for(p.units, tile.unit_tile))
    phases = ((1, tiles[0]), (2, tiles[1])) if cell.has_second else ((0, tiles[0]),)
    launches = [prepared(*phase, (before, after, of_states, of_cells, between)) for phase in phases]
    for number in range(p.steps + 1):
        # What is left after the first step has no second product.
        for run in launches[: 1 if number == p.steps else None]:
            run(sums_before=before, sums_after=after, begin=number, end=number + 1)
        before, after = after, before
    return walked


# ----- gradients of weights ----------------------------------------------------------------------------------------


def _without_padding(p: Layer, x: Array, lengths: Array) -> Array:
    """x (places, I) with zeros past the rows' lengths: there 0 would meet whatever lies in x, NaN perhaps."""
    masked = empty((p.steps * p.batch, p.inputs), p.x.dtype)
    strides = element_strides(x)
    vector = vector_of(p.inputs, x, masked)
    by_time = (strides[1], strides[0]) if p.batch_first else strides[:2]
    constants: dict[str, int | str] = {
        "STORAGE": storage(p.x.dtype),
        "INDEX": index_type(x, masked),
        "LENGTH": storage(dtype_name(lengths)),
        "VECTOR": vector,
    }
    launch(
        "recurrence/mask_padding.cu", "mask_padding", (blocks_for(masked.size // vector, 256),), (256,),
        x, lengths, masked, p.steps, p.batch, p.inputs, p.batch_first, *by_time, strides[2], constants=constants,
    )  # fmt: skip
    return masked


def _recurrent_gradient(p: Layer, d: int, sums: Array, walked: _Walked) -> Array:
    """The gradient of a direction's w_hh; the new gate of a GRU meets other numbers than its other gates."""
    found = empty((p.gates * p.units, p.hidden), p.x.dtype)
    old, both = walked.old[:, d], 2 * p.units
    if p.cell != "gru":
        return matrix_product(sums.T, old, found)
    matrix_product(sums[:, :both].T, old, found[:both])
    if walked.new is not None:
        matrix_product(walked.new[:, d].T, old, found[both:])
    else:
        matrix_product(sums[:, both:].T, walked.met[:, d], found[both:])
    return found


def _totals(p: Layer, walked: _Walked, wanted: dict[str, bool]) -> tuple[Array, Array]:
    """Gradients of b_ih and of b_hh of all directions, (D, G H): sums over the places."""
    if not _wants(wanted, "b_ih", "b_hh"):
        return None, None
    places = p.steps * p.batch
    ones = full((1, places), p.x.dtype, 1)

    def total(gradients: Array) -> Array:
        width = gradients.shape[2]
        made = empty((1, p.directions * width), p.x.dtype)
        return matrix_product(ones, gradients.reshape(places, -1), made).reshape(p.directions, width)

    of_input = total(walked.sums)
    if walked.new is None:
        return of_input, of_input
    of_state = of_input.copy()
    of_state[:, 2 * p.units :] = total(walked.new)
    return of_input, of_state


# ----- what `explain` is told --------------------------------------------------------------------------------------

_WORDS = {
    "held": "whole sequence in one launch, weights held on chip",
    "streamed": "whole sequence in one launch, weights from L2",
    "stepwise": "one launch a step",
}


def reasons(p: Layer) -> list[str]:
    """Why no device can run it, or not the current one: states of a single row are more than its shared memory."""
    target = target_of(None) if missing() is None else TARGETS["sm_90"]
    try:
        for backward in (False, True)[: 1 + p.trains]:
            step_tile(p, target, backward=backward)
    except ValueError as error:
        return [f"{error} of shared memory"]
    return []


def describe(p: Layer) -> str:
    """The path, and the tile."""
    tile = step_tile(p, target_of(None), backward=False)
    words = _WORDS[tile.path]
    if tile.path == "stepwise" and tile.cell.has_second:
        words = "two launches a step"
    units = f" and {tile.unit_tile} units" if tile.path == "stepwise" else ""
    return f"{words}, {tile.rows} row{'s' if tile.rows > 1 else ''}{units} a block"


for _op in _OPS.values():
    implement(_op, "cupy", forward, backward, dtypes=DTYPES, reasons=reasons, describe=describe, measured=measured)
