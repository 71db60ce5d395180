"""The learning rate of a model's optimizer, whichever kind it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from nnlib.models.model import Model


def _groups(model: Model) -> list[dict[str, Any]]:
    if model.optimizer is None:
        raise RuntimeError("learning rate: the model has no optimizer before its first training")
    return model.optimizer.param_groups


def get_rate(model: Model) -> float:
    """The first group's learning rate."""
    return float(_groups(model)[0]["lr"])


def set_rate(model: Model, rate: float) -> None:
    """Sets the learning rate of all groups. Raises TypeError where a schedule does."""
    for group in _settable_groups(model):
        _set(group, rate)


def scale_rate(model: Model, factor: float, least: float) -> None:
    """Multiplies each group's learning rate, down to `least`. Raises TypeError where a schedule sets it."""
    for group in _settable_groups(model):
        _set(group, max(float(group["lr"]) * factor, least))


def _settable_groups(model: Model) -> list[dict[str, Any]]:
    groups = _groups(model)
    schedule = getattr(model.optimizer, "schedule", None)
    if schedule is not None:
        raise TypeError(f"learning rate: a callback cannot set it, the optimizer has the schedule {schedule.name}")
    return groups


def _set(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], torch.Tensor):  # torch allows it
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
