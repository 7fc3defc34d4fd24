"""`peftcli schema`: the recipe's JSON Schema on standard output."""

import json
from pathlib import Path


def test_the_schema_is_printed_as_it_is_committed(peftcli):
    done = peftcli("schema", check=0)
    assert done.stderr == ""
    committed = Path(__file__).parents[2] / "recipes" / "recipe.schema.json"
    assert done.stdout == committed.read_text(encoding="utf-8")
    assert json.loads(done.stdout)["$schema"].endswith("2020-12/schema")
