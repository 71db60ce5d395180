"""Bad input of every kind, for every op: one clear line, and nothing runs."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels.op import OPS
from tests.support import matrix
from tests.support.calls import ERRORS, simple_case
from tests.support.strategies import torch_call

OP_NAMES = matrix.OP_NAMES


def check_refusal(op: str, call: Callable[[], Any]) -> str | None:
    """What is wrong with the way in which a call is refused; None for a good error, "accepted" when it runs."""
    try:
        call()
    except ERRORS as error:
        text = str(error)
        if "\n" in text or not re.fullmatch(rf"{op}: [a-z_][a-z_0-9]*\b.+, got .+", text):
            return f"{type(error).__name__} in other words: {text!r}"
        return None
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:150]!r}"
    return "accepted"


@pytest.mark.parametrize("op", OP_NAMES)
def test_an_error_is_shown_alone(op: str):
    """Python prints what an error was raised in the middle of; here that is nothing."""
    with pytest.raises(ERRORS) as caught:
        matrix.public(op)(**(simple_case(op).build() | {OPS[op].inputs[0]: np.ones((2, 2), "complex64")}))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.fixture
def nothing_runs(monkeypatch):
    """Make every implementation fail the test when it runs."""

    def forbid(op: str) -> None:
        def run(*_: Any) -> Any:
            raise AssertionError("a kernel ran")

        for backend in matrix.backends_of(op):
            made = object.__new__(type(OPS[op].implementations[backend]))
            made.__dict__.update(OPS[op].implementations[backend].__dict__)
            made.__dict__["forward"] = run
            monkeypatch.setitem(OPS[op].implementations, backend, made)
        monkeypatch.setattr(OPS[op], "plans", {})

    return forbid


BAD_DTYPES = ["bool", "complex64", "object", "<U3", "datetime64[s]", "int16", "S4"]
#: Integer images that torch takes too.
INTEGERS_TAKEN = {("max_pool2d", "int16"), ("adaptive_max_pool2d", "int16")}


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("op", OP_NAMES)
def test_bad_dtypes(op: str, kind: str, nothing_runs):
    nothing_runs(op)
    arguments = simple_case(op).build()
    complaints = []
    for name in matrix.array_names(arguments):
        for dtype in BAD_DTYPES:
            bad = np.ones(arguments[name].shape, "int64").astype(dtype)
            changed = arguments | {name: bad}
            if (op, dtype) in INTEGERS_TAKEN:
                continue
            if kind == "torch":
                if dtype not in ("bool", "complex64", "int16"):
                    continue
                changed = matrix.as_tensors(changed)
            complaint = check_refusal(op, lambda changed=changed: matrix.public(op)(**changed))
            if complaint:
                complaints.append(f"{name} of {dtype}: {complaint}")
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("op", OP_NAMES)
def test_bad_shapes(op: str):
    """More and fewer dimensions and other sizes of each array: refused in one line, unless torch takes them too."""
    arguments = simple_case(op).build()
    complaints = []
    for name in matrix.array_names(arguments):
        a = arguments[name]
        changed = {
            "one dimension more": a[None],
            "two dimensions more": a[None, None],
            "one dimension less": a[0] if a.ndim else None,
            "no dimension": a.reshape(-1)[0:1].reshape(()),
            **{f"size 0 in dimension {d}": a.take([], d) for d in range(a.ndim)},
            **{f"one more in dimension {d}": np.concatenate([a, a.take([0], d)], d) for d in range(a.ndim)},
        }
        for what, bad in changed.items():
            if bad is None:
                continue
            given = arguments | {name: bad}
            complaint = check_refusal(op, lambda given=given: matrix.public(op)(**given))
            if complaint is None:
                continue
            if complaint == "accepted":
                ours = matrix.results_of(matrix.public(op)(**given))[0]
                if ours.size == 0:
                    continue  # an empty batch gives an empty result, where torch may refuse it
                try:
                    theirs = _torch_value(op, given)
                except (RuntimeError, ValueError, TypeError, IndexError) as refused:
                    complaint = f"accepted, but torch says {' '.join(str(refused).split())[:100]!r}"
                else:
                    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
                    continue
            complaints.append(f"{name} {bad.shape} ({what}): {complaint}")
    assert not complaints, "\n".join(complaints)


def _torch_value(op: str, arguments: dict[str, Any]) -> np.ndarray:
    rest = {"activation": None} if op in ("conv2d", "conv2d_max_pool2d", "linear") else {}
    if op in ("conv2d", "conv2d_max_pool2d"):
        rest |= {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    if "softmax" in op:
        rest["dim"] = -1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = torch_call(op)(**(rest | matrix.as_tensors(arguments)))
    return matrix.results_of(value)[0].numpy()


def _attributes(op: str) -> list[str]:
    parameters = inspect.signature(matrix.public(op)).parameters
    return [n for n in parameters if n not in OPS[op].inputs and n not in ("device", "backend")]


BAD_NUMBERS = [float("nan"), float("inf"), -1, -(10**30), 1.5]
BAD_VALUES = [*BAD_NUMBERS, "x", "", b"same", (1, 2, 3), (), [], ((1,), 2), {}, object(), (0, -1)]
#: Values that some attribute takes by right, so that only the manner of the refusal counts.
TAKEN: dict[tuple[str, str], list[Any]] = {
    # torch's spelling of "as kernel_size".
    **{(op, "stride"): [(), []] for op in ("max_pool2d", "avg_pool2d", "lp_pool2d")},
    ("conv2d_max_pool2d", "pool_stride"): [(), []],
    ("softmax", "dim"): [-1],
    ("log_softmax", "dim"): [-1],
    **{(op, "ignore_index"): [-1, -(10**30)] for op in ("cross_entropy", "linear_cross_entropy")},
    ("avg_pool2d", "divisor_override"): [-1, -(10**30)],
    ("embedding", "padding_idx"): [-1],
    ("embedding", "max_norm"): [float("inf"), 1.5],
    ("embedding", "norm_type"): [float("inf"), 1.5],
    **{(op, "eps"): [-1, -(10**30), 1.5] for op in ("layer_norm", "rms_norm")},
    ("lp_pool2d", "norm_type"): [float("inf"), -1, 1.5, -(10**30), float("nan")],
    ("attention", "softcap"): [1.5],
    **{(op, "scale"): [-1, 1.5, -(10**30)] for op in ("attention", "scaled_dot_product_attention")},
}


@pytest.mark.parametrize("op", OP_NAMES)
def test_bad_attributes(op: str, nothing_runs):
    nothing_runs(op)
    arguments = simple_case(op).build()
    complaints = []
    for name in _attributes(op):
        for value in BAD_VALUES:
            if any(value == taken or value != value and taken != taken for taken in TAKEN.get((op, name), [])):
                continue
            given = arguments | {name: value}
            complaint = check_refusal(op, lambda given=given: matrix.public(op)(**given))
            if complaint:
                complaints.append(f"{name}={value!r}: {complaint}")
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("op", OP_NAMES)
def test_bools_are_no_numbers_and_numbers_no_bools(op: str):
    arguments = simple_case(op).build()
    complaints = []
    for name in _attributes(op):
        annotation = inspect.signature(matrix.public(op)).parameters[name].annotation
        for value in (1, 0, None) if annotation == "bool" else (True, False):
            given = arguments | {name: value}
            complaint = check_refusal(op, lambda given=given: matrix.public(op)(**given))
            if complaint:
                complaints.append(f"{name}={value!r}: {complaint}")
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("op", OP_NAMES)
def test_numpy_integers_do_for_ints(op: str):
    for case in matrix.cases_of(op, "ci"):
        arguments = case.build()
        changed = {n: np.int64(v) if type(v) is int else v for n, v in arguments.items()}
        found = [matrix.results_of(matrix.public(op)(**given)) for given in (arguments, changed)]
        for a, b in zip(*found, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("op", OP_NAMES)
def test_unknown_arguments(op: str):
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        matrix.public(op)(**simple_case(op).build(), colour=1)
    with pytest.raises(TypeError, match="missing"):
        matrix.public(op)()


@pytest.mark.parametrize("backend", [None, "numba", "torch", "reference"])
@pytest.mark.parametrize("op", OP_NAMES)
def test_foreign_byte_order(op: str, backend: str | None):
    """Big-endian numbers on a little-endian machine: the same result, or a refusal; never noise."""
    if backend is not None and backend not in matrix.backends_of(op):
        pytest.skip(f"{op} has no {backend} kernel")
    arguments = simple_case(op).build()
    expected = matrix.results_of(matrix.public(op)(**arguments, backend=backend))
    swapped = {n: a.astype(a.dtype.newbyteorder()) if isinstance(a, np.ndarray) else a for n, a in arguments.items()}
    complaint = check_refusal(op, lambda: matrix.public(op)(**swapped, backend=backend))
    if complaint == "accepted":
        for a, b in zip(expected, matrix.results_of(matrix.public(op)(**swapped, backend=backend)), strict=True):
            np.testing.assert_array_equal(a, b)
            assert b.dtype.isnative
    else:
        assert complaint is None, complaint


@pytest.mark.parametrize("op", OP_NAMES)
def test_arrays_with_a_mask_and_classes(op: str):
    """What NumPy's own arithmetic would mind, and kernels would read over; and a class in place of an array."""
    arguments = simple_case(op).build()
    complaints = []
    for name in matrix.array_names(arguments):
        array = arguments[name]
        if isinstance(array, np.ndarray):
            for bad in (np.ma.masked_array(array, np.zeros(array.shape, bool)), np.ndarray):
                complaint = check_refusal(op, lambda given=arguments | {name: bad}: matrix.public(op)(**given))
                complaints += [f"{name} {type(bad).__name__}: {complaint}"] if complaint else []
    assert not complaints, "\n".join(complaints)


