"""Names to layers: which modules of a model a config means. Matching is PEFT's; what matches nothing is an error here.

One walk over the model, and per module a look-up of its name's endings in a set: the cost does not grow with the
number of names in a config.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.base import AdapterLayer, Site
from peftcli.adapters.config import TaskType
from peftcli.adapters.defaults import BY_ARCHITECTURE, default_targets
from peftcli.adapters.naming import complain, similar, some
from peftcli.adapters.patterns import Expression
from peftcli.adapters.tokens import TrainableTokensWrapper
from peftcli.adapters.walk import innermost, walk
from peftcli.errors import AdapterError, NoMatchingPeftModuleError

ALL_LINEAR = "all-linear"
HEADS = ("score", "classifier")


def find_targets(
    model: nn.Module, config: Any, *, strict: bool, takes: Callable[[Site], bool] = lambda _: True
) -> tuple[list[Site], list[str] | str | None]:
    """The modules that a config adapts, and `target_modules` as the adapter's file should name them.

    Those may be none where `target_parameters` names parameters.

    Args:
        model: the base model.
        config: a method's config, with PEFT's fields for naming layers.
        strict: whether a name that matches nothing is an error; a warning otherwise (an adapter from elsewhere may
            name more layers than this model has, and its weights tell which it needs).
        takes: whether the method takes a layer: `all-linear` leaves out those that it does not.

    Raises:
        AdapterError: where a name matches nothing, or no module is left.
    """
    sites = list(walk(model))
    saved = _inside(getattr(config, "modules_to_save", None) or ())
    wanted = _wanted(model, [site for site in sites if not (saved and saved.match(site.name))], config, takes)
    if not wanted:
        _check_no_modules(config, strict=strict)
        return [], wanted
    excluded = _Names(getattr(config, "exclude_modules", None))
    targets, layers = _Names(wanted), _Layers(config)
    found = []
    for site in sites:
        if excluded.match(site.name) or (saved and saved.match(site.name)):
            continue
        if targets.match(site.name) and (site.name in targets.names or layers.match(site.name)):
            found.append(site)
    names = [site.name for site in sites]
    if not found:
        _explain_nothing(model, names, targets, layers, config)
    for entry in targets.unused():
        if not _is_matched(entry, names):
            reason = _why_no_module(model, config, entry, names)
            complain(f"target_modules: {entry!r} {reason}", strict=strict)
    for entry in excluded.unused():
        if not _is_matched(entry, names):
            complain(f"exclude_modules: {entry!r} matches no module{similar(entry, names)}", strict=strict)
    layers.check(strict=strict)
    return found, wanted


def find_parameters(
    model: nn.Module, config: Any, modules: Sequence[Site], saved: Sequence[Site] = (), *, strict: bool
) -> list[Site]:
    """The parameters that a config adapts by themselves; as with modules, their names or endings of names.

    Args:
        model: the base model.
        config: a method's config; `target_parameters` names parameters, where the method has it.
        modules: the modules that it adapts as a whole.
        saved: the modules that are trained whole.
        strict: whether a name that matches nothing is an error; a warning otherwise.

    Raises:
        AdapterError: where a name matches nothing, or a parameter of what is adapted as a whole.
    """
    wanted = _Names(getattr(config, "target_parameters", None))
    found: list[Site] = []
    names: list[str] = []
    for site in walk(model) if wanted.names else ():
        parameters = innermost(site.module).named_parameters(recurse=False)
        own = [f"{site.name}.{name}" for name, _ in parameters]
        names += own
        found += [
            site._replace(name=name, parameter=name.rpartition(".")[2]) for name in own if wanted.match(name)
        ]
    for entry in wanted.unused():
        complain(f"target_parameters: {entry!r} {_why_no_parameter(model, entry, names)}", strict=strict)
    if not found and not modules:
        raise NoMatchingPeftModuleError("target_parameters names no parameter of this model")
    whole = [f"{site.name}." for site in (*modules, *saved)]
    for site in found:
        if any(site.name.startswith(name) for name in whole):
            raise AdapterError(
                f"target_parameters: {site.name} is in what target_modules or modules_to_save names; "
                "adapt the module or its parameters"
            )
    return found


def clash(site: Site) -> str:
    """Why a module, or one of its parameters, cannot be adapted beside what is adapted there already, or nothing."""
    layer = site.module
    if isinstance(layer, TrainableTokensWrapper):
        return f"{site.name}: another adapter trains its tokens (trainable_token_indices); it cannot have one itself"
    if not isinstance(layer, AdapterLayer) or bool(layer.parameter) == bool(site.parameter):
        return ""
    if site.parameter:
        return f"{site.name}: the module has adapters as a whole; its parameters cannot have others"
    return f"{site.name} has adapters on its parameters; it cannot have one as a whole"


def find_modules_to_save(model: nn.Module, config: Any, heads: Sequence[str], *, strict: bool) -> list[Site]:
    """The modules that are trained and saved whole: as in PEFT, all whose name ends so (`pre_classifier` as well).

    Args:
        model: the base model.
        config: a method's config; `modules_to_save` names modules.
        heads: names that a task adds by itself: a model need not have them all.
        strict: whether another name that matches nothing is an error; a warning otherwise.

    Raises:
        AdapterError: where a name matches nothing, or something that cannot be copied and called.
    """
    names = list(getattr(config, "modules_to_save", None) or ())
    found: dict[str, Site] = {}
    used: set[str] = set()
    everything: list[str] = []
    for site in walk(model, repeated=True) if names else ():
        everything.append(site.name)
        matched = [name for name in names if site.name.endswith(name)]
        used.update(matched)
        inside = any(site.name.startswith(f"{outer}.") for outer in found)
        if matched and not inside:
            found[site.name] = site
    for name in names:
        if name not in used and name not in heads:
            complain(f"modules_to_save: {name!r} matches no module{similar(name, everything)}", strict=strict)
    if heads and not used & set(heads):
        reason = (
            f"the model has no head named {' or '.join(heads)}, so no head is trained; name it in modules_to_save"
            if hasattr(config, "modules_to_save")
            else f"{config.peft_type} trains no head; the model's own stays as it is"
        )
        warnings.warn(reason, stacklevel=2)
    for site in found.values():
        if isinstance(site.module, AdapterLayer | TrainableTokensWrapper | nn.ModuleList | nn.ModuleDict):
            raise AdapterError(
                f"modules_to_save: {site.name} is a {type(site.module).__name__}, which cannot be saved"
            )
    return list(found.values())


class _Names:
    """A config's way of naming modules: a list of names and endings of names, or a regular expression."""

    def __init__(self, spec: list[str] | str | None) -> None:
        self.pattern = Expression(spec) if isinstance(spec, str) else None
        self.names = set() if spec is None or isinstance(spec, str) else set(spec)
        self.used: set[str] = set()

    def match(self, name: str) -> bool:
        if self.pattern is not None:
            matched = self.pattern.fullmatch(name) is not None
            if matched:
                self.used.add(self.pattern.text)
            return matched
        hits = {ending for ending in _endings(name) if ending in self.names}
        self.used |= hits
        return bool(hits)

    def unused(self) -> list[str]:
        if self.pattern is not None:
            return [] if self.used else [self.pattern.text]
        return sorted(self.names - self.used)


