"""An adapter's base in plain numbers, as its task needs it: what an adapter can be merged into.

A folder that peftcli wrote says the task, and the labels of its head. Of any other folder the config names one of
PEFT's tasks, or the base's own class, and the size of a head is that in the adapter's file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from peftcli.adapters.config import PREFIX, PeftConfig, TaskType
from peftcli.errors import ModelError
from peftcli.models.load import Base, Loaded, load_config, load_model
from peftcli.peft.auto import AutoPeftModel, resize_embeddings
from peftcli.peft.model import BY_TASK
from peftcli.recipe.schema import Recipe
from peftcli.run.adapted import recipe_of, task_of
from peftcli.run.adapter import read_adapter
from peftcli.run.folder import RunFolder
from peftcli.run.lock import Lock, read_lock
from peftcli.tasks.base import task_named

Say = Callable[[str], object]

_HEADED = (TaskType.SEQ_CLS, TaskType.TOKEN_CLS, TaskType.QUESTION_ANS)
_HEAD = re.compile(re.escape(PREFIX) + r"(classifier|score)(\.out_proj)?\.weight")


@dataclass(frozen=True, slots=True)
class BareBase:
    """What a base is loaded as, and how.

    Attributes:
        auto_class: Transformers' class for it.
        load: loads it.
        options: what the class must be told of the merged model, too.
    """

    auto_class: Any
    load: Callable[[], Any]
    options: Mapping[str, Any] = field(default_factory=dict)


def bare_base(run: RunFolder, base: Base, config: PeftConfig, say: Say) -> BareBase:
    """How to load the base of the adapter in a folder.

    Raises:
        ModelError: the base is stored quantized, or nothing says what it is to be loaded as.
        HubError: the base is on the Hub, which could not be reached.
    """
    lock = read_lock(run.folder)
    if lock is not None:
        _require_mergeable(recipe_of(run.folder, lock, run))
    settings = load_config(base, trust_remote_code=run.trust_remote_code)
    if stored := getattr(settings, "quantization_config", None):
        method = stored.get("quant_method") if isinstance(stored, dict) else stored.quant_method
        raise ModelError(
            f"{base.name!r} is stored quantized ({getattr(method, 'value', method)}), and its weights can take nothing "
            "in; name the model that it was made of with --base"
        )
    if run.quantization is not None:
        say(
            "the adapter was trained on the base quantized; it is merged into the base as it was before, "
            "whose outputs differ a little"
        )
    return _of_config(run, base, config, settings) if lock is None else _of_lock(run, base, lock, say)


def _require_mergeable(recipe: Recipe) -> None:
    task_class = task_named(recipe.task_type)
    if task_class.unmergeable:
        raise ModelError(f"an adapter for {recipe.task_type} is not merged; {task_class.unmergeable}")


def _of_lock(run: RunFolder, base: Base, lock: Lock, say: Say) -> BareBase:
    plain = {"quantization": None, "attn_implementation": None}
    recipe = recipe_of(run.folder, lock, run).model_copy(update=plain)
    task = task_of(recipe, run, base, say)

    def load() -> Any:
        from accelerate.utils import set_seed

        # What the base does not bring and is not trained either is drawn as it was for training.
        set_seed(recipe.training.seed)
        return task.load_model(base).model

    return BareBase(task.auto_class(), load, task.base_options())


def _of_config(run: RunFolder, base: Base, config: PeftConfig, settings: Any) -> BareBase:
    auto_class = _auto_class(config, settings, base)
    saved = read_adapter(run.folder).heads
    rows = next((head.shape[0] for key, head in saved.items() if _HEAD.fullmatch(key) and head.shape), None)
    options: dict[str, Any] = {"head": config.task_type in _HEADED}
    if rows:
        options["num_labels"] = rows

    def load() -> Any:
        loaded = load_model(base, auto_class, dtype=run.dtype, **options)
        _check_new(loaded, {key.removeprefix(PREFIX) for key in saved}, base)
        resize_embeddings(loaded.model, str(run.folder), None, {"revision": None}, trust_remote_code=False)
        return loaded.model

    return BareBase(auto_class, load)


def _auto_class(config: PeftConfig, settings: Any, base: Base) -> Any:
    """Transformers' class for PEFT's task, or the class that the base says it is of."""
    import transformers

    if config.task_type is not None:
        wanted = BY_TASK[config.task_type]
        kind = next(kind for kind in AutoPeftModel.__subclasses__() if kind.peft_class is wanted)
        return getattr(transformers, kind.base_class)
    names = getattr(settings, "architectures", None) or ["none"]
    found = getattr(transformers, names[0], None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ModelError(
            f"neither the adapter's task_type nor {base.name!r} names a class of Transformers to load it as "
            f"({names[0]}); set task_type in adapter_config.json"
        )
    return found


def _check_new(loaded: Loaded, saved: set[str], base: Base) -> None:
    """Refuses weights that would be drawn at random: neither the base nor the adapter brings them."""
    lacking = [name for name in loaded.new if name not in saved and ".pooler." not in name]
    if lacking:
        raise ModelError(
            f"neither {base.name!r} nor the adapter brings {len(lacking)} weights of a {type(loaded.model).__name__} "
            f"(first: {lacking[0]}); is task_type right?"
        )
