"""A recipe is read strictly, and everything that is wrong with it is said at once."""

import pytest

from peftcli.recipe.adapter import adapter_config

EVERYTHING_WRONG = """\
model_name_or_path: org/model
task_type: CAUSAL_LLM
lora_alpha: 3
adapter: {peft_type: LORA, rank: 4, r: 0}
data:
  train: {path: x.jsonl, typ: chat}
  evall: 0.1
  eval: 1.5
training:
  lerning_rate: 1e-3
  learning_rate: abc
  warmup_ratio: 2
  save_strategy: never
  push_to_hub: true
  max_steps: 1.5
  max_steps: 2
gates: {eval_loss: 1.2}
"""


def test_a_recipe_that_is_right_is_read_with_its_defaults(read):
    recipe = read()
    assert recipe.base_model == "org/model"
    assert recipe.data.train[0].path == "rows.jsonl"
    assert recipe.training.learning_rate == 5e-5
    assert recipe.adapter == {"peft_type": "LORA", "r": 4}
    config = adapter_config(recipe)
    assert (config.r, config.peft_type, config.task_type) == (4, "LORA", "CAUSAL_LM")


def test_all_problems_come_at_once_in_the_order_of_the_file(problems):
    lines = problems(text=EVERYTHING_WRONG)
    assert [line.split(": ")[:2] for line in lines] == [
        ["1:1", "model_name_or_path"],
        ["2:1", "task_type"],
        ["3:1", "lora_alpha"],
        ["4:28", "adapter.rank"],
        ["4:37", "adapter.r"],
        ["6:26", "data.train.typ"],
        ["7:3", "data.evall"],
        ["8:3", "data.eval"],
        ["9:1", "training.output_dir"],
        ["10:3", "training.lerning_rate"],
        ["11:3", "training.learning_rate"],
        ["12:3", "training.warmup_ratio"],
        ["13:3", "training.save_strategy"],
        ["14:3", "training.push_to_hub"],
        ["15:3", "training.max_steps"],
        ["16:3", "training.max_steps"],
        ["17:9", "gates.eval_loss"],
    ]


def test_no_problem_speaks_the_validator_s_own_language(problems):
    text = "\n".join(problems(text=EVERYTHING_WRONG))
    for word in ("pydantic", "https://", "Input should", "type=", "str_type", "Extra inputs", "list[str]"):
        assert word not in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rate=fast", 'must be a number, not "fast"'),
        ("training.learning_rate=-1", "must be greater than 0, not -1"),
        ("training.learning_rate=.inf", "must be a finite number, not inf"),
        ("training.max_steps=1.5", "must be a whole number, not 1.5"),
        ("training.num_train_epochs=[1]", "must be a number, not a list"),
        ("training.bf16=maybe", 'must be true or false, not "maybe"'),
        ("training.run_name=12", "must be text, not 12"),
        ("training.lr_scheduler_kwargs=3", "must be a mapping, not 3"),
        ("training.report_to={a: 1}", "must be text or a list, not a mapping"),
        (
            "training.save_strategy=stpes",
            "must be no, steps, epoch or best, not \"stpes\"; did you mean 'steps'?",
        ),
        ("training.average_tokens_across_devices=false", "must be true, not false"),
        ("training=3", "must be a mapping, not 3"),
        ("adapter=lora", 'must be a mapping, not "lora"'),
        ("data.train=[]", "must be at least one, not an empty list"),
        ("data.train=rows.jsonl", 'must be a list, not "rows.jsonl"; write a source: {path: rows.jsonl}'),
        ("data.eval=0", "must be greater than 0, not 0"),
        ("data.eval=rows.jsonl", 'must be a number, not "rows.jsonl"; write a source: {path: rows.jsonl}'),
        ("data.train.weight=1e9", "must be at most 10000, not"),
        ("training.seed=4294967296", "must be less than"),
        ("training.gradient_checkpointing_kwargs={debugg: 1}", "no argument of it; did you mean 'debug'?"),
        ("data.eval={}", "is missing; name a file, a folder or a Hub data set id"),
        ("data.train.weight=0", "must be greater than 0, not 0"),
        ("data.train.columns=[text]", "must be a mapping, not a list"),
        ("base_model=", "must be text, not null"),
        ('base_model=""', 'must be some text, not ""'),
        ("adapter.r=eight", "must be a whole number"),
        ("adapter.peft_type=POLY", "'POLY' is not supported; supported: LORA"),
        ("adapter.peft_type=lora", "'lora' is not supported; did you mean 'LORA'?"),
        ("adapter.peft_type=", "is missing; supported: LORA"),
        ("adapter.kasa_config={beta: 2}", "is not supported yet; remove it"),
        ("adapter.base_model_name_or_path=x", "it is written by the run; say `base_model`"),
        ("adapter.task_type=SEQ_CLS", "is not the recipe's task_type, CAUSAL_LM"),
    ],
)
def test_a_wrong_value_is_told_what_it_must_be_and_what_it_is(problems, override, message):
    (line,) = problems(override)
    assert line.startswith(f"--set {override}: ")
    assert message in line


