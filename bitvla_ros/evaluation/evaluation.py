"""A policy's episodes of a suite, played in process: by one process or several, with the same outcome.

The graph plays the same episodes with the same outcome (nodes/evaluate.py).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..policy.policy import Policy
from ..simulation import LIBERO_SUITES, Environment, make
from .episodes import Attempt, Trial
from .film import Film, Reel
from .rollout import rollout

CAMERAS = ("scene", "wrist")
EXPERT = "expert"
RANDOM = "random:"

OnDone = Callable[[Attempt], None]


class EvaluationError(ValueError):
    """What was asked for cannot be evaluated."""


@dataclass(frozen=True)
class Choice:
    """Which policy is evaluated, in words that another process understands too.

    model: "expert", "random:" and a preset, a shipped model's name ("nano"), a directory or a hub id. threads: of torch; the same
    number gives the same actions. norm_key, control_hz: of a model that does not say itself.
    """

    model: str
    threads: int = 2
    device: str = "cpu"
    norm_key: str | None = None
    control_hz: float | None = None

    @property
    def is_checkpoint(self) -> bool:
        return self.model != EXPERT and not self.model.startswith(RANDOM)

    @property
    def label(self) -> str:
        """As a video and a report show it."""
        if self.model == EXPERT:
            return "scripted expert"
        if self.model.startswith(RANDOM):
            return f"BitVLA {self.model.removeprefix(RANDOM)}, random weights"
        return f"BitVLA {os.path.basename(os.path.normpath(self.model))}"

    def load(self, suite: str) -> Policy:
        """The policy, warmed up, as the policy node loads it. Sets torch's threads. Raises what loading raises."""
        if self.model == EXPERT:
            from ..simulation.expert import make_expert

            return make_expert(suite)
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in the policy node: spinning threads starve the simulator
        import torch

        from ..policy.bitvla import BitVLAPolicy

        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            why = str(error).splitlines()[0]
            raise EvaluationError(f"device {self.device!r} cannot be used ({why}): give cpu, or cuda where there is one") from error
        torch.set_num_threads(self.threads)
        stated: dict[str, Any] = {"norm_key": self.norm_key, "control_hz": self.control_hz}
        if self.is_checkpoint:
            jpeg = suite in LIBERO_SUITES  # its datasets went through JPEG
            policy = BitVLAPolicy.load(self.model, device=self.device, jpeg=jpeg, **stated)
        else:
            policy = BitVLAPolicy.random(self.model.removeprefix(RANDOM), device=self.device, **stated)
        policy.warm_up()
        return policy


def play(environment: Environment, policy: Policy, trial: Trial, film: Film | None = None) -> Attempt:
    """One episode, by the rules of lockstep. With a film its video is written too: then the environment must have cameras.

    Raises EvaluationError for a trial that the environment does not have, or that the policy cannot be asked about."""
    reel = Reel(1.0 / environment.control_hz) if film is not None else None
    try:
        seen = rollout(environment, policy, trial.task, trial.seed, on_tick=None if reel is None else reel.on_tick)
    except ValueError as error:
        raise EvaluationError(f"{environment.suite}, task {trial.task}, seed {trial.seed} cannot be played: {error}") from error
    attempt = Attempt(
        task=seen.task,
        seed=seen.seed,
        instruction=seen.instruction,
        outcome=seen.outcome.name.lower(),
        reason=seen.reason,
        steps=seen.steps,
        latencies=seen.latencies,
        model_hash=policy.spec.model_hash,
    )
    if film is None or reel is None:
        return attempt
    moments = reel.end(seen.last)
    return film.write(environment.suite, attempt, moments, step_limit=environment.step_limit, fps=environment.control_hz)


def play_all(
    policy: Policy, suite: str, trials: Sequence[Trial], *, image_size: int = 256, film: Film | None = None, on_done: OnDone | None = None
) -> list[Attempt]:
    """The attempts of these trials, in their order, in this process. image_size: edge of the rendered pictures, pixels; as in the
    training data. on_done: called after each."""
    environment = _make(suite, _cameras(policy, film), image_size)
    try:
        attempts = []
        for trial in trials:
            attempts.append(play(environment, policy, trial, film))
            if on_done is not None:
                on_done(attempts[-1])
        return attempts
    finally:
        environment.close()


def evaluate(
    choice: Choice,
    suite: str,
    trials: Sequence[Trial],
    *,
    workers: int = 1,
    image_size: int = 256,
    film: Film | None = None,
    on_done: OnDone | None = None,
) -> list[Attempt]:
    """As `play_all`, by `workers` processes; each has a policy and an environment of its own, and `choice.threads` threads.

    Attempts do not depend on the number of workers, but for their latencies. on_done: called as they come, in any order."""
    if workers <= 1 or len(trials) <= 1:
        return play_all(choice.load(suite), suite, trials, image_size=image_size, film=film, on_done=on_done)
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # neither torch's threads nor OpenGL survive a fork
    executor = ProcessPoolExecutor(min(workers, len(trials)), context, initializer=_leave_interrupts_to_the_parent)
    try:
        futures: list[Future[Attempt]] = [executor.submit(_work, choice, suite, image_size, film, trial) for trial in trials]
        for future in as_completed(futures):
            attempt = future.result()
            if on_done is not None:
                on_done(attempt)
    except BaseException as error:
        executor.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        if isinstance(error, BrokenProcessPool):
            raise EvaluationError("a worker was killed, perhaps for want of memory: give fewer --workers") from error
        raise
    executor.shutdown()
    return [future.result() for future in futures]


def number_of_tasks(suite: str) -> int:
    """How many tasks a suite has. Raises EvaluationError for an unknown one."""
    environment = _make(suite, ())
    try:
        return len(environment.tasks)
    finally:
        environment.close()


def _make(suite: str, cameras: tuple[str, ...], image_size: int = 256) -> Environment:
    try:
        return make(suite, cameras=cameras, image_size=image_size)
    except ValueError as error:
        raise EvaluationError(str(error)) from error


def _cameras(policy: Policy, film: Film | None) -> tuple[str, ...]:
    return policy.spec.cameras or (CAMERAS if film is not None else ())


def _work(choice: Choice, suite: str, image_size: int, film: Film | None, trial: Trial) -> Attempt:
    environment, policy = _open(choice, suite, image_size, film)
    return play(environment, policy, trial, film)


@lru_cache(maxsize=1)
def _open(choice: Choice, suite: str, image_size: int, film: Film | None) -> tuple[Environment, Policy]:
    """A worker's own, kept for all its trials."""
    policy = choice.load(suite)
    return _make(suite, _cameras(policy, film), image_size), policy


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
