"""A case as an ONNX graph, for the engines that take one. Each family's graphs are in a module beside this one."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.providers.provider import Unsupported
from bench.workload import Workload

Array = np.ndarray[Any, Any]

#: The opset that has Gelu (20) and everything else used here; ATTENTION_OPSET has Attention.
OPSET, ATTENTION_OPSET = 20, 23
_MODULES = ("bench.providers.graphs_images", "bench.providers.graphs_rows", "bench.providers.graphs_sequences")


@dataclass(frozen=True)
class BuiltGraph:
    """A serialised model with what goes in and the names of what comes out."""

    model: bytes
    inputs: dict[str, Array]
    outputs: tuple[str, ...]


@dataclass
class Graph:
    """A graph under construction; names of values are strings."""

    workload: Workload
    #: "onnxruntime" or "openvino": which of two equal forms is the faster one may depend on it.
    engine: str
    opset: int = OPSET
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    inputs: dict[str, Array] = field(default_factory=dict)

    def input(self, name: str) -> str:
        """An argument that changes from call to call."""
        self.inputs[name] = np.ascontiguousarray(self.workload.arguments[name])
        return name

    def constant(self, array: Any, name: str = "") -> str:
        """An array that stays the same, weights say."""
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(array)
        return name

    def weight(self, name: str) -> str:
        """An argument that stays the same; "" (ONNX's absent input) when it is not given."""
        given = self.workload.arguments.get(name)
        return "" if given is None else self.constant(given, name)

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add an operator; the name of its output, or a tuple of names."""
        helper: Any = importlib.import_module("onnx.helper")
        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        given = list(inputs)
        while given and given[-1] == "":
            given.pop()
        self.nodes.append(helper.make_node(kind, given, names, **attributes))
        return names[0] if outputs == 1 else tuple(names)

    def activated(self, name: str, activation: str | None) -> str:
        """A value after an activation."""
        if activation is None:
            return name
        if activation == "silu":
            return str(self.node("Mul", name, self.node("Sigmoid", name)))
        kinds = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid", "gelu": "Gelu"}
        if activation not in kinds:
            raise Unsupported(f"no ONNX graph for activation {activation!r}")
        return str(self.node(kinds[activation], name))

    def refuse(self, **unwanted: Any) -> None:
        """Raise where one of the named features is in use."""
        for what, used in unwanted.items():
            if used:
                raise Unsupported(f"no ONNX graph with {what.replace('_', ' ')}")


Builder = Callable[[Graph], "tuple[str, ...]"]
_BUILDERS: dict[str, Builder] = {}


def graph_of(*ops: str) -> Callable[[Builder], Builder]:
    """Registers a builder: it adds the op's nodes to a graph and returns the names of the results."""

    def register(builder: Builder) -> Builder:
        _BUILDERS.update(dict.fromkeys(ops, builder))
        return builder

    return register


def build(workload: Workload, engine: str) -> BuiltGraph:
    """The case as a model.

    Raises:
        Unsupported: there is no graph for it, or the graph would not be the same work.
    """
    if workload.training:
        raise Unsupported("it runs forward only")
    if workload.case.channels_last:
        raise Unsupported("ONNX images are channels-first")
    for module in _MODULES:
        importlib.import_module(module)
    builder = _BUILDERS.get(workload.case.op)
    if builder is None:
        raise Unsupported(f"no ONNX graph for {workload.case.op}")
    graph = Graph(workload, engine)
    outputs = builder(graph)
    onnx: Any = importlib.import_module("onnx")
    helper, numpy_helper = onnx.helper, importlib.import_module("onnx.numpy_helper")
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in graph.inputs.items()
    ]
    # Without a shape: the engines work it out, and the gate compares it.
    element = helper.np_dtype_to_tensor_dtype(np.dtype(workload.dtype))
    ends = [helper.make_tensor_value_info(name, element, None) for name in outputs]
    constants = [numpy_helper.from_array(array, name) for name, array in graph.constants.items()]
    made = helper.make_graph(graph.nodes, workload.case.op, infos, ends, constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", graph.opset)], ir_version=10)
    return BuiltGraph(model.SerializeToString(), graph.inputs, outputs)
