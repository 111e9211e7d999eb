"""An episode in process: environment and policy joined by the code that the controller node runs.

By the rules of lockstep (bitvla_ros/control): age 0, whole chunks open loop, no blending. The same environment, policy and seed
give through the ROS graph the same float32 actions, byte for byte; torch needs the same number of threads in both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..control.command import ArmState, Command
from ..control.limits import FaultReason
from ..control.player import ChunkRefused
from ..control.session import ControlConfig, Outcome, Session
from ..policy.chunk import ActionChunk
from ..policy.gate import Refused
from ..policy.observation import Observation, Privileged, state_vector
from ..policy.policy import Policy, PolicySpec
from ..simulation.environment import Environment, Snapshot

OnTick = Callable[[Snapshot, Command, ActionChunk], None]


@dataclass(frozen=True)
class Rollout:
    """What happened in an episode.

    actions: float32 [T, 7], as played. latencies: s, wall time of each inference.
    chunk_ages: s, [T], age of the observation behind each action. last: what was seen at the end.
    """

    suite: str
    task: int
    seed: int
    instruction: str
    actions: NDArray[np.float32]
    outcome: Outcome
    reason: str
    chunks: int
    latencies: tuple[float, ...]
    chunk_ages: tuple[float, ...]
    last: Snapshot

    @property
    def success(self) -> bool:
        return self.outcome is Outcome.SUCCESS

    @property
    def steps(self) -> int:
        return len(self.actions)


def observe(snapshot: Snapshot, stamp: int, instruction: str, epoch: int, spec: PolicySpec) -> Observation:
    """What a policy node makes of the messages of one tick: the cameras that the policy looks at, truth only if it asks for it."""
    missing = [role for role in spec.cameras if role not in snapshot.images]
    if missing:
        rendered = ", ".join(snapshot.images) or "none"
        raise ValueError(f"policy {spec.name!r} needs camera {', '.join(missing)}; the environment renders {rendered}")
    names = [*spec.cameras, "state", *(["privileged"] if spec.privileged else [])]
    return Observation(
        images={role: snapshot.images[role] for role in spec.cameras},
        state=state_vector(snapshot.position, snapshot.orientation, snapshot.gripper),
        instruction=instruction,
        stamps=dict.fromkeys(names, stamp),
        epoch=epoch,
        privileged=Privileged(snapshot.object_poses, snapshot.success) if spec.privileged else None,
    )


def rollout(
    environment: Environment,
    policy: Policy,
    task: int,
    seed: int,
    *,
    control: ControlConfig | None = None,
    instruction: str | None = None,
    step_limit: int | None = None,
    on_tick: OnTick | None = None,
) -> Rollout:
    """Play one episode from reset to success, step limit or fault.

    instruction, step_limit: by default the task's. on_tick(snapshot, command, chunk): called before each step, for videos.
    A policy that refuses or breaks down, a refused chunk or a command outside the limits ends the episode with Outcome.FAULT, as in
    the graph.
    """
    session = Session(control or ControlConfig())
    step = session.config.player.step_duration
    snapshot = environment.reset(task, seed)
    policy.reset()
    words = environment.tasks[task] if instruction is None else instruction
    now = step  # a zero stamp means "unset"
    session.begin(now, (step_limit or environment.step_limit) * step, 0, lockstep=True)
    actions, latencies, ages = [], [], []
    while True:
        arm = ArmState(snapshot.position, snapshot.orientation, now)
        command = session.tick(now, arm, snapshot.success, 0)
        if command is None and session.running:
            observation = observe(snapshot, now, words, session.epoch, policy.spec)
            began = time.perf_counter()
            try:
                chunk = policy.infer(observation)
            except (Refused, RuntimeError) as error:
                session.fault(FaultReason.CHUNK, f"the policy gave no chunk: {error}")
                break
            latencies.append(time.perf_counter() - began)
            try:
                session.accept(chunk, now, 0)
            except ChunkRefused as refused:
                session.fault(FaultReason.CHUNK, f"the chunk was refused: {refused}")  # the policy will not answer this tick again
                break
            command = session.tick(now, arm, snapshot.success, 0)
        if not session.running or command is None:
            break
        actions.append(command.action)
        ages.append(session.player.age(now) / 1e9)
        if on_tick is not None and session.player.chunk is not None:
            on_tick(snapshot, command, session.player.chunk)
        snapshot = environment.step(command.action)
        now += step
    result = session.result
    if result is None:
        raise RuntimeError("the episode ended without a result")
    return Rollout(
        suite=environment.suite,
        task=task,
        seed=seed,
        instruction=words,
        actions=np.array(actions, np.float32).reshape(-1, 7),
        outcome=result.outcome,
        reason=result.reason,
        chunks=result.chunks,
        latencies=tuple(latencies),
        chunk_ages=tuple(ages),
        last=snapshot,
    )
