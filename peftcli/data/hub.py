"""Data sets that the `datasets` library keeps: folders of `save_to_disk`, and the Hub's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftcli.errors import DataError, HubError, did_you_mean
from peftcli.recipe.schema import Source


def is_saved(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` made the folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def read_saved(folder: Path, split: str | None) -> Iterator[dict[str, Any]]:
    """The rows of a folder made by `save_to_disk`.

    Raises:
        DataError: where the folder is damaged, or the split is not there or not named.
    """
    import datasets
    import pyarrow as pa

    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(f"the data set cannot be read: {error}", where=str(folder)) from None
    if isinstance(found, datasets.DatasetDict):
        found = _one_split(found, split, str(folder))
    elif split is not None:
        raise DataError(f"the data set has no splits; remove `split: {split}`", where=str(folder))
    yield from _named(found)


def read_hub(source: Source, *, streaming: bool) -> Iterator[dict[str, Any]]:
    """The rows of a data set on the Hub; code that the data set brings never runs.

    Raises:
        DataError: where there is no such data set, configuration, revision or split.
        HubError: where the Hub cannot be reached or refuses.
    """
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    where = source.path
    try:
        found = datasets.load_dataset(
            source.path, name=source.name, split=source.split, revision=source.revision, streaming=streaming
        )
        if source.split is None:
            found = _one_split(found, None, where)
        yield from _named(found)
    except datasets.exceptions.DatasetNotFoundError as error:
        advice = "check the spelling, or set HF_TOKEN where it is private; a local file needs its suffix"
        raise DataError(f"{_first_line(error)}; {advice}", where=where) from None
    except (ConnectionError, HfHubHTTPError, TimeoutError, OSError) as error:
        advice = "check the network (or HF_HUB_OFFLINE), or name a local file"
        raise HubError(
            f"the data set cannot be fetched: {_first_line(error)}; {advice}", where=where
        ) from None
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(_first_line(error), where=where) from None


def _named(rows: Any) -> Iterator[dict[str, Any]]:
    """The rows with their labels' names, where the data set knows what the numbers stand for."""
    import datasets

    names = {column: _names(feature) for column, feature in (rows.features or {}).items()}
    names = {column: each for column, each in names.items() if each}
    for column, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Audio | datasets.Image):
            # As it is stored: samples and pixels are read when a batch needs them.
            rows = rows.cast_column(column, type(feature)(decode=False))
    for row in rows:
        yield row | {column: _name(row[column], each) for column, each in names.items()}


def _names(feature: Any) -> list[str]:
    """What a column's numbers, or those in its lists, stand for; nothing where they are just numbers."""
    import datasets

    inner = getattr(feature, "feature", feature)
    return list(inner.names) if isinstance(inner, datasets.ClassLabel) else []


def _name(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_name(each, names) for each in value]
    # -1 is how data sets write that a label is not known.
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def _one_split(splits: Any, split: str | None, where: str) -> Any:
    names = list(splits)
    if split is None and len(names) == 1:
        return splits[names[0]]
    if split is None:
        raise DataError(
            f"the data set has several splits; set `split` to one of: {', '.join(names)}", where=where
        )
    if split not in names:
        raise DataError(f"no split '{split}'; {did_you_mean(split, names)}", where=where)
    return splits[split]


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
