"""What happens to gradients between backward and the optimizer: accumulation and clipping, as in Keras."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from nnlib.training.reductions import l2_norm


@dataclass(frozen=True)
class GradientRules:
    """clipnorm: each gradient is scaled down to at most this Euclidean norm. clipvalue: each number is clamped to
    [-clipvalue, clipvalue]. global_clipnorm: all gradients are scaled together, to at most this norm of them all.
    gradient_accumulation_steps: the optimizer steps once in so many batches, with the mean of their gradients.

    None (default) leaves it out. Raises ValueError if more than one clipping is chosen or a value is out of range.
    """

    clipnorm: float | None = None
    clipvalue: float | None = None
    global_clipnorm: float | None = None
    gradient_accumulation_steps: int | None = None

    def __post_init__(self) -> None:
        chosen = [name for name in ("clipnorm", "clipvalue", "global_clipnorm") if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise ValueError(f"clipnorm, clipvalue, global_clipnorm: at most one is expected, got {', '.join(chosen)}")
        for name in chosen:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"{name}: a number above 0 is expected, got {value!r}")
        steps = self.gradient_accumulation_steps
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 2):
            raise ValueError(f"gradient_accumulation_steps: an integer of at least 2 is expected, got {steps!r}")

    def or_else(self, other: GradientRules) -> GradientRules:
        """These rules, with the other's where these have none. ValueError if both say something about one thing."""
        merged = {}
        for entry in fields(self):
            mine, theirs = getattr(self, entry.name), getattr(other, entry.name)
            if mine is not None and theirs is not None:
                raise ValueError(f"{entry.name}: compile and the optimizer both name one, got {mine} and {theirs}")
            merged[entry.name] = theirs if mine is None else mine
        return GradientRules(**merged)

    @property
    def batches_per_step(self) -> int:
        """After how many batches the optimizer steps."""
        return self.gradient_accumulation_steps or 1

    @property
    def clips(self) -> bool:
        """Whether `clip` does anything."""
        return any(limit is not None for limit in (self.clipnorm, self.clipvalue, self.global_clipnorm))

    @torch.no_grad()
    def clip(self, gradients: list[torch.Tensor]) -> None:
        """Clips in place."""
        if self.clipvalue is not None:
            torch._foreach_clamp_min_(gradients, -self.clipvalue)
            torch._foreach_clamp_max_(gradients, self.clipvalue)
        elif self.clipnorm is not None:
            for gradient in gradients:
                gradient.mul_(_factor(l2_norm(gradient), self.clipnorm))
        elif self.global_clipnorm is not None and gradients:
            norms = torch.stack([l2_norm(gradient).to(gradients[0].device) for gradient in gradients])
            factor = _factor(l2_norm(norms), self.global_clipnorm)
            for gradient in gradients:
                gradient.mul_(factor.to(gradient.device))


def _factor(norm: torch.Tensor, limit: float) -> torch.Tensor:
    """What brings a norm down to the limit; 1 below it, with no division by 0."""
    return limit / norm.clamp_min(limit)
