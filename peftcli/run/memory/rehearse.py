"""A training step and an evaluation without memory: PyTorch's fake tensors have shapes and devices, and no numbers.

The model is built from its config, the adapter is attached, and the task's own loss goes forward and backward over the
recipe's longest rows, with autocast and checkpointing as in training. What that keeps, and when it lets go of it, is
what the real step does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from peftcli.data.example import row_length
from peftcli.errors import AdapterError, ModelError
from peftcli.hub import first_line
from peftcli.models.shrink import shrink
from peftcli.peft.model import get_peft_model
from peftcli.recipe.schema import Recipe
from peftcli.recipe.training import Training
from peftcli.run.inputs import Inputs
from peftcli.run.memory.ledger import ACTIVATIONS, LOGITS, Ledger, sizes
from peftcli.run.memory.quantized import stored
from peftcli.tasks.base import Task
from peftcli.tasks.heads import head_modules, outer_weights
from peftcli.train.feed import StreamRows
from peftcli.train.model import trained_model
from peftcli.train.optim import build_optimizer, stand_in

BASE, ADAPTER, GRADIENTS, OPTIMIZER, ALLOCATOR = "base", "adapter", "gradients", "optimizer", "allocator"
# Of what goes through the C library's allocator in a step so much is left in pieces that nothing fits into: 4.6 to
# 8.9 % in runs of SmolLM2. Without such pieces (MALLOC_MMAP_THRESHOLD_=65536) their peak was the rehearsal's to 3 %.
_PIECES, _MOST_PIECES = 0.07, 3.0
# Of rows that are streamed so many are looked at.
_PROBE = 200
# What models raise that cannot be built or run without numbers.
_REFUSALS = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError)


class _Fakes(FakeTensorMode):  # type: ignore[no-untyped-call]  # torch's, as those below
    """PyTorch's mode; a module that is copied (a head that is trained whole) stays in it."""

    def __deepcopy__(self, _: object) -> Self:
        return self


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows on the host, and how long the longest of them is."""

    rows: int
    longest: int
    tensors: Mapping[str, Any]


def longest_rows(task: Task, rows: Any, count: int) -> Batch:
    """The longest rows together in a batch of so many, or of all where there are fewer: what a step can come to."""
    streamed = isinstance(rows, StreamRows)
    if streamed:
        rows = list(islice(rows.rows(0), _PROBE))
        lengths = [row_length(row) for row in rows]
    else:
        lengths = rows.lengths
    order = np.argsort(-np.asarray(lengths), kind="stable")
    if streamed:
        # Of a stream there are more than were looked at.
        order = np.resize(order, count)
    order = order[:count]
    chosen = [rows[int(at)] for at in order]
    return Batch(len(chosen), lengths[order[0]], task.collate(chosen))


class Rehearsal:
    """A recipe's model, adapter and optimizer, without memory.

    Attributes:
        device: where it would stand.
        parameters: of the base.
        dtype: of most of them.
        loading: bytes that the base takes while it is being loaded.
    """

    def __init__(self, recipe: Recipe, inputs: Inputs, accelerator: Accelerator) -> None:
        self._recipe, self._inputs, self._accelerator = recipe, inputs, accelerator
        self.device: torch.device = accelerator.device
        self._mode = _Fakes()
        with _telling(inputs.base.name):
            bare, stored_as = _on_meta(recipe, inputs)
            with self._mode:
                _make_fake(bare, self.device)
            self._build(bare)
        base = [*bare.parameters()]
        self.parameters = sum(parameter.numel() for parameter in base)
        self.dtype = str(bare.dtype).removeprefix("torch.")
        in_file = sum(parameter.numel() for parameter in base) * stored_as.itemsize
        # Weights in the file's own type are the file, mapped into memory; others are made beside it.
        self.loading = sizes(base) + (in_file if stored_as != bare.dtype else 0)

    def _build(self, bare: Any) -> None:
        self._options = self._inputs.task.model_options()
        self._ledger = Ledger(_vocabulary(bare))
        weights = [*bare.parameters(), *bare.buffers()]
        self._ledger.hold(weights, BASE)
        self._saved, self._unpacked = stored(bare, self._recipe.quantization)
        with self._mode, self.device:
            self.model = get_peft_model(bare, _config(self._inputs.task, bare, self._options))
        self._ledger.hold(
            [tensor for tensor in _tensors(self.model) if not any(tensor is each for each in weights)],
            ADAPTER,
        )
        self._trained = [each for each in self.model.parameters() if each.requires_grad]
        self._state_share = 1.0

    def step(self, settings: Training, batch: Batch) -> dict[str, int]:
        """The bytes of a training step by what they are for, when there are most."""
        ledger = self._ledger
        with _telling(self._inputs.base.name), self._whole(settings):
            with self._mode, ledger:
                self._update(settings)
                for _ in range(min(2, settings.gradient_accumulation_steps)):
                    ledger.start_over()
                    self._forward_backward(settings, batch)
            for parameter in self._trained:
                parameter.grad = None
        return self._account(ledger)

    def evaluation(self, settings: Training, batch: Batch) -> dict[str, int]:
        """The bytes of an evaluation by what they are for, when there are most; after a step."""
        ledger = self._ledger
        with _telling(self._inputs.base.name), self._mode, ledger, torch.no_grad():
            self.model.eval()
            ledger.start_over()
            with self._autocast(settings, evaluating=True):
                self._inputs.task.loss(self.model, self._fake(batch))
        return self._account(ledger)

    def _account(self, ledger: Ledger) -> dict[str, int]:
        counted = {kind: size for kind, size in ledger.peak.items() if size}
        counted[BASE] = counted.get(BASE, 0) - self._saved
        counted[ACTIVATIONS] = counted.get(ACTIVATIONS, 0) + self._unpacked
        counted[OPTIMIZER] = int(counted.get(OPTIMIZER, 0) * self._state_share)
        if self.device.type == "cpu":
            passing = counted[ACTIVATIONS] + counted.get(LOGITS, 0)
            counted[ALLOCATOR] = int(min(_PIECES * ledger.turnover, _MOST_PIECES * passing))
        return counted

    @contextmanager
    def _whole(self, settings: Training) -> Iterator[None]:
        """The model made ready as for training; compiled it would be another program, which is not rehearsed."""
        plain = {"torch_compile": False, "torch_compile_backend": None, "torch_compile_mode": None}
        # Outside the mode: what is tried there has numbers.
        with trained_model(self.model, self._accelerator, settings.model_copy(update=plain)):
            yield

    @contextmanager
    def readied(self) -> Iterator[None]:
        """The model made ready for its batches as for training; they must be made meanwhile."""
        with ExitStack() as stack:
            with _telling(self._inputs.base.name):
                like = _in_small(self._recipe, self._inputs)
                stack.enter_context(self._inputs.task.readied(self.model, like))
            yield

    def _update(self, settings: Training) -> None:
        """An update, which makes the optimizer's state."""
        rehearsed, self._state_share = stand_in(settings)
        for parameter in self._trained:
            parameter.grad = torch.empty_like(parameter)
        self._optimizer = build_optimizer(self.model, rehearsed)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        state = [value for each in self._optimizer.state.values() for value in each.values()]
        self._ledger.hold([value for value in state if isinstance(value, Tensor)], OPTIMIZER)

    def _forward_backward(self, settings: Training, batch: Batch) -> None:
        def note(parameter: Tensor) -> None:
            if parameter.grad is not None:
                self._ledger.hold([parameter.grad], GRADIENTS)

        hooks = [
            parameter.register_post_accumulate_grad_hook(note)  # type: ignore[no-untyped-call]
            for parameter in self._trained
        ]
        with self._autocast(settings):
            loss, tokens = self._inputs.task.loss(
                self.model, self._fake(batch), label_smoothing=settings.label_smoothing_factor
            )
        penalty = self.model.tuner.penalty()
        whole = loss if penalty is None else loss + tokens * penalty
        whole.backward()  # type: ignore[no-untyped-call]
        for hook in hooks:
            hook.remove()

    def _autocast(self, settings: Training, *, evaluating: bool = False) -> torch.autocast:
        half = settings.fp16 or (evaluating and settings.fp16_full_eval)
        on = half or settings.bf16 or (evaluating and settings.bf16_full_eval)
        kind = self.device.type
        return torch.autocast(kind, torch.float16 if half else torch.bfloat16, enabled=on)

    def _fake(self, batch: Batch) -> dict[str, Any]:
        return {
            name: torch.empty(part.shape, dtype=part.dtype, device=self.device)
            if isinstance(part, Tensor)
            else part
            for name, part in batch.tensors.items()
        }