class _Layers:
    """`layers_to_transform` and `layers_pattern`: which numbers of a list of layers are meant."""

    def __init__(self, config: Any) -> None:
        wanted = getattr(config, "layers_to_transform", None)
        patterns = getattr(config, "layers_pattern", None) or []
        self.wanted = None if wanted is None else {wanted} if isinstance(wanted, int) else set(wanted)
        if isinstance(patterns, str):
            patterns = [patterns]
        # The first number that fits is the layer's: the last would be an expert's in a mixture of experts.
        texts = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns] or [r".*?\.[^.]*\.(\d+)\."]
        self.patterns = [Expression(text) for text in texts]
        self.found: set[int] = set()

    def match(self, name: str) -> bool:
        if self.wanted is None:
            return True
        for pattern in self.patterns:
            if match := pattern.match(name):
                number = int(match.group(1))
                self.found.add(number)
                return number in self.wanted
        return False

    def check(self, *, strict: bool) -> None:
        if self.wanted is not None and (missing := sorted(self.wanted - self.found)):
            there = f"0 to {max(self.found)}" if self.found else "none"
            complain(
                f"layers_to_transform: there is no layer {some(missing)}; there are {there}", strict=strict
            )


def _check_no_modules(config: Any, *, strict: bool) -> None:
    """Nothing may be said of modules where none are adapted."""
    for field in ("exclude_modules", "layers_to_transform"):
        if getattr(config, field, None) is not None:
            complain(f"{field}: has no effect, since target_modules names no module", strict=strict)


def _why_no_module(model: nn.Module, config: Any, entry: str, names: list[str]) -> str:
    parameters = [name for name, _ in model.named_parameters()]
    if hasattr(config, "target_parameters") and _is_matched(entry, parameters):
        return "is a parameter; name it in target_parameters"
    return f"matches no module{similar(entry, names)}"


def _why_no_parameter(model: nn.Module, entry: str, names: list[str]) -> str:
    if entry in dict(model.named_parameters(recurse=False)):
        return "is a parameter of the model itself; only those of the modules in it can be adapted"
    if _is_matched(entry, [site.name for site in walk(model)]):
        return "is a module; name it in target_modules"
    return f"matches no parameter{similar(entry, names)}"


def _endings(name: str) -> Iterator[str]:
    """`a.b.c`, `b.c`, `c`."""
    yield name
    start = name.find(".")
    while start >= 0:
        yield name[start + 1 :]
        start = name.find(".", start + 1)


