"""Checks of what fails silently elsewhere: frames, the gripper's and the end effector's conventions, and what moves the arm."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from bitvla_ros.action_convention import ActionConvention
from bitvla_ros.control.rotation import matrix, turned
from bitvla_ros.policy.observation import are_units, state_vector
from bitvla_ros.policy.streams import on_branch

from .facts import Expected, Finding, Graph, Level, Model, Pose

FINGER = 0.06  # m, more than one finger of a parallel gripper opens
SYMMETRY = 0.004  # m between the two fingers
MAPPING = "set gripper_scale and gripper_offset so that scale[i] * joint + offset[i] is +w/2 and -w/2 of the opening w, in m"
POSITION_MARGIN, ANGLE_MARGIN = 0.15, 0.4  # m, rad; around what 98 % of the training data lies in


def check_frames(graph: Graph, expected: Expected) -> Iterator[Finding]:
    pairs = [f"{end} in {base}" for base, end in expected.transforms]
    if len(pairs) > 1:
        found = f"the policy looks up {pairs[0]}, the controller {pairs[1]}"
        yield Finding("frames", "fail", found, "give both the same base_frame and ee_frame: what the network sees is what is moved")
    elif graph.tf_problem:
        remedy = "start robot_state_publisher (or install what is missing), or correct base_frame and ee_frame"
        yield Finding("frames", "fail", graph.tf_problem, remedy)
    elif pairs:
        yield _transforms_in_time(graph, expected, f"TF knows {pairs[0]}")
    if pairs or not graph.poses:
        return
    frames = sorted({pose.frame for pose in graph.poses})
    if len(frames) > 1:
        yield Finding(
            "frames", "fail", f"end_effector_pose comes in several frames: {', '.join(map(repr, frames))}", "stop all but one publisher"
        )
    elif not frames[0]:
        remedy = "let its publisher fill header.frame_id: chunks and commands are in this frame"
        yield Finding("frames", "fail", "end_effector_pose names no frame", remedy)
    else:
        yield Finding("frames", "ok", f"end_effector_pose, chunks and commands are in {frames[0]!r}")


def _transforms_in_time(graph: Graph, expected: Expected, found: str) -> Finding:
    if expected.controller["state_source"] != "tf" or not graph.tf_ages:
        return Finding("frames", "ok", found)
    age, limit = float(np.percentile(graph.tf_ages, 90)) / 1e9, expected.unseen
    found += f", at most {1e3 * age:.0f} ms late in nine looks of ten"
    if age <= limit:
        return Finding("frames", "ok", found)
    remedy = f"from {1e3 * limit:.0f} ms on the arm is not led any further: set robot_state_publisher's "
    return Finding("frames", "fail", found, remedy + "publish_frequency to 100.0 (20 where nobody has), and look for clocks that differ")


def check_joints(graph: Graph, expected: Expected) -> Iterator[Finding]:
    """The arm's joints, whose limits are kept where they are named."""
    controller, names = expected.controller, [joint for joint in expected.controller["joints"] if joint]
    if not names or not graph.joints:
        return
    lacking = [joint for joint in names if joint not in graph.joints]
    if lacking:
        remedy = "name the arm's joints as its driver does in the controller's parameter joints"
        yield Finding("joints", "fail", f"joint_states lacks {', '.join(lacking)}; it has {', '.join(sorted(graph.joints))}", remedy)
        return
    low, high, margin = (controller[f"limits.joint_{name}"] for name in ("min", "max", "margin"))
    if low == high == (0.0,):
        yield Finding("joints", "ok", f"joint_states has all {len(names)}; their limits are not known")
    elif not len(low) == len(high) == len(names):
        found = f"{len(names)} joints, {len(low)} and {len(high)} limits"
        yield Finding("joints", "fail", found, "give limits.joint_min and limits.joint_max a number for each of joints, in their order")
    elif near := [n for n, a, b in zip(names, low, high, strict=True) if not a + margin <= graph.joints[n] <= b - margin]:
        found = f"{', '.join(near)} is beyond its limit or within {margin:g} rad of it"
        yield Finding(
            "joints", "fail", found, "the guard would stop at once: move the arm, or correct the order of joints and their limits"
        )
    else:
        yield Finding("joints", "ok", f"joint_states has all {len(names)}, inside their limits")


