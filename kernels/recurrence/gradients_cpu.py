"""Backward of the recurrent layers on the CPU: into which blocks and groups it falls, and who takes them."""

from __future__ import annotations

from ctypes import memset
from typing import Any, NamedTuple

import numpy as np

from kernels.recurrence import forward as fw
from kernels.recurrence.backward import BackSizes, with_memory
from kernels.recurrence.facts import (
    GRAIN,
    Facts,
    Packs,
    facts_of,
    lies_plainly,
    packs_of,
    sequence_memory,
    x_strides_of,
)
from kernels.recurrence.forward import in_memory, panels_of
from kernels.recurrence.panels import LARGE_ROWS, RUN_TAPS
from kernels.recurrence.problem import SUFFIXES, Layer
from kernels.recurrence.sequence import Walk, walk
from kernels.recurrence.weight_gradients import add_biases, add_blocks, run_blocks, run_pieces, run_steps
from kernels.runtime.by_address import Run, gradient_forms
from kernels.runtime.numba_cpu import address, contiguous, empty, scratch, threads_for, zeros
from kernels.simd import VECTOR_BYTES

Array = np.ndarray[Any, Any]

#: Bytes of the gradients of sums of a block's group: half of a usual L2, in which they and what they meet are found.
GROUP_BYTES = 1 << 19
#: Rows that a block has at least, for which the weights are read once a step, but for a second block, which takes
#: fewer; and blocks that there are at most.
LEAST_ROWS, LEAST_ROWS_OF_TWO, MOST_BLOCKS = 16, 4, 8
#: Elements to add up that are worth a thread.
ADD_GRAIN = 1 << 17
#: Bytes of the weights' gradients of all blocks together, at most.
GRADIENT_BYTES = 1 << 26


class _Run(NamedTuple):
    """How a backward pass runs: the problem with all that follows from it, from the lengths and from what flows in."""

    way: Walk
    sizes: BackSizes
    memory: Array  # the sizes as compiled code takes them
    # int64, see products_back.
    columns: Array
    x_columns: Array
    row_taps: Array
    state_taps: Array
    # int64: where the sums of the biases' gradients lie, in the order of b_hh and of b_ih.
    bias: Array
    x_bias: Array
    #: The weights of the recurrent product, those of the second one, and the input's.
    packs: Packs


def _kept_sums(p: Layer, facts: Facts) -> int:
    """How many sums' gradients a unit has: one a gate, and two for n of a GRU that resets after the product."""
    return 4 if facts.kind == fw.GRU_AFTER else p.gates


