"""A pass between two images that is prepared once and then runs from addresses.

What does not depend on the arrays (tables, sizes, how the work is split) takes longer to derive than a small kernel
runs, and a NumPy view of a tensor costs as much as twenty addresses. So each kernel's module has a function `launch`,
which makes of a `Job` what a problem keeps and calls again and again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kernels.conv2d.gather import LINE
from kernels.conv2d.geometry import Gather
from kernels.runtime.numba_cpu import threads_for

#: ``run(x, weight, bias, y, before)`` with the addresses of arrays that the caller keeps alive, dense in the layout of
#: the job; `before`: for the sums before the activation, the address of `y` where they are not kept. False where the
#: kernel could not do it: then `y` and `before` are not what they should be.
Run = Callable[[int, int, int, int, int], bool]


#: Elements between the memory of one thread and that of another. A processor reads on past the end of what it reads in
#: order, and what another one writes there is taken from it each time.
APART = 4096


def in_lines(sizes: Iterable[int]) -> list[int]:
    """Where pieces of scratch of these sizes begin, each at a cache line of float32, and where the last one ends."""
    return list(itertools.accumulate((-(-size // LINE) * LINE for size in sizes), initial=0))


@dataclass(frozen=True)
class Job:
    """All of a pass but its arrays.

    Attributes:
        plan: the geometry.
        images: N.
        groups, group_outputs: output channels are groups * group_outputs.
        kernel: (kh, kw) of the weight.
        weight_steps: distances in the contiguous weight between output channels, summed channels and groups.
        dtype: of all arrays.
        activation: applied to the sums.
        keeps_sums: whether the sums before it are wanted too.
        channels_last: the layout of the images.
        fan: source planes that an output plane sums, of a depthwise pass.
        share: output planes, neighbours, that read one source plane, where each reads one.
    """

    plan: Gather
    images: int
    groups: int
    group_outputs: int
    kernel: tuple[int, int]
    weight_steps: tuple[int, int, int]
    dtype: np.dtype[Any]
    activation: str | None
    keeps_sums: bool
    channels_last: bool
    fan: int = 1
    share: int = 1

    @property
    def group_inputs(self) -> int:
        """Source channels of a group."""
        return self.plan.channels // self.groups

    @property
    def outputs(self) -> int:
        """Channels of the output."""
        return self.groups * self.group_outputs


@dataclass(frozen=True)
class Launch:
    """A job, prepared: called with the five addresses of `Run`.

    Attributes:
        make: what runs it in so many threads.
        work, grain: units of work, and how many are worth a thread of their own.
        known: what was made, by threads.
    """

    make: Callable[[int], Run]
    work: int
    grain: int
    known: dict[int, Run] = field(default_factory=dict)

    def __call__(self, x: int, weight: int, bias: int, y: int, before: int) -> bool:
        threads = threads_for(self.work, self.grain)
        run = self.known.get(threads)
        if run is None:
            run = self.known[threads] = self.make(threads)
        return run(x, weight, bias, y, before)
