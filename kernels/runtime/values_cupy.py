"""The values of a call (indices, lengths) looked at by CUDA C++; what is wrong goes to a report on the host."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from kernels.runtime import cupy_arrays, cupy_gpu, value_reports
from kernels.runtime.value_reports import PROGRAMS, WORDS, Report

#: Threads of a block.
THREADS = 256


@functools.cache
def _report(device: int) -> tuple[Any, Report]:
    """(its words as the device has them, the report) of a device, which is current."""
    import cupy

    host, words = cupy_arrays.pinned(WORDS, "int64", device)
    host[:] = 0
    return words, Report(host, cupy.cuda.Device(device).synchronize)


class Check(value_reports.Check):
    """Looks at the values of a call's arrays: one launch of a small kernel; nobody waits."""

    def __call__(self, inputs: Sequence[Any]) -> None:
        """Launch the kernel on the current device and stream, unless a graph is being captured there.

        Raises:
            IndexError, ValueError: what was found of an earlier call.
        """
        import cupy

        values, place = inputs[self.input], self.checked.places
        if place.programs == 0 or cupy.cuda.get_current_stream().is_capturing():
            return
        words, report = _report(values.device.id)
        number = report.begin(self.checked)
        least, greatest, ignored = self.limits
        cupy_gpu.launch(
            "runtime/values.cu", "find_wrong_values", (place.programs,), (THREADS,),
            cupy_gpu.contiguous(values) if self.copies else values, words, PROGRAMS, place.rows * place.columns,
            place.columns, place.row_stride, place.column_stride, place.each, least, greatest, self.ignores, ignored,
            number, constants={"VALUE": cupy_gpu.storage(values.dtype.name), "THREADS": THREADS},
        )  # fmt: skip
