"""Which code a measurement is of."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path


def revision() -> str:
    """The commit of the checkout that this package runs from, with a + where its files differ from it; else the version installed."""
    here = Path(__file__)
    try:
        _git("ls-files", "--error-unmatch", here.name, folder=here.parent)  # or it lies in somebody else's checkout
        return _git("describe", "--always", "--exclude", "*", "--dirty=+", folder=here.parent)
    except (OSError, subprocess.SubprocessError):
        return metadata.version("bitvla_ros")


def _git(*arguments: str, folder: Path) -> str:
    return subprocess.run(("git", *arguments), cwd=folder, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
