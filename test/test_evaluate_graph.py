"""`bitvla eval` through the real graph says what it says in process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="no ROS here: pip install '.[ros]' or source a ROS installation")
pytest.importorskip("bitvla_ros.msg", reason="the messages are not built: pip install '.[ros]' or colcon build")

ROOT = Path(__file__).resolve().parents[1]
SUITE = "tabletop_spatial"  # the one with the shortest episodes
pytestmark = pytest.mark.ros


def evaluate(model: str, through: str, *arguments: str, episodes: int = 2) -> tuple[int, dict, str]:
    options = ["--suite", SUITE, "--episodes", str(episodes), "--through", through, "--json", *arguments]
    if model != "expert" or "--output" in arguments:  # which looks at pictures
        options += ["--image-size", "64"]
    command = [sys.executable, "-m", "bitvla_ros.cli", "eval", model, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def without_latency(result: dict) -> dict:
    return {name: value for name, value in result.items() if name not in ("latency_ms", "error")}


@pytest.mark.parametrize(("model", "episodes", "successes"), [("expert", 2, 2), ("random:nano", 1, 0)])
def test_both_ways_agree_on_every_episode(model: str, episodes: int, successes: int):
    code, process, _ = evaluate(model, "process", episodes=episodes)
    code_of_graph, graph, errors = evaluate(model, "ros", episodes=episodes)
    assert code == code_of_graph == 0, errors
    assert without_latency(graph) == without_latency(process)
    assert (graph["episodes"], graph["successes"]) == (episodes, successes)
    assert 0 < graph["latency_ms"]["p50"] <= graph["latency_ms"]["p99"]


@pytest.mark.timeout(480)
def test_an_episode_is_played_on_an_arm_that_is_led_by_poses():
    for _ in range(4):
        code, result, errors = evaluate("expert", "arm", episodes=1)
        if "the policy is gone" not in errors:  # on a full machine its process may be held up for longer than is allowed
            break
    assert code == 0 and result["episodes"] == 1, errors
    (episode,) = result["episodes_detail"]
    assert episode["steps"] > 40  # a loaded machine plays badly, but it plays
    assert result["latency_ms"]["p50"] is not None


def test_fault_ends_its_episode_and_not_the_next(tmp_path: Path):
    """Chunks for another rate are refused: the controller latches a fault in each episode."""
    pytest.importorskip("imageio_ffmpeg")
    from checkpoints import write_checkpoint

    checkpoint = str(write_checkpoint(tmp_path))
    output = tmp_path / "report"
    code, graph, errors = evaluate(checkpoint, "ros", "--control-hz", "10", "--output", str(output))
    assert code == 1 and "control_hz" in graph["error"], errors
    assert [(episode["success"], episode["steps"]) for episode in graph["episodes_detail"]] == [(False, 0), (False, 0)]
    page = (output / "index.html").read_text()
    assert page.count("control_hz") >= 2
    assert {path.stem for path in (output / "logs").iterdir()} == {"simulation", "controller", "policy"}
