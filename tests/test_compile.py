"""torch: the registered ops, torch.compile and torch.export."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kernels import torch_library
from kernels.case import Case
from kernels.op import OPS
from tests.support import matrix
from tests.support.torch_calls import (
    CASES,
    COMPILED,
    OP_NAMES,
    SIMPLE,
    assert_equal,
    budget_of_torchs_own,
    function_of,
    own_case,
    registered_arguments,
    total,
)

# ----- registered ops ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OP_NAMES)
def test_schemas_follow_the_declaration(op: str):
    schema = torch_library._registered[op].call.default._schema
    names = [a.name for a in schema.arguments]
    assert names == [*OPS[op].inputs, *OPS[op].attributes, "needs_grad", "backend"]
    assert len(schema.returns) == len(OPS[op].results)
    assert not schema.is_mutable
    assert all(a.alias_info is None for a in (*schema.arguments, *schema.returns))


@pytest.mark.parametrize("case", CASES)
def test_opcheck(case: Case):
    tensors = matrix.as_tensors(case.build("float32"), case.op, requires_grad=True)
    call = torch_library._registered[case.op].call.default
    torch.library.opcheck(call, registered_arguments(case, tensors, True))


@pytest.mark.parametrize("case", SIMPLE)
def test_opcheck_without_gradients(case: Case):
    call = torch_library._registered[case.op].call.default
    torch.library.opcheck(call, registered_arguments(case, matrix.as_tensors(case.build("float64")), False))


@pytest.mark.parametrize("case", CASES)
def test_opcheck_of_backward(case: Case):
    tensors = matrix.as_tensors(case.build("float32"))
    arguments = registered_arguments(case, tensors, True)
    registered = torch_library._registered[case.op]
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
    ours, _ = function_of(
        case, matrix.as_tensors(case.build("float32")), own_case(case)
    )  # no call is left to torch there
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
        ours, _ = function_of(case, matrix.as_tensors(case.build("float32")), own_case(case))
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
    ours, _ = function_of(case, matrix.as_tensors(case.build("float32")), own_case(case))
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
    ours, _ = function_of(case, matrix.as_tensors(case.build("float32")), own_case(case))
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
    assert_equal(compiled(*inputs), function(*inputs), *budget_of_torchs_own(case, backend))


@pytest.mark.parametrize("op", OP_NAMES)
def test_compile_raises_the_same_errors(op: str, fresh_compiler):
    """An argument's error reaches the caller of a compiled function in words."""
    x = torch.zeros(2, 2, dtype=torch.int32)
    case = matrix.cases_of(op, "ci")[0]
    arguments = matrix.as_tensors(case.build()) | {OPS[op].inputs[0]: x}
    compiled = torch.compile(lambda: matrix.public(op)(**arguments), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match=f"{op}: "):
        compiled()
