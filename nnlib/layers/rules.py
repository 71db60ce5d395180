"""What holds for a weight while it trains: its regularizer and its constraint, on the weight as Keras lays it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from nnlib import activity, constraints, regularizers

#: A weight -> a view of it in Keras' layout.
View = Callable[[torch.Tensor], torch.Tensor]

_KINDS: dict[str, Callable[[Any, str], Any]] = {
    "regularizer": regularizers.get,
    "constraint": constraints.get,
}


def features_last(weight: torch.Tensor) -> torch.Tensor:
    """(out, in, *window) -> (*window, in, out), which is Keras' layout of nearly all weights; one axis stays."""
    return weight if weight.dim() < 2 else weight.permute(*range(2, weight.dim()), 1, 0)


def unchanged(weight: torch.Tensor) -> torch.Tensor:
    """A weight that has the same layout in Keras."""
    return weight


@dataclass(frozen=True)
class DepthwiseView:
    """(channels * multiplier, 1, height, width) -> (height, width, channels, multiplier)."""

    multiplier: int

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.unflatten(0, (-1, self.multiplier)).squeeze(2).permute(2, 3, 0, 1)


@dataclass(frozen=True)
class WeightRule:
    """What holds for one weight. regularizer, constraint: an object, a function, or None."""

    view: View
    regularizer: Any
    constraint: Any

    def loss(self, weight: torch.Tensor) -> torch.Tensor:
        """What the regularizer gives."""
        any_layout = getattr(self.regularizer, "takes_any_layout", False)
        return self.regularizer(weight if any_layout else self.view(weight))


def look_up_rule(
    owner: str, option: str, value: Any, regularized: tuple[str, ...], constrained: tuple[str, ...]
) -> Any:
    """The regularizer or constraint of an option such as kernel_regularizer.

    owner: the class' name. Raises TypeError for an option that the class does not have, and what `get` raises.
    """
    part, _, kind = option.rpartition("_")
    if part not in {"regularizer": regularized, "constraint": constrained}.get(kind, ()):
        raise TypeError(f"{owner}: got an unexpected argument {option!r}")
    return _KINDS[kind](value, option)


def rule_names(kind: Any) -> list[str]:
    """The options of a class of layers that are regularizers and constraints."""
    return [
        *(f"{part}_regularizer" for part in (*kind.regularized, "activity")),
        *(f"{part}_constraint" for part in kind.constrained),
    ]


def _parts(module: torch.nn.Module, found: dict[torch.nn.Module, None]) -> dict[torch.nn.Module, None]:
    """What module.modules() gives, without the names that it makes on the way: this runs at every step of training."""
    if module not in found:
        found[module] = None
        for part in module._modules.values():
            if part is not None:
                _parts(part, found)
    return found


def _rules(module: torch.nn.Module) -> Iterator[tuple[torch.Tensor, WeightRule]]:
    for layer in _parts(module, {}):
        for name, rule in layer.__dict__.get("weight_rules", {}).items():
            weight = getattr(layer, name)
            if weight is not None and weight.requires_grad:
                yield weight, rule


def losses_of(module: torch.nn.Module) -> list[torch.Tensor]:
    """What the regularizers in a module give: scalar tensors, those of outputs in the last call first."""
    found: list[torch.Tensor] = []
    if activity.Use.ever:
        found += [loss for layer in _parts(module, {}) for loss in activity.losses_of(layer)]
    return found + [rule.loss(weight) for weight, rule in _rules(module) if rule.regularizer is not None]


@torch.no_grad()
def apply_constraints(module: torch.nn.Module) -> None:
    """Brings every weight in a module back to what its constraint allows."""
    for weight, rule in _rules(module):
        if rule.constraint is not None:
            view = rule.view(weight)
            view.copy_(rule.constraint(view))
