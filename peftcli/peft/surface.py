"""What an adapted model tells about itself: its adapters, their state, and how much of it is trained."""

from __future__ import annotations

from typing import Any

from torch import nn

from peftcli.adapters.config import PeftConfig
from peftcli.peft.prompts import Prompts
from peftcli.peft.status import (
    TunerLayerStatus,
    TunerModelStatus,
    count_parameters,
    get_layer_status,
    get_model_status,
)


class Surface(Prompts):
    """A base model in a tuner. What neither this nor the tuner has (`config`, `device`, …) is the base model's."""

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """Each adapter's config."""
        return self.tuner.peft_config

    @property
    def active_adapters(self) -> list[str]:
        """The adapters in use."""
        return self.tuner.active_adapters

    @property
    def active_adapter(self) -> str:
        """The adapter in use (the first, where there are several)."""
        return next(iter(self.active_adapters), "")

    @property
    def active_peft_config(self) -> PeftConfig:
        """The config of the adapter in use."""
        return self.peft_config[self.active_adapter]

    @property
    def peft_type(self) -> Any:
        """The method of the model's adapters."""
        return next(iter(self.peft_config.values())).peft_type

    @property
    def modules_to_save(self) -> set[str] | None:
        """All names in the adapters' `modules_to_save`."""
        names = {
            name
            for config in self.peft_config.values()
            for name in getattr(config, "modules_to_save", None) or ()
        }
        return names or None

    @property
    def has_active_enabled_adapter(self) -> bool:
        """Whether an adapter takes part in `forward`."""
        return bool(self.active_adapters) and not self.tuner.disabled

    @property
    def base_model_torch_dtype(self) -> Any:
        """The dtype that the base model says it has."""
        return getattr(self.base_model, "dtype", None)

    @property
    def generation_config(self) -> Any:
        """The base model's: setting it on this model must reach the model that generates."""
        return self.get_base_model().generation_config

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        base: Any = self.get_base_model()
        base.generation_config = value

    def get_base_model(self) -> nn.Module:
        """The base model, with the adapters on it."""
        return self.tuner.model

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """How many numbers are trained, and how many there are."""
        return count_parameters(self)

    def print_trainable_parameters(self) -> None:
        """Prints how many parameters are trained, in PEFT's words."""
        trainable, everything = self.get_nb_trainable_parameters()
        share = 100 * trainable / everything
        print(f"trainable params: {trainable:,d} || all params: {everything:,d} || trainable%: {share:.4f}")

    def get_layer_status(self) -> list[TunerLayerStatus]:
        """The state of every layer that holds adapters."""
        return get_layer_status(self)

    def get_model_status(self) -> TunerModelStatus:
        """The state of the model's adapters as a whole."""
        return get_model_status(self)

    def __getattr__(self, name: str) -> Any:
        """What this does not have, the base model has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            return getattr(self.tuner, name)
