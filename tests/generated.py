"""Writes what is generated: README's tables and command help, and the recipe's JSON Schema.

    python tests/generated.py            # rewrite
    python tests/generated.py --check    # exit 1 and name what is stale

A generated part of README.md stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
import yaml
from typer.main import get_command

from peftcli import registry
from peftcli.cli.app import app
from peftcli.recipe.adapter import WRITTEN
from peftcli.recipe.json_schema import schema_text
from peftcli.recipe.schema import Data, Recipe, Source
from peftcli.recipe.tasks import OPTIONS
from peftcli.recipe.training import OLDER, REFUSED, Training

ROOT = Path(__file__).parent.parent
PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def plain(value: Any) -> str:
    """A default as one would write it in YAML."""
    value = value.value if isinstance(value, Enum) else value
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()


def fields_table(model: Any) -> str:
    """A section's keys with defaults and meanings."""
    rows = [
        (
            f"`{name}`",
            "required" if field.is_required() else f"`{plain(field.default)}`",
            field.description or "",
        )
        for name, field in model.model_fields.items()
    ]
    return table(("key", "default", "meaning"), rows)


def adapter_table() -> str:
    """The fields of every method's config: LoRA's at once, the others' on demand."""
    parts = []
    for name in registry.METHODS:
        config = registry.resolve(registry.METHODS, name, what="peft_type")
        rows = [
            (f"`{field.name}`", f"`{plain(default_of(field))}`", field.metadata["help"])
            for field in dataclasses.fields(config)
            if "help" in field.metadata and field.name not in WRITTEN
        ]
        fields = table(("field", "default", "meaning"), rows)
        if name == "LORA":
            parts.append(f"`peft_type: {name}`\n\n{fields}")
        else:
            parts.append(
                f"<details><summary><code>peft_type: {name}</code></summary>\n\n{fields}\n\n</details>"
            )
    return "\n\n".join(parts)


def methods_table() -> str:
    """Every method, with its config class and what it does."""
    rows = []
    for name in registry.METHODS:
        config = registry.resolve(registry.METHODS, name, what="peft_type")
        rows.append((f"`{name}`", f"`{config.__name__}`", config.__doc__.split("\n")[0]))
    return table(("peft_type", "class", "what it does"), rows)


def tasks_table() -> str:
    """Every task, with its formats and options, and the built-in recipe to start from."""
    rows = []
    for name, where in registry.TASKS.items():
        options = OPTIONS[name]
        module = import_module(where.partition(":")[0])
        what = (module.__doc__ or "").split("\n")[0].partition(": ")[2]
        formats = " ".join(f"`{each}`" for each in options.FORMATS)
        own = " ".join(f"`{each}`" for each in options.model_fields) or "none"
        rows.append((f"`{name}`", what.rstrip("."), formats, own, f"`{options.STARTER or 'quickstart'}`"))
    return table(("task_type", "what it learns", "formats", "options (`task`)", "recipe"), rows)


def formats_table() -> str:
    """Every format, with the columns that its rows have."""
    rows = []
    for where in registry.FORMATS.values():
        lines = (import_module(where.partition(":")[0]).__doc__ or "").split("\n")
        name, _, columns = lines[0].partition(": ")
        rows.append((name, columns.rstrip(".")))
    return table(("format", "columns of a row"), rows)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """A dataclass field's default, whichever way it was declared."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def commands() -> str:
    """Every command with its arguments and options."""
    group: Any = get_command(app)
    context = typer.Context(group, info_name="peftcli")
    parts = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        rows = [
            (f"`{usage(parameter)}`", getattr(parameter, "help", "") or "") for parameter in command.params
        ]
        rows = [row for row in rows if row[0] != "`--help`"]
        help_line = (command.help or "").split("\n")[0]
        parts.append(
            f"**`peftcli {name}`** {help_line}\n\n" + (table(("argument", "meaning"), rows) if rows else "")
        )
    return "\n\n".join(part.rstrip() for part in parts)


def usage(parameter: Any) -> str:
    """An argument as one types it."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name).strip("[]").upper()
    return ", ".join([*parameter.opts, *parameter.secondary_opts])


def recipe_list() -> str:
    """The built-in recipes, each with its first comment."""
    rows = []
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        rows.append((f"`{path.stem}`", first.removeprefix("# ")))
    return table(("recipe", "what it does"), rows)


def measured() -> str:
    """What `make bench` last measured of training, over the peers'."""
    found = json.loads((ROOT / "benchmarks" / "measured.json").read_text(encoding="utf-8"))
    rows = []
    for name, each in found["medians"].items():
        rate = each["tokens_per_second"]
        rows.append(
            (
                name,
                f"{rate:.0f}",
                f"{rate / found['floor']:.0%}",
                f"{each['peak_memory_bytes'] / 1e9:.1f}",
                f"{each['seconds_to_first_step']:.1f}",
            )
        )
    machine = found["machine"]
    where = f"On {machine['cores']} cores, {machine['processor']}, PyTorch {machine['torch']}"
    header = (
        "",
        "useful tokens/s",
        "of what the products alone allow",
        "peak memory, GB",
        "s to the first step",
    )
    return f"{where}:\n\n{table(header, rows)}"


def quickstart() -> str:
    """The quickstart's recipe as it stands."""
    return "```yaml\n" + (ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8") + "```"


PARTS: dict[str, Callable[[], str]] = {
    "quickstart": quickstart,
    "commands": commands,
    "recipe": lambda: fields_table(Recipe),
    "data": lambda: fields_table(Data),
    "source": lambda: fields_table(Source),
    "adapter": adapter_table,
    "methods": methods_table,
    "tasks": tasks_table,
    "formats": formats_table,
    "training": lambda: fields_table(Training),
    "refused": lambda: table(("field", "why"), [(f"`{name}`", why) for name, why in sorted(REFUSED.items())]),
    "older": lambda: table(
        ("older name", "today's"), [(f"`{old}`", f"`{new}`") for old, new in OLDER.items()]
    ),
    "recipes": recipe_list,
    "measured": measured,
}


def readme() -> str:
    """README.md with its generated parts made anew."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return PART.sub(lambda match: f"{match[1]}{PARTS[match[2]]()}\n{match[3]}", text)


def main() -> int:
    """Rewrites or checks both files; the exit status."""
    stale = []
    for path, made in (
        (ROOT / "README.md", readme()),
        (ROOT / "recipes" / "recipe.schema.json", schema_text()),
    ):
        if not path.exists() or path.read_text(encoding="utf-8") != made:
            stale.append(path.relative_to(ROOT))
            if "--check" not in sys.argv:
                path.write_text(made, encoding="utf-8")
    if "--check" in sys.argv and stale:
        print(f"stale: {', '.join(map(str, stale))}; run `make generated`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
