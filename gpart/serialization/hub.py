"""An adapter folder as a repository on the hub: ``user/name``, or ``user/name@revision``.

Invariant: both files come from one commit, and no file that a repository holds besides is read or run. What is downloaded
is an adapter folder like any other, with its checksums looked at where it is read.

``HF_ENDPOINT`` is asked at each call, ``HF_HUB_OFFLINE`` and the token are huggingface_hub's affair.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gpart.errors import GPartError, GPartFileError
from gpart.serialization.folder import CONFIG, TENSORS

README = "README.md"
LIMITS = {CONFIG: 64 << 20, TENSORS: 64 << 30, README: 4 << 20}
"""The most bytes that are downloaded of each file: a config of half a million weights, theta and heads of any model."""

_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_NAME = re.compile(rf"({_WORD}/{_WORD})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,199}}))?")


def is_hub_name(name: str) -> bool:
    """Whether a name could be one on the hub: one slash, and nothing that only a path has.

    Example:
        >>> [is_hub_name(name) for name in ("user/name", "user/name@v1.0", "runs/last.ckpt", "../name", "a/b/c", "name")]
        [True, True, False, False, False, False]
    """
    found = _NAME.fullmatch(name)
    repo = found[1] if found else ""
    return bool(found) and not repo.endswith((".git", ".ckpt")) and "--" not in repo and ".." not in name


def split_name(name: str) -> tuple[str, str | None]:
    """``user/name@revision`` as repository and revision.

    Raises:
        GPartError: if it is no name on the hub.

    Example:
        >>> split_name("user/name@v1.0"), split_name("user/name")
        (('user/name', 'v1.0'), ('user/name', None))
    """
    found = _NAME.fullmatch(name)
    if found is None or not is_hub_name(name):
        raise GPartError(
            f"{name!r} is no name on the hub: that is user/name or user/name@revision, of letters, digits and . _ - without"
            " .. and --"
        )
    return found[1], found[2]


def endpoint() -> str | None:
    """``HF_ENDPOINT`` as it is now; None is the hub's own."""
    return os.environ.get("HF_ENDPOINT") or None


def download(name: str, folder: Path | None = None) -> Path:
    """Downloads an adapter's two files, both of one commit.

    Args:
        name: ``user/name`` or ``user/name@revision``.
        folder: where to; then the card too, where there is one. None: into the hub's cache, which is asked first.

    Returns:
        The folder that holds them.

    Raises:
        GPartFileError: if there is no such repository or file, or the hub cannot be reached and nothing is in its cache.
        GPartError: if a file is larger than :data:`LIMITS`, or the hub refuses.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url  # noqa: PLC0415  # only who asks for it
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError  # noqa: PLC0415

    repo, revision = split_name(name)
    wanted = (CONFIG, TENSORS) if folder is None else (CONFIG, TENSORS, README)
    with _told(name):
        commit = None
        for file in wanted:
            url = hf_hub_url(repo, file, revision=commit or revision, endpoint=endpoint())
            try:
                found = get_hf_file_metadata(url, endpoint=endpoint())
            except EntryNotFoundError:
                if file == README:
                    continue
                raise
            except _failures() as error:
                if folder is None and commit is None and not isinstance(error, HfHubHTTPError):  # nobody answered
                    return _cached(repo, revision, name, error)
                raise
            if found.commit_hash is None or found.size is None:
                raise GPartError(f"{url} is no hub's: its answer has no commit or no size")
            if found.size > LIMITS[file]:
                raise GPartError(
                    f"{name}: {file} has {found.size:,} bytes, more than the {LIMITS[file]:,} that are read"
                )
            # In the cache the first is asked for by the revision's own name, which the cache then knows without the hub.
            asked = commit or (revision if folder is None else found.commit_hash)
            at = hf_hub_download(repo, file, revision=asked, endpoint=endpoint(), local_dir=folder)
            commit = commit or (Path(at).parent.name if folder is None else found.commit_hash)
            last = Path(at)
    if folder is not None:
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # huggingface_hub's notes about the files
    return last.parent


def upload(name: str, files: Mapping[str, bytes], message: str, private: bool | None = None) -> str:
    """Writes files into a repository, which is made where it is missing, in one commit.

    Args:
        name: ``user/name``, or ``user/name@branch``, where the branch is made where it is missing.
        files: their content by their name.
        message: of the commit.
        private: whether a repository that is made is private; None is the account's default.

    Returns:
        The commit's address.

    Raises:
        GPartError: if the hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi  # noqa: PLC0415

    repo, branch = split_name(name)
    api = HfApi(endpoint=endpoint(), library_name="gpart")
    with _told(name):
        api.create_repo(repo, private=private, exist_ok=True)
        if branch not in (None, "main"):
            api.create_branch(repo, branch=str(branch), exist_ok=True)
        operations = [CommitOperationAdd(file, content) for file, content in files.items()]
        done = api.create_commit(repo, operations, commit_message=message, revision=branch)
    return str(done.commit_url)


def has_file(name: str, file: str) -> bool:
    """Whether a repository is there and holds a file.

    Raises:
        GPartError: if the hub cannot be reached.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415

    repo, revision = split_name(name)
    with _told(name):
        return bool(HfApi(endpoint=endpoint()).file_exists(repo, file, revision=revision))


def _cached(repo: str, revision: str | None, name: str, error: Exception) -> Path:
    """What an earlier download left in the hub's cache.

    Raises:
        GPartFileError: if there is nothing.
    """
    from huggingface_hub import hf_hub_download  # noqa: PLC0415
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    try:
        found = [hf_hub_download(repo, file, revision=revision, local_files_only=True) for file in (CONFIG, TENSORS)]
    except LocalEntryNotFoundError:
        raise GPartFileError(
            f"no adapter at {name}: there is no such folder here, the hub cannot be reached ({_line(error)}), and its cache"
            " has no such adapter"
        ) from error
    return Path(found[0]).parent


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Within it the hub's errors are raised as ours."""
    from huggingface_hub import errors  # noqa: PLC0415

    try:
        yield
    except GPartError:
        raise
    except (errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise GPartFileError(f"no adapter at {name} on the hub: {_line(error)}") from error
    except errors.GatedRepoError as error:
        raise GPartError(
            f"{name} is gated: ask for access on its page, then log in (hf auth login): {_line(error)}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise GPartFileError(
            f"no adapter at {name}: there is no such folder here, and no such repository on the hub, or it is private and you"
            f" are not logged in (hf auth login, or HF_TOKEN): {_line(error)}"
        ) from error
    except _failures() as error:
        raise GPartError(f"{name}: the hub could not be asked: {_line(error)}") from error


def _failures() -> tuple[type[Exception], ...]:
    """What asking can end in: OSError, what the HTTP library raises (httpx, or another in later releases), a bad answer."""
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    return (ValueError, *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:240] or type(error).__name__
