"""The smallest Environment: a point that moves by a share of the commanded offset. And policies that need no network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bitvla_ros.policy.chunk import ActionChunk
from bitvla_ros.policy.observation import Observation
from bitvla_ros.policy.policy import PolicySpec
from bitvla_ros.simulation.environment import Snapshot

METRES_PER_UNIT = 0.0135


class PointMass:
    suite = "point_mass"
    tasks = ("go to the left", "go to the right")
    step_limit = 60
    control_hz = 20.0
    cameras = ("scene",)
    frame = "world"
    joint_names = ("slide_x", "slide_y", "slide_z")
    gripper_joint_names = ("finger_1", "finger_2")

    def reset(self, task: int, seed: int) -> Snapshot:
        if not 0 <= task < len(self.tasks):
            raise ValueError(f"task {task} of {self.suite}: expected 0 to {len(self.tasks) - 1}")
        self._position = np.random.default_rng(seed).uniform(-0.02, 0.02, 3)
        self._goal = np.array([0.0, 0.15 if task == 0 else -0.15, 0.0])
        self.actions: list[np.ndarray] = []
        return self._snapshot()

    def step(self, action: np.ndarray) -> Snapshot:
        assert action.dtype == np.float32 and action.shape == (7,)
        self.actions.append(action)
        self._position = self._position + METRES_PER_UNIT * np.clip(action[:3].astype(np.float64), -1, 1)
        return self._snapshot()

    def close(self) -> None:
        pass

    def _snapshot(self) -> Snapshot:
        image = np.zeros((8, 8, 3), np.uint8)
        image[int(4 + 20 * self._position[1]) % 8] = 255
        return Snapshot(
            images={"scene": image},
            position=self._position.copy(),
            orientation=np.array([0.0, 0.0, 0.0, 1.0]),
            gripper=np.array([0.02, -0.02]),
            joint_positions=self._position.copy(),
            object_poses={"goal": np.concatenate([self._goal, [0.0, 0.0, 0.0, 1.0]])},
            success=bool(np.linalg.norm(self._position - self._goal) < 0.02),
        )


def chunk_for(observation: Observation, actions: np.ndarray, **changes: object) -> ActionChunk:
    fields: dict = {
        "actions": np.asarray(actions, np.float32),
        "observation_stamp": observation.stamp,
        "step_duration": 50_000_000,
        "epoch": observation.epoch,
        "instruction": observation.instruction,
    }
    return ActionChunk(**{**fields, **changes})


class Seeker:
    """Moves straight to the object called goal: a policy that reads the truth."""

    spec = PolicySpec(name="seeker", cameras=("scene",), horizon=8, control_hz=20.0, privileged=True, model_hash="")

    def __init__(self) -> None:
        self.resets = 0
        self.seen: list[Observation] = []

    def reset(self) -> None:
        self.resets += 1

    def infer(self, observation: Observation) -> ActionChunk:
        self.seen.append(observation)
        assert observation.privileged is not None
        position, goal = observation.state[:3].copy(), observation.privileged.object_poses["goal"][:3]
        actions = np.zeros((self.spec.horizon, 7), np.float32)
        for row in actions:
            row[:3] = np.clip((goal - position) / METRES_PER_UNIT, -1, 1)
            position += METRES_PER_UNIT * row[:3]
        return chunk_for(observation, actions)


class Fixed:
    """Answers with what a function makes of the observation."""

    spec = PolicySpec(name="fixed", cameras=(), horizon=8, control_hz=20.0, privileged=False, model_hash="")

    def __init__(self, make: Callable[[Observation], ActionChunk]) -> None:
        self.infer = make

    def reset(self) -> None:
        pass
