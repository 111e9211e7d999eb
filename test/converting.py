"""The verb `bitvla convert`, for tests of what it makes and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bitvla_ros import cli
from bitvla_ros.training.dataset import Dataset, Episode


def convert(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    """Its exit code, what it prints with --json, and what it says beside."""
    code = cli.main(["convert", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def converted(capsys: pytest.CaptureFixture[str], out: Path, source: object, *arguments: object) -> Episode:
    """The first episode of `source`."""
    code, _, err = convert(capsys, source, out, *arguments)
    assert code == 0, err
    return Dataset(out).episode(0)


def refused(capsys: pytest.CaptureFixture[str], out: Path, source: object, *arguments: object) -> str:
    """Why; nothing is left behind."""
    code, result, _ = convert(capsys, source, out, *arguments)
    assert code == 2
    assert not out.exists()
    assert [path.name for path in out.parent.iterdir() if "partial" in path.name] == []
    return str(result["error"])
