"""Backward of the recurrent layers on the CPU: into which blocks and groups it falls, and who takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import memset
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from kernels.recurrence import forward as fw
from kernels.recurrence.backward import BackSizes, with_memory
from kernels.recurrence.facts import (
    GRAIN,
    PACK_GRAIN,
    Facts,
    facts_of,
    lies_plainly,
    sequence_memory,
    x_strides_of,
)
from kernels.recurrence.forward import in_memory, panels_of
from kernels.recurrence.panels import LARGE_ROWS, PANEL_VECTORS, RUN_TAPS, pack_rows
from kernels.recurrence.problem import SUFFIXES, Layer
from kernels.recurrence.sequence import Walk, walk
from kernels.recurrence.weight_gradients import add_blocks, run_blocks, run_pieces, run_steps
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


def _kept_sums(p: Layer, facts: Facts) -> int:
    """How many sums' gradients a unit has: one a gate, and two for n of a GRU that resets after the product."""
    return 4 if facts.kind == fw.GRU_AFTER else p.gates


def blocks_of(p: Layer, facts: Facts) -> int:
    """Into how many blocks the rows of a batch fall, whatever the threads."""
    weights = facts.rows * (p.inputs + p.hidden) * facts.dtype.itemsize
    wanted = max(p.batch // LEAST_ROWS, min(2, p.batch // LEAST_ROWS_OF_TWO))
    return max(1, min(wanted, MOST_BLOCKS, GRADIENT_BYTES // max(1, weights)))


def _sizes(p: Layer, facts: Facts, way: Walk, threads: int, x_strides: tuple[int, int]) -> BackSizes:
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
        only_last=int(p.return_last),
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


class _Tables(NamedTuple):
    """int64, see backward.steps_back."""

    columns: Array
    x_columns: Array
    row_taps: Array
    state_taps: Array
    #: Where the sums of the biases' gradients lie, in the order of b_ih and of b_hh.
    x_bias: Array
    bias: Array


def _tables(p: Layer, facts: Facts, sizes: BackSizes) -> _Tables:
    lanes, units = VECTOR_BYTES // facts.dtype.itemsize, p.units
    # In vectors; a gate begins with one.
    elements = np.arange(_kept_sums(p, facts))[:, None] * (-(-units // lanes) * lanes) + np.arange(units)
    x_elements = elements[[0, 1, 3]] if facts.kind == fw.GRU_AFTER else elements
    bias, x_bias = elements[: p.gates].reshape(-1), x_elements.reshape(-1)

    def columns_of(places: Array) -> Array:
        """Where the columns of a direction's sums begin, and LARGE_ROWS more, the last one again."""
        places = np.concatenate([places, np.full(LARGE_ROWS, places[-1])])
        return places // lanes * lanes * sizes.group_rows + places % lanes

    rows = np.arange(sizes.group_rows + LARGE_ROWS)
    state_taps = np.concatenate([rows * p.hidden, np.arange(p.hidden + LARGE_ROWS)])
    return _Tables(columns_of(bias), columns_of(x_bias), rows * lanes, state_taps, x_bias, bias)


def _packs(p: Layer, facts: Facts, sizes: BackSizes, threads: int) -> list[tuple[Callable[..., None], int, int, int]]:
    """How the weights [taps, outputs] become panels, as they lie: ``pack(address, work, start)``, with the place of the
    weight among the inputs, bytes past its beginning, and where in the working memory the panels begin."""
    units, hidden, item = p.units, p.hidden, facts.dtype.itemsize
    found: list[tuple[Callable[..., None], int, int, int]] = []
    for d in range(p.directions):
        w_ih, w_hh, _, _, w_hr = facts.weights[d * 5 : d * 5 + 5]
        wanted = [(w_hh, 0, hidden, facts.recurrent, sizes.at_w_h)]
        if facts.kind == fw.GRU_BEFORE:
            wanted.append((w_hh, facts.recurrent * hidden * item, hidden, units, sizes.at_w_second))
        elif p.projects:
            wanted.append((w_hr, 0, units, hidden, sizes.at_w_second))
        if sizes.wants_x:
            wanted.append((w_ih, 0, p.inputs, facts.rows, sizes.at_w_x))
        for place, past, outputs, taps, start in wanted:
            panels = panels_of(outputs, item)
            elements = panels * taps * PANEL_VECTORS * VECTOR_BYTES // item
            # A block's thread reads the weights that another core has packed from that one's cache, once.
            packers = min(threads, sizes.blocks, threads_for(elements, PACK_GRAIN))
            found.append((partial(pack_rows, panels, packers, outputs, taps), place, past, start + d * elements))
    return found


def _nothing_but_states(p: Layer, facts: Facts, incoming: tuple[Array | None, ...]) -> tuple[Array | None, ...]:
    """The gradients when every row has length 0: the states' own, and zeros."""
    found: dict[str, Any] = {}
    for name, form, wanted in zip(facts.inputs, p.gradients(), p.needs_grad):
        found[name] = zeros(form.shape, facts.dtype) if form is not None and wanted else None
    for name, gradient in zip(("h0", "c0"), incoming[1:]):
        if gradient is not None and found[name] is not None:
            found[name][...] = gradient
    return tuple(found.values())


def _run_of(p: Layer, lengths: Array | None, x_strides: tuple[int, int], threads: int) -> Run | None:
    """The pass from the addresses of the gradients and of what is saved to those of the inputs' gradients.

    0 for what is not there or not wanted. None where every row has length 0.
    """
    facts = facts_of(p)
    key = (threads, *x_strides)
    known: Run | None = facts.runs.get(key) if lengths is None else None
    if known is not None:
        return known
    way = walk(p, lengths, blocks_of(p, facts))
    if way.total == 0:
        return None
    sizes = _sizes(p, facts, way, threads, x_strides)
    memory, dtype, nothing_at = in_memory(sizes), facts.dtype, facts.nothing_at
    *tables, x_bias, bias = _tables(p, facts, sizes)
    # Of the inputs, which are what is saved first, and of their gradients; the last place of all is always 0.
    first, none = facts.arriving, facts.arriving + len(p.saved()) + len(facts.inputs)
    packs = [(pack, first + place, past, start) for pack, place, past, start in _packs(p, facts, sizes, threads)]
    made = first + len(p.saved())

    def places_of(inputs: Sequence[int]) -> list[int]:
        return [none if i < 0 else made + i for i in inputs]

    arrays_of = itemgetter(*[none if i < 0 else i for i in facts.saved])
    states_of = itemgetter(*places_of((facts.h0, facts.c0)))
    rows = sizes.x_taps + sizes.taps + sizes.second_taps * (sizes.second_panels > 0)
    adders = min(threads, threads_for(rows * sizes.blocks * p.inputs, ADD_GRAIN))
    adds = [
        (partial(add_blocks, rows + 1, adders, d, memory), itemgetter(*places_of(facts.weights[d * 5 : d * 5 + 5])))
        for d in range(p.directions)
    ]
    walked = (memory, way.bounds, way.order, way.ends, way.counts)
    blocks = partial(run_blocks, sizes.blocks, threads, *walked, *tables)

    def run(*places: int) -> None:
        work, places = scratch(sizes.work, dtype), (*places, 0)
        for pack, place, past, start in packs:
            pack(places[place] + past, work, start)
        arrays = (*arrays_of(places), nothing_at, *states_of(places))
        if threads <= sizes.blocks:
            blocks(*arrays, places[made], work)
        else:
            _run_in_pieces(sizes, threads, walked, tables, arrays, places[made], work)
        for add, gradients_of in adds:
            add(work, x_bias, bias, *gradients_of(places))

    if lengths is None:
        facts.runs[key] = run
    return run


def _run_in_pieces(
    sizes: BackSizes, threads: int, walked: tuple[Array, ...], tables: Sequence[Array], arrays: tuple[int, ...],
    dx: int, work: Array,
) -> None:  # fmt: skip
    """As run_blocks, of fewer blocks than threads: group by group, and the products of each in pieces."""
    memory, bounds, _, _, counts = walked
    columns, _, row_taps, state_taps = tables
    for begin in range(0, sizes.steps, sizes.group_steps):
        end = min(begin + sizes.group_steps, sizes.steps)
        run_steps(sizes.parts, threads, begin, end, *walked, columns, row_taps, state_taps, *arrays, work)
        for d in range(sizes.directions):
            run_pieces(
                sizes.blocks * sizes.pieces, threads, d, begin, end, memory, bounds, counts, *tables, work, dx
            )  # fmt: skip


def backward(p: Layer, *incoming: Array | None, **saved: Any) -> tuple[Array | None, ...]:
    """Gradients of output, h_n (and c_n), each possibly None -> gradients of the inputs."""
    facts, dtype = facts_of(p), np.dtype(p.x.dtype)
    x, *strides = sequence_memory(p, saved["x"])
    run = _run_of(p, saved["lengths"], (strides[0], strides[1]), threads_for(facts.work, GRAIN))
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
    run(*[0 if a is None else address(a) for a in (*alive, *made)])
    return made


def backward_by_address(p: Layer) -> Run | None:
    """Gradients of output, h_n (and c_n), what is saved -> gradients of the inputs; x as in `by_address`."""
    strides = x_strides_of(p)
    if strides is None or not lies_plainly(p):
        return None
    facts, made = facts_of(p), facts_of(p).arriving + len(p.saved())
    clears = p.x.nbytes if p.needs_grad[0] and p.directions > 1 else 0

    def run(*places: int) -> None:
        if clears:
            memset(places[made], 0, clears)  # Both directions add to it.
        found = _run_of(p, None, strides, threads_for(facts.work, GRAIN))
        assert found is not None
        found(*places)

    return run