def check_gripper(graph: Graph, expected: Expected) -> Iterator[Finding]:
    """The state holds [+w/2, -w/2] of the opening w, in m."""
    if not graph.joints:
        return
    name, names = "gripper", tuple(expected.policy["gripper_joints"])
    missing = [joint for joint in names if joint not in graph.joints]
    if missing:
        known = ", ".join(sorted(graph.joints))
        yield Finding(name, "fail", f"joint_states lacks {', '.join(missing)}; it has {known}", "name the finger joints in gripper_joints")
        return
    raw = np.array([graph.joints[names[0]], graph.joints[names[-1]]])
    fingers = np.array(expected.policy["gripper_scale"]) * raw + np.array(expected.policy["gripper_offset"])
    found = f"fingers at {fingers[0]:+.4f} and {fingers[1]:+.4f} m"
    if not np.isfinite(fingers).all():
        yield Finding(name, "fail", found, "joint_states must give finite positions of the finger joints")
    elif np.abs(fingers).max() > FINGER:
        yield Finding(name, "fail", f"{found}: too far for metres (radians, percent, or the whole opening?)", MAPPING)
    elif np.abs(fingers).max() < SYMMETRY:
        yield Finding(name, "skip", f"{found}: closed, so nothing is seen of their signs", "open the gripper and look again")
    elif fingers[1] > SYMMETRY or fingers[0] < -SYMMETRY or (fingers[0] * fingers[1] > 0 and abs(fingers.sum()) > SYMMETRY):
        yield Finding(name, "fail", f"{found}: expected +w/2 and -w/2", _signs(raw, expected))
    elif abs(fingers.sum()) > SYMMETRY:
        remedy = "one finger's scale or offset differs: set gripper_scale and gripper_offset so that both are half of the opening"
        yield Finding(name, "warn", f"{found}: not +w/2 and -w/2 of one opening", remedy)
    else:
        yield Finding(name, "ok", f"{found}: open by {(fingers[0] - fingers[1]) * 1e3:.0f} mm")


def _signs(raw: NDArray[np.float64], expected: Expected) -> str:
    if any(expected.policy["gripper_offset"]):
        return MAPPING
    scale = [abs(s) * sign * (-1 if r < 0 else 1) for s, r, sign in zip(expected.policy["gripper_scale"], raw, (1, -1), strict=True)]
    return f"set gripper_scale: [{scale[0]:g}, {scale[1]:g}]"


def check_pose(graph: Graph, expected: Expected) -> Iterator[Finding]:
    """The quaternion's norm and branch, and the box that the guard keeps the arm in."""
    if not graph.poses:
        return
    name, last = "end effector", graph.poses[-1]
    numbers = np.array([[*pose.position, *pose.orientation] for pose in graph.poses])
    if not np.isfinite(numbers).all():
        yield Finding(name, "fail", "its pose holds numbers that are not finite", "correct its publisher")
        return
    if not are_units(numbers[:, 3:]).all():
        norms = np.linalg.norm(numbers[:, 3:], axis=1)
        worst = float(norms[np.abs(norms - 1).argmax()])
        yield Finding(
            name, "fail", f"its quaternion has the norm {worst:.3f}; expected 1", "publish unit quaternions, in the order x y z w"
        )
        return
    flips = int((np.einsum("ij,ij->i", numbers[1:, 3:], numbers[:-1, 3:]) < 0).sum())
    if flips and not any(expected.policy["orientation_branch"]):
        found = f"its quaternion changed sign {flips} times: the same rotation, another state for the network"
        remedy = "set the policy's orientation_branch to an orientation of the training data; with --model it is checked against that"
        yield Finding(name, "fail", found, remedy)
        return
    low, high = (np.array(expected.controller[f"limits.workspace_{side}"]) for side in ("min", "max"))
    outside = [axis for axis, p, a, b in zip("xyz", last.position, low, high, strict=True) if not a <= p <= b]
    found = f"at {_numbers(last.position)} m, quaternion {_numbers(last.orientation)} xyzw"
    if outside:
        remedy = "the guard would stop at once: draw limits.workspace_min and _max for this cell, in the frame of the pose"
        yield Finding(name, "fail", f"{found}: outside the workspace in {', '.join(outside)}", remedy)
    else:
        yield Finding(name, "ok", f"{found}, inside the workspace")


