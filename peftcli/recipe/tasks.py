"""What a recipe may say for each task: its own options (`task`), and which settings of `data` have a meaning.

No torch here: a recipe is checked before anything heavy is imported.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

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
    DRAWS: ClassVar[bool] = False
    """Whether `peftcli generate` writes a picture with it, and no text."""
    METHODS: ClassVar[tuple[str, ...]] = ()
    """The only methods that it can be trained with; all where there are none."""
    ADAPTER: ClassVar[dict[str, str]] = {}
    """Fields of the adapter that it cannot have, and why."""
    MEANINGLESS: ClassVar[tuple[str, ...]] = ()
    """Settings outside `data` that have no meaning for it."""
    STARTER: ClassVar[str] = ""
    """The built-in recipe that `peftcli init --task` starts from."""
    FILES: ClassVar[tuple[str, ...]] = ()
    """What the task writes beside the adapter and its processor."""


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

    FILES: ClassVar[tuple[str, ...]] = ("labels.json",)
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
    FILES: ClassVar[tuple[str, ...]] = ("pooling.json",)
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


class QuestionAnsweringOptions(TaskOptions):
    """QUESTION_ANS."""

    FORMATS: ClassVar[tuple[str, ...]] = ("qa",)
    # A context that is longer than the limit is read in windows: no row is.
    DATA: ClassVar[tuple[str, ...]] = ("max_length",)
    STARTER: ClassVar[str] = "question-answering"
    FILES: ClassVar[tuple[str, ...]] = ("answers.json",)
    doc_stride: int | None = Field(
        None,
        ge=0,
        description="how many tokens of a long context a window shares with the one before; default: 128, at most half "
        "of what a window has for the context",
    )
    max_answer_length: int = Field(30, ge=1, description="of a predicted answer, in tokens")
    handle_impossible_answer: bool | None = Field(
        None,
        description="whether a prediction may be that the context has no answer; default: whether a question of the "
        "training rows has none",
    )


_FILE = "diffusers' file of LoRA weights has no place for it"


class TextToImageOptions(TaskOptions):
    """TEXT_TO_IMAGE; names are those of diffusers' train_dreambooth_lora.py."""

    FORMATS: ClassVar[tuple[str, ...]] = ("caption",)
    FILES: ClassVar[tuple[str, ...]] = ("pytorch_lora_weights.safetensors",)
    DRAWS: ClassVar[bool] = True
    DATA: ClassVar[tuple[str, ...]] = ("overflow",)
    METHODS: ClassVar[tuple[str, ...]] = ("LORA",)
    ADAPTER: ClassVar[dict[str, str]] = dict.fromkeys(
        ("bias", "use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters"),
        _FILE,
    )
    MEANINGLESS: ClassVar[tuple[str, ...]] = (
        "attn_implementation",
        "quantization",
        "trust_remote_code",
        "training.label_smoothing_factor",
        "training.neftune_noise_alpha",
    )
    STARTER: ClassVar[str] = "text-to-image"
    instance_prompt: str | None = Field(
        None, min_length=1, description="the prompt of rows without a text: a photo of sks dog"
    )
    resolution: int | None = Field(
        None, ge=8, le=4096, description="pixels a side of what is trained and drawn; default: the base's"
    )
    train_text_encoder: bool = Field(False, description="adapt the text encoder's attention, too")
    with_prior_preservation: bool = Field(
        False, description="train class images beside the rows, so that their class keeps its look"
    )
    class_prompt: str | None = Field(None, min_length=1, description="what class images show: a photo of dog")
    class_data_dir: str | None = Field(
        None,
        min_length=1,
        description="the folder of class images; where it has too few, the base draws more into it",
    )
    num_class_images: int = Field(100, ge=1, description="how many class images there must be")
    sample_batch_size: int = Field(4, ge=1, description="class images that the base draws at once")
    prior_loss_weight: float = Field(1.0, ge=0, allow_inf_nan=False, description="of class images' loss")

    @model_validator(mode="after")
    def _prior(self) -> Self:
        """Class images are said as a whole or not at all."""
        if self.with_prior_preservation:
            lacking = [name for name in ("class_prompt", "class_data_dir") if getattr(self, name) is None]
            if lacking:
                raise PydanticCustomError("task", f"with_prior_preservation needs {' and '.join(lacking)}")
        elif given := sorted({*_PRIOR} & self.model_fields_set):
            raise PydanticCustomError(
                "task", f"{given[0]} does nothing without with_prior_preservation: true"
            )
        return self


_PRIOR = ("class_prompt", "class_data_dir", "num_class_images", "sample_batch_size", "prior_loss_weight")


# task_type -> its options. A test holds this table and the registry's tasks together.
OPTIONS: dict[str, type[TaskOptions]] = {
    "CAUSAL_LM": CausalLMOptions,
    "SEQ_2_SEQ_LM": SequenceToSequenceOptions,
    "SEQ_CLS": SequenceClassificationOptions,
    "TOKEN_CLS": TokenClassificationOptions,
    "SPEECH_SEQ_2_SEQ_LM": SpeechOptions,
    "FEATURE_EXTRACTION": FeatureExtractionOptions,
    "QUESTION_ANS": QuestionAnsweringOptions,
    "TEXT_TO_IMAGE": TextToImageOptions,
    "IMAGE_CLS": ImageClassificationOptions,
    "SEMANTIC_SEG": SemanticSegmentationOptions,
}

# Every file that a task writes beside the adapter: it is pushed with it, and goes with the run.
TASK_FILES = tuple(sorted({name for options in OPTIONS.values() for name in options.FILES}))


def task_options(recipe: Recipe) -> TaskOptions:
    """The options that the recipe's `task` section says."""
    return OPTIONS[recipe.task_type].model_validate(recipe.task)
