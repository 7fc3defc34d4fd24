"""GGUF bases: converted once into a folder that Transformers loads directly, and kept by content.

Transformers unpacks a GGUF anew at every start, which takes many times as long as loading a plain model. So
the first start unpacks it into float32 (no quantized type holds more), saves model, tokenizer, chat template
and generation config under the user's cache folder, and every later start reads that. The folder's name is
made from the file's content and from the versions of what converts it.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import struct
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peftcli.errors import MemoryLimitError, ModelError
from peftcli.files import cache_folder
from peftcli.hub import first_line
from peftcli.models.quiet import conversion_bar_on_terminals_only

# Raised when what is stored changes, so that folders of an older layout are not taken for today's.
LAYOUT = 1


def converted(file: Path, say: Callable[[str], object]) -> tuple[Path, str]:
    """The folder that holds `file` as a plain model, converted now if it never was, and the file's SHA-256.

    `say` gets a line before a conversion, which takes from seconds to minutes.

    Raises:
        ModelError: not a GGUF, one that cannot be read, or no place to keep what it becomes.
    """
    digest = _digest(file)
    if find_spec("gguf") is None:
        raise ModelError(
            "a GGUF base needs the gguf package; run `pip install 'peftcli[gguf]'`", where=str(file)
        )
    makers = f"{digest} layout {LAYOUT} transformers {version('transformers')} gguf {version('gguf')}"
    target = cache_folder("gguf") / hashlib.sha256(makers.encode()).hexdigest()
    if not _whole(target):
        say(f"{file.name}: unpacking it once for all later starts, into {target.parent}")
        try:
            _convert_into(file, target)
        except OSError as error:
            raise ModelError(
                f"the converted model could not be kept: {first_line(error)}; free some space in "
                f"{target.parent}, or set XDG_CACHE_HOME to another folder",
                where=str(file),
            ) from error
    return target, digest


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            if opened.read(4) != b"GGUF":
                raise ModelError("not a GGUF file: it does not begin with its mark", where=str(file))
            opened.seek(0)
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(file)) from error


def _whole(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _convert_into(file: Path, target: Path) -> None:
    """Write the folder under another name and rename it: of two starts at once, one folder stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as temporary:
        folder = Path(temporary) / "model"
        with conversion_bar_on_terminals_only():
            model, tokenizer = _read(file)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        try:
            folder.rename(target)
        except OSError as error:
            # Another process was first; its folder has the same content.
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise


def _read(file: Path) -> tuple[Any, Any]:
    """Model (float32, on the CPU) and tokenizer of a GGUF."""
    import torch
    import transformers
    from transformers import GgufConfig

    source = {
        "pretrained_model_name_or_path": str(file.parent),
        "gguf_file": file.name,
        "local_files_only": True,
    }
    try:
        config = transformers.AutoConfig.from_pretrained(**source)
        model = _auto_class(config).from_pretrained(
            **source, config=config, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    except MemoryError as error:
        raise MemoryLimitError("not enough memory to convert it to float32", where=str(file)) from error
    except (ValueError, LookupError, TypeError, RuntimeError, OSError, struct.error) as error:
        raise ModelError(
            f"this GGUF cannot be read by Transformers: {first_line(error)}", where=str(file)
        ) from error
    return model, tokenizer


def _auto_class(config: Any) -> Any:
    import transformers

    for auto_class in (transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM):
        if type(config) in auto_class._model_mapping:  # noqa: SLF001 - the only list of what an auto class takes
            return auto_class
    return transformers.AutoModel
