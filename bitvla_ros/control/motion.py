"""What an action means to an arm: offsets at the control rate become setpoints at any rate, smoothly and inside limits.

A policy's offsets do not say how the arm moves: they were answered by the controller that it was trained with, and that controller
never gets to the goal within a control step. So the offsets go through a model of it. The model's state is the setpoint itself, and
whatever comes in, the setpoint keeps to the limits of speed and acceleration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .command import ArmState, Setpoint
from .rotation import turn_between, turned

Array = NDArray[np.float64]

MODELS = ("spring", "scaled")

# robosuite's OSC_POSE, as in simulation/operational_space.py
POSITION_SCALE = 0.05  # m at full scale
ROTATION_SCALE = 0.5  # rad at full scale
STIFFNESS = 150.0  # 1/s^2
ROTATION_STIFFNESS = 75.0  # 1/s^2, which has the response that was measured
DAMPING = 2.0 * math.sqrt(STIFFNESS)  # 1/s

_INSTANT = 1e-9  # s; times are whole nanoseconds
_TOLERANCE = 1e-9  # relative
_NOTHING = np.zeros(3)


@dataclass(frozen=True)
class MotionConfig:
    """model: what an offset means.
        spring: a goal 0.05 m and 0.5 rad away at full scale, renewed every control step and tracked as the training controller does.
            A rotation of exactly zero keeps the last goal of orientation, as robosuite does.
        scaled: a velocity of metres_per_unit (m) and radians_per_unit (rad) a control step, reached linearly within the step.
    speed (m/s), angular_speed (rad/s), acceleration (m/s2), angular_acceleration (rad/s2): what setpoints keep to, as norms.
    lead (m), lead_angle (rad): an offset counts from where the arm should be, but from no further than this from where it is measured.
        So what is asked of an arm that touches something does not add up, and it comes back as soon as it is asked to, as with the
        training controller.
    lag (s): how far the arm follows behind its setpoints. They go ahead by as much, so that the arm itself moves as the model does."""

    model: str = "spring"
    metres_per_unit: float = 0.0135
    radians_per_unit: float = 0.07
    speed: float = 0.5
    angular_speed: float = 2.5
    acceleration: float = 20.0
    angular_acceleration: float = 100.0
    lead: float = 0.06
    lead_angle: float = 0.3
    lag: float = 0.0

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"motion is {self.model!r}; it can be {' or '.join(MODELS)}")
        if not 0 <= self.lag < math.inf:
            raise ValueError(f"lag is {self.lag}; it is 0 or above and finite")
        for name in self.__dataclass_fields__.keys() - {"model", "lag"}:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it is above 0 and finite")


class _Axis:
    """Translation or rotation of the setpoint, within its limits, and of the arm that follows it as a first-order lag does."""

    def __init__(self, stiffness: float, speed: float, acceleration: float, lag: float) -> None:
        self._slow = DAMPING / 2.0
        self._split = math.sqrt(max(self._slow**2 - stiffness, 0.0))  # of the two poles; 0: critically damped
        self.speed, self._stiffness, self._acceleration, self._lag = speed, stiffness, acceleration, lag
        self.resume(_NOTHING)

    def resume(self, velocity: Array) -> None:
        """The setpoint has had this velocity for a while."""
        self.mean = self.now = velocity  # of the setpoint over the last step, which is what goes out; of the arm at its end
        self.ahead = self._lag * velocity  # from the arm to the setpoint

    def track(self, error: Array, dt: float) -> Array:
        """The setpoint's displacement of `dt` seconds in which the arm moves as a spring that is `error` away from its goal: the exact
        response, within the limits."""
        decay, r = math.exp(-self._slow * dt), self._split
        stay, go = decay * math.cosh(r * dt), decay * (math.sinh(r * dt) / r if r > 1e-6 else dt)
        after = stay * error + go * (self.now + self._slow * error)
        velocity = stay * self.now - go * (self._slow * self.now + self._stiffness * error)
        return self.approach((after - error) / dt if dt >= _INSTANT else self.now, velocity, dt)

    def approach(self, mean: Array, velocity: Array, dt: float) -> Array:
        """The setpoint's displacement of `dt` seconds in which the arm moves at `mean` and ends at `velocity`, or as near to that as the
        limits allow."""
        if dt < _INSTANT:
            return _NOTHING
        wanted = mean + (self._lag * velocity - self.ahead) / dt
        moved = self._limited(wanted, dt)
        # Where the limits bite, the arm goes on from what it was really told.
        mean, spread = mean - (wanted - self.mean) * (dt / (dt + self._lag)), velocity - mean
        self.ahead = self.ahead + moved - mean * dt
        self.now = mean + shortened(spread, self._acceleration * dt / 2.0)
        return moved

    def brake(self, dt: float) -> Array:
        """The setpoint's displacement of `dt` seconds of coming to rest, as fast as the limits allow."""
        moved = self._limited(_NOTHING, dt)
        self.resume(self.mean)
        return moved

    def _limited(self, velocity: Array, dt: float) -> Array:
        change = self._acceleration * dt
        before, self.mean = self.mean, self.mean + shortened(shortened(velocity, self.speed) - self.mean, change)
        fast = math.hypot(*before.tolist())
        if fast > self.speed * (1.0 + _TOLERANCE):  # which was lowered meanwhile: straight on, and slower, before anything else
            slower = shortened(before, max(self.speed, fast - change))
            self.mean = min(self.mean, slower, key=lambda velocity: math.hypot(*velocity.tolist()))
        return self.mean * dt


