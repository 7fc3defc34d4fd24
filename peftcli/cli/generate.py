"""`peftcli generate`: what does the adapter say?"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftcli.cli.imports import large_imports
from peftcli.cli.output import check_output
from peftcli.cli.terminal import answer, answer_json, inert_json, say
from peftcli.errors import DataError, RecipeError

if TYPE_CHECKING:
    from peftcli.run.folder import RunFolder
    from peftcli.run.generate import Generator
    from peftcli.run.prompts import PromptRow


# What means something for text alone, and for pictures alone.
_TEXT = (
    "input",
    "chat",
    "raw",
    "max_new_tokens",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "num_beams",
    "batch_size",
    "trust_remote_code",
)
_NEEDS_INPUT = "--output needs --input, or an adapter that draws a PICTURE.png; text goes to standard output"
_PICTURES = ("num_inference_steps", "guidance_scale", "negative_prompt")


def generate(
    context: typer.Context,
    *,
    adapter: Annotated[
        Path, typer.Option("--adapter", metavar="DIR", help="The adapter's folder.", show_default=False)
    ],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="What to answer. Repeatable.")
    ] = None,
    input: Annotated[  # noqa: A002  (the flag's name is fixed)
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE.jsonl",
            help="Rows with `prompt`, `messages`, `instruction` or `source`, answered in batches.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="Where answered rows go (default: standard output), or the .png file of a picture.",
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Converse: a line a turn, until /exit; /new forgets.")
    ] = False,
    no_adapter: Annotated[
        bool, typer.Option("--no-adapter", help="Ask the bare base, for comparison.")
    ] = False,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Pass prompts as they are: no chat template, system prompt or prefix."),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="Tokens of an answer at most.")
    ] = 256,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", help="0 is greedy. Default: what the base's own config says."),
    ] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Sample within this share of probability.")
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Sample among so many tokens.")] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option("--repetition-penalty", help="Above 1: used tokens become less likely.")
    ] = None,
    num_beams: Annotated[
        int | None,
        typer.Option("--num-beams", help="Write so many texts side by side, and take the likeliest."),
    ] = None,
    num_inference_steps: Annotated[
        int | None, typer.Option("--num-inference-steps", min=1, help="Of a picture. Default: diffusers'.")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            "--guidance-scale", help="How closely a picture follows its prompt. Default: diffusers'."
        ),
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option("--negative-prompt", metavar="TEXT", help="What is not to be in a picture.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Makes sampling repeatable.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows of --input at once.")] = 8,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Run the Python code that the base brings, as the training did."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output.")
    ] = False,
) -> None:
    """Generate text with an adapter, streamed as it comes, or a picture.

    Prompts are written as the training rows were (chat template, system prompt: from the adapter's folder).
    Without --prompt, --input and --chat, the prompt is what stands on standard input.
    """
    _check_usage(prompt, input, output, chat=chat, raw=raw, as_json=as_json)
    # A prompt that cannot be used is said at once, not after the model has been loaded.
    prompts = [] if chat or input else _prompts(prompt)
    with large_imports():
        from peftcli.run.folder import open_run
        from peftcli.run.prompts import read_prompts
        from peftcli.run.sampling import Sampling

    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, num_beams)
    run = open_run(adapter)
    if _draws(run):
        _refuse(context, _TEXT, "no meaning for an adapter that draws pictures")
        settings = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "negative_prompt": negative_prompt,
        }
        _draw(
            adapter,
            prompts,
            output,
            with_adapter=not no_adapter,
            seed=seed,
            settings=settings,
            as_json=as_json,
        )
        return
    _refuse(context, _PICTURES, "a meaning for adapters that draw pictures only")
    if output and not input:
        raise RecipeError(_NEEDS_INPUT)
    rows = read_prompts(input, run.columns, run.format) if input else []
    with large_imports():
        from peftcli.run.generate import open_generator

    generator = open_generator(
        adapter,
        sampling,
        with_adapter=not no_adapter,
        raw=raw,
        seed=seed,
        trust_remote_code=trust_remote_code,
        say=say,
    )
    if chat:
        _chat(generator)
    elif rows:
        _answer_rows(generator, rows, output, batch_size, as_json=as_json)
    elif as_json:
        answers = generator.complete([generator.encode(text) for text in prompts], batch_size=1)
        results = [
            {"prompt": text, **answer.as_dict()} for text, answer in zip(prompts, answers, strict=True)
        ]
        answer_json(results)
    else:
        _stream(generator, prompts)


def _draws(run: RunFolder) -> bool:
    from peftcli.recipe.tasks import OPTIONS

    return run.task_type in OPTIONS and OPTIONS[run.task_type].DRAWS


def _refuse(context: typer.Context, names: tuple[str, ...], reason: str) -> None:
    """Refuses options of which the command line has any, by what they are called there."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in names and _is_given(context, parameter.name)
    ]
    if given:
        has, them = ("has", "it") if len(given) == 1 else ("have", "them")
        raise RecipeError(f"{', '.join(given)} {has} {reason}; leave {them} out")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _draw(
    adapter: Path,
    prompts: list[str],
    output: Path | None,
    *,
    with_adapter: bool,
    seed: int | None,
    settings: dict[str, Any],
    as_json: bool,
) -> None:
    if output is None or output.suffix.lower() != ".png":
        raise RecipeError("this adapter draws; say where the picture goes: --output PICTURE.png")
    if not output.parent.is_dir():
        raise RecipeError(f"--output: there is no folder {str(output.parent)!r}; make it first")
    if len(prompts) > 1:
        raise RecipeError("a call draws one picture; give one --prompt")
    with large_imports():
        from peftcli.run.draw import draw

    picture = draw(
        adapter, prompts[0], output, with_adapter=with_adapter, seed=seed, settings=settings, say=say
    )
    say(f"{output}: {picture.width} x {picture.height} pixels")
    if as_json:
        answer_json(picture.as_dict())