UNUSUAL = {
    "sparse_coo": torch.Tensor.to_sparse,
    "sparse_csr": torch.Tensor.to_sparse_csr,
    "mkldnn": torch.Tensor.to_mkldnn,
    "nested": lambda tensor: torch.nested.as_nested_tensor([tensor, tensor]),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", UNUSUAL)
def test_tensors_that_are_not_dense(kind: str):
    tensor = torch.ones(6, 8)
    unusual = UNUSUAL[kind](tensor)
    # Calls of the same form before make no difference.
    for backend in ("numba", "reference"):
        kernels.softmax(tensor, backend=backend)
        kernels.linear(tensor, tensor, backend=backend)
    rule = rf"must be a dense tensor \(to_dense\(\) or to_padded_tensor\(\) gives one\), got a {kind} one"
    for backend in ("numba", "reference"):
        with pytest.raises(TypeError, match=f"^softmax: x {rule}$"):
            kernels.softmax(unusual, backend=backend)
        with pytest.raises(TypeError, match=f"^linear: x {rule}$"):
            kernels.linear(unusual, tensor, backend=backend)
        with pytest.raises(TypeError, match=f"^linear: weight {rule}$"):
            kernels.linear(tensor, unusual, backend=backend)
    with pytest.raises(TypeError, match=f"^pack_linear: weight {rule}$"):
        kernels.pack_linear(unusual)


def test_a_parameter_without_a_shape():
    rule = "must have a shape and values, got an UninitializedParameter"
    with pytest.raises(TypeError, match=f"^softmax: x {rule}$"):
        kernels.softmax(torch.nn.UninitializedParameter())
    with pytest.raises(TypeError, match=f"^linear: weight {rule}$"):
        kernels.linear(torch.ones(6, 8), torch.nn.UninitializedParameter())


def test_a_value_in_a_message_is_short_and_on_one_line():
    with pytest.raises(TypeError, match=r"^softmax: dim must be an int, got tensor.*\.\.\. \(Tensor\)$") as caught:
        kernels.softmax(np.ones(3, "float32"), torch.ones(20, 20))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 280
    with pytest.raises(ValueError, match=r"^conv2d: stride must fit into 64 bits, got -1000+\.\.\.$"):
        kernels.conv2d(np.ones((1, 1, 3, 3), "float32"), np.ones((1, 1, 1, 1), "float32"), stride=-(10**300))


@pytest.mark.parametrize("op", OP_NAMES)
def test_half_precision_without_a_kernel_says_so(op: str):
    """float16 runs where a backend takes it; a backend that does not says which dtypes it takes."""
    arguments = {
        n: a.astype("float16") if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a
        for n, a in simple_case(op).build().items()
    }
    for backend in matrix.backends_of(op):
        if "float16" in OPS[op].implementations[backend].dtypes:
            found = matrix.results_of(matrix.public(op)(**arguments, backend=backend))
            assert found[0].dtype == np.float16
        else:
            with pytest.raises(RuntimeError, match=r"has dtype float16; it takes "):
                matrix.public(op)(**arguments, backend=backend)
