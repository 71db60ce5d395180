"""Recurrent layers in CUDA C++, executed on the CPU: memory watched, threads and blocks in three orders, every path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import kernels
from kernels.case import Case
from kernels.recurrence import cupy_gpu
from kernels.recurrence.tiles_cuda import PATHS, use_step_tile
from tests.cuda_on_cpu import helpers
from tests.cuda_on_cpu.helpers import on_cpu, report
from tests.support import layouts, matrix, oracle
from tests.support.cuda_cpu.run import Launched

Array = np.ndarray[Any, Any]

OPS = ("rnn_layer", "lstm_layer", "gru_layer")
pytestmark = helpers.needs_harness


@contextmanager
def on(
    path: str, check: str = "full", rows: int = 2, unit_tile: int = 8, cores: bool | None = None, **more: Any
) -> Iterator[Launched]:
    """The backend on the CPU by one path, in tiles so small that the cases have several."""
    unit = unit_tile if path == "stepwise" else None
    with use_step_tile(path, rows, unit, cores), on_cpu(check, **more) as launched:
        yield launched


def cases(*names: str, op: str = "") -> list[Any]:
    """Parameters for the ordinary cases of these names (all without any)."""
    found = [c for o in OPS for c in matrix.cases_of(o, "ci") if (not names or c.name in names) and op in ("", o)]
    assert found, names
    return matrix.case_parameters(tuple(found))


def kinds() -> list[Any]:
    """One parameter for each kind of cell, in the most general of its cases."""
    found = cases("lengths, both directions, batch first", "relu")
    return found + cases("reset before, lengths, both directions", "projection, lengths, both directions")


# ----- every case, every path, every type --------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["streamed", "stepwise"])
@pytest.mark.parametrize("case", cases())
def test_every_path(case: Case, path: str):
    with on(path):
        report(helpers.complaints(case, "float32"))


@pytest.mark.parametrize(
    "path, dtype",
    [("held", "bfloat16"), *((p, d) for p in ("streamed", "stepwise") for d in (*helpers.HALVES, "float64"))],
)
@pytest.mark.parametrize("case", kinds())
def test_every_path_in_other_types(case: Case, path: str, dtype: str):
    half = dtype in helpers.HALVES
    with on(path, unit_tile=16 if half else 8):
        report(helpers.half_complaints(case, dtype) if half else helpers.complaints(case, dtype))


@pytest.mark.parametrize("path", ["held", "stepwise"])
@pytest.mark.parametrize("case", kinds())
def test_half_precision_without_tensor_cores(case: Case, path: str):
    with on(path, cores=False):
        report(helpers.half_complaints(case, "bfloat16"))


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("case", kinds())
def test_any_layout(case: Case, layout: str):
    helpers.check_layout(case, layout)


# ----- tiles -------------------------------------------------------------------------------------------------------


def layer(cell: str, sizes: tuple[int, int, int, int], projection: int = 0, **more: Any) -> dict[str, Any]:
    """Arguments of a layer of sizes (T, B, I, H), in one direction, with all of its inputs."""
    steps, batch, inputs, units = sizes
    rows, hidden = {"rnn": 1, "lstm": 4, "gru": 3}[cell] * units, projection or units
    shapes: dict[str, tuple[int, ...]] = {
        "x": (steps, batch, inputs), "w_ih": (rows, inputs), "w_hh": (rows, hidden), "b_ih": (rows,), "b_hh": (rows,),
        "h0": (1, batch, hidden),
    }  # fmt: skip
    if cell == "lstm":
        shapes["c0"] = (1, batch, units)
    if projection:
        shapes["w_hr"] = (projection, units)
    made = {n: helpers.numbers(*s, seed=i) for i, (n, s) in enumerate(shapes.items())}
    for name in made:
        if name.startswith("w_"):
            made[name] = made[name] * np.float32(0.6 * units**-0.5)
    return made | more


@pytest.mark.parametrize("rows", [1, 4, 8])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_every_number_of_rows(cell: str, path: str, rows: int):
    """Nine rows: a block of one, and one that is not full. Units that fill no tile, or half of a second one."""
    arguments = layer(cell, (2, 9, 3, 21), lengths=np.array([2, 0, 1, 2, 2, 1, 0, 2, 1]))
    expected = oracle.expect(f"{cell}_layer", arguments)
    with on(path, rows=rows, unit_tile=16, order="random", seed=rows):
        report(expected.complaints(oracle.with_vjp(expected.op, arguments, expected.incoming, "cupy")))


@pytest.mark.parametrize("more", [{"reset_after": False}, {"projection": 11}], ids=["reset before", "projection"])
@pytest.mark.parametrize("path", PATHS)
def test_second_products_in_larger_tiles(path: str, more: dict[str, Any]):
    cell = "lstm" if "projection" in more else "gru"
    arguments = layer(cell, (3, 5, 4, 37), **more)
    expected = oracle.expect(f"{cell}_layer", arguments)
    with on(path, rows=4, unit_tile=32):
        report(expected.complaints(oracle.with_vjp(expected.op, arguments, expected.incoming, "cupy")))


def _bits(expected: oracle.Expectation) -> tuple[bytes, ...]:
    found = oracle.with_vjp(expected.op, expected.arguments, expected.incoming, "cupy")
    return tuple(a.tobytes() for a in (*found.results, *found.gradients.values()))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", kinds())
def test_offsets_of_64_bits_give_the_same_bits(case: Case, path: str, monkeypatch: pytest.MonkeyPatch):
    expected = oracle.expect_case(case, "float32")
    with on(path):
        narrow = _bits(expected)
        monkeypatch.setattr(cupy_gpu, "index_type", lambda *arrays: "long long")
        assert _bits(expected) == narrow


def test_weights_and_gradients_further_apart_than_32_bits_reach():
    """Rows of w_hh and of the incoming gradient 2**28 elements apart; what lies between is never touched."""
    arguments = layer("rnn", (2, 9, 3, 9))

    def far(a: Array) -> Array:
        memory = np.empty(8 * 2**28 + a[0].size, np.float32)
        strides = (2**30, *a[0].strides)
        seen = np.lib.stride_tricks.as_strided(memory, a.shape, strides)
        seen[...] = a
        return seen

    gradient = np.moveaxis(helpers.numbers(9, 2, 9, seed=9), 0, 1)
    answers = []
    for apart in (False, True):
        given = arguments | {"w_hh": far(arguments["w_hh"])} if apart else arguments
        incoming = np.moveaxis(far(np.moveaxis(gradient, 1, 0)), 0, 1) if apart else gradient
        with on("streamed") as launched:
            value, pullback = kernels.vjp("rnn_layer", **given, backend="cupy")
            answers.append((*value, *pullback(incoming, np.zeros_like(value[1]))))
        assert {dict(s.constants)["INDEX"] for s in launched.sources} == ({"int", "long long"} if apart else {"int"})
    for a, b in zip(*answers, strict=True):
        assert (a is None and b is None) or np.array_equal(a, b)


# ----- lengths -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", kinds())
def test_what_lies_past_the_lengths_does_not_matter(case: Case, path: str):
    """NaN in x and in the incoming gradient gives the bits of zeros, forward and backward."""
    arguments = case.build("float32")
    lengths = arguments.setdefault("lengths", np.array([2, 4, 1]))
    time = np.arange(arguments["x"].shape[1 if arguments.get("batch_first") else 0])
    past = time >= lengths[:, None]
    past = past if arguments.get("batch_first") else past.T
    answers = []
    for number in (0.0, np.nan):
        given = dict(arguments, x=arguments["x"].copy())
        given["x"][past] = number
        with on(path):
            value, pullback = kernels.vjp(case.op, **given, backend="cupy")
            incoming = [np.ones_like(v) for v in value]
            incoming[0][past] = number
            answers.append((*value, *pullback(*incoming)))
    for a, b in zip(*answers, strict=True):
        assert (a is None and b is None) or (np.isfinite(a).all() and np.array_equal(a, b))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_rows_are_taken_by_falling_length(dtype: Any):
    """Blocks of two rows cost their longest one: lengths 1 1 1 5 and 5 1 1 1 have the same work."""
    barriers = []
    for lengths in ([1, 5, 1, 5], [5, 5, 1, 1], [1, 1, 5, 5]):
        arguments = layer("gru", (5, 4, 3, 6), lengths=np.array(lengths, dtype))
        with on("held") as launched:
            kernels.gru_layer(**arguments, backend="cupy")
        barriers.append(launched.counts[-1]["barriers"])
    assert barriers[0] == barriers[1] == barriers[2]
    with on("held") as launched:
        kernels.gru_layer(**layer("gru", (5, 4, 3, 6)), backend="cupy")
    # Two barriers a step: ten steps in place of six.
    assert launched.counts[-1]["barriers"] - barriers[0] == 2 * (5 + 5 - 5 - 1)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_launches_of_steps_that_no_row_has_read_no_weights(cell: str):
    arguments = layer(cell, (5, 2, 3, 32), lengths=np.array([2, 1]))
    with on("stepwise") as launched:
        value, pullback = kernels.vjp(f"{cell}_layer", **arguments, backend="cupy")
        pullback(*(np.ones_like(v) for v in value))
    # Two steps forward. Backward they are undone in launches 3 and 4, and the launch behind each takes its product.
    for kernel, steps, reading in (("recurrence_forward", 5, (0, 1)), ("recurrence_backward", 6, (4, 5))):
        loaded = [c["global_loaded"] for k, c in zip(launched.kernels, launched.counts) if k == kernel]
        assert len(loaded) == steps
        weights = {"lstm": 4, "gru": 3}[cell] * 32 * 32 * 4
        assert [n >= weights for n in loaded] == [i in reading for i in range(steps)]


# ----- gradients that are not asked for, cells, stacks -------------------------------------------------------------


@pytest.mark.parametrize("name", ["x", "w_hh", "h0", "b_hh", "c0", "w_hr"])
def test_each_gradient_alone(name: str):
    """What nobody asks for is not computed, and what is asked for has the same bits."""
    problem_of = matrix.capture("lstm_layer", **layer("lstm", (3, 3, 4, 6), projection=5))
    everything = problem_of.problem(True)
    with on_cpu():
        results = cupy_gpu.forward(everything, *problem_of.inputs)
        saved = dict(zip(problem_of.op.results, results)) | dict(zip(problem_of.op.inputs, problem_of.inputs))
        kept = {n: saved[n] for n in everything.saved()}
        incoming = (np.ones_like(results[0]), None, None)
        whole = dict(zip(problem_of.op.inputs, cupy_gpu.backward(everything, *incoming, **kept)))
        needs = tuple(n == name for n in problem_of.op.inputs)
        alone = cupy_gpu.backward(problem_of.problem(needs), *incoming, **kept)
    for other, gradient in zip(problem_of.op.inputs, alone, strict=True):
        if other == name:
            assert np.array_equal(gradient, whole[name])
        else:
            assert gradient is None


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("path", PATHS)
def test_a_gradient_into_one_result_alone(path: str, index: int):
    arguments = layer("lstm", (3, 3, 4, 6))
    value, pullback = kernels.vjp("lstm_layer", **arguments, backend="reference")
    incoming = [helpers.numbers(*v.shape, seed=5) if i == index else None for i, v in enumerate(value)]
    wanted = pullback(*incoming)
    with on(path):
        _, pullback = kernels.vjp("lstm_layer", **arguments, backend="cupy")
        found = pullback(*incoming)
    for a, b in zip(wanted, found, strict=True):
        if a is not None:
            np.testing.assert_allclose(b, a, rtol=2e-5, atol=2e-6)


def test_single_steps_give_the_sequence():
    arguments = layer("lstm", (3, 2, 4, 6))
    weights = [arguments[n] for n in ("w_ih", "w_hh", "b_ih", "b_hh")]
    with on_cpu():
        output, h_n, c_n = kernels.lstm_layer(**arguments, backend="cupy")
        state = (arguments["h0"][0], arguments["c0"][0])
        for t in range(3):
            state = kernels.lstm_cell(arguments["x"][t], state, *weights, backend="cupy")
            np.testing.assert_allclose(state[0], output[t], rtol=0, atol=1e-7)
    np.testing.assert_allclose(state[1], c_n[0], rtol=0, atol=1e-7)
    assert np.array_equal(output[2], h_n[0])


def test_a_stack_of_layers():
    rng = np.random.default_rng(3)
    x, h0 = rng.standard_normal((4, 3, 5)), rng.standard_normal((4, 3, 6))
    sizes = [(18, 5), (18, 5), (18, 12), (18, 12)]
    params = [tuple(rng.standard_normal(s) * 0.3 for s in (first, (18, 6), (18,), (18,))) for first in sizes]
    given = {"num_layers": 2, "bidirectional": True, "lengths": [4, 0, 2], "reset_after": False}
    wanted = kernels.gru(x, params, h0, **given, backend="reference")
    with on_cpu():
        found = kernels.gru(x, params, h0, **given, backend="cupy")
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-12)


def test_saturated_gates_are_finite():
    arguments = layer("lstm", (2, 2, 4, 6))
    arguments["x"] = arguments["x"] * np.float32(1e6)
    with on_cpu():
        value, pullback = kernels.vjp("lstm_layer", **arguments, backend="cupy")
        gradients = pullback(*(np.ones_like(v) for v in value))
    assert all(np.isfinite(a).all() for a in (*value, *gradients) if a is not None)


def test_explain_names_the_path():
    gru, lstm = layer("gru", (2, 9, 3, 5)), layer("lstm", (2, 9, 3, 8), projection=3)
    with on_cpu():
        assert "one launch, weights held on chip, 8 rows a block" in str(kernels.explain("gru_layer", **gru))
    with on("streamed"):
        assert "one launch, weights from L2, 2 rows a block" in str(kernels.explain("gru_layer", **gru))
    with on("stepwise"):
        assert "one launch a step, 2 rows and 8 units a block" in str(kernels.explain("gru_layer", **gru))
        assert "two launches a step, 2 rows and 8 units a block" in str(kernels.explain("lstm_layer", **lstm))


def test_states_that_fit_no_block_are_a_reason():
    w_hh = np.broadcast_to(np.float32(0), (60000, 60000))
    x, w_ih = np.zeros((1, 1, 2), np.float32), np.zeros((60000, 2), np.float32)
    message = "a step's 60000 units and 60000 states do not fit 232448 bytes of shared memory"
    with on_cpu(), pytest.raises(kernels.BackendError, match=message):
        kernels.rnn_layer(x, w_ih, w_hh, backend="cupy")


# ----- how memory is used ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "cell, path",
    [
        *(("lstm", path) for path in PATHS),
        *((cell, "stepwise") for cell in ("rnn", "gru", "reset before", 64, 48, 32, 16)),
        ("gru", "held"),
        ("reset before", "streamed"),
    ],
)
def test_whole_sectors_and_no_conflicts_of_banks(cell: str | int, path: str, dtype: str):
    """On aligned sizes every byte of a sector is asked for, and shared memory answers as fast as it can.

    cell: a number is the size of an LSTM's projection.
    """
    more: dict[str, Any] = {"reset_after": False} if cell == "reset before" else {}
    if isinstance(cell, int):
        kind, more = "lstm", {"projection": cell}
    else:
        kind = "gru" if cell == "reset before" else cell
    arguments, op = layer(kind, (2, 4, 16, 64), **more), f"{kind}_layer"
    with on(path, "prof", rows=4, unit_tile=32) as launched:
        value, pullback = kernels.vjp(op, **helpers.in_dtype(arguments, dtype), backend="cupy")
        pullback(*(np.ones_like(v) for v in value))
    for kernel, c in zip(launched.kernels, launched.counts, strict=True):
        assert c["load_sectors"] * 32 <= 1.1 * c["global_loaded"], kernel
        assert c["store_sectors"] * 32 <= 1.1 * c["global_stored"], kernel
        assert c["shared_load_turns"] <= 1.1 * c["shared_load_least"], kernel
        assert c["shared_store_turns"] <= 1.1 * c["shared_store_least"], kernel


@pytest.mark.parametrize("path", ["held", "streamed"])
def test_each_byte_that_the_steps_need_and_no_other_is_touched(path: str):
    """Of an LSTM of T steps, B rows and H units: unique bytes of the two kernels that walk through the steps."""
    steps, batch, units = 3, 4, 64
    with on(path, rows=4) as launched:
        value, pullback = kernels.vjp("lstm_layer", **layer("lstm", (steps, batch, 16, units)), backend="cupy")
        pullback(*(np.ones_like(v) for v in value))
    counts = dict(zip(launched.kernels, launched.counts))
    states, weights = batch * units, 4 * units * units
    # The inputs' sums, w_hh, two biases, h0 and c0; output, gates and cells of each step, h_n and c_n.
    forward = counts["recurrence_forward"]
    assert forward["unique_loaded"] == 4 * (steps * 4 * states + weights + 2 * 4 * units + 2 * states)
    assert forward["unique_stored"] == 4 * (steps * (1 + 4 + 1) * states + 2 * states)
    # Gates, cells and incoming gradients of each step, states of all but the last, w_hh, two initial and two incoming
    # states; the sums' gradients and the old states of each step, and those of the initial states.
    backward = counts["recurrence_backward"]
    assert backward["unique_loaded"] == 4 * (steps * (4 + 1 + 1) * states + (steps - 1) * states + weights + 4 * states)
    assert backward["unique_stored"] == 4 * (steps * (4 + 1) * states + 2 * states)


def test_held_weights_are_read_once():
    """Of a block: what is loaded is the weights, and each step what it must have."""
    loaded = {}
    for steps in (1, 5):
        with on("held", rows=4) as launched:
            kernels.lstm_layer(**layer("lstm", (steps, 4, 16, 64)), backend="cupy")
        loaded[steps] = launched.counts[-1]["global_loaded"]
    assert (loaded[5] - loaded[1]) / 4 == 4 * 4 * 64 * 4  # rows x gates x units x bytes: the inputs' sums
