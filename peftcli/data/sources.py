"""From what a recipe names as a source to its rows, each with the place it came from."""

from __future__ import annotations

import errno
import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli.data import hub
from peftcli.data.readers import READERS, Reader, place
from peftcli.errors import DataError, RecipeError, did_you_mean, nearest
from peftcli.recipe.schema import Source

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as its file has it, with its place: the row's number from 1, and its line where it has one."""

    origin: str
    number: int
    line: int | None
    columns: dict[str, Any]
    marks: int = 0
    """Lines before it that mark documents, and are no rows."""

    @property
    def where(self) -> str:
        """The place as errors name it."""
        return place(self.origin, self.number, self.line)


def read_rows(source: Source, *, streaming: bool = False) -> Iterator[RawRow]:
    """The source's rows, in order, one at a time.

    Raises:
        DataError: where the source is not there, is empty, or a row of it cannot be read.
        RecipeError: where it has settings that its kind does not know.
        HubError: where the Hub cannot be reached.
    """
    files = local_files(source)
    if files is None:
        yield from _numbered(source, hub.read_hub(source, streaming=streaming))
    elif files[0].is_dir():
        _refuse(source, ("name", "revision"), "a folder of save_to_disk")
        yield from _numbered(source, hub.read_saved(files[0], source.split))
    else:
        _refuse(source, ("split", "name", "revision"), "a local file")
        yield from _read_files(source, files, streaming=streaming)


def _numbered(source: Source, rows: Iterator[dict[str, Any]]) -> Iterator[RawRow]:
    number = 0
    for number, row in enumerate(rows, start=1):
        yield RawRow(source.path, number, None, row)
    if not number:
        raise DataError("the data set is empty", where=source.path)


def _read_files(source: Source, files: list[Path], *, streaming: bool) -> Iterator[RawRow]:
    found = False
    for file in files:
        reader = _reader(file)
        if streaming and file.suffix == ".json":
            raise RecipeError(f"data.streaming: {file} can only be read as a whole; write it as .jsonl")
        try:
            for number, (line, columns, *marks) in enumerate(reader(file), start=1):
                found = True
                yield RawRow(str(file), number, line, columns, *marks)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", where=str(file)) from None
    if not found:
        raise DataError("there is no row in it", where=source.path)


def local_files(source: Source) -> list[Path] | None:
    """The files (or the one save_to_disk folder) that the source names; None for a Hub data set.

    Raises:
        DataError: where there is no such file, a glob matches nothing, or a folder is no data set.
    """
    path = Path(source.path).expanduser()
    try:
        path.stat()
    except OSError as error:
        # Such a name cannot even be asked for, and the questions below would not hear why.
        if error.errno == errno.ENAMETOOLONG:
            raise DataError("the name is longer than any path", where=source.path[:60]) from None
    except ValueError:
        raise DataError("no path holds a NUL character", where=source.path) from None
    if path.is_file():
        return [path]
    if path.is_dir():
        if not hub.is_saved(path):
            advice = f"name its files with a glob, like {path}/*.jsonl"
            raise DataError(f"the folder was not made by datasets.save_to_disk; {advice}", where=source.path)
        return [path]
    if glob.has_magic(source.path):
        # Path.glob takes neither absolute patterns nor `**` inside a name.
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207
        files = sorted(match for match in matches if match.is_file())
        if not files:
            raise DataError("no file matches", where=source.path)
        return files
    if _may_be_hub_id(source.path):
        return None
    raise DataError(f"no such file{_near(path)}", where=source.path)


def _may_be_hub_id(name: str) -> bool:
    owner, slash, _ = name.partition("/")
    looks_local = (
        name.startswith((".", "~")) or Path(name).suffix in READERS or (slash and Path(owner).is_dir())
    )
    return not looks_local and _HUB_ID.fullmatch(name) is not None


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent}"
    close = nearest(path.name, [entry.name for entry in path.parent.iterdir()], limit=1)
    return f"; did you mean '{path.parent / close[0]}'?" if close else f" in {path.parent.absolute()}"


def _reader(file: Path) -> Reader:
    if file.suffix not in READERS:
        hint = did_you_mean(file.suffix, READERS)
        raise DataError(f"unknown kind of file '{file.suffix}'; {hint}", where=str(file))
    return READERS[file.suffix]


def _refuse(source: Source, keys: tuple[str, ...], kind: str) -> None:
    for key in keys:
        if getattr(source, key) is not None:
            raise RecipeError(f"data: {source.path} is {kind}, for which `{key}` has no meaning; remove it")
