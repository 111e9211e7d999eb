"""Observations that lie about their time are refused: 10,000 of them through the policy's own streams and gate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ...policy.gate import MS, Gate, GateConfig, Reason, Refused
from ...policy.streams import GRIPPER, POSE, Streams
from .findings import Advance, Promise

CAMERAS = ("scene", "wrist")
STEP = 50 * MS  # between images
HOUR = 3600 * 1000 * MS
KINDS = ("stale", "silent", "frozen", "zero", "backward", "future")
_EXAMPLES = 5


class _Robot:
    """Cameras and joints of an arm that moves, into Streams and through Gate as the policy node joins them, on a virtual clock."""

    def __init__(self, random: np.random.Generator) -> None:
        self.config = GateConfig(cameras=CAMERAS)
        self.streams, self.gate = Streams(CAMERAS), Gate(self.config)
        self.random = random
        self.now = 1_700_000_000_000 * MS
        self.position = np.array([0.4, 0.0, 0.3])
        self.images = {role: self._image() for role in CAMERAS}

    def _image(self) -> NDArray[np.uint8]:
        return self.random.integers(0, 256, (8, 8, 3), np.uint8)

    def _add(self, name: str, stamp: int) -> None:
        if name in CAMERAS:
            self.streams.add_image(name, stamp, self.images[name])
        elif name == POSE:
            self.streams.add_pose(stamp, self.position, np.array([1.0, 0.0, 0.0, 0.0]))
        else:
            self.streams.add_gripper(stamp, np.array([0.02, -0.02]))

    def step(
        self, *, frozen: str = "", silent: str = "", shifted: str = "", to: Callable[[int], int] = lambda stamp: stamp
    ) -> Reason | None:
        """One round of inputs; the reason for which they, or the observation that they make, were refused.

        frozen: a camera that repeats its image. silent: a stream from which nothing comes. shifted: one whose stamp becomes to(stamp).
        """
        self.now += STEP
        self.position = self.position + self.random.normal(0.0, 0.006, 3)
        for role in CAMERAS:
            if role != frozen:
                self.images[role] = self._image()
        captured = self.now - int(self.random.integers(0, 20 * MS))
        refused = None
        for name in (*CAMERAS, POSE, GRIPPER):
            if name != silent:
                try:
                    self._add(name, to(captured) if name == shifted else captured)
                except Refused as refusal:
                    refused = refusal.reason
        return self.look() or refused

    def look(self) -> Reason | None:
        """Take an observation: why it was refused."""
        try:
            self.gate.check(self.streams.latest("lift the block"), self.now)
        except Refused as refusal:
            if refusal.reason is Reason.FUTURE:
                self.streams.clear()  # as the policy node does: beside it all that follows would seem to go back
            return refusal.reason
        return None


def prove_stale(trials: int, seed: int, advance: Advance) -> Promise:
    """Injects one fault after the other. A miss is an observation that was let through, or refused for another reason."""
    random = np.random.default_rng(seed)
    missed: list[str] = []
    for trial in range(trials):
        kind = KINDS[trial % len(KINDS)]
        robot = _Robot(random)
        try:
            problem = _inject(robot, kind)
        except Exception as error:  # a crash is what must not be
            problem = f"crashed: {error!r}"
        if problem:
            missed.append(f"{kind} (trial {trial}): {problem}")
        advance(1)
    count = len(missed)
    return Promise("stale_refused", trials, count, float(count), "missed", 0.0, tuple(missed[:_EXAMPLES]))


def _inject(robot: _Robot, kind: str) -> str | None:
    """What went wrong, or None."""
    random = robot.random
    stream = str(random.choice((*CAMERAS, POSE, GRIPPER)))
    for _ in range(int(random.integers(1, 4))):
        if (reason := robot.step()) is not None:
            return f"a good observation was refused: {reason}"
    if kind == "frozen":
        return _freeze(robot, stream if stream in CAMERAS else "scene")
    if kind == "silent":
        return _silence(robot, stream)
    expected, lie = _LIES[kind](random, robot.config)
    reason = robot.step(shifted=stream, to=lie)
    if reason not in expected:
        return f"{stream} was {'let through' if reason is None else f'refused as {reason}'}"
    after = [robot.step() for _ in range(3)]  # the newest input may be the false one until the next has come
    return None if after[-1] is None else f"good observations are refused after it: {after[-1]}"


def _stale(random: np.random.Generator, config: GateConfig) -> tuple[set[Reason], Callable[[int], int]]:
    """Late by more than the limit: refused where it goes back behind what is there, else for its age."""
    late = _log_uniform(random, config.max_age + 1, HOUR)
    return {Reason.STALE, Reason.BACKWARD_STAMP}, lambda stamp: stamp - late


def _zero(random: np.random.Generator, config: GateConfig) -> tuple[set[Reason], Callable[[int], int]]:
    return {Reason.ZERO_STAMP}, lambda _: 0


def _backward(random: np.random.Generator, config: GateConfig) -> tuple[set[Reason], Callable[[int], int]]:
    back = STEP + 20 * MS + _log_uniform(random, 1, HOUR)  # behind the newest, whatever its capture took
    return {Reason.BACKWARD_STAMP}, lambda stamp: stamp - back


def _future(random: np.random.Generator, config: GateConfig) -> tuple[set[Reason], Callable[[int], int]]:
    ahead = config.max_future + 20 * MS + _log_uniform(random, 1, HOUR)
    return {Reason.FUTURE}, lambda stamp: stamp + ahead


_LIES = {"stale": _stale, "zero": _zero, "backward": _backward, "future": _future}


def _silence(robot: _Robot, stream: str) -> str | None:
    """A stream falls silent: refused as soon as its last word is older than the limit."""
    last = robot.now
    for _ in range(8):
        reason = robot.step(silent=stream)
        if robot.now - last > robot.config.max_age and reason is not Reason.STALE:
            return f"{stream} has been silent for {(robot.now - last) / MS:.0f} ms and was {reason or 'let through'}"
    return None


def _freeze(robot: _Robot, camera: str) -> str | None:
    """A camera repeats its image: refused from the frame on by which the arm has moved far enough, and until the image changes."""
    began, moved = robot.position, False
    for frame in range(2, 12):
        reason = robot.step(frozen=camera)
        moved = moved or float(np.linalg.norm(robot.position - began)) > robot.config.frozen_distance
        expected = Reason.FROZEN if moved and frame >= robot.config.frozen_frames else None
        if expected is reason and robot.look() is not expected:
            return f"frame {frame} of a frozen {camera} was let through when it was looked at again"
        if reason is not expected:
            return f"frame {frame} of a frozen {camera} was {reason or 'let through'}; expected {expected or 'to be let through'}"
    reason = robot.step()
    return None if reason is None else f"a camera that works again is refused: {reason}"


def _log_uniform(random: np.random.Generator, low: int, high: int) -> int:
    return int(np.exp(random.uniform(np.log(low), np.log(high))))
