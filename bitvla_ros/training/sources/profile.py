"""What the profile of an arm says of a recording that was made with it: the options of `convert`, by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...profiles import Profile

# Of the profile's two nodes, parameters that are options under these names.
_POLICY = {name: name for name in ("gripper_joints", "gripper_scale", "gripper_offset", "orientation_branch", "control_hz")}
_CONTROLLER = {"limits.metres_per_unit": "metres_per_unit", "limits.radians_per_unit": "radians_per_unit"}


def stated_by(profile: Profile) -> dict[str, Any]:
    """Options that the profile states: joints and their scale, orientation branch, rate, units, where the pose comes from, topics."""
    return dict(_stated(profile))


def _stated(profile: Profile) -> Iterator[tuple[str, Any]]:
    for values, names in ((profile.policy, _POLICY), (profile.controller, _POLICY), (profile.controller, _CONTROLLER)):
        yield from ((option, values[name]) for name, option in names.items() if name in values)
    topics = dict(profile.remappings)
    if profile.policy.get("state_source") == "tf":
        yield "tf", [profile.policy["base_frame"], profile.policy["ee_frame"]]
    elif "end_effector_pose" in topics:
        yield "pose", topics["end_effector_pose"]
    if "joint_states" in topics:
        yield "joints", topics["joint_states"]
    roles = profile.policy.get("cameras", ())
    cameras = [(role, topics[name]) for role in roles if (name := f"camera/{role}/image_raw") in topics]
    if cameras:
        yield "camera", cameras
