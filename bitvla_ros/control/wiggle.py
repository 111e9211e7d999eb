"""A self-test of an arm in tiny motions: what is asked of it, what was seen of it, and in words what is wrong.

Every axis of the pose's frame is tried in both directions, in translation and in rotation. Where the arm does something else than it
was asked, the motions together say why: axes that are turned, mirrored or scaled, or a point that is not the one it turns about.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .rotation import matrix, turned

Array = NDArray[np.float64]

DISTANCE = 0.02  # m
ANGLE = 0.1  # rad
DURATION = 0.8  # s, of a motion one way

SCALE = 0.25  # of what was asked: a motion may be so much longer or shorter
SKEW = np.radians(20.0)  # and so far from its axis
STILL = 0.05  # of what was asked: below it nothing has moved
SWING, TWIST = 0.005, 0.03  # m and rad: what a turn may move, and a shift may turn
OPENING = 0.01  # m: what the gripper must open at least

_SHIFTS, _TURNS = ("x", "y", "z"), ("roll", "pitch", "yaw")

# What a bystander sees, who looks from the arm's base to where it reaches (REP 103: x forward, y left, z up; right-handed turns).
_WORDS = {
    "+x": "forwards, away from the base",
    "-x": "backwards, towards the base",
    "+y": "to the left",
    "-y": "to the right",
    "+z": "up",
    "-z": "down",
    "+roll": "its right side down, its left side up",
    "-roll": "its left side down, its right side up",
    "+pitch": "its front down",
    "-pitch": "its front up",
    "+yaw": "anticlockwise, seen from above",
    "-yaw": "clockwise, seen from above",
}


@dataclass(frozen=True)
class Motion:
    """One tiny motion. axis: 0, 1 or 2 of the pose's frame. sign: 1 or -1. turn: about the axis, else along it."""

    axis: int
    sign: int
    turn: bool

    @property
    def axis_name(self) -> str:
        return (_TURNS if self.turn else _SHIFTS)[self.axis]

    @property
    def name(self) -> str:
        return ("+" if self.sign > 0 else "-") + self.axis_name

    @property
    def words(self) -> str:
        """The motion as somebody sees it who stands behind the base."""
        return f"{'turns' if self.turn else 'moves'} {_WORDS[self.name]}"

    @property
    def size(self) -> float:
        """m or rad"""
        return ANGLE if self.turn else DISTANCE

    @property
    def vector(self) -> Array:
        """float64 [3], m or rad, axes of the pose's frame."""
        return self.sign * self.size * np.eye(3)[self.axis]

    def at(self, start: tuple[Array, Array], time: float) -> tuple[Array, Array]:
        """Where the motion is `time` s after it began at rest at the pose `start`, with minimum jerk: position [3], m, orientation [4]
        xyzw. It ends after DURATION, at rest."""
        share = min(max(time / DURATION, 0.0), 1.0)
        done = share**3 * (10.0 + share * (6.0 * share - 15.0))
        position, orientation = start
        if self.turn:
            return position, turned(orientation, done * self.vector)
        return position + done * self.vector, orientation


MOTIONS = tuple(Motion(axis, sign, turn) for turn in (False, True) for axis in range(3) for sign in (1, -1))


@dataclass(frozen=True)
class Seen:
    """What a motion did to the measured pose, from one rest to the next. shift: float64 [3], m. turn: float64 [3], rad, a rotation
    vector. Both in axes of the pose's frame."""

    motion: Motion
    shift: Array
    turn: Array

    @property
    def vector(self) -> Array:
        """The part that was asked for, m or rad."""
        return self.turn if self.motion.turn else self.shift


@dataclass(frozen=True)
class Finding:
    """One motion judged. along: the axis it went along, as +x or -yaw; "" where it is none of them, or nothing moved.
    scale: of what was asked. problem: in words; "" where there is none."""

    seen: Seen
    along: str
    scale: float
    problem: str

    @property
    def ok(self) -> bool:
        return not self.problem


