"""Files of the Hub, down and up, and what its client raises in one line each.

The token is looked at here only to keep it out of every message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from peftcli.errors import AdapterError, HubError

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


class HubOptions(TypedDict, total=False):
    """How files of the Hub are fetched: some of the arguments of `huggingface_hub.hf_hub_download`."""

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    force_download: bool
    local_files_only: bool


def fetch(
    model_id: str | Path,
    name: str,
    subfolder: str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """One file of an adapter: in a folder here, or of a repository on the Hub.

    Raises:
        AdapterError: where there is neither such a folder nor such a repository, or no such file in it.
        HubError: where the Hub cannot be reached, or asks for a token.
    """
    folder = Path(model_id, subfolder or "")
    if (folder / name).is_file():
        return folder / name
    if Path(model_id).exists():
        raise AdapterError(f"there is no {name} here; name a folder with an adapter", where=str(folder))
    from huggingface_hub import hf_hub_download

    at = f"{str(model_id)!r}" + (f" at revision {revision!r}" if revision else "")
    with _fetching(at, name):
        return Path(
            hf_hub_download(
                str(model_id),
                name,
                subfolder=subfolder,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
            )
        )


def upload(
    repo_id: str,
    files: Mapping[str, Path | bytes],
    *,
    message: str,
    description: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Puts files into a model repository in one commit; repository and branch are made where they do not exist.

    Args:
        repo_id: `name`, or `organization/name`.
        files: each by its name in the repository: its path here, or its content.
        message: the commit's title.
        description: the commit's body.
        private: make the repository private; one that is public already is refused.
        revision: the branch; default: main.
        token: default: that of the environment, or of `hf auth login`.
        create_pr: propose the commit as a pull request.

    Raises:
        HubError: the name or the token is wrong, or the Hub refused or could not be reached.
    """
    check_name(repo_id)
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=_usable(token))
    operations = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
    with _uploading(repo_id, api.token):
        repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        if private and not api.repo_info(repo_id).private:
            raise HubError(
                f"{repo_id} exists and is public; make it private on its page, or do not ask for it"
            )
        if revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.create_commit(
            repo_id,
            operations,
            commit_message=message,
            commit_description=description,
            revision=revision,
            create_pr=create_pr,
        )


def check_name(repo_id: str) -> None:
    """Refuses what cannot be a repository's name.

    Raises:
        HubError: where it cannot.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but unlisted

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(
            f"{repo_id!r} is no repository's name; write ORG/NAME ({first_line(error)})"
        ) from error


def network_errors() -> tuple[type[Exception], ...]:
    """What the Hub's client raises when the network or the Hub fails."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # The root of the HTTP library's errors is the first base of the client's own: which library that is
    # (httpx, httpx2) differs between the client's releases.
    root: type[Exception] = HfHubHTTPError.__bases__[0]
    return (root, OfflineModeIsEnabled)


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, for a message of one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def _fetching(at: str, name: str) -> Iterator[None]:
    """Turns what the Hub's client raises for a download into one line."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise AdapterError(f"{at} is neither a folder here nor a Hub id (org/name)") from error
    except errors.GatedRepoError as error:
        raise HubError(f"{at} is gated; ask for access on its page, then set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise AdapterError(f"the Hub has no {at}; check the revision") from error
    except errors.RepositoryNotFoundError as error:
        raise AdapterError(
            f"{at} is neither a folder here nor a repository on the Hub; check the name, "
            "or set HF_TOKEN if it is private"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise HubError(
            f"{at} is no folder here, {name} of it is not in the cache, and the Hub could not be reached; "
            "check the name and the network"
        ) from error
    except errors.EntryNotFoundError as error:
        raise AdapterError(f"{at} on the Hub has no {name}; name a repository with an adapter") from error
    except network_errors() as error:
        raise HubError(f"{name} of {at} could not be fetched: {first_line(error)}") from error


def _usable(token: str | bool | None) -> str:
    from huggingface_hub import get_token

    own = token if isinstance(token, str) else get_token()
    if not own:
        raise HubError("no token; set HF_TOKEN to one that may write")
    if not (own.isascii() and own.isprintable()) or " " in own:
        # Such a token would be shown by the HTTP library's own complaint about it.
        raise HubError("the token holds characters that no token has; set HF_TOKEN anew")
    return own


@contextmanager
def _uploading(repo_id: str, token: Any) -> Iterator[None]:
    """Turns what the Hub's client raises into one line, without its own text, which may show the token."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        raise HubError(_refusal(repo_id, error, token)) from None
    except network_errors() as error:
        raise HubError(_without(token, f"the Hub could not be reached: {first_line(error)}")) from None
    except (OSError, ValueError, RuntimeError) as error:
        # RuntimeError: one file's upload failed, for the reason that it was raised from.
        reason = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        text = " ".join(str(reason).split())
        raise HubError(_without(token, f"the upload to {repo_id} failed: {text}")) from None


def _refusal(repo_id: str, error: Any, token: str) -> str:
    status = error.response.status_code
    said = _without(token, error.server_message or first_line(error))
    reasons = {
        401: "the Hub does not accept the token; set HF_TOKEN to a valid one that may write",
        403: f"the token may not write to {repo_id}; use one that may, or another name ({said})",
        404: f"there is no {repo_id}, or the token may not see it ({said})",
    }
    return reasons.get(status, f"the Hub refused the upload to {repo_id} with status {status}: {said}")


def _without(token: str, text: str) -> str:
    return text.replace(token, "[token]")
