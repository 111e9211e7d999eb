"""The observation gate: what the policy must not act upon is refused with a typed reason. It never fills in."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from .instruction import problem_of
from .observation import STATE_DIM, Observation

MS = 1_000_000  # nanoseconds
STATE_PARTS = ("end_effector_pose", "gripper")  # where their stamps are known, each is checked: "state" bears the older one


class Reason(str, Enum):
    """Why an input or an observation was refused; the value is what /diagnostics shows."""

    EMPTY_INSTRUCTION = "empty_instruction"
    INVALID_INSTRUCTION = "invalid_instruction"  # too long, or with a control token of the model
    MISSING_STREAM = "missing_stream"
    MISSING_TRANSFORM = "missing_transform"
    ZERO_STAMP = "zero_stamp"
    BACKWARD_STAMP = "backward_stamp"
    CONTRADICTION = "contradiction"  # two values at one stamp
    FUTURE = "future"
    STALE = "stale"
    SKEWED = "skewed"  # inputs captured too far apart
    WRONG_ENCODING = "wrong_encoding"
    WRONG_SIZE = "wrong_size"
    NON_FINITE = "non_finite"
    INVALID_ORIENTATION = "invalid_orientation"  # not a unit quaternion
    FROZEN = "frozen"  # new stamps on an old image

    def __str__(self) -> str:
        return self.value


class Refused(Exception):
    """An input or observation that must not be acted upon. The message says what was wrong, what was expected and what to do."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.args[0]}"


@dataclass(frozen=True)
class GateConfig:
    """What a policy needs, and the limits. Durations in nanoseconds.

    cameras: roles that must be there. privileged: simulator truth must be there.
    max_age, max_future: how far an input's stamp may lie behind and ahead of now. max_skew: between the oldest and the newest input.
    image_shape: (height, width) of every camera, or None for any.
    A camera is frozen where `frozen_frames` new stamps in a row bring the same bytes although meanwhile the end effector moved by more
    than `frozen_distance` (m) or turned by more than `frozen_angle` (rad). Real sensors are noisy: a still scene is not frozen.
    """

    cameras: tuple[str, ...] = ("scene", "wrist")
    privileged: bool = False
    max_age: int = 150 * MS
    max_future: int = 50 * MS
    max_skew: int = 100 * MS
    image_shape: tuple[int, int] | None = None
    frozen_frames: int = 3
    frozen_distance: float = 0.01
    frozen_angle: float = 0.05

    def __post_init__(self) -> None:
        if min(self.max_age, self.max_future, self.max_skew) < 0:
            raise ValueError(f"a limit of the gate is negative ({self}); give max_age, max_future and max_skew in nanoseconds, 0 or more")
        if self.frozen_frames < 2 or not (self.frozen_distance > 0 and self.frozen_angle > 0):
            raise ValueError("frozen_frames must be at least 2, frozen_distance and frozen_angle positive: one frame cannot be frozen")


@dataclass
class _Run:
    """Frames of one camera with the same bytes."""

    digest: int
    stamp: int  # of the newest
    frames: int
    state: NDArray[np.float64]  # when the run began
    moved: bool = False


