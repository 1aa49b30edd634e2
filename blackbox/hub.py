"""Models on the Hugging Face hub, as ``hf:owner/name``, through the library `huggingface_hub`.

A model is the file `FILE` of a model repository. ``hf:owner/name@REVISION`` is that of a branch, a
tag or, to get the same bytes forever, a commit. No other file is fetched, and the file is read as
any other: it can't run code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blackbox.errors import HubError, MissingDependencyError

__all__ = ["FILE", "local_path", "push_file"]

FILE = "model.blackbox"
"""The file of a model in its repository."""

_SCHEME = "hf:"
_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.][\w./-]*))?")


def local_path(path: str | Path, max_bytes: int) -> Path:
    """Return the path of a model file; one on the hub is fetched, or taken from the hub's cache.

    Without a network, or with ``HF_HUB_OFFLINE=1``, the newest file in the cache is taken.

    Parameters
    ----------
    path : str or Path
        A path, which is returned as it is, or ``hf:owner/name`` with or without ``@revision``.
    max_bytes : int
        A larger file is not fetched.

    Raises
    ------
    HubError
        If the name is none, there is no such model, or the hub can't be reached.
    """
    given = Path(path).as_posix()
    if not given.startswith(_SCHEME):
        return Path(path)
    repository, revision = _parse(given)
    hub = _library(given)
    with _one_line(given):
        wanted = {"repo_id": repository, "filename": FILE, "revision": revision}
        found = hub.hf_hub_download(**wanted, dry_run=True)
        if (found.file_size or 0) > max_bytes:
            raise HubError(f"{given}: {FILE} is larger than any model: {found.file_size} bytes")
        return Path(hub.hf_hub_download(**wanted))


def push_file(path: Path, name: str, card: str, *, private: bool, message: str) -> tuple[str, str]:
    """Upload a model file and its card; the repository is made where there is none.

    Parameters
    ----------
    path : Path
        The model file.
    name : str
        ``owner/name``, with or without ``hf:``, and with ``@branch`` for another branch.
    card : str
        The model card, which becomes README.md.
    private : bool
        Whether a repository that is made is private; one that there is stays as it is.
    message : str
        The message of the commit.

    Returns
    -------
    address : str
        The address of the commit.
    commit : str
        Its digest, for ``hf:owner/name@commit``.

    Raises
    ------
    HubError
        If the name is none, or the hub refuses.
    """
    given = name if name.startswith(_SCHEME) else _SCHEME + name
    repository, revision = _parse(given)
    hub = _library(given)
    files = [
        hub.CommitOperationAdd(FILE, path),
        hub.CommitOperationAdd("README.md", card.encode("utf-8", "backslashreplace")),
    ]
    with _one_line(given):
        api = hub.HfApi(library_name="promptboosting")
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.create_commit(repository, files, commit_message=message, revision=revision)
        return str(done.commit_url), str(done.oid)


def _parse(given: str) -> tuple[str, str | None]:
    """Return repository and revision of a name."""
    found = _NAME.fullmatch(given.removeprefix(_SCHEME))
    if found is None:
        raise HubError(f"{given!r} is no model of the hub: write hf:owner/name, or …@revision")
    return found["repository"], found["revision"]


def _library(given: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependencyError(
            f"{given}: models of the hub need: pip install 'promptboosting[hub]'"
        ) from error
    return huggingface_hub


@contextmanager
def _one_line(given: str) -> Iterator[None]:
    """Turn errors of the hub's library into one line with what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{given}: there is no such branch, tag or commit") from error
    except errors.RemoteEntryNotFoundError as error:
        raise HubError(
            f"{given}: it has no file {FILE}, which blackbox push writes; it is no model of ours"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"{given}: there is no such model, or you may not see it; to log in: hf auth login, "
            "or HF_TOKEN in the environment"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise HubError(
            f"{given}: the hub can't be reached and the cache has no such file"
        ) from error
    except errors.HfHubHTTPError as error:
        said = error.server_message or " ".join(str(error).split())
        advice = "; to log in: hf auth login" if error.response.status_code in (401, 403) else ""
        raise HubError(f"{given}: the hub refuses: {said}{advice}") from error
    except errors.HTTPError as error:  # type: ignore[attr-defined]  # of its HTTP client
        raise HubError(f"{given}: the hub can't be reached: {error}") from error
    except (OSError, ValueError) as error:
        raise HubError(f"{given}: {' '.join(str(error).split())}") from error
