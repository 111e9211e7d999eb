"""The verb `record`: the scripted expert shows how tasks are done, and its episodes become a dataset.

What an episode is depends on the recipe and its place in the dataset alone: neither the number of workers nor an interruption changes it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..action_convention import OSC
from ..arguments import COUNT, NATURAL, require_read, within
from ..policy.policy import Policy
from ..simulation import FIRST_TRAINING_SEED, LIBERO_SUITES, ONE_SCENE_SUITES, SUITES, Environment, make
from .dataset import DatasetError, DatasetWriter, Episode
from .demonstration import OtherInstructions, play

EXAMPLES = """\
  bitvla record --suite tabletop_object --episodes 200 --output demonstrations
  bitvla record --suite tabletop_object --suite tabletop_goal --episodes 500 --workers 4 --output demonstrations
                                     the same again continues what was interrupted; more --episodes add to it
  bitvla record --suite tabletop_goal --episodes 100 --seed 50000 --policy run/checkpoint --output corrections
                                     what the expert does where a policy gets to; train on both: --dataset demonstrations corrections"""

CAMERAS = ("scene", "wrist")
READ = dict.fromkeys(ONE_SCENE_SUITES, ("counterfactuals",))
ATTEMPTS = 10  # at an episode, each from another initial state
HORIZON = 8  # actions of a counterfactual: BitVLA's chunk
TAKEOVER = 120  # steps in which the expert takes over from a policy; most tasks take it about as long
_ATTEMPT = 100_003  # between the seeds of two attempts; odd, and no multiple of 5: LIBERO's states come round in another order
_LIBERO_STATES = 50  # initial states that LIBERO has for a task: recording cannot but take those that evaluation takes


class RecordingError(RuntimeError):
    """The expert does not succeed at what it should show."""


@dataclass(frozen=True)
class Recipe:
    """What is recorded. noise: standard deviation that is added to each translation offset as executed, in units of full scale.
    first: number of the first seed, counted from FIRST_TRAINING_SEED. render_size, image_size: pixels a side, as rendered and as kept:
    a picture that is rendered small looks different from one that a policy shrinks. counterfactuals: other instructions asked at a frame.
    policy: directory of a model that acts before the expert takes over; model_hash: of that model. tasks: which of a suite's; all where
    there are none."""

    suites: tuple[str, ...]
    image_size: int = 112
    noise: float = 0.2
    first: int = 0
    render_size: int = 256
    counterfactuals: int = 3
    policy: str | None = None
    model_hash: str | None = None
    tasks: tuple[int, ...] = ()

    def source(self) -> dict[str, Any]:
        source: dict[str, Any] = {
            "policy": "expert",
            "suites": list(self.suites),
            "noise": self.noise,
            "seed": self.first,
            "render_size": self.render_size,
            "counterfactuals": self.counterfactuals,
        }
        if self.tasks:
            source["tasks"] = list(self.tasks)
        return source if self.policy is None else {**source, "taken_over_from": self.model_hash}

    def chosen(self, suite: str, known: Sequence[int]) -> list[int]:
        """Of a suite's tasks that the expert knows, those to record. Raises RecordingError for one that it does not."""
        for task in self.tasks:
            if task not in known:
                raise RecordingError(f"{suite} has no task {task} that the expert can do: give some of {', '.join(map(str, known))}")
        return [task for task in known if not self.tasks or task in self.tasks]


@dataclass(frozen=True)
class Slot:
    """A place in the dataset: the number-th demonstration of a task."""

    suite: str
    task: int
    number: int

    def seed(self, recipe: Recipe, attempt: int) -> int:
        number = recipe.first + self.number + attempt * _ATTEMPT
        return number % _LIBERO_STATES if self.suite in LIBERO_SUITES else FIRST_TRAINING_SEED + number