def judge(seen: Seen) -> Finding:
    """Axis, sign and scale of one motion, and what is wrong with it."""
    motion, vector = seen.motion, seen.vector
    length = float(np.linalg.norm(vector))
    scale = length / motion.size
    unit, verb = ("rad", "turns") if motion.turn else ("m", "moves")
    if scale < STILL:
        return Finding(seen, "", scale, f"{motion.name} does not move: {_amount(length, unit)} of {_amount(motion.size, unit)}")
    along = _nearest(vector / length, motion.turn)
    problems = []
    if along != motion.name:
        problems.append(f"{verb} {'as' if motion.turn else 'along'} {along or _direction(vector / length)}")
    if abs(scale - 1.0) > SCALE:
        problems.append(f"{verb} {scale:.2g} times as far as asked")
    shift, turn = float(np.linalg.norm(seen.shift)), float(np.linalg.norm(seen.turn))
    if motion.turn and shift > SWING:
        problems.append(f"also moves the end effector by {_amount(shift, 'm')}")
    if not motion.turn and turn > TWIST:
        problems.append(f"also turns the end effector by {_amount(turn, 'rad')}")
    return Finding(seen, along, scale, f"{motion.name} {', '.join(problems)}" if problems else "")


def diagnose(seen: Sequence[Seen], orientation: Array) -> list[str]:
    """What all motions together say is wrong, a sentence each; nothing where every motion was right.

    orientation: float64 [4] xyzw, of the hand, in the frame of the motions."""
    findings = [judge(one) for one in seen]
    if all(finding.ok for finding in findings):
        return []
    sentences = []
    for turn in (False, True):
        mine = [finding for finding in findings if finding.seen.motion.turn == turn]
        if dead := [finding.seen.motion.name for finding in mine if finding.scale < STILL]:
            all_dead = len(dead) == len(mine)
            sentences.append(
                f"{', '.join(dead)} {'does' if len(dead) == 1 else 'do'} not move the arm: "
                + ("nothing listens to the target, or its controller is not active" if all_dead else "is the arm at one of its limits?")
            )
        moving = [finding for finding in mine if finding.scale >= STILL]
        if sentence := _axes(moving, turn, orientation):
            sentences.append(sentence)
        sentences += _scales(moving, turn)
    sentences += _cross_talk(findings)
    return sentences or [finding.problem for finding in findings if finding.problem]


def judge_gripper(opened: float, closed: float) -> str:
    """What is wrong with the gripper, "" where nothing is. opened, closed: m between the fingers, after either command."""
    if abs(opened - closed) < OPENING:
        return (
            f"the gripper does not move: {_amount(opened, 'm')} open, {_amount(closed, 'm')} closed: "
            "nothing listens to its target, or gripper_joints names other joints than its own"
        )
    if opened < closed:
        return (
            f"the gripper is inverted: {_amount(opened, 'm')} between its fingers when told to open, {_amount(closed, 'm')} when told "
            "to close: exchange open and closed in the profile, or the sign of gripper_scale"
        )
    return ""


def _axes(findings: list[Finding], turn: bool, orientation: Array) -> str:
    """Which axes go elsewhere, and what all of them have in common."""
    columns = _columns(findings)
    names = _TURNS if turn else _SHIFTS
    wrong = []
    for axis, column in columns.items():
        direction = column / np.linalg.norm(column)
        along = _nearest(direction, turn)
        if along != f"+{names[axis]}":
            wrong.append(f"{names[axis]} {('turns as' if turn else 'moves along')} {along or _direction(direction)}")
    if not wrong:
        return ""
    return f"{', '.join(wrong)}: {_cause(columns, turn, orientation)}"


def _cause(columns: dict[int, Array], turn: bool, orientation: Array) -> str:
    if len(columns) < 3:
        return "try all three axes to see what they have in common"
    seen = np.stack([columns[axis] / np.linalg.norm(columns[axis]) for axis in range(3)], axis=1)
    left, _, right = np.linalg.svd(seen)
    rotation = left @ right
    if np.min(np.sum(rotation * seen, axis=0)) < np.cos(SKEW):
        return "the axes are no longer at right angles, so no frame explains it: is the arm at a limit, or does it yield?"
    if np.linalg.det(rotation) < 0.0:
        names = _TURNS if turn else _SHIFTS
        flipped = [names[axis] for axis in range(3) if rotation[axis, axis] < 0.0]
        if np.abs(np.diag(rotation)).min() < np.cos(SKEW):
            what = "two axes are exchanged, or a sign is missing"
        else:
            what = f"{flipped[0]} has the wrong sign" if len(flipped) == 1 else "every axis has the wrong sign"
        return f"that is left-handed, no turn of a frame does it; {what}"
    what = "rotations" if turn else "targets"
    if _angle(rotation @ matrix(orientation).T) < SKEW:
        return f"{what} are taken in the hand's own axes instead of the pose's frame; set the command's frame to that of the pose"
    axis, angle = _axis_angle(rotation)
    return (
        f"the frames are turned by {np.degrees(angle):.0f} degrees about {_nearest(axis, False).lstrip('+') or _direction(axis)}; "
        "publish the pose in the frame in which the arm takes its targets, or transform it"
    )


