"""How a format declares its columns, and how a file's columns are matched with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peftcli.data.example import Example, Label
from peftcli.errors import DataError, RecipeError, did_you_mean, nearest
from peftcli.registry import FORMATS, resolve

# Names that other data sets give to the columns of these formats: only for the hint where no format fits.
_ASKING = {"completion": ("prompt", "completion"), "pairs": ("source", "target")}
_PROMPTS = ("question", "query", "source", "input", "problem", "instruction")
_COMPLETIONS = ("answer", "response", "target", "output", "solution", "label", "category")


@dataclass(frozen=True, slots=True)
class Format:
    """A data source's `type`: its columns, and the function that makes an example of a row.

    `alternatives` are sets of required columns, of which a row needs one; a row may have the `optional` ones.
    Rows to predict on need not have the `targets`, and may have the columns of `predicting` in place of all others.
    Columns of `files` may name a file, from the folder that the row stands in.
    """

    name: str
    alternatives: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Example]
    targets: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    predicting: tuple[str, ...] = ()

    def __call__(self, row: Mapping[str, Any]) -> Example:
        """The example that the row (already under the format's column names) holds."""
        return self.read(row)

    def without_targets(self) -> Format:
        """The same for rows to predict on: what is to be predicted may be there or not, and is not read."""
        needed = [tuple(n for n in names if n not in self.targets) for names in self.alternatives]
        if self.predicting:
            needed.append(self.predicting)

        def read(row: Mapping[str, Any]) -> Example:
            return self.read({name: value for name, value in row.items() if name not in self.targets})

        return replace(self, alternatives=tuple(needed), optional=self.optional + self.targets, read=read)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that the format knows."""
        return tuple(dict.fromkeys(name for names in self.alternatives for name in names)) + self.optional

    def shape(self) -> str:
        """The columns as the documentation writes them: `{prompt, completion}`."""
        optional = [f"{name}?" for name in self.optional]
        return " or ".join("{" + ", ".join([*names, *optional]) + "}" for names in self.alternatives)


def row_format(
    *alternatives: tuple[str, ...],
    optional: tuple[str, ...] = (),
    targets: tuple[str, ...] = (),
    files: tuple[str, ...] = (),
    predicting: tuple[str, ...] = (),
) -> Callable[[Callable[[Mapping[str, Any]], Example]], Format]:
    """Declare the columns of a format's function; the format gets the function's name."""

    def declare(read: Callable[[Mapping[str, Any]], Example]) -> Format:
        return Format(read.__name__, alternatives, optional, read, targets, files, predicting)

    return declare


def string(value: Any, what: str) -> str:
    """`value` where it is text that can be encoded; `what` names it in the error.

    Raises:
        DataError: for anything but a string, and for lone surrogates, which no tokenizer takes.
    """
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise DataError(f"{what} must be text, not {kind}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{what} holds half a surrogate pair at character {error.start + 1}") from None
    return value


def label(value: Any, what: str) -> Label:
    """`value` where it is a label, a name or a whole number; `what` names it in the error.

    Raises:
        DataError: for anything else.
    """
    if isinstance(value, str) and value:
        return string(value, what)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    kind = "null" if value is None else "empty" if value == "" else type(value).__name__
    raise DataError(f"{what} must be a name or a number, not {kind}")


def labels(value: Any) -> Label | list[Label] | float:
    """A column `label`: a label, a list of labels, or a number with a point.

    Raises:
        DataError: for anything else.
    """
    if isinstance(value, list):
        return [label(each, f"label[{at}]") for at, each in enumerate(value)]
    return value if isinstance(value, float) else label(value, "label")


def load_format(name: str) -> Format:
    """The registered format `name`."""
    found = resolve(FORMATS, name, what="data type")
    assert isinstance(found, Format)
    return found


def check_renames(found: Format, renames: Mapping[str, str] | None) -> None:
    """Refuse renames of columns that the format does not have.

    Raises:
        RecipeError: naming the columns that it has.
    """
    for name in renames or ():
        if name not in found.columns:
            hint = did_you_mean(name, found.columns)
            raise RecipeError(f"columns: type '{found.name}' has no column '{name}'; {hint}")


def select(found: Format, renames: Mapping[str, str] | None, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row's values under the format's own column names; columns the format does not know are left out.

    Raises:
        DataError: where a required column is missing.
    """
    renames = renames or {}
    for name, column in renames.items():
        if column not in row and name not in found.optional:
            raise DataError(_missing(column, found, row))
    names = {name: renames.get(name, name) for name in found.columns}
    for required in found.alternatives:
        if all(names[name] in row for name in required):
            wanted = (*required, *found.optional)
            return {name: row[names[name]] for name in wanted if names[name] in row}
    first = next(names[name] for name in found.alternatives[0] if names[name] not in row)
    raise DataError(_missing(first, found, row))


def unused(found: Format, renames: Mapping[str, str] | None, row: Mapping[str, Any]) -> list[str]:
    """The row's columns that the format leaves out."""
    renames = renames or {}
    used = {renames.get(name, name) for name in select(found, renames, row)}
    return [column for column in row if column not in used]


def guess_format(
    names: Iterable[str], row: Mapping[str, Any], renames: Mapping[str, str] | None
) -> tuple[Format, list[str]]:
    """The one format among `names` whose columns the row has, and those columns.

    Raises:
        DataError: where none fits or several do, with the formats and their columns.
    """
    renames = renames or {}
    for name, column in renames.items():
        if column not in row:
            hint = did_you_mean(column, [str(each) for each in row])
            raise DataError(f"columns.{name}: no column '{column}'; {hint}")
    formats = [load_format(name) for name in names]
    fitting: list[tuple[Format, list[str]]] = []
    for each in formats:
        for required in each.alternatives:
            columns = [renames.get(name, name) for name in required]
            if all(column in row for column in columns) and set(renames) <= set(each.columns):
                fitting.append((each, columns))
                break
    if len(fitting) == 1:
        return fitting[0]
    listed = "; ".join(f"{each.name} {each.shape()}" for each in formats)
    if fitting:
        several = " and ".join(each.name for each, _ in fitting)
        raise DataError(f"the columns {_list(row)} fit {several}; set `type` to the one that is meant")
    raise DataError(
        f"no format has the columns {_list(row)}{_suggestion(row, formats)}; set `type` and `columns` ({listed})"
    )


def _suggestion(row: Mapping[str, Any], formats: Iterable[Format]) -> str:
    prompt = next((name for name in _PROMPTS if name in row), None)
    completion = next((name for name in _COMPLETIONS if name in row), None)
    name = next((each.name for each in formats if each.name in _ASKING), None)
    if prompt is None or completion is None or name is None:
        return ""
    one, other = _ASKING[name]
    return f"; perhaps `type: {name}, columns: {{{one}: {prompt}, {other}: {completion}}}`"


def _missing(column: str, found: Format, row: Mapping[str, Any]) -> str:
    close = nearest(column, [str(name) for name in row], limit=1)
    hint = f"did you mean '{close[0]}'?" if close else "rename with `columns: {" + _example(found) + "}`"
    return f"no column '{column}' for type '{found.name}' {found.shape()}; the row has {_list(row)}; {hint}"


def _example(found: Format) -> str:
    return ", ".join(f"{name}: YOUR_COLUMN" for name in found.alternatives[0])


def _list(row: Mapping[str, Any] | Sequence[str]) -> str:
    names = [str(name) for name in row]
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return shown or "(none)"
