"""The torch modules that stand for what torch has no module for."""

from __future__ import annotations

import torch
from torch import nn


class Permute(nn.Module):
    """x.permute(*order): brings the channels of images to where the next module wants them."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(*self.order)


class Output(nn.Module):
    """The output of a recurrent module without its states: of every step, or of the last one of each direction."""

    def __init__(self, module: nn.Module, every_step: bool) -> None:
        super().__init__()
        self.module = module
        self.every_step = every_step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, state = self.module(x)
        if self.every_step:
            return output
        ends = state[0] if isinstance(state, tuple) else state
        return torch.cat(list(ends), -1)


class StepMean(nn.Module):
    """The mean over the steps of (N, T, C)."""

    def __init__(self, keepdim: bool) -> None:
        super().__init__()
        self.keepdim = keepdim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1, keepdim=self.keepdim)
