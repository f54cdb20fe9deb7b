"""The Hugging Face Hub, by its own library: a folder of a model is fetched, or sent."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from diptych.errors import ConfigError, shown
from diptych.escaping import one_line

__all__ = ["HUB", "download", "upload"]

HUB = "hf-hub:"
"""What stands before the name of a repository where a path could stand too."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,99}")


def check_repository(name: str) -> None:
    """Refuse what is no name of a repository.

    Raises:
        ConfigError: it is none.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{shown(name)} is no existing folder and no name of a repository; give a path, or owner/name as on the hub"
        )


def download(name: str, files: Sequence[str]) -> Path:
    """The folder of a repository, from the hub or its cache.

    Args:
        name: ``owner/name``, or ``owner/name@revision`` for a branch, a tag or a commit.
        files: the only files that are fetched.

    Raises:
        ConfigError: it cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    check_repository(repository)
    if "@" in name and not _REVISION.fullmatch(revision):
        raise ConfigError(f"{shown(name)}: the revision is no name; give a branch, a tag or a commit after @")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(files)))
    except Exception as error:  # the library, the network and the cache each fail in their own way
        raise ConfigError(_failed(f"'{repository}' could not be fetched from the hub", error)) from error


def upload(folder: Path, name: str, *, private: bool) -> str:
    """Send a folder to a repository, which is made where there is none. Its files replace those of the same names.

    Args:
        folder: what is sent.
        name: ``owner/name``.
        private: whether a new repository is private.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: it cannot be sent.
    """
    from huggingface_hub import HfApi

    check_repository(name)
    api = HfApi(library_name="diptych")
    try:
        api.create_repo(name, private=private, exist_ok=True)
        sent = api.upload_folder(repo_id=name, folder_path=folder, commit_message="A model of diptych")
    except Exception as error:  # as above
        raise ConfigError(_failed(f"'{name}' could not be written on the hub", error)) from error
    return str(sent.commit_url)


def _failed(what: str, error: Exception) -> str:
    reason = one_line(str(error))[:200]
    offline = os.environ.get("HF_HUB_OFFLINE")
    state = f"HF_HUB_OFFLINE={offline} forbids the network: unset it" if offline else "is the network there?"
    return (
        f"{what} ({type(error).__name__}: {reason}); {state}, run `hf auth login` where the repository is private, or give "
        "the path of a folder that save_pretrained wrote"
    )
