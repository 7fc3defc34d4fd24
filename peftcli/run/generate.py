"""`peftcli generate`: text from an adapter, prompted as its training rows were written.

Streamed and batched prompts go through one function, Transformers' `generate`. A batch for a decoder alone is padded on
the left, so that every row's last prompt token stands last; an encoder's as in training, on the right. With the padding
masked and positions counted per row, its tokens are those that each prompt gets alone. Shapes: B prompts, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peftcli import registry
from peftcli.adapters.config import reads_inputs
from peftcli.data.chat import ChatTemplate
from peftcli.data.example import Instruction
from peftcli.data.prompt import Prompt, prompt_ids
from peftcli.data.tokens import token_ids
from peftcli.errors import DataError, MemoryLimitError, ModelError, RecipeError
from peftcli.models.load import Base, load_config, load_model, resolve_base
from peftcli.run.answers import CompletionAnswer
from peftcli.run.folder import RunFolder, open_run, refuse_unread_code, warn_of_another_base
from peftcli.run.prefix import Prefix, shared_prefix
from peftcli.run.sampling import Sampling
from peftcli.run.stream import Stream, whole_characters
from peftcli.tasks.base import Task, task_named
from peftcli.tasks.generation import context_length, end_tokens

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Completion:
    """What came after a prompt: the text, its tokens, and whether the model ended it or the limit did."""

    text: str
    tokens: int
    finish_reason: str

    def as_dict(self) -> CompletionAnswer:
        """The keys of a JSON row."""
        return {"generated_text": self.text, "tokens": self.tokens, "finish_reason": self.finish_reason}


@dataclass(frozen=True, slots=True)
class Generator:
    """A loaded model with what prompting it as in training needs."""

    model: Any
    tokenizer: Any
    run: RunFolder
    format: str
    stops: frozenset[int]
    sampling: Sampling
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the GenerationConfig, as the task has them."""

    @property
    def reads_prompts(self) -> bool:
        """Whether an encoder reads the prompt, and all that the decoder writes is the answer."""
        return bool(self.model.config.is_encoder_decoder)

    def encode(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens, as a training row would begin.

        Raises:
            DataError: it is empty, does not fit the rows' format, or leaves no room for an answer.
        """
        asked = prompt.instruction if isinstance(prompt, Instruction) else prompt
        if not asked or (isinstance(asked, str) and not asked.strip()):
            raise DataError("the prompt is empty; give it some text")
        if not isinstance(asked, str) and asked[-1]["role"] == "assistant":
            raise DataError("the last message is the assistant's: there is nothing to answer; remove it")
        ids = prompt_ids(
            prompt,
            format=self.format,
            tokenizer=self.tokenizer,
            chat_template=self.run.chat_template,
            system_prompt=self.run.system_prompt,
            source_prefix=self.run.source_prefix,
        )
        limit = context_length(self.model)
        if limit is not None and len(ids) + (not self.reads_prompts) > limit:
            raise DataError(
                f"the prompt has {len(ids)} tokens, and the model takes {limit} in all; shorten it"
            )
        return ids

    def room(self, ids: Sequence[int]) -> int:
        """How many tokens may follow this prompt: what was asked for, or what the model has place for."""
        limit = context_length(self.model)
        # A decoder that reads no prompt starts with a token of its own.
        taken = 1 if self.reads_prompts else len(ids)
        wanted = self.sampling.max_new_tokens
        return wanted if limit is None else min(wanted, limit - taken)

    def stream(self, ids: list[int], write: Callable[[str], object]) -> Completion:
        """One completion, handed to `write` piece by piece as it comes."""
        room = self.room(ids)
        if (self._config(room).num_beams or 1) == 1:
            return self._generate([ids], room, Stream(self.tokenizer, write))[0]
        # Which beam is the likeliest shows at the end only.
        completion = self._generate([ids], room, None)[0]
        write(completion.text)
        return completion

    def complete(self, prompts: Sequence[list[int]], batch_size: int) -> list[Completion]:
        """A completion for each prompt, in order, generated in batches of prompts of like length."""
        results: dict[int, Completion] = {}
        prefix = self._shared(prompts)
        # Where the model has no place for all the tokens asked for, only prompts of one length go together:
        # padding would take the place of a shorter one's tokens.
        order = sorted(range(len(prompts)), key=lambda at: (self.room(prompts[at]), len(prompts[at])))
        while order:
            room = self.room(prompts[order[0]])
            chosen = [at for at in order[:batch_size] if self.room(prompts[at]) == room]
            order = order[len(chosen) :]
            completions = self._generate([prompts[at] for at in chosen], room, None, prefix)
            results.update(zip(chosen, completions, strict=True))
        return [results[at] for at in range(len(prompts))]

    def _config(self, room: int) -> Any:
        pad = self.tokenizer.pad_token_id
        config = self.sampling.config(
            self.model.generation_config, max_new_tokens=room, stops=self.stops, pad=pad
        )
        config.update(**self.settings)
        return config

    def _shared(self, prompts: Sequence[list[int]]) -> Prefix | None:
        """What the prompts begin with alike, read, where that can be kept."""
        from peftcli.adapters.prompted import is_prompted

        config = self._config(1)
        # A beam is a row that nobody has made yet, and some adapters look at all that the model reads.
        if (
            self.reads_prompts
            or (config.num_beams or 1) > 1
            or is_prompted(self.model)
            or reads_inputs(self.model)
        ):
            return None
        if config.use_cache is False or config.cache_implementation is not None:
            return None
        greedy = replace(self, sampling=Sampling(temperature=0.0))
        told: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True}
        return shared_prefix(
            prompts,
            lambda ids: greedy.output([ids], 1, **told).past_key_values,
            lambda some, prefix: greedy.output(some, 1, prefix, **told).logits[0],
        )

    def _generate(
        self, prompts: Sequence[list[int]], room: int, streamer: Stream | None, prefix: Prefix | None = None
    ) -> list[Completion]:
        output = self.output(prompts, room, prefix, streamer)
        given = 1 if self.reads_prompts else max(map(len, prompts))
        return [self._completion(row) for row in output[:, given:].tolist()]

    def output(
        self,
        prompts: Sequence[list[int]],
        room: int,
        prefix: Prefix | None = None,
        streamer: Stream | None = None,
        **told: Any,
    ) -> Any:
        """What Transformers' `generate` gives for prompts that all begin with the prefix; `told` what more it tells."""
        import torch

        shared = prefix.ids if prefix else []
        kept = {"past_key_values": prefix.cache(len(prompts))} if prefix else {}
        config = self._config(room)
        config.update(**told)
        width, pad = max(map(len, prompts)), self.tokenizer.pad_token_id
        input_ids = torch.tensor([self._padded(ids, pad, width, shared) for ids in prompts])
        mask = torch.tensor(
            [self._padded([1] * len(ids), 0, width, [1] * len(shared)) for ids in prompts]
        )  # (B, T)
        try:
            with torch.inference_mode():
                return self.model.generate(
                    input_ids=input_ids.to(self.model.device),
                    attention_mask=mask.to(self.model.device),
                    generation_config=config,
                    streamer=streamer,
                    **kept,
                )
        except torch.OutOfMemoryError as error:
            raise MemoryLimitError(
                "generating ran out of memory; lower --batch-size or --max-new-tokens"
            ) from error

    def _padded(self, values: list[int], pad: int, width: int, shared: list[int]) -> list[int]:
        padding = [pad] * (width - len(values))
        if self.reads_prompts:
            return values + padding
        # What is shared comes first, as the cache has it.
        return shared + padding + values[len(shared) :]

    def _completion(self, ids: list[int]) -> Completion:
        end = next((at for at, token in enumerate(ids) if token in self.stops), None)
        kept = ids if end is None else ids[:end]
        text = whole_characters(self.tokenizer.decode(kept, skip_special_tokens=True))
        return Completion(text, len(kept), "length" if end is None else "stop")


def open_generator(
    folder: Path,
    sampling: Sampling,
    *,
    with_adapter: bool = True,
    raw: bool = False,
    seed: int | None,
    trust_remote_code: bool = False,
    say: Say,
) -> Generator:
    """Load what the adapter's folder says.

    Args:
        folder: the adapter's.
        sampling: how to choose tokens.
        with_adapter: `False` leaves the bare base.
        raw: prompts go in as they are, without template, system prompt or prefix.
        seed: of sampling; without one every call differs.
        trust_remote_code: run code that the base brings, where the run did.
        say: gets what the user should know.

    Raises:
        ModelError: no adapter in the folder, a base that cannot be loaded, or one that does not generate.
        HubError: the base is on the Hub, which could not be reached.
    """
    run = open_run(folder)
    refuse_unread_code(run, trust_remote_code=trust_remote_code)
    base = resolve_base(run.base_model, run.revision, say=say)
    warn_of_another_base(run, base, say)
    config = load_config(base, trust_remote_code=run.trust_remote_code)
    task = _task(run, config)
    tokenizer = _tokenizer(run, base, task, say)
    plain = "pairs" if config.is_encoder_decoder else "text"
    if raw:
        run = replace(run, format=plain, system_prompt=None, source_prefix=None)
    written = run.format or _guess_format(run, tokenizer, plain, say)
    model = _model(run, base, task, with_adapter=with_adapter)
    settings = task.generation_settings(model, tokenizer, run.task)
    _seed(seed)
    stops = _stops(model, tokenizer, run, written)
    return Generator(model, tokenizer, run, written, stops, sampling, settings)


def _task(run: RunFolder, config: Any) -> type[Task]:
    """The adapter's task; where the folder does not say it, the one that writes text with such a base.

    Raises:
        ModelError: it does not write text.
    """
    names = registry.TASKS if run.task_type is None else [run.task_type]
    tasks = (task_named(name) for name in names)
    found: type[Task] | None = next((task for task in tasks if task.generates(config)), None)
    if found is None:
        raise ModelError(
            f"this adapter's task is {run.task_type}, which does not generate text; use `peftcli predict`"
        )
    return found


def _tokenizer(run: RunFolder, base: Base, task: type[Task], say: Say) -> Any:
    source = Base(str(run.folder), str(run.folder), None, "") if run.has_tokenizer else base
    return task.load_processor(source, trust_remote_code=run.trust_remote_code, say=say)


def _guess_format(run: RunFolder, tokenizer: Any, plain: str, say: Say) -> str:
    name = "chat" if tokenizer.chat_template and plain == "text" else plain
    how = "as chats, with the tokenizer's template" if name == "chat" else "as they are"
    say(f"{run.folder} does not say how its training rows were written: prompts are taken {how}")
    return name


def _model(run: RunFolder, base: Base, task: type[Task], *, with_adapter: bool) -> Any:
    import torch

    model = load_model(
        base,
        task.auto_class(),
        dtype=run.dtype,
        attn_implementation=run.attn_implementation,
        quantization=run.quantization,
        trust_remote_code=run.trust_remote_code,
    ).model
    if with_adapter:
        from peftcli.peft.model import PeftModel

        model = PeftModel.from_pretrained(model, run.folder, autocast_adapter_dtype=False)
    if run.quantization is None and (device := torch.accelerator.current_accelerator(check_available=True)):
        model = model.to(device)
    return model.eval()


def _seed(seed: int | None) -> None:
    import torch

    # PyTorch's own start value is the same in every process, so that without a seed nothing would ever vary.
    if seed is None:
        torch.seed()
    else:
        torch.manual_seed(seed)


def _stops(model: Any, tokenizer: Any, run: RunFolder, written: str) -> frozenset[int]:
    """The tokens that end a completion: the tokenizer's, the base's own, and the template's end of a turn."""
    stops = end_tokens(model, tokenizer)
    template = ChatTemplate.of(tokenizer, run.chat_template)
    if written in {"chat", "instruction"} and template is not None:
        stops |= set(_turn_ends(tokenizer, template))
    if not stops:
        raise ModelError(
            "neither the tokenizer nor the base names a token that ends a text; set eos_token in it"
        )
    return frozenset(stops)


def _turn_ends(tokenizer: Any, template: ChatTemplate) -> Iterable[int]:
    """The special token, if any, that comes first after what an assistant says."""
    said = "answer"
    chat = template.render([{"role": "user", "content": "question"}, {"role": "assistant", "content": said}])
    after = token_ids(tokenizer, [chat[chat.rindex(said) + len(said) :]])[0] if said in chat else []
    return [token for token in after[:1] if token in tokenizer.added_tokens_decoder]


def require_chat(generator: Generator) -> None:
    """Refuse a conversation with an adapter whose training rows were neither chats nor written as such.

    Raises:
        RecipeError: it was trained on another format.
    """
    template = ChatTemplate.of(generator.tokenizer, generator.run.chat_template)
    if generator.format != "chat" and (generator.format != "instruction" or template is None):
        raise RecipeError(
            f"--chat needs an adapter trained on chats; this one's rows were '{generator.format}'"
        )
