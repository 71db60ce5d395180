"""Every op as torch knows ops: autograd to second order, registered ops, compile, export, modes, kinds of tensor."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from kernels import torch_binding
from kernels.backends import BACKENDS
from kernels.case import Case
from kernels.op import OPS
from tests.support import matrix

CASES = matrix.case_parameters()
OP_NAMES = matrix.OP_NAMES
#: Backends that our own autograd function serves, and torch's own.
CASE_BACKEND = matrix.case_backend_parameters()
SIMPLE = [pytest.param(matrix.cases_of(op, "ci")[0], id=op) for op in OP_NAMES]
SIMPLE_BACKEND = matrix.case_backend_parameters(tuple(matrix.cases_of(op, "ci")[0] for op in OP_NAMES))
#: What is compiled: the first cases of each op at once, the others in the full run.
COMPILED = [
    pytest.param(c, id=c.id, marks=[] if i < 2 else [pytest.mark.slow])
    for op in OP_NAMES
    for i, c in enumerate(matrix.cases_of(op, "ci"))
    if i < 4
]


def function_of(case: Case, tensors: dict[str, Any], backend: str | None = None) -> tuple[Any, list[torch.Tensor]]:
    """The case as a function of its differentiable tensors alone, and those tensors."""
    names = matrix.differentiable_names(case.op, tensors)
    fixed = {n: a for n, a in tensors.items() if n not in names}
    count = OPS[case.op].differentiable_results

    def function(*given: torch.Tensor) -> Any:
        value = matrix.public(case.op)(**fixed, **dict(zip(names, given)), backend=backend)
        return matrix.results_of(value)[0] if count == 1 else matrix.results_of(value)[:count]

    return function, [tensors[n] for n in names]


def _own(case: Case) -> str:
    """A backend whose inside torch cannot see."""
    return next(b for b in matrix.backends_of(case.op) if not BACKENDS[b].differentiates)


def total(value: Any) -> torch.Tensor:
    """The sum of all elements of all results."""
    return sum(r.sum() for r in matrix.results_of(value))


def assert_equal(first: Any, second: Any) -> None:
    """The same kind, numbers and layout."""
    for a, b in zip(matrix.results_of(first), matrix.results_of(second), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


# ----- derivatives -------------------------------------------------------------------------------------------------


NO_DERIVATIVE = "the gradient of this case is by definition not the derivative of its result"


@pytest.mark.parametrize("case, backend", CASE_BACKEND)
def test_gradcheck(case: Case, backend: str):
    if not case.derivative:
        pytest.skip(NO_DERIVATIVE)
    tensors = matrix.as_tensors(case.build("float64"), case.op, requires_grad=True)
    function, inputs = function_of(case, tensors, backend)
    if any(t.numel() == 0 for t in inputs):
        # Nothing to perturb: gradients exist, in the inputs' shapes, and an empty result makes zeros of all.
        results = matrix.results_of(function(*inputs))
        total(results).backward()
        for t in inputs:
            assert t.grad is not None and t.grad.shape == t.shape
            assert any(r.numel() for r in results) or not t.grad.any()
        return
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("case", SIMPLE)
def test_gradcheck_of_every_element(case: Case):
    """The slow form, element by element, for the smallest case of each op."""
    smallest = min(
        matrix.cases_of(case.op, "ci", "odd"),
        key=lambda c: (min(map(np.prod, c.shapes.values())) == 0, sum(map(np.prod, c.shapes.values()))),
    )
    tensors = matrix.as_tensors(smallest.build("float64"), case.op, requires_grad=True)
    function, inputs = function_of(smallest, tensors)
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("case, backend", [p for p in CASE_BACKEND if p.values[1] != "reference"])
def test_gradgradcheck(case: Case, backend: str):
    """Ours goes back a second time through torch's formulas, whichever backend went forward."""
    if not case.derivative:
        pytest.skip(NO_DERIVATIVE)
    tensors = matrix.as_tensors(case.build("float64"), case.op, requires_grad=True)
    function, inputs = function_of(case, tensors, backend)
    if any(t.numel() == 0 for t in inputs):
        (first,) = torch.autograd.grad(total(function(*inputs)), inputs[:1], create_graph=True)
        assert first.shape == inputs[0].shape
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gradgradcheck uses deprecated parts of torch
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("case", SIMPLE)
def test_gradients_accumulate_and_flow_on(case: Case):
    """The op inside a larger graph, used twice."""
    function, inputs = function_of(case, matrix.as_tensors(case.build("float64"), case.op, requires_grad=True))
    once = torch.autograd.grad(total(function(*inputs)), inputs)
    scaled = [2 * t for t in inputs]
    (total(function(*scaled)) + 3 * total(function(*inputs))).backward()
    at = [(2 * t).detach().requires_grad_() for t in inputs]
    other = torch.autograd.grad(total(function(*at)), at)
    for t, a, b in zip(inputs, once, other):
        torch.testing.assert_close(t.grad, 3 * a + 2 * b)


