"""Where rows go that a command answers: what `--output` may not be."""

from __future__ import annotations

from pathlib import Path

from peftcli.errors import RecipeError


def check_output(output: Path, rows: Path) -> None:
    """Refuses a file in a folder that is not there, or the very file that the rows come from."""
    if not output.parent.is_dir():
        raise RecipeError(f"--output: there is no folder {str(output.parent)!r}; make it first")
    if rows.resolve() == output.resolve():
        raise RecipeError("--output is the file of --input; name another, since it would be overwritten")
