"""ONNX's own test cases of its operators, by our functions: every output as ONNX's reference has it."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import pytest

from tests.support import onnx_nodes

pytest.importorskip("onnx", reason="onnx is not installed")

#: Cases that must agree, by operator, at least; the others are outside of our ops, see the adapters.
AGREE = {
    "Conv": 6, "ConvTranspose": 6, "MaxPool": 12, "AveragePool": 8, "LpPool": 5, "GlobalAveragePool": 2,
    "GlobalMaxPool": 2, "RNN": 6, "LSTM": 5, "GRU": 6, "Attention": 72, "LayerNormalization": 19,
    "RMSNormalization": 19, "SoftmaxCrossEntropyLoss": 34, "Softmax": 7, "LogSoftmax": 7, "Gemm": 7, "Relu": 1,
    "Sigmoid": 2, "Tanh": 2, "Swish": 1, "Gelu": 4, "MatMul": 3, "Gather": 1, "Dropout": 8, "FlexAttention": 6,
}  # fmt: skip


def test_every_adapter_is_used():
    assert set(AGREE) == set(onnx_nodes.ADAPTERS)


@pytest.mark.parametrize("operator", AGREE)
def test_cases(operator: str):
    agree, outside, complaints = 0, Counter[str](), []
    for case in onnx_nodes.cases_of(operator):
        for inputs, outputs in case.data_sets:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    found = onnx_nodes.run(case, list(inputs))
                except onnx_nodes.NotOurs as reason:
                    outside[str(reason)] += 1
                    continue
            given = iter(outputs)
            wanted = [next(given) if name else None for name in case.model.graph.node[0].output]
            for number, (mine, right) in enumerate(zip(found, wanted)):
                if right is None:
                    continue
                tolerance = {"rtol": case.rtol, "atol": max(case.atol, 1e-6)}
                close = mine.shape == right.shape and np.allclose(mine, right, **tolerance, equal_nan=True)
                if not close:
                    complaints.append(f"{case.name}, output {number}: {mine.shape} beside {right.shape}")
            agree += 1
    print(f"{operator}: {agree} cases agree; outside of our ops: {dict(outside)}")
    assert not complaints, "\n".join(complaints)
    assert agree >= AGREE[operator], outside
