"""The weights of a layer or a model, as in Keras: which of them training leaves as they are, and all as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


class Freezable(torch.nn.Module):
    """The base of what can be frozen: layers and models."""

    _trainable = True

    @property
    def trainable(self) -> bool:
        """Whether training changes the weights (default True).

        Setting it sets it for all layers inside too, and holds for weights that are made later. Training sees it from
        the next batch on; compile need not be called again. A frozen BatchNormalization computes as in evaluation, and
        its statistics stay. `model.save` keeps it.

        Raises TypeError for a value that is no bool.
        """
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"trainable: True or False is expected, got {value!r}")
        for module in self.modules():
            if isinstance(module, Freezable):
                module._trainable = value
        for parameter in self.parameters():
            parameter.requires_grad_(value)

    def hold_frozen(self) -> None:
        """Freezes what a frozen layer has made since it was frozen."""
        if not self._trainable:
            self.trainable = False

    def note_frozen(self) -> None:
        """Has `trainable` say of every layer inside what its weights do: False where none of them has gradients."""
        for module in self.modules():
            if isinstance(module, Freezable):
                weights = list(module.parameters())
                module._trainable = not weights or any(weight.requires_grad for weight in weights)

    @property
    def weights(self) -> list[torch.Tensor]:
        """All parameters, and the buffers that are saved with them (moving statistics)."""
        return [*self.trainable_weights, *self.non_trainable_weights]

    @property
    def trainable_weights(self) -> list[torch.Tensor]:
        """The parameters that training changes."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @property
    def non_trainable_weights(self) -> list[torch.Tensor]:
        """The frozen parameters, and the buffers that are saved."""
        frozen = [parameter for parameter in self.parameters() if not parameter.requires_grad]
        kept = self.state_dict(keep_vars=True).values()
        return [*frozen, *(tensor for tensor in kept if not isinstance(tensor, torch.nn.Parameter))]

    @property
    def variables(self) -> list[torch.Tensor]:
        """`weights`, by Keras' other name."""
        return self.weights

    @property
    def trainable_variables(self) -> list[torch.Tensor]:
        """`trainable_weights`, by Keras' other name."""
        return self.trainable_weights

    @property
    def non_trainable_variables(self) -> list[torch.Tensor]:
        """`non_trainable_weights`, by Keras' other name."""
        return self.non_trainable_weights

    def count_params(self) -> int:
        """How many numbers the weights are. 0 before they are made."""
        return sum(weight.numel() for weight in self.weights)

    def get_weights(self) -> list[np.ndarray[Any, Any]]:
        """Copies of all weights as Keras' get_weights() gives them: layer by layer, features last. Those of a module
        that Keras does not have are as torch has them. Empty before they are made."""
        from nnlib.convert.keras_weights import all_weights  # which needs all layers

        return all_weights(self)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Copies arrays that lie as those of get_weights() into the weights.

        Raises ValueError where their number or a shape does not fit.
        """
        from nnlib.convert.keras_weights import set_all_weights

        set_all_weights(self, weights)
