"""What a method offers to the engine: which layers it takes, and how its adapters are put on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import nn

from peftcli.adapters.base import AdapterLayer, SavedTensor, Site
from peftcli.adapters.weights import is_quantized


class AddOptions(NamedTuple):
    """How a new adapter's weights come to be."""

    # Half-precision bases get float32 adapters, which training needs; otherwise the base's dtype.
    autocast_adapter_dtype: bool = True
    # False where a file's weights follow: then only what an initialisation does to the base itself is done.
    initialise: bool = True


class Method(ABC):
    """How one kind of adapter is put on layers. Stateless but for what its adapters share, which stands on the tuner.

    The tuner is the engine's AdaptedModel. What all layers of an adapter share is held there, in containers by
    adapter name (BufferDict or ParameterDict) under the names in `shared`, which are PEFT's.
    """

    # What the method's parameter names begin with, as PEFT has it.
    prefix: ClassVar[str]
    # The method's layers: another method's adapter on the same module is wrapped around them, not added to them.
    layer: ClassVar[type[AdapterLayer]]
    # The tuner's containers of what all layers of an adapter share.
    shared: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def problem(self, site: Site, config: Any, model: nn.Module) -> str:
        """Why this module of the model cannot be adapted (with what can), or nothing."""

    @abstractmethod
    def resolve(self, sites: Sequence[Site], config: Any, others: Sequence[Any], strict: bool) -> None:
        """Checks a config against the sites it names and the model's other adapters; completes it.

        Raises:
            AdapterError: for a setting that cannot be, or (only a warning unless `strict`) that names nothing.
        """

    @abstractmethod
    def wrap(self, site: Site, config: Any, tuner: Any) -> AdapterLayer:
        """A layer around the site's module, without adapters yet; it may keep the tuner's shared containers."""

    @abstractmethod
    def add(
        self, layer: AdapterLayer, site: Site, adapter_name: str, config: Any, options: AddOptions
    ) -> None:
        """Makes a new adapter on a layer."""

    def share(  # noqa: B027  (most methods share nothing)
        self, tuner: Any, sites: Sequence[Site], adapter_name: str, config: Any, options: AddOptions
    ) -> None:
        """Makes what the layers of a new adapter share, on the tuner, before the layers are made."""

    def shared_tensors(self, tuner: Any, adapter_name: str, config: Any) -> Iterator[SavedTensor]:  # noqa: ARG002
        """What an adapter's file holds of what its layers share; keys are within the tuner (`vera_A`)."""
        for name in self.shared:
            container = getattr(tuner, name, {})
            if adapter_name in container:
                yield SavedTensor(name, f"{name}.{adapter_name}", container[adapter_name])

    def after_forward(self, tuner: Any, outputs: Any) -> Any:  # noqa: ARG002
        """The model's outputs, with what the method adds to them (AdaLoRA's penalty, to the loss)."""
        return outputs

    def after_step(self, tuner: Any, step: int, total_steps: int | None = None) -> None:  # noqa: B027
        """What follows an optimizer step, while its gradients are still there."""


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
        if is_quantized(base) and not self.takes_quantized:
            return f"{site.name} is quantized, which {method} does not take; load the base unquantized"
        return ""

    def resolve(self, sites: Sequence[Site], config: Any, others: Sequence[Any], strict: bool) -> None:
        """Nothing is to be completed."""

    def wrap(self, site: Site, config: Any, tuner: Any) -> AdapterLayer:  # noqa: ARG002  (some methods need them)
        """A layer of the kind that the module asks for."""
        kind = self.kind(bare(site.module))
        assert kind is not None  # `problem` was asked first
        return kind(site.module)

    def kind(self, base: nn.Module) -> type[AdapterLayer] | None:
        """The layer for a module of the base model."""
        return next((layer for known, layer in self.kinds.items() if isinstance(base, known)), None)


def bare(module: nn.Module) -> nn.Module:
    """The base model's own module, without the adapters that are on it."""
    return module.get_base_layer() if isinstance(module, AdapterLayer) else module