@dataclass
class Gate:
    """Call `check` once an observation, in the order of capture, from one thread; `reset` where a task or the clock begins anew."""

    config: GateConfig = field(default_factory=GateConfig)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what has been seen."""
        self._stamps: dict[str, int] = {}
        self._runs: dict[str, _Run] = {}

    def check(self, observation: Observation, now: int, *, not_before: int = 0) -> None:
        """Raise Refused unless a policy may act upon `observation`. A refused one leaves no trace but in the search for frozen cameras.

        now: nanoseconds of ROS time. not_before: no input may have been captured before this, e.g. the stamp of the task.
        """
        if problem := problem_of(observation.instruction):
            empty = not observation.instruction.strip()
            raise Refused(Reason.EMPTY_INSTRUCTION if empty else Reason.INVALID_INSTRUCTION, problem)
        stamps = self._required(observation)
        self._check_times(stamps, now, not_before)
        for role in self.config.cameras:
            self._check_image(role, observation.images[role])
        _check_state(observation)
        for role in self.config.cameras:
            self._check_frozen(role, stamps[role], observation)
        self._stamps = stamps

    def _required(self, observation: Observation) -> dict[str, int]:
        """Stamps of everything the policy needs, and of the state's parts where they are known."""
        names = [*self.config.cameras, "state", *(["privileged"] if self.config.privileged else [])]
        missing = [name for name in names if name not in observation.stamps]
        missing += [role for role in self.config.cameras if role not in observation.images and role not in missing]
        if self.config.privileged and observation.privileged is None and "privileged" not in missing:
            missing.append("privileged")
        if missing:
            raise Refused(Reason.MISSING_STREAM, f"nothing has come from {', '.join(missing)}; the policy needs {', '.join(names)}")
        return {name: stamp for name, stamp in observation.stamps.items() if name in names or name in STATE_PARTS}

    def _check_times(self, stamps: dict[str, int], now: int, not_before: int) -> None:
        limits = self.config
        for name, stamp in stamps.items():
            if stamp <= 0:
                raise Refused(Reason.ZERO_STAMP, f"{name} bears the stamp {stamp}; its driver must fill in the time of capture")
            if stamp < self._stamps.get(name, 0):
                raise Refused(
                    Reason.BACKWARD_STAMP,
                    f"{name} went back by {_ms(self._stamps[name] - stamp)}; expected stamps that grow. Is there a second publisher?",
                )
            if stamp - now > limits.max_future:
                raise Refused(
                    Reason.FUTURE,
                    f"{name} was captured {_ms(stamp - now)} ahead of now, at most {_ms(limits.max_future)} are allowed; "
                    "synchronise the clocks (chrony, PTP), and let all nodes agree on use_sim_time",
                )
            if now - stamp > limits.max_age:
                raise Refused(
                    Reason.STALE,
                    f"{name} was captured {_ms(now - stamp)} ago, at most {_ms(limits.max_age)} are allowed; "
                    "is its driver alive, its transport quick enough, its clock synchronised?",
                )
            if stamp < not_before:
                raise Refused(Reason.STALE, f"{name} was captured {_ms(not_before - stamp)} before the task began; wait for the next")
        skew = max(stamps.values()) - min(stamps.values())
        if skew > limits.max_skew:
            oldest, newest = min(stamps, key=stamps.__getitem__), max(stamps, key=stamps.__getitem__)
            raise Refused(
                Reason.SKEWED,
                f"{oldest} was captured {_ms(skew)} before {newest}, at most {_ms(limits.max_skew)} are allowed; is {oldest} slow or late?",
            )

    def _check_image(self, role: str, image: NDArray[np.uint8]) -> None:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise Refused(Reason.WRONG_ENCODING, f"camera {role} gives {image.dtype} {image.shape}; expected RGB, uint8 [H, W, 3]")
        if image.size == 0 or (self.config.image_shape is not None and image.shape[:2] != self.config.image_shape):
            expected = "any but an empty image" if self.config.image_shape is None else "{} x {}".format(*self.config.image_shape)
            raise Refused(
                Reason.WRONG_SIZE,
                f"camera {role} gives {image.shape[0]} x {image.shape[1]} (height x width); expected {expected}. "
                "Set the camera's mode, or the expected shape",
            )

    def _check_frozen(self, role: str, stamp: int, observation: Observation) -> None:
        """A checksum of the whole image (75 us for 256 x 256, 0.4 ms for 640 x 480, not idle): it must see a small arm in a still
        scene, and keeps no image that a driver might write over."""
        run = self._runs.get(role)
        if run is None or stamp != run.stamp:
            digest = zlib.crc32(np.ascontiguousarray(observation.images[role]).data)
            if run is None or digest != run.digest:
                self._runs[role] = _Run(digest, stamp, 1, observation.state.copy())
                return
            run.stamp = stamp
            run.frames += 1
            distance, angle = _motion(run.state, observation.state)
            run.moved = run.moved or distance > self.config.frozen_distance or angle > self.config.frozen_angle
        if run.moved and run.frames >= self.config.frozen_frames:  # also where the same frame is looked at again
            raise Refused(
                Reason.FROZEN,
                f"camera {role} has repeated the same image under {run.frames} stamps while the arm moved; restart its driver",
            )


def _check_state(observation: Observation) -> None:
    if observation.state.shape != (STATE_DIM,):
        raise Refused(Reason.WRONG_SIZE, f"the state has shape {observation.state.shape}; expected [{STATE_DIM}], see state_vector")
    if not np.isfinite(observation.state).all():
        raise Refused(
            Reason.NON_FINITE, f"the state is {observation.state}; expected finite numbers from joint_states and end_effector_pose"
        )
    if observation.privileged is not None:
        bad = [name for name, pose in observation.privileged.object_poses.items() if not np.isfinite(pose).all()]
        if bad:
            raise Refused(Reason.NON_FINITE, f"the simulator's pose of {', '.join(bad)} is not finite; reset the episode")


def _motion(before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[float, float]:
    """Distance (m) and angle (rad) between the poses of two states."""
    dot = abs(float(_quaternion(before[3:6]) @ _quaternion(after[3:6])))
    return float(np.linalg.norm(after[:3] - before[:3])), 2.0 * float(np.arccos(min(dot, 1.0)))


def _quaternion(axis_angle: NDArray[np.float64]) -> NDArray[np.float64]:
    half = float(np.linalg.norm(axis_angle)) / 2
    return np.append(axis_angle * (np.sinc(half / np.pi) / 2), np.cos(half))  # sinc(x) = sin(pi x) / (pi x)


def _ms(nanoseconds: int) -> str:
    return f"{nanoseconds / MS:.0f} ms"
