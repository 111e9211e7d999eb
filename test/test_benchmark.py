"""`bitvla bench`: a chunk through the real path, and what is counted. No test asserts a time."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from bitvla_ros.evaluation import benchmark, plots  # noqa: E402
from bitvla_ros.evaluation.workload import TEXT_TOKENS, sequence_length  # noqa: E402
from bitvla_ros.model import build  # noqa: E402
from bitvla_ros.model.config import preset  # noqa: E402
from bitvla_ros.model.tokenizer import byte_tokenizer  # noqa: E402
from bitvla_ros.policy.prompt import Prompt  # noqa: E402

CHUNK_KEYS = {"preset", "backend", "latency_ms", "breakdown_ms", "weights_bytes", "peak_rss_bytes", "idle", "threads", "machine"}


def test_chunk_of_nano_is_timed_part_by_part(tmp_path):
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-m", "bitvla_ros.cli", "bench", "--chunks", "2", "--warmup", "1", "--threads", "1", "--json"]
    command += ["--backend", "reference", "--plot", str(tmp_path / "chunk.png")]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) >= CHUNK_KEYS
    assert result["preset"] == "nano" and result["threads"] == 1 and result["chunks"] == 2 and result["backend"] == "reference"
    breakdown = result["breakdown_ms"]
    assert set(breakdown) == {"preprocess", "vision", "language", "head", "rest"}
    assert all(breakdown[part] > 0 for part in ("preprocess", "vision", "language", "head"))
    assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p99"]
    assert len(result["latencies_ms"]) == 2
    weights = result["weights_bytes"]
    assert 0 < weights["resident"] <= weights["ternary"] + weights["other"] < result["peak_rss_bytes"]
    assert (tmp_path / "chunk.png").stat().st_size > 10_000


def test_a_packed_weight_takes_two_bits_and_a_scale_a_matrix():
    model = build("nano")
    before = benchmark.weight_bytes(model)
    assert before["resident"] == before["ternary"] + before["other"] == sum(parameter.nbytes for parameter in model.parameters())
    layers = model.ternary_layers().values()
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    assert before["ternary"] == 4 * weights
    model.pack("reference")
    after = benchmark.weight_bytes(model)
    assert after["ternary"] == weights // 4 + 4 * len(layers)  # nano's sizes are multiples of 16
    assert after["other"] == before["other"]
    assert after["resident"] == after["ternary"] + after["other"]


def test_random_3b_is_timed_at_the_length_of_the_released_tokenizer():
    config = preset("3b")
    prompt = Prompt(byte_tokenizer(), image_tokens=config.vision.num_patches, cameras=2)
    full, ids = prompt(benchmark.INSTRUCTION), benchmark.shortened(prompt)(benchmark.INSTRUCTION)
    assert len(full) > len(ids) == 2 * config.vision.num_patches + TEXT_TOKENS
    assert len(ids) + config.action_tokens + 1 == sequence_length(config)
    assert ids[0] == full[0] and (ids == prompt.image_token_id).sum() == 512 and (ids == prompt.proprio_token_id).sum() == 1


def test_parts_can_be_timed_alone_on_what_they_were_given():
    model = build("nano").pack("reference")
    size, prompt = model.config.vision.image_size, [model.config.image_token_id] * 98 + [model.config.proprio_token_id, 65]
    with benchmark.first_inputs(model, benchmark.PARTS) as inputs:
        for value in (0.0, 1.0):
            model.predict(torch.full((2, 3, size, size), value), torch.tensor(prompt), torch.zeros(8))
    assert set(inputs) == {"vision", "connector", "language", "action_head"}
    assert not inputs["vision"][0].any()  # the first ones

    def timer(call):
        shape = call().shape
        return lambda: shape[0] * shape[1] / 1000

    # vision and connector [2, 49, hidden], language [1, 56 that are read, hidden], head [1, 8, 7]
    assert benchmark.parts_alone(model, inputs, timer) == {"vision": 0.196, "language": 0.056, "head": 0.008}


@pytest.mark.parametrize(
    "options", ["--preset 3b --kernels", "--plot picture.bmp", "--plot /no/such/folder/a.png", "--backend gpu", "--chunks 0"]
)
def test_options_that_cannot_work_are_refused_at_once(options, capsys):
    parser = ArgumentParser()
    benchmark.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(options.split())
    assert "error" in capsys.readouterr().err


def test_distribution_of_few_equal_latencies_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    what = {"preset": "nano", "model": None, "backend": "cpu", "threads": 1, "machine": "x86_64", "idle": None, "date": "2026-01-01"}
    times = {"latency_ms": {"p50": 5.0, "p99": 5.0}, "latencies_ms": [5.0], "breakdown_ms": {"preprocess": 1.0, "vision": 4.0}}
    result = what | times | {"weights_bytes": {"ternary": 1, "other": 1, "resident": 1}, "peak_rss_bytes": 1}
    plots.draw(result, tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 10_000