@contextmanager
def _telling(name: str) -> Iterator[None]:
    """Says in one line why there is no rehearsal.

    Raises:
        AdapterError: an adapter that does not fit the base; training would say the same.
        ModelError: where there is none for another reason.
    """
    try:
        # PyTorch warns of copies of such tensors, which are what is meant here; ours come again with the training.
        with warnings.catch_warnings(action="ignore"):
            yield
    except AdapterError:
        raise
    except _REFUSALS as error:
        raise ModelError(f"{name!r} cannot be rehearsed without its weights: {first_line(error)}") from error


def _on_meta(recipe: Recipe, inputs: Inputs) -> tuple[Any, torch.dtype]:
    """The base as the task needs it, its weights on the meta device; and the type that they are stored in."""
    task, trusts = inputs.task, recipe.trust_remote_code
    config = task.load_config(inputs.base, trust_remote_code=trusts)
    for name, value in task.model_options().items():
        setattr(config, name, value)
    in_file = getattr(config, "dtype", None) or torch.float32
    dtype = in_file if recipe.dtype == "auto" else getattr(torch, recipe.dtype)
    options = {"attn_implementation": recipe.attn_implementation} if recipe.attn_implementation else {}
    with torch.device("meta"):
        model = task.from_config(config, dtype=dtype, trust_remote_code=trusts, **options)
    return model.eval(), in_file


