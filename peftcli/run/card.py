"""README.md of a run: the model card that the Hub shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from peftcli.files import write_text
from peftcli.recipe.schema import Recipe

CARD_NAME = "README.md"


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card tells beside the recipe.

    Attributes:
        base_id: the base's name as others know it.
        parameters: (trainable, all).
        data_lines: the data report, as it was printed.
        metrics: name to value, after the last evaluation.
        steps: optimizer steps made.
        seconds: of training.
        pipeline_tag: the Hub's name for what the model does.
        usage: the command that uses the adapter.
        python: the Python that does.
        library: what the adapter is read with.
    """

    base_id: str
    parameters: tuple[int, int]
    data_lines: list[str]
    metrics: Mapping[str, float]
    steps: int
    seconds: float
    pipeline_tag: str | None
    usage: str
    python: str
    library: str


def _front_matter(recipe: Recipe, facts: CardFacts) -> str:
    base_id = facts.base_id
    method = str(recipe.adapter["peft_type"]).lower()
    fields: dict[str, Any] = {
        "library_name": facts.library,
        "base_model": base_id,
        "tags": [facts.library, method, "peftcli", f"base_model:adapter:{base_id}"],
    }
    if facts.pipeline_tag is not None:
        fields["pipeline_tag"] = facts.pipeline_tag
    return "---\n" + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True) + "---\n"


def _table(metrics: Mapping[str, float]) -> str:
    rows = [f"| {name} | {value:.6g} |" for name, value in metrics.items()]
    return "\n".join(["| metric | value |", "| --- | --- |", *rows])


def _usage(facts: CardFacts) -> str:
    return f"""\
```sh
{facts.usage}
```

```python
{facts.python}
```"""


def model_card(recipe: Recipe, facts: CardFacts) -> str:
    """The card's Markdown, front matter included."""
    trainable, total = facts.parameters
    title = Path(recipe.training.output_dir).name
    summary = (
        f"A {recipe.adapter['peft_type']} adapter for `{facts.base_id}` ({recipe.task_type}), trained with peftcli "
        f"in {facts.steps} steps ({facts.seconds:.0f} s). {trainable:,} of {total:,} parameters were trained "
        f"({100 * trainable / total:.2f} %)."
    )
    written = recipe.model_dump(mode="json", exclude_unset=True)
    parts = [
        _front_matter(recipe, facts),
        f"# {title}\n",
        summary + "\n",
        "## Results\n",
        _table(facts.metrics) + "\n",
        "![training and evaluation loss](loss.svg)\n",
        "## Data\n",
        "```text\n" + "\n".join(facts.data_lines) + "\n```\n",
        "## How to use it\n",
        _usage(facts) + "\n",
        "## Recipe\n",
        "What is not here has its default; `recipe.lock.yaml` has every value.\n",
        "```yaml\n" + yaml.safe_dump(written, sort_keys=False, allow_unicode=True) + "```",
    ]
    return "\n".join(parts) + "\n"


def write_card(folder: Path, recipe: Recipe, facts: CardFacts) -> None:
    """Writes the card into a run's folder."""
    write_text(folder / CARD_NAME, model_card(recipe, facts))