def _inside(names: Sequence[str]) -> Expression | None:
    """Matches the modules that are trained whole, and what is inside them: adapters do not go there."""
    return Expression(rf"(^|.*\.)({'|'.join(names)})($|\..*)") if names else None


def _wanted(
    model: nn.Module, sites: list[Site], config: Any, takes: Callable[[Site], bool]
) -> list[str] | str | None:
    wanted = config.target_modules
    if wanted is None:
        own = getattr(config, "DEFAULT_TARGETS", {})
        wanted = own.get(getattr(getattr(model, "config", None), "model_type", None))
    if wanted is None and (classes := getattr(config, "DEFAULT_CLASSES", "")):
        wanted = _of_classes(sites, classes)
    if wanted is None:
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        # As in PEFT, only an architecture's own defaults join parameters, and Mixtral's do not.
        if getattr(config, "target_parameters", None) and (kind not in BY_ARCHITECTURE or kind == "mixtral"):
            return None
        wanted = default_targets(model, ((site.name, site.module) for site in sites))
        if wanted is None:
            raise AdapterError(
                f"target_modules has no default for {kind}; name the layers, or say all-linear"
            )
    if isinstance(wanted, str) and wanted.lower() == ALL_LINEAR:
        return shortest(_all_linear(model, sites, config, takes), [site.name for site in sites])
    return wanted if isinstance(wanted, str) else sorted(set(wanted))


def _of_classes(sites: list[Site], classes: str) -> list[str] | str | None:
    """The modules whose class is named so, as far as there is something to train in them."""
    names = set()
    for site in sites:
        base = site.module.get_base_layer() if isinstance(site.module, AdapterLayer) else site.module
        if re.search(classes, type(base).__name__) and any(True for _ in base.parameters()):
            names.add(site.name)
    return shortest(names, [site.name for site in sites]) if names else None


def _all_linear(model: nn.Module, sites: list[Site], config: Any, takes: Callable[[Site], bool]) -> set[str]:
    """All linear layers but the output head, as in QLoRA (Dettmers et al., 2023, arXiv:2305.14314)."""
    kept_out: set[int] = set()
    if isinstance(model, PreTrainedModel):
        head = model.get_output_embeddings()
        if head is None and config.task_type == TaskType.SEQ_CLS:
            head = next(
                (getattr(model, name) for name in HEADS if getattr(model, name, None) is not None), None
            )
        kept_out.add(id(head))
    names = set()
    for site in sites:
        base = site.module.get_base_layer() if isinstance(site.module, AdapterLayer) else site.module
        is_head = bool({id(site.module), id(base)} & kept_out)
        if isinstance(base, nn.Linear | Conv1D) and not is_head and takes(site):
            names.add(site.name)
    if not names:
        raise AdapterError(
            f"all-linear names no layer: {type(model).__name__} has no linear layer but its head"
        )
    return names


def shortest(targets: set[str], names: Sequence[str]) -> list[str] | str:
    """Names that mean exactly `targets` among `names`: last parts where those say enough, whole names elsewhere."""
    others = [name for name in names if name not in targets]
    ambiguous = {name.rpartition(".")[2] for name in others}
    short = {name if (last := name.rpartition(".")[2]) in ambiguous else last for name in targets}
    if any(ending in short for name in others for ending in _endings(name)):  # a whole name may end another
        return "|".join(re.escape(name) for name in sorted(targets))
    return sorted(short)


def _is_matched(entry: str, names: Sequence[str]) -> bool:
    """Whether a name that was not used matches all the same: what is excluded or saved whole was not looked at."""
    return any(name == entry or name.endswith(f".{entry}") for name in names)


def _explain_nothing(
    model: nn.Module, names: list[str], targets: _Names, layers: _Layers, config: Any
) -> None:
    if layers.found:
        layers.check(strict=True)
    if targets.pattern is not None:
        entry = targets.pattern.text
        if re.fullmatch(r"\w+(\.\w+)*", entry) and _is_matched(entry, names):
            raise NoMatchingPeftModuleError(
                f"target_modules: {entry!r} is read as an expression over whole names; for a name write [{entry}]"
            )
        if not any(targets.pattern.fullmatch(name) for name in names):
            raise NoMatchingPeftModuleError(
                f"target_modules: the expression {entry!r} matches no whole module name{similar(entry, names)}"
            )
    else:
        for entry in sorted(targets.names):
            if not _is_matched(entry, names):
                raise NoMatchingPeftModuleError(
                    f"target_modules: {entry!r} {_why_no_module(model, config, entry, names)}"
                )
    fields = [
        field
        for field in ("exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern")
        if getattr(config, field, None) not in (None, [])
    ]
    raise NoMatchingPeftModuleError(
        f"no module is left to adapt; {' and '.join(fields)} rule out all that target_modules names"
    )
