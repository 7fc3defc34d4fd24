"""What a recipe may say for each task: its own options (`task`), and which settings of `data` have a meaning.

No torch here: a recipe is checked before anything heavy is imported.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from peftcli.recipe.schema import Recipe, Strict

# What `data` says for every task that reads text.
TEXT = ("max_length", "overflow")
# What it says where text is written for a language model.
PROMPTS = ("source_prefix", "system_prompt", "chat_template", "loss_on", "packing")
# What it says for every task: where rows are.
ROWS = ("train", "eval", "streaming")


class TaskOptions(Strict):
    """A task without options of its own, over rows of text."""

    FORMATS: ClassVar[tuple[str, ...]]
    """The formats of rows that the task takes; a type is guessed among them."""
    DATA: ClassVar[tuple[str, ...]] = TEXT
    """The settings of `data` that have a meaning for it, beside those of every task."""
    GENERATES: ClassVar[bool] = False
    """Whether its evaluations can generate (`training.predict_with_generate`)."""
    STARTER: ClassVar[str] = ""
    """The built-in recipe that `peftcli init --task` starts from."""


class CausalLMOptions(TaskOptions):
    """CAUSAL_LM: what is trained of a text is said in `data`."""

    FORMATS: ClassVar[tuple[str, ...]] = ("text", "completion", "instruction", "chat")
    DATA: ClassVar[tuple[str, ...]] = (*TEXT, *PROMPTS)


class SequenceToSequenceOptions(TaskOptions):
    """SEQ_2_SEQ_LM."""

    FORMATS: ClassVar[tuple[str, ...]] = ("pairs",)
    DATA: ClassVar[tuple[str, ...]] = (*TEXT, "source_prefix")
    GENERATES: ClassVar[bool] = True
    STARTER: ClassVar[str] = "sequence-to-sequence"
    max_target_length: int | None = Field(
        None, ge=1, description="of a target, in tokens; default: what the model can take"
    )
    source_lang: str | None = Field(
        None, description="the sources' language, as tokenizers of mBART, M2M100 and NLLB name it: en_XX"
    )
    target_lang: str | None = Field(None, description="the targets' language")


Names = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class LabelOptions(TaskOptions):
    """A task with labels."""

    labels: Names | None = Field(
        None, description="the labels' names, in order; default: those of the training rows, sorted"
    )


class ClassificationOptions(LabelOptions):
    """A task whose rows have labels."""

    problem_type: (
        Literal["single_label_classification", "multi_label_classification", "regression"] | None
    ) = Field(None, description="default: what the labels of the training rows are: names, lists, or numbers")


class SequenceClassificationOptions(ClassificationOptions):
    """SEQ_CLS."""

    FORMATS: ClassVar[tuple[str, ...]] = ("classification",)
    STARTER: ClassVar[str] = "sequence-classification"


class ImageClassificationOptions(ClassificationOptions):
    """IMAGE_CLS."""

    FORMATS: ClassVar[tuple[str, ...]] = ("image",)
    DATA: ClassVar[tuple[str, ...]] = ()
    STARTER: ClassVar[str] = "image-classification"


class SemanticSegmentationOptions(TaskOptions):
    """SEMANTIC_SEG."""

    FORMATS: ClassVar[tuple[str, ...]] = ("segmentation",)
    DATA: ClassVar[tuple[str, ...]] = ()
    STARTER: ClassVar[str] = "semantic-segmentation"
    labels: Names | None = Field(
        None,
        description="the classes' names, in the order of their numbers; default: those of a base that segments "
        "already, else the numbers in the training masks",
    )
    reduce_labels: bool = Field(
        False, description="in masks 0 is no class, and the classes count from 1, as in ADE20K's"
    )


class TokenClassificationOptions(LabelOptions):
    """TOKEN_CLS."""

    FORMATS: ClassVar[tuple[str, ...]] = ("tokens",)
    STARTER: ClassVar[str] = "token-classification"
    label_all_tokens: bool = Field(
        False, description="train every piece of a word, not the first alone; after B- the pieces are I-"
    )


class SpeechOptions(TaskOptions):
    """SPEECH_SEQ_2_SEQ_LM."""

    FORMATS: ClassVar[tuple[str, ...]] = ("audio",)
    # A recording is as long as the model's window; what is longer overflows.
    DATA: ClassVar[tuple[str, ...]] = ("overflow",)
    GENERATES: ClassVar[bool] = True
    STARTER: ClassVar[str] = "speech-recognition"
    language: str | None = Field(
        None,
        min_length=1,
        description="what is spoken, as Whisper names it: en or english; not for English-only bases",
    )
    task: Literal["transcribe", "translate"] | None = Field(
        None, description="write what is said, or translate it to English; default: transcribe"
    )
    max_target_length: int | None = Field(
        None, ge=8, description="of a text, in tokens with the special ones; default: what the model can take"
    )


class FeatureExtractionOptions(TaskOptions):
    """FEATURE_EXTRACTION."""

    FORMATS: ClassVar[tuple[str, ...]] = ("similarity",)
    STARTER: ClassVar[str] = "feature-extraction"
    pooling: Literal["mean", "cls", "last"] | None = Field(
        None,
        description="which of a text's tokens its embedding is: their mean, the first, the last; default: what the "
        "base's 1_Pooling/config.json says, else mean",
    )
    normalize: bool = Field(
        True, description="predict embeddings of length 1; similarity is their cosine always"
    )
    temperature: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="cosines are divided by it where a positive is told from the other texts of its batch; default: "
        "0.05",
    )


# task_type -> its options. A test holds this table and the registry's tasks together.
OPTIONS: dict[str, type[TaskOptions]] = {
    "CAUSAL_LM": CausalLMOptions,
    "SEQ_2_SEQ_LM": SequenceToSequenceOptions,
    "SEQ_CLS": SequenceClassificationOptions,
    "TOKEN_CLS": TokenClassificationOptions,
    "SPEECH_SEQ_2_SEQ_LM": SpeechOptions,
    "FEATURE_EXTRACTION": FeatureExtractionOptions,
    "IMAGE_CLS": ImageClassificationOptions,
    "SEMANTIC_SEG": SemanticSegmentationOptions,
}


def task_options(recipe: Recipe) -> TaskOptions:
    """The options that the recipe's `task` section says."""
    return OPTIONS[recipe.task_type].model_validate(recipe.task)
