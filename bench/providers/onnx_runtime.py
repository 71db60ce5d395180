"""ONNX Runtime: the case as an ONNX graph, weights as constants, so that it may pack them beforehand."""

from __future__ import annotations

import importlib
from typing import Any

from bench.providers.provider import Call, Unsupported, missing_package
from bench.workload import Answer, Workload, answer


class OnnxRuntime:
    """ONNX Runtime's CPU provider with all its optimisations. Inputs and outputs are bound once: its best case."""

    name = "onnxruntime"
    title = "ONNX Runtime"

    def missing(self) -> str | None:
        """It needs the package, and onnx to write graphs."""
        return missing_package("onnx", "onnxruntime")

    def prepare(self, workload: Workload, threads: int) -> Call:
        """A session of its own for each case."""
        from bench.providers import graphs

        graph = graphs.build(workload, engine="onnxruntime")
        ort: Any = importlib.import_module("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            session = ort.InferenceSession(graph.model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # Its own exception types share no base; each says which operator is missing.
            raise Unsupported(_first_line(error)) from None
        binding = session.io_binding()
        values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in graph.inputs.items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in graph.outputs:
            binding.bind_output(name, "cpu")
        try:
            session.run_with_iobinding(binding)
        except Exception as error:
            raise Unsupported(_first_line(error)) from None
        # What the first run allocated is written into from now on.
        for name, value in zip(graph.outputs, binding.get_outputs()):
            binding.bind_ortvalue_output(name, value)

        def run(_keep: Any = values) -> None:  # The binding does not keep the inputs' memory alive.
            session.run_with_iobinding(binding)

        def to_answer(_: Any) -> Answer:
            return answer(tuple(value.numpy() for value in binding.get_outputs()), {})

        return Call(run, to_answer, pool="onnxruntime")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160]
