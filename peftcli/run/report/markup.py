"""HTML that cannot be broken by what is put into it: text is escaped unless it was made by `tag` itself."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable

from peftcli.run.figures import figure
from peftcli.run.stream import visible

LONGEST = 2_000  # characters of one value


class Markup(str):
    """Markup made here; any other text is data."""

    __slots__ = ()


def escape(text: str) -> Markup:
    """Data as markup: control characters and halves of surrogate pairs are written out."""
    if isinstance(text, Markup):
        return text
    shown = visible(text).encode("utf-8", "backslashreplace").decode()
    return Markup(html.escape(shown))


def tag(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """An element. `class_` is the attribute `class`, `aria_label` is `aria-label`; None leaves one out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(parts: Iterable[str], separator: str = "") -> Markup:
    """Parts one after the other."""
    return Markup(escape(separator).join(map(escape, parts)))


def note(text: str) -> Markup:
    """A remark below something."""
    return tag("p", text, class_="note")


def shown(value: object) -> str:
    """Any plain value as text: numbers as people read them, a dash for nothing."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return figure(value)
    return shortened(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def shortened(text: str, longest: int = LONGEST) -> str:
    """The beginning of a long text, with its length."""
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"
