"""The doctor's checks: nothing to say of a healthy graph, and of each thing that can be wrong one line that says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from bitvla_ros import cli
from bitvla_ros.nodes.doctor import examine, show
from bitvla_ros.nodes.doctor.expected import load_expected
from bitvla_ros.nodes.doctor.facts import Arrival, Camera, Endpoint, Expected, Finding, Gated, Graph, Machine, Model, Outlet, Pose, Stream
from bitvla_ros.nodes.doctor.sink import outlets
from bitvla_ros.nodes.doctor.streams import wanted
from bitvla_ros.nodes.profiles import ProfileError
from bitvla_ros.nodes.sinks import ACCEPTANCE

MS = 1_000_000
NOW = 1_800_000_000 * 1000 * MS  # ROS time at which the listening begins
STEADY = 5_000 * MS
SECONDS = 3
HAND = np.array([1.0, 0.0, 0.0, 0.0])  # downwards, on the branch of LIBERO's datasets
LOW = np.array([0.3, -0.2, 0.1, 2.9, -0.2, -0.2, 0.0, -0.04])
HIGH = np.array([0.7, 0.2, 0.5, 3.3, 0.2, 0.2, 0.04, 0.0])
MACHINE = Machine("rmw_fastrtps_cpp", True, isa="avx2", available=8 * 10**9, shm=(10**9, 10**9), transports="LARGE_DATA")
MODEL = Model("goal", True, 1_585_000_000, 8, 20.0, 224, LOW, HIGH)


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


@pytest.mark.parametrize("make", [Case, arm], ids=["simulator", "arm"])
def test_a_healthy_graph_is_ok_in_every_line(make):
    found = make().findings()
    assert {finding.level for finding in found.values()} == {"ok"}
    assert not any(finding.remedy for finding in found.values())
    assert len(found) > 25


def test_a_simulator_in_lockstep_needs_no_rate():
    case = Case()
    case.graph.lockstep, case.graph.gated = True, Gated(accepted=1)
    for stream in case.graph.streams.values():
        stream.arrivals = [Arrival(NOW, NOW + 3600 * 1000 * MS, STEADY)]  # the tick has been waiting for an hour
    case.graph.tick = NOW
    for camera in case.graph.cameras.values():
        camera.digests = [(NOW, 1)]
    assert {finding.level for finding in case.findings().values()} == {"ok"}


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


def constant(case):
    stamp(case, "end_effector_pose", lambda index, value: NOW)


def future(case):
    stamp(case, "camera wrist", lambda index, value: value + 80 * MS)


def stale(case):
    stamp(case, "camera wrist", lambda index, value: value - 300 * MS)


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
    (constant, "end_effector_pose: stamps", "fail", "the same stamp"),
    (future, "camera wrist: stamps", "fail", "70 ms ahead"),
    (stale, "camera wrist: stamps", "fail", "age 310 ms"),
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
    (big_images, "transports", "warn", "FASTDDS_BUILTIN_TRANSPORTS=LARGE_DATA"),
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


@pytest.mark.parametrize(
    ("controller", "check", "level", "words"),
    [
        ({"sink.silence_timeout": 0.0}, "sink: silence", "fail", "live mode is refused"),
        ({"sink.silence_timeout": 0.0, "sink.accept_no_timeout": ACCEPTANCE}, "sink: silence", "warn", "accepts that"),
        ({"sink.silence_timeout": 0.0, "sink.accept_no_timeout": "yes"}, "sink: silence", "fail", ACCEPTANCE),
        ({"sink.silence_timeout": 2.0}, "sink: silence", "warn", "2000 ms after the last setpoint"),
        ({"sink.silence_timeout": 0.05, "sink.rate": 30.0}, "sink: silence", "fail", "raise sink.rate"),
        ({"sink.frame": "fr3_link0"}, "sink: frame", "fail", "'world', the arm takes targets in 'fr3_link0'"),
        ({"joints": ("fr3_joint1",)}, "joints", "fail", "lacks fr3_joint1"),
        ({"joints": ("panda_joint1",)}, "joints", "ok", "not known"),
        ({"joints": ("panda_joint1",), "limits.joint_min": (-1.0, 0.0), "limits.joint_max": (1.0, 1.0)}, "joints", "fail", "2 limits"),
        ({"joints": ("panda_joint1",), "limits.joint_min": (-1.0,), "limits.joint_max": (0.32,)}, "joints", "fail", "within 0.05 rad"),
        ({"joints": ("panda_joint1",), "limits.joint_min": (-1.0,), "limits.joint_max": (0.4,)}, "joints", "ok", "inside their limits"),
    ],
)
def test_what_would_go_wrong_with_an_arm_is_found(controller, check, level, words):
    finding = arm(**controller).findings()[check]
    assert finding.level == level and words in f"{finding.found}; {finding.remedy}"


@pytest.mark.parametrize("mode", ["shadow", "dry"])
def test_what_only_live_mode_needs_is_no_failure_before(mode):
    case = arm(**{"mode": mode, "sink.silence_timeout": 0.0})
    second_commander(case)
    found = case.findings()
    assert {check for check, finding in found.items() if finding.level != "ok"} == {"sink: publishers", "sink: silence"}
    assert {finding.level for finding in found.values()} == {"ok", "warn"}


def test_an_arm_needs_no_simulator_but_the_pose_that_its_frame_and_sink_are_about():
    case = arm(**{"gripper.kind": "float64"})
    assert "simulation_state" not in case.graph.streams
    assert [outlet.topic for outlet in case.graph.outlets] == ["/target_pose", "/target_gripper"]


def test_an_empty_graph_says_where_it_looked_and_blames_nothing_else_twice():
    case = Case()
    case.graph.nodes, case.graph.domain, case.graph.poses, case.graph.joints = (), "17", [], {}
    case.graph.outlets = (replace(case.graph.outlets[0], publishers=(), subscriptions=()),)
    for stream in case.graph.streams.values():
        stream.publishers, stream.arrivals = (), []
    found = case.findings()
    assert "domain 17" in found["graph"].found and "ROS_DOMAIN_ID" in found["graph"].remedy
    about = [check for check, finding in found.items() if finding.level == "fail"]
    assert about == ["graph", *(f"{name}: topic" for name in case.graph.streams), "sink: listener"]


def test_orientation_branch_puts_a_flipping_quaternion_right():
    case = Case()
    sign_flips(case)
    case.policy(orientation_branch=tuple(HAND))
    assert {finding.level for finding in case.findings().values()} == {"ok"}


@given(width=st.floats(0.0, 0.08), scales=st.tuples(st.sampled_from([1.0, -1.0]), st.sampled_from([1.0, -1.0])))
def test_the_scale_that_is_proposed_for_a_gripper_puts_it_right(width, scales):
    """Whatever the signs of its fingers."""
    case = Case()
    case.graph.joints |= {"panda_finger_joint1": scales[0] * width / 2, "panda_finger_joint2": scales[1] * width / 2}
    finding = case.findings()["gripper"]
    if finding.level == "fail":
        proposed = json.loads(finding.remedy.partition("gripper_scale: ")[2])
        case.policy(gripper_scale=tuple(map(float, proposed)))
        finding = case.findings()["gripper"]
    assert finding.level == ("ok" if width / 2 >= 0.004 else "skip")  # a closed one shows no signs


@given(angle=st.sampled_from([90, -90, 180]), tilt=st.floats(-0.15, 0.15))
def test_a_turned_hand_is_told_from_a_tilted_one(angle, tilt):
    from bitvla_ros.control.rotation import matrix, turned

    case = Case()
    tilted = turned(HAND, np.array([tilt, 0.0, 0.0]))
    poses(case, lambda index, pose: replace(pose, orientation=tilted))
    assert case.findings()["training data"].level == "ok"
    hand = turned(tilted, np.radians(angle) * matrix(tilted)[:, 2])
    poses(case, lambda index, pose: replace(pose, orientation=hand))
    assert f"turned by {angle} degrees" in case.findings()["training data"].found


def test_a_profile_is_laid_over_the_defaults(tmp_path):
    path = tmp_path / "cell.yaml"
    path.write_text(
        """
