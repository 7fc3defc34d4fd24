"""Laws of SPEECH_SEQ_2_SEQ_LM: what Whisper is trained on is what Transformers trains it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import soundfile
import torch
from transformers import AutoModelForSpeechSeq2Seq

from peftcli import LoraConfig, get_peft_model
from peftcli.data.audio import sound
from peftcli.data.example import Spoken
from peftcli.data.prepare import prepare
from peftcli.errors import DataError, ModelError, RecipeError
from peftcli.tasks.speech import SpeechRecognition
from tests.bases import tiny_bert, tiny_whisper, whisper_tokenizer
from tests.data.writers import write_jsonl
from tests.tasks.tones import recipe_of, sung, write_songs


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("whisper"))


def write_base(folder: Path, **settings: Any) -> Path:
    from transformers import WhisperFeatureExtractor, WhisperProcessor

    tokenizer = whisper_tokenizer()
    model = tiny_whisper(tokenizer, **settings)
    model.save_pretrained(folder)
    bins, seconds = model.config.num_mel_bins, model.config.max_source_positions // 50
    extractor = WhisperFeatureExtractor(feature_size=bins, chunk_length=seconds)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder


def task_of(base: Path, **sections: Any) -> SpeechRecognition:
    from peftcli.models.load import load_config, resolve_base

    found = resolve_base(str(base), say=lambda _: None)
    processor = SpeechRecognition.load_processor(found, say=lambda _: None)
    return SpeechRecognition(recipe_of(base, **sections), processor, load_config(found))


def model_of(base: Path) -> Any:
    return AutoModelForSpeechSeq2Seq.from_pretrained(base).eval()


def examples() -> list[Spoken]:
    said = {"c d": ["do", "re"], "e": ["mi"], "f g a": ["fa", "so", "la"]}
    return [
        Spoken(sound({"array": sung(words), "sampling_rate": 16_000}), text) for text, words in said.items()
    ]


def batch_of(task: SpeechRecognition) -> Any:
    return task.collate([row for (row,) in task.encode(examples())])


def test_the_loss_is_the_models_own(base: Path) -> None:
    task, model = task_of(base), model_of(base).double()
    batch = batch_of(task)
    total, count = task.loss(model, batch)
    own = model(input_features=batch["input_features"].double(), labels=batch["labels"]).loss
    assert count == (batch["labels"] != -100).sum()
    torch.testing.assert_close(total / count, own, rtol=1e-10, atol=0)


def test_a_target_is_language_task_text_and_end_and_the_start_is_the_decoders(base: Path) -> None:
    task = task_of(base, task={"language": "german", "task": "translate"})
    tokenizer = task.processor.tokenizer
    (row,) = task.encode(examples()[:1])[0]
    assert tokenizer.convert_ids_to_tokens(row["labels"]) == [
        "<|de|>", "<|translate|>", "<|notimestamps|>", "c", "Ġ", "d", "<|endoftext|>"
    ]  # fmt: skip


def test_an_adapter_is_one_of_peft_with_the_same_outputs(base: Path, tmp_path: Path) -> None:
    task = task_of(base)
    model = get_peft_model(model_of(base), LoraConfig(r=2))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter.data, std=0.3)
    model.save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(model_of(base), tmp_path).eval()
    batch = batch_of(task)
    ours, _ = task.loss(model.eval(), batch)
    found, _ = task.loss(theirs, batch)
    torch.testing.assert_close(ours, found)
    assert sorted(model.peft_config["default"].target_modules) == ["q_proj", "v_proj"]


def test_what_is_heard_is_masked_in_training_as_the_config_says(tmp_path: Path) -> None:
    base = write_base(tmp_path, apply_spec_augment=True, mask_time_prob=0.9, mask_time_length=2, init_std=0.3)
    task, model = task_of(base), model_of(base)
    batch = batch_of(task)
    assert any("SpecAugment" in note for note in task.notes())
    plain = task.loss(model.eval(), batch)[0]
    model.train()
    assert not torch.isclose(task.loss(model, batch)[0], plain, rtol=1e-3)
    torch.testing.assert_close(task.loss(model.eval(), batch)[0], plain)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_recording_of_any_rate_and_number_of_channels_is_heard_alike(
    rate: int, channels: int, base: Path, tmp_path: Path
) -> None:
    task = task_of(base)
    samples = sung(["do", "re", "mi"], rate)
    soundfile.write(tmp_path / "a.flac", np.stack([samples] * channels, axis=1), rate)
    heard = sound(str(tmp_path / "a.flac")).samples(16_000)
    plain = sung(["do", "re", "mi"])
    assert len(heard) == len(plain)
    assert np.abs(heard - plain).max() < 0.01
    task.encode([Spoken(sound(str(tmp_path / "a.flac")), "c d e")])
    assert len([note for note in task.notes() if "resampled" in note]) == (rate != 16_000)
    assert len([note for note in task.notes() if "averaged" in note]) == (channels > 1)


def test_a_file_its_bytes_and_its_samples_are_the_same_recording(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, sung(["do"]), 16_000, subtype="FLOAT")
    ways = [
        str(path), {"bytes": path.read_bytes(), "path": None}, {"path": str(path)},
        {"array": sung(["do"]).tolist(), "sampling_rate": 16_000},
    ]  # fmt: skip
    for value in ways:
        np.testing.assert_allclose(sound(value).samples(16_000), sung(["do"]), atol=1e-7)


def prepared(base: Path, path: Path, **data: Any) -> Any:
    task = task_of(base, data=data)
    return prepare(
        recipe_of(base, data={"train": {"path": str(path)}, **data}).data,
        encoder=task.encoder(),
        seed=0,
        model_max_length=task.max_input(),
    )


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """Rows of 0.2 s and of 1.6 s, for a window of 1 s."""
    for name, words in (("short", ["do"]), ("long", ["do", "re"] * 4)):
        soundfile.write(tmp_path / f"{name}.wav", sung(words), 16_000)
    rows = [{"audio": f"{name}.wav", "text": "c"} for name in ("short", "long")]
    return write_jsonl(tmp_path / "rows.jsonl", rows)


def test_a_recording_longer_than_the_window_is_an_error_cut_or_left_out(base: Path, long: Path) -> None:
    with pytest.raises(DataError, match=r"1,600 ms of audio.*1,000"):
        prepared(base, long)
    assert len(prepared(base, long, overflow="drop").train) == 1
    cut = prepared(base, long, overflow="truncate").train
    assert [len(row["audio"]) for row in cut] == [200, 1000]
    assert len(cut[1]["audio"].samples(16_000)) == 16_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b"no sound at all", "cannot be read"),
        (b"", "cannot be read"),
        (
            b"RIFF\xff\xff\xff\x7fWAVEfmt \x10\0\0\0\x01\0\x01\0\x80>\0\0\0}\0\0\x02\0\x10\0data\0\0\0\0",
            "no samples",
        ),
    ],
)
def test_a_recording_that_cannot_be_heard_is_named_with_its_row(
    content: bytes | None, message: str, base: Path, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "good.wav", sung(["do"]), 16_000)
    if content is not None:
        (tmp_path / "bad.wav").write_bytes(content)
    rows = [{"audio": f"{name}.wav", "text": "c"} for name in ("good", "bad")]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=message) as caught:
        prepared(base, path)
    assert "rows.jsonl" in str(caught.value.where)
    assert "2" in str(caught.value.where)
    assert "bad.wav" in caught.value.message


def test_a_head_that_claims_more_than_the_file_has_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, sung(["do"]), 16_000)
    content = bytearray(path.read_bytes())
    content[40:44] = (2**31 - 2).to_bytes(4, "little")
    path.write_bytes(content)
    assert len(sound(str(path)).samples(16_000)) == 3200


def test_a_language_that_does_not_fit_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no language 'germam'; did you mean 'german'"):
        task_of(base, task={"language": "germam"})
    with pytest.raises(RecipeError, match="say which is spoken"):
        task_of(base, task={}).check_model(model_of(base))
    english = write_base(tmp_path, multilingual=False)
    with pytest.raises(RecipeError, match="knows English only"):
        task_of(english).check_model(model_of(english))


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    tiny_bert().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a bert, and SPEECH_SEQ_2_SEQ_LM trains whisper only"):
        task_of(tmp_path)


def test_error_rates_are_those_of_all_rows_together(base: Path) -> None:
    found = task_of(base).score([("c d", "c d"), ("c", "e f")])
    assert found == {"wer": 0.5, "cer": 0.5}


def test_songs_are_read_from_files_beside_their_rows(base: Path, tmp_path: Path) -> None:
    path = write_songs(tmp_path, "songs", 3, seed=1, rate=8_000)
    rows = prepared(base, path).train
    assert len(rows) == 3
    assert all(len(row["audio"]) in (400, 600, 800) for row in rows)