def check_training_range(graph: Graph, expected: Expected, model: Model | None) -> Iterator[Finding]:
    """The state against what the model was trained on: finds a wrong branch, a hand turned about its axis, and a wrong frame."""
    if model is None or model.state_low is None or model.state_high is None or not graph.poses:
        return
    name, last = "training data", graph.poses[-1]
    yield from _of_the_data(model, last, expected)
    orientation = last.orientation / max(float(np.linalg.norm(last.orientation)), 1e-9)
    branch = np.array(expected.policy["orientation_branch"], np.float64)
    if branch.any():
        orientation = on_branch(orientation, branch)
    low, high = model.state_low, model.state_high

    def fits(quaternion: NDArray[np.float64]) -> bool:
        angles = state_vector(last.position, quaternion, np.zeros(2))[3:6]
        return bool(((angles >= low[3:6] - ANGLE_MARGIN) & (angles <= high[3:6] + ANGLE_MARGIN)).all())

    if not fits(orientation):
        yield Finding(name, *_turned(orientation, fits))
        return
    position = last.position
    if ((position < low[:3] - POSITION_MARGIN) | (position > high[:3] + POSITION_MARGIN)).any():
        found = f"the end effector is at {_numbers(position)} m, the data from {_numbers(low[:3])} to {_numbers(high[:3])}"
        remedy = (
            "is this another frame (its origin, its axes), or another body than the grip site? Else move the arm to where the data begins"
        )
        yield Finding(name, "warn", found, remedy)
    else:
        yield Finding(name, "ok", "the end effector is where the model's training data was")


def _of_the_data(model: Model, pose: Pose, expected: Expected) -> Iterator[Finding]:
    """What the model's files say of the data that it was trained on, against what is set here."""
    given = expected.policy["orientation_branch"]
    branch = ActionConvention(orientation_branch=tuple(map(float, given)) if any(given) else None)
    for name, stated, own in model.convention.differences(branch):
        found = f"the policy's {name} is {own}, the data's {stated}: the opposite side, and the policy would not start"
        yield Finding("training branch", "fail", found, f"set the policy's {name} to {list(stated)}")
    frame = model.convention.frame
    if frame and pose.frame and frame != pose.frame:
        found = f"the data's frame is {frame!r}, the pose's {pose.frame!r}"
        yield Finding("training frame", "warn", found, "the names may differ, but origin and axes must be the same")


def _turned(orientation: NDArray[np.float64], fits: Callable[[NDArray[np.float64]], bool]) -> tuple[Level, str, str]:
    """An orientation that the training data does not have: what was probably done wrong."""
    if fits(-orientation):
        found = "the quaternion has the wrong sign: the same rotation, a state that the network never saw"
        return "fail", found, f"set the policy's orientation_branch: [{', '.join(f'{value:.3f}' for value in -orientation)}]"
    axis = matrix(orientation)[:, 2]
    for degrees in (90, -90, 180):
        back = turned(orientation, -np.radians(degrees) * axis)
        if fits(back) or fits(-back):
            found = f"the hand is turned by {degrees} degrees about its z axis from what the training data calls its orientation"
            return "fail", found, "take the orientation of the hand's body (panda_hand on a Panda), the position of the grip site"
    found = f"the orientation {_numbers(orientation)} xyzw is none of the training data's"
    return "warn", found, "is this the hand's body, in the training data's frame? Else move the arm to where the data begins"


def _numbers(values: NDArray[np.float64]) -> str:
    return "[" + ", ".join(f"{value:.3f}" for value in values) + "]"
