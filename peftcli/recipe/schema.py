"""The recipe: what one YAML file says, checked.

Every default of a run stands here, in training.py or in a method's config.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from peftcli.recipe.training import Training

TaskName = Literal[
    "CAUSAL_LM",
    "SEQ_2_SEQ_LM",
    "SEQ_CLS",
    "TOKEN_CLS",
    "QUESTION_ANS",
    "FEATURE_EXTRACTION",
    "IMAGE_CLS",
    "SEMANTIC_SEG",
    "SPEECH_SEQ_2_SEQ_LM",
    "TEXT_TO_IMAGE",
]


class Strict(BaseModel):
    """Unknown keys are errors; a recipe, once read, does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Source(Strict):
    """Where rows come from, and how they are to be read."""

    path: Text = Field(description="a file, a glob, a folder of datasets.save_to_disk, or a Hub data set id")
    split: str | None = Field(
        None, description="for Hub data sets and save_to_disk folders with several splits"
    )
    name: str | None = Field(None, description="the Hub data set's configuration")
    revision: str | None = Field(None, description="the Hub data set's revision")
    type: str | None = Field(None, description="the rows' format; guessed from the columns when absent")
    columns: dict[str, str] | None = Field(None, description="the format's column: the file's column")
    weight: float = Field(
        1.0, gt=0, le=10_000, description="1.0: every row once an epoch; 0.5: half of them; 2.0: each twice"
    )


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


def _eval_form(value: Any) -> str:
    """Which of `eval`'s two forms a value was meant as, so that its errors speak of that one."""
    return "sources" if isinstance(value, dict | list) else "fraction"


Text = Annotated[str, Field(min_length=1)]
Sources = Annotated[list[Source], BeforeValidator(_as_list), Field(min_length=1)]


class Data(Strict):
    """Which rows to train on, and which of their tokens."""

    train: Sources = Field(description="a source, or a list of sources")
    eval: (
        Annotated[
            Annotated[Sources, Tag("sources")] | Annotated[float, Field(gt=0, lt=1), Tag("fraction")],
            Discriminator(_eval_form),
        ]
        | None
    ) = Field(None, description="sources, or a fraction of train, split by training.seed")
    max_length: int | None = Field(None, ge=1, description="in tokens; default: what the model can take")
    overflow: Literal["error", "truncate", "drop", "split"] = Field(
        "error", description="what to do with rows longer than max_length (split: text only)"
    )
    loss_on: Literal["completion", "assistant", "all"] | None = Field(
        None, description="default: completion where the format has one, assistant for chat, all for text"
    )
    packing: bool = Field(
        False, description="several rows in one sequence, which never attend to one another"
    )
    chat_template: str | None = Field(
        None, description="a Jinja template or its file; default: the tokenizer's"
    )
    system_prompt: str | None = Field(None, description="put before chats that have no system message")
    source_prefix: str | None = Field(None, description="put before every prompt or source text")
    streaming: bool = Field(False, description="read rows as they are needed; needs training.max_steps")


class Recipe(Strict):
    """One run."""

    base_model: Text = Field(description="a Hub id, a folder, a .gguf file, or package://IMPORT_NAME/FILE")
    base_model_id: str | None = Field(None, description="base_model_name_or_path in adapter_config.json")
    revision: str | None = Field(None, description="the base's revision on the Hub")
    trust_remote_code: bool = Field(False, description="run Python code that the base's repository brings")
    task_type: TaskName = Field(description="what the model is trained to do")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="the type of the frozen base's weights"
    )
    attn_implementation: str | None = Field(
        None, description="as Transformers': sdpa, eager, flash_attention_2, …"
    )
    quantization: dict[str, Any] | None = Field(None, description="fields of transformers.BitsAndBytesConfig")
    task: dict[str, Any] = Field({}, description="options of the task_type, where it has any")
    adapter: dict[str, Any] = Field(description="fields of adapter_config.json for the peft_type")
    data: Data = Field(description="the rows, and which of their tokens to train on")
    training: Training = Field(description="how to train: TrainingArguments' names")
    gates: dict[str, str] | None = Field(
        None, description="metric: '< 1.2', checked after the last evaluation"
    )