def _scales(findings: list[Finding], turn: bool) -> list[str]:
    scales = {axis: float(np.linalg.norm(column)) for axis, column in _columns(findings).items()}
    wrong = {axis: scale for axis, scale in scales.items() if abs(scale - 1.0) > SCALE}
    if not wrong:
        return []
    names, verb = (_TURNS, "turn") if turn else (_SHIFTS, "move")
    values = np.array(list(scales.values()))
    if len(wrong) == len(scales) and values.max() < 1.1 * values.min():
        where = "other units than radians" if turn else "other units than metres"
        verb += "s" if len(wrong) == 1 else ""
        asked = ", ".join(names[axis] for axis in wrong)
        return [f"{asked} {verb} {values.mean():.2g} times as far as asked: {where}, or a scale of the controller"]
    each = ", ".join(f"{names[axis]} {verb}s {scale:.2g} times" for axis, scale in wrong.items())
    return [f"{each} as far as asked, unlike other axes: is the arm at a limit, or too soft?"]


def _cross_talk(findings: Iterable[Finding]) -> list[str]:
    sentences = []
    shifts = [finding.seen for finding in findings if not finding.seen.motion.turn and np.linalg.norm(finding.seen.turn) > TWIST]
    if shifts:
        names = ", ".join(one.motion.name for one in shifts)
        sentences.append(f"{names} also turns the end effector: its orientation is not held; is the arm at a limit, or too soft?")
    turns = [finding.seen for finding in findings if finding.seen.motion.turn]
    swings = [one for one in turns if np.linalg.norm(one.shift) > SWING]
    if swings:
        # A point at r from the centre of a small turn t moves by t x r, linear in r.
        crosses = np.concatenate([_cross(one.turn) for one in turns])
        lever = np.linalg.lstsq(crosses, np.concatenate([one.shift for one in turns]), rcond=None)[0]
        names = ", ".join(one.motion.name for one in swings)
        sentences.append(
            f"{names} also moves the end effector: the arm turns about a point {np.linalg.norm(lever):.2f} m away from the one whose "
            "pose is published; set the controller's end-effector frame to that of the pose (the grip site)"
        )
    return sentences


def _columns(findings: Iterable[Finding]) -> dict[int, Array]:
    """Axis -> float64 [3], what a unit of it did in the mean of both directions."""
    seen: dict[int, list[Array]] = {}
    for finding in findings:
        motion = finding.seen.motion
        seen.setdefault(motion.axis, []).append(motion.sign * finding.seen.vector / motion.size)
    means = {axis: np.mean(vectors, axis=0) for axis, vectors in seen.items()}
    return {axis: mean for axis, mean in means.items() if np.linalg.norm(mean) >= STILL}


def _nearest(direction: Array, turn: bool) -> str:
    """The axis within SKEW of a unit vector, as +x, or "" where there is none."""
    axis = int(np.argmax(np.abs(direction)))
    if abs(direction[axis]) < np.cos(SKEW):
        return ""
    return ("+" if direction[axis] > 0 else "-") + (_TURNS if turn else _SHIFTS)[axis]


def _direction(vector: Array) -> str:
    return "(" + ", ".join(f"{number:.2f}" for number in vector + 0.0) + ")"


def _amount(value: float, unit: str) -> str:
    return f"{1e3 * value:.1f} mm" if unit == "m" else f"{value:.3f} rad"


def _axis_angle(rotation: Array) -> tuple[Array, float]:
    """Of a rotation matrix [3, 3]: unit axis [3] and angle in (0, pi]."""
    angle = _angle(rotation)
    # The axis is what the rotation leaves as it is.
    values, vectors = np.linalg.eig(rotation)
    axis = np.real(vectors[:, int(np.argmin(np.abs(values - 1.0)))])
    sine = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    return (-axis if axis @ sine < 0.0 else axis), angle


def _angle(rotation: Array) -> float:
    return float(np.arccos(np.clip((np.trace(rotation) - 1.0) / 2.0, -1.0, 1.0)))


def _cross(vector: Array) -> Array:
    """[3, 3], the matrix of `vector x`."""
    x, y, z = vector
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
