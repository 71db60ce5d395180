"""OpenVINO: the same ONNX graph as ONNX Runtime's. Its default precision is bfloat16 where the machine has it, so
float32 is asked for."""

from __future__ import annotations

import importlib
from typing import Any

from bench.providers.provider import Call, Unsupported, missing_package
from bench.workload import Workload, answer


class OpenVino:
    """OpenVINO's CPU plugin, one request at a time, tuned for latency."""

    name = "openvino"
    title = "OpenVINO"

    def missing(self) -> str | None:
        """It needs the package, and onnx to write graphs."""
        return missing_package("onnx", "openvino")

    def prepare(self, workload: Workload, threads: int) -> Call:
        """A compiled model of its own for each case."""
        from bench.providers import graphs

        if workload.dtype != "float32":
            raise Unsupported(f"it computes in float32, not in {workload.dtype}")
        graph = graphs.build(workload, engine="openvino")
        openvino: Any = importlib.import_module("openvino")
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            core = openvino.Core()
            compiled = core.compile_model(core.read_model(graph.model), "CPU", settings)
            request = compiled.create_infer_request()
            for name, array in graph.inputs.items():
                request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
            request.infer()
        except Exception as error:  # RuntimeError mostly; the last line of a long report says what is not supported.
            raise Unsupported(_last_line(error)) from None
        outputs = compiled.outputs
        return Call(
            request.infer,
            lambda _: answer(tuple(request.get_tensor(output).data.copy() for output in outputs), {}),
            pool="openvino",
        )


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:160] if lines else type(error).__name__