def _check_usage(
    prompt: list[str] | None, rows: Path | None, output: Path | None, *, chat: bool, raw: bool, as_json: bool
) -> None:
    """Refuse flags that do not go together."""
    sources = [flag for flag, given in (("--prompt", prompt), ("--input", rows), ("--chat", chat)) if given]
    if len(sources) > 1:
        raise RecipeError(f"{' and '.join(sources)} do not go together; give one")
    # What the adapter does is not known yet.
    if output and not rows and output.suffix.lower() != ".png":
        raise RecipeError(_NEEDS_INPUT)
    if output and rows:
        check_output(output, rows)
    if chat and (raw or as_json):
        raise RecipeError(f"--chat does not go with {'--raw' if raw else '--json'}; leave one of them out")


def _prompts(given: list[str] | None) -> list[str]:
    """The prompts of the command line, or the one on standard input."""
    if not given:
        if sys.stdin.isatty():
            raise RecipeError("no prompt; give --prompt TEXT, --input FILE.jsonl or --chat, or pipe one in")
        try:
            # The line feed that ends what `echo` writes is not part of the prompt.
            given = [sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")]
        except UnicodeDecodeError as error:
            raise DataError("is not UTF-8; convert it", where="standard input") from error
    try:
        "".join(given).encode()
    except UnicodeEncodeError:
        raise DataError("the prompt is not UTF-8; convert it") from None
    if not all(text.strip() for text in given):
        raise DataError("the prompt is empty; give it some text")
    return given


def _write(text: str) -> None:
    from peftcli.run.stream import visible

    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _stream(generator: Generator, prompts: list[str]) -> None:
    for number, text in enumerate(prompts, 1):
        if len(prompts) > 1:
            say(f"[{number}/{len(prompts)}] {text}")
        completion = generator.stream(generator.encode(text), _write)
        _write("\n")
        if completion.finish_reason == "length":
            say(f"(cut after {completion.tokens} tokens)")


def _chat(generator: Generator) -> None:
    from peftcli.run.converse import converse

    converse(generator, _turns(), _write, say)


def _turns() -> Iterator[str]:
    asks = sys.stdin.isatty()
    while True:
        if asks:
            print("> ", end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline()):
            return
        yield line


def _answer_rows(
    generator: Generator, rows: list[PromptRow], output: Path | None, batch_size: int, *, as_json: bool
) -> None:
    from peftcli.run.answers import CompletionsAnswer
    from peftcli.run.prompts import answer as answer_rows
    from peftcli.run.prompts import lines, write_completions

    answers = answer_rows(generator, rows, batch_size)
    cut = sum(added["finish_reason"] == "length" for added in answers)
    if cut:
        say(f"{cut} of {len(rows)} answers were cut at --max-new-tokens or the end of the model's context")
    if output is not None:
        write_completions(output, rows, answers)
        say(f"{output}: {len(rows)} rows")
        if as_json:
            summary: CompletionsAnswer = {"output": str(output), "rows": len(rows), "cut": cut}
            answer_json(summary)
    elif as_json:
        results = [{**row.row, **added} for row, added in zip(rows, answers, strict=True)]
        answer_json(results)
    else:
        answer(inert_json("".join(lines(rows, answers))), end="")