class Motion:
    """Owns the setpoint: where the arm is told to be, and how fast. One of `reset` and `resume` comes before the first `step`."""

    def __init__(self, config: MotionConfig, hz: float) -> None:
        """hz: the control rate."""
        self.config = config
        self._step = 1.0 / hz
        self._translation = _Axis(STIFFNESS, config.speed, config.acceleration, config.lag)
        self._rotation = _Axis(ROTATION_STIFFNESS, config.angular_speed, config.angular_acceleration, config.lag)
        self._gripper = 0.0
        self._position = self._base = _NOTHING  # base: where the control step began, which goals count from
        self._orientation = self._from = self._goal = np.array([0.0, 0.0, 0.0, 1.0])
        self._excess = (_NOTHING, _NOTHING)  # from where the arm should be to the base, where that is too far ahead of the measured arm
        self._phase = math.inf  # s since the control step began

    def reset(self, arm: ArmState) -> None:
        """At rest where the arm is measured. The gripper keeps its last command."""
        self._translation.resume(_NOTHING)
        self._rotation.resume(_NOTHING)
        self._place(np.array(arm.position, np.float64), turned(np.asarray(arm.orientation, np.float64), _NOTHING))

    def resume(self, setpoint: Setpoint) -> None:
        """Go on from what really went out."""
        self._translation.resume(setpoint.linear)
        self._rotation.resume(setpoint.angular)
        self._gripper = setpoint.gripper
        self._place(setpoint.position, setpoint.orientation)

    def restrict(self, config: MotionConfig) -> None:
        """Go on with a lower speed, slowing down within the acceleration, and with a shorter lead."""
        self.config = config
        self._translation.speed, self._rotation.speed = config.speed, config.angular_speed

    def rebase(self, arm: ArmState) -> None:
        """Be where the arm is measured, at the velocity of before: for an arm that somebody else moves."""
        moved = np.asarray(arm.position, np.float64) - self._position
        turn = turn_between(self._orientation, np.asarray(arm.orientation, np.float64))
        self._position, self._base = self._position + moved, self._base + moved
        self._orientation, self._from, self._goal = (turned(q, turn) for q in (self._orientation, self._from, self._goal))

    def step(self, action: NDArray[np.float32] | None, dt: float, renew: bool | None = None, arm: ArmState | None = None) -> Setpoint:
        """The setpoint `dt` seconds after the last one.

        action: float32 [7], a row of an ActionChunk; None (or one that is not finite): come to rest, as fast as the limits allow.
        renew: a control step begins with this action; None: the model counts the time itself. arm: as measured; None: it follows."""
        if not dt >= 0.0:
            raise ValueError(f"dt is {dt} s; time does not run backwards")
        if action is None or not np.isfinite(action).all():
            return self._rest(dt)
        begins = self._phase >= self._step * (1.0 - 1e-6) if renew is None else renew
        if begins:
            self._begin_step(arm)
        offset = np.asarray(action[:6], np.float64)
        self._gripper = float(action[6])
        if self.config.model == "spring":
            moved, turn = self._track(offset, dt)
        else:
            moved, turn = self._scale(offset, dt)
        self._phase += dt
        self._position = self._position + moved
        self._orientation = turned(self._orientation, turn)
        return self._setpoint(hold=False)

    def _expected(self) -> tuple[Array, Array]:
        """Where the arm should be now: the setpoint, less what it is ahead."""
        return self._position - self._translation.ahead, turned(self._orientation, -self._rotation.ahead)

    def _begin_step(self, arm: ArmState | None) -> None:
        self._phase, self._excess = 0.0, (_NOTHING, _NOTHING)
        position, orientation = self._expected()
        if arm is not None:
            ahead, turn = position - arm.position, turn_between(arm.orientation, orientation)
            self._excess = shortened(ahead, self.config.lead) - ahead, shortened(turn, self.config.lead_angle) - turn
        self._base, self._from = position + self._excess[0], turned(orientation, self._excess[1])

    def _track(self, offset: Array, dt: float) -> tuple[Array, Array]:
        if offset[3:].any():
            self._goal = turned(self._from, ROTATION_SCALE * offset[3:])
        elif not offset.any():
            self._goal = self._from
        position, orientation = self._expected()
        moved = self._translation.track(position - self._base - POSITION_SCALE * offset[:3], dt)
        return moved, self._rotation.track(turn_between(self._goal, orientation), dt)

    def _scale(self, offset: Array, dt: float) -> tuple[Array, Array]:
        share = min(1.0, dt / max(self._step - self._phase, dt)) if dt > 0.0 else 0.0
        # What the arm should be ahead of where offsets count from is taken back within a step.
        linear = (offset[:3] * self.config.metres_per_unit + self._excess[0]) / self._step
        angular = (offset[3:] * self.config.radians_per_unit + self._excess[1]) / self._step
        velocity = self._translation.now + share * (linear - self._translation.now)
        rate = self._rotation.now + share * (angular - self._rotation.now)
        return self._translation.approach(velocity, velocity, dt), self._rotation.approach(rate, rate, dt)

    def _rest(self, dt: float) -> Setpoint:
        moved, turn = self._translation.brake(dt), self._rotation.brake(dt)
        self._place(self._position + moved, turned(self._orientation, turn))
        return self._setpoint(hold=not (self._translation.mean.any() or self._rotation.mean.any()))

    def _place(self, position: Array, orientation: Array) -> None:
        """Whatever was asked for before is over: goals are where the setpoint is, and the next action begins a control step."""
        self._position = self._base = position
        self._orientation = self._from = self._goal = orientation
        self._excess, self._phase = (_NOTHING, _NOTHING), math.inf

    def _setpoint(self, hold: bool) -> Setpoint:
        return Setpoint(self._position, self._orientation, self._translation.mean, self._rotation.mean, self._gripper, hold, 0)


def braked(setpoint: Setpoint, dt: float, acceleration: float, angular_acceleration: float) -> Setpoint:
    """The setpoint `dt` seconds into a stop at these decelerations; a hold once it is at rest. The gripper keeps its last command."""
    linear = setpoint.linear - shortened(setpoint.linear, acceleration * dt)
    angular = setpoint.angular - shortened(setpoint.angular, angular_acceleration * dt)
    return replace(
        setpoint,
        position=setpoint.position + linear * dt,
        orientation=turned(setpoint.orientation, angular * dt),
        linear=linear,
        angular=angular,
        hold=not (linear.any() or angular.any()),
    )


def shortened(vector: Array, length: float) -> Array:
    """The vector, or one of this length in its direction where it is longer."""
    norm = math.hypot(*vector.tolist())
    return vector if norm <= length else vector * (length / norm)
