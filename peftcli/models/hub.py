"""Model repositories of the Hub: from an id and a revision to one commit."""

from __future__ import annotations

from pathlib import Path

from peftcli.errors import HubError, ModelError
from peftcli.hub import first_line, network_errors
from peftcli.models.pipeline import INDEX

# What a repository of a model has, or of a diffusers pipeline.
_CONFIGS = ("config.json", INDEX)


def resolve_commit(repo_id: str, revision: str | None = None) -> tuple[str, Path | None]:
    """The commit that `revision` (default: the main branch) of a model repository stands for.

    Without the network, it is the commit that the Hub's cache on this machine holds.

    Returns:
        The commit's hash; and, where the Hub could not be reached, the folder of its files in the cache.

    Raises:
        ModelError: there is no such repository or revision, or it holds no model.
        HubError: the Hub could not be reached and nothing is cached, or it asks for a token.
    """
    from huggingface_hub import errors

    at = f"{repo_id!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        config = _fetched_config(repo_id, revision)
    except errors.HFValidationError as error:
        raise ModelError(f"base_model {repo_id!r} is neither a file here nor a Hub id (org/name)") from error
    except errors.GatedRepoError as error:
        raise HubError(f"{at} is gated; ask for access on its page, then set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"the Hub has no {at}; check the revision") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{at} is neither a folder here nor a model on the Hub; check the name, "
            "or set HF_TOKEN if it is private"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        # The Hub answered once and then no more; its class says that the file does not exist, which nobody knows.
        cached = _cached_snapshot(repo_id, revision, at, error)
        return cached.name, cached
    except errors.EntryNotFoundError as error:
        raise ModelError(
            f"{at} has no config.json: it is not a Transformers model, nor a pipeline with {INDEX}"
        ) from error
    except network_errors() as error:
        cached = _cached_snapshot(repo_id, revision, at, error)
        return cached.name, cached
    return Path(config).parent.name, None


def _fetched_config(repo_id: str, revision: str | None) -> str:
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

    for name in _CONFIGS:
        try:
            # Asked once and without retries: from_pretrained would ask anew for each file, waiting each time.
            get_hf_file_metadata(hf_hub_url(repo_id, name, revision=revision))
        except errors.EntryNotFoundError:
            if name == _CONFIGS[-1]:
                raise
            continue
        break
    # Downloading by the branch's name makes the cache remember which commit that is.
    return hf_hub_download(repo_id, name, revision=revision)


def _cached_snapshot(repo_id: str, revision: str | None, at: str, error: Exception) -> Path:
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repo_id, name, revision=revision) for name in _CONFIGS)
    config = next((path for path in found if isinstance(path, str)), None)
    if config is None:
        raise HubError(
            f"{at} not found locally and the Hub could not be reached ({first_line(error)}); check the name "
            "and the network, or name a local folder or .gguf file"
        ) from error
    return Path(config).parent
