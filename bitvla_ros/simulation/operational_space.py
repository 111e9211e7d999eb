"""How the arm follows its actions: the response of robosuite's OSC_POSE, by inverse kinematics on accelerations.

The goal is set once a control step, an offset away from the pose measured then, and is tracked as a critically damped spring
(kp = 150 1/s^2) at every physics step; or it is an absolute pose, tracked as stiffly as an arm's own driver does. The wanted
acceleration of the grip site goes through a damped least-squares inverse of the Jacobian, posture fills the null space, joint limits
bound the result, and inverse dynamics turn it into torques.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

POSITION_SCALE = 0.05  # m at full scale
ROTATION_SCALE = 0.5  # rad at full scale
STIFFNESS = 150.0  # 1/s^2, robosuite's kp, for translation
DAMPING = 2.0 * np.sqrt(STIFFNESS)  # 1/s, critical
# robosuite's own rotation is slower than its kp says (0.03 rising to 0.07 rad a step at full scale were measured, not 0.13: its wrist
# has friction, and its decoupling neglects the inertia that rotation and translation share). Half of kp has that response.
ROTATION_STIFFNESS = 75.0
_FREQUENCY = 40.0  # 1/s, of the critically damped spring to an absolute pose: the arm trails a moving one by 2 / 40 s
_POSTURE = 10.0  # 1/s^2, robosuite's kp of the null space
_REGULARISATION = 5e-4  # of the least squares: keeps a stretched arm calm, and hardly slows it elsewhere
_LIMIT_RATE = 12.0  # 1/s, a joint may close in on its limit no faster than this times the distance
_LIMIT_MARGIN = 0.02  # rad, kept from the hard stop
_LIMIT_TIME = 0.02  # s in which a velocity that is too high is taken back
VELOCITY_LIMIT = np.array([2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61])  # rad/s, FCI


@dataclass(frozen=True)
class _Spring:
    """Stiffness of translation and rotation, 1/s^2, and their damping, 1/s."""

    translation: float
    rotation: float
    damping: float


_OSC_POSE = _Spring(STIFFNESS, ROTATION_STIFFNESS, DAMPING)
_DRIVER = _Spring(_FREQUENCY**2, _FREQUENCY**2, 2.0 * _FREQUENCY)


def rotation_from_vector(vector: Array) -> Array:
    """Axis-angle [3], rad -> rotation matrix [3, 3]."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross)


