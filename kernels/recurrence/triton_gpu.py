"""The recurrent layers in Triton: the input's products by torch, then the steps in kernels of ours.

Backward the steps leave the gradients of all their sums, and torch multiplies them into those of weights and inputs.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from kernels.op import input_names
from kernels.recurrence import backward_triton, forward_triton, held_triton
from kernels.recurrence.gpu_speeds import measured
from kernels.recurrence.gpu_tiles import RecurrenceTile, path_of, recurrence_tile
from kernels.recurrence.op import GRU_LAYER, LSTM_LAYER, RNN_LAYER, implement
from kernels.recurrence.plan_gpu import (
    gradient_blocks,
    has_second_product,
    kind_of,
    sequence_shape,
    sequence_strides,
)
from kernels.recurrence.problem import SUFFIXES, Layer, Weights
from kernels.runtime.targets import Target
from kernels.runtime.triton_gpu import (
    DTYPES,
    computed,
    computed_dtype,
    empty,
    empty_results,
    launch,
    on_tensor_cores,
    product_precision,
    target_of,
    target_of_device,
    zero_gradients,
)

Tensor = torch.Tensor


def _precision(dtype: torch.dtype, target: Target) -> str:
    """How products of float32 are taken: as torch's own are set."""
    return product_precision(dtype, target, tf32=torch.get_float32_matmul_precision() != "highest")


def _tensor_cores(dtype: torch.dtype, target: Target) -> bool:
    return on_tensor_cores(dtype, _precision(dtype, target))


def _tile(p: Layer, x: Tensor, backward: bool) -> RecurrenceTile:
    target = target_of(x)
    return recurrence_tile(p, target, tensor_cores=_tensor_cores(x.dtype, target), backward=backward)


