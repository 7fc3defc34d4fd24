"""Other tools' names lead to ours."""

import pytest

from peftcli.recipe.adapter import known_fields
from peftcli.recipe.dialects import DIALECTS
from peftcli.recipe.hints import levels
from peftcli.recipe.training import OLDER, OWN, REFUSED, Training

KNOWN = levels(known_fields({"peft_type": "LORA"})[0])


@pytest.mark.parametrize(("name", "target"), [(name, entry[1]) for name, entry in DIALECTS.items()])
def test_every_name_leads_to_a_key_that_the_recipe_has(name, target):
    level, _, key = target.rpartition(".")
    # The fields of BitsAndBytesConfig are a table of their own.
    assert level == "quantization" or key in KNOWN[level]


@pytest.mark.parametrize("name", DIALECTS)
def test_no_name_of_ours_is_called_another_tool_s(name):
    assert name not in {*KNOWN[""], *KNOWN["data"], *KNOWN["training"], *KNOWN["data.train"]}
    assert name not in REFUSED


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora_rank=8", "LLaMA-Factory's name; here `adapter.r`"),
        ("adapter.rank=8", "torchtune's name; here `adapter.r`"),
        ("cutoff_len=8", "LLaMA-Factory's name; here `data.max_length`"),
        ("data.sequence_len=8", "axolotl's name; here `data.max_length`"),
        ("training.max_seq_length=8", "TRL's and Unsloth's name; here `data.max_length`"),
        ("training.micro_batch_size=8", "here `training.per_device_train_batch_size`"),
        ("num_epochs=8", "axolotl's name; here `training.num_train_epochs`"),
        ("lora_target_modules=all", "here `adapter.target_modules`"),
        ("val_set_size=0.1", "here data.eval, a fraction such as 0.1"),
        ("load_in_4bit=true", "here quantization: {load_in_4bit: true}"),
        ("sample_packing=true", "axolotl's name; here `data.packing`"),
        ("template=llama3", "the tokenizer's own template, or data.chat_template"),
    ],
)
def test_a_key_in_another_tool_s_dialect_is_told_ours(problems, override, message):
    (line,) = problems(override)
    assert message in line


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_field_of_training_arguments_is_refused_with_its_reason(problems, name):
    for override in (f"training.{name}=1", f"{name}=1"):
        (line,) = problems(override)
        assert f"TrainingArguments' `{name}` is refused: {REFUSED[name]}" in line


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("warmup_ratio=0.1", "warmup_steps", 0.1),
        ("warmup_ratio=0", "warmup_steps", 0),
        ("group_by_length=true", "train_sampling_strategy", "group_by_length"),
        ("group_by_length=no", "train_sampling_strategy", "random"),
        ("no_cuda=true", "use_cpu", True),
        ("evaluation_strategy=no", "eval_strategy", "no"),
        ("overwrite_output_dir=true", "overwrite_output_dir", True),
    ],
)
def test_an_older_name_keeps_its_meaning(read, override, name, value):
    assert getattr(read(f"training.{override}").training, name) == value


@pytest.mark.parametrize("value", ["1", "1.5", "-0.1", "ten", "true", "null"])
def test_a_warmup_ratio_that_is_no_share_is_refused(problems, value):
    (line,) = problems(f"training.warmup_ratio={value}")
    assert "training.warmup_ratio: must be a share of all steps" in line


def test_an_older_name_beside_today_s_is_refused(problems):
    overrides = [f"training.{old}=0.1" for old in OLDER]
    overrides += ["training.eval_strategy=no", "training.warmup_steps=1", "training.use_cpu=true"]
    lines = problems(*overrides, "training.train_sampling_strategy=random")
    assert len(lines) == len(OLDER)
    assert all("which is given too; keep `" in line for line in lines)


def test_older_names_lead_to_fields_and_are_none_themselves():
    assert set(OLDER.values()) <= set(Training.model_fields)
    assert not set(OLDER) & ({*Training.model_fields, *REFUSED, *OWN})
