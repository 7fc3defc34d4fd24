"""Encoded rows of local files, kept for later starts, which need not encode them again.

What is kept of a source is found by a hash of all that its rows depend on: the files' content, how the recipe has them
read, the task's options and tokenizer, the libraries' versions, and this package's own code. Where any of it differs,
nothing is found: rows that are out of date cannot be taken.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftcli.data.example import Tally
from peftcli.data.reading import Encoding, SourceReading
from peftcli.data.report import SourceReport, file_sha256
from peftcli.data.sources import local_files
from peftcli.data.store import RowStore
from peftcli.files import cache_folder, clear_unfinished, replacing
from peftcli.recipe.schema import Source

# Fewer rows of a source are encoded in no time.
_WORTH = 2_000
# Bytes of all that is kept; what was not used for longest goes first.
_MOST = 10 * 2**30
_LIBRARIES = ("tokenizers", "transformers", "jinja2", "datasets", "pyarrow", "numpy")
_EXAMPLES = "examples"


@dataclass(slots=True)
class SourceRows:
    """All rows of a source, encoded.

    Attributes:
        report: how they were read.
        rows: after dropping and splitting.
        examples: for each, which of the source's examples it came from.
        tally: what the task counted.
    """

    report: SourceReport
    rows: RowStore = field(default_factory=RowStore)
    examples: list[int] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)


def source_rows(source: Source, encoding: Encoding) -> SourceRows:
    """Reads and encodes a source, or takes what an earlier start kept; raises what `SourceReading.pairs` does."""
    files = _files(source)
    stamps = _stamps(files)
    digests = {str(file): file_sha256(file) for file in files}
    path = None
    if digests and (identity := encoding.encoder.identity()):
        path = cache_folder("rows") / f"{_key(source, encoding, identity, digests)}.safetensors"
    found = None if path is None else _read(path, source)
    if found is None:
        found = _encode(source, encoding)
        # A file that changed while it was read is not what its hash says.
        if path is not None and found.report.rows >= _WORTH and _stamps(files) == stamps:
            _keep(path, found)
    found.report.sha256 = {**digests, **found.report.sha256}
    encoding.encoder.tally.add(found.tally)
    return found


def _files(source: Source) -> list[Path]:
    named = local_files(source) or []
    found = [file for path in named for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [file for file in found if file.is_file()]


def _stamps(files: Sequence[Path]) -> list[tuple[int, int]]:
    return [(stat.st_mtime_ns, stat.st_size) for stat in (file.stat() for file in files)]


def _encode(source: Source, encoding: Encoding) -> SourceRows:
    tally = encoding.encoder.tally
    before = tally.taken()
    reading = SourceReading(source, encoding)
    found = SourceRows(reading.report)
    for example, (raw, rows) in enumerate(reading.pairs()):
        for row in rows:
            found.rows.append(row, raw)
            found.examples.append(example)
    found.tally = tally.taken()
    tally.add(before)
    return found


# What it is found by.


def _key(source: Source, encoding: Encoding, identity: str, digests: dict[str, str]) -> str:
    depends = {
        "source": source.model_dump(exclude={"weight"}),
        "files": digests,
        "limits": [encoding.limit, *((each.column, each.tokens) for each in encoding.encoder.limits)],
        "reading": [encoding.overflow, encoding.predicting, encoding.encoder.formats],
        "task": identity,
        "code": _code(),
        "libraries": {name: version(name) for name in _LIBRARIES},
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()


@functools.cache
def _code() -> str:
    """The hash of the code that reads and encodes rows."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(path for part in ("data", "tasks") for path in (root / part).rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


# On the disk: a safetensors file, whose metadata has the report.


def _read(path: Path, source: Source) -> SourceRows | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no dict)
            told = json.loads(file.metadata()["peftcli"])
        if told.pop("sha256") != _content(arrays, told):
            return None
        examples: list[int] = arrays.pop(_EXAMPLES).tolist()
        found = SourceRows(
            SourceReport(**{**told["report"], "weight": source.weight}),
            RowStore.of(arrays, told["origins"]),
            examples,
            Tally(**told["tally"]),
        )
        os.utime(path)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, struct.error):
        # It is not there, or another program spoiled it: rows are encoded again.
        return None
    if len(found.rows) != len(examples):
        return None
    found.report.kept = f"encoded at an earlier start, taken from {path.parent}"
    return found


def _keep(path: Path, found: SourceRows) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    arrays = found.rows.arrays()
    if arrays is None:
        return
    arrays[_EXAMPLES] = np.asarray(found.examples, dtype=np.int64)
    told: dict[str, Any] = {"report": asdict(found.report), "origins": found.rows.origins}
    told["tally"] = asdict(found.tally)
    told["sha256"] = _content(arrays, told)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_unfinished(path.parent)
        with replacing(path) as temporary:
            save_file(arrays, temporary, metadata={"peftcli": json.dumps(told)})
        _make_room(path.parent)
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        found.report.kept = f"its encoded rows could not be kept in {path.parent}: {reason}"


def _content(arrays: dict[str, NDArray[Any]], told: dict[str, Any]) -> str:
    """The hash of all that is kept: a file that was spoiled is not taken."""
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {len(arrays[name])}\0".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def _make_room(folder: Path) -> None:
    """Of what is kept the oldest goes, where it is more than `_MOST` bytes."""
    stats: list[tuple[float, int, Path]] = []
    for path in folder.glob("*.safetensors"):
        stat = path.stat()
        stats.append((stat.st_mtime, stat.st_size, path))
    total = sum(size for _, size, _ in stats)
    for _, size, path in sorted(stats)[:-1]:
        if total <= _MOST:
            return
        path.unlink(missing_ok=True)
        total -= size
