"""Which convolutions the GPU backends take, and by which kernels: the same for Triton and CUDA C++."""

from __future__ import annotations

from kernels.conv2d.op import Conv2dProblem, ConvTranspose2dProblem

Problem = Conv2dProblem | ConvTranspose2dProblem

#: Most output channels of an input channel that the depthwise kernels are for; with more, products are faster.
MOST_OF_CHANNEL = 4
#: What a grid holds in its second and third dimension.
MOST_IN_GRID = 65535


def depthwise(p: Problem) -> bool:
    """Whether the depthwise kernels take it: each group has one channel of the (transposed) convolution's image."""
    return p.weight.shape[1] == 1 and p.groups > 1 and p.weight.shape[0] // p.groups <= MOST_OF_CHANNEL


def reasons(p: Problem) -> list[str]:
    """Why no launch holds it."""
    if depthwise(p):
        return []
    found = []
    if p.groups > MOST_IN_GRID:
        found.append(f"groups is {p.groups}; a launch holds {MOST_IN_GRID}")
    if p.stride[0] * p.stride[1] > MOST_IN_GRID:
        found.append(f"stride is {p.stride}; a launch holds {MOST_IN_GRID} of its phases")
    return found
