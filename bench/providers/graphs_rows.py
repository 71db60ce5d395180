"""ONNX graphs of linear layers, softmax, losses and activations."""

from __future__ import annotations

from typing import Any

from bench.providers.graphs import Graph, graph_of


@graph_of("linear")
def linear(graph: Graph) -> tuple[str, ...]:
    """Gemm for rows; MatMul and Add for anything with more dimensions."""
    given = graph.workload.arguments
    graph.refuse(weight_of_one_dimension=given["weight"].ndim != 2, one_row=given["x"].ndim < 2)
    bias = given.get("bias")
    if given["x"].ndim == 2 and (bias is None or bias.ndim == 1):
        sums = graph.node("Gemm", graph.input("x"), graph.weight("weight"), graph.weight("bias"), transB=1)
    else:
        sums = graph.node("MatMul", graph.input("x"), graph.constant(given["weight"].T, "weight"))
        if bias is not None:
            sums = graph.node("Add", sums, graph.weight("bias"))
    return (graph.activated(sums, given.get("activation")),)


@graph_of("softmax", "log_softmax")
def softmax(graph: Graph) -> tuple[str, ...]:
    """Softmax, LogSoftmax."""
    given = graph.workload.arguments
    graph.refuse(numbers_without_dimension=given["x"].ndim == 0)
    kind = "Softmax" if graph.workload.case.op == "softmax" else "LogSoftmax"
    problem: Any = graph.workload.problem
    return (graph.node(kind, graph.input("x"), axis=given.get("dim", getattr(problem, "dim", -1))),)


@graph_of("cross_entropy")
def cross_entropy(graph: Graph) -> tuple[str, ...]:
    """SoftmaxCrossEntropyLoss of class indices."""
    given = graph.workload.arguments
    graph.refuse(
        label_smoothing=given.get("label_smoothing", 0.0),
        probabilities=given["target"].dtype.kind == "f",
        one_row=given["input"].ndim < 2,
        small_integers=given["target"].dtype.name not in ("int64", "int32"),
    )
    loss = graph.node(
        "SoftmaxCrossEntropyLoss",
        graph.input("input"),
        graph.input("target"),
        graph.weight("weight"),
        reduction=given.get("reduction", "mean"),
        ignore_index=given.get("ignore_index", -100),
    )
    return (loss,)


@graph_of("relu", "silu", "sigmoid", "tanh", "gelu")
def activation(graph: Graph) -> tuple[str, ...]:
    """One node; x * Sigmoid(x) for silu."""
    x = graph.input("x")
    if graph.workload.arguments.get("approximate", "none") == "tanh":
        return (graph.node("Gelu", x, approximate="tanh"),)
    return (graph.activated(x, graph.workload.case.op),)
