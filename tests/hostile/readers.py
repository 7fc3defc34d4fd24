"""Every reader of what others wrote, as one function of bytes: it ends well, or in an error that peftcli documents.

The property-based tests, the coverage-guided one and `python -m tests.hostile.fuzz` call the same functions.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peftcli.adapters.config import CONFIG_NAME, WEIGHTS_NAME, from_dict, read_json
from peftcli.data.chat import ChatTemplate
from peftcli.data.formats.chat import chat
from peftcli.data.sources import read_rows
from peftcli.errors import PeftcliError
from peftcli.peft.storage import load_peft_weights
from peftcli.recipe.read import read_recipe
from peftcli.recipe.schema import Source
from peftcli.run.adapter import read_adapter
from peftcli.run.folder import open_run
from peftcli.run.inspect import inspect
from peftcli.run.lock import LOCK_NAME, read_lock
from peftcli.run.prompts import read_prompts
from peftcli.run.report.history import METRICS, read_history
from peftcli.run.report.samples import collect_samples
from peftcli.tasks.labels import LABELS_NAME, Labels
from peftcli.train.state import MANIFEST, PROGRESS, TRAINING, read_checkpoint

CONFIG = b'{"peft_type": "LORA", "base_model_name_or_path": "x", "target_modules": ["q"]}'
LOCK = b"""
recipe: {base_model: x, data: {train: [{path: a}]}}
base: {}
data: {}
versions: {}
chat_template: null
"""
MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def recipe(folder: Path, content: bytes) -> None:
    """A recipe's file."""
    (folder / "r.yaml").write_bytes(content)
    read_recipe(folder / "r.yaml")


def rows(kind: str) -> Callable[[Path, bytes], None]:
    """A file of rows."""

    def read(folder: Path, content: bytes) -> None:
        path = folder / f"r{kind}"
        path.write_bytes(content)
        for row in read_rows(Source.model_validate({"path": str(path)})):
            if "messages" in row.columns:
                chat({"messages": row.columns["messages"]})

    return read


def config(folder: Path, content: bytes) -> None:
    """adapter_config.json."""
    (folder / CONFIG_NAME).write_bytes(content)
    open_run(folder)
    from_dict(read_json(folder / CONFIG_NAME))


def weights(folder: Path, content: bytes) -> None:
    """adapter_model.safetensors."""
    (folder / CONFIG_NAME).write_bytes(CONFIG)
    (folder / WEIGHTS_NAME).write_bytes(content)
    read_adapter(folder)
    load_peft_weights(folder)
    inspect(folder)


def head(folder: Path, content: bytes) -> None:
    """The same, with the right length before the head and some bytes after it."""
    weights(folder, len(content).to_bytes(8, "little") + content + bytes(128))


def template(folder: Path, content: bytes) -> None:
    """A chat template."""
    from tests.conftest import byte_tokenizer

    ChatTemplate(byte_tokenizer(), content.decode("utf-8", "replace")).passage(MESSAGES)


def metrics(folder: Path, content: bytes) -> None:
    """metrics.jsonl, read back by a report."""
    (folder / METRICS).write_bytes(content)
    history = read_history(folder)
    assert all(curve.steps for curve in history.curves.values())


def answers(folder: Path, content: bytes) -> None:
    """A file that `generate --output` wrote, and one of prompts."""
    path = folder / "a.jsonl"
    path.write_bytes(content)
    try:
        read_prompts(path)
    except PeftcliError:
        collect_samples([], [path])


def labels(folder: Path, content: bytes) -> None:
    """labels.json."""
    (folder / LABELS_NAME).write_bytes(content)
    Labels.load(folder)


def lock(folder: Path, content: bytes) -> None:
    """recipe.lock.yaml."""
    (folder / CONFIG_NAME).write_bytes(CONFIG)
    (folder / LOCK_NAME).write_bytes(content)
    read_lock(folder)
    open_run(folder)


def manifest(folder: Path, content: bytes) -> None:
    """A checkpoint's manifest."""
    (folder / MANIFEST).write_bytes(content)
    read_checkpoint(folder)


def progress(folder: Path, content: bytes) -> None:
    """A checkpoint's other files, under a manifest that says they are as written."""
    (folder / PROGRESS).write_bytes(content)
    (folder / f"{TRAINING}.json").write_bytes(content)
    (folder / f"{TRAINING}.safetensors").write_bytes(content)
    (folder / MANIFEST).write_text('{"step": 1, "files": {}}')
    read_checkpoint(folder)


READERS: dict[str, Callable[[Path, bytes], None]] = {
    "recipe": recipe,
    **{
        f"rows{kind}": rows(kind)
        for kind in (".json", ".jsonl", ".csv", ".tsv", ".txt", ".conll", ".parquet")
    },
    "config": config,
    "weights": weights,
    "head": head,
    "template": template,
    "metrics": metrics,
    "answers": answers,
    "labels": labels,
    "lock": lock,
    "manifest": manifest,
    "progress": progress,
}


def feed(name: str, content: bytes) -> Any:
    """Gives a reader some bytes in a folder of its own; the error it ended with, or None."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            READERS[name](Path(folder), content)
        except PeftcliError as found:
            error = found
        else:
            return None
    assert error.exit_status in range(2, 9)
    said = error.lines()
    assert said
    assert all(line.strip() for line in said)
    return error


def parquet() -> bytes:
    """A small table."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"], "n": [1, 2]}), buffer)
    return buffer.getvalue()


def safetensors() -> bytes:
    """A small adapter's weights."""
    import torch
    from safetensors.torch import save

    key = "base_model.model.q.lora_{}.weight"
    return save({key.format("A"): torch.ones(8, 2), key.format("B"): torch.ones(2, 8)})


def seeds() -> dict[str, list[bytes]]:
    """What each reader is meant for: mutations begin here."""
    row = b'{"text": "a", "messages": [{"role": "user", "content": "b"}], "label": 1}'
    yaml = (
        b"base_model: m\ntask_type: CAUSAL_LM\nadapter: {peft_type: LORA, r: 8}\n"
        b"data: {train: {path: a.jsonl}, eval: 0.1}\ntraining: {output_dir: o, learning_rate: 1e-3}\n"
    )
    table = b'text,label\n"a, b",1\nc,2\n'
    tensors = safetensors()
    return {
        "recipe": [yaml, b"a: &a {b: 1}\nc: {<<: *a}\n"],
        "rows.json": [b"[" + row + b"]", b'{"data": [' + row + b"]}"],
        "rows.jsonl": [row + b"\n" + row],
        "rows.csv": [table],
        "rows.tsv": [table.replace(b",", b"\t")],
        "rows.txt": [b"one\ntwo\r\n\n"],
        "rows.conll": [b"-DOCSTART- O\n\na B-X\nb O\n\nc O\n"],
        "rows.parquet": [parquet()],
        "config": [CONFIG, b'{"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}'],
        "weights": [tensors],
        "head": [tensors[8 : 8 + int.from_bytes(tensors[:8], "little")]],
        "template": [b"{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"],
        "metrics": [b'{"step": 1, "loss": 1.5}\n{"step": 2, "eval_loss": 0.5}\n'],
        "answers": [b'{"prompt": "a", "generated_text": "b", "tokens": 1}', b'{"prompt": "a"}'],
        "labels": [b'{"id2label": {"0": "a", "1": "b"}}'],
        "lock": [LOCK],
        "manifest": [b'{"step": 1, "files": {"trainer_state.json": "00"}}'],
        "progress": [b'{"global_step": 1}', b'{"items": [["a", {"tensor": "x"}]]}'],
    }  # fmt: skip
