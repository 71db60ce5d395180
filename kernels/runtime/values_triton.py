"""The values of a call (indices, lengths) looked at by Triton; what is wrong goes to a report on the host."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from kernels.runtime import triton_gpu, value_reports
from kernels.runtime.value_reports import PROGRAMS, WORDS, Report

BLOCK = 1024


@triton.jit(do_not_specialize=["call"])
def find_wrong_values(
    values, report, total, columns, row_stride, column_stride, each, least, greatest, ignored, call,
    IGNORES: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """report (3, PROGRAMS): the call's number, position and value of the first wrong one of `each` values in turn.

    values: `total` in rows of `columns`. Right are those from least to greatest, and ignored where IGNORES. What an
    earlier call left stays. report lies in the host's memory, and is touched only where something is wrong.
    """
    program = tl.program_id(0)
    begin = program.to(tl.int64) * each
    end = tl.minimum(begin + each, total)
    first = tl.full((BLOCK,), 9223372036854775807, tl.int64)
    found = tl.zeros((BLOCK,), tl.int64)
    for start in range(begin, end, BLOCK):
        position = start + tl.arange(0, BLOCK)
        here = position < end
        place = position // columns * row_stride + position % columns * column_stride
        value = tl.load(values + place, mask=here, other=0).to(tl.int64)
        wrong = here & ((value < least) | (value > greatest))
        if IGNORES:
            wrong = wrong & (value != ignored)
        new = wrong & (position < first)
        found = tl.where(new, value, found)
        first = tl.where(new, position, first)
    earliest = tl.min(first, 0)
    if earliest < end:
        value = tl.sum(tl.where(first == earliest, found, 0), 0)
        before = tl.load(report + program)
        tl.debug_barrier()  # Every thread loads it, one stores.
        if before == 0:
            tl.store(report + program + PROGRAMS, earliest)
            tl.store(report + program + 2 * PROGRAMS, value)
            tl.store(report + program, call.to(tl.int64))


@functools.cache
def _report(device: torch.device) -> tuple[torch.Tensor, Report]:
    """(its words, the report) of a device."""
    on_gpu = device.type == "cuda"
    # Pinned, a tensor's memory has the same address on the GPU.
    words = torch.zeros(WORDS, dtype=torch.int64, pin_memory=on_gpu)
    return words, Report(words.numpy(), functools.partial(torch.cuda.synchronize, device) if on_gpu else _done)


def _done() -> None:
    """Nothing is to be waited for on the CPU."""


class Check(value_reports.Check):
    """Looks at the values of a call's tensors: one launch of a small kernel; nobody waits."""

    def __call__(self, inputs: Sequence[Any]) -> None:
        """Launch the kernel.

        Raises:
            IndexError, ValueError: what was found of an earlier call.
        """
        values = inputs[self.input]
        place = self.checked.places
        if place.programs == 0:
            return
        words, report = _report(values.device)
        number = report.begin(self.checked)
        seen = values.contiguous() if self.copies else values
        triton_gpu.launch(
            find_wrong_values, (place.programs,), seen, words, place.rows * place.columns, place.columns,
            place.row_stride, place.column_stride, place.each, *self.limits, number,
            IGNORES=self.ignores, PROGRAMS=PROGRAMS, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
