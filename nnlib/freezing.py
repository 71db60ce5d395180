"""`trainable`: which weights of a layer or a model training leaves as they are, as in Keras."""

from __future__ import annotations

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
