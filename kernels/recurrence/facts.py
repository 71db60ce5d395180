"""What the CPU kernels of a layer derive from a problem before they run, and the memory that they take."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from kernels.arrays import contiguous_strides
from kernels.op import input_names
from kernels.recurrence import forward as fw
from kernels.recurrence.columns import ColumnPlan, column_plan
from kernels.recurrence.forward import Sizes, in_memory, panels_of, steady_offsets, with_strides
from kernels.recurrence.op import GRU_LAYER, LSTM_LAYER, RNN_LAYER
from kernels.recurrence.problem import SUFFIXES, GruProblem, Layer, RnnProblem, Weights
from kernels.recurrence.sequence import Walk, row_parts, walk
from kernels.runtime.by_address import Run
from kernels.runtime.numba_cpu import address, contiguous

Array = np.ndarray[Any, Any]

#: Multiply-adds that are worth a thread: eight microseconds. A region costs one or two, much more on a busy machine.
GRAIN = 1 << 20
#: Elements of weights to pack that are worth one.
PACK_GRAIN = 1 << 18


def kind_of(p: Layer) -> int:
    """The kind of cell, one of forward.RNN_TANH and so on."""
    if isinstance(p, RnnProblem):
        return fw.RNN_TANH if p.nonlinearity == "tanh" else fw.RNN_RELU
    if isinstance(p, GruProblem):
        return fw.GRU_AFTER if p.reset_after else fw.GRU_BEFORE
    return fw.LSTM


def sequence_memory(p: Layer, x: Any) -> tuple[Array, int, int]:
    """x flat in the order in which it lies, and the distances of its steps and rows; copied only where it must be."""
    if p.batch_first:
        x = x.swapaxes(0, 1)
    steps, batch, features = x.shape
    turned = x.swapaxes(0, 1)
    if turned.flags.c_contiguous and not x.flags.c_contiguous:
        return contiguous(turned).reshape(-1), features, steps * features
    return contiguous(x).reshape(-1), batch * features, features


#: In the order in which forward.prepare takes the weights of both directions.
_WEIGHTS = tuple(name + suffix for suffix in SUFFIXES for name in Weights._fields)


def _place(name: str, names: Sequence[str]) -> int:
    return names.index(name) if name in names else -1


class Plan(NamedTuple):
    """How a call runs on so many threads: the walk, and the sizes, also as compiled code takes them."""

    way: Walk
    sizes: Sizes
    memory: Array
    steady: Array  # see steady_offsets
    columns: ColumnPlan | None  # instead of by rows
    elements: int  # of all working memory


class Facts:
    """What every run of a problem needs and is slow to derive."""

    def __init__(self, p: Layer) -> None:
        op = {"rnn": RNN_LAYER, "lstm": LSTM_LAYER, "gru": GRU_LAYER}[p.cell]
        self.dtype = np.dtype(p.x.dtype)
        self.inputs, self.forms = op.inputs, dict(zip(op.results, p.results()))
        #: Shape of each result, None for one that is not wanted.
        self.shapes = tuple(None if form is None else form.shape for form in self.forms.values())
        #: Where among the inputs are h0 and c0, and the weights in the order of forward.prepare; -1 where not there.
        given = [name if getattr(p, name) is not None else "" for name in op.inputs]
        self.h0, self.c0 = (_place(n, given) for n in ("h0", "c0"))
        self.weights = tuple(_place(n, given) for n in _WEIGHTS)
        #: What stands for an array that is not there: zeros, as long as a row of states and as a bias; and its address.
        self.nothing = np.zeros(max(p.gates * p.units, p.hidden), self.dtype)
        self.nothing_at = address(self.nothing)
        # Of inputs, results and last what stands for an array that is not there.
        all_names = [*given, *[name if form is not None else "" for name, form in self.forms.items()]]
        states = "hidden" if p.return_last else "output"
        #: Takes from these what forward.prepare does; and what forward.run_parts does, from x to the cells.
        self.weights_of = itemgetter(*self.weights)
        names = ("x", "h0", "c0", states, "output" if p.return_last else "none", "h_n", "c_n", "gate_values", "cells")
        self.arrays_of = itemgetter(*[_place(n, all_names) for n in names])
        #: How many gradients arrive.
        self.arriving = op.differentiable_results
        #: Where among the gradients that arrive and what is saved is what backward.steps_back takes; -1 if not there.
        arriving = [f"grad_{name}" for name in op.results[: op.differentiable_results]]
        arriving += [name if not name or getattr(p, name, name) is not None else "" for name in p.saved()]
        names = ("x", "h0", "c0", states, "gate_values", "cells", "grad_output", "grad_h_n", "grad_c_n")
        self.saved = tuple(_place(n, arriving) for n in names)
        self.work = p.flops() // 2
        self.kind = kind = kind_of(p)
        #: Outputs of the first recurrent product, and of the one that needs its result.
        self.rows = p.gates * p.units
        self.recurrent = 2 * p.units if kind == fw.GRU_BEFORE else self.rows
        self.second = p.units if kind == fw.GRU_BEFORE else p.hidden if p.projects else 0
        #: Plans of calls without lengths by number of threads.
        self.plans: dict[int, Plan] = {}
        #: Runs of backward without lengths, see gradients_cpu.
        self.runs: dict[tuple[int, ...], Run] = {}

    def plan(self, p: Layer, lengths: Array | None, threads: int, x_strides: tuple[int, int]) -> Plan:
        """How a call runs; x_strides follow from the problem, which knows x's."""
        known = self.plans.get(threads) if lengths is None else None
        if known is None:
            way = walk(p, lengths, row_parts(p, threads))
            sizes = self.sizes(p, way, x_strides)
            columns = column_plan(sizes, self.dtype.itemsize, threads) if lengths is None else None
            elements = sizes.work + sizes.parts * sizes.offsets * 8 // self.dtype.itemsize
            known = Plan(way, sizes, in_memory(sizes), steady_offsets(sizes), columns, elements)
            if lengths is None:
                self.plans[threads] = known
        return known

    def sizes(self, p: Layer, way: Walk, x_strides: tuple[int, int]) -> Sizes:
        """Those of the forward pass; see Sizes."""
        item, forms = self.dtype.itemsize, self.forms
        width = p.directions * p.hidden
        time, row = (width, p.steps * width) if p.batch_first else (p.batch * width, width)
        sizes = Sizes(
            kind=self.kind,
            directions=p.directions,
            row_parts=way.row_parts,
            steps=way.steps,
            all_steps=p.steps,
            batch=p.batch,
            inputs=p.inputs,
            units=p.units,
            hidden=p.hidden,
            gates=p.gates,
            kept=p.kept_gates,
            gate_panels=panels_of(self.rows, item),
            recurrent_panels=panels_of(self.recurrent, item),
            second_panels=panels_of(self.second, item),
            x_time=x_strides[0],
            x_row=x_strides[1],
            full_time=time,
            full_row=row,
            has_full=int(not p.return_last or forms["hidden"] is not None),
            has_last=int(p.return_last),
            has_h0=int(p.h0 is not None),
            has_c0=int(getattr(p, "c0", None) is not None),
            keeps=int(forms.get("gate_values") is not None),
            chunk=0,
            most_rows=way.most_rows,
            sum_stride=0,
            hidden_stride=0,
            unit_stride=0,
            scratch=0,
            offsets=0,
            at_w_h=0,
            at_second=0,
            at_bias=0,
            at_bias_new=0,
            at_scratch=0,
            work=0,
        )
        return with_strides(sizes, item)


def facts_of(p: Layer) -> Facts:
    # Kept on the problem itself, which lives as long as the plan of a call; its hash would cost more than all this.
    known: Facts | None = p.__dict__.get("_numba_facts")
    if known is None:
        known = p.__dict__["_numba_facts"] = Facts(p)
    return known


def x_strides_of(p: Layer) -> tuple[int, int] | None:
    """The distances of x's steps and rows as it lies; None where the elements of a row are apart."""
    form = p.x
    strides = contiguous_strides(form.shape) if form.strides is None else form.strides
    time, row = (strides[1], strides[0]) if p.batch_first else strides[:2]
    return (time, row) if strides[2] == 1 else None


def lies_plainly(p: Layer) -> bool:
    """Whether all that is not x is contiguous, and no row ends before the others."""
    specs = [getattr(p, name) for name in input_names(type(p)) if name != "x"]
    return p.lengths is None and all(form is None or form.strides is None for form in specs)