def test_yes_and_no_are_read_as_what_the_key_takes(read):
    recipe = read(
        "training.eval_strategy=no", "training.bf16=yes", "training.use_cpu=off", "training.save_strategy=no"
    )
    assert recipe.training.eval_strategy == "no"
    assert recipe.training.save_strategy == "no"
    assert recipe.training.bf16 is True
    assert recipe.training.use_cpu is False
    assert read("training.eval_strategy=false").training.eval_strategy == "no"


def test_a_missing_key_is_said_at_the_section_that_misses_it(problems):
    text = "base_model: x\ntask_type: CAUSAL_LM\nadapter:\n  peft_type: LORA\ndata:\n  max_length: 3\n"
    assert [line.split(";")[0] for line in problems(text=text)] == [
        "training: is missing",
        "5:1: data.train: is missing",
    ]


def test_an_empty_recipe_names_all_that_it_needs(problems):
    lines = problems(text="{}")
    assert [line.split(":")[0] for line in lines] == [
        "base_model",
        "task_type",
        "adapter",
        "data",
        "training",
    ]


def test_a_key_that_another_was_meant_for_is_not_called_missing(problems):
    text = (
        "model: x\ntask_typ: CAUSAL_LM\nadapter: {type: LORA}\ndata: {datasets: x}\ntraining: {out_dir: x}\n"
    )
    lines = problems(text=text)
    assert not any("data.train:" in line or "base_model:" in line or "output_dir:" in line for line in lines)
    assert "did you mean 'task_type'?" in lines[1]
    assert (
        len([line for line in lines if "is missing" in line]) == 1
    )  # adapter.peft_type: nothing was meant for it


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lerning_rate=1", "unknown key; did you mean 'learning_rate'?"),
        ("learning_rate=1", "belongs under `training`"),
        ("max_length=1", "belongs under `data`"),
        ("target_modules=all-linear", "belongs under `adapter`"),
        ("training.base_model=x", "belongs at the top level"),
        ("training.max_length=1", "belongs under `data`"),
        ("data.train.max_length=1", "belongs under `data`"),
        ("data.eval.pth=x", "unknown key; did you mean 'path'?"),
        ("lerning_rate=1", "unknown key; did you mean `training.learning_rate`?"),
        ("zzz=1", "unknown key; the keys here are base_model, "),
        ("training.zzz=1", "unknown key; `peftcli schema` lists all"),
    ],
)
def test_an_unknown_key_gets_the_nearest_known_one_or_the_level_it_belongs_to(problems, override, message):
    (line,) = [line for line in problems(override) if "is missing" not in line]
    assert message in line


def test_a_problem_of_a_list_names_the_item_and_its_line(problems):
    text = "base_model: x\ntask_type: CAUSAL_LM\nadapter: {peft_type: LORA}\ntraining: {output_dir: x}\n"
    text += "data:\n  train:\n    - {path: a}\n    - {path: b, weight: -1}\n    - pth: c\n"
    assert [line.split(": ")[:2] for line in problems(text=text)] == [
        ["8:17", "data.train.1.weight"],
        ["9:7", "data.train.2.pth"],
    ]


def test_rules_between_keys_are_checked_beside_other_problems(problems):
    lines = problems(
        "training.bf16=true", "training.fp16=true", "training.max_steps=x", "data.streaming=true"
    )
    assert any("choose one of them" in line for line in lines)
    # Whether a stream has its max_steps cannot be said while max_steps itself is wrong.
    assert not any("stream's length" in line for line in lines)
