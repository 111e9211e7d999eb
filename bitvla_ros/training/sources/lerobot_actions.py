"""What the numbers of a LeRobot dataset mean. Its features' names say it, or whoever converts it does; nothing is assumed.

Our actions are offsets of the end effector in units of the training controller, rotations as axis-angle about the base's axes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...control.rotation import turned
from ...policy.observation import quaternion_to_axis_angle
from . import ConversionError
from .alignment import Floats, continued, motion

KINDS = {
    "offsets": "in [-1, 1], in units of the training controller, as LIBERO's",
    "metres": "metres and radians of motion a step",
    "poses": "absolute target poses, of which the motion a step is taken",
}
ROTATIONS = {"axis-angle": "axis times angle, rad", "euler": "roll, pitch, yaw about fixed axes, rad"}
FASTEST = 2.0  # m/s, beyond which a motion is in other units
FARTHEST = 0.3  # m, of a target pose from the measured one
SLOW = 0.1  # of full scale: a dataset whose translations all stay below it is probably in metres
_JOINTS = re.compile(r"joint|shoulder|elbow|waist|forearm|wrist_(flex|roll|angle|\d)|motor_?\d|\.(pos|q)$")
_EULER, _AXIS_ANGLE = re.compile(r"roll|pitch|yaw"), re.compile(r"axis_?angle|rot_?vec")


@dataclass(frozen=True)
class Declared:
    """What the options say; "" where they do not. kind: of KINDS. action_rotation, state_rotation: of ROTATIONS.
    metres_per_unit, radians_per_unit: motion of a full-scale action in one step, None where nobody said. orientation_branch: of states
    in Euler angles; None: that of the first."""

    kind: str = ""
    action_rotation: str = ""
    state_rotation: str = ""
    metres_per_unit: float | None = None
    radians_per_unit: float | None = None
    orientation_branch: tuple[float, float, float, float] | None = None


def names_of(feature: Mapping[str, Any]) -> list[str]:
    """The names of a feature's numbers, in lower case; none where it has none, or not one a number."""

    def flat(names: Any) -> list[str]:
        if isinstance(names, Mapping):
            return [name for part in names.values() for name in flat(part)]
        return [str(name).lower() for name in names] if isinstance(names, (list, tuple)) else []

    names = flat(feature.get("names"))
    return names if len(names) == int(np.prod(feature.get("shape", [0]))) else []


