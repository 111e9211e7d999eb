"""The built-in simulator: MuJoCo alone, nothing to download."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np
from numpy.typing import NDArray

from . import scene
from .environment import Snapshot
from .operational_space import OperationalSpaceController
from .rendering import Renderer
from .tabletop_tasks import SUITES

CONTROL_HZ = 20.0
_PHYSICS_STEPS = 20  # of 2.5 ms, in a control step
_HOME = np.array([0.0, -0.1671, 0.0, -2.5074, 0.0, 2.3403, 0.7854])  # grip site at (-0.15, 0, 0.24), pointing down
_OPENING = 0.08  # m between the open fingers
_GRIPPER_SPEED = 0.012  # m of opening a control step: about 7 steps from open to closed
_AT_REST = 0.05  # m/s


class TabletopEnvironment:
    """One of the suites of tabletop_tasks (see `Environment`). Snapshots have the poses of what is there in the episode.

    Quaternions of `Snapshot.orientation` are continuous over an episode and start on the branch that LIBERO's datasets have: a hand
    that points down is near xyzw (1, 0, 0, 0), axis-angle (pi, 0, 0), and passes through (pi, 0, 0) without a jump to -pi.
    A gripper action below 0 opens, above 0 closes, 0 keeps the last command.

    An OpenGL context belongs to the thread that made it: make, reset, step and close an environment with cameras in one thread.
    Without cameras no context is made.
    """

    frame = "world"
    control_hz = CONTROL_HZ
    joint_names = scene.ARM_JOINTS
    gripper_joint_names = scene.FINGER_JOINTS

    def __init__(self, suite: str, *, cameras: Sequence[str] = scene.CAMERAS, image_size: int = 256) -> None:
        """cameras: roles out of "scene" and "wrist". image_size: edge of the square pictures, pixels.

        Raises ValueError for an unknown suite or camera, RenderingError where no OpenGL context can be made."""
        if suite not in SUITES:
            raise ValueError(f"unknown suite {suite!r}: the tabletop has {', '.join(SUITES)}")
        unknown = [name for name in cameras if name not in scene.CAMERAS]
        if unknown:
            raise ValueError(f"unknown camera {', '.join(unknown)}: the tabletop has {', '.join(scene.CAMERAS)}")
        if not 8 <= image_size <= 2048:
            raise ValueError(f"image_size is {image_size}: expected 8 to 2048 pixels")
        self._suite = SUITES[suite]
        self.suite = suite
        self.tasks = tuple(task.instruction for task in self._suite.tasks)
        self.step_limit = self._suite.step_limit
        self.cameras = tuple(cameras)
        self._model = model = mujoco.MjModel.from_xml_string(scene.tabletop_mjcf(self._suite.items))
        self.physics_step = float(model.opt.timestep)
        self._data = mujoco.MjData(model)
        self._controller = OperationalSpaceController(model, scene.ARM_JOINTS, scene.GRIP_SITE, _HOME)
        self._arm = np.array([model.joint(name).qposadr[0] for name in scene.ARM_JOINTS])
        self._fingers = np.array([model.joint(name).qposadr[0] for name in scene.FINGER_JOINTS])
        self._finger_bodies = tuple(model.body(name).id for name in ("finger1", "finger2"))
        self._gripper = model.actuator("gripper").id
        self._grip_site = model.site(scene.GRIP_SITE).id
        self._hand = model.body(scene.HAND_BODY).id
        self._task = self._suite.tasks[0]
        self._quaternion = np.zeros(4)
        self._opening = self._opening_goal = _OPENING
        self._started = False
        self._present: tuple[str, ...] = ()
        shadows = {
            "block": 1.3 * scene.BLOCK,
            "can": 1.3 * scene.CAN_RADIUS,
            "bowl": 0.7 * scene.BOWL_RADIUS,
            "plate": 0.84 * scene.PLATE_RADIUS,
        }
        below = {item.name: shadows[item.kind] for item in self._suite.items if item.kind in shadows}
        self._renderer = Renderer(model, cameras, image_size, shadows={**below, scene.HAND_BODY: 0.05}) if cameras else None

    def reset(self, task: int, seed: int) -> Snapshot:
        """Begin an episode; (suite, task, seed) draw its initial state. Raises ValueError for an unknown task or a negative seed."""
        if not 0 <= task < len(self.tasks):
            raise ValueError(f"{self.suite} has tasks 0 to {len(self.tasks) - 1}, not {task}")
        if seed < 0:
            raise ValueError(f"seed is {seed}: expected 0 or more")
        rng = np.random.default_rng([list(SUITES).index(self.suite), task, seed])
        model, data = self._model, self._data
        self._task = self._suite.tasks[task]
        mujoco.mj_resetData(model, data)
        data.qpos[self._arm] = _HOME
        data.qpos[self._fingers] = _OPENING / 2, -_OPENING / 2
        data.ctrl[self._gripper] = self._opening = self._opening_goal = _OPENING
        poses = self._suite.initial_poses(task, rng)
        self._present = tuple(poses)
        for place, item in enumerate(self._suite.items):
            if item.name not in poses:
                data.joint(item.name).qpos[:] = 0.15 * place - 0.3, 0.0, scene.CUPBOARD + item.half_height, 1.0, 0.0, 0.0, 0.0
        for name, pose in poses.items():
            body = model.body(name)
            if body.mocapid[0] >= 0:
                data.mocap_pos[body.mocapid[0]], data.mocap_quat[body.mocapid[0]] = pose[:3], pose[3:]
            else:
                data.joint(name).qpos[:] = pose
        mujoco.mj_forward(model, data)
        self._controller.reset(data)
        self._quaternion = np.array([0.0, 1.0, 0.0, 0.0])  # wxyz: the branch to be on
        self._started = True
        return self._snapshot()

    def step(self, action: NDArray[np.float32]) -> Snapshot:
        """Play one control step. action: float32 [7]; offsets beyond [-1, 1] are clipped, as robosuite does.

        Raises ValueError for another shape or a number that is not finite, and before the first reset; the state then stays as it was."""
        action = np.asarray(action, np.float64)
        if action.shape != (7,):
            raise ValueError(f"the action has shape {action.shape}: expected (7,)")
        if not np.isfinite(action).all():
            raise ValueError(f"the action is not finite: {action}")
        if not self._started:
            raise ValueError("no episode has begun: call reset first")
        self._controller.set_goal(self._data, np.clip(action[:6], -1.0, 1.0))
        self._play(action[6], _PHYSICS_STEPS)
        return self._snapshot()

    def follow(
        self, position: NDArray[np.float64], orientation: NDArray[np.float64], gripper: float, duration: float, *, render: bool = False
    ) -> Snapshot:
        """Pull the grip site towards an absolute pose for `duration`, as an arm's own driver does: stiffly, and stopped by nothing but
        the joints' limits. May be mixed with `step`.

        position: float64 [3], m. orientation: float64 [4] xyzw, of the hand body, unit length within 1 %. Both in `frame`.
        gripper: as in an action. duration: s, a multiple of `physics_step`. render: without it the snapshot has no images.
        Raises ValueError for anything else, and before the first reset; the state then stays as it was."""
        position, orientation = np.asarray(position, np.float64), np.asarray(orientation, np.float64)
        if position.shape != (3,) or orientation.shape != (4,) or not np.isfinite([*position, *orientation, gripper]).all():
            raise ValueError(f"the pose is {position}, {orientation}, the gripper {gripper}: expected 3, 4 and 1 finite numbers")
        if abs(np.linalg.norm(orientation) - 1.0) > 0.01:
            raise ValueError(f"the orientation {orientation} is no unit quaternion")
        steps = round(duration / self.physics_step)
        if steps < 1 or abs(steps * self.physics_step - duration) > 1e-9:
            raise ValueError(f"duration is {duration} s: expected a multiple of {self.physics_step} s")
        if not self._started:
            raise ValueError("no episode has begun: call reset first")
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, np.roll(orientation / np.linalg.norm(orientation), 1))
        self._controller.set_pose(position, rotation.reshape(3, 3))
        self._play(gripper, steps)
        return self._snapshot(render)

    def _play(self, gripper: float, steps: int) -> None:
        """Physics steps towards the controller's goal."""
        model, data = self._model, self._data
        if gripper:
            self._opening_goal = 0.0 if gripper > 0 else _OPENING
        opening, reach = self._opening, _GRIPPER_SPEED * (steps / _PHYSICS_STEPS)
        self._opening += float(np.clip(self._opening_goal - opening, -reach, reach))
        for i in range(steps):
            data.ctrl[self._gripper] = opening + (self._opening - opening) * (i + 1) / steps
            mujoco.mj_step1(model, data)
            self._controller.apply(data)
            mujoco.mj_step2(model, data)
        mujoco.mj_forward(model, data)  # what is measured belongs to the state at the end of the step

    def close(self) -> None:
        """Free the renderer; a second call does nothing."""
        if self._renderer is not None:
            self._renderer.close()

    def _snapshot(self, render: bool = True) -> Snapshot:
        data = self._data
        quaternion = data.xquat[self._hand]
        self._quaternion = quaternion.copy() if quaternion @ self._quaternion >= 0.0 else -quaternion
        poses = {name: self._pose(name) for name in self._present}
        return Snapshot(
            images=self._renderer.render(data) if render and self._renderer is not None else {},
            position=data.site_xpos[self._grip_site].copy(),
            orientation=np.roll(self._quaternion, -1),
            gripper=data.qpos[self._fingers].copy(),
            joint_positions=data.qpos[self._arm].copy(),
            object_poses=poses,
            success=self._success(poses),
        )

    def _pose(self, name: str) -> NDArray[np.float64]:
        body = self._data.body(name)
        return np.concatenate([body.xpos, np.roll(body.xquat, -1)])

    def _success(self, poses: dict[str, NDArray[np.float64]]) -> bool:
        """The target is at its goal, at rest, and the fingers have let go of it."""
        if not self._suite.at_goal(self._task, poses):
            return False
        if np.linalg.norm(self._data.joint(self._task.target).qvel[:3]) > _AT_REST:
            return False
        target = self._model.body(self._task.target).id
        for contact in self._data.contact[: self._data.ncon]:
            bodies = self._model.geom_bodyid[contact.geom]
            if target in bodies and any(finger in bodies for finger in self._finger_bodies):
                return False
        return True
