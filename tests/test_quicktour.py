"""PEFT's quicktour, as its documentation tells it, with `from peftcli import …` for `from peft import …`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    MT5Config,
    MT5ForConditionalGeneration,
    OPTConfig,
    OPTForCausalLM,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from peftcli import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForSeq2SeqLM,
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model,
)
from tests.hub_server import HubServer

pytestmark = [
    # The Hub's HTTP library, while the Hub's client uploads.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    # Trainer's loader, on a machine without an accelerator.
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning"),
]

MT0_LARGE = {
    "vocab_size": 250112, "d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_decoder_layers": 24,
    "num_heads": 16, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
TINY = {
    "vocab_size": 64, "d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2,
    "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, "decoder_start_token_id": 0,
}  # fmt: skip


def mt0(sizes: dict[str, Any]) -> MT5ForConditionalGeneration:
    """A model of mt0's kind: a head of its own, and one embedding for encoder and decoder."""
    config = MT5Config(**sizes)
    config.tie_word_embeddings = False  # Transformers 5 ties them whatever its arguments say
    model = MT5ForConditionalGeneration(config)
    model.encoder.embed_tokens = model.decoder.embed_tokens = model.shared
    return model


def quicktour_config(**changes: Any) -> LoraConfig:
    fields = {
        "task_type": TaskType.SEQ_2_SEQ_LM, "inference_mode": False, "r": 8, "lora_alpha": 32, "lora_dropout": 0.1,
    }  # fmt: skip
    return LoraConfig(**fields | changes)


def test_the_printed_count_of_mt0_large_is_the_quicktour_s(capsys: pytest.CaptureFixture[str]):
    with torch.device("meta"):
        model = mt0(MT0_LARGE)
    model = get_peft_model(model, quicktour_config())
    model.print_trainable_parameters()
    assert capsys.readouterr().out == (
        "trainable params: 2,359,296 || all params: 1,231,940,608 || trainable%: 0.1915\n"
    )


def rows(count: int) -> Dataset:
    """Four numbers, and the same in reverse; a column that no model takes stands beside them."""
    torch.manual_seed(3)
    numbers = torch.randint(2, 64, (count, 4))
    return Dataset.from_dict(
        {
            "input_ids": numbers.tolist(),
            "attention_mask": torch.ones_like(numbers).tolist(),
            "labels": numbers.flip(1).tolist(),
            "sentence": ["…"] * count,
        }
    )


@pytest.mark.slow
def test_the_quicktour_from_training_to_the_hub_and_back(local_hub: HubServer, tmp_path: Path):
    torch.manual_seed(0)
    base = str(tmp_path / "base")
    mt0(TINY).save_pretrained(base)
    output = tmp_path / "your-name" / "mt0-tiny-lora"

    # Train.
    model = AutoModelForSeq2SeqLM.from_pretrained(base)
    model = get_peft_model(model, quicktour_config())
    training_args = TrainingArguments(
        output_dir=str(output),
        learning_rate=1e-2,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=32,
        num_train_epochs=3,
        weight_decay=0.01,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=training_args, train_dataset=rows(128), eval_dataset=rows(32))
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    best = trainer.evaluate()["eval_loss"]
    assert best == pytest.approx(min(losses), rel=1e-5)

    # Save.
    model.save_pretrained(output / "adapter")
    assert {path.name for path in (output / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    assert json.loads((output / "adapter" / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"

    # Push.
    model.push_to_hub("your-name/mt0-tiny-lora")
    assert set(local_hub.repositories["your-name/mt0-tiny-lora"].branches["main"][-1][1]) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }

    # Use.
    inputs = torch.tensor([[5, 6, 7, 8]])
    made = model.eval().generate(input_ids=inputs, max_new_tokens=4, do_sample=False)
    for source in (str(output / "adapter"), "your-name/mt0-tiny-lora"):
        loaded = AutoPeftModelForSeq2SeqLM.from_pretrained(source)
        assert torch.equal(loaded.generate(input_ids=inputs, max_new_tokens=4, do_sample=False), made)
    again = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), output / "adapter")
    assert torch.equal(again.generate(input_ids=inputs, max_new_tokens=4, do_sample=False), made)


def test_an_adapter_of_opt_350m_is_6_3_megabytes(tmp_path: Path):
    sizes = {"hidden_size": 1024, "word_embed_proj_dim": 512, "ffn_dim": 64, "num_hidden_layers": 24}
    base = OPTForCausalLM(OPTConfig(vocab_size=64, num_attention_heads=16, **sizes))
    model = get_peft_model(base, LoraConfig(r=16, task_type=TaskType.CAUSAL_LM))
    model.save_pretrained(tmp_path)
    assert round((tmp_path / "adapter_model.safetensors").stat().st_size / 1e6, 1) == 6.3


def test_a_causal_model_is_loaded_from_its_adapter_and_generates(tmp_path: Path):
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 16, "num_hidden_layers": 2}
    OPTForCausalLM(OPTConfig(vocab_size=64, num_attention_heads=2, **sizes)).save_pretrained(
        tmp_path / "base"
    )
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    config = LoraConfig(r=4, task_type=TaskType.CAUSAL_LM, init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "opt-lora")
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "opt-lora")
    inputs = {"input_ids": torch.tensor([[2, 9, 8]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    made = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert made.shape[1] > 3


def test_a_task_without_a_class_of_its_own_is_loaded_by_its_base_s_class(tmp_path: Path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **sizes)).save_pretrained(
        tmp_path / "base"
    )
    base = ViTForImageClassification.from_pretrained(tmp_path / "base")
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    model = get_peft_model(base, config).eval()
    model.save_pretrained(tmp_path / "vit-lora")
    loaded = AutoPeftModel.from_pretrained(tmp_path / "vit-lora")
    pixels = torch.rand(1, 3, 8, 8)
    assert torch.equal(loaded(pixel_values=pixels).logits, model(pixel_values=pixels).logits)