def _constants(p: Layer, x: Tensor, tile: RecurrenceTile) -> dict[str, Any]:
    target = target_of(x)
    found: dict[str, Any] = {
        "KIND": kind_of(p),
        "HAS_LENGTHS": p.lengths is not None,
        "ROWS": tile.rows,
        "PRECISION": _precision(x.dtype, target),
        "COMPUTED": computed(x.dtype),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
    if tile.registers is not None:
        found["maxnreg"] = tile.registers
    if tile.path == "held":
        return found | {"WIDTH": tile.units}
    return found | {"PROJECTS": p.projects, "UNITS": tile.units, "INNER": tile.inner}


def _result(shape: tuple[int, ...], x: Tensor, zero: bool) -> Tensor:
    """A tensor in x's dtype, 0 where asked: past the lengths nothing is stored."""
    return torch.zeros(shape, dtype=x.dtype, device=x.device) if zero else empty(shape, x.dtype, x.device)


def _each_direction(tensors: list[Tensor]) -> Tensor:
    """(D, ...), contiguous."""
    return tensors[0].contiguous()[None] if len(tensors) == 1 else torch.stack(tensors)


def _states(given: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, x: Tensor) -> Tensor:
    """(2, D, B, size): scratch of which the first half holds the given states, or 0."""
    found = empty((2, *shape), dtype, x.device)
    if given is None:
        found[0].zero_()
    else:
        found[0].copy_(given)
    return found


def _by_length(p: Layer, lengths: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """(the rows by falling length, the lengths), each (B,)."""
    if lengths is None:
        return None, None
    return torch.argsort(lengths, descending=True, stable=True), lengths.contiguous()


def _rows_of(p: Layer, sequence: Tensor) -> Tensor:
    """A sequence as a matrix, in the order of x."""
    return sequence.reshape(p.batch * p.steps, sequence.shape[2])


def _input_sums(p: Layer, x: Tensor, directions: tuple[Weights, ...]) -> tuple[Tensor, Tensor | None]:
    """The input's sums with biases, (D, B T, G H) in the order of x, and the biases inside a GRU's reset (D, H)."""
    rows = _rows_of(p, x)
    sums = empty((p.directions, rows.shape[0], p.gates * p.units), x.dtype, x.device)
    inside = []
    for d, w in enumerate(directions):
        bias = w.b_ih
        if w.b_hh is not None:
            common = w.b_hh
            if kind_of(p) == "gru_after":
                inside.append(w.b_hh[2 * p.units :])
                common = torch.cat([w.b_hh[: 2 * p.units], torch.zeros_like(inside[-1])])
            bias = common if bias is None else bias + common
        elif kind_of(p) == "gru_after":
            inside.append(torch.zeros(p.units, dtype=x.dtype, device=x.device))
        if bias is None:
            torch.mm(rows, w.w_ih.t(), out=sums[d])
        else:
            torch.addmm(bias, rows, w.w_ih.t(), out=sums[d])
    has_inside = bool(inside) and any(w.b_hh is not None for w in directions)
    return sums, _each_direction(inside) if has_inside else None


def _last_states(given: Tensor | None, shape: tuple[int, ...], x: Tensor, lengths: Tensor | None) -> Tensor:
    """Where the final states go: a row of length 0 keeps its initial ones."""
    if lengths is None:
        return empty(shape, x.dtype, x.device)
    return torch.zeros(shape, dtype=x.dtype, device=x.device) if given is None else given.clone()


def _programs(p: Layer, tile: RecurrenceTile, columns: int = 1) -> tuple[int]:
    return (triton.cdiv(p.batch, tile.rows) * p.directions * triton.cdiv(columns, tile.units if columns > 1 else 1),)


# ----- forward -----------------------------------------------------------------------------------------------------


def forward(p: Layer, *inputs: Tensor | None) -> tuple[Tensor | None, ...]:
    """The op's inputs -> its results."""
    named = p.named(inputs)
    x: Tensor = named["x"]
    if p.empty:
        return empty_results(p, x.device)
    op = {"rnn": RNN_LAYER, "lstm": LSTM_LAYER, "gru": GRU_LAYER}[p.cell]
    forms = dict(zip(op.results, p.results(), strict=True))
    padded = p.lengths is not None
    made: dict[str, Tensor | None] = {
        name: None if form is None else _result(form.shape, x, padded) for name, form in forms.items()
    }
    order, lengths = _by_length(p, named["lengths"])
    h0, c0 = named["h0"], named.get("c0")
    of_state, of_cell = (p.directions, p.batch, p.hidden), (p.directions, p.batch, p.units)
    made["h_n"] = _last_states(h0, of_state, x, lengths)
    if p.cell == "lstm":
        made["c_n"] = _last_states(c0, of_cell, x, lengths)
    directions = p.weights(named)
    sums, b_new = _input_sums(p, x, directions)
    w = _each_direction([one.w_hh for one in directions])
    full = made["hidden"] if p.return_last else made["output"]
    final = made["output"] if p.return_last else None
    kept, cells = made.get("gate_values"), made.get("cells")
    strides = (
        sums.stride(0), *sequence_strides(p, p.gates * p.units), *sequence_strides(p, p.directions * p.hidden),
    )  # fmt: skip
    tile = _tile(p, x, backward=False)
    constants = _constants(p, x, tile) | {
        "HAS_B_NEW": b_new is not None,
        "HAS_FULL": full is not None,
        "HAS_FINAL": final is not None,
        "KEEPS": p.trains,
    }
    if tile.path == "held":
        held = {"HAS_H0": h0 is not None, "HAS_C0": c0 is not None}
        initial = (None if h0 is None else h0.contiguous(), None if c0 is None else c0.contiguous())
        launch(
            held_triton.held_forward, _programs(p, tile), sums, w, b_new, order, lengths, *initial, full, final,
            made["h_n"], made.get("c_n"), kept, cells, p.steps, p.batch, p.units, p.directions, *strides,
            **constants, **held,
        )  # fmt: skip
        return tuple(made[name] for name in op.results)
    wide = computed_dtype(x.dtype)
    state = _states(h0, of_state, x.dtype, x)
    cell = _states(c0, of_cell, wide, x) if p.cell == "lstm" else None
    second = has_second_product(p)
    between = empty(of_cell, x.dtype, x.device) if second else None
    update = empty(of_cell, wide, x.device) if second and not p.projects else None
    w_second = _each_direction([one.w_hr for one in directions]) if p.projects else None
    arguments = (
        sums, w, w_second, b_new, order, lengths, state, cell, between, update, full, final, made["h_n"],
        made.get("c_n"), kept, cells, p.steps, p.batch, p.units, p.hidden, p.directions, *strides,
    )  # fmt: skip
    if tile.path == "streamed":
        launch(forward_triton.forward_sequence, _programs(p, tile), *arguments, **constants)
    else:
        for s in range(p.steps):
            launch(forward_triton.forward_step, _programs(p, tile, p.units), *arguments, s, SECOND=False, **constants)
            if second:
                launch(
                    forward_triton.forward_step, _programs(p, tile, p.hidden), *arguments, s, SECOND=True, **constants
                )  # fmt: skip
    return tuple(made[name] for name in op.results)


# ----- backward ----------------------------------------------------------------------------------------------------


def _states_before(p: Layer, hidden: Tensor, h0: Tensor | None, lengths: Tensor | None) -> Tensor:
    """The hidden state before each step, (D, ...) in the order of x, from those after each, (..., D P) likewise."""
    shape = sequence_shape(p, p.hidden)
    found = empty((p.directions, *shape), hidden.dtype, hidden.device)
    # Steps first in both.
    by_step, after = (found.transpose(1, 2), hidden.transpose(0, 1)) if p.batch_first else (found, hidden)
    parts = after.split(p.hidden, 2)
    for d, (before, states) in enumerate(zip(by_step, parts)):
        # Past a row's end the states are 0.
        begins, rest, others = (before[0], before[1:], states[:-1]) if d == 0 else (before[-1], before[:-1], states[1:])
        rest.copy_(others)
        if h0 is None:
            begins.zero_()
        elif d == 0 or lengths is None:
            begins.copy_(h0[d])
        else:
            begins.zero_()
            # The reverse direction begins at each row's own end; what an empty row begins with meets zeros alone.
            ends = (lengths.clamp(1, p.steps) - 1).to(torch.int64)[None, :, None].expand(1, -1, p.hidden)
            before.scatter_(0, ends, h0[d][None])
    return found


def _without_padding(p: Layer, x: Tensor, lengths: Tensor | None) -> Tensor:
    """x with 0 past the lengths: gradients there are 0, and 0 * NaN is NaN."""
    if lengths is None:
        return x
    step = torch.arange(p.steps, device=x.device)
    inside = step[None, :] < lengths[:, None] if p.batch_first else step[:, None] < lengths[None, :]
    return torch.where(inside[:, :, None], x, torch.zeros((), dtype=x.dtype, device=x.device))


def _step_gradients(
    p: Layer, named: dict[str, Any], incoming: tuple[Tensor | None, ...], saved: dict[str, Any], before: Tensor | None,
    hidden: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of the sums (D, ..., blocks H), of what arrives at a projection (D, ..., P), of h0 and of c0."""
    x = named["x"]
    padded = p.lengths is not None
    order, lengths = _by_length(p, named["lengths"])
    blocks, _, _ = gradient_blocks(p)
    width = blocks * p.units
    sums = _result((p.directions, *sequence_shape(p, width)), x, padded)
    grad, grad_h, *more = incoming
    grad_c = more[0] if more else None
    of_state, of_cell = (p.directions, p.batch, p.hidden), (p.directions, p.batch, p.units)
    grad_h0 = _last_states(grad_h, of_state, x, lengths)
    grad_c0 = _last_states(grad_c, of_cell, x, lengths) if p.cell == "lstm" else None
    if grad is None:
        g_strides: tuple[int, ...] = (0, 0, 0)
    elif p.return_last:
        g_strides = (0, *grad.stride())
    else:
        g_strides = (grad.stride(1), grad.stride(0), grad.stride(2)) if p.batch_first else tuple(grad.stride())
    c0 = named.get("c0")
    c0 = None if c0 is None else c0.contiguous()
    kept, cells = saved.get("gate_values"), saved.get("cells")
    kept, cells = (None if a is None else a.contiguous() for a in (kept, cells))
    directions = p.weights(named)
    w = _each_direction([one.w_hh for one in directions])
    tile = _tile(p, x, backward=True)
    constants = _constants(p, x, tile) | {"HAS_GRAD": grad is not None, "LAST": p.return_last, "HAS_C0": c0 is not None}
    p_strides = (0, 0, 0) if before is None else (before.stride(0), *sequence_strides(p, p.hidden))
    strides = (sums.stride(0), *sequence_strides(p, width), *p_strides, *sequence_strides(p, p.directions * p.hidden))
    if tile.path == "held":
        given = {"HAS_GRAD_H": grad_h is not None, "HAS_GRAD_C": grad_c is not None}
        states = (None if a is None else a.contiguous() for a in (grad_h, grad_c))
        launch(
            held_triton.held_backward, _programs(p, tile), grad, w, order, lengths, *states, sums, before, hidden, kept,
            cells, c0, grad_h0, grad_c0, p.steps, p.batch, p.units, p.directions, *g_strides, *strides,
            **constants, **given,
        )  # fmt: skip
        return sums, None, grad_h0, grad_c0
    wide = computed_dtype(x.dtype)
    dh = _states(grad_h, of_state, wide, x)[0]
    dc = _states(grad_c, of_cell, wide, x) if p.cell == "lstm" else None
    past = empty(of_state, wide, x.device) if padded or p.cell == "gru" else None
    arrived = _result((p.directions, *sequence_shape(p, p.hidden)), x, padded) if p.projects else None
    r_strides = (0, 0, 0) if arrived is None else (arrived.stride(0), *sequence_strides(p, p.hidden))
    w_second = _each_direction([one.w_hr for one in directions]) if p.projects else None
    arguments = (
        grad, w, w_second, order, lengths, dh, dc, past, arrived, sums, before, hidden, kept, cells, c0, grad_h0,
        grad_c0, p.steps, p.batch, p.units, p.hidden, p.directions, *g_strides, *r_strides, *strides,
    )  # fmt: skip
    if tile.path == "streamed":
        launch(backward_triton.backward_sequence, _programs(p, tile), *arguments, **constants)
        return sums, arrived, grad_h0, grad_c0
    for s in range(p.steps):
        for part, columns in _step_parts(p):
            launch(
                backward_triton.backward_step, _programs(p, tile, columns), *arguments, s, PART=part, **constants
            )  # fmt: skip
    return sums, arrived, grad_h0, grad_c0


def _step_parts(p: Layer) -> list[tuple[str, int]]:
    """(part, its columns) of each launch of a step backward, where steps have launches of their own."""
    parts = [("arrive", p.hidden)] if p.projects else []
    parts += [("gates", p.units)]
    parts += [("reset", p.units)] if kind_of(p) == "gru_before" else []
    return [*parts, ("state", p.hidden)]


def _weight_gradients(
    p: Layer, d: int, wants: dict[str, bool], sums: Tensor, x: Tensor, before: Tensor | None, arrived: Tensor | None,
    saved: dict[str, Any],
) -> dict[str, Tensor]:  # fmt: skip
    """The gradients of direction d's weights that are wanted: a product over all steps and rows each."""
    suffix, units = SUFFIXES[d], p.units
    _, skipped, taken = gradient_blocks(p)
    of_input, of_state = sums[:, : taken * units], sums[:, skipped * units :]
    found: dict[str, Tensor] = {}
    if wants["w_ih" + suffix]:
        product = of_input.t() @ _rows_of(p, x)
        # Blocks n, r, z to the order of the weights.
        found["w_ih"] = product.roll(-units, 0) if skipped else product
    if wants["w_hh" + suffix]:
        assert before is not None
        states = _rows_of(p, before[d])
        if kind_of(p) == "gru_before":
            reset = saved["gate_values"][d][:, :, :units]
            reset = _rows_of(p, (reset.transpose(0, 1) if p.batch_first else reset) * before[d])
            found["w_hh"] = torch.cat([of_state[:, : 2 * units].t() @ states, of_state[:, 2 * units :].t() @ reset])
        else:
            found["w_hh"] = of_state.t() @ states
    if wants.get("w_hr" + suffix):
        assert arrived is not None
        output = saved["gate_values"][d][:, :, 3 * units :] * torch.tanh(saved["cells"][d])
        output = output.transpose(0, 1) if p.batch_first else output
        found["w_hr"] = _rows_of(p, arrived[d]).t() @ _rows_of(p, output)
    if wants["b_ih" + suffix]:
        total = of_input.sum(0)
        found["b_ih"] = total.roll(-units, 0) if skipped else total
    if wants["b_hh" + suffix]:
        found["b_hh"] = of_state.sum(0)
    return {name + suffix: value for name, value in found.items()}


def backward(p: Layer, *incoming: Tensor | None, **saved: Any) -> tuple[Tensor | None, ...]:
    """Gradients of output, h_n (and c_n), each possibly None -> gradients of the inputs."""
    names = input_names(type(p))
    named = {name: saved[name] for name in names}
    wants = dict(zip(names, p.needs_grad, strict=True))
    x: Tensor = named["x"]
    if p.empty:
        return zero_gradients(p, x.device)
    hidden: Tensor = (saved["hidden"] if p.return_last else saved["output"]).contiguous()
    directions = p.weights(named)
    lengths = named["lengths"]
    before = None
    if p.cell == "gru" or any(wants["w_hh" + suffix] for suffix in SUFFIXES[: p.directions]):
        before = _states_before(p, hidden, named["h0"], lengths)
    sums, arrived, grad_h0, grad_c0 = _step_gradients(p, named, incoming, saved, before, hidden)
    found: dict[str, Tensor | None] = {"h0": grad_h0, "c0": grad_c0}
    flat = sums.reshape(p.directions, p.batch * p.steps, -1)
    clean = x
    if any(wants["w_ih" + suffix] for suffix in SUFFIXES[: p.directions]):
        clean = _without_padding(p, x, lengths)
    for d in range(p.directions):
        found |= _weight_gradients(p, d, wants, flat[d], clean, before, arrived, saved)
    if wants["x"]:
        _, skipped, taken = gradient_blocks(p)
        grad_x: Tensor | None = None
        for of_step, one in zip(flat, directions):
            factors = of_step[:, : taken * p.units], one.w_ih.roll(p.units, 0) if skipped else one.w_ih
            grad_x = torch.mm(*factors) if grad_x is None else torch.addmm(grad_x, *factors)
        assert grad_x is not None
        found["x"] = grad_x.reshape(x.shape)
    return tuple(found.get(name) if wanted else None for name, wanted in wants.items())


def _reasons(p: Layer) -> list[str]:
    size = p.gates * p.units * p.hidden
    return [f"w_hh has {size} elements; it takes fewer than 2**31"] if size >= 2**31 else []


def _describe(p: Layer) -> str:
    target = target_of_device(torch.device(p.x.device).index)
    path = path_of(p, target, tensor_cores=_tensor_cores(getattr(torch, p.x.dtype), target))
    if path == "stepwise":
        return f"launches a step: {1 + has_second_product(p)} forward, {len(_step_parts(p))} backward"
    where = "held on chip" if path == "held" else "from the L2 cache"
    return f"whole sequence in one launch, weights {where}"


for _op in (RNN_LAYER, LSTM_LAYER, GRU_LAYER):
    implement(_op, "triton", forward, backward, dtypes=DTYPES, reasons=_reasons, describe=_describe, measured=measured)
