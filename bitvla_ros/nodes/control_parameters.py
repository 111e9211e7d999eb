"""The controller's parameters, and the player and guard that they describe."""

from __future__ import annotations

from types import SimpleNamespace

from bitvla_ros.control.limits import CLAMPS, Limits
from bitvla_ros.control.motion import MODELS
from bitvla_ros.control.player import PlayerConfig
from bitvla_ros.control.session import ControlConfig

from .parameters import Parameter, ParameterError

_DEFAULT = ControlConfig()
_PLAYER, _LIMITS = _DEFAULT.player, _DEFAULT.limits

PARAMETERS = (
    Parameter("simulator", True, "simulation_state says what time it is and what succeeded; false: a real arm, success on `success`"),
    Parameter("control_hz", _PLAYER.control_hz, "Rate of the control steps; chunks made for another are refused", "Hz", 1.0, 1000.0),
    Parameter("replan_steps", _PLAYER.replan_steps, "Actions of a chunk played before the next takes over; 0: all", "", 0, 1000),
    Parameter("time_limit", 0.0, "Limit of a goal that names none; 0: the simulator's step limit", "s", 0.0, 86400.0),
    Parameter("start_timeout", 10.0, "How long a goal waits for policy, simulator and state before it starts", "s", 0.0, 3600.0),
    Parameter("max_age", _PLAYER.max_age, "Oldest observation whose chunk a moving arm still follows", "s", 0.0, 3600.0),
    Parameter("max_age_still", _PLAYER.max_age_still, "The same for an arm that held still since the observation", "s", 0.0, 3600.0),
    Parameter("max_future", _PLAYER.max_future, "Tolerated lead of an observation's stamp over our clock", "s", 0.0, 10.0),
    Parameter("still_position", _PLAYER.still_position, "The pose may wander so far and the arm still counts as still", "m", 0.0, 1.0),
    Parameter("still_angle", _PLAYER.still_angle, "See still_position", "rad", 0.0, 3.2),
    Parameter("fade_steps", _PLAYER.fade_steps, "Steps in which a new chunk is blended with what was commanded last", "", 0, 100),
    Parameter("ensemble", _PLAYER.ensemble, "Realtime: chunks that overlap are averaged, weighted exp(-ensemble i); 0: no", "", 0.0, 10.0),
    Parameter("ramp_steps", _PLAYER.ramp_steps, "Steps in which the arm comes to a hold, after a chunk and at a stop", "", 0, 100),
    Parameter("hold_repeats", _DEFAULT.hold_repeats, "Setpoints: how often a stop's hold is repeated, as one may be lost", "", 0, 50),
    Parameter("motion", _DEFAULT.motion, "Setpoints: how an arm answers an offset (control/motion.py)", choices=MODELS),
    Parameter("lag", _DEFAULT.lag, "Setpoints: how far the arm follows behind them; they go ahead by as much", "s", 0.0, 0.5),
    Parameter("limits.metres_per_unit", _LIMITS.metres_per_unit, "Motion of a full-scale step, sustained", "m", 1e-6, 1.0),
    Parameter("limits.radians_per_unit", _LIMITS.radians_per_unit, "Rotation of a full-scale step, sustained", "rad", 1e-6, 3.2),
    Parameter("limits.workspace_min", _LIMITS.workspace_min, "Corner of the box that the end effector stays in, in the pose's frame", "m"),
    Parameter("limits.workspace_max", _LIMITS.workspace_max, "Opposite corner of the box", "m"),
    Parameter("limits.speed", _LIMITS.speed, "Cap on the commanded speed", "m/s", 1e-6, 100.0),
    Parameter("limits.angular_speed", _LIMITS.angular_speed, "Cap on the commanded angular speed", "rad/s", 1e-6, 1000.0),
    Parameter("limits.acceleration", _LIMITS.acceleration, "Cap on the change between successive commands", "m/s2", 1e-6, 1e6),
    Parameter("limits.angular_acceleration", _LIMITS.angular_acceleration, "The same for rotation", "rad/s2", 1e-6, 1e6),
    Parameter("limits.max_state_age", _LIMITS.max_state_age, "Oldest measured pose; setpoints rest from half of it on", "s", 1e-3, 60.0),
    Parameter("limits.chunk_deadline", _LIMITS.chunk_deadline, "Realtime: longest time without an accepted chunk", "s", 1e-3, 3600.0),
    Parameter("limits.hang_limit", _LIMITS.hang_limit, "Lockstep: longest time without progress", "s", 1e-3, 3600.0),
    Parameter("limits.liveliness_grace", _LIMITS.liveliness_grace, "Realtime: how long the policy may be gone", "s", 0.0, 60.0),
    Parameter("limits.following_position", _LIMITS.following_position, "Setpoints: farthest from the measured pose", "m", 1e-4, 10.0),
    Parameter("limits.following_angle", _LIMITS.following_angle, "The same for rotation", "rad", 1e-4, 3.2),
    Parameter("limits.gripper_rate", _LIMITS.gripper_rate, "Setpoints: travel of the gripper; open to closed is 2", "1/s", 0.1, 1e3),
    Parameter("limits.joint_min", (0.0,), "Setpoints: lower limits of the joints, as in joint_states; [0.0] in both: unknown", "rad"),
    Parameter("limits.joint_max", (0.0,), "Upper limits of the joints", "rad"),
    Parameter("limits.joint_margin", _LIMITS.joint_margin, "How near a joint may come to its limit", "rad", 0.0, 3.2),
    Parameter("limits.clamp", _LIMITS.clamp, f"Limits that clamp instead of stopping the arm: of {', '.join(CLAMPS)}; [''] for none"),
)


def control_config(p: SimpleNamespace) -> ControlConfig:
    """p: the parameters by name, dots as underscores. Raises ParameterError."""
    player = {name: getattr(p, name) for name in PlayerConfig.__dataclass_fields__}
    limits = {name: getattr(p, f"limits_{name}") for name in Limits.__dataclass_fields__ if name != "ramp_steps"}
    limits["clamp"] = tuple(name for name in p.limits_clamp if name)
    if limits["joint_min"] == limits["joint_max"] == (0.0,):
        limits["joint_min"] = limits["joint_max"] = ()
    try:
        return ControlConfig(PlayerConfig(**player), Limits(**limits, ramp_steps=p.ramp_steps), p.motion, p.lag, p.hold_repeats)
    except ValueError as error:
        raise ParameterError(str(error)) from error
