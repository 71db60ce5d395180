"""How a model trains, as plain values and tensors: what compile was told, and the optimizer's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from nnlib.configuration import class_key, describe, make
from nnlib.losses import LOSSES, FunctionLoss
from nnlib.metrics import METRICS, FunctionMetric, LossMetric
from nnlib.optimizers import OPTIMIZERS, Optimizer, make_optimizer
from nnlib.optimizers.schedules import SCHEDULES
from nnlib.precision import get_precision
from nnlib.tensor_file import pack, unpack
from nnlib.training.gradients import GradientRules
from nnlib.training.setup import Setup

if TYPE_CHECKING:
    from nnlib.models.model import Model

# All that a description may name.
_CLASSES: dict[str, type] = {
    class_key(kind): kind
    for kind in (*LOSSES.values(), *METRICS.values(), *OPTIMIZERS.values(), *SCHEDULES, LossMetric)
}
_TORCH_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
}
_PREFIX = "optimizer"


def describe_setup(setup: Setup, model: Model) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(description as plain JSON, tensors). Gradients that accumulate and are not yet stepped with are left out.

    Raises ValueError if a part is a function or a class of the user's own.
    """
    hint = "save(path, include_optimizer=False) keeps layers and weights alone"
    tensors: dict[str, torch.Tensor] = {}
    for part in (setup.loss, *setup.metrics, *setup.weighted_metrics):
        if isinstance(part, (FunctionLoss, FunctionMetric)):
            raise ValueError(f"save: {part.name} is a function, which no file can hold; {hint}")
    optimizer = setup.optimizer
    if optimizer is None and isinstance(setup.optimizer_choice, torch.optim.Optimizer):
        optimizer = setup.optimizer_choice
    rule: Any
    if isinstance(setup.optimizer_choice, Optimizer):
        rule = describe(setup.optimizer_choice, _CLASSES)
    elif optimizer is not None and _TORCH_OPTIMIZERS.get(type(optimizer).__name__) is type(optimizer):
        rule = type(optimizer).__name__
    else:
        raise ValueError(f"save: the optimizer is a function or a class of your own, which no file can hold; {hint}")
    description = {
        "optimizer": rule,
        "loss": describe(setup.loss, _CLASSES),
        "metrics": [describe(metric, _CLASSES) for metric in setup.metrics],
        "weighted_metrics": [describe(metric, _CLASSES) for metric in setup.weighted_metrics],
        "rules": vars(setup.rules),
        "precision": None if setup.precision is None else str(setup.precision).removeprefix("torch."),
        "groups": None,
        "state": None,
    }
    if optimizer is not None:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = [[names.get(id(parameter)) for parameter in group["params"]] for group in optimizer.param_groups]
        if any(None in group for group in groups):
            raise ValueError(f"save: the optimizer holds parameters that are not the model's; {hint}")
        description |= {"groups": groups, "state": pack(optimizer.state_dict(), tensors, _PREFIX)}
    return description, tensors


def take_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Takes the optimizer's tensors out of a file's, and returns them."""
    return {name: tensors.pop(name) for name in list(tensors) if name.startswith(f"{_PREFIX}/")}


def restore_setup(description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], model: Model) -> Setup:
    """The reverse of describe_setup, for a model with the same parameters.

    Raises ValueError, KeyError or TypeError for a description that is none, or a state that does not fit.
    """
    rule = description["optimizer"]
    choice: Any
    if isinstance(rule, str):
        if rule not in _TORCH_OPTIMIZERS:
            raise ValueError(f"optimizer: one of torch.optim is expected, got {rule!r}")
        choice = _TORCH_OPTIMIZERS[rule]
    else:
        choice = make(rule, _CLASSES)
    setup = Setup(
        choice,
        make(description["loss"], _CLASSES),
        [make(entry, _CLASSES) for entry in description["metrics"]],
        [make(entry, _CLASSES) for entry in description["weighted_metrics"]],
        GradientRules(**description["rules"]),
        get_precision(description["precision"]),
    )
    if description["state"] is not None:
        parameters = dict(model.named_parameters())
        groups = [{"params": [parameters[name] for name in group]} for group in description["groups"]]
        setup.optimizer = make_optimizer(lambda _: choice(groups), list(parameters.values()))
        state = unpack(description["state"], tensors)
        _check_state(setup.optimizer, state)
        setup.optimizer.load_state_dict(state)
    return setup


def _check_state(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Raises ValueError where the state is not of this optimizer: torch looks at the groups' sizes alone."""
    for group, given in zip(optimizer.param_groups, state["param_groups"], strict=True):
        if set(given) != set(group):
            raise ValueError(f"optimizer: options {sorted(set(group) - {'params'})} are expected, got {sorted(given)}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, slots in state["state"].items():
        if not isinstance(index, int) or not 0 <= index < len(parameters):
            raise ValueError(f"optimizer: parameters 0 to {len(parameters) - 1} are expected, got {index!r}")
        for name, value in slots.items():
            wanted = tuple(parameters[index].shape)
            if isinstance(value, torch.Tensor) and value.dim() and tuple(value.shape) != wanted:
                raise ValueError(f"optimizer: {name} must have shape {wanted}, got {tuple(value.shape)}")