def slots(tasks: Sequence[Sequence[int]], suites: Sequence[str], episodes: int) -> Iterator[Slot]:
    """Suites and their tasks take turns, so that a dataset that is cut short or extended stays balanced.
    tasks: of each suite, those that the expert can do. episodes: of each suite."""
    for number in range(episodes):
        for suite, known in zip(suites, tasks, strict=True):
            yield Slot(suite, known[number % len(known)], number // len(known))


def record_slot(recipe: Recipe, slot: Slot) -> tuple[Episode, int]:
    """The episode of a slot, and the attempts that failed before it. It depends on the arguments alone. Raises RecordingError."""
    environment, expert = _stage(slot.suite, recipe.render_size)
    known = [environment.tasks[task] for task in _known_tasks(slot.suite, environment.tasks)] if slot.suite in ONE_SCENE_SUITES else []
    for attempt in range(ATTEMPTS):
        seed = slot.seed(recipe, attempt)
        key = [SUITES.index(slot.suite), slot.task, recipe.first + slot.number, attempt]
        rng = np.random.default_rng(key)
        noise = rng.normal(0.0, recipe.noise, (environment.step_limit, 3)).astype(np.float32)
        policy, takeover = None, 0
        if recipe.policy is not None:
            policy, takeover = _policy(recipe.policy), int(rng.integers(1, TAKEOVER))
        others = None
        if recipe.counterfactuals:
            others = OtherInstructions(_adviser(slot.suite), known, recipe.counterfactuals, np.random.default_rng([*key, 1]))
        episode = play(environment, expert, slot.task, seed, noise, recipe.image_size, policy, takeover, others)
        if episode is not None:
            return episode, attempt
    raise RecordingError(
        f"{slot.suite}, task {slot.task} ({environment.tasks[slot.task]}): the expert failed {ATTEMPTS} times, "
        f"last from seed {seed}; noise is {recipe.noise:g}, and less of it may help"
    )


def record(recipe: Recipe, episodes: int, writer: DatasetWriter, workers: int = 1) -> Iterator[tuple[Episode, int]]:
    """Add to a dataset what it lacks of `episodes` demonstrations of each suite; gives each with the attempts that failed before it.
    The result depends neither on the number of workers nor on interruptions. Raises DatasetError where the dataset has others."""
    words = {suite: make(suite, cameras=()).tasks for suite in recipe.suites}
    tasks = [recipe.chosen(suite, _known_tasks(suite, words[suite])) for suite in recipe.suites]
    todo = list(slots(tasks, recipe.suites, episodes))
    for index, (slot, (task, seed)) in enumerate(zip(todo, writer.episodes, strict=False)):
        expected = words[slot.suite][slot.task]
        if task != expected or seed not in [slot.seed(recipe, attempt) for attempt in range(ATTEMPTS)]:
            raise DatasetError(
                f"{writer.path}, episode {index} is {task!r} from seed {seed}, which no such recording has; give a new folder"
            )
    for episode, failures in _in_order(recipe, todo[len(writer) :], workers):
        writer.add(episode)
        yield episode, failures


def _in_order(recipe: Recipe, todo: Sequence[Slot], workers: int) -> Iterator[tuple[Episode, int]]:
    if workers == 1:
        yield from (record_slot(recipe, slot) for slot in todo)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent)
    try:
        pending: deque[Future[tuple[Episode, int]]] = deque()
        for slot in todo:
            pending.append(pool.submit(record_slot, recipe, slot))
            if len(pending) == 3 * workers:  # finished episodes wait in memory for one that takes longer
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever. An interrupt is the parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@cache
def _stage(suite: str, render_size: int) -> tuple[Environment, Policy]:
    from ..simulation.expert import make_expert

    return make(suite, cameras=CAMERAS, image_size=render_size), make_expert(suite, horizon=1)


@cache
def _adviser(suite: str) -> Policy:
    from ..simulation.expert import make_expert

    return make_expert(suite, horizon=HORIZON)


@cache
def _policy(model: str) -> Policy:
    import torch

    from ..policy.bitvla import BitVLAPolicy

    torch.set_num_threads(1)  # a worker has one core, and so the result does not depend on how many there are
    return BitVLAPolicy.load(model)


