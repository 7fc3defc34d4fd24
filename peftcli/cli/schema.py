"""`peftcli schema`: the recipe's JSON Schema."""

from __future__ import annotations


def schema() -> None:
    """Print the recipe's JSON Schema, for editors and other tools."""
    from peftcli.recipe.json_schema import schema_text

    print(schema_text(), end="")
