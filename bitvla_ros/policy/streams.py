"""The newest inputs by stream, waiting to become an observation. Free of ROS: nodes convert messages and add them here."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .gate import MS, STATE_PARTS, Reason, Refused
from .observation import Observation, Privileged, state_vector, unit_quaternions

POSE, GRIPPER = STATE_PARTS
PRIVILEGED = "privileged"
SECOND = 1000 * MS
DOUBT = SECOND  # after a contradiction: of two publishers one may be heard alone for a while
IMAGES_KEPT = 8
STATES_KEPT = 512  # half a second of a driver at 1 kHz: images take longer than joint states of the same moment


def on_branch(quaternion: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """The one of q and -q, float64 [4] xyzw, that lies nearer to `reference`.

    Both are the same rotation but give different axis-angles (see quaternion_to_axis_angle), and the network knows only the branch
    of its dataset. Simulators stay on it; a driver or TF picks either.
    """
    quaternion = np.asarray(quaternion, np.float64)
    return -quaternion if float(quaternion @ np.asarray(reference, np.float64)) < 0 else quaternion


class Streams:
    """A few of the newest inputs of each stream. One thread may add while another takes observations.

    cameras: roles that an observation holds. privileged: an observation holds simulator truth.
    branch: float64 [4] xyzw, an orientation on the dataset's branch; orientations are then kept on it by continuity, beginning with the
    sign nearer to it. None where they arrive on the branch.

    topics: where each stream comes from, for those who look for one that is missing.

    Every add_* raises Refused and changes nothing for a zero stamp, or one before the stream's newest; the same stamp replaces it. Pose and
    gripper with another value at the same stamp are of two publishers: Refused, as are observations until DOUBT has passed without.
    Where time itself jumps back (a bag starts over), call `clear`.
    """

    def __init__(
        self,
        cameras: tuple[str, ...],
        *,
        privileged: bool = False,
        branch: NDArray[np.float64] | None = None,
        topics: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.cameras = cameras
        self._topics = topics
        self.privileged = privileged
        self._names = (*cameras, POSE, GRIPPER, *((PRIVILEGED,) if privileged else ()))
        depths = dict.fromkeys(cameras, IMAGES_KEPT)
        self._buffers: dict[str, deque[tuple[int, Any]]] = {name: deque(maxlen=depths.get(name, STATES_KEPT)) for name in self._names}
        self._branch = branch
        self._contradicted: dict[str, tuple[int, str]] = {}  # stream -> when it was last, and how
        self._lock = threading.Lock()

    def add_image(self, role: str, stamp: int, image: NDArray[np.uint8]) -> None:
        """image: uint8 [H, W, 3], RGB, upright; kept as it is, so nobody may write into it. A role that nobody asked for is ignored."""
        self._add(role, stamp, image)

    def add_pose(self, stamp: int, position: NDArray[np.float64], orientation: NDArray[np.float64]) -> None:
        """position: [3], m, grip site. orientation: [4] xyzw, hand body. Refuses what is not finite or no unit quaternion."""
        position, orientation = np.array(position, np.float64), np.array(orientation, np.float64)
        if not (np.isfinite(position).all() and np.isfinite(orientation).all()):
            raise Refused(Reason.NON_FINITE, f"{POSE} is {position} {orientation}; expected finite numbers")
        try:
            orientation = unit_quaternions(orientation)
        except ValueError as error:
            raise Refused(Reason.INVALID_ORIENTATION, f"{POSE}: {error}") from error
        with self._lock:
            if self._branch is not None:
                orientation = on_branch(orientation, self._branch)
            self._refuse_contradiction(POSE, stamp, np.concatenate([position, orientation]))
            self._put(POSE, stamp, (position, orientation))
            if self._branch is not None:
                self._branch = orientation

    def add_gripper(self, stamp: int, joints: NDArray[np.float64]) -> None:
        """joints: [2], m, the two finger joints (+w/2, -w/2 for an opening w)."""
        joints = np.array(joints, np.float64)
        if joints.shape != (2,):
            raise Refused(Reason.WRONG_SIZE, f"{GRIPPER} has shape {joints.shape}; expected the two finger joints, m")
        if not np.isfinite(joints).all():
            raise Refused(Reason.NON_FINITE, f"{GRIPPER} is {joints}; expected finite numbers")
        with self._lock:
            self._refuse_contradiction(GRIPPER, stamp, joints)
            self._put(GRIPPER, stamp, joints)

    def add_privileged(self, stamp: int, privileged: Privileged) -> None:
        """Simulator truth; ignored where no observation holds it."""
        self._add(PRIVILEGED, stamp, privileged)

    def latest(self, instruction: str, epoch: int = 0) -> Observation:
        """The newest moment of which every stream knows: the oldest of their newest inputs, and of each other stream what came first at
        that moment or after it. A stream that falls silent is thus the oldest. Raises Refused (missing_stream) and names every stream
        from which nothing has come."""
        with self._lock:
            missing = [name for name in self._names if not self._buffers[name]]
            if not missing:
                moment = min(buffer[-1][0] for buffer in self._buffers.values())
                newest = {name: _first_since(moment, buffer) for name, buffer in self._buffers.items()}
        if missing:
            where = [f"{name} ({self._topics[name]})" if name in self._topics else name for name in missing]
            raise Refused(
                Reason.MISSING_STREAM,
                f"nothing has come from {', '.join(where)}; the policy needs {', '.join(self._names)}. Check names, remappings and QoS",
            )
        return self._observation(newest, instruction, epoch)

    def moment(self, names: Collection[str] | None = None) -> int:
        """Stamp of the newest moment of which all of these streams know, None: every stream; 0 before there is one."""
        with self._lock:
            buffers = self._buffers.values() if names is None else [self._buffers[name] for name in names]
            return min((buffer[-1][0] if buffer else 0 for buffer in buffers), default=0)

    def at(self, stamp: int, instruction: str, epoch: int = 0) -> Observation | None:
        """Inputs that all bear precisely this stamp, or None as long as one of them has not come."""
        found: dict[str, tuple[int, Any]] = {}
        with self._lock:
            for name, buffer in self._buffers.items():
                match = next((entry for entry in reversed(buffer) if entry[0] == stamp), None)
                if match is None:
                    return None
                found[name] = match
        return self._observation(found, instruction, epoch)

    def clear(self) -> None:
        """Forget every input, but not the branch of the orientation: the arm has not jumped."""
        with self._lock:
            for buffer in self._buffers.values():
                buffer.clear()
            self._contradicted.clear()

    def _refuse_contradiction(self, name: str, stamp: int, value: NDArray[np.float64]) -> None:
        buffer = self._buffers[name]
        if not buffer or buffer[-1][0] != stamp:
            return
        before = buffer[-1][1] if name == GRIPPER else np.concatenate(buffer[-1][1])
        if not np.array_equal(before, value):
            said = f"{name} has two values at the stamp {stamp / SECOND:.6f}, {np.round(before, 4)} and {np.round(value, 4)}"
            self._contradicted[name] = stamp, f"{said}; expected one publisher of it. Stop the other, or give it a topic of its own"
            raise Refused(Reason.CONTRADICTION, self._contradicted[name][1])

    def _add(self, name: str, stamp: int, value: Any) -> None:
        with self._lock:
            self._put(name, stamp, value)

    def _put(self, name: str, stamp: int, value: Any) -> None:
        if stamp <= 0:
            raise Refused(Reason.ZERO_STAMP, f"{name} bears the stamp {stamp}; its driver must fill in the time of capture")
        buffer = self._buffers.get(name)
        if buffer is None:
            return
        if buffer and stamp < buffer[-1][0]:
            raise Refused(
                Reason.BACKWARD_STAMP,
                f"{name} went back by {(buffer[-1][0] - stamp) / MS:.0f} ms; expected stamps that grow. Is there a second publisher?",
            )
        if buffer and stamp == buffer[-1][0]:
            buffer.pop()
        buffer.append((stamp, value))

    def _observation(self, entries: dict[str, tuple[int, Any]], instruction: str, epoch: int) -> Observation:
        for name, (stamp, said) in self._contradicted.items():
            if entries[name][0] - stamp < DOUBT:
                raise Refused(Reason.CONTRADICTION, said)
        position, orientation = entries[POSE][1]
        stamps = {role: entries[role][0] for role in self.cameras}
        stamps |= {part: entries[part][0] for part in STATE_PARTS}
        stamps["state"] = min(stamps[part] for part in STATE_PARTS)
        if self.privileged:
            stamps["privileged"] = entries[PRIVILEGED][0]
        return Observation(
            images={role: entries[role][1] for role in self.cameras},
            state=state_vector(position, orientation, entries[GRIPPER][1]),
            instruction=instruction,
            stamps=stamps,
            epoch=epoch,
            privileged=entries[PRIVILEGED][1] if self.privileged else None,
        )


def _first_since(moment: int, buffer: deque[tuple[int, Any]]) -> tuple[int, Any]:
    """The oldest entry not older than `moment`; the newest is none of the older ones."""
    found = buffer[-1]
    for entry in reversed(buffer):
        if entry[0] < moment:
            break
        found = entry
    return found
