"""`bitvla demo` in its short form, through the real graph."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bitvla_ros.evaluation.proofs.stopping import Target
from bitvla_ros.nodes import simulated_arm
from bitvla_ros.nodes.demo import failure, policy_label, setpoint_report

pytest.importorskip("rclpy", reason="no ROS here: pip install '.[ros]' or source a ROS installation")
pytest.importorskip("bitvla_ros.msg", reason="the messages are not built: pip install '.[ros]' or colcon build")
imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.ros


def demo(*arguments: str, timeout: float = 110) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bitvla_ros.cli", "demo", "--json", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, env={**os.environ, "OMP_NUM_THREADS": "2"})


def frames_of(video: str) -> int:
    reader = imageio_ffmpeg.read_frames(str(ROOT / video))
    next(reader)
    return sum(1 for _ in reader)


def processes_mentioning(text: str) -> list[str]:
    """Command lines of this machine's processes that contain a text."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if text.encode() in path.read_bytes():
                lines.append((path.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return lines


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path, subprocess.CompletedProcess[str]]:
    """Both policies for 40 steps in lockstep."""
    output = tmp_path_factory.mktemp("demo")
    done = demo("--steps", "40", "--seed", "3", "--task", "1", "--output", str(output))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), output, done


def test_json_tells_of_the_expert_and_of_bitvla(short):
    result, _, _ = short
    assert [episode["policy"] for episode in result["episodes"]] == ["expert", "bitvla"]
    for episode in result["episodes"]:
        assert (episode["suite"], episode["task"], episode["seed"], episode["mode"]) == ("tabletop_spatial", 1, 3, "lockstep")
        assert episode["success"] is False and episode["outcome"] == "time_limit"
        assert episode["steps"] == 40
        assert episode["chunks"] == 5  # eight actions each
        assert 0 < episode["latency_ms"]["p50"] <= episode["latency_ms"]["p99"]
        # In lockstep eight actions of 50 ms are played from an observation of age 0.
        assert 0 <= episode["chunk_age_ms"]["p50"] <= episode["chunk_age_ms"]["p99"] <= 350
        assert episode["chunk_age_ms"]["p99"] > 300
        assert episode["instruction"]


def test_videos_show_every_tick_and_the_last_for_a_while(short):
    result, output, _ = short
    for episode in result["episodes"]:
        assert Path(episode["video"]) == output / f"{episode['policy']}.mp4"
        assert episode["frames_missing"] == 0
        assert episode["frames"] == 41  # the tick of each command, and the one after the last
        assert frames_of(episode["video"]) == 41 + 30
    assert (output / "demo.png").is_file()


def test_a_policy_is_named_and_so_are_random_weights(short):
    _, _, done = short
    assert "BitVLA nano" in done.stderr and "random weights" not in done.stderr
    assert policy_label("bitvla", "random:nano") == "BitVLA nano, random weights"


def test_logs_of_every_node_are_kept(short):
    _, output, _ = short
    assert {path.stem for path in (output / "logs").iterdir()} == {"simulation", "controller", "policy_expert", "policy_bitvla"}


def test_nothing_stays_behind(short):
    _, _, done = short
    domain = done.stderr.partition("ROS domain ")[2].partition(",")[0]
    assert domain.isdigit()
    left = [line for line in processes_mentioning(f"ROS_DOMAIN_ID={domain}\0") if "bitvla_ros" in line]
    assert left == []


def test_expert_succeeds_through_the_graph(tmp_path: Path):
    done = demo("--policy", "expert", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (episode,) = json.loads(done.stdout)["episodes"]
    assert episode["success"] is True and episode["outcome"] == "success"


def test_the_shipped_policy_succeeds_through_the_graph(tmp_path: Path):
    done = demo("--policy", "bitvla", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (episode,) = json.loads(done.stdout)["episodes"]
    assert (episode["model"], episode["task"]) == ("BitVLA nano", 1)
    assert episode["instruction"] == "pick up the red block next to the bowl and place it on the plate"
    assert episode["success"] is True and episode["outcome"] == "success"


def test_an_arm_is_driven_by_poses_that_never_jump(tmp_path: Path):
    done = demo("--mode", "arm", "--policy", "expert", "--steps", "80", "--output", str(tmp_path))  # the first chunk may be late
    assert done.returncode == 0, done.stderr
    (episode,) = json.loads(done.stdout)["episodes"]
    assert episode["mode"] == "arm" and episode["outcome"] == "time_limit"
    assert episode["setpoints"] > 100 and episode["seam_violations"] == 0 and episode["seam_problems"] == []
    assert 0 < episode["largest_share"] < 1.02
    assert {"rate_hz", "misses", "jitter_ms"} <= set(episode)
    assert episode["frames"] > 2 and frames_of(episode["video"]) == episode["frames"] + 30
    assert episode["chunks"] > 0 and episode["chunk_age_ms"]["p50"] > 0


def test_a_setpoint_that_jumps_fails_the_demo():
    pose = np.array([0.0, 0.0, 0.3]), np.array([1.0, 0.0, 0.0, 0.0])
    targets = [Target(k, k * 10_000_000, pose[0] + (0.02 if k == 5 else 0.0), pose[1]) for k in range(10)]
    result = {"policy": "bitvla", "model": "BitVLA nano", "outcome": "success", **setpoint_report(targets)}
    assert result["seam_violations"] == 3, "there, back, and to rest again"
    problem = failure([result], argparse.Namespace(mode="arm", steps=None))
    assert problem is not None and "3 setpoints of BitVLA nano broke a limit" in problem


def test_what_goes_wrong_with_an_arm_is_the_controllers_own_limits():
    assert simulated_arm.limits().max_state_age == simulated_arm.controller()["limits.max_state_age"] == 0.2


def test_unknown_suite_is_refused_with_the_reason(tmp_path: Path):
    done = demo("--suite", "tabletop_nonsense", "--output", str(tmp_path))
    assert done.returncode == 2
    assert "tabletop_nonsense" in json.loads(done.stdout)["error"]


def test_checkpoint_that_is_not_there_is_refused_with_the_reason(tmp_path: Path):
    done = demo("--policy", "bitvla", "--model", str(tmp_path / "nowhere"), "--output", str(tmp_path))
    assert done.returncode == 2
    assert "nowhere" in json.loads(done.stdout)["error"]
