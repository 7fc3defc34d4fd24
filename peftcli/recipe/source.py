"""YAML that remembers its lines: a recipe's plain values, and where in the file each of them stands.

Scalars are read as YAML 1.2 reads them, so `no` is text, `1e-3` is a number and a date is text; what each
then means is the schema's to say. Anchors, aliases and merge keys work within a budget of values and depth,
so a small file cannot grow into a large one. Tags other than YAML's own plain ones are refused: a recipe
runs no code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from peftcli.errors import Problem, RecipeError, nearest

KeyPath = tuple[str | int, ...]

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_VALUES = 50_000

_STR, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_MAP, _SEQ = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"
_NULL, _BOOL = "tag:yaml.org,2002:null", "tag:yaml.org,2002:bool"
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"

# YAML 1.2's core schema, with the digit groups of 1.1 (`1_000`): (tag, pattern, first characters).
_SCALARS = (
    (_NULL, re.compile(r"(?:~|null|Null|NULL|)\Z"), [*"~nN", ""]),
    (_BOOL, re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), [*"tTfF"]),
    (_INT, re.compile(r"[-+]?[0-9][0-9_]*\Z|0x[0-9a-fA-F]+\Z|0o[0-7]+\Z"), [*"-+0123456789"]),
    (
        _FLOAT,
        re.compile(
            r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z"
            r"|[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z"
        ),
        [*"-+.0123456789"],
    ),
    (_MERGE, re.compile(r"<<\Z"), ["<"]),
)


class _Loader(yaml.SafeLoader):
    """Only its composer is used: it gives nodes with marks, and constructs nothing."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]  # the stub calls it an instance's

    depth = 0  # of the node that is being composed

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Composes one node; refuses deep nesting before Python's own stack runs out."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=self.get_mark()
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else, so every reader reads the same."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {  # type: ignore[misc]  # the stub calls it an instance's
        first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML writes these line breaks as they are, and then reads them as a space: only escapes survive.
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar(_STR, text, style=style)


_Dumper.add_representer(str, _text_node)
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


@dataclass(slots=True)
class Document:
    """A recipe's values with their places, and what is already known to be wrong with them."""

    name: str
    values: dict[str, Any]
    places: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def where(self, path: KeyPath) -> str:
        """`file:line:column` of the key at `path`, or of the nearest key around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return self.name

    def add(self, path: KeyPath, message: str) -> None:
        """Notes a problem of the key at `path`."""
        self.problems.append(Problem(self.where(path), dotted(path), message))


def dotted(path: KeyPath) -> str:
    """`data.train.0.path`: a key path as `--set` takes it."""
    return ".".join(map(str, path))


def read_document(path: Path) -> Document:
    """Reads a recipe file.

    Raises:
        RecipeError: where there is no such file, or it is not one YAML mapping in UTF-8.
    """
    name = str(path)
    values, places, problems = parse(_text(path), name)
    document = Document(name, {}, places, problems)
    if not isinstance(values, dict):
        what = "it is empty" if values is None else f"it holds {kind(values)}"
        raise RecipeError(
            f"a recipe is a mapping of keys to values, but {what}; `peftcli init` writes one", where=name
        )
    document.values = values
    return document


def parse(text: str, name: str) -> tuple[Any, dict[KeyPath, str], list[Problem]]:
    """The plain value that YAML `text` holds, the place of each key, and the problems that leave it readable.

    Raises:
        RecipeError: where the text is not YAML, or grows beyond the budget.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise RecipeError(
            f"not valid YAML: {_explain(error)}", where=_mark(name, error.problem_mark)
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"not valid YAML: the character U+{ord(text[error.position]):04X} is not allowed; remove it"
        raise RecipeError(message, where=f"{name}:{line}") from None
    builder = _Builder(name)
    return builder.build(root, ()) if root is not None else None, builder.places, builder.problems


def scalar(text: str) -> Any:
    """What one plain scalar means: a number, true, false, null, or the text itself.

    Raises:
        ValueError: for text that is not Unicode, or a number of thousands of digits.
    """
    tag = next((tag for tag, pattern, _ in _SCALARS if tag != _MERGE and pattern.match(text)), _STR)
    return _SCALAR_VALUES[tag](text)


def to_yaml(values: dict[str, Any]) -> str:
    """YAML text that `read_document` (and any other YAML reader) reads back as the same values."""
    dumped: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31)
    return dumped


