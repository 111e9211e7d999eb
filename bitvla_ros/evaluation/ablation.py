"""The verb `ablate`: one policy at several precisions, with the same data, seeds and steps, as one table.

Each arm of each training seed has a folder: its checkpoint, and run.json once it has been trained, measured and played. So an
interrupted ablation goes on where it was, inside an arm too, and only what is missing is done. The same command in several processes
at once shares the work, a training seed each.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import COUNT, NATURAL, POSITIVE, within

if TYPE_CHECKING:
    from ..training.ablation import Arm, Recipe

EXAMPLES = """\
  bitvla ablate --dataset demos --steps 20000 --output ablation                        the nano policy, two seeds, on two CPU cores
  bitvla ablate --dataset demos --suite tabletop_object --steps 20000 --output ablation   one suite of several that were recorded
  bitvla ablate --dataset demos --steps 20000 --seeds 3 --output ablation              one more seed: the first two are kept
The same command again goes on where it was stopped; in two shells at once, each does one of the seeds (--threads 1 on two cores)."""

SETTINGS, RUN, TABLE, LOCK = "settings.json", "run.json", "ablation", ".lock"


class AblationError(ValueError):
    """An ablation that cannot be begun or continued."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", required=True, help="folder of demonstrations, as bitvla record and bitvla convert write them")
    parser.add_argument("--output", required=True, help="folder of the runs and the table; an ablation that is there is continued")
    parser.add_argument("--start", default="random:nano", help="where every arm starts: random:nano or a checkpoint (default: %(default)s)")
    parser.add_argument("--suite", action="append", help="suite to play; may be repeated (default: those that were recorded)")
    parser.add_argument("--steps", type=within(int, 2), required=True, help="optimizer steps of every arm, a teacher's included")
    parser.add_argument("--batch-size", type=COUNT, default=64, help="samples a step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=POSITIVE, default=1e-3, help="of every arm (default: %(default)s)")
    parser.add_argument("--clip", type=POSITIVE, help="longest gradient (default: any)")
    parser.add_argument("--no-augmentation", action="store_true", help="train on pictures as they are")
    parser.add_argument("--compile", action="store_true", help="as in bitvla train")
    parser.add_argument("--seeds", type=COUNT, default=2, help="trained networks an arm (default: %(default)s)")
    parser.add_argument("--episodes", type=COUNT, default=100, help="episodes a suite and training seed (default: %(default)s)")
    parser.add_argument("--seed", type=NATURAL, default=0, help="of the episodes, as in bitvla eval (default: %(default)s)")
    parser.add_argument("--workers", type=COUNT, default=1, help="processes that play episodes (default: %(default)s)")
    parser.add_argument("--threads", type=COUNT, help="of torch on the CPU (default: one a core)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from ..training.finetuning import prepare_threads

    prepare_threads(arguments.threads)

    from ..training.ablation import ARMS, Recipe, student_steps

    recipe = Recipe(
        dataset=Path(arguments.dataset),
        start=arguments.start,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        clip=arguments.clip,
        augment=not arguments.no_augmentation,
        compile=arguments.compile,
    )
    suites = tuple(arguments.suite or recipe.suites)
    if not suites:
        raise AblationError(f"{arguments.dataset} does not say which suite it was recorded in: give --suite")
    output = Path(arguments.output)
    _keep_settings(output, recipe.settings | {"suites": list(suites), "episodes": arguments.episodes, "seed": arguments.seed})

    folders = [output / f"seed-{seed}" for seed in range(arguments.seeds)]
    for seed in _unclaimed_first(folders):
        for arm in ARMS:
            file = folders[seed] / arm.name / RUN
            if not file.exists():
                print(f"seed {seed}: {arm.title}", file=sys.stderr)
                _write(file, json.dumps(_run(arm, recipe, seed, folders[seed], suites, arguments), indent=1))
    runs = {arm.name: [json.loads((folder / arm.name / RUN).read_text()) for folder in folders] for arm in ARMS}
    with _claim(output):
        return _report(output, recipe, runs, suites, arguments, student_steps(recipe.steps), {arm.name: arm.title for arm in ARMS})


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from .ablation_table import HEADERS, cells, notes

    table = Table(*HEADERS)
    for row in result["arms"]:
        table.add_row(*cells(row))
    console = Console()
    console.print(table)
    for note in notes(result):
        console.print(note)
    print(f"{result['table']}, and {', '.join(result['files'])} beside it")


def _unclaimed_first(folders: list[Path]) -> Iterator[int]:
    """The folders' numbers, each while it is claimed; last come those that another process was at, once it has left them."""
    busy = []
    for number, folder in enumerate(folders):
        try:
            with _claim(folder, wait=False):
                yield number
        except BlockingIOError:
            busy.append(number)
    for number in busy:
        with _claim(folders[number]):
            yield number


@contextmanager
def _claim(folder: Path, wait: bool = True) -> Iterator[None]:
    """No other process has the folder meanwhile. Raises BlockingIOError where one has it and wait is False."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _run(arm: Arm, recipe: Recipe, seed: int, folder: Path, suites: tuple[str, ...], arguments: argparse.Namespace) -> dict[str, Any]:
    """Train an arm, measure it, and play its episodes."""
    import torch

    from ..training.ablation import train_arm
    from .episodes import trials
    from .evaluation import Choice, evaluate, number_of_tasks

    trained = train_arm(arm, recipe, seed, folder)
    choice = Choice(str(trained.checkpoint), device="cuda" if torch.cuda.is_available() else "cpu")
    episodes = {}
    for suite in suites:
        attempts = evaluate(
            choice,
            suite,
            trials(suite, number_of_tasks(suite), arguments.episodes, arguments.seed),
            workers=arguments.workers,
            image_size=recipe.render_size,
        )
        episodes[suite] = [{"task": a.task, "seed": a.seed, "success": a.success, "steps": a.steps} for a in attempts]
    return {
        "arm": arm.name,
        "seed": seed,
        "steps": trained.steps,
        "training_seconds": trained.seconds,
        "action_error": trained.action_error,
        "bytes": trained.bytes,
        "episodes": episodes,
    }


def _report(
    output: Path,
    recipe: Recipe,
    runs: Mapping[str, list[dict[str, Any]]],
    suites: tuple[str, ...],
    arguments: argparse.Namespace,
    student_steps: int,
    titles: Mapping[str, str],
) -> dict[str, Any]:
    from .ablation_table import draw, markdown, summarise

    result: dict[str, Any] = recipe.settings | {
        "suites": list(suites),
        "episodes": arguments.episodes,
        "seed": arguments.seed,
        "training_seeds": arguments.seeds,
        "student_steps": student_steps,
        "teacher_steps": recipe.steps - student_steps,
        "arms": summarise(titles, runs),
        "table": str(output / f"{TABLE}.md"),
        "files": [f"{TABLE}.json"],
    }
    try:
        draw(result, output / f"{TABLE}.png")
        result["files"].append(f"{TABLE}.png")
    except ImportError as error:
        print(f"no picture of the table: {error} (pip install '.[plot]')", file=sys.stderr)
    _write(output / f"{TABLE}.md", markdown(result))
    _write(output / f"{TABLE}.json", json.dumps(result, indent=1))
    return result


def _keep_settings(output: Path, settings: Mapping[str, Any]) -> None:
    """What all runs of the folder have in common: written once, equal ever after."""
    file = output / SETTINGS
    if output.is_dir() and not file.exists() and any(not found.name.startswith(".") for found in output.iterdir()):
        raise AblationError(f"{output} holds something else than an ablation: give a new folder")
    with _claim(output):
        if not file.exists():
            _write(file, json.dumps(settings, indent=1))
    began = json.loads(file.read_text())
    for name, value in settings.items():
        if began.get(name) != value:
            raise AblationError(f"{output} was begun with {name} {began.get(name)!r}, not {value!r}: use the same, or another folder")


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text)
    os.replace(partial, file)
