"""The scripted expert: known-good actions from the simulator's truth, as a policy like any other.

A plan (what to pick, where to place it) is carried out in phases: hover, descend, close, lift, move, lower, open, rise. Actions are
proportional to the distance that is left. Within a chunk the expert predicts its own motion with a model of the controller's response,
so that a chunk can be played open loop; every observation then corrects position and objects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ..action_convention import OSC
from ..policy.chunk import ACTION_DIM, ActionChunk
from ..policy.observation import Observation
from ..policy.policy import PolicySpec
from .environment import Environment
from .plan import ExpertError, ObjectMissing, PickAndPlace

Array = NDArray[np.float64]

_GAIN = 15.0  # full scale for each metre that is left
_OFFSET = 0.05  # m, what full scale asks for
_FREQUENCY = np.sqrt(150.0)  # 1/s, of the controller's critically damped response (robosuite OSC_POSE, kp 150)
_NEAR, _CLOSE = 0.012, 0.006  # m, how near a waypoint must be: on the way, and where precision counts
_SLOW = 0.06  # m/s, below which a precise waypoint is reached
_CLEAR = 0.05  # m: further from its goal than this, sideways, the hand rises before it travels
_LOST = 0.05  # m between where an object should be in the hand and where it is
_HELD, _SHUT = 0.02, 0.07  # m: an object so near the grip site, between fingers so near each other, is in the hand
_PHASE_LIMIT = 40  # steps after which a phase is left although its waypoint was not reached


class UnknownInstruction(ExpertError):
    """The suite has no plan for these words."""


class Phase(IntEnum):
    HOVER = 0
    DESCEND = 1
    CLOSE = 2
    LIFT = 3
    MOVE = 4
    LOWER = 5
    OPEN = 6
    RISE = 7


@dataclass(frozen=True)
class _Moment:
    """Where the plan stands at one control step. steps: control steps spent in the phase. velocity: m/s, predicted."""

    phase: Phase = Phase.HOVER
    steps: int = 0
    velocity: tuple[float, float, float] = (0.0, 0.0, 0.0)
    grasp_height: float = 0.0  # of the grip site when it closed


def respond(position: Array, velocity: Array, offset: Array, duration: float = 0.05) -> tuple[Array, Array]:
    """Position and velocity one control step later, of a critically damped spring whose goal is 0.05 m * offset away.

    position, velocity: float64 [3], m and m/s. offset: float64 [3] in [-1, 1]. duration: s."""
    goal = position + _OFFSET * offset
    error = position - goal
    slope = velocity + _FREQUENCY * error
    decay = np.exp(-_FREQUENCY * duration)
    return goal + (error + slope * duration) * decay, (velocity - _FREQUENCY * slope * duration) * decay


class ScriptedExpert:
    """Policy that carries out a suite's plans. It reads state, instruction and object poses, never images. Deterministic."""

    def __init__(self, suite: str, plans: Mapping[str, PickAndPlace], *, horizon: int = 8, control_hz: float = 20.0) -> None:
        """plans: instruction -> plan. horizon: actions in a chunk, 1 or more."""
        if horizon < 1:
            raise ExpertError(f"horizon is {horizon}: expected 1 or more")
        self._suite = suite
        self._plans = {_key(instruction): plan for instruction, plan in plans.items()}
        digest = hashlib.sha256(repr(sorted(plans.items())).encode()).hexdigest()
        self.spec = PolicySpec("expert", (), horizon, control_hz, privileged=True, model_hash=f"expert-{digest[:16]}", convention=OSC)
        self.reset()

    def reset(self) -> None:
        self._moments: list[_Moment] = []  # of the last chunk: before each of its actions, and after the last
        self._last: tuple[int, str, int] = (0, "", 0)  # epoch, instruction and stamp of the last chunk's observation

    def infer(self, observation: Observation) -> ActionChunk:
        """float32 [horizon, 7] actions from the phase that the last chunk has led to.

        Raises UnknownInstruction for words that the suite has no plan for, ObjectMissing where the truth lacks what they name, and
        ExpertError where there is no truth at all."""
        plan = self._plans.get(_key(observation.instruction))
        if plan is None:
            known = "; ".join(sorted(self._plans))
            raise UnknownInstruction(f"no plan for {observation.instruction!r} in {self._suite}. Known instructions: {known}")
        if observation.privileged is None:
            raise ExpertError("the expert needs the simulator's truth: give Observation.privileged (topic simulation_state)")
        poses = observation.privileged.object_poses
        for name in (plan.pick, plan.place):
            if name not in poses:
                raise ObjectMissing(f"no pose of {name!r} among {', '.join(sorted(poses)) or 'no objects'}: is {self._suite} running?")
        opening = float(observation.state[6] - observation.state[7])
        motion = _Motion(plan, observation.state[:3], poses[plan.pick][:3], poses[plan.place][:3], opening)
        moment = motion.corrected(self._resume(observation))
        self._moments = [moment]
        actions = np.zeros((self.spec.horizon, ACTION_DIM), np.float32)
        for action in actions:
            action[:], moment = motion.advance(moment)
            self._moments.append(moment)
        self._last = (observation.epoch, observation.instruction, observation.stamp)
        return ActionChunk(
            actions,
            observation.stamp,
            self.spec.step_duration,
            epoch=observation.epoch,
            instruction=observation.instruction,
            model_hash=self.spec.model_hash,
            units=OSC.units,
        )

    def _resume(self, observation: Observation) -> _Moment:
        """Where the plan stands now: as many steps into the last chunk as time has passed since its observation."""
        epoch, instruction, stamp = self._last
        elapsed = round((observation.stamp - stamp) / self.spec.step_duration)
        if not self._moments or (observation.epoch, observation.instruction) != (epoch, instruction) or elapsed < 0:
            return _Moment()
        if elapsed < len(self._moments):
            return self._moments[elapsed]
        return replace(self._moments[-1], velocity=(0.0, 0.0, 0.0))  # the chunk ended before now: the arm held


