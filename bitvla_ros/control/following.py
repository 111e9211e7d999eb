"""How far an arm follows behind its setpoints, measured while it is led."""

from __future__ import annotations

from .command import ArmState, Setpoint

_MOVED = 0.5  # m that setpoints have to have gone before there is something to say


class Following:
    """Watches setpoints and the arm that they lead."""

    def __init__(self) -> None:
        self._along = self._squares = self._moved = 0.0
        self._last: tuple[Setpoint, int] | None = None

    def observe(self, setpoint: Setpoint | None, arm: ArmState, now: int) -> None:
        """setpoint: that goes out at `now`, ns of ROS time; None: none does. arm: as measured last, before it."""
        if self._last is not None and setpoint is not None:
            last, then = self._last
            velocity = last.linear
            gap = last.position - arm.position - velocity * ((then - arm.stamp) / 1e9)  # at the time of the measurement
            self._along += float(gap @ velocity)
            self._squares += float(velocity @ velocity)
            self._moved += float(velocity @ velocity) ** 0.5 * (now - then) / 1e9
        self._last = None if setpoint is None else (setpoint, now)

    @property
    def lag(self) -> float | None:
        """s, least squares of the distance between setpoint and arm over the setpoint's velocity. None before 0.5 m of way."""
        return self._along / self._squares if self._moved >= _MOVED else None
