"""ONNX graphs of linear layers, softmax, normalisations, embedding, losses and activations."""

from __future__ import annotations

from typing import Any

import numpy as np

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


@graph_of("layer_norm")
def layer_norm(graph: Graph) -> tuple[str, ...]:
    """LayerNormalization, whose weight must be there."""
    given = graph.workload.arguments
    problem: Any = graph.workload.problem
    weight = graph.weight("weight") or graph.constant(np.ones(problem.normalized_shape, graph.workload.dtype))
    x, bias = graph.input("x"), graph.weight("bias")
    first = given["x"].ndim - len(problem.normalized_shape)
    return (graph.node("LayerNormalization", x, weight, bias, axis=first, epsilon=problem.eps),)


@graph_of("rms_norm")
def rms_norm(graph: Graph) -> tuple[str, ...]:
    """The mean square, its root and a division: both engines know RMSNormalization only from a later opset."""
    problem: Any = graph.workload.problem
    x = graph.input("x")
    axes = graph.constant(np.arange(-len(problem.normalized_shape), 0))
    square = graph.node("ReduceMean", graph.node("Mul", x, x), axes, keepdims=1)
    eps = graph.constant(np.asarray(problem.eps, graph.workload.dtype))
    normal = graph.node("Div", x, graph.node("Sqrt", graph.node("Add", square, eps)))
    weight = graph.weight("weight")
    return (graph.node("Mul", normal, weight) if weight else normal,)


@graph_of("embedding")
def embedding(graph: Graph) -> tuple[str, ...]:
    """Gather."""
    graph.refuse(a_largest_norm=graph.workload.arguments.get("max_norm") is not None)
    return (graph.node("Gather", graph.weight("weight"), graph.input("input"), axis=0),)


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
