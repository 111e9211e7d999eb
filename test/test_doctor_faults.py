"""The doctor's checks: of each thing that can be wrong with a graph, one line that says so and what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from healthy import MODEL, MS, NOW, Case, arrivals, poses

from bitvla_ros.nodes.doctor.facts import Arrival, Camera, Endpoint, Finding, Gated


def shift(case: Case, name: str, by: Callable[[int, Arrival], Arrival]) -> None:
    stream = case.stream(name)
    stream.arrivals = [by(index, arrival) for index, arrival in enumerate(stream.arrivals)]


def stamp(case: Case, name: str, by: Callable[[int, int], int]) -> None:
    shift(case, name, lambda index, arrival: replace(arrival, stamp=by(index, arrival.stamp)))


def no_publisher(case):
    case.stream("camera wrist").publishers = ()
    case.stream("camera wrist").arrivals = []
    case.stream("camera wrist").alike = ("/hand/color/image_raw",)


def wrong_type(case):
    case.stream("camera scene").publishers = (Endpoint("/driver", "sensor_msgs/msg/CompressedImage"),)


def two_publishers(case):
    stream = case.stream("end_effector_pose")
    stream.publishers = (*stream.publishers, Endpoint("/other", stream.type))


def unfit(case):
    stream = case.stream("joint_states")
    stream.publishers = (
        replace(stream.publishers[0], qos="best effort, volatile", mismatch="Best effort publisher and reliable subscription"),
    )


def silent(case):
    case.stream("camera scene").arrivals = []


def slow(case):
    case.stream("camera scene").arrivals = arrivals(8)


def rather_slow(case):
    case.stream("end_effector_pose").arrivals = arrivals(15)


def stalls(case):
    stream = case.stream("camera scene")
    stream.arrivals = [arrival for index, arrival in enumerate(arrivals(40)) if not 50 < index < 60]


def zero(case):
    stamp(case, "camera scene", lambda index, value: 0)


def backward(case):
    stamp(case, "joint_states", lambda index, value: value - (200 * MS if index % 20 == 19 else 0))


def two_values(case):
    case.stream("joint_states").publishers += (Endpoint("/gripper", "sensor_msgs/msg/JointState"),)
    case.stream("joint_states").contradictions = ["panda_finger_joint1"] * 12


def constant(case):
    stamp(case, "end_effector_pose", lambda index, value: NOW)


def future(case):
    stamp(case, "camera wrist", lambda index, value: value + 80 * MS)


def stale(case):
    stamp(case, "camera wrist", lambda index, value: value - 300 * MS)


def late_pose(case):
    case.controller({"simulator": False, "sink.kind": "pose", "limits.max_state_age": 0.2})
    case.stream("end_effector_pose").arrivals = arrivals(20, age=120 * MS)


def clock_ahead(case):
    stamp(case, "camera wrist", lambda index, value: value + 30 * MS)


def clock_behind(case):
    stamp(case, "camera wrist", lambda index, value: value - 80 * MS)


def late(case):
    stamp(case, "camera scene", lambda index, value: value - 120 * MS)


def refusals(case):
    case.graph.gated.refused["skewed"] = 30
    case.graph.gated.messages["skewed"] = "skewed: camera scene was captured 120 ms before joint_states"


def nothing_whole(case):
    case.graph.gated = Gated(messages={"missing_stream": "missing_stream: nothing has come from gripper"})


def same_picture(case):
    case.graph.cameras["wrist"].small = case.graph.cameras["scene"].small + 0.5


def dark(case):
    case.graph.cameras["wrist"].small = np.full((32, 32), 3.0, np.float32)


def undecodable(case):
    case.graph.cameras["wrist"] = Camera("wrist", "16UC1", problem="'16UC1' does not say which channel is red", digests=[(NOW, 1)])


def wrong_size(case):
    case.policy(image_height=480, image_width=640)


def small_picture(case):
    case.graph.cameras["scene"].height = 128


def frozen(case):
    case.graph.cameras["scene"].digests = [(value, 7) for value, _ in case.graph.cameras["scene"].digests]
    poses(case, lambda index, pose: replace(pose, position=pose.position + np.array([0.001 * index, 0, 0])))


def still(case):
    case.graph.tick = 0  # not a simulator's
    case.graph.cameras["scene"].digests = [(value, 7) for value, _ in case.graph.cameras["scene"].digests]


def nameless_frame(case):
    poses(case, lambda index, pose: replace(pose, frame=""))


def two_frames(case):
    poses(case, lambda index, pose: replace(pose, frame=("world", "base")[index % 2]))


def no_transform(case):
    case.policy(state_source="tf")
    case.graph.tf_problem = "no transform from 'panda_hand' to 'base'"


def late_transforms(case):
    case.policy(state_source="tf")
    case.controller({"state_source": "tf", "limits.max_state_age": 0.1})
    case.graph.tf_ages = [k * MS for k in range(0, 80, 5)]


def two_transforms(case):
    case.policy(state_source="tf")
    case.controller({"state_source": "tf", "base_frame": "fr3_link0"})


def no_fingers(case):
    case.graph.joints = {"robotiq_85_left_knuckle_joint": 0.2}


def same_signs(case):
    case.graph.joints["panda_finger_joint2"] = 0.02


def radians(case):
    case.graph.joints |= {"panda_finger_joint1": 0.8, "panda_finger_joint2": -0.8}


def lopsided(case):
    case.graph.joints["panda_finger_joint2"] = -0.005


def no_unit(case):
    poses(case, lambda index, pose: replace(pose, orientation=pose.orientation * 0.9))


def not_finite(case):
    poses(case, lambda index, pose: replace(pose, position=np.array([np.nan, 0, 0])))


def sign_flips(case):
    poses(case, lambda index, pose: replace(pose, orientation=pose.orientation * (-1) ** index))


def outside(case):
    case.controller({"limits.workspace_max": (0.4, 1.0, 1.0)})


def wrong_branch(case):
    poses(case, lambda index, pose: replace(pose, orientation=-pose.orientation))


def turned_hand(case):
    poses(case, lambda index, pose: replace(pose, orientation=np.array([1.0, -1.0, 0.0, 0.0]) / np.sqrt(2)))


def upright_hand(case):
    poses(case, lambda index, pose: replace(pose, orientation=np.array([0.0, 0.0, 0.0, 1.0])))


def other_frame(case):
    poses(case, lambda index, pose: replace(pose, position=np.array([-0.1, 0.0, 0.9])))


def nobody_listens(case):
    case.graph.outlets = (replace(case.graph.outlets[0], subscriptions=()),)


def second_commander(case):
    outlet = case.graph.outlets[0]
    case.graph.outlets = (replace(outlet, publishers=(*outlet.publishers, Endpoint("/teleop", outlet.type))),)


def deaf_arm(case):
    outlet = case.graph.outlets[0]
    reader = Endpoint("/arm", outlet.type, "reliable, transient local", "Volatile publisher and transient local subscription")
    case.graph.outlets = (replace(outlet, subscriptions=(reader,)),)


def two_policies(case):
    case.graph.policies = (Endpoint("/policy", "c"), Endpoint("/other_policy", "c"))


def latched_fault(case):
    case.graph.health["controller"] = (2, "stopped: speed; call reset_fault to go on")


def no_head(case):
    case.model = None


def other_rate(case):
    case.model = replace(MODEL, control_hz=10.0)


def unknown_rate(case):
    case.model = replace(MODEL, control_hz=None)


def contradicted_rate(case):
    case.policy(control_hz=10.0)


def unpacked(case):
    case.model = replace(MODEL, packed=False)


def machine(**changes: object) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        case.machine = replace(case.machine, **changes)

    return change


def big_images(case):
    machine(transports="")(case)
    case.graph.cameras["scene"].bytes = 640 * 480 * 3


FAULTS: list[tuple[Callable[[Case], None], str, str, str]] = [
    (no_publisher, "camera wrist: topic", "fail", "--remap camera/wrist/image_raw:="),
    (wrong_type, "camera scene: topic", "fail", "CompressedImage"),
    (two_publishers, "end_effector_pose: topic", "fail", "/driver and /other"),
    (unfit, "joint_states: QoS", "fail", "Best effort publisher"),
    (silent, "camera scene: rate", "fail", "nothing came"),
    (slow, "camera scene: rate", "fail", "8.0 Hz"),
    (rather_slow, "end_effector_pose: rate", "warn", "20 Hz are needed"),
    (stalls, "camera scene: rate", "warn", "longest gap 250 ms"),
    (zero, "camera scene: stamps", "fail", "are zero"),
    (backward, "joint_states: stamps", "fail", "3 stamps went back, by up to 150 ms"),
    (two_values, "joint_states: stamps", "fail", "/driver and /gripper"),
    (constant, "end_effector_pose: stamps", "fail", "the same stamp"),
    (future, "camera wrist: stamps", "fail", "70 ms ahead"),
    (stale, "camera wrist: stamps", "fail", "age 310 ms"),
    (late_pose, "end_effector_pose: stamps", "fail", "age 120 ms, at most 120 ms; 100 ms are allowed"),
    (clock_ahead, "clock offsets", "warn", "camera wrist ahead"),
    (clock_behind, "clock offsets", "warn", "never younger than 50 ms"),
    (late, "skew", "fail", "camera scene is 120 ms behind"),
    (refusals, "gate", "warn", "refused: skewed 30"),
    (nothing_whole, "gate", "fail", "nothing has come from gripper"),
    (same_picture, "camera roles", "fail", "scene and wrist show the same picture"),
    (dark, "camera wrist: image", "warn", "of one colour"),
    (undecodable, "camera wrist: image", "fail", "which channel is red"),
    (wrong_size, "camera scene: image", "fail", "expects 640x480"),
    (small_picture, "camera scene: image", "warn", "the model sees 224x224"),
    (frozen, "camera scene: frozen", "fail", "although the arm moved"),
    (still, "camera scene: frozen", "warn", "wave a hand"),
    (nameless_frame, "frames", "fail", "names no frame"),
    (two_frames, "frames", "fail", "'base', 'world'"),
    (no_transform, "frames", "fail", "no transform"),
    (late_transforms, "frames", "fail", "at most 68 ms late"),
    (two_transforms, "frames", "fail", "panda_hand in fr3_link0"),
    (no_fingers, "gripper", "fail", "it has robotiq_85_left_knuckle_joint"),
    (same_signs, "gripper", "fail", "gripper_scale: [1, -1]"),
    (radians, "gripper", "fail", "too far for metres"),
    (lopsided, "gripper", "warn", "one finger's scale or offset"),
    (no_unit, "end effector", "fail", "norm 0.900"),
    (not_finite, "end effector", "fail", "not finite"),
    (sign_flips, "end effector", "fail", "changed sign 59 times"),
    (outside, "end effector", "fail", "outside the workspace in x"),
    (wrong_branch, "training data", "fail", "orientation_branch: [1.000, "),
    (turned_hand, "training data", "fail", "turned by"),
    (upright_hand, "training data", "warn", "none of the training data's"),
    (other_frame, "training data", "warn", "another frame"),
    (nobody_listens, "sink: listener", "fail", "nobody listens"),
    (second_commander, "sink: publishers", "fail", "/controller, /teleop"),
    (deaf_arm, "sink: listener", "fail", "transient local subscription"),
    (two_policies, "policy nodes", "fail", "/policy, /other_policy"),
    (latched_fault, "node controller", "fail", "call reset_fault"),
    (no_head, "model", "skip", "none was named"),
    (other_rate, "control rate", "fail", "set the controller's control_hz to 10"),
    (unknown_rate, "control rate", "fail", "does not say"),
    (contradicted_rate, "control rate", "fail", "the model's own 20"),
    (unpacked, "model", "warn", "bitvla pack"),
    (machine(liveliness=False), "middleware", "fail", "a dead policy would go unseen"),
    (machine(rmw="rmw_zenoh_cpp"), "middleware", "warn", "tested is rmw_fastrtps_cpp"),
    (machine(isa="", kernel_problem="the library is not there"), "kernels", "fail", "is not there"),
    (machine(isa="scalar"), "kernels", "warn", "BITVLA_ISA"),
    (machine(available=10**9), "memory", "fail", "needs about 2,085"),
    (machine(available=2_200_000_000), "memory", "warn", "2,200 MB"),
    (machine(shm=(64 * 2**20, 30 * 10**6)), "shared memory", "warn", "--shm-size"),
    (machine(shm=None), "shared memory", "warn", "no /dev/shm"),
    (big_images, "transports", "warn", "config/fastdds.xml"),
]


def name_of(fault: object) -> str:
    return getattr(fault, "__name__", "")


@pytest.mark.parametrize(("spoil", "check", "level", "words"), FAULTS, ids=[f"{name_of(f[0])}-{f[1]}" for f in FAULTS])
def test_each_fault_is_found_and_says_what_to_do(spoil, check, level, words):
    case = Case()
    assert spoil is no_head or case.findings().get(check, Finding(check, "ok", "")).level == "ok"
    spoil(case)
    finding = case.findings()[check]
    assert finding.level == level
    assert words in f"{finding.found}; {finding.remedy}"
    assert finding.remedy
