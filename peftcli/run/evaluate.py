"""`peftcli eval`: an adapter and its bare base on the same rows, side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from peftcli.data.prepare import MapRows, prepare, prepare_rows
from peftcli.data.report import SourceReport
from peftcli.errors import RecipeError
from peftcli.run.adapted import Adapted, open_adapted
from peftcli.run.answers import EvalAnswer
from peftcli.run.verdicts import Verdict, judge, verdicts
from peftcli.train.evaluate import evaluate as run_evaluation
from peftcli.train.failures import memory_errors
from peftcli.train.feed import eval_batches
from peftcli.train.log import finite
from peftcli.train.process import training_process

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same metrics with the adapter and without it; `gates` says which hold with it."""

    folder: Path
    rows: int
    adapter: dict[str, float]
    base: dict[str, float]
    gates: dict[str, bool]
    judged: list[Verdict]
    base_name: str
    is_first: bool

    def as_dict(self) -> EvalAnswer:
        """For `--json`."""
        return {
            "adapter_dir": str(self.folder),
            "rows": self.rows,
            "adapter": {name: finite(value) for name, value in self.adapter.items()},
            "base": {name: finite(value) for name, value in self.base.items()},
            "gates": self.gates,
        }

    def lines(self) -> list[str]:
        """A table for a person: metric, base, adapter."""
        names = list(self.adapter)
        cells = [("metric", "base", "adapter")]
        cells += [(name, f"{self.base[name]:.4g}", f"{self.adapter[name]:.4g}") for name in names]
        widths = [max(len(row[column]) for row in cells) for column in range(3)]
        return [
            f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}".rstrip() for row in cells
        ]


def evaluate(
    folder: Path,
    data: str | None,
    *,
    batch_size: int | None = None,
    trust_remote_code: bool = False,
    say: Say,
) -> Comparison:
    """Evaluates the adapter in `folder` and its base.

    Args:
        folder: a run's.
        data: a file (or Hub data set) to evaluate on; None for the rows that the run held out.
        batch_size: rows at once; None for the recipe's.
        trust_remote_code: run code that the base brings, where the run did.
        say: gets a line for what the user should know.

    Raises:
        PeftcliError: of the kind that says what went wrong.
    """
    adapted = open_adapted(folder, say, trust_remote_code=trust_remote_code)
    rows = _rows(adapted, data, say)
    settings = adapted.recipe.training.model_copy(
        update={
            "report_to": None,
            **({"per_device_eval_batch_size": batch_size} if batch_size is not None else {}),
        }
    )
    with (
        memory_errors(settings, evaluating="--batch-size"),
        training_process(settings, folder) as accelerator,
    ):
        if not hasattr(adapted.model.get_base_model(), "hf_device_map"):
            adapted.model.to(accelerator.device)
        found = _measure(adapted, rows, settings, accelerator)
        with adapted.model.disable_adapter():
            bare = _measure(adapted, rows, settings, accelerator)
        is_first = bool(accelerator.is_main_process)
    gates, name = adapted.recipe.gates, adapted.recipe.base_model_id or adapted.recipe.base_model
    return Comparison(
        folder, len(rows), found, bare, judge(gates, found), verdicts(gates, found), name, is_first
    )


def _measure(adapted: Adapted, rows: MapRows, settings: Any, accelerator: Accelerator) -> dict[str, float]:
    batches = eval_batches(
        rows,
        adapted.task,
        settings,
        processes=accelerator.num_processes,
        rank=accelerator.process_index,
        pin=False,
    )
    return run_evaluation(adapted.model, adapted.task, batches, accelerator, settings)


def _rows(adapted: Adapted, data: str | None, say: Say) -> MapRows:
    """The rows to evaluate on, encoded as the held-out ones were in training."""
    recipe, task = adapted.recipe, adapted.task
    rows: MapRows
    if data is not None:
        rows, reports = prepare_rows(
            [adapted.source(data)], recipe.data, encoder=task.encoder(), model_max_length=task.max_input()
        )
    elif recipe.data.eval is None:
        raise RecipeError(f"{adapted.run.folder} held out no rows (data.eval); name some with --data")
    elif isinstance(recipe.data.eval, float):
        prepared = prepare(
            recipe.data,
            encoder=task.encoder(),
            seed=recipe.training.seed,
            model_max_length=task.max_input(),
        )
        assert prepared.eval is not None
        rows, reports = prepared.eval, prepared.report.train_sources
    else:
        rows, reports = prepare_rows(
            recipe.data.eval, recipe.data, encoder=task.encoder(), model_max_length=task.max_input()
        )
    for report in reports:
        say(report.line())
        if losses := report.losses():
            say(losses)
    if data is None:
        _compare_files(adapted, reports, say)
    return rows


def _compare_files(adapted: Adapted, reports: list[SourceReport], say: Say) -> None:
    """Says where the rows are no longer those of the run."""
    before: dict[str, str] = {}
    for part in ("train_sources", "eval_sources"):
        for source in adapted.lock.data.get(part) or []:
            before |= source.get("sha256") or {}
    for report in reports:
        for name, digest in report.sha256.items():
            if before.get(name, digest) != digest:
                say(f"warning: {name} has changed since the adapter was trained: these are other rows")