class _Motion:
    """The arm on its way, from one observation: position is predicted, objects stand where they were seen."""

    def __init__(self, plan: PickAndPlace, position: Array, target: Array, goal: Array, opening: float) -> None:
        """opening: m between the fingers."""
        self._plan, self._position, self._target, self._goal = plan, np.array(position, np.float64), target, goal
        self._grasp = np.array(target, np.float64) + plan.grasp
        self._in_hand = np.array(target[:2] - position[:2], np.float64)  # object from grip site, sideways, once grasped
        self._held = opening < _SHUT and bool(np.linalg.norm(self._grasp - self._position) < _HELD)

    def corrected(self, moment: _Moment) -> _Moment:
        """Begin again where the object is not in the hand although it should be, or not at the goal although it was let go; and
        carry it on where whoever else moved the arm has it in the hand already."""
        if moment.phase <= Phase.DESCEND:
            if self._held:
                return _Moment(Phase.LIFT, velocity=moment.velocity, grasp_height=moment.grasp_height)
            moment = replace(moment, grasp_height=float(self._grasp[2]))
        if moment.phase in (Phase.MOVE, Phase.LOWER) or (moment.phase == Phase.LIFT and moment.steps > 6):
            failed = bool(np.linalg.norm(self._grasp - self._position) > _LOST)
        elif moment.phase == Phase.RISE and moment.steps > 8:
            failed = bool(np.linalg.norm(self._target[:2] - self._goal[:2] - self._plan.place_at) > _LOST)
        else:
            failed = False
        return _Moment(velocity=moment.velocity) if failed else moment

    def _waypoint(self, moment: _Moment) -> Array:
        plan, phase = self._plan, moment.phase
        if phase <= Phase.CLOSE:
            x, y = self._grasp[:2]
            height = self._grasp[2] + (plan.hover if phase == Phase.HOVER else 0.0)
        elif phase == Phase.LIFT:
            x, y = self._position[:2]
            height = moment.grasp_height + plan.lift
        else:
            x, y = self._goal[:2] + plan.place_at - self._in_hand if phase < Phase.OPEN else self._position[:2]
            height = max(moment.grasp_height + plan.lift, self._goal[2] + plan.release)
            if phase in (Phase.LOWER, Phase.OPEN):
                height = self._goal[2] + plan.release
        if phase == Phase.HOVER and np.hypot(x - self._position[0], y - self._position[1]) > _CLEAR and self._position[2] < height - _NEAR:
            x, y = self._position[:2]  # rise first
        return np.array([x, y, height])

    def advance(self, moment: _Moment) -> tuple[Array, _Moment]:
        """The action of one control step, float64 [7], and where the plan stands after it."""
        moment = self._next_phase(moment)
        offset = np.clip(_GAIN * (self._waypoint(moment) - self._position), -1.0, 1.0)
        if moment.phase in (Phase.CLOSE, Phase.OPEN):
            offset[:2] = 0.0
        closed = Phase.CLOSE <= moment.phase <= Phase.LOWER
        before = self._position
        self._position, velocity = respond(before, np.array(moment.velocity), offset)
        action = np.concatenate([offset, np.zeros(3), [1.0 if closed else -1.0]])
        x, y, z = (float(v) for v in velocity)
        return action, replace(moment, steps=moment.steps + 1, velocity=(x, y, z))

    def _next_phase(self, moment: _Moment) -> _Moment:
        phase, plan = moment.phase, self._plan
        error = np.abs(self._waypoint(moment) - self._position)
        slow = float(np.linalg.norm(moment.velocity)) < _SLOW
        if phase == Phase.CLOSE:
            done = moment.steps >= plan.close_steps
        elif phase == Phase.OPEN:
            done = moment.steps >= plan.open_steps
        elif phase == Phase.HOVER:
            on_top = np.hypot(*(self._grasp[:2] - self._position[:2])) < _NEAR
            done = bool(on_top and error[2] < 3 * _NEAR)
        elif phase in (Phase.LIFT, Phase.MOVE):
            done = bool(error.max() < _NEAR)
        else:
            done = bool(error.max() < _CLOSE and slow)
        if phase == Phase.RISE or not (done or (moment.steps >= _PHASE_LIMIT and phase != Phase.HOVER)):
            return moment
        height = float(self._position[2]) if phase == Phase.DESCEND else moment.grasp_height
        return replace(moment, phase=Phase(phase + 1), steps=0, grasp_height=height)


def _key(instruction: str) -> str:
    return " ".join(instruction.lower().split())


def plans_of(suite: str) -> Mapping[str, PickAndPlace]:
    """Instruction -> plan, for every task of a suite that the expert can do. Raises ExpertError for an unknown suite."""
    if suite.startswith("tabletop_"):
        from . import tabletop_tasks

        return tabletop_tasks.plans(suite)
    if suite.startswith("libero_"):
        from . import libero_plans

        return libero_plans.plans(suite)
    raise ExpertError(f"the expert has no plans for {suite!r}: expected a suite named tabletop_* or libero_*")


def make_expert(environment_or_suite: Environment | str, *, horizon: int = 8) -> ScriptedExpert:
    """The expert for an Environment, or for a suite by name. horizon: actions in a chunk, all played open loop."""
    suite = environment_or_suite if isinstance(environment_or_suite, str) else environment_or_suite.suite
    return ScriptedExpert(suite, plans_of(suite), horizon=horizon)
