"""A demonstration: an expert carries out an instruction, and what it meant at every step becomes an episode of a dataset.

The expert is asked at every step. What is executed is its action with noise added, what is written is the action that it meant, so
that the demonstrations also show how to come back from where the noise has led. Only successes are kept.

Where every instruction of a suite has a meaning in every scene, frames on the way to an object also keep what the expert would do under
other instructions. Without them a hand on its way tells what is asked, and words need not be read.

With a policy given, the policy acts first, and the expert takes over at a random step; from there on it is written. So the expert
shows what to do where the policy gets to (DAgger: Ross, Gordon, Bagnell 2011; with a takeover as in HG-DAgger, arXiv 1810.02890).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..action_convention import OSC
from ..policy.chunk import ACTION_DIM
from ..policy.normalization import GRIPPER
from ..policy.observation import Observation, Privileged, state_vector
from ..policy.policy import Policy
from ..policy.preprocessing import resize_lanczos3
from ..simulation import Environment
from ..simulation.plan import ObjectMissing
from .dataset import Counterfactuals, Episode

REACH = 0.125  # m from the hand to the nearest object; nearer, with the hand above it, other instructions would outvote "go down"


def to_dataset(action: NDArray[np.float32]) -> NDArray[np.float32]:
    """A command, float32 [..., 7] with gripper -1 = open, +1 = closed -> in the dataset's convention, 1 = open, 0 = closed."""
    converted = np.array(action, np.float32)
    converted[..., GRIPPER] = (1.0 - converted[..., GRIPPER]) / 2.0
    return converted


class OtherInstructions:
    """Asks an expert at a frame what it would do under `count` instructions that are drawn out of `known`."""

    def __init__(self, expert: Policy, known: Sequence[str], count: int, rng: np.random.Generator) -> None:
        """expert: of the horizon that counterfactuals are to have."""
        self._expert, self._known, self._count, self._rng = expert, tuple(known), count, rng
        self._index: list[NDArray[np.int64]] = []
        self._actions: list[NDArray[np.float32]] = []

    def ask(self, observation: Observation) -> None:
        """Nothing is asked within REACH of an object, nor of what is not there."""
        assert observation.privileged is not None
        objects = np.array([pose[:3] for pose in observation.privileged.object_poses.values()])
        on_the_way = np.linalg.norm(objects - observation.state[:3], axis=1).min() > REACH
        index = np.full(self._count, -1, np.int64)
        actions = np.zeros((self._count, self._expert.spec.horizon, ACTION_DIM), np.float32)
        others = [i for i, words in enumerate(self._known) if words != observation.instruction]
        if on_the_way and others:
            place = 0
            for i in self._rng.permutation(others):
                if place == self._count:
                    break
                self._expert.reset()
                try:
                    actions[place] = self._expert.infer(replace(observation, instruction=self._known[i])).actions
                except ObjectMissing:
                    continue
                index[place] = i
                place += 1
        self._index.append(index)
        self._actions.append(to_dataset(actions))

    def answers(self) -> Counterfactuals:
        return Counterfactuals(self._known, np.stack(self._index), np.stack(self._actions))


def play(
    environment: Environment,
    expert: Policy,
    task: int,
    seed: int,
    noise: NDArray[np.float32],
    image_size: int | None = None,
    policy: Policy | None = None,
    takeover: int = 0,
    others: OtherInstructions | None = None,
) -> Episode | None:
    """One episode, or None where the expert does not reach the goal within the step limit, counted from where it takes over.

    expert: of horizon 1. noise: float32 [step_limit, 3], added to the translation that it executes. image_size: of the pictures that
    are kept, shrunk as a policy shrinks what it sees (None: as they are rendered). policy: acts before step `takeover`, whole chunks
    open loop; None where it succeeds by then. others: asked at every frame that is kept."""
    expert.reset()
    words, step = environment.tasks[task], expert.spec.step_duration
    images: dict[str, list[NDArray[np.uint8]]] = {role: [] for role in environment.cameras}
    states, actions = [], []
    planned: deque[NDArray[np.float32]] = deque()
    snapshot = environment.reset(task, seed)
    for i in range(takeover + environment.step_limit):
        state = state_vector(snapshot.position, snapshot.orientation, snapshot.gripper)
        stamps = dict.fromkeys((*images, "state", "privileged"), (i + 1) * step)  # a zero stamp means "unset"
        observation = Observation(snapshot.images, state, words, stamps, 1, Privileged(snapshot.object_poses, snapshot.success))
        meant = expert.infer(observation).actions[0]  # also before it takes over: so it knows how far the task has come
        if policy is not None and i < takeover:
            if not planned:
                planned.extend(policy.infer(observation).actions)
            executed = planned.popleft()
        else:
            for role, pictures in images.items():
                picture = snapshot.images[role]
                pictures.append(picture if image_size is None else resize_lanczos3(picture, image_size))
            states.append(state)
            actions.append(meant)
            if others is not None:
                others.ask(observation)
            executed = meant.copy()
            executed[:3] = np.clip(meant[:3] + noise[i - takeover], -1.0, 1.0)
        snapshot = environment.step(executed)
        if snapshot.success:
            if not actions:
                return None
            pictures_of = {role: np.stack(pictures) for role, pictures in images.items()}
            answers = None if others is None else others.answers()
            return Episode(words, pictures_of, np.array(states, np.float32), to_dataset(np.array(actions)), seed, True, answers, OSC)
    return None
