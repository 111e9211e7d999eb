"""Shadow mode: what the policy would do, beside what the arm does, whoever moves it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .command import ArmState, Setpoint
from .rotation import turn_between

Array = NDArray[np.float64]

_WINDOW = 100_000_000  # ns; over less, the noise of a measured pose is no velocity
_LOST = 500_000_000  # ns between poses, over which nothing can be compared
_MOVING = {"linear": 0.01, "angular": 0.05}  # m/s, rad/s: slower is standing still


class _Running:
    """Mean and largest of a series."""

    def __init__(self) -> None:
        self.count, self.mean, self.largest = 0, 0.0, -math.inf

    def add(self, value: float) -> None:
        self.count += 1
        self.mean += (value - self.mean) / self.count
        self.largest = max(self.largest, value)


class Disagreement:
    """Compares the commanded velocity with the measured one, over windows of 0.1 s, since it was made.

    `values`, by name, each only once there is something to say:
    compared: windows.
    linear_angle_mean, linear_angle_max (rad): between the two velocities, where both move. The same for angular.
    linear_ratio_mean, linear_ratio_max: commanded speed over measured speed, where both move. The same for angular.
    apart: share of the windows in which one of them moves and the other stands still.
    gripper_agreement: share of the setpoints whose gripper command is the driver's.
    """

    def __init__(self) -> None:
        self._base: ArmState | None = None  # where the window began
        self._linear: list[Array] = []  # commanded in the window
        self._angular: list[Array] = []
        self._angles = {name: _Running() for name in _MOVING}
        self._ratios = {name: _Running() for name in _MOVING}
        self._apart, self._gripper = _Running(), _Running()

    def observe(self, setpoint: Setpoint | None, arm: ArmState, gripper: float | None = None) -> None:
        """setpoint: what the policy would do now; None: no task, nothing is compared. arm: the newest measured pose, as often as it
        comes. gripper: what the driver commands, -1 open ... +1 closed; None: unknown."""
        if setpoint is None:
            self._base = None
            return
        if gripper is not None and setpoint.gripper:
            self._gripper.add(float((setpoint.gripper > 0) == (gripper > 0)))
        base = self._base
        if base is None or not 0 <= arm.stamp - base.stamp < _LOST:
            self._begin(arm)
            return
        self._linear.append(setpoint.linear)
        self._angular.append(setpoint.angular)
        elapsed = arm.stamp - base.stamp
        if elapsed < _WINDOW:
            return
        moved, turn = arm.position - base.position, turn_between(base.orientation, arm.orientation)
        linear = self._compare("linear", np.mean(self._linear, axis=0), moved / (elapsed / 1e9))
        angular = self._compare("angular", np.mean(self._angular, axis=0), turn / (elapsed / 1e9))
        self._apart.add(float(linear or angular))
        self._begin(arm)

    def values(self) -> dict[str, float]:
        """Numbers for diagnostics; see the class."""
        found: dict[str, float] = {"compared": float(self._apart.count)}
        for kind, running in (("angle", self._angles), ("ratio", self._ratios)):
            for name, series in running.items():
                if series.count:
                    found |= {f"{name}_{kind}_mean": series.mean, f"{name}_{kind}_max": series.largest}
        if self._apart.count:
            found["apart"] = self._apart.mean
        if self._gripper.count:
            found["gripper_agreement"] = self._gripper.mean
        return found

    def _begin(self, arm: ArmState) -> None:
        self._base, self._linear, self._angular = arm, [], []

    def _compare(self, name: str, commanded: Array, measured: Array) -> bool:
        """Whether one of them moves and the other stands still."""
        wanted, found = float(np.linalg.norm(commanded)), float(np.linalg.norm(measured))
        if wanted > _MOVING[name] and found > _MOVING[name]:
            cosine = float(commanded @ measured) / (wanted * found)
            self._angles[name].add(math.acos(max(-1.0, min(1.0, cosine))))
            self._ratios[name].add(wanted / found)
        return (wanted > _MOVING[name]) != (found > _MOVING[name])
