"""`peftcli push`: an adapter and its card to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.terminal import answer, answer_json, say


def push(
    *,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The adapter's folder.", show_default=False)],
    repo_id: Annotated[
        str, typer.Argument(metavar="REPO_ID", help="Where to: organization/name.", show_default=False)
    ],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="The branch; default: main.")
    ] = None,
    message: Annotated[
        str | None, typer.Option("--message", metavar="TEXT", help="The commit's message.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be uploaded; nothing is sent.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output.")
    ] = False,
) -> None:
    """Upload an adapter and its model card to the Hub.

    The token is HF_TOKEN's, or the one `hf auth login` stored; HF_ENDPOINT names another Hub. Only the
    adapter, its card, the locked recipe and the tokenizer's files go up: no checkpoints, no logs.
    """
    from peftcli.run.push import push as run

    pushed = run(
        folder, repo_id, private=private, revision=revision, message=message, dry_run=dry_run, say=say
    )
    if as_json:
        answer_json(pushed.as_dict())
    elif pushed.url is None:
        for name, size in pushed.sizes.items():
            print(f"{size:>12,}  {name}")
    else:
        say(f"uploaded {len(pushed.sizes)} files, {sum(pushed.sizes.values()):,} bytes")
        answer(pushed.url)