/**/policy:
  ros__parameters: {cameras: [front], gripper_joints: [knuckle]}
/**/controller:
  ros__parameters:
    simulator: false
    sink: {kind: twist, silence_timeout: 0.25}
    limits.speed: 0.1
/**/launch:
  ros__parameters: {remappings: ["joint_states:=/arm/joint_states"]}
"""
    )
    expected = load_expected(str(path))
    assert expected.policy["cameras"] == ("front",) and expected.policy["gripper_joints"] == ("knuckle",)
    controller = expected.controller
    assert (controller["sink.kind"], controller["sink.silence_timeout"], controller["limits.speed"]) == ("twist", 0.25, 0.1)
    assert controller["control_hz"] == 20.0 and not expected.simulator
    assert expected.remappings == ("joint_states:=/arm/joint_states",)
    assert [item.topic for item in wanted(expected)] == ["camera/front/image_raw", "joint_states", "end_effector_pose"]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ("{sink.rate: fast}", "sink.rate is 'fast': give number"),
        ("{sink.rate: 5.0}", "from 10 to 1000"),
        ("{sink.rat: 100.0}", "no parameter sink.rat"),
        ("{limits.workspace_min: [3.0, 0.0, 0.0]}", "not below workspace_max"),
        ("{sink.kind: pose, gripper.kind: parallel_gripper}", "gripper.joint is empty"),
    ],
)
def test_a_profile_that_the_controller_would_refuse_is_refused(tmp_path, parameters, words):
    path = tmp_path / "cell.yaml"
    path.write_text(f"/**/controller:\n  ros__parameters: {parameters}\n")
    with pytest.raises(ProfileError, match=words):
        load_expected(str(path))


def test_the_report_shows_every_line_and_its_remedy(capsys):
    case = Case()
    same_signs(case)
    findings = list(case.findings().values())
    counts = {level: sum(finding.level == level for finding in findings) for level in ("ok", "warn", "fail", "skip")}
    show({"checks": [vars(finding) for finding in findings], "counts": counts})
    printed = " ".join(capsys.readouterr().out.split())
    assert "→ set gripper_scale: [1, -1]" in printed and "1 failed" in printed
    assert all(finding.check in printed for finding in findings)


def test_a_remapping_that_makes_no_sense_is_one_message(capsys):
    assert cli.main(["doctor", "--seconds", "0.5", "--remap", "joint_states"]) == 2
    assert "cannot join the graph" in capsys.readouterr().err
