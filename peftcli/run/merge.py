"""`peftcli merge`: an adapter and its base as one plain model, in a folder of its own.

The folder comes into being whole or not at all: it is written and, if asked for, loaded again and compared under
another name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from peftcli.adapters.config import CONFIG_NAME, PeftConfig
from peftcli.data.chat import load_template
from peftcli.errors import AdapterError, ModelError, RecipeError
from peftcli.files import replacing_folder
from peftcli.hub import first_line
from peftcli.models.load import Base, load_model, resolve_base
from peftcli.models.quiet import bars_on_terminals_only
from peftcli.peft.model import PeftModel
from peftcli.peft.storage import read_config
from peftcli.run.answers import MergeAnswer
from peftcli.run.bare import BareBase, bare_base
from peftcli.run.drift import Drift, drift, outputs, sample_inputs
from peftcli.run.folder import RunFolder, open_run, refuse_unread_code, warn_of_another_base

Say = Callable[[str], object]

SHARD_SIZE = "5GB"


@dataclass(frozen=True, slots=True)
class Merged:
    """What was written, and how far it is from the adapter on its base (None where that was not asked for)."""

    output: Path
    adapter: Path
    base: str
    method: str
    dtype: str
    parameters: int
    files: dict[str, int]
    drift: Drift | None

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(self.files.values())

    def as_dict(self) -> MergeAnswer:
        """For `--json`."""
        return {
            "output": str(self.output),
            "adapter": str(self.adapter),
            "base_model": self.base,
            "method": self.method,
            "dtype": self.dtype,
            "parameters": self.parameters,
            "bytes": self.size,
            "files": [{"path": name, "size": size} for name, size in self.files.items()],
            "verified": None if self.drift is None else self.drift.as_dict(),
        }


def merge(
    folder: Path,
    output: Path,
    *,
    base_model: str | None = None,
    dtype: str = "auto",
    verify: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    say: Say,
) -> Merged:
    """Writes an adapter and its base as one model.

    Args:
        folder: the adapter's.
        output: where the model goes; a folder that is not there, or empty.
        base_model: another base than the one that the folder names.
        dtype: `auto`, or a type that the weights are rounded to.
        verify: load what was written and compare its outputs with the adapter's.
        overwrite: replace a model that is in `output`.
        trust_remote_code: run code that the base brings, where the run did.
        say: gets what the user should know.

    Raises:
        RecipeError: `output` cannot be written, or would be lost.
        ModelError: the adapter cannot be merged, or its base not be loaded; or the merged model is another one.
        HubError: the base is on the Hub, which could not be reached.
    """
    run = open_run(folder)
    refuse_unread_code(run, trust_remote_code=trust_remote_code)
    config = read_config(folder)
    if reason := config.never_merges:
        raise AdapterError(f"{config.peft_type} {reason}: it cannot be merged into the base's weights")
    if base_model is not None:
        run = replace(run, base_model=base_model, revision=None, base_fingerprint=None)
    place = output.expanduser().resolve()
    _check_place(place, overwrite=overwrite)
    base = resolve_base(run.base_model, run.revision, say=say)
    if place == Path(base.path).resolve():
        raise RecipeError("--output is the base's own folder; name another")
    warn_of_another_base(run, base, say)
    bare = bare_base(run, base, config, say)
    with _writing(output), replacing_folder(place) as temporary:
        parameters, written = _write_model(run, bare, config, dtype, temporary)
        _write_processor(run, base, temporary, say)
        found = _verify(run, bare, temporary, written) if verify else None
    files = {path.name: path.stat().st_size for path in sorted(place.iterdir())}
    return Merged(output, folder, base.name, str(config.peft_type), written, parameters, files, found)


def _check_place(output: Path, *, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise RecipeError(f"--output: {output} is a file; name a folder")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not overwrite:
        raise RecipeError(
            f"--output: {output} is not empty; name another folder, or replace the model in it with --overwrite"
        )
    # Only what this command could have written may go: a slip of the hand must not cost a home folder.
    holds_model = (output / "config.json").is_file() and not (output / CONFIG_NAME).exists()
    if not holds_model or any(path.is_dir() for path in output.iterdir()):
        raise RecipeError(f"--output: {output} is not the folder of a model alone; name another")


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Says in one line why the model cannot be written.

    Raises:
        RecipeError: where it cannot.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise RecipeError(
            f"--output: {output} cannot be written: {reason}; name another, or make room"
        ) from error


# The model.


def _adapted(run: RunFolder, bare: BareBase) -> PeftModel:
    return PeftModel.from_pretrained(bare.load(), run.folder, autocast_adapter_dtype=False)


def _write_model(
    run: RunFolder, bare: BareBase, config: PeftConfig, dtype: str, folder: Path
) -> tuple[int, str]:
    """Merges, and gives the number of parameters and their type; nothing of it stays in memory."""
    adapted = _adapted(run, bare)
    wanted = adapted.dtype if dtype == "auto" else getattr(torch, dtype)
    if wanted != adapted.dtype:
        # Merged in the wider type, the sum is rounded once.
        adapted.get_base_model().to(torch.promote_types(adapted.dtype, wanted))
    try:
        merged: Any = adapted.merge_and_unload(safe_merge=True)
    except AdapterError as error:
        raise AdapterError(f"this {config.peft_type} adapter cannot be merged: {error}") from error
    if wanted != merged.dtype:
        merged.to(wanted)
    written = str(merged.dtype).removeprefix("torch.")
    for name, parameter in merged.named_parameters():
        if not parameter.isfinite().all():
            raise ModelError(f"{name} has values that {written} cannot hold; choose another --dtype")
    _save(merged, folder)
    return merged.num_parameters(), written


def _save(model: Any, folder: Path) -> None:
    own = model.generation_config if model.can_generate() else None
    if own is not None:
        # Transformers refuses to write what it reads with a warning: settings of sampling without sampling.
        model.generation_config = type(own)()
    with bars_on_terminals_only():
        model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    if own is not None:
        (folder / "generation_config.json").write_text(own.to_json_string(), encoding="utf-8")


def _write_processor(run: RunFolder, base: Base, folder: Path, say: Say) -> None:
    """Writes what turns inputs into tensors, with the chat template that the adapter was trained with."""
    from transformers import AutoProcessor

    path, revision = (str(run.folder), "main") if run.has_processor else (base.path, base.revision or "main")
    try:
        processor = AutoProcessor.from_pretrained(
            path, revision=revision, trust_remote_code=run.trust_remote_code
        )
    except (OSError, ValueError) as error:
        say(f"warning: there is no tokenizer or processor beside the model: {first_line(error)}")
        return
    if (template := load_template(run.chat_template)) is not None:
        processor.chat_template = template
    processor.save_pretrained(str(folder))


# Verifying.


def _verify(run: RunFolder, bare: BareBase, folder: Path, dtype: str) -> Drift:
    """Loads the adapter on its base, and then the merged model: one at a time."""
    inputs, base, adapted = _expected(run, bare)
    plain = load_model(
        Base(str(folder), str(folder), None, ""),
        bare.auto_class,
        dtype="float32",
        trust_remote_code=run.trust_remote_code,
        **bare.options,
    )
    found = drift(base, adapted, outputs(plain.model, inputs), dtype)
    if plain.unused:
        raise ModelError(f"the merged model has {plain.unused[0]}, which Transformers does not load")
    if found.is_lost and found.largest <= found.tolerance:
        raise ModelError(
            f"in {dtype} the merged model is no nearer to the adapter than to its base ({found.line()}); "
            "choose a wider --dtype; nothing was written"
        )
    if not found.is_small:
        raise ModelError(f"the merged model drifts: {found.line()}; nothing was written")
    return found


def _expected(run: RunFolder, bare: BareBase) -> tuple[Any, Any, Any]:
    """Inputs, and the outputs of the base and of the adapter on it."""
    model = _adapted(run, bare).float().eval()
    inputs = sample_inputs(model.get_base_model())
    adapted = outputs(model, inputs)
    # It says that trained biases stay in place.
    with warnings.catch_warnings(action="ignore"), model.disable_adapter():
        return inputs, outputs(model, inputs), adapted
