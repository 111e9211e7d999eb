"""The doctor's checks: nothing to say of a healthy graph or arm, what an arm needs, what remedies do, profiles and the report."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from healthy import HAND, MS, NOW, STEADY, Case, arm, poses
from test_doctor_faults import same_signs, second_commander, sign_flips

from bitvla_ros import cli
from bitvla_ros.action_convention import OSC, ActionConvention
from bitvla_ros.nodes.doctor import show
from bitvla_ros.nodes.doctor.expected import load_expected
from bitvla_ros.nodes.doctor.facts import Arrival, Gated
from bitvla_ros.nodes.doctor.streams import wanted
from bitvla_ros.nodes.sinks import ACCEPTANCE
from bitvla_ros.profiles import ProfileError


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


def test_a_model_in_other_units_is_found():
    case = Case()
    case.model = replace(case.model, convention=ActionConvention(1.0, 1.0))
    finding = case.findings()["units"]
    assert finding.level == "fail" and "metres_per_unit is 1, the controller's 0.0135" in finding.found
    assert finding.remedy.startswith("set limits.metres_per_unit to 1")
    case.model = replace(case.model, convention=ActionConvention(radians_per_unit=0.07))
    finding = case.findings()["units"]
    assert finding.level == "warn" and "does not say what its actions mean" in finding.found and "bitvla pack" in finding.remedy


def test_a_model_of_another_frame_or_branch_is_found():
    case = Case()
    case.policy(orientation_branch=(-1.0, 0.0, 0.0, 0.0))
    case.model = replace(case.model, convention=replace(OSC, frame="panda_link0"))
    branch, frame = (case.findings()[name] for name in ("training branch", "training frame"))
    assert branch.level == "fail" and branch.remedy == "set the policy's orientation_branch to [1.0, 0.0, 0.0, 0.0]"
    assert frame.level == "warn" and frame.found == "the data's frame is 'panda_link0', the pose's 'world'"


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
