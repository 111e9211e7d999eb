"""Hugging Face repositories: named as owner/name or owner/name@revision, listed, and downloaded as far as they are read."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import NamedTuple

from .layout import CheckpointError, layout_of

_ID = re.compile(r"(?P<name>\w[\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile("[0-9a-f]{40}")


class Repository(NamedTuple):
    """revision: a branch, a tag or a commit; None: the default branch."""

    name: str
    revision: str | None

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


class Listing(NamedTuple):
    """commit: what the revision stands for now. sizes: bytes of every file, by its name with / between the parts."""

    commit: str
    sizes: dict[str, int]


def hub_id(text: str) -> Repository | None:
    """The repository that is meant; None for what can be no repository's name."""
    match = _ID.fullmatch(text)
    return None if match is None else Repository(match["name"], match["revision"])


def list_files(repository: Repository) -> Listing:
    """Raises CheckpointError, and whatever huggingface_hub raises where the hub cannot be reached."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(repository.name, revision=repository.revision, files_metadata=True, timeout=_timeout())
    return Listing(info.sha or "", {file.rfilename: file.size or 0 for file in info.siblings or ()})


def download(repository: Repository) -> Path:
    """The folder, in huggingface_hub's cache, with what `layout_of` its files says is read. Where the hub cannot be reached, it is what
    was downloaded before. Raises CheckpointError."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(f"downloading {repository} needs huggingface_hub: pip install huggingface_hub") from error
    try:
        names = list_files(repository).sizes
    except Exception as error:  # of whichever library it uses for HTTP
        if _is_answer(error):
            raise _failure(repository, error) from error
        try:  # newer versions refuse a folder that lacks a file of these patterns; of what else is missing the reader will tell
            cached = snapshot_download(repository.name, revision=repository.revision, local_files_only=True, allow_patterns=["config.json"])
            return Path(cached)
        except Exception as missing:
            raise _failure(repository, error, missing) from error
    wanted = [glob.escape(name) for name in layout_of(names, repository.name).read(names)]
    try:
        return Path(snapshot_download(repository.name, revision=repository.revision, allow_patterns=wanted))
    except Exception as error:
        raise _failure(repository, error) from error


def commit_of(path: Path) -> str | None:
    """The commit that a folder of huggingface_hub's cache is of; None for any other folder."""
    return path.name if path.parent.name == "snapshots" and _COMMIT.fullmatch(path.name) else None


def one_line(error: BaseException) -> str:
    """What it says, with what it is, as a timeout may say nothing."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _timeout() -> float:
    """Seconds without an answer or another byte."""
    from huggingface_hub import constants

    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


def _is_answer(error: Exception) -> bool:
    """The hub was reached, and says no: there is no such repository or revision, or it is not for everybody."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(error, ValueError) or (status is not None and 400 <= status < 500 and status != 429)


def _failure(repository: Repository, *errors: Exception) -> CheckpointError:
    reasons = "; ".join(map(one_line, errors))
    if any("timeout" in type(error).__name__.lower() or "timed out" in str(error).lower() for error in errors):
        reasons = f"the transfer stalled for {_timeout():g} s ({reasons}). Run it again, it goes on where it stopped"
    return CheckpointError(
        f"there is no directory {repository}, and it could not be downloaded from Hugging Face: {reasons}. "
        "Check the name and the network, or download it elsewhere and give its directory"
    )
