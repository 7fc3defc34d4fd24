"""A task, models, rows and jobs that train in milliseconds."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from peftcli.methods.adalora.config import AdaLoraConfig
from peftcli.peft.model import PeftModel, get_peft_model
from peftcli.recipe.training import Training
from peftcli.tasks.base import Evaluated, Task
from peftcli.train.job import Job, Outcome
from peftcli.train.loop import train

VOCABULARY = 29


class NextToken(Task):
    """A causal language task in its simplest form, over rows of `input_ids` and `labels`."""

    task_type = "CAUSAL_LM"
    counts_tokens = True

    def __init__(self, recipe: Any = None, processor: Any = None, config: Any = None) -> None:
        super().__init__(recipe, processor, config)
        self.seen: list[list[list[int]]] = []

    @staticmethod
    def auto_class() -> Any:
        return LlamaForCausalLM

    def encode(self, examples: Sequence[Any]) -> list[list[dict]]:
        return [[example] for example in examples]

    def collate(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, filler: int) -> Tensor:
            return torch.tensor([row[name] + [filler] * (longest - len(row[name])) for row in rows])

        mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
        return {
            "input_ids": padded("input_ids", 0),
            "labels": padded("labels", -100),
            "attention_mask": torch.tensor(mask),
        }

    def _logits(self, model: nn.Module, batch: dict) -> tuple[Tensor, Tensor]:
        output = model(input_ids=batch["input_ids"])
        logits = output if isinstance(output, Tensor) else output.logits
        return logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()

    def loss(self, model: nn.Module, batch: dict, *, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        self.seen.append(batch["input_ids"].tolist())
        logits, labels = self._logits(model, batch)
        total = F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=label_smoothing)
        return total, (labels != -100).sum()

    def metrics(self, model: nn.Module, batch: dict) -> Evaluated:
        logits, labels = self._logits(model, batch)
        count = (labels != -100).sum()
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        return Evaluated({"loss": (loss, count), "accuracy": ((logits.argmax(-1) == labels).sum(), count)})


class Net(nn.Module):
    """Embeddings, a frozen layer, a trained one with dropout, a norm: no more than the tests ask about."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, 8).requires_grad_(requires_grad=False)
        self.down = nn.Linear(8, 4, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(4, VOCABULARY)
        self.norm = nn.LayerNorm(8)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.up(self.dropout(self.down(self.norm(self.embed(input_ids)))))


def llama() -> LlamaForCausalLM:
    """A frozen Llama of two layers whose query projections train."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" in name)
    return model


def adalora(**config: Any) -> PeftModel:
    """A tiny Llama whose adapters' ranks go from 3 to 2."""
    torch.manual_seed(0)
    config = {"target_modules": ["q_proj", "v_proj"], "init_r": 3, "target_r": 2, **config}
    return get_peft_model(llama(), AdaLoraConfig(**config))


class Rows(list):
    """Rows with their lengths, as the data part gives them."""

    @property
    def lengths(self) -> list[int]:
        return [len(row["input_ids"]) for row in self]


class Stream:
    """Rows that come one after another."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def rows(self, epoch: int):
        return iter(self._rows)


def rows(count: int, seed: int = 1) -> Rows:
    """Rows of 3 to 12 tokens; about a third of the labels are not trained."""
    draw = random.Random(seed)
    made = Rows()
    for _ in range(count):
        ids = [draw.randrange(1, VOCABULARY) for _ in range(draw.randrange(3, 13))]
        labels = [-100 if draw.random() < 0.3 else token for token in ids]
        labels[-1] = ids[-1]
        made.append({"input_ids": ids, "labels": labels})
    return made


def trained(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the parameters that train."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def job(folder: Path, *, model: nn.Module | None = None, **changes: Any) -> Job:
    """A job over 20 rows, in batches of 4; `changes` are fields of Job or settings."""
    model = Net() if model is None else model
    parts: dict[str, Any] = {
        "task": NextToken(),
        "train_rows": rows(20),
        "eval_rows": rows(7, seed=2),
        "resume_from": None,
        "gated": (),
        "console": Console(file=io.StringIO(), width=200),
    }
    for name in list(changes):
        if name in parts:
            parts[name] = changes.pop(name)
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 0.05,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
    }

    def save_adapter(target: Path) -> None:
        if isinstance(model, PeftModel):
            model.save_pretrained(target)
        else:
            save_file(trained(model), target / "adapter_model.safetensors")

    def load_adapter(source: Path) -> None:
        if isinstance(model, PeftModel):
            model.load_adapter(source, model.active_adapter, is_trainable=True)
        else:
            model.load_state_dict(load_file(source / "adapter_model.safetensors"), strict=False)

    return Job(
        model=model,
        settings=Training(**(settings | changes)),
        output_dir=folder,
        save_adapter=save_adapter,
        load_adapter=load_adapter,
        **parts,
    )


def said(made: Job) -> str:
    """What a job printed."""
    assert isinstance(made.console.file, io.StringIO)
    return made.console.file.getvalue()


def metrics(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


def losses(folder: Path) -> list[float]:
    """The training losses of metrics.jsonl."""
    return [line["loss"] for line in metrics(folder) if "loss" in line]


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The greatest difference between two sets of weights."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def rates(folder: Path) -> list[float]:
    """The learning rates of metrics.jsonl."""
    return [line["learning_rate"] for line in metrics(folder) if "learning_rate" in line]


def settings(**changes: Any) -> Training:
    """Settings on their own."""
    return Training(**{"output_dir": "runs", "use_cpu": True, **changes})


class Scripted(NextToken):
    """Evaluates to a list of losses, one after another; its accuracy is the negative loss."""

    def __init__(self, *values):
        super().__init__()
        self.values = list(values)

    def metrics(self, model, batch):
        value = torch.tensor(self.values.pop(0))
        one = torch.tensor(1)
        return Evaluated({"loss": (value, one), "accuracy": (-value, one)})


def scripted(tmp_path: Path, *values: float, **changes: Any) -> tuple[Outcome, Job]:
    """A run that evaluates every step of an epoch to these values, in one batch each."""
    made = job(
        tmp_path,
        task=Scripted(*values),
        max_steps=len(values),
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=8,
        **changes,
    )
    return train(made), made
