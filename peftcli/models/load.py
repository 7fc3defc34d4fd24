"""Base models and their tokenizers, from wherever a recipe's `base_model` says.

Four kinds of name come to one thing, a `Base`, whose `path` is what Transformers' `from_pretrained` takes:
a Hub id, a local folder, a local `.gguf` file (converted once, see gguf.py), and `package://IMPORT_NAME/FILE`.
Weights are read from safetensors only: a pickle can run any code when it is read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli.errors import HubError, MemoryLimitError, ModelError, nearest
from peftcli.files import is_path
from peftcli.hub import first_line, network_errors
from peftcli.models import gguf, package
from peftcli.models.hub import resolve_commit
from peftcli.models.pipeline import INDEX, kind_of
from peftcli.models.quantize import quantization_config
from peftcli.models.quiet import bars_on_terminals_only, no_load_report

logger = logging.getLogger(__name__)

Say = Callable[[str], object]

# A Hub id is a name or two with a slash between them; whatever cannot be one is meant as a path.
# Files that a tokenizer is made from, in any of Transformers' forms.
_TOKENIZERS = ("*token*", "vocab*", "*.model", "merges.txt")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Base:
    """A base model that is there.

    Attributes:
        name: what the recipe calls it.
        path: what `from_pretrained` takes: a folder, or a Hub id.
        revision: the commit, where it is from the Hub.
        fingerprint: what tells this base from another: a commit hash, or `sha256:…` of what the files hold.
    """

    name: str
    path: str
    revision: str | None
    fingerprint: str

    @property
    def is_local(self) -> bool:
        """Whether the recipe names a folder or a file here, not the Hub or a package."""
        return self.revision is None and not self.name.startswith(package.SCHEME)


def resolve_base(base_model: str, revision: str | None = None, *, say: Say = logger.info) -> Base:
    """Find a base, and make it loadable: a GGUF new to this machine is converted, which takes a while.

    Args:
        base_model: a Hub id, a folder, a `.gguf` file, or `package://IMPORT_NAME/FILE`.
        revision: of the Hub repository; what is not from the Hub has none.
        say: gets a line when something takes long.

    Raises:
        ModelError: it is not there, or is not a model that can be loaded.
        HubError: the Hub could not be reached, or asks for a token.
    """
    if not is_path(base_model):
        raise ModelError(f"base_model {base_model[:40]!r}… is longer than any path or Hub id")
    in_package = base_model.startswith(package.SCHEME)
    path = package.locate(base_model) if in_package else Path(base_model).expanduser()
    local = in_package or path.exists() or _is_path(base_model)
    if not local:
        commit, cached = resolve_commit(base_model, revision)
        if cached is not None:
            say(
                f"the Hub could not be reached; {base_model} is taken from this machine's cache, at {commit[:12]}"
            )
            # By the folder: by its name, Transformers would ask the Hub for some files all the same, and wait.
            return Base(base_model, str(cached), commit, commit)
        return Base(base_model, base_model, commit, commit)
    if revision is not None:
        raise ModelError(
            f"revision {revision!r} belongs to a Hub id, but {base_model!r} is local; leave it out"
        )
    if path.is_dir():
        _check_folder(path, base_model)
        return Base(base_model, str(path), None, _fingerprint(path))
    if not path.is_file():
        raise ModelError(f"base_model {base_model!r} does not exist{_nearby(path)}")
    if path.suffix.lower() != ".gguf":
        raise ModelError(f"base_model {base_model!r} is neither a model's folder nor a .gguf file")
    folder, digest = gguf.converted(path, say)
    return Base(base_model, str(folder), None, f"sha256:{digest}")


def load_config(base: Base, *, trust_remote_code: bool = False) -> Any:
    """The base's Transformers config, which says its sizes; no weights are read.

    Raises:
        ModelError: there is none that can be read.
        HubError: the Hub could not be reached.
    """
    from transformers import AutoConfig

    if (Path(base.path) / INDEX).is_file():
        raise ModelError(
            f"base_model {base.name!r} is a {kind_of(Path(base.path))} of diffusers; its task_type is TEXT_TO_IMAGE"
        )
    with one_line_errors(base, "config"):
        return AutoConfig.from_pretrained(
            base.path,
            revision=base.revision or "main",
            trust_remote_code=trust_remote_code,
        )


def load_tokenizer(base: Base, *, trust_remote_code: bool = False, say: Say = logger.info) -> Any:
    """The base's tokenizer, with a pad token in every case (batches need one) and its padding side untouched.

    Raises:
        ModelError: the base has no tokenizer that can be loaded.
        HubError: the Hub could not be reached.
    """
    from transformers import AutoTokenizer

    if (folder := Path(base.path)).is_dir() and not any(any(folder.glob(name)) for name in _TOKENIZERS):
        raise ModelError(f"{base.name!r} has no tokenizer beside the model; put its tokenizer.json there")
    with one_line_errors(base, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            base.path,
            revision=base.revision or "main",
            trust_remote_code=trust_remote_code,
        )
    if not len(tokenizer):
        raise ModelError(f"the tokenizer of {base.name!r} has an empty vocabulary; name a base with its own")
    if tokenizer.pad_token is None:
        stand_in = tokenizer.eos_token or tokenizer.unk_token
        if stand_in is None:
            raise ModelError(
                f"the tokenizer of {base.name!r} has no pad, eos or unk token to fill batches with"
            )
        tokenizer.pad_token = stand_in
        say(f"the tokenizer has no pad token; {stand_in!r} is used for padding")
    return tokenizer


def load_processor(base: Base, processor_class: Any, *, trust_remote_code: bool = False) -> Any:
    """What turns the base's inputs other than text into tensors, as one of Transformers' classes.

    Raises:
        ModelError: the base has none that can be loaded.
        HubError: the Hub could not be reached.
    """
    with one_line_errors(base, "processor"):
        return processor_class.from_pretrained(
            base.path, revision=base.revision or "main", trust_remote_code=trust_remote_code
        )


def load_generation(base: Base) -> Any:
    """How the base generates, its GenerationConfig; None where it does not say that."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(base.path, revision=base.revision or "main")
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A base with its weights, in evaluation mode.

    Attributes:
        model: the base.
        new: names of the weights that it does not bring, or brings in another shape: they were drawn at random.
        unused: names of weights in its files that have no place in the model.
    """

    model: Any
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def load_model(
    base: Base,
    auto_class: Any,
    *,
    dtype: str = "auto",
    attn_implementation: str | None = None,
    quantization: dict[str, Any] | None = None,
    trust_remote_code: bool = False,
    head: bool = False,
    **options: Any,
) -> Loaded:
    """The base with its pretrained weights, in evaluation mode.

    Args:
        base: what `resolve_base` found.
        auto_class: one of Transformers' `AutoModelFor…` classes.
        dtype: `auto` (what the checkpoint says), `float32`, `bfloat16` or `float16`.
        attn_implementation: passed to Transformers.
        quantization: `BitsAndBytesConfig` fields.
        trust_remote_code: run Python code that the base's repository brings.
        head: whether the class has a head that the base need not bring.
        **options: of `from_pretrained`, such as `num_labels`.

    Raises:
        ModelError: it cannot be loaded so, or lacks weights that the class needs.
        HubError: the Hub could not be reached.
        MemoryLimitError: it does not fit into memory.
    """
    settings: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    if head:
        # A head for other labels is drawn anew; what that touches is checked below.
        settings["ignore_mismatched_sizes"] = True
    if quantization:
        settings["quantization_config"] = quantization_config(quantization)
    with bars_on_terminals_only(), no_load_report(), one_line_errors(base, "model"):
        model, report = auto_class.from_pretrained(
            base.path,
            revision=base.revision or "main",
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **settings,
            **options,
        )
    missing = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    body = f"{getattr(model, 'base_model_prefix', '')}."
    lacking = [name for name in missing if not head or (name.startswith(body) and ".pooler." not in name)]
    if lacking:
        raise ModelError(
            f"{base.name!r} lacks {len(lacking)} weights that a {type(model).__name__} needs "
            f"(first: {lacking[0]}); name a base that was made for this task"
        )
    return Loaded(model, tuple(missing), tuple(sorted(report["unexpected_keys"])))


def _is_path(name: str) -> bool:
    return not _HUB_ID.fullmatch(name) or name.startswith(".") or name.lower().endswith(".gguf")


def _nearby(path: Path) -> str:
    """What stands where `path` should stand: the nearest names, or the last folder on the way that exists."""
    folder = path.parent
    if not folder.is_dir():
        return f": there is no folder {str(folder)!r}"
    close = nearest(path.name, (entry.name for entry in folder.iterdir()))
    return (
        f"; near it: {', '.join(str(folder / name) for name in close)}" if close else f" in {str(folder)!r}"
    )


def _check_folder(folder: Path, name: str) -> None:
    """Refuse a folder that is no model, saying what it is instead."""
    if (folder / INDEX).is_file():
        kind_of(folder)
        return
    if not (folder / "config.json").is_file():
        held = sorted(path.name for path in folder.glob("*.gguf"))
        if (folder / "adapter_config.json").is_file():
            hint = "it holds an adapter; name the adapter's base"
        else:
            hint = f"it holds {held[0]}: name that file" if held else "name a model's folder"
        raise ModelError(f"base_model {name!r} has no config.json; {hint}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"cannot be read as JSON: {error}", where=str(folder / "config.json")) from error
    if not isinstance(config, dict):
        raise ModelError("does not hold a model's configuration", where=str(folder / "config.json"))
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"base_model {name!r} holds an adapter beside the model, which Transformers would apply unasked; move the "
            "adapter's files elsewhere"
        )
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        hint = (
            f"{pickles[0]} is a pickle, which can run code when read; convert it" if pickles else "no weights"
        )
        raise ModelError(f"base_model {name!r} has no .safetensors file: {hint}")


def _fingerprint(folder: Path) -> str:
    """A hash over the configs and, of every safetensors file: name, size, header, and a sample of its bytes.

    Gigabytes need not be read for it: 256 samples of 1 KiB, evenly spread, change with any training.
    """
    is_pipeline = (folder / INDEX).is_file()
    names = [INDEX, "*/*config.json"] if is_pipeline else ["config.json"]
    digest = hashlib.sha256()
    for config in (path for name in names for path in sorted(folder.glob(name))):
        digest.update(config.read_bytes())
    for file in sorted(folder.glob("*/*.safetensors" if is_pipeline else "*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()} {size}".encode())
        with file.open("rb") as opened:
            # A safetensors file begins with the length of its header, as 8 bytes.
            length = int.from_bytes(opened.read(8), "little")
            digest.update(opened.read(min(length, size)))
            for position in range(0, size, max(1024, size // 256)):
                opened.seek(position)
                digest.update(opened.read(1024))
    return f"sha256:{digest.hexdigest()}"


@contextmanager
def one_line_errors(base: Base, what: str) -> Iterator[None]:
    """Turn what Transformers raises over a base into one line that says whose fault it is."""
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MemoryLimitError(f"{base.name!r} does not fit into memory: {first_line(error)}") from error
    except ImportError as error:
        raise ModelError(
            f"{base.name!r} needs a package that is not installed: {first_line(error)}"
        ) from error
    except network_errors() as error:
        raise HubError(f"{base.name!r}: the Hub did not answer as expected: {first_line(error)}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{base.name!r} brings its own Python code; read it, then set trust_remote_code to run it"
            ) from error
        raise ModelError(f"the {what} of {base.name!r} cannot be loaded: {first_line(error)}") from error
