"""The application: its commands, and the one place where an error ends, as a line and an exit status.

0 done; 1 a bug of peftcli; 2 recipe or usage; 3 data; 4 model or adapter; 5 diverged; 6 a gate failed;
7 out of memory; 8 the Hub or the network; 130 interrupted; 141 nobody reads the output any more.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException
from typer.main import get_command

from peftcli import __version__
from peftcli.cli.check import check
from peftcli.cli.eval import eval_
from peftcli.cli.generate import generate
from peftcli.cli.init import init
from peftcli.cli.inspect import inspect
from peftcli.cli.merge import merge
from peftcli.cli.predict import predict
from peftcli.cli.push import push
from peftcli.cli.recipes import recipes
from peftcli.cli.report import report
from peftcli.cli.schema import schema
from peftcli.cli.terminal import say, say_errors, use_utf8
from peftcli.cli.train import train
from peftcli.errors import Interrupted, PeftcliError, did_you_mean

# In the order of use, which is that of `peftcli --help`.
COMMANDS = (init, check, train, eval_, predict, generate, merge, push, inspect, report, recipes, schema)

app = typer.Typer(
    name="peftcli",
    add_completion=False,
    # Plain help: what users type (file names, brackets) is never taken for markup, and it loads faster.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in COMMANDS:
    app.command(_command.__name__.removesuffix("_"))(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def peftcli(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001  (its callback has done the work)
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[  # noqa: ARG001  (run() takes it from anywhere on the command line)
        bool, typer.Option("--debug", help="Show the traceback of an error. Any command takes it.")
    ] = False,
) -> None:
    """Fine-tune a pretrained model with few parameters, from one recipe."""
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit status; errors that a user can mend end here."""
    arguments, debug = _take_debug(arguments)
    try:
        status = _invoke(arguments)
        sys.stdout.flush()
    except PeftcliError as error:
        if debug:
            traceback.print_exc()
        (say if isinstance(error, Interrupted) else lambda *lines: say_errors(lines))(*error.lines())
        return error.exit_status
    except TyperException as error:
        say_errors([_usage(error)])
        return 2
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted")
        return 130
    except BrokenPipeError:
        # The reader has left (`peftcli recipes | head -1`): what is still buffered must go nowhere, silently.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if isinstance(error, FileNotFoundError) and "usable temporary directory" in str(error):
            say_errors(["no temporary folder can be written; make room in it, or set TMPDIR to another"])
            return 2
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        say_errors(
            [f"{error.filename or 'the output'} cannot be written: {error.strerror}; make room for it"]
        )
        return 2
    return status


def main() -> int:
    """The program `peftcli`."""
    use_utf8()
    warnings.showwarning = _show_warning
    arguments = sys.argv[1:]
    if not _take_debug(arguments)[1]:
        sys.excepthook = _report_bug
    return run(arguments)


def _invoke(arguments: Sequence[str]) -> int:
    command = get_command(app)
    try:
        with command.make_context("peftcli", _with_bare_resume(arguments)) as context:
            command.invoke(context)
    except typer.Exit as request:
        return request.exit_code
    return 0


def _take_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without `--debug`, which may stand anywhere before a `--`, and whether it was there."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    rest = [argument for argument in arguments[:end] if argument != "--debug"]
    return [*rest, *arguments[end:]], len(rest) < end


def _with_bare_resume(arguments: Sequence[str]) -> list[str]:
    """`--resume` before another option, a recipe or the end becomes `--resume=`: its value is optional."""
    spelled = []
    for argument, after in zip(arguments, [*arguments[1:], "-"], strict=False):
        bare = argument == "--resume" and (after[:1] == "-" or after.endswith((".yaml", ".yml")))
        spelled.append("--resume=" if bare else argument)
    return spelled


def _usage(error: TyperException) -> str:
    """A usage error on one line, with the nearest option where there is one, or the help to read."""
    possibilities = getattr(error, "possibilities", None)
    context: Any = getattr(error, "ctx", None)
    if possibilities:
        message, hint = error.message, did_you_mean(getattr(error, "option_name", ""), possibilities)
    else:
        message, hint = error.format_message(), f"see `{context.command_path} --help`" if context else ""
    message = " ".join(message.split()).rstrip(".")
    return "; ".join(part for part in (message[:1].lower() + message[1:], hint) if part)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """What Python would show with a line of source (`warnings.showwarning` may be replaced, its documentation says)."""
    if issubclass(category, UserWarning):
        say(f"warning: {' '.join(str(message).split())}")


def _report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:  # noqa: ARG001
    """What Python's own hook would show as a traceback; the process ends with status 1."""
    text = str(error).split("\n", 1)[0]
    what = f"{kind.__name__}: {text}" if text else kind.__name__
    say_errors(
        [f"unexpected {what}; this is a bug of peftcli: run again with --debug, and report what it shows"]
    )
