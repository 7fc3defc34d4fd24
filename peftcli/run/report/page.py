"""The page: one HTML file that needs nothing else, with no script in it, and none let in.

What comes from runs' folders is text (see markup.py), and a content security policy that knows the page's one
style sheet by its hash stands behind that.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from peftcli import __version__
from peftcli.run.report import details, overview, progress
from peftcli.run.report.facts import Runs
from peftcli.run.report.markup import Markup, escape, join, tag
from peftcli.run.report.samples import Samples

Part = tuple[str, Markup]  # its heading and what stands below; nothing below, no part


def page(runs: Runs, samples: Samples) -> str:
    """The whole report."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"
    first: list[Part] = [
        ("Summary", overview.summary(runs)),
        ("Gates", overview.gates(runs)),
        ("Results", overview.results(runs)),
    ]
    rest: list[Part] = [
        ("Curves", progress.curves(runs)),
        ("Samples", details.side_by_side(samples)),
        ("What differs", details.differing(runs)),
        ("Recipe", details.recipe(runs)),
        ("Data", details.data(runs)),
        ("Environment", details.environment(runs)),
    ]
    links = (tag("li", tag("a", name, href=f"#{_id(name)}")) for name, content in first + rest if content)
    sections = tag("div", *_sections(first), class_="overview"), *_sections(rest)
    head = tag("header", tag("h1", title), tag("nav", tag("ul", *links), aria_label="Sections"))
    foot = tag("footer", tag("p", f"Written by peftcli {__version__} from what the runs left."))
    return _document(title, join([head, tag("main", *sections), foot], "\n"))


def _sections(parts: Sequence[Part]) -> list[Markup]:
    return [
        tag("section", tag("h2", name, id=_id(name)), content, aria_labelledby=_id(name))
        for name, content in parts
        if content
    ]


def _document(title: str, body: Markup) -> str:
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)} · peftcli report</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _id(name: str) -> str:
    return name.lower().replace(" ", "-")
