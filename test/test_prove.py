"""`bitvla prove`: what injects the faults, and a short run on real graphs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from graph import TestGraph
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter
from rclpy.qos import QoSProfile
from robot import MS, Robot, recording
from sensor_msgs.msg import Image
from std_msgs.msg import String, UInt64
from std_srvs.srv import SetBool

from bitvla_ros import cli
from bitvla_ros.evaluation.proofs.stopping import Sent
from bitvla_ros.nodes.conversions import ImageError, image_from_msg, image_to_msg, stamp_to_ns
from bitvla_ros.nodes.prove.cameras import CORRUPTIONS, JUMPS, Cameras
from bitvla_ros.nodes.prove.faults import FAULTS
from bitvla_ros.nodes.prove.lifecycle import largest_growth
from bitvla_ros.nodes.prove.subject import SubjectNode
from bitvla_ros.nodes.prove.verb import PROOFS
from bitvla_ros.nodes.qos import LATCHED, SENSOR
from bitvla_ros.nodes.recorder import GraphError

pytestmark = pytest.mark.ros

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def spinning(graph: TestGraph, node: Node) -> Iterator[Node]:
    graph.executor.add_node(node)
    try:
        yield node
    finally:
        graph.executor.remove_node(node)
        node.destroy_node()


# ---- cameras that fail


class Cell:
    """A camera before and behind the node that spoils its images."""

    def __init__(self, graph: TestGraph) -> None:
        self.graph = graph
        self.sound = graph.node.create_publisher(Image, "sound/camera/scene/image_raw", SENSOR)
        self.fault = graph.node.create_publisher(String, "camera_fault", LATCHED)
        self.images = graph.collect(Image, "camera/scene/image_raw", QoSProfile(depth=100, reliability=SENSOR.reliability))
        self.began = graph.collect(UInt64, "camera_fault_began", QoSProfile(depth=10))
        self.count = 0
        graph.wait(lambda: (self.show(), graph.spin(0.02), self.images)[2], "image")

    def show(self) -> int:
        """Publish the next image; its stamp."""
        self.count += 1
        stamp = self.graph.node.get_clock().now().nanoseconds
        self.sound.publish(image_to_msg(np.full((8, 8, 3), self.count % 256, np.uint8), stamp, "scene"))
        return stamp

    def begin(self, fault: str) -> None:
        """Let the fault begin, and wait for the first image that suffers."""
        self.began.clear()
        self.fault.publish(String(data=fault))
        self.graph.wait(lambda: (self.show(), self.graph.spin(0.02), self.began)[2], "fault")
        self.images.clear()

    def end(self) -> None:
        self.fault.publish(String(data=""))
        good = lambda: any(stamp_to_ns(image.header.stamp) == self.stamp for image in self.images)  # noqa: E731
        self.graph.wait(lambda: (self._remember(), self.graph.spin(0.02), good())[2], "good image")

    def _remember(self) -> None:
        self.stamp = self.show()

    def see(self, count: int) -> list[Image]:
        self.graph.wait(lambda: (self.show(), self.graph.spin(0.01), len(self.images) >= count)[2], "images")
        return self.images[:count]


@pytest.fixture(scope="module")
def cell(tmp_path_factory) -> Iterator[Cell]:
    with TestGraph(tmp_path_factory.mktemp("cameras")) as graph, spinning(graph, Cameras(["scene"], context=graph.context)):
        yield Cell(graph)


def test_a_lost_camera_is_silent(cell: Cell):
    cell.begin("camera_loss")
    for _ in range(5):
        cell.show()
        cell.graph.spin(0.02)
    assert not cell.images
    cell.end()


def test_a_delayed_camera_shows_the_past(cell: Cell):
    cell.begin("camera_delay")
    images = cell.see(5)
    now = cell.graph.node.get_clock().now().nanoseconds
    assert all(now - stamp_to_ns(image.header.stamp) >= 400 * MS for image in images)
    cell.end()


def test_a_frozen_camera_repeats_itself_under_new_stamps(cell: Cell):
    cell.begin("frozen_camera")
    images = cell.see(5)
    assert len({bytes(image.data) for image in images}) == 1
    stamps = [stamp_to_ns(image.header.stamp) for image in images]
    assert stamps == sorted(set(stamps))
    cell.end()


def test_corrupt_images_do_not_decode_whichever_way_they_are_corrupt(cell: Cell):
    for _ in CORRUPTIONS:
        cell.begin("camera_corruption")
        with pytest.raises(ImageError):
            image_from_msg(cell.see(1)[0])
        cell.end()


def test_a_clock_leaps_both_ways_and_forgets_the_time(cell: Cell):
    leaps = set()
    for _ in JUMPS:
        cell.begin("clock_jump")
        stamp, now = stamp_to_ns(cell.see(1)[0].header.stamp), cell.graph.node.get_clock().now().nanoseconds
        leaps.add("zero" if stamp == 0 else "ahead" if stamp > now + 500 * MS else "back" if stamp < now - 500 * MS else "none")
        cell.end()
    assert leaps == {"zero", "ahead", "back"}


# ---- the policy that hangs


def test_an_inference_that_hangs_says_nothing_until_it_is_released(tmp_path):
    overrides = [RosParameter(name, value=value) for name, value in (("policy", "replay"), ("model", str(recording(tmp_path / "r.npz"))))]
    with TestGraph(tmp_path) as graph:
        node = SubjectNode(["scene"], "", context=graph.context, parameter_overrides=overrides)
        with spinning(graph, node):
            node.start()
            robot = Robot(graph, cameras=("scene",))
            robot.task()
            robot.answer()
            assert graph.call(SetBool, "policy/hang", SetBool.Request(data=True)).success
            graph.spin(0.1)
            seen = len(robot.chunks)
            for _ in range(10):
                robot.feed()
                graph.spin(0.02)
            assert len(robot.chunks) == seen
            graph.call(SetBool, "policy/hang", SetBool.Request(data=False))
            robot.answer()
            graph.call(SetBool, "policy/hang", SetBool.Request(data=True))
            robot.feed()
            node.stop()  # a hanging one can be stopped all the same


# ---- where another instruction takes over


def commands(*rows: tuple[int, float]) -> list[Sent]:
    """(epoch, offset along x) a step apart; an offset of zero is a hold."""
    return [
        Sent(index * 50 * MS, index * 50 * MS, epoch, size == 0, np.array([size, 0, 0, 0, 0, 0, 1], np.float32))
        for index, (epoch, size) in enumerate(rows)
    ]


def test_a_plan_ends_with_the_first_step_of_its_ramp_or_with_the_first_command_of_the_next():
    change = FAULTS["instruction_change"].find
    assert change(commands((1, 0.8), (1, 0.8), (1, 0.6), (2, 0.4), (2, 0.2), (2, 0.0)), 0, 1) == 2
    assert change(commands((1, 0.8), (1, 0.8), (1, 0.7), (2, 0.4), (2, 0.2), (2, 0.0)), 0, 1) == 3
    assert change(commands((1, 0.8), (1, 0.8), (1, 0.6), (1, 0.4)), 0, 1) is None


# ---- the whole


def test_a_short_run_stops_every_time_and_says_so_in_json_and_a_report(tmp_path):
    """Times are no matter here: the machine may be full."""
    pytest.importorskip("matplotlib", reason="no matplotlib: pip install '.[plot]'")
    names = ("policy_sigkill", "frozen_camera", "stale_refused", "lifecycle")
    command = [sys.executable, "-m", "bitvla_ros.cli", "prove", "--json", "--trials", "1", "--output", str(tmp_path)]
    command += [part for name in names for part in ("--only", name)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    result = json.loads(done.stdout)
    faults = [(fault["name"], fault["trials"], fault["stopped"]) for fault in result["faults"]]
    assert faults == [("policy_sigkill", 1, 1), ("frozen_camera", 1, 1)], result.get("error")
    assert [promise["name"] for promise in result["promises"]] == ["stale_refused", "lifecycle"]
    assert all(promise["met"] for promise in result["promises"]), result["error"]
    report = (tmp_path / "report.md").read_text()
    assert all(f"`{name}`" in report for name in names) and (tmp_path / "faults.png").is_file()


def test_memory_that_grows_is_found_and_that_of_a_start_is_none():
    settled = [100.0] * 10 + [150.0] * 190
    leaking = [100.0 + 0.05 * k for k in range(200)]
    name, growth = largest_growth({"controller": settled, "policy": leaking})
    assert name == "policy" and growth == pytest.approx(5.0)
    assert largest_growth({"controller": settled})[1] == pytest.approx(0.0)
    assert largest_growth({"controller": leaking[:20]})[1] == 0.0, "too few to tell"


def test_the_proofs_have_the_names_that_were_fixed():
    assert {"policy_sigkill", "policy_sigstop", "inference_hang", "camera_loss", "frozen_camera"} <= set(PROOFS)
    assert {"stale_refused", "old_epoch", "seam", "lifecycle", "second_publisher", "player_rate", "false_stop", "fuzz"} <= set(PROOFS)


def test_a_proof_that_breaks_off_does_not_keep_the_others_from_being_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="no matplotlib: pip install '.[plot]'")

    def break_off(*_: object) -> None:
        raise GraphError("nothing moves")

    monkeypatch.setitem(PROOFS, "seam", replace(PROOFS["seam"], run=break_off))
    arguments = ["prove", "--json", "--trials", "1", "--only", "seam", "--only", "stale_refused", "--output", str(tmp_path)]
    assert cli.main(arguments) == 1
    result = json.loads(capsys.readouterr().out)
    assert [promise["name"] for promise in result["promises"]] == ["stale_refused"]
    assert "seam" in result["error"] and "nothing moves" in result["error"]
