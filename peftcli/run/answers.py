"""What each command prints with `--json`: the types that its results are made with, and its JSON Schema.

A result's `as_dict` returns one of these types, so mypy keeps both alike; `peftcli schema COMMAND` prints the schema
that pydantic makes of the same types. Keys may be added in a later release; none is taken away.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import TypeAdapter

# Pydantic reads the standard library's own only from Python 3.12 on.
from typing_extensions import TypedDict

Metrics = dict[str, float | None]
Gates = dict[str, bool]


class TrainAnswer(TypedDict):
    """`train`: the run's outcome."""

    output_dir: str
    steps: int
    epoch: float
    train_loss: float
    metrics: Metrics
    best_checkpoint: str | None
    seconds: float
    tokens: int
    peak_memory_bytes: int
    trainable_parameters: int
    all_parameters: int
    adapter_bytes: int
    gates: Gates


class SmokeAnswer(TypedDict):
    """`train --smoke`."""

    ok: Literal[True]
    seconds: float
    train_loss: float
    eval_loss: float | None
    rows: int
    longest_row: int


class EvalAnswer(TypedDict):
    """`eval`: the adapter and its bare base on the same rows."""

    adapter_dir: str
    rows: int
    adapter: Metrics
    base: Metrics
    gates: Gates


class LayerAnswer(TypedDict):
    """A layer of an adapter."""

    name: str
    shape: tuple[int, int] | None
    rank: int | None
    norm: float | None
    norm_of: str


class InspectAnswer(TypedDict):
    """`inspect DIR`."""

    folder: str
    method: str | None
    task_type: str | None
    base_model: str | None
    revision: str | None
    peft_version: str | None
    settings: dict[str, Any]
    target_modules: list[str] | str | None
    targets: dict[str, int]
    ranks: dict[str, int]
    tensors: int
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    saved_whole: list[str]
    norm: float | None
    layers: list[LayerAnswer]
    not_finite: list[str]
    beside: dict[str, int]


class LayerDifferenceAnswer(TypedDict):
    """A layer of two adapters."""

    name: str
    norms: list[float | None]
    distance: float | None
    cosine: float | None


class FieldAnswer(TypedDict):
    """A field of adapter_config.json in both."""

    one: Any
    other: Any


class DifferenceAnswer(TypedDict):
    """`inspect DIR OTHER`."""

    one: InspectAnswer
    other: InspectAnswer
    same: bool
    fields: dict[str, FieldAnswer]
    only_in_one: list[str]
    only_in_other: list[str]
    distance: float | None
    cosine: float | None
    layers: list[LayerDifferenceAnswer]


class FileAnswer(TypedDict):
    """A file and its bytes."""

    path: str
    size: int


class DriftAnswer(TypedDict):
    """What `merge --verify` measured."""

    output: str
    largest_difference: float
    tolerance: float
    adapter_effect: float
    adapter_lost: bool
    dtype: str


class MergeAnswer(TypedDict):
    """`merge`."""

    output: str
    adapter: str
    base_model: str
    method: str
    dtype: str
    parameters: int
    bytes: int
    files: list[FileAnswer]
    verified: DriftAnswer | None


class PushAnswer(TypedDict):
    """`push`; with `--dry-run` there is no commit."""

    repo_id: str
    url: str | None
    commit: str | None
    files: list[FileAnswer]


class RunAnswer(TypedDict):
    """A run in a report."""

    folder: str
    finished: bool
    steps: int | None
    epoch: float | None
    loss: float | None
    metrics: dict[str, float]
    evaluated_at: int | None
    seconds: float
    tokens: int | None
    peak_memory_bytes: int | None
    adapter_bytes: int | None
    gates: Gates
    lines_passed_over: int


class SamplesAnswer(TypedDict):
    """How many of a file's answers are right, of those that have a right one."""

    exact: int
    expected: int


class ReportAnswer(TypedDict):
    """`report`."""

    report: str
    runs: list[RunAnswer]
    samples: dict[str, SamplesAnswer]


class BuiltInAnswer(TypedDict):
    """A built-in recipe."""

    name: str
    description: str


class BatchAnswer(TypedDict):
    """A batch that was rehearsed."""

    rows: int
    longest: int


class MemoryAnswer(TypedDict):
    """What a run will take of memory; bytes."""

    device: str
    parts: dict[str, int]
    training: int
    evaluation: int | None
    loading: int
    total: int
    available: int | None
    available_is: str | None
    fits: bool
    suggestions: list[str]
    batches: dict[str, BatchAnswer]


class _Checked(TypedDict):
    ok: Literal[True]
    recipe: dict[str, Any]


class CheckAnswer(_Checked, total=False):
    """`check`; `data` and `memory` with `--data`; None where there is no plan."""

    data: dict[str, Any]
    memory: MemoryAnswer | None


class FindingAnswer(TypedDict):
    """Something about an adapter that a program will not like."""

    severity: Literal["error", "warning"]
    where: str
    message: str
    advice: str


class LintAnswer(TypedDict):
    """`check DIR --target`."""

    ok: bool
    folder: str
    target: str
    findings: list[FindingAnswer]
    commands: list[str]


class CompletionAnswer(TypedDict):
    """An answer of `generate`, beside the columns of its row; `prompt` where it came from the command line."""

    generated_text: str
    tokens: int
    finish_reason: str


class PredictionAnswer(TypedDict):
    """A row of `predict`, beside its columns."""

    prediction: dict[str, Any]


class RowsAnswer(TypedDict):
    """`predict --output`."""

    output: str
    rows: int


class CompletionsAnswer(RowsAnswer):
    """`generate --output`."""

    cut: int


class PictureAnswer(TypedDict):
    """`generate --output` of an adapter that draws."""

    output: str
    prompt: str
    seed: int
    width: int
    height: int


ANSWERS: dict[str, Any] = {
    "check": CheckAnswer | LintAnswer,
    "train": TrainAnswer | SmokeAnswer,
    "eval": EvalAnswer,
    "predict": list[PredictionAnswer] | RowsAnswer,
    "generate": list[CompletionAnswer] | CompletionsAnswer | PictureAnswer,
    "merge": MergeAnswer,
    "push": PushAnswer,
    "inspect": InspectAnswer | DifferenceAnswer,
    "report": ReportAnswer,
    "recipes": list[BuiltInAnswer],
}


def answer_schema(command: str) -> dict[str, Any]:
    """The JSON Schema of what a command prints with `--json`."""
    return {
        **TypeAdapter(ANSWERS[command]).json_schema(),
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"What `peftcli {command} --json` prints",
    }


def answer_schema_text(command: str) -> str:
    """The same as text."""
    return json.dumps(answer_schema(command), indent=2) + "\n"