def blocks_of(p: Layer, facts: Facts) -> int:
    """Into how many blocks the rows of a batch fall, whatever the threads."""
    weights = facts.rows * (p.inputs + p.hidden) * facts.dtype.itemsize
    wanted = max(p.batch // LEAST_ROWS, min(2, p.batch // LEAST_ROWS_OF_TWO))
    return max(1, min(wanted, MOST_BLOCKS, GRADIENT_BYTES // max(1, weights)))


def _run_of(
    p: Layer, lengths: Array | None, x_strides: tuple[int, int], arrives: tuple[bool, ...], threads: int
) -> _Run | None:
    """How a call runs in which some of the gradients arrive; None where every row has length 0."""
    facts = facts_of(p)
    key = (threads, *x_strides, *arrives)
    known: _Run | None = facts.runs.get(key) if lengths is None else None
    if known is not None:
        return known
    way = walk(p, lengths, blocks_of(p, facts))
    if way.total == 0:
        return None
    sizes = _sizes(p, facts, way, arrives, threads, x_strides)
    lanes, units = VECTOR_BYTES // facts.dtype.itemsize, p.units
    unit = np.arange(units)
    # In vectors; a gate begins with one.
    elements = np.arange(_kept_sums(p, facts))[:, None] * (-(-units // lanes) * lanes) + unit
    x_elements = elements[[0, 1, 3]] if facts.kind == fw.GRU_AFTER else elements
    bias, x_bias = elements[: p.gates].reshape(-1), x_elements.reshape(-1)

    def columns_of(places: Array) -> Array:
        """Where the columns of a direction's sums begin, and LARGE_ROWS more, the last one again."""
        places = np.concatenate([places, np.full(LARGE_ROWS, places[-1])])
        return places // lanes * lanes * sizes.group_rows + places % lanes

    rows = np.arange(sizes.group_rows + LARGE_ROWS)
    state_taps = np.concatenate([rows * p.hidden, np.arange(p.hidden + LARGE_ROWS)])
    run = _Run(
        way, sizes, in_memory(sizes), columns_of(bias), columns_of(x_bias), rows * lanes, state_taps, bias, x_bias,
        _packs(p, facts),
    )  # fmt: skip
    if lengths is None:
        facts.runs[key] = run
    return run


def _sizes(
    p: Layer, facts: Facts, way: Walk, arrives: tuple[bool, ...], threads: int, x_strides: tuple[int, int]
) -> BackSizes:
    item = facts.dtype.itemsize
    features = p.directions * p.hidden
    time, row = (features, p.steps * features) if p.batch_first else (p.batch * features, features)
    dx_time, dx_row = (p.inputs, p.steps * p.inputs) if p.batch_first else (p.batch * p.inputs, p.inputs)
    second_panels, second_taps = 0, 1
    if facts.kind == fw.GRU_BEFORE:
        second_panels, second_taps = panels_of(p.hidden, item), p.units
    elif p.projects:
        second_panels, second_taps = panels_of(p.units, item), p.hidden
    vectors = _kept_sums(p, facts) * -(-p.units * item // VECTOR_BYTES)
    rows = max(RUN_TAPS, GROUP_BYTES // (vectors * VECTOR_BYTES))
    wanted = dict(zip(facts.inputs, p.needs_grad))

    def wants(*names: str) -> int:
        return int(any(wanted.get(name + suffix) for name in names for suffix in SUFFIXES))

    sizes = BackSizes(
        kind=facts.kind,
        directions=p.directions,
        blocks=way.row_parts,
        pieces=-(-threads // way.row_parts),
        steps=way.steps,
        all_steps=p.steps,
        group_steps=min(way.steps, max(1, rows // way.most_rows)),
        batch=p.batch,
        inputs=p.inputs,
        units=p.units,
        hidden=p.hidden,
        kept=p.kept_gates,
        vectors=vectors,
        taps=facts.recurrent,
        x_taps=facts.rows,
        x_panels=panels_of(p.inputs, item),
        recurrent_panels=panels_of(p.hidden, item),
        unit_panels=panels_of(p.units, item),
        second_panels=second_panels,
        second_taps=second_taps,
        x_time=x_strides[0],
        x_row=x_strides[1],
        dx_time=dx_time,
        dx_row=dx_row,
        states_time=time,
        states_row=row,
        grad_time=0 if p.return_last else time,
        grad_row=features if p.return_last else row,
        has_grad=int(arrives[0]),
        only_last=int(p.return_last),
        has_grad_h=int(arrives[1]),
        has_grad_c=int(len(arrives) > 2 and arrives[2]),
        has_h0=int(p.h0 is not None),
        has_c0=int(getattr(p, "c0", None) is not None),
        wants_x=int(wanted["x"]),
        wants_w_ih=wants("w_ih"),
        wants_w_hh=wants("w_hh"),
        wants_w_hr=wants("w_hr"),
        wants_bias=wants("b_ih", "b_hh"),
        most_rows=way.most_rows,
    )
    return with_memory(sizes, item)


def _packs(p: Layer, facts: Facts) -> Packs:
    units, hidden, item = p.units, p.hidden, facts.dtype.itemsize
    w_ih, w_hh, _, _, w_hr = ([facts.weights[d * 5 + i] for d in range(p.directions)] for i in range(5))
    second: list[tuple[int, int, int, int]] = []
    if facts.kind == fw.GRU_BEFORE:
        second = [(place, facts.recurrent * hidden * item, hidden, units) for place in w_hh]
    elif p.projects:
        second = [(place, 0, units, hidden) for place in w_hr]
    first = [(place, 0, hidden, facts.recurrent) for place in w_hh]
    return packs_of((first, second, [(place, 0, p.inputs, facts.rows) for place in w_ih if p.needs_grad[0]]), item)


def _nothing_but_states(p: Layer, facts: Facts, incoming: tuple[Array | None, ...]) -> tuple[Array | None, ...]:
    """The gradients when every row has length 0: the states' own, and zeros."""
    found: dict[str, Any] = {}
    for name, form, wanted in zip(facts.inputs, p.gradients(), p.needs_grad):
        found[name] = zeros(form.shape, facts.dtype) if form is not None and wanted else None
    for name, gradient in zip(("h0", "c0"), incoming[1:]):
        if gradient is not None and found[name] is not None:
            found[name][...] = gradient
    return tuple(found.values())


def _compute(p: Layer, run: _Run, threads: int, arriving: tuple[int, ...], made: tuple[int, ...]) -> None:
    """The pass from the addresses of the gradients and of what is saved to those of the inputs' gradients.

    0 for what is not there or not wanted.
    """
    facts, way, sizes = facts_of(p), run.way, run.sizes
    dtype = facts.dtype
    # A block's thread reads the weights that another core has packed from that one's cache, once.
    w_h, w_second, w_x = run.packs.make(arriving[facts.arriving :], dtype, min(threads, sizes.blocks))
    work = scratch(sizes.parts * sizes.each, dtype)
    places = scratch(sizes.parts * sizes.group_rows, np.int64)
    # What a kernel writes and nobody wants.
    spare = scratch(facts.spare, dtype)
    unwanted = address(spare)
    dh0, dc0 = (made[i] or unwanted if i >= 0 else unwanted for i in (facts.h0, facts.c0))
    tables = (run.columns, run.row_taps, run.state_taps)
    saved = [place or facts.nothing_at for place in facts.saved_of((*arriving, 0))]
    arrays = (w_h, w_second, *saved, dh0, dc0)
    walked = (run.memory, way.bounds, way.order, way.ends, way.counts)
    if threads <= sizes.blocks:
        run_blocks(
            sizes.blocks, threads, *walked, run.columns, run.x_columns, run.row_taps, run.state_taps, *arrays[:2], w_x,
            *arrays[2:], made[0], work, places,
        )  # fmt: skip
    else:
        products = (run.memory, way.bounds, way.counts, run.columns, run.x_columns, *tables[1:], w_x, work, places)
        for begin in range(0, sizes.steps, sizes.group_steps):
            end = min(begin + sizes.group_steps, sizes.steps)
            run_steps(sizes.parts, threads, begin, end, *walked, *tables, *arrays, work, places)
            for d in range(p.directions):
                run_pieces(sizes.blocks * sizes.pieces, threads, d, begin, end, *products, made[0])
    rows = sizes.x_taps + sizes.taps + sizes.second_taps * (sizes.second_panels > 0)
    adders = threads_for(rows * sizes.blocks * p.inputs, ADD_GRAIN)
    for d in range(p.directions):
        w_ih, w_hh, b_ih, b_hh, w_hr = [made[i] if i >= 0 else 0 for i in facts.weights[d * 5 : d * 5 + 5]]
        if sizes.wants_w_ih or sizes.wants_w_hh or sizes.wants_w_hr:
            add_blocks(rows, adders, d, run.memory, work, w_ih or unwanted, w_hh or unwanted, w_hr or unwanted)
        if b_ih or b_hh:
            add_biases(d, run.memory, work, run.x_bias, run.bias, b_ih, b_hh)


def backward(p: Layer, *incoming: Array | None, **saved: Any) -> tuple[Array | None, ...]:
    """Gradients of output, h_n (and c_n), each possibly None -> gradients of the inputs."""
    facts, dtype = facts_of(p), np.dtype(p.x.dtype)
    threads = threads_for(facts.work, GRAIN)
    x, *strides = sequence_memory(p, saved["x"])
    arrives = tuple([gradient is not None for gradient in incoming])
    run = _run_of(p, saved["lengths"], (strides[0], strides[1]), arrives, threads)
    if run is None:
        return _nothing_but_states(p, facts, incoming)
    alive = [None if a is None else contiguous(a) for a in (*incoming, *[saved.get(name) for name in p.saved()])]
    alive[len(incoming)] = x
    # The gradient of x is contiguous, however x lies, and 0 past the rows' lengths; two directions add up in it.
    is_whole = p.lengths is None and p.directions == 1
    made = tuple([
        None if form is None else (empty if i or is_whole else zeros)(form.shape, dtype)
        for i, form in enumerate(gradient_forms(p))
    ])  # fmt: skip
    places = tuple([0 if a is None else address(a) for a in alive])
    _compute(p, run, threads, places, tuple([0 if a is None else address(a) for a in made]))
    return made


def backward_by_address(p: Layer) -> Run | None:
    """Gradients of output, h_n (and c_n), what is saved -> gradients of the inputs; x as in `by_address`."""
    strides = x_strides_of(p)
    if strides is None or not lies_plainly(p):
        return None
    facts, saved = facts_of(p), len(p.saved())
    clears = p.x.nbytes if p.needs_grad[0] and p.directions > 1 else 0

    def run(*places: int) -> None:
        threads = threads_for(facts.work, GRAIN)
        made = places[facts.arriving + saved :]
        if clears:
            memset(made[0], 0, clears)  # Both directions add to it.
        how = _run_of(p, None, strides, tuple(map(bool, places[: facts.arriving])), threads)
        assert how is not None
        _compute(p, how, threads, places[: facts.arriving + saved], made)

    return run
