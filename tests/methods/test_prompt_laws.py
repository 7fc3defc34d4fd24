"""What holds for every prompt method and config, over small models in float64."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from peftcli.adapters.prompted import PromptedModel
from peftcli.adapters.saved_modules import ModulesToSaveWrapper
from peftcli.errors import AdapterConfigError, AdapterError
from peftcli.methods.cpt.config import CPTConfig
from peftcli.methods.prefix_tuning.config import PrefixTuningConfig
from peftcli.methods.prompt_tuning.config import PromptTuningConfig
from peftcli.peft.inject import inject_adapter_in_model
from peftcli.peft.model import PeftModel, get_peft_model
from peftcli.peft.storage import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from peftcli.registry import METHODS, resolve
from tests.methods.cases import llama, shake
from tests.methods.prompt_cases import (
    PROMPT_CASES,
    TOKENS,
    VIRTUAL,
    PromptCase,
    build,
    classifying_llama,
    gemma,
    generated,
    given,
    inputs,
    labels,
    outputs,
    sliding_mistral,
)


def over(cases: list[PromptCase]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=str)


every = over(PROMPT_CASES)
generating = over([case for case in PROMPT_CASES if case.task_type in ("CAUSAL_LM", "SEQ_2_SEQ_LM")])
causal = over([case for case in PROMPT_CASES if case.task_type == "CAUSAL_LM"])
PREFIXES = [case for case in PROMPT_CASES if case.peft_type == "PREFIX_TUNING"]


def config_of(case: PromptCase):
    return resolve(METHODS, case.peft_type, what="peft_type")(**case.arguments())


def adapt(case: PromptCase) -> PeftModel:
    torch.manual_seed(11)
    return get_peft_model(build(case), config_of(case))


def trained(case: PromptCase) -> PeftModel:
    model = adapt(case)
    shake(model)
    return model


def virtual(model: PeftModel) -> int:
    return model.active_peft_config.num_virtual_tokens


def words(**changes) -> PeftModel:
    fields = {"num_virtual_tokens": VIRTUAL, "task_type": "CAUSAL_LM"} | changes
    torch.manual_seed(0)
    return get_peft_model(llama().eval(), PromptTuningConfig(**fields))


@causal
def test_a_fresh_prompt_does_what_its_tensors_do_in_the_base_s_own_arguments(case: PromptCase):
    base, model = build(case), adapt(case).eval()
    arguments = inputs(case)
    tasks = {"task_ids": arguments.pop("task_ids")} if "task_ids" in arguments else {}
    mask = torch.ones(2, virtual(model) + TOKENS.shape[1])
    if case.peft_type == "PREFIX_TUNING":
        expected = base(input_ids=TOKENS, attention_mask=mask, past_key_values=model.get_prompt(2))
    else:
        before = model.get_prompt(2, **tasks).double()
        embedded = torch.cat([before, base.get_input_embeddings()(TOKENS)], dim=1)
        expected = base(inputs_embeds=embedded, attention_mask=mask)
    assert torch.equal(outputs(model, inputs(case)), expected.logits)


@pytest.mark.parametrize("kind", ["TEXT", "SAMPLE_VOCAB", "CPT"])
def test_a_prompt_that_starts_as_words_is_those_words_before_the_input(kind: str, tiny_base: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    text = AutoTokenizer.from_pretrained(tiny_base)("Say:")["input_ids"]
    fields = {"task_type": "CAUSAL_LM"}
    if kind == "CPT":
        config = CPTConfig(cpt_token_ids=text, **fields)
    elif kind == "TEXT":  # repeated, as the text is shorter
        config = PromptTuningConfig(
            prompt_tuning_init=kind, prompt_tuning_init_text="Say:", num_virtual_tokens=6, **fields
        )
        text = text + text[:2]
    else:
        config = PromptTuningConfig(prompt_tuning_init=kind, num_virtual_tokens=6, **fields)
    model = get_peft_model(copy.deepcopy(base), config).eval()
    if kind == "SAMPLE_VOCAB":
        vectors = model.prompt_encoder["default"].embedding.weight
        text = [int((base.get_input_embeddings().weight - each).norm(dim=1).argmin()) for each in vectors]
    whole = torch.cat([torch.tensor([text, text]), TOKENS], dim=1)
    torch.testing.assert_close(model(input_ids=TOKENS).logits, base(input_ids=whole).logits)
    assert model.peft_config["default"].tokenizer_name_or_path == (str(tiny_base) if kind == "TEXT" else None)


@every
def test_training_moves_every_saved_tensor_and_nothing_of_the_base(case: PromptCase):
    model = trained(case).train()
    before = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    frozen = {name: tensor.clone() for name, tensor in model.named_parameters() if not tensor.requires_grad}
    assert all(name.startswith("base_model.") or "embedding" in name for name in frozen)
    torch.manual_seed(0)
    given(model(**inputs(case))).pow(2).sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    after = get_peft_model_state_dict(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    # A label of CPT's default prompt's kind may move; a head that is not asked may not.
    assert moved == before.keys()
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name


@every
def test_saving_and_loading_is_the_identity(case: PromptCase, tmp_path: Path):
    model = trained(case)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(case), tmp_path)
    assert type(loaded) is type(model)
    torch.testing.assert_close(
        outputs(loaded, inputs(case)), outputs(model, inputs(case)), rtol=1e-12, atol=1e-12
    )
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


@every
def test_a_file_loads_into_a_model_in_training_and_is_trained_further(case: PromptCase, tmp_path: Path):
    model = trained(case)
    model.save_pretrained(tmp_path)
    other = adapt(case)
    set_peft_model_state_dict(other, load_peft_weights(tmp_path))
    torch.testing.assert_close(
        outputs(other, inputs(case)), outputs(model, inputs(case)), rtol=1e-12, atol=1e-12
    )
    further = PeftModel.from_pretrained(build(case), tmp_path, is_trainable=True)
    assert any(parameter.requires_grad for parameter in further.prompt_encoder.parameters())
    given(further(**inputs(case))).sum().backward()


@every
def test_a_resumed_training_has_what_made_the_prompt(case: PromptCase, tmp_path: Path):
    model = trained(case)
    model.save_pretrained(tmp_path)
    kept = copy.deepcopy(model.tuner.training_state())
    other = adapt(case)
    parameters = dict(other.prompt_encoder.named_parameters())
    set_peft_model_state_dict(other, load_peft_weights(tmp_path))
    other.tuner.load_training_state(kept)
    assert torch.equal(outputs(other, inputs(case)), outputs(model, inputs(case)))
    for name, parameter in other.prompt_encoder.named_parameters():
        assert parameter is parameters[name]
        assert torch.equal(parameter, dict(model.prompt_encoder.named_parameters())[name])


@every
def test_switched_off_the_model_is_its_base(case: PromptCase):
    base, model = build(case), trained(case)
    arguments = inputs(case)
    bare = {name: value for name, value in arguments.items() if name != "task_ids"}
    with_prompt = outputs(model, arguments)
    grads = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with model.disable_adapter():
        assert torch.equal(outputs(model, arguments), outputs(base, bare))
    assert torch.equal(outputs(model, arguments), with_prompt)
    assert grads == {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@every
def test_a_second_prompt_leaves_the_first_as_it_is_until_it_is_set(case: PromptCase):
    model = trained(case)
    arguments = inputs(case)
    first = outputs(model, arguments)
    grads = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.add_adapter("second", config_of(case))
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == grads
    assert torch.equal(outputs(model, arguments), first)
    model.set_adapter("second")
    shake(model, seed=4)
    second = outputs(model, arguments)
    assert not torch.equal(second, first)
    model.set_adapter("default")
    assert torch.equal(outputs(model, arguments), first)
    model.delete_adapter("default")
    assert model.active_adapters == ["second"]
    assert torch.equal(outputs(model, arguments), second)
    assert not any(".default" in name for name in model.state_dict())


@every
def test_padding_behind_the_tokens_changes_no_token_s_output(case: PromptCase):
    model = trained(case)
    arguments = inputs(case)
    alone = outputs(model, arguments)
    padded = dict(arguments)
    for name, value in (("input_ids", 0), ("attention_mask", 0)):
        padded[name] = torch.cat([arguments[name], torch.full((2, 2), value)], dim=1)
    result = outputs(model, padded)
    if case.task_type in ("SEQ_CLS", "SEQ_2_SEQ_LM"):
        torch.testing.assert_close(result, alone)
    else:
        torch.testing.assert_close(result[:, : alone.shape[1]], alone)


# A window counts places, and padding lies between a prompt and a row's tokens.
@over(
    [
        case
        for case in PROMPT_CASES
        if case.task_type in ("CAUSAL_LM", "SEQ_2_SEQ_LM") and case.build not in (sliding_mistral, gemma)
    ]
)
def test_a_batch_generates_what_each_row_generates_alone(case: PromptCase):
    model = trained(case)
    arguments = inputs(case)
    short = TOKENS[:1, 3:]
    tasks = {"task_ids": arguments["task_ids"]} if "task_ids" in arguments else {}
    first = {name: value[:1] for name, value in tasks.items()}
    second = {name: value[1:] for name, value in tasks.items()}
    alone = generated(model, {"input_ids": short, "attention_mask": torch.ones_like(short), **first})
    other = generated(
        model, {"input_ids": TOKENS[1:], "attention_mask": torch.ones_like(TOKENS[1:]), **second}
    )
    nothing = torch.zeros((1, 3), dtype=torch.long)
    # A text that is continued has its padding before it.
    parts = [short, nothing] if case.task_type == "SEQ_2_SEQ_LM" else [nothing, short]
    ids = torch.cat([torch.cat(parts, dim=1), TOKENS[1:]])
    mask = torch.cat([torch.cat([part != 0 for part in parts], dim=1), TOKENS[1:] != 0]).long()
    both = generated(model, {"input_ids": ids, "attention_mask": mask, **tasks})
    assert torch.equal(both[0, -5:], alone[0, -5:])
    assert torch.equal(both[1], other[0])


@generating
def test_generating_with_and_without_a_cache_gives_the_same(case: PromptCase):
    model = trained(case)
    assert torch.equal(generated(model, inputs(case)), generated(model, inputs(case), use_cache=False))


@generating
def test_generating_is_the_forward_pass_step_by_step_and_leaves_the_base_as_it_was(case: PromptCase):
    model = trained(case)
    arguments = inputs(case)
    made = generated(model, arguments)
    assert "prepare_inputs_for_generation" not in vars(model.get_base_model())
    key = "decoder_input_ids" if case.task_type == "SEQ_2_SEQ_LM" else "input_ids"
    ids = made[:, :1] if key == "decoder_input_ids" else TOKENS
    for _ in range(5):
        step = {**arguments, key: ids}
        if key == "input_ids":
            step["attention_mask"] = torch.ones_like(ids)
        ids = torch.cat([ids, outputs(model, step)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(ids, made)


@generating
def test_one_beam_of_several_is_a_likely_continuation(case: PromptCase):
    model = trained(case)
    assert generated(model, inputs(case), num_beams=3, num_return_sequences=2).shape[0] == 4


@every
def test_a_half_precision_base_has_a_prompt_in_float32_and_trains_it(case: PromptCase):
    torch.manual_seed(11)
    model = get_peft_model(build(case, torch.bfloat16), config_of(case))
    assert {parameter.dtype for parameter in model.prompt_encoder.parameters()} == {torch.float32}
    result = given(model(**inputs(case)))
    assert result.dtype == torch.bfloat16
    result.float().pow(2).sum().backward()
    assert any(
        parameter.grad is not None and parameter.grad.abs().sum() > 0
        for parameter in model.prompt_encoder.parameters()
    )


@every
def test_labels_stand_where_the_tokens_stand(case: PromptCase):
    if not labels(case):
        return
    model = trained(case)
    arguments = inputs(case) | labels(case)
    arguments.pop("decoder_input_ids", None)
    loss = model(**arguments).loss
    assert torch.isfinite(loss)
    loss.backward()
    assert any(parameter.grad is not None for parameter in model.prompt_encoder.parameters())


def test_a_token_s_label_and_an_answer_s_place_are_those_of_its_own_token():
    for case in PROMPT_CASES:
        if case.peft_type != "PROMPT_TUNING" or case.task_type not in ("TOKEN_CLS", "QUESTION_ANS"):
            continue
        model = trained(case).eval()
        result = model(**inputs(case), **labels(case))
        if case.task_type == "TOKEN_CLS":
            expected = torch.nn.functional.cross_entropy(
                result.logits[:, VIRTUAL:].flatten(0, 1), labels(case)["labels"].flatten()
            )
        else:
            expected = (
                sum(
                    torch.nn.functional.cross_entropy(
                        result[f"{end}_logits"], labels(case)[f"{end}_positions"] + VIRTUAL
                    )
                    for end in ("start", "end")
                )
                / 2
            )
        torch.testing.assert_close(result.loss, expected)


def test_rows_of_several_tasks_get_their_own_prompts():
    (case,) = [case for case in PROMPT_CASES if case.name.startswith("three tasks")]
    model = trained(case)
    both = outputs(model, {"input_ids": TOKENS[:1].repeat(2, 1), "task_ids": torch.tensor([0, 2])})
    for row, task in enumerate((0, 2)):
        alone = outputs(model, {"input_ids": TOKENS[:1], "task_ids": torch.tensor([task])})
        torch.testing.assert_close(both[row], alone[0])
    assert not torch.allclose(both[0], both[1])
    with pytest.raises(AdapterError, match="task_ids is missing: say which of the 3 tasks each row is of"):
        outputs(model, {"input_ids": TOKENS})


@pytest.mark.parametrize("init", ["AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK", "ONLY_SOURCE_SHARED"])
def test_a_prompt_for_one_task_starts_from_one_for_several(init: str, tmp_path: Path):
    (case,) = [case for case in PROMPT_CASES if case.name.startswith("three tasks")]
    source = trained(case)
    source.save_pretrained(tmp_path)
    kind = type(source.active_peft_config)
    model = get_peft_model(
        build(case),
        kind(
            task_type="CAUSAL_LM",
            num_virtual_tokens=VIRTUAL,
            num_ranks=2,
            prompt_tuning_init=init,
            prompt_tuning_init_task=2,
            prompt_tuning_init_state_dict_path=str(tmp_path / "adapter_model.safetensors"),
        ),
    )
    was, now = source.prompt_encoder["default"], model.prompt_encoder["default"]
    torch.testing.assert_close(was.embedding.weight, now.embedding.weight, rtol=0, atol=1e-6)
    if init == "EXACT_SOURCE_TASK":
        alone = outputs(source, {"input_ids": TOKENS, "task_ids": torch.tensor([2, 2])})
        torch.testing.assert_close(outputs(model, {"input_ids": TOKENS}), alone, rtol=0, atol=1e-5)
    elif init == "AVERAGE_SOURCE_TASKS":
        torch.testing.assert_close(
            now.prefix_task_cols, was.prefix_task_cols.mean(0, keepdim=True), rtol=0, atol=1e-6
        )


def test_cpt_moves_no_token_further_than_its_epsilon_and_no_label():
    (case,) = [case for case in PROMPT_CASES if case.name == "two examples"]
    model = adapt(case)
    encoder = model.prompt_encoder["default"]
    torch.nn.init.normal_(encoder.delta_embedding.weight, std=100.0)
    outputs(model, inputs(case))
    scale = (8 / 2048) ** 0.5
    expected = torch.tensor([1.0, 2.0, 1.0, 0.0] * 2).double() * scale
    torch.testing.assert_close(encoder.delta_embedding.weight.norm(dim=1), expected)


def test_classes_are_read_from_a_row_s_last_token_whatever_the_padding():
    (case,) = [
        case for case in PROMPT_CASES if case.build is classifying_llama and case.peft_type == "PROMPT_TUNING"
    ]
    model = trained(case)
    short = TOKENS[:1, :4]
    padded = torch.cat([short, torch.zeros((1, 2), dtype=torch.long)], dim=1)
    mask = (padded != 0).long()
    alone = outputs(model, {"input_ids": short, "attention_mask": torch.ones_like(short)})
    torch.testing.assert_close(outputs(model, {"input_ids": padded, "attention_mask": mask}), alone)


def test_positions_and_the_logits_that_are_kept_are_those_of_the_tokens():
    for kind, length in ((PromptTuningConfig, VIRTUAL), (PrefixTuningConfig, 0)):
        torch.manual_seed(0)
        model = get_peft_model(llama().eval(), kind(num_virtual_tokens=VIRTUAL, task_type="CAUSAL_LM"))
        whole = model(TOKENS).logits
        positions = torch.arange(6).expand(2, -1)
        assert torch.equal(model(input_ids=TOKENS, position_ids=positions).logits, whole)
        kept = torch.tensor([[1, 3], [0, 5]])
        expected = whole[:, length:].take_along_dim(kept.unsqueeze(-1), dim=1)
        torch.testing.assert_close(model(input_ids=TOKENS, logits_to_keep=kept).logits, expected)
        embedded = model.word_embeddings(TOKENS)
        assert torch.equal(model(inputs_embeds=embedded).logits, whole)
        assert torch.equal(copy.deepcopy(model)(TOKENS).logits, whole)


def test_a_prefix_and_activation_checkpointing_do_not_go_together_and_a_prompt_and_it_do():
    for kind in (PrefixTuningConfig, PromptTuningConfig):
        model = get_peft_model(llama(), kind(num_virtual_tokens=VIRTUAL, task_type="CAUSAL_LM")).train()
        model.get_base_model().activation_checkpointing_enable()
        if kind is PrefixTuningConfig:
            with pytest.raises(AdapterError, match="activation checkpointing"):
                model(input_ids=TOKENS)
        else:
            model(input_ids=TOKENS, labels=TOKENS).loss.backward()
            assert model.prompt_encoder["default"].embedding.weight.grad.abs().sum() > 0


def test_what_cannot_be_is_said():
    model = words()
    model.add_adapter("second", model.active_peft_config)
    with pytest.raises(AdapterError, match="only one prompt can be in use"):
        model.set_adapter(["default", "second"])
    with pytest.raises(AdapterError, match="cannot be merged"):
        model.merge_and_unload()
    with pytest.raises(AdapterError, match="cache of fixed size"):
        generated(model, {"input_ids": TOKENS}, cache_implementation="static")
    with pytest.raises(AdapterError, match="needs a task_type"):
        words(task_type=None)
    with pytest.raises(AdapterError, match="use get_peft_model"):
        inject_adapter_in_model(PromptTuningConfig(num_virtual_tokens=2), llama())
    with pytest.raises(AdapterError, match="one of PREFIX_TUNING cannot join them"):
        model.add_adapter("third", PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    with pytest.raises(AdapterConfigError, match="num_virtual_tokens: must be a whole number, not null"):
        PromptTuningConfig()
    with pytest.raises(AdapterConfigError, match="prompt_tuning_init_text: is missing"):
        PromptTuningConfig(num_virtual_tokens=2, prompt_tuning_init="TEXT")
    with pytest.raises(AdapterConfigError, match="trust_remote_code"):
        PromptTuningConfig(
            num_virtual_tokens=2,
            prompt_tuning_init="TEXT",
            prompt_tuning_init_text="x",
            tokenizer_kwargs={"trust_remote_code": True},
        )
    with pytest.raises(AdapterConfigError, match="cpt_tokens_type_mask: has 1 numbers, and there are 2"):
        CPTConfig(cpt_token_ids=[1, 2], cpt_tokens_type_mask=[1])
    with pytest.raises(AdapterConfigError, match="task_type: must be CAUSAL_LM"):
        CPTConfig(task_type="SEQ_CLS")


def test_peft_s_names_are_there():
    model = words()
    assert isinstance(model.tuner, PromptedModel)
    assert model.base_model is model.get_base_model() is model.unload()
    assert model.prompt_encoder.default.embedding.weight.shape == (VIRTUAL, 8)
    assert model.word_embeddings is model.base_model.get_input_embeddings()
    assert torch.equal(model.prompt_tokens["default"], torch.arange(VIRTUAL))
    assert model.get_prompt(4).shape == (4, VIRTUAL, 8)
    assert torch.equal(
        model.get_prompt_embedding_to_save("default"), model.prompt_encoder.default.embedding.weight
    )
    step = model.prepare_inputs_for_generation(TOKENS, attention_mask=torch.ones_like(TOKENS))
    assert step["inputs_embeds"].shape[1] == step["attention_mask"].shape[1] == VIRTUAL + 6


def test_unloading_leaves_the_base_with_the_head_in_use():
    (case,) = [
        case for case in PROMPT_CASES if case.name == "sequence classes" and case.peft_type == "P_TUNING"
    ]
    model = trained(case)
    head = model.base_model.classifier.modules_to_save["default"]
    plain = model.unload()
    assert not any(isinstance(module, ModulesToSaveWrapper) for module in plain.modules())
    assert plain.classifier is head