# ----- registered ops ----------------------------------------------------------------------------------------------


def registered_arguments(case: Case, arguments: dict[str, Any], needs_grad: bool) -> tuple[Any, ...]:
    """Arguments of the registered op for a case."""
    captured = matrix.capture(case.op, **arguments)
    problem = captured.problem(needs_grad)
    values = [getattr(problem, n) for n in captured.op.attributes]
    return (*captured.inputs, *values, list(problem.needs_grad), None)


@pytest.mark.parametrize("op", OP_NAMES)
def test_schemas_follow_the_declaration(op: str):
    schema = torch_binding._registered[op].call.default._schema
    names = [a.name for a in schema.arguments]
    assert names == [*OPS[op].inputs, *OPS[op].attributes, "needs_grad", "backend"]
    assert len(schema.returns) == len(OPS[op].results)
    assert not schema.is_mutable
    assert all(a.alias_info is None for a in (*schema.arguments, *schema.returns))


@pytest.mark.parametrize("case", CASES)
def test_opcheck(case: Case):
    tensors = matrix.as_tensors(case.build("float32"), case.op, requires_grad=True)
    call = torch_binding._registered[case.op].call.default
    torch.library.opcheck(call, registered_arguments(case, tensors, True))


@pytest.mark.parametrize("case", SIMPLE)
def test_opcheck_without_gradients(case: Case):
    call = torch_binding._registered[case.op].call.default
    torch.library.opcheck(call, registered_arguments(case, matrix.as_tensors(case.build("float64")), False))


