"""How far an arm follows behind its setpoints, measured while it is led."""

from __future__ import annotations

from .command import ArmState, Setpoint


class Following:
    """Watches setpoints and the arm that they lead. least: m that setpoints have to have gone before there is something to say."""

    def __init__(self, least: float = 0.5) -> None:
        self._least = least
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
        """s, least squares of the distance between setpoint and arm over the setpoint's velocity. None before `least`."""
        return self._along / self._squares if self._moved >= self._least else None
