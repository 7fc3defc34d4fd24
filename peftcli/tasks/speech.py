"""SPEECH_SEQ_2_SEQ_LM: what is said in a recording, written down or translated to English, by Whisper.

A target begins with the tokens of its language and of what is to be done, without timestamps, as Whisper's own do:
Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022, arXiv:2212.04356. Shapes: B rows,
M mel bins, F frames of the model's window (30 s), T tokens of the target, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from peftcli.data.example import Example, Limit, Row, Spoken
from peftcli.data.overflow import effective_limit
from peftcli.data.tokens import IGNORED
from peftcli.errors import ModelError, RecipeError, did_you_mean
from peftcli.models.load import Base, load_config, load_processor
from peftcli.models.quiet import no_advice_on_whisper
from peftcli.recipe.schema import Recipe
from peftcli.recipe.tasks import SpeechOptions, task_options
from peftcli.tasks.base import Batch, Evaluated, Say, Sum, Task
from peftcli.tasks.generation import generated
from peftcli.tasks.measures import has_measure, measure, missing_measures
from peftcli.tasks.token_loss import summed_token_loss
from peftcli.tasks.unwrapped import unwrapped

_START = "<|startoftranscript|>"
# Whisper's own rule for bases that do not say it: English-only ones have a token less.
_MULTILINGUAL_VOCABULARY = 51_865


class SpeechRecognition(Task):
    """The task of writing down what is said."""

    task_type: ClassVar[str] = "SPEECH_SEQ_2_SEQ_LM"
    pipeline_tag: ClassVar[str | None] = "automatic-speech-recognition"
    counts_tokens: ClassVar[bool] = True

    def __init__(self, recipe: Recipe, processor: Any, config: Any = None) -> None:
        super().__init__(recipe, processor, config)
        options = task_options(recipe)
        assert isinstance(options, SpeechOptions)
        self._tokenizer = processor.tokenizer
        self._extractor = processor.feature_extractor
        self._language = options.language
        # What is to be done has a token only beside a language's.
        self._todo = options.task or ("transcribe" if options.language else None)
        self._max_target = options.max_target_length
        self._largest = -1
        self._averaged = self._resampled = 0
        self._set_prefix()

    def _set_prefix(self) -> None:
        """The tokens that a target begins with.

        Raises:
            RecipeError: the tokenizer does not know the language.
            ModelError: the tokenizer is none of Whisper's, or another base's.
        """
        tokenizer = self._tokenizer
        if not hasattr(tokenizer, "set_prefix_tokens"):
            raise ModelError(f"the base's tokenizer is a {type(tokenizer).__name__}, and none of Whisper's")
        if self._todo is not None and self._language is None:
            raise RecipeError("task.task: has a meaning with task.language only; set that too")
        code = None if self._language is None else _code(self._language)
        tokenizer.set_prefix_tokens(language=code, task=self._todo, predict_timestamps=False)
        begin = tokenizer.convert_ids_to_tokens(tokenizer.prefix_tokens)
        wanted = [_START, *(f"<|{each}|>" for each in (code, self._todo) if each), "<|notimestamps|>"]
        if begin != wanted:
            lacking = next(token for token, found in zip(wanted, begin, strict=True) if token != found)
            raise ModelError(f"the base's tokenizer has no token {lacking} where Whisper's have it")
        if self.config.decoder_start_token_id != tokenizer.prefix_tokens[0]:
            raise ModelError(
                f"the base's decoder starts with token {self.config.decoder_start_token_id}, and its tokenizer's "
                f"{_START} is {tokenizer.prefix_tokens[0]}: they do not belong together"
            )

    @staticmethod
    def auto_class() -> Any:
        """`AutoModelForSpeechSeq2Seq`."""
        from transformers import AutoModelForSpeechSeq2Seq

        return AutoModelForSpeechSeq2Seq

    @staticmethod
    def load_processor(base: Base, *, trust_remote_code: bool = False, say: Say) -> Any:
        """Whisper's tokenizer and feature extractor.

        Raises:
            ModelError: the base is of another architecture.
        """
        from transformers import WhisperProcessor

        del say
        # An adapter's folder holds the processor alone, of a base that was asked before.
        if not (Path(base.path) / "adapter_config.json").is_file():
            kind = load_config(base, trust_remote_code=trust_remote_code).model_type
            if kind != "whisper":
                raise ModelError(
                    f"base_model {base.name!r} is a {kind}, and SPEECH_SEQ_2_SEQ_LM trains whisper only; name one of "
                    "Whisper's, such as openai/whisper-small"
                )
        return load_processor(base, WhisperProcessor, trust_remote_code=trust_remote_code)

    # Rows.

    def max_input(self) -> int | None:
        """None: a recording has no tokens."""
        return None

    def encode(self, examples: Sequence[Example]) -> list[list[Row]]:
        """One row an example: `audio`, not read yet, and `labels` (T,), int32: language, task, text, end."""
        spoken = [example for example in examples if isinstance(example, Spoken)]
        rows: list[Row] = [{"audio": each.sound} for each in spoken]
        for each in spoken:
            self._averaged += each.sound.channels > 1
            self._resampled += each.sound.rate != self._extractor.sampling_rate
        said = [at for at, each in enumerate(spoken) if each.text is not None]
        if said:
            texts = [spoken[at].text for at in said]
            encoded = self._tokenizer(texts, truncation=False, verbose=False)["input_ids"]
            for at, ids in zip(said, encoded, strict=True):
                # The first token is what the decoder starts with, which the model puts before the labels itself.
                rows[at]["labels"] = np.asarray(ids[1:], dtype=np.int32)
                self._largest = max(self._largest, *ids)
        return [[row] for row in rows]

    def trained_tokens(self, row: Row) -> int:
        """All of the target's, with those of language and task, as Transformers has it."""
        return len(row["labels"])

    def limits(self) -> tuple[Limit, ...]:
        """The window that the model hears, and the target's length."""
        window = self._extractor.n_samples * 1000 // self._extractor.sampling_rate
        tokens = effective_limit(self._max_target, self.config.max_target_positions)
        heard = Limit(
            "audio",
            "audio",
            window,
            "the model's window of",
            lambda row, limit: {**row, "audio": row["audio"].cut(limit)},
            unit="ms of audio",
            advice="cut the recordings",
        )
        return heard, Limit("labels", "target", tokens, "task.max_target_length", self._cut_target)

    def _cut_target(self, row: Row, limit: int) -> Row:
        """A text that was cut does not end: there is no end to learn."""
        return {**row, "labels": row["labels"][:limit]}

    def notes(self) -> list[str]:
        """The language, and what is done to recordings."""
        found = [f"language {self._language}, to {self._todo}"] if self._language else []
        rate = self._extractor.sampling_rate
        if self._resampled:
            found.append(f"{_recordings(self._resampled)} resampled to {rate:,} Hz")
        if self._averaged:
            found.append(f"{_recordings(self._averaged)} of several channels averaged to one")
        if self._masks():
            found.append(
                "parts of what is heard are masked in training, as the base's config says (SpecAugment)"
            )
        return found

    def remarks(self) -> list[str]:
        """Metrics that cannot be computed."""
        wanted = {"jiwer": "wer and cer"}
        return missing_measures(wanted) if self.recipe.training.predict_with_generate else []

    def collate(self, rows: Sequence[Row]) -> dict[str, Any]:
        """`input_features` (B, M, F) and `attention_mask` (B, F); `labels` (B, T), -100 behind each row's last.

        Raises:
            DataError: a recording cannot be read any more.
        """
        rate = self._extractor.sampling_rate
        heard = self._extractor(
            [row["audio"].samples(rate) for row in rows],
            sampling_rate=rate,
            return_tensors="pt",
            return_attention_mask=True,
        )
        batch: dict[str, Any] = dict(heard)
        if "labels" in rows[0]:
            longest = max(len(row["labels"]) for row in rows)
            batch["labels"] = torch.full((len(rows), longest), IGNORED)
            for at, row in enumerate(rows):
                batch["labels"][at, : len(row["labels"])] = torch.as_tensor(row["labels"])
        return batch

    def _masks(self) -> bool:
        """Whether the model masks what it hears in training, which needs to know where recordings end."""
        config = self.config
        return bool(config.apply_spec_augment and (config.mask_time_prob or config.mask_feature_prob))

    def check_model(self, model: nn.Module) -> None:
        """Refuse a language that the base has no use for, or lacks, and a processor that is not the base's.

        Raises:
            RecipeError: naming `task.language`.
            ModelError: naming what does not fit.
        """
        base: Any = unwrapped(model)
        config, extractor = base.config, self._extractor
        self._check_language(base)
        sizes = (extractor.feature_size, extractor.nb_max_frames)
        wanted = (config.num_mel_bins, 2 * config.max_source_positions)
        if sizes != wanted:
            raise ModelError(
                f"the feature extractor gives {sizes[0]} x {sizes[1]:,} features, and the base takes {wanted[0]} x "
                f"{wanted[1]:,}: they do not belong together"
            )
        if self._largest >= config.vocab_size:
            raise ModelError(
                f"the tokenizer gives token {self._largest}, and the base knows {config.vocab_size}: they do not "
                "belong together"
            )

    def _check_language(self, base: Any) -> None:
        generation = base.generation_config
        multilingual = getattr(generation, "is_multilingual", None)
        if multilingual is None:
            multilingual = base.config.vocab_size >= _MULTILINGUAL_VOCABULARY
        if self._language is None:
            if multilingual:
                raise RecipeError(
                    "task.language: the base knows many; say which is spoken, e.g. `language: en`"
                )
            return
        if not multilingual:
            raise RecipeError(
                "task.language: the base knows English only, and takes no language; leave it out"
            )
        token = f"<|{_code(self._language)}|>"
        if token not in getattr(generation, "lang_to_id", {}) or not hasattr(generation, "task_to_id"):
            raise ModelError(
                f"the base's generation_config.json says no lang_to_id for {token} or no task_to_id, which Whisper "
                "needs to write: take that of the Whisper which the base was made from"
            )

    # Training, evaluation, prediction.

    def loss(self, model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> Sum:
        """The sum of the target tokens' losses, in float32 or better, and their number."""
        from transformers.models.whisper.modeling_whisper import shift_tokens_right

        base: Any = unwrapped(model)
        config = base.config
        labels: Tensor = batch["labels"]
        decoder = shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id)
        # Transformers masks in place.
        heard = {"input_features": batch["input_features"].to(base.dtype, copy=self._masks())}
        if self._masks():
            heard["attention_mask"] = batch["attention_mask"]
        outputs = model(**heard, decoder_input_ids=decoder, use_cache=False)
        total = summed_token_loss(
            outputs.logits.flatten(0, 1), labels.flatten(), label_smoothing=label_smoothing
        )
        return total, (labels != IGNORED).sum()

    def metrics(self, model: nn.Module, batch: Batch) -> Evaluated:
        """`loss`, and (generated, true) texts where the evaluation generates."""
        loss = self.loss(model, batch)
        if not self.recipe.training.predict_with_generate:
            return Evaluated({"loss": loss})
        labels = batch["labels"].where(batch["labels"] != IGNORED, self._tokenizer.pad_token_id)
        texts = zip(self._generated(model, batch), self._texts(labels), strict=True)
        return Evaluated({"loss": loss}, list(texts))

    def score(self, records: Sequence[Any]) -> dict[str, float]:
        """Jiwer's word and character error rate, of all rows together."""
        if not records or not has_measure("jiwer"):
            return {}
        jiwer = measure("jiwer")
        said, true = (list(column) for column in zip(*records, strict=True))
        return {"wer": float(jiwer.wer(true, said)), "cer": float(jiwer.cer(true, said))}

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """The `text`."""
        return [{"text": text} for text in self._generated(model, batch)]

    def _generated(self, model: nn.Module, batch: Batch) -> list[str]:
        base: Any = unwrapped(model)
        inputs = {"input_features": batch["input_features"].to(base.dtype), "return_timestamps": False}
        inputs["attention_mask"] = batch["attention_mask"]
        if self._language is not None:
            inputs |= {"language": self._language, "task": self._todo}
        with no_advice_on_whisper():
            tokens = generated(
                model,
                inputs,
                self._tokenizer,
                self.recipe.training,
                longest=self._max_target or base.config.max_target_positions,
            )
        return self._texts(tokens)

    def _texts(self, tokens: Tensor) -> list[str]:
        found = self._tokenizer.batch_decode(tokens.tolist(), skip_special_tokens=True)
        return [text.strip() for text in found]


def _code(language: str) -> str:
    """A language's code, which its token has.

    Raises:
        RecipeError: Whisper knows no such language.
    """
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    named, codes = language.lower(), TO_LANGUAGE_CODE.values()
    if named in TO_LANGUAGE_CODE:
        return str(TO_LANGUAGE_CODE[named])
    if named in codes:
        return named
    hint = did_you_mean(named, [*TO_LANGUAGE_CODE, *dict.fromkeys(codes)])
    raise RecipeError(f"task.language: Whisper knows no language {language!r}; {hint}")


def _recordings(count: int) -> str:
    return f"{count:,} recording{'s' * (count > 1)}"
