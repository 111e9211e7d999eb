from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from bitvla_ros.evaluation.benchmark import weight_bytes  # noqa: E402
from bitvla_ros.model import build  # noqa: E402


def test_chunk_of_nano_is_timed_part_by_part():
    command = [sys.executable, "-m", "bitvla_ros.cli", "bench", "--chunks", "2", "--warmup", "1", "--threads", "1", "--json"]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["preset"] == "nano" and result["threads"] == 1 and result["chunks"] == 2
    breakdown = result["breakdown_ms"]
    assert set(breakdown) == {"preprocess", "vision", "language", "head", "rest"}
    assert all(breakdown[part] > 0 for part in ("preprocess", "vision", "language", "head"))
    assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p99"]
    assert result["peak_rss_bytes"] > result["weights_bytes"]["resident"]


def test_every_weight_is_counted_once_frozen_or_not():
    model = build("nano")
    before = weight_bytes(model)
    assert before["resident"] == sum(parameter.numel() * 4 for parameter in model.parameters())
    assert 0 < before["ternary"] < before["resident"] == before["ternary"] + before["other"]
    assert weight_bytes(model.freeze()) == before
