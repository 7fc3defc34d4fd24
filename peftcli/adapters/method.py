"""What a method offers to the engine: which layers it takes, and how its adapters are put on them."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.base import AdapterLayer, SavedTensor, Site
from peftcli.adapters.updates import Update
from peftcli.adapters.weights import is_quantized
from peftcli.errors import AdapterError


class AddOptions(NamedTuple):
    """How a new adapter's weights come to be."""

    # Half-precision bases get float32 adapters, which training needs; otherwise the base's dtype.
    autocast_adapter_dtype: bool = True
    # False where a file's weights follow: then only what an initialisation does to the base itself is done.
    initialise: bool = True
    # True: the weights stay on the meta device, without memory, until a file's are put in their place.
    low_cpu_mem_usage: bool = False


class Sample(NamedTuple):
    """What a method may look at before the training: the rows that it will see first.

    Attributes:
        epochs: the training's own, each its micro-batches on the model's device.
        loss: the sum of a model's losses over such a batch, and how many they are.
    """

    epochs: Iterator[Iterator[Mapping[str, Any]]]
    loss: Callable[[nn.Module, Mapping[str, Any]], tuple[torch.Tensor, torch.Tensor]]


class Call(NamedTuple):
    """A call of the model, before it is made.

    Attributes:
        args: what the model is given.
        kwargs: by name.
        offsets: what the caller says instead of what the tokens would (PEFT's `alora_offsets`).
        repeats: how often `generate` may repeat each row.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    offsets: Sequence[int | None] | None
    repeats: int = 1


class Method(ABC):
    """How one kind of adapter is put on layers. Stateless but for what its adapters share, which stands on the tuner.

    The tuner is the engine's AdaptedModel. What all layers of an adapter share is held there, in containers by
    adapter name under the names in `shared`, which are PEFT's. As in PEFT, layers hold the containers, too: by PEFT's
    parameter names, what is shared belongs to the first layer.
    """

    # What the method's parameter names begin with, as PEFT has it.
    prefix: ClassVar[str]
    # The method's layers: another method's adapter on the same module is wrapped around them, not added to them.
    layer: ClassVar[type[AdapterLayer]]
    # The tuner's containers of what all layers of an adapter share: BufferDicts, or ParameterDicts of what is trained.
    shared: ClassVar[Mapping[str, type[nn.Module]]] = {}
    # What only this method's models can do, by PEFT's names; each is called with the tuner.
    operations: ClassVar[Mapping[str, Callable[..., Any]]] = {}

    @abstractmethod
    def problem(self, site: Site, config: Any, model: nn.Module) -> str:
        """Why this module of the model cannot be adapted (with what can), or nothing."""

    def aim(self, config: Any, model: nn.Module) -> None:  # noqa: B027  (most methods leave it to `target_modules`)
        """Sets `target_modules`, where the method has a rule of its own for which layers are meant."""

    def prepare(self, model: nn.Module, config: Any, sample: Sample) -> str:  # noqa: ARG002
        """Finds from rows how an adapter starts, before it is made: for configs that say `starts_from_data`.

        Args:
            model: the base, in which it may leave what it finds.
            config: the adapter's, which it may change.
            sample: the rows.

        Returns:
            What to tell the user, in a line.
        """
        return ""

    def recall(  # noqa: B027  (most methods start from their config alone)
        self, model: nn.Module, config: Any, saved: Any, state: Mapping[str, torch.Tensor]
    ) -> None:
        """Lets an adapter start as that of a checkpoint did, before it is made.

        Args:
            model: the base, in which it may leave what it finds.
            config: the adapter's, which it may change.
            saved: the config in the checkpoint.
            state: the checkpoint's tensors, with the keys of their file.
        """

    def companions(self, sites: Sequence[Site], config: Any, model: nn.Module) -> list[Site]:  # noqa: ARG002
        """Further modules to adapt, which have something in common with those that are named; most methods: none."""
        return []

    @abstractmethod
    def resolve(self, sites: Sequence[Site], config: Any, others: Sequence[Any], strict: bool) -> None:
        """Checks a config against the sites it names and the model's other adapters; completes it.

        Raises:
            AdapterError: for a setting that cannot be, or (only a warning unless `strict`) that names nothing.
        """

    @abstractmethod
    def wrap(self, site: Site, config: Any, tuner: Any) -> AdapterLayer:
        """A layer around the site's module, without adapters yet."""

    @abstractmethod
    def add(
        self, layer: AdapterLayer, site: Site, adapter_name: str, config: Any, options: AddOptions
    ) -> None:
        """Makes a new adapter on a layer."""

    def share(  # noqa: B027  (most methods share nothing)
        self, tuner: Any, sites: Sequence[Site], adapter_name: str, config: Any, options: AddOptions
    ) -> None:
        """Puts what the layers of a new adapter share into the tuner's containers, before there are layers."""

    def shared_tensors(self, tuner: Any, adapter_name: str, config: Any) -> Iterator[SavedTensor]:  # noqa: ARG002
        """What an adapter's file holds of what its layers share; keys are within the tuner (`vera_A`)."""
        for name in self.shared:
            container = getattr(tuner, name)
            if adapter_name in container:
                yield SavedTensor(name, f"{name}.{adapter_name}", container[adapter_name])

    def during(
        self,
        tuner: Any,  # noqa: ARG002  (for methods that do)
        names: Sequence[str],  # noqa: ARG002
        call: Call,  # noqa: ARG002
    ) -> AbstractContextManager[None]:
        """Tells these adapters, whose configs say `reads_inputs`, about a call of the model for as long as it lasts."""
        return nullcontext()

    def about(self, config: Any, rows: Iterable[Sequence[int]]) -> str:  # noqa: ARG002
        """What to tell the user of the training rows, each its tokens: for configs that say `reads_inputs`.

        Raises:
            DataError: where an adapter would learn nothing from them.
        """
        return ""

    def after_forward(self, tuner: Any, outputs: Any) -> Any:  # noqa: ARG002
        """The model's outputs, with what the method adds to them (AdaLoRA's penalty, to the loss)."""
        return outputs

    def since(
        self,
        state: dict[str, torch.Tensor],  # noqa: ARG002  (for methods that can)
        initial: Mapping[str, torch.Tensor],  # noqa: ARG002
        config: Any,
    ) -> tuple[dict[str, torch.Tensor], Any]:
        """An adapter that does to the untouched base what one that started by changing it does to the changed one.

        Args:
            state: its tensors, with the keys of its file.
            initial: those that it had before training.
            config: its config.

        Returns:
            The tensors and the config of the new adapter.

        Raises:
            AdapterError: where the method has no such adapters.
        """
        raise AdapterError(f"{config.peft_type} leaves its base as it is; there is nothing to convert")

    def parted(
        self,
        state: Mapping[str, torch.Tensor],  # noqa: ARG002  (for methods that can)
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Takes apart what `since` made: an adapter's tensors after training, and before.

        Raises:
            AdapterError: where the method makes no such adapters.
        """
        raise AdapterError("the adapter is none that was made of two")

    def penalty(self, tuner: Any) -> torch.Tensor | None:  # noqa: ARG002
        """What training adds to the mean loss: a number made of the trained weights; most methods add nothing."""
        return None

    def swap(
        self,
        tuner: Any,  # noqa: ARG002  (for methods that can)
        adapter_name: str,  # noqa: ARG002
        state: Mapping[str, torch.Tensor],  # noqa: ARG002
        config: Any,
    ) -> None:
        """Puts another adapter's tensors (keys within the base model) in the place of one's, with no new modules.

        Raises:
            AdapterError: where it is not an adapter for the same layers, or the method cannot.
        """
        raise AdapterError(
            f"adapters of {config.peft_type} cannot be swapped while they are in use; load another"
        )

    def after_step(self, tuner: Any, step: int, total_steps: int | None = None) -> None:  # noqa: B027
        """What follows an optimizer step, while its gradients are still there."""

    def packed(
        self,
        state: dict[str, torch.Tensor],
        config: Any,  # noqa: ARG002  (for methods that leave something out)
        prefix: str,  # noqa: ARG002
    ) -> dict[str, torch.Tensor]:
        """An adapter's tensors as its file has them; the keys begin with `prefix`."""
        return state

    def unpacked(
        self,
        state: dict[str, torch.Tensor],
        config: Any,  # noqa: ARG002  (for methods whose files hold something else)
        prefix: str,  # noqa: ARG002
    ) -> dict[str, torch.Tensor]:
        """A file's tensors as the model has them."""
        return state

    def update(
        self,
        tensors: Mapping[str, torch.Tensor],  # noqa: ARG002  (for methods that can)
        config: Any,  # noqa: ARG002
        name: str,  # noqa: ARG002
    ) -> Update | None:
        """What an adapter adds to the weight of the layer `name`; None where its own tensors alone do not say it.

        Args:
            tensors: the layer's, in float64, with the keys that its file has for them within the layer.
            config: the adapter's.
            name: the layer's, in the base model.
        """
        return None

    def fit(self, tuner: Any, adapter_name: str, config: Any) -> None:  # noqa: B027
        """Makes an adapter ready for the tensors of a file with this config, where training shapes adapters."""

    def training_state(self, tuner: Any, adapter_name: str) -> dict[str, Any]:  # noqa: ARG002
        """What a resumed training must have beside the adapter's file: nested dictionaries and lists of tensors."""
        return {}

    def load_training_state(  # noqa: B027
        self, tuner: Any, adapter_name: str, state: Mapping[str, Any]
    ) -> None:
        """Takes that back."""


class LayerMethod(Method):
    """A method whose layers are chosen by the type of what they wrap; most methods are such."""

    # The type of module to the layer around it; a subclass of such a type counts as the type.
    kinds: ClassVar[Mapping[type[nn.Module], type[AdapterLayer]]]
    # Whether adapters work on a base that is quantized (they read its weight through `base_weight`).
    takes_quantized: ClassVar[bool] = True

    def problem(self, site: Site, config: Any, model: nn.Module) -> str:  # noqa: ARG002  (some methods ask the model)
        """Why this module cannot be adapted, or nothing."""
        base = bare(site.module)
        method = str(config.peft_type)
        if self.kind(base) is None:
            takes = ", ".join(dict.fromkeys(kind.__name__ for kind in self.kinds))
            return f"{site.name} is a {type(base).__name__}; {method} takes {takes}"
        if reads_past(site):
            return f"{site.name}: Mamba's kernels read this layer's weight past the adapter; leave it out"
        if is_quantized(base) and not self.takes_quantized:
            return f"{site.name} is quantized, which {method} does not take; load the base unquantized"
        return ""

    def resolve(self, sites: Sequence[Site], config: Any, others: Sequence[Any], strict: bool) -> None:
        """Nothing is to be completed."""

    def wrap(self, site: Site, config: Any, tuner: Any) -> AdapterLayer:  # noqa: ARG002  (some methods need them)
        """A layer of the kind that the module asks for, with the containers of what layers share."""
        kind = self.kind(bare(site.module))
        assert kind is not None  # `problem` was asked first
        return kind(site.module, *(getattr(tuner, name) for name in self.shared))

    def add(
        self,
        layer: AdapterLayer,
        site: Site,  # noqa: ARG002  (some methods ask where the layer is)
        adapter_name: str,
        config: Any,
        options: AddOptions,
    ) -> None:
        """Makes a new adapter, of which the config says all."""
        own: Any = layer  # one of `kinds`, which have an `add`
        own.add(adapter_name, config, autocast=options.autocast_adapter_dtype)

    def kind(self, base: nn.Module) -> type[AdapterLayer] | None:
        """The layer for a module of the base model."""
        return next((layer for known, layer in self.kinds.items() if isinstance(base, known)), None)


def reads_past(site: Site) -> bool:
    """Whether the model reads the layer's weight itself, as Mamba's fused kernels do: an adapter would not act."""
    return "Mamba" in type(site.parent).__name__ and site.child in {"out_proj", "conv1d", "dt_proj"}


def bare(module: nn.Module) -> nn.Module:
    """The base model's own module, without the adapters that are on it."""
    return module.get_base_layer() if isinstance(module, AdapterLayer) else module


def settle_fan_in_fan_out(sites: Sequence[Site], config: Any) -> None:
    """Sets `fan_in_fan_out` to what the layers are: whether any keeps its weight as (in, out)."""
    transposed = any(isinstance(bare(site.module), Conv1D) for site in sites)
    if config.fan_in_fan_out and not transposed:
        warnings.warn(
            "fan_in_fan_out has no effect: the adapted layers keep their weight as (out, in)", stacklevel=2
        )
    config.fan_in_fan_out = transposed
