"""What all poolings share: one image in, one output of its layout, and for a maximum where it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kernels import checks
from kernels.arrays import ArraySpec
from kernels.call import call
from kernels.op import Op, Problem


def check_image(
    op: str, x: ArraySpec, dtypes: tuple[str, ...] = checks.FLOATING, may_be_empty: tuple[int, ...] = (0,)
) -> None:
    """x is a batch of images of one of `dtypes`, of size 0 only in the dimensions `may_be_empty`."""
    checks.rank(op, "x", x, (4,), "(N, C, H, W) or (C, H, W)")
    checks.dtype(op, "x", x, dtypes)
    checks.no_zero_size(op, "x", x, [d for d in range(4) if d not in may_be_empty])


@dataclass(frozen=True)
class Pooling(Problem):
    """A pooling of images x (N, C, H, W)."""

    x: ArraySpec

    @property
    def output_plane(self) -> tuple[int, ...]:
        """(H_out, W_out)."""
        raise NotImplementedError

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """(N, C, H_out, W_out)."""
        height, width = self.output_plane
        return self.x.shape[0], self.x.shape[1], height, width

    def results(self) -> tuple[ArraySpec | None, ...]:
        """The output, channels-last where x is."""
        return (self.x.like(self.output_shape, channels_last=self.x.channels_last),)

    def saved(self) -> tuple[str, ...]:
        """Nothing: the gradient of a mean does not depend on x."""
        return ()


@dataclass(frozen=True)
class Extremum(Pooling):
    """A pooling that picks one input of each window; backward reads where it was, flat in the H * W plane."""

    @property
    def keeps_indices(self) -> bool:
        """The caller or backward wants the indices."""
        raise NotImplementedError

    def results(self) -> tuple[ArraySpec | None, ...]:
        """The output and the indices (int64) where they are wanted, channels-last where x is."""
        last = self.x.channels_last
        indices = self.x.like(self.output_shape, dtype="int64", channels_last=last) if self.keeps_indices else None
        return self.x.like(self.output_shape, channels_last=last), indices

    def saved(self) -> tuple[str, ...]:
        """The indices alone."""
        return ("indices",)


def call_pooling(op: Op, x: Any, attributes: tuple[Any, ...], device: Any, backend: str | None) -> Any:
    """Run a pooling on a batch, or on one image as a batch of one."""
    if getattr(x, "ndim", 4) != 3:
        return call(op, (x,), attributes, device, backend)
    found = call(op, (x[None],), attributes, device, backend)
    return tuple(part[0] for part in found) if isinstance(found, tuple) else found[0]
