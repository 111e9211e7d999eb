"""A graph, or an arm's cell, in which the doctor finds nothing wrong; tests spoil one thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from bitvla_ros.action_convention import OSC
from bitvla_ros.nodes.doctor import examine
from bitvla_ros.nodes.doctor.expected import load_expected
from bitvla_ros.nodes.doctor.facts import Arrival, Camera, Endpoint, Expected, Finding, Gated, Graph, Machine, Model, Outlet, Pose, Stream
from bitvla_ros.nodes.doctor.sink import outlets
from bitvla_ros.nodes.doctor.streams import wanted

MS = 1_000_000
NOW = 1_800_000_000 * 1000 * MS  # ROS time at which the listening begins
STEADY = 5_000 * MS
SECONDS = 3
HAND = np.array([1.0, 0.0, 0.0, 0.0])  # downwards, on the branch of LIBERO's datasets
LOW = np.array([0.3, -0.2, 0.1, 2.9, -0.2, -0.2, 0.0, -0.04])
HIGH = np.array([0.7, 0.2, 0.5, 3.3, 0.2, 0.2, 0.04, 0.0])
MACHINE = Machine("rmw_fastrtps_cpp", True, isa="avx2", available=8 * 10**9, shm=(10**9, 10**9))
MODEL = Model("goal", True, 1_585_000_000, 8, 20.0, 224, LOW, HIGH, convention=OSC)


class Case:
    """A healthy graph around a simulator, or an arm that takes poses; a test spoils one thing."""

    def __init__(self, **controller: object) -> None:
        defaults = load_expected()
        self.expected = Expected("", dict(defaults.policy), dict(defaults.controller) | controller)
        self.machine, self.model = MACHINE, MODEL
        self.graph = Graph(began=STEADY, ended=STEADY + SECONDS * 1000 * MS, nodes=("/simulation",))
        random = np.random.default_rng(0)
        for item in wanted(self.expected):
            publishers = (Endpoint("/driver", item.type, "reliable, volatile"),)
            self.graph.streams[item.name] = Stream(item.name, item.topic, f"/{item.topic}", item.type, publishers, (), arrivals(20))
            if item.role:
                self.camera(item.role, random.uniform(0, 255, (32, 32)))
        self.graph.poses = [Pose(0, np.array([0.5, 0.0, 0.3]), HAND, "world")] * 60
        self.graph.joints = {"panda_joint1": 0.3, "panda_finger_joint1": 0.02, "panda_finger_joint2": -0.02}
        self.graph.gated = Gated(accepted=60)
        if self.expected.simulator:
            self.graph.tick = self.graph.streams["simulation_state"].arrivals[-1].stamp
        self.graph.outlets = tuple(
            Outlet(name, f"/{topic}", kind, (Endpoint("/controller", kind),), (Endpoint("/arm", kind),))
            for name, topic, kind, _ in outlets(self.expected)
        )

    def camera(self, role: str, small: np.ndarray) -> None:
        digests = [(arrival.stamp, index) for index, arrival in enumerate(self.graph.streams[f"camera {role}"].arrivals)]
        self.graph.cameras[role] = Camera(role, "rgb8", 256, 256, 256 * 256 * 3, "", digests, small.astype(np.float32))

    def stream(self, name: str) -> Stream:
        return self.graph.streams[name]

    def policy(self, **values: object) -> None:
        self.expected = replace(self.expected, policy={**self.expected.policy, **values})

    def controller(self, values: dict[str, object]) -> None:
        self.expected = replace(self.expected, controller={**self.expected.controller, **values})

    def findings(self, problem: str = "") -> dict[str, Finding]:
        return {finding.check: finding for finding in examine(self.expected, self.graph, self.machine, self.model, problem)}


def arrivals(hz: float, age: int = 10 * MS, seconds: float = SECONDS) -> list[Arrival]:
    moments = [round(k * 1000 * MS / hz) for k in range(int(seconds * hz))]
    return [Arrival(NOW + moment, NOW + moment + age, STEADY + moment + age) for moment in moments]


def arm(**controller: object) -> Case:
    given = {
        "simulator": False,
        "mode": "live",
        "sink.kind": "pose",
        "sink.silence_timeout": 0.1,
        "time_limit": 60.0,
        "sink.frame": "world",
    }
    return Case(**(given | controller))


def poses(case: Case, change: Callable[[int, Pose], Pose]) -> None:
    case.graph.poses = [change(index, pose) for index, pose in enumerate(case.graph.poses)]