def kind(value: Any) -> str:
    """What a value is, in words: for messages."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "a mapping",
    }
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(f"there is no such file{_beside(path)}", where=str(path)) from None
    except IsADirectoryError:
        raise RecipeError("this is a folder; name the recipe's file", where=str(path)) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(f"cannot be read: {reason}", where=str(path)) from None
    if len(content) > MAX_BYTES:
        raise RecipeError(
            f"larger than {MAX_BYTES:,} bytes, which no recipe is; is it a data file?", where=str(path)
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"not UTF-8: byte 0x{content[error.start]:02X} on this line; save the file as UTF-8"
        raise RecipeError(message, where=f"{path}:{line}") from None


def _beside(path: Path) -> str:
    """A hint: the files beside it that are named alike."""
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix in {".yaml", ".yml"}]
    except OSError:
        return "; `peftcli init --output FILE` writes a recipe"
    close = nearest(path.name, names, limit=1)
    return (
        f"; did you mean '{path.with_name(close[0])}'?"
        if close
        else "; `peftcli init --output FILE` writes a recipe"
    )


def _mark(name: str, mark: yaml.Mark | None) -> str:
    return name if mark is None else f"{name}:{mark.line + 1}:{mark.column + 1}"


def _explain(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "it cannot be parsed"
    if "'\\t'" in problem:
        return "a tab; indent with spaces"
    if "mapping values are not allowed here" in problem:
        return "a second ': ' on this line; put text that holds one in quotes"
    if "expected <block end>" in problem or "could not find expected ':'" in problem:
        return f"{problem}; look at the indentation and the colons of this line and the one before"
    return f"{problem} ({error.context})" if error.context else problem


class _Builder:
    """Plain values from nodes, with the place of every key, within the budget."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.places: dict[KeyPath, str] = {}
        self.problems: list[Problem] = []
        self.count = self.depth = 0

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.count += 1
        self.depth += 1
        if self.count > MAX_VALUES:
            message = f"more than {MAX_VALUES:,} values once its aliases are expanded; write it without them"
            raise RecipeError(message, where=self.mark(node))
        if self.depth > MAX_DEPTH:
            message = f"nested deeper than {MAX_DEPTH} levels, perhaps within itself"
            raise RecipeError(message, where=self.mark(node))
        value = self.plain(node, path)
        self.depth -= 1
        return value

    def plain(self, node: yaml.Node, path: KeyPath) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == _MAP:
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _SEQ:
            return self.sequence(node, path)
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALAR_VALUES:
            return self.scalar(node, path)
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        self.add(node, path, f"the tag {tag} is not allowed; a recipe holds plain values only")
        return None

    def mark(self, node: yaml.Node) -> str:
        return _mark(self.name, node.start_mark)

    def add(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(self.mark(node), dotted(path), message))

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        try:
            return _SCALAR_VALUES[node.tag](node.value)
        except (ValueError, KeyError) as error:  # also an explicit tag that its text does not fit
            self.add(node, path, f"this value cannot be read ({error}); write it plainly")
            return None

    def sequence(self, node: yaml.SequenceNode, path: KeyPath) -> list[Any]:
        items = []
        for index, item in enumerate(node.value):
            self.places.setdefault((*path, index), self.mark(item))
            items.append(self.build(item, (*path, index)))
        return items

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        own: dict[str, str] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                continue
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _STR:
                self.add(key_node, path, "a key must be text; put it in quotes")
                continue
            if (key := self.scalar(key_node, path)) is None:
                continue
            if key in own:
                self.add(key_node, (*path, key), f"given twice, first at {own[key]}; keep one")
                continue
            own[key] = self.mark(key_node)
            self.places.setdefault((*path, key), own[key])
            values[key] = self.build(value_node, (*path, key))
        for merged in self.merges(node, path):
            values = {**merged, **values}
        return values

    def merges(self, node: yaml.MappingNode, path: KeyPath) -> Iterator[dict[str, Any]]:
        """The mappings that `<<` brings in, first come first kept."""
        for key_node, value_node in node.value:
            if key_node.tag != _MERGE:
                continue
            sources = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            for source in sources:
                merged = self.build(source, path)
                if isinstance(merged, dict):
                    yield merged
                else:
                    self.add(key_node, path, "<< takes a mapping or a list of mappings")


def _words(text: str) -> str:
    if "\0" in text:
        raise ValueError("it holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it is not valid Unicode text") from None
    return text


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _whole(text: str) -> int:
    return int(text, 0) if text[:2] in {"0x", "0o"} else int(text)


def _real(text: str) -> float:
    lowered = text.lower()
    if lowered.endswith(".inf"):
        return -math.inf if text.startswith("-") else math.inf
    return math.nan if lowered == ".nan" else float(text)


_SCALAR_VALUES: dict[str, Any] = {
    _STR: _words,
    _NULL: lambda _: None,
    _BOOL: _boolean,
    _INT: _whole,
    _FLOAT: _real,
}