def _known_tasks(suite: str, tasks: Sequence[str]) -> list[int]:
    """Of a suite's tasks, the indices of those that the expert can do."""
    from ..simulation.expert import plans_of

    plans = {" ".join(words.lower().split()) for words in plans_of(suite)}
    return [task for task, words in enumerate(tasks) if " ".join(words.lower().split()) in plans]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", action="append", required=True, choices=SUITES, help="may be given several times")
    parser.add_argument("--episodes", type=COUNT, required=True, help="successful demonstrations of each suite; its tasks take turns")
    parser.add_argument(
        "--task", action="append", type=NATURAL, default=[], help="only this one, by its number in the suite; may be given several times"
    )
    parser.add_argument("--output", required=True, help="folder of the dataset, new or to be continued")
    parser.add_argument("--image-size", type=COUNT, default=112, help="pixels to which pictures are shrunk (default: %(default)s)")
    parser.add_argument("--render-size", type=COUNT, default=256, help="pixels with which they are rendered (default: %(default)s)")
    parser.add_argument(
        "--noise",
        type=within(float, 0, 1),
        default=0.2,
        help="standard deviation added to executed translations; 1 is full scale (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=within(int, 0, 99_999),
        default=0,
        help=f"first initial state, counted from {FIRST_TRAINING_SEED} (default: %(default)s)",
    )
    parser.add_argument(
        "--counterfactuals",
        type=NATURAL,
        default=3,
        help="other instructions that label frames on the way to an object too, where a suite has one scene (default: %(default)s)",
    )
    parser.add_argument(
        "--policy", metavar="MODEL", help="folder, hub id or shipped name; it acts until, at a random step, the expert takes over (DAgger)"
    )
    parser.add_argument("--workers", type=COUNT, default=1, help="processes (default: %(default)s); the result is the same")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    import pyarrow  # noqa: F401  (before the first episode is played)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    suites = tuple(dict.fromkeys(arguments.suite))
    require_read(arguments.given, READ, *suites)
    policy = model_hash = None
    if arguments.policy is not None:
        from ..model.checkpoint import resolve

        policy = str(resolve(arguments.policy))
        model_hash = _policy(policy).spec.model_hash
    recipe = Recipe(
        suites,
        arguments.image_size,
        arguments.noise,
        arguments.seed,
        arguments.render_size,
        arguments.counterfactuals,
        policy,
        model_hash,
        tuple(sorted(set(arguments.task))),
    )
    output = Path(arguments.output).expanduser()
    writer = DatasetWriter(
        output,
        make(suites[0], cameras=()).control_hz,
        dict.fromkeys(CAMERAS, (recipe.image_size, recipe.image_size)),
        name=suites[0] if len(suites) == 1 else output.resolve().name,
        source=recipe.source(),
        convention=OSC,
    )
    found, total = len(writer), arguments.episodes * len(suites)
    began, frames_before, failures = time.perf_counter(), writer.frames, 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        progress = bar.add_task("recording", total=total, completed=found)
        for _, failed in record(recipe, arguments.episodes, writer, arguments.workers):
            failures += failed
            rate = (writer.frames - frames_before) / (time.perf_counter() - began)
            words = f"recording: {writer.frames} frames, {rate:.0f} a second, {failures} failures"
            bar.update(progress, completed=len(writer), description=words)
    writer.close()
    seconds = time.perf_counter() - began
    return {
        "output": str(output),
        "episodes": len(writer),
        "frames": writer.frames,
        "continued_from": found,
        "failures": failures,
        "by_task": dict(Counter(task for task, _ in writer.episodes)),
        "seconds": round(seconds, 1),
        "frames_per_second": round((writer.frames - frames_before) / seconds, 1),
        "bytes": sum(file.stat().st_size for file in output.rglob("*") if file.is_file()),
    }


def show(result: dict[str, Any]) -> None:
    print(f"{result['output']}: {result['episodes']} episodes, {result['frames']} frames, {result['bytes'] / 1e6:.1f} MB")
    for task, count in result["by_task"].items():
        print(f"  {count:5d}  {task}")
    failures = f"{result['failures']} attempts showed nothing and were left out"
    print(f"recorded in {result['seconds']:.1f} s, {result['frames_per_second']:.0f} frames a second; {failures}")
