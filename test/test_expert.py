"""The scripted expert solves what the built-in simulator asks, from what a policy may see and the simulator's truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bitvla_ros.policy.observation import Observation, Privileged, state_vector
from bitvla_ros.simulation import TABLETOP_SUITES, Environment, Snapshot, make
from bitvla_ros.simulation.expert import Phase, ScriptedExpert, UnknownInstruction, make_expert, respond
from bitvla_ros.simulation.plan import ExpertError

STEP = 50_000_000


def observe(snapshot: Snapshot, instruction: str, step: int, epoch: int = 1) -> Observation:
    state = state_vector(snapshot.position, snapshot.orientation, snapshot.gripper)
    return Observation({}, state, instruction, {"state": step * STEP}, epoch, Privileged(snapshot.object_poses, snapshot.success))


def rollout(
    environment: Environment, expert: ScriptedExpert, task: int, seed: int, *, replan: int = 8, noise: float = 0.0
) -> tuple[Snapshot, np.ndarray]:
    """Last snapshot and float32 [n, 7] actions of an episode that plays `replan` actions of every chunk."""
    expert.reset()
    rng = np.random.default_rng(seed)
    snapshot, actions = environment.reset(task, seed), []
    while len(actions) < environment.step_limit and not snapshot.success:
        chunk = expert.infer(observe(snapshot, environment.tasks[task], len(actions)))
        for action in chunk.actions[:replan]:
            actions.append(action)
            snapshot = environment.step(action + np.append(rng.normal(0, noise, 3), np.zeros(4)).astype(np.float32))
            if snapshot.success or len(actions) == environment.step_limit:
                break
    return snapshot, np.array(actions)


@pytest.mark.parametrize("suite", TABLETOP_SUITES)
def test_every_task_is_solved_with_chunks_played_open_loop(suite: str) -> None:
    environment = make(suite, cameras=())
    expert = make_expert(environment)
    assert expert.spec.privileged and expert.spec.cameras == () and expert.spec.horizon == 8
    for task in range(len(environment.tasks)):
        snapshot, actions = rollout(environment, expert, task, 100)
        assert snapshot.success, environment.tasks[task]
        assert len(actions) < environment.step_limit
        assert np.isfinite(actions).all() and np.abs(actions).max() <= 1.0


@pytest.mark.parametrize("replan", [1, 3])
def test_part_of_a_chunk_may_be_played(replan: int) -> None:
    environment = make("tabletop_goal", cameras=())
    assert rollout(environment, make_expert("tabletop_goal"), 4, 5, replan=replan)[0].success


def test_a_longer_horizon_and_noisy_execution_are_survived() -> None:
    environment = make("tabletop_object", cameras=())
    assert rollout(environment, make_expert("tabletop_object", horizon=12), 0, 5, replan=12)[0].success
    assert rollout(environment, make_expert("tabletop_object"), 2, 6, noise=0.3)[0].success


def test_equal_observations_give_equal_chunks() -> None:
    environment = make("tabletop_object", cameras=())
    expert = make_expert(environment)
    _, first = rollout(environment, expert, 0, 1)
    rollout(environment, expert, 1, 2)
    _, again = rollout(environment, make_expert("tabletop_object"), 0, 1)
    _, reused = rollout(environment, expert, 0, 1)
    assert first.tobytes() == again.tobytes() == reused.tobytes()


def test_the_response_model_predicts_the_simulator() -> None:
    environment = make("tabletop_goal", cameras=())
    position, velocity = environment.reset(0, 0).position, np.zeros(3)
    rng = np.random.default_rng(0)
    for _ in range(8):
        offset = rng.uniform(-1, 1, 3)
        position, velocity = respond(position, velocity, offset)
        measured = environment.step(np.concatenate([offset, np.zeros(3), [-1.0]]).astype(np.float32)).position
    assert np.linalg.norm(measured - position) < 0.004


def test_an_object_that_slips_is_picked_up_again() -> None:
    environment = make("tabletop_object", cameras=())
    expert = make_expert(environment)
    snapshot, steps, stolen = environment.reset(0, 3), 0, False
    while steps < environment.step_limit and not snapshot.success:
        chunk = expert.infer(observe(snapshot, environment.tasks[0], steps))
        for action in chunk.actions:
            snapshot, steps = environment.step(action), steps + 1
        if not stolen and expert._moments[-1].phase == Phase.MOVE:
            joint = environment._data.joint("red_block")  # type: ignore[attr-defined]
            joint.qpos[:], joint.qvel[:] = [0.1, -0.25, 0.022, 1, 0, 0, 0], 0.0
            stolen = True
    assert stolen and snapshot.success


def test_a_new_epoch_or_a_reset_begins_the_plan_again() -> None:
    environment = make("tabletop_object", cameras=())
    expert = make_expert(environment)
    snapshot = environment.reset(0, 0)
    first = expert.infer(observe(snapshot, environment.tasks[0], 0))
    for n in range(1, 9):
        last = expert.infer(observe(snapshot, environment.tasks[0], 8 * n))
    assert expert._moments[0].phase != Phase.HOVER or expert._moments[0].steps > 0
    assert expert.infer(observe(snapshot, environment.tasks[0], 80, epoch=2)).actions.tobytes() == first.actions.tobytes()
    expert.reset()
    assert expert.infer(observe(snapshot, environment.tasks[0], 0)).actions.tobytes() == first.actions.tobytes()
    assert (
        last.observation_stamp == 64 * STEP and last.epoch == 1 and last.step_duration == STEP and last.instruction == environment.tasks[0]
    )


def test_what_the_expert_cannot_do_is_refused_with_what_it_can() -> None:
    environment = make("tabletop_object", cameras=())
    snapshot = environment.reset(0, 0)
    expert = make_expert("tabletop_object")
    with pytest.raises(UnknownInstruction, match="pick up the orange can and place it in the basket"):
        expert.infer(observe(snapshot, "make coffee", 0))
    with pytest.raises(ExpertError, match="simulation_state"):
        expert.infer(replace(observe(snapshot, environment.tasks[0], 0), privileged=None))
    with pytest.raises(ExpertError, match="red_block"):
        expert.infer(replace(observe(snapshot, environment.tasks[0], 0), privileged=Privileged({})))
    with pytest.raises(ExpertError, match=r"tabletop_\*"):
        make_expert("kitchen")
    with pytest.raises(ExpertError, match="tabletop_goal"):
        make_expert("tabletop_kitchen")
    with pytest.raises(ExpertError, match="horizon"):
        make_expert("tabletop_goal", horizon=0)
