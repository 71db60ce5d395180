"""Dimensions of size 1 that an op has and its caller has not: one image for a batch, queries without batch and heads.

Reshaping every array there and back takes longer than a small call's kernel, which is told addresses alone and does not
see the difference. So `kernels.call` is told which dimensions they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from kernels import arrays

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kernels.arrays import ArraySpec


class Ones(NamedTuple):
    """Where the dimensions are: in the op's first `inputs` inputs and in all its results, at these axes."""

    axes: tuple[int, ...]
    inputs: int

    def put_in(self, array: Any) -> Any:
        """An array of the caller's as the op takes it: of any kind, without a copy. What is none is left as it is."""
        if arrays.kind(array) is None:
            return array
        shape = list(array.shape)
        for axis in self.axes:
            shape.insert(axis, 1)
        # One view for autograd to go back through, however many dimensions there are.
        return array.reshape(shape)

    def put_into_inputs(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """The op's inputs."""
        return (*map(self.put_in, inputs[: self.inputs]), *inputs[self.inputs :])

    def taken_out(self, array: Any) -> Any:
        """The way back, of an array of the op's (or None)."""
        # An index would have zeros made in backward, and a copy into them.
        return None if array is None else array.reshape(self._without(array.shape))

    def returned(self, found: Any) -> Any:
        """The same of what the op returns, one array or a tuple of them."""
        return tuple(map(self.taken_out, found)) if isinstance(found, tuple) else self.taken_out(found)

    def taken_out_of(self, form: ArraySpec | None) -> ArraySpec | None:
        """The same of a spec."""
        if form is None:
            return None
        strides = None if form.strides is None else self._without(form.strides)
        return replace(form, shape=self._without(form.shape), strides=strides)

    def _without(self, sizes: Sequence[int]) -> tuple[int, ...]:
        return tuple([size for axis, size in enumerate(sizes) if axis not in self.axes])
