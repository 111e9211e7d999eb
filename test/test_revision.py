"""Which code a measurement is of: the checkout's commit, and never that of a repository around it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bitvla_ros.evaluation import revision

GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@b")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_it_is_the_commit_with_a_mark_where_files_differ_and_else_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def git(*arguments: str) -> str:
        return subprocess.run((*GIT, *arguments), cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    file = tmp_path / "package" / "revision.py"
    file.parent.mkdir()
    file.write_text("1")
    monkeypatch.setattr(revision, "__file__", str(file))
    monkeypatch.setattr(revision.metadata, "version", lambda name: "1.2.3")
    assert revision.revision() == "1.2.3", "no repository"
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "somebody else's")
    assert revision.revision() == "1.2.3", "not of this repository"
    git("add", ".")
    git("commit", "-q", "-m", "ours")
    git("tag", "v9")
    commit = git("rev-parse", "--short", "HEAD")
    assert revision.revision() == commit
    file.write_text("2")
    assert revision.revision() == f"{commit}+"