class Meaning:
    """Converts the episodes of one dataset. branch: of the states' orientations; None until an episode in Euler angles decides it.
    clipped, frames: of all episodes so far. largest: translation so far, in units."""

    def __init__(
        self,
        features: Mapping[str, Any],
        action: str,
        state: str,
        declared: Declared,
        *,
        ours: bool,
        fps: float,
        say: Callable[[str], None],
    ) -> None:
        """features: of info.json. action, state: names of features. ours: written by this package, which says all itself.
        Raises ConversionError where nobody says what they mean, or what is said cannot be."""
        for name in (action, state):
            joints = [joint for joint in names_of(features[name]) if _JOINTS.search(joint)]
            if joints:
                raise ConversionError(
                    f"{name} holds joint positions by its names ({', '.join(joints)}): expected the end effector. Make a dataset of poses "
                    "with the arm's forward kinematics first, or name other features with --action and --state"
                )
        self.kind = "offsets" if ours else declared.kind
        if ours and declared.kind not in ("", "offsets"):
            raise ConversionError(f"bitvla wrote this dataset: its actions are offsets, not {declared.kind}; leave --action-kind out")
        if not self.kind:
            choices = "; ".join(f"--action-kind {name}: {what}" for name, what in KINDS.items())
            raise ConversionError(f"nobody says what its actions are. Give {choices}")
        self.action_rotation = _rotation(action, features[action], declared.action_rotation, "--action-rotation", say)
        self.state_rotation = _rotation(state, features[state], declared.state_rotation, "--state-rotation", say)
        units = declared.metres_per_unit, declared.radians_per_unit
        if self.kind != "offsets" and None in units:
            needed = "--metres-per-unit and --radians-per-unit, as the arm's controller has them"
            raise ConversionError(f"--action-kind {self.kind} needs {needed}")
        self.metres_per_unit, self.radians_per_unit = units
        self.branch = declared.orientation_branch
        self.clipped = self.frames = 0
        self.largest = 0.0
        self._fps, self._say = fps, say
        if not ours:
            say(f"actions: {KINDS[self.kind]}; rotations as {ROTATIONS[self.action_rotation]}; the state's as {self.state_rotation}")

    def convert(self, state: Floats, actions: Floats) -> tuple[Floats, Floats]:
        """State [T, 8] with its rotation as axis-angle, and offsets [T, 6] in [-1, 1]. actions: [T, 7]. Raises ConversionError."""
        moved = actions[:, :6]
        if self.kind == "poses":
            moved = self._differences(state, moved)
        elif self.action_rotation == "euler":
            moved = np.concatenate([moved[:, :3], _axis_angles(_from_euler(moved[:, 3:]))], axis=1)
        offsets = moved if self.kind == "offsets" else self._in_units(moved)
        beyond = np.abs(offsets).max(axis=1) > 1 + 1e-3
        if self.kind == "offsets" and beyond.any():
            at = int(np.argmax(beyond))
            raise ConversionError(
                f"frame {at}: action {np.round(actions[at], 4).tolist()} leaves [-1, 1], so these are no offsets in the training "
                "controller's units: give --action-kind metres or poses"
            )
        self.clipped, self.frames = self.clipped + int(beyond.sum()), self.frames + len(offsets)
        self.largest = max(self.largest, float(np.abs(offsets[:, :3]).max()))
        return self._state(state), np.clip(offsets, -1.0, 1.0)

    def conclude(self) -> None:
        """Say what only all episodes tell."""
        if self.kind == "offsets" and self.frames and self.largest < SLOW:
            self._say(f"the largest translation is {self.largest:.2g} of full scale: are they metres a step? Give --action-kind metres")

    def _in_units(self, moved: Floats) -> Floats:
        fastest = float(np.linalg.norm(moved[:, :3], axis=1).max()) * self._fps
        if fastest > FASTEST:
            at = int(np.linalg.norm(moved[:, :3], axis=1).argmax())
            raise ConversionError(
                f"frame {at}: {fastest:.3g} m/s is no motion of an arm, so these are no metres a step: give --action-kind offsets or poses"
            )
        return np.asarray(moved / np.repeat([self.metres_per_unit, self.radians_per_unit], 3), np.float64)

    def _differences(self, state: Floats, targets: Floats) -> Floats:
        """The motion of each step: from the target before to this one, at the start from the measured pose."""
        far = np.linalg.norm(targets[:, :3] - state[:, :3], axis=1)
        if far.max() > FARTHEST:
            at = int(far.argmax())
            raise ConversionError(
                f"frame {at}: the target is {far[at]:.3g} m from the measured position, so these are no absolute poses in the state's "
                "frame: give --action-kind offsets or metres"
            )
        poses = np.concatenate([state[:1, :6], targets])
        turns = np.concatenate([_quaternions(state[:1, 3:6], self.state_rotation), _quaternions(targets[:, 3:], self.action_rotation)])
        return motion(poses[:, :3], turns)

    def _state(self, state: Floats) -> Floats:
        if self.state_rotation == "axis-angle":
            return state
        quaternions = _from_euler(state[:, 3:6])
        if self.branch is None:
            x, y, z, w = quaternions[0].tolist()
            self.branch = (x, y, z, w)
            self._say(f"orientations are kept on the branch of the first one: orientation_branch [{x:.4f}, {y:.4f}, {z:.4f}, {w:.4f}]")
        turns = _axis_angles(continued(quaternions, np.array(self.branch)))
        return np.concatenate([state[:, :3], turns, state[:, 6:]], axis=1)


def _rotation(name: str, feature: Mapping[str, Any], declared: str, option: str, say: Callable[[str], None]) -> str:
    names = " ".join(names_of(feature))
    named = "euler" if _EULER.search(names) else "axis-angle" if _AXIS_ANGLE.search(names) else ""
    if declared and named and declared != named:
        say(f"{name}: its names say {named}, but it is taken as {declared}, as {option} says")
    if not (declared or named):
        choices = ", ".join(f"{option} {choice} ({what})" for choice, what in ROTATIONS.items())
        raise ConversionError(f"the names of {name} do not say what its rotations are: give {choices}")
    return declared or named


def _quaternions(rotations: Floats, kind: str) -> Floats:
    """xyzw [T, 4]."""
    if kind == "euler":
        return _from_euler(rotations)
    return np.array([turned(_UPRIGHT, vector) for vector in rotations])


def _axis_angles(quaternions: Floats) -> Floats:
    return np.array([quaternion_to_axis_angle(quaternion) for quaternion in quaternions])


def _from_euler(angles: Floats) -> Floats:
    """xyzw [T, 4] of roll, pitch, yaw [T, 3]: about the fixed x, then y, then z axis."""
    return np.array([turned(turned(turned(_UPRIGHT, roll * _X), pitch * _Y), yaw * _Z) for roll, pitch, yaw in angles])


_UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])
_X, _Y, _Z = np.eye(3)