@pytest.mark.parametrize("case", CASES)
def test_opcheck_of_backward(case: Case):
    tensors = matrix.as_tensors(case.build("float32"))
    arguments = registered_arguments(case, tensors, True)
    registered = torch_binding._registered[case.op]
    results = matrix.results_of(registered.call(*arguments))
    incoming = [torch.randn_like(r) for r in results[: OPS[case.op].differentiable_results]]
    count = len(OPS[case.op].inputs)
    torch.library.opcheck(
        registered.call_backward.default,
        (*incoming, *arguments[:count], *results, *arguments[count:]),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


# ----- compile and export ------------------------------------------------------------------------------------------


def run_with_gradients(function: Any, inputs: list[torch.Tensor]) -> tuple[Any, ...]:
    """Results and gradients of a function of tensors."""
    fresh = [t.detach().clone().requires_grad_() for t in inputs]
    results = matrix.results_of(function(*fresh))
    torch.manual_seed(0)
    gradients = torch.autograd.grad(results, fresh, [torch.randn_like(r) for r in results])
    return (*(r.detach() for r in results), *gradients)


@pytest.fixture
def fresh_compiler():
    """Forget what was compiled before, as other tests would leave guards behind."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("case", COMPILED)
def test_compile(case: Case, fresh_compiler):
    function, inputs = function_of(case, matrix.as_tensors(case.build("float32"), case.op, requires_grad=True))
    ours, _ = function_of(case, matrix.as_tensors(case.build("float32")), _own(case))  # no call is left to torch there
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_equal(run_with_gradients(compiled, inputs), run_with_gradients(ours, inputs))
    with torch.no_grad():
        assert_equal(compiled(*inputs), ours(*inputs))


def _labels(case: Case) -> list[str]:
    """Names of the arrays of integers that have the batch's length."""
    return [n for n, a in case.build().items() if isinstance(a, np.ndarray) and a.dtype.kind in "iu" and a.ndim]


@pytest.mark.parametrize("case", SIMPLE)
def test_compile_with_dynamic_shapes(case: Case, fresh_compiler):
    """One graph for every batch size."""
    function, inputs = function_of(case, matrix.as_tensors(case.build("float32"), case.op, requires_grad=True))
    name = OPS[case.op].inputs[0]
    if len(inputs) > 1 and case.build()[name].ndim < 2:
        pytest.skip(f"{name} of {case.id} has no batch dimension")
    labels = _labels(case)
    graphs: list[Any] = []

    def count(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return graph

    if labels:
        full = case.build("float32")
        fixed = {n: a for n, a in matrix.as_tensors(full).items() if n not in (name, *labels)}

        def with_labels(x: torch.Tensor, *rest: torch.Tensor) -> Any:
            return matrix.results_of(matrix.public(case.op)(**fixed, **{name: x}, **dict(zip(labels, rest))))[0]

        compiled = torch.compile(with_labels, fullgraph=True, backend=count, dynamic=True)
        tensors = matrix.as_tensors(full)
        for repeat in (1, 2, 3):
            given = [torch.cat([tensors[n]] * repeat) for n in (name, *labels)]
            assert_equal(compiled(*given), with_labels(*given))
    else:
        compiled = torch.compile(function, fullgraph=True, backend=count, dynamic=True)
        ours, _ = function_of(case, matrix.as_tensors(case.build("float32")), _own(case))
        first, *rest = inputs
        for repeat in (1, 2, 3):
            given = [torch.cat([first] * repeat).detach(), *rest]
            assert_equal(compiled(*given), ours(*given))
    assert len(graphs) == 1


@pytest.mark.parametrize("case", SIMPLE)
def test_compiled_gradients_with_dynamic_shapes(case: Case, fresh_compiler):
    if _labels(case):
        pytest.skip(f"the labels of {case.op} would have to grow with the batch; see the test above")
    function, inputs = function_of(case, matrix.as_tensors(case.build("float32"), case.op, requires_grad=True))
    ours, _ = function_of(case, matrix.as_tensors(case.build("float32")), _own(case))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    first, *rest = inputs
    for repeat in (1, 3):
        given = [torch.cat([first] * repeat).detach(), *rest]
        assert_equal(run_with_gradients(compiled, given), run_with_gradients(ours, given))


class Module(torch.nn.Module):
    """A case as a module of its differentiable tensors."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        """The op."""
        return self.function(*inputs)


@pytest.mark.parametrize("case", SIMPLE)
def test_export(case: Case):
    function, inputs = function_of(case, matrix.as_tensors(case.build("float32")))
    program = torch.export.export(Module(function), tuple(inputs))
    calls = [n for n in program.graph.nodes if n.op == "call_function" and "nnlib_kernels" in str(n.target)]
    assert len(calls) == 1
    ours, _ = function_of(case, matrix.as_tensors(case.build("float32")), _own(case))
    assert_equal(program.module()(*inputs), ours(*inputs))


@pytest.mark.parametrize("case", SIMPLE)
def test_second_derivatives_under_compile_say_no(case: Case, fresh_compiler):
    """Eager has them; a compiled graph must say so and never give zeros."""
    function, inputs = function_of(case, matrix.as_tensors(case.build("float64"), case.op, requires_grad=True))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with pytest.raises((RuntimeError, NotImplementedError), match="(?i)second|double|create_graph|twice"):
        squares = [r.pow(2) for r in matrix.results_of(compiled(*inputs))]
        first = torch.autograd.grad(total(squares), inputs, create_graph=True)
        torch.autograd.grad(sum(g.sum() for g in first), inputs)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("case", SIMPLE)
def test_compile_keeps_the_named_backend(case: Case, backend: str, fresh_compiler):
    function, inputs = function_of(case, matrix.as_tensors(case.build("float32")), backend)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_equal(compiled(*inputs), function(*inputs))


@pytest.mark.parametrize("op", OP_NAMES)
def test_compile_raises_the_same_errors(op: str, fresh_compiler):
    """An argument's error reaches the caller of a compiled function in words."""
    x = torch.zeros(2, 2, dtype=torch.int32)
    case = matrix.cases_of(op, "ci")[0]
    arguments = matrix.as_tensors(case.build()) | {OPS[op].inputs[0]: x}
    compiled = torch.compile(lambda: matrix.public(op)(**arguments), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match=f"{op}: "):
        compiled()


# ----- modes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case, backend", SIMPLE_BACKEND)
def test_no_grad_and_inference_mode(case: Case, backend: str):
    tensors = matrix.as_tensors(case.build("float32"), case.op, requires_grad=True)
    call = matrix.public(case.op)
    expected = [r.detach() for r in matrix.results_of(call(**tensors, backend=backend))]
    with torch.no_grad():
        found = matrix.results_of(call(**tensors, backend=backend))
        assert not any(r.requires_grad for r in found)
        assert_equal(found, tuple(expected))
    with torch.inference_mode():
        found = matrix.results_of(call(**tensors, backend=backend))
        assert all(not r.requires_grad for r in found)
        assert_equal(found, tuple(expected))
        made_inside = matrix.as_tensors(case.build("float32"))
        assert_equal(matrix.results_of(call(**made_inside, backend=backend)), tuple(expected))
    # Tensors made in inference mode also work outside of it.
    assert_equal(matrix.results_of(call(**made_inside, backend=backend)), tuple(expected))


@pytest.mark.parametrize("case", SIMPLE)
def test_autocast_leaves_the_dtype_alone(case: Case):
    """The call computes in the dtype of its inputs; nothing is cast behind the caller's back."""
    tensors = matrix.as_tensors(case.build("float32"), case.op, requires_grad=True)
    expected = matrix.results_of(matrix.public(case.op)(**tensors))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = matrix.results_of(matrix.public(case.op)(**tensors))
    assert_equal(found, expected)
    found[0].sum().backward()
    assert all(tensors[n].grad.dtype == torch.float32 for n in matrix.differentiable_names(case.op, tensors))


# ----- torch.func --------------------------------------------------------------------------------------------------

UNSUPPORTED = (NotImplementedError, RuntimeError)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("case", SIMPLE)
def test_vmap_says_no(case: Case, grad: bool):
    tensors = matrix.as_tensors(case.build("float32"), case.op, requires_grad=grad)
    function, inputs = function_of(case, tensors, _own(case))
    with pytest.raises(UNSUPPORTED, match="(?i)vmap"):
        torch.func.vmap(function)(*[torch.stack([t.detach(), t.detach()]).requires_grad_(grad) for t in inputs])


@pytest.mark.parametrize("case", SIMPLE)
def test_functional_grad_says_no_or_is_right(case: Case):
    function, inputs = function_of(case, matrix.as_tensors(case.build("float64")), _own(case))
    with pytest.raises(UNSUPPORTED, match="(?i)torch.func|functorch|setup_context|vmap"):
        torch.func.grad(lambda *t: total(function(*t)))(*inputs)


@pytest.mark.parametrize("case", SIMPLE)
def test_forward_mode_says_no(case: Case):
    function, inputs = function_of(case, matrix.as_tensors(case.build("float64")), _own(case))
    with pytest.raises(UNSUPPORTED, match="(?i)forward|jvp|torch.func"):
        torch.func.jvp(function, tuple(inputs), tuple(map(torch.ones_like, inputs)))
    inputs = [t.detach().requires_grad_() for t in inputs]
    with forward_ad.dual_level(), pytest.raises(UNSUPPORTED, match="(?i)forward|jvp|torch.func"):
        dual = [forward_ad.make_dual(t, torch.ones_like(t)) for t in inputs]
        tangent = forward_ad.unpack_dual(function(*dual)).tangent
        pytest.fail(f"no error, and the tangent is {tangent}")


@pytest.mark.parametrize("case", SIMPLE)
def test_forward_mode_without_recording_says_no(case: Case):
    """Dual numbers of tensors that need no gradient: an error, never a silently lost tangent."""
    function, inputs = function_of(case, matrix.as_tensors(case.build("float64")), _own(case))
    with forward_ad.dual_level(), pytest.raises(UNSUPPORTED, match="(?i)forward|jvp|torch.func"):
        dual = [forward_ad.make_dual(t, torch.ones_like(t)) for t in inputs]
        tangent = forward_ad.unpack_dual(function(*dual)).tangent
        pytest.fail(f"no error, and the tangent is {tangent}")


# ----- kinds of tensor ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case, backend", SIMPLE_BACKEND)
def test_parameters_and_copies(case: Case, backend: str):
    tensors = matrix.as_tensors(case.build("float32"), case.op, requires_grad=True)
    names = matrix.differentiable_names(case.op, tensors)
    results = matrix.results_of(matrix.public(case.op)(**tensors, backend=backend))
    results[0].sum().backward()
    changed = dict(tensors)
    for n in names:
        changed[n] = copy.deepcopy(torch.nn.Parameter(tensors[n].detach()))
    again = matrix.results_of(matrix.public(case.op)(**changed, backend=backend))
    assert_equal(tuple(r.detach() for r in again), tuple(r.detach() for r in results))
    assert type(again[0]) is torch.Tensor
    again[0].sum().backward()
    for n in names:
        assert_equal(changed[n].grad, tensors[n].grad)


class Labelled(torch.Tensor):
    """A tensor that does nothing but remember its class."""


@pytest.mark.parametrize("case, backend", SIMPLE_BACKEND)
def test_a_subclass_of_tensor(case: Case, backend: str):
    tensors = matrix.as_tensors(case.build("float32"), case.op, requires_grad=True)
    expected = matrix.results_of(matrix.public(case.op)(**tensors, backend=backend))
    name = OPS[case.op].inputs[0]
    marked = tensors | {name: tensors[name].detach().as_subclass(Labelled).requires_grad_()}
    for _ in range(2):
        found = matrix.results_of(matrix.public(case.op)(**marked, backend=backend))
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_array_equal(a.detach().numpy(), b.detach().as_subclass(torch.Tensor).numpy())
    found[0].sum().backward()
    expected[0].sum().backward()
    np.testing.assert_array_equal(marked[name].grad.as_subclass(torch.Tensor).numpy(), tensors[name].grad.numpy())


@pytest.mark.parametrize("case", CASES)
def test_fake_tensors(case: Case):
    """Shape, dtype and layout without computing, as torch's tools ask for."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    arguments = registered_arguments(case, matrix.as_tensors(case.build("float32")), True)
    call = torch_binding._registered[case.op].call
    real = matrix.results_of(call(*arguments))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if torch.is_tensor(a) else a for a in arguments]
        found = matrix.results_of(call(*fakes))
    for a, b in zip(real, found, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
        if a.numel():
            strides = [[s for s, n in zip(t.stride(), t.shape) if n > 1] for t in (a, b)]
            assert strides[0] == strides[1]


@pytest.mark.parametrize("case", SIMPLE)
def test_the_public_function_on_fake_tensors(case: Case):
    """Fake tensors outside of torch.compile: the result's form, or an error in words; never a wrong number."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    tensors = matrix.as_tensors(case.build("float32"))
    real = matrix.results_of(matrix.public(case.op)(**tensors))
    with FakeTensorMode() as mode:
        fakes = {n: mode.from_tensor(a) if torch.is_tensor(a) else a for n, a in tensors.items()}
        found = matrix.results_of(matrix.public(case.op)(**fakes))
    for a, b in zip(real, found, strict=True):
        assert isinstance(b, FakeTensor)
        assert a.shape == b.shape and a.dtype == b.dtype


@pytest.mark.parametrize("case", SIMPLE)
def test_meta_tensors(case: Case):
    """Tensors without memory: the result's form, as of torch's own ops, or one clear line."""
    tensors = matrix.as_tensors(case.build("float32"))
    meta = {n: a.to("meta") if torch.is_tensor(a) else a for n, a in tensors.items()}
    real = matrix.results_of(matrix.public(case.op)(**tensors))
    found = matrix.results_of(matrix.public(case.op)(**meta))
    for a, b in zip(real, found, strict=True):
        assert b.is_meta and a.shape == b.shape and a.dtype == b.dtype


@pytest.mark.parametrize("layout", ["sparse", "quantized", "nested", "conjugate"])
@pytest.mark.parametrize("op", OP_NAMES)
def test_tensors_that_are_no_plain_memory(op: str, layout: str):
    """Refused in words, never read as if they were dense floats."""
    tensors = matrix.as_tensors(matrix.cases_of(op, "ci")[0].build("float32"))
    name = OPS[op].inputs[0]
    x = tensors[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        odd = {
            "sparse": lambda: x.to_sparse(),
            "quantized": lambda: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
            "nested": lambda: torch.nested.nested_tensor([x, x], layout=torch.jagged),
            "conjugate": lambda: torch.complex(x, x).conj(),
        }[layout]()
    with pytest.raises((TypeError, ValueError, RuntimeError, NotImplementedError)) as caught:
        matrix.public(op)(**(tensors | {name: odd}))
    assert "\n" not in str(caught.value).strip() or layout == "nested"