def _in_small(recipe: Recipe, inputs: Inputs) -> Any:
    """A base of the same kind with few weights, at random."""
    config = inputs.task.load_config(inputs.base, trust_remote_code=recipe.trust_remote_code)
    shrink(config)
    options = {"attn_implementation": recipe.attn_implementation} if recipe.attn_implementation else {}
    with torch.random.fork_rng(devices=[]):
        small = inputs.task.from_config(
            config, dtype=torch.float32, trust_remote_code=recipe.trust_remote_code, **options
        )
    return small.eval()


def _make_fake(model: nn.Module, device: torch.device) -> None:
    """Puts a fake tensor in the place of each one, tied ones in the place of tied ones."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            is_weight = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
        return made[id(tensor)]

    # Until all are replaced the old ones must live: a number stands for one tensor only.
    old = [*_tensors(model)]
    for module in model.modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            setattr(module, name, fake(tensor))
        for name, value in [*vars(module).items()]:
            if isinstance(value, Tensor):
                setattr(module, name, fake(value))
    del old


def _tensors(model: nn.Module) -> Sequence[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _config(task: Task, bare: Any, options: Mapping[str, Any]) -> Any:
    """The adapter's config, as it starts without rows or weights, with the heads that the base does not bring."""
    config = task.adapter_config().plain_start()
    if options.get("head"):
        heads = head_modules(bare, outer_weights(bare))
        config.modules_to_save = sorted({*(getattr(config, "modules_to_save", None) or ()), *heads})
    config.base_model_name_or_path = task.recipe.base_model
    return config


def _vocabulary(bare: Any) -> int | None:
    find = getattr(bare, "get_output_embeddings", None)
    weight = getattr(find() if find else None, "weight", None)
    return None if weight is None else int(weight.shape[0])