class OperationalSpaceController:
    """Drives the arm's joints of one MjData towards a goal pose of a site."""

    def __init__(self, model: mujoco.MjModel, joints: Sequence[str], site: str, posture: Array) -> None:
        """posture: float64 [n], rad, where the null space pulls to."""
        self._model = model
        self._site = model.site(site).id
        self._qpos = np.array([model.joint(name).qposadr[0] for name in joints])
        self._dof = np.array([model.joint(name).dofadr[0] for name in joints])
        self._actuators = np.array([model.actuator(name).id for name in joints])
        limits = np.array([model.joint(name).range for name in joints])
        self._low, self._high = limits[:, 0] + _LIMIT_MARGIN, limits[:, 1] - _LIMIT_MARGIN
        self._torque_limit = model.actuator_ctrlrange[self._actuators, 1].copy()
        self._posture = np.array(posture, np.float64)
        self._jacobian = np.zeros((6, model.nv))
        self._acceleration = np.zeros(model.nv)
        self._torque = np.zeros(model.nv)
        self._position = np.zeros(3)
        self._rotation = np.eye(3)
        self._spring = _OSC_POSE

    def _measured(self, data: mujoco.MjData) -> tuple[Array, Array]:
        return data.site_xpos[self._site], data.site_xmat[self._site].reshape(3, 3)

    def reset(self, data: mujoco.MjData) -> None:
        """The goal is where the arm is now."""
        position, rotation = self._measured(data)
        self._position, self._rotation = position.copy(), rotation.copy()

    def set_goal(self, data: mujoco.MjData, offset: Array) -> None:
        """offset: float64 [6] in [-1, 1], translation and axis-angle, world axes, from the pose measured now.
        A rotation of exactly zero keeps the last orientation goal, as robosuite does: the hand does not drift. But an offset of
        zero altogether is a hold, which stops a turning hand too."""
        position, rotation = self._measured(data)
        self._spring = _OSC_POSE
        self._position = position + POSITION_SCALE * offset[:3]
        if not offset.any():
            self._rotation = rotation.copy()
        if offset[3:].any():
            self._rotation = rotation_from_vector(ROTATION_SCALE * offset[3:]) @ rotation

    def set_pose(self, position: Array, rotation: Array) -> None:
        """The goal is a pose of the site: position [3], m, and rotation matrix [3, 3], world axes."""
        self._spring = _DRIVER
        self._position, self._rotation = position.copy(), rotation.copy()

    def apply(self, data: mujoco.MjData) -> None:
        """Write the torques of one physics step into data.ctrl. To be called between mj_step1 and mj_step2."""
        position, rotation = self._measured(data)
        jacobian = self._jacobian
        mujoco.mj_jacSite(self._model, data, jacobian[:3], jacobian[3:], self._site)
        arm = jacobian[:, self._dof]
        joint_position, joint_velocity = data.qpos[self._qpos], data.qvel[self._dof]
        error = np.empty(6)
        error[:3] = self._spring.translation * (self._position - position)
        error[3:] = self._spring.rotation * _rotation_error(self._rotation, rotation)
        wanted = error - self._spring.damping * (arm @ joint_velocity)
        posture = _POSTURE * (self._posture - joint_position) - 2.0 * np.sqrt(_POSTURE) * joint_velocity
        fastest = np.minimum(VELOCITY_LIMIT, _LIMIT_RATE * np.maximum(self._high - joint_position, 0.0))
        slowest = -np.minimum(VELOCITY_LIMIT, _LIMIT_RATE * np.maximum(joint_position - self._low, 0.0))
        low, high = (slowest - joint_velocity) / _LIMIT_TIME, (fastest - joint_velocity) / _LIMIT_TIME
        acceleration = _bounded_inverse(arm, wanted, posture, low, high)
        self._acceleration[self._dof] = acceleration
        mujoco.mj_mulM(self._model, data, self._torque, self._acceleration)
        torque = self._torque[self._dof] + data.qfrc_bias[self._dof] - data.qfrc_passive[self._dof]
        data.ctrl[self._actuators] = np.clip(torque, -self._torque_limit, self._torque_limit)


def _bounded_inverse(jacobian: Array, wanted: Array, posture: Array, low: Array, high: Array) -> Array:
    """Joint accelerations [n] between low and high that give the task acceleration `wanted` [6] and, in its null space, `posture` [n].

    A joint that would break its bound is put there, and the others do what is left of the task."""
    free = np.ones(len(posture), bool)
    acceleration = posture.copy()
    while free.any():
        columns = jacobian[:, free]
        gram = columns @ columns.T
        gram.flat[::7] += _REGULARISATION
        rest = wanted - jacobian[:, ~free] @ acceleration[~free] - columns @ posture[free]
        acceleration[free] = posture[free] + columns.T @ np.linalg.solve(gram, rest)
        broken = free & ((acceleration < low) | (acceleration > high))
        if not broken.any():
            break
        acceleration[broken] = np.clip(acceleration, low, high)[broken]
        free &= ~broken
    return acceleration


def _rotation_error(goal: Array, rotation: Array) -> Array:
    """Axis-angle [3], rad, world axes, that turns `rotation` into `goal`."""
    difference = goal @ rotation.T
    vector = np.array([difference[2, 1] - difference[1, 2], difference[0, 2] - difference[2, 0], difference[1, 0] - difference[0, 1]])
    sine = np.linalg.norm(vector) / 2.0
    if sine < 1e-9:
        return np.zeros(3)
    return np.asarray(vector * (np.arctan2(sine, (np.trace(difference) - 1.0) / 2.0) / (2.0 * sine)))
