"""The verb `eval`: how often a policy succeeds, in process or through a real ROS graph, with intervals, videos and a report page."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import COUNT, NATURAL, POSITIVE, require_read

if TYPE_CHECKING:  # what needs ROS or a library is imported where it is used: --help must work everywhere
    from rich.console import Console
    from rich.progress import Progress

    from bitvla_ros.evaluation.episodes import Attempt, Trial
    from bitvla_ros.evaluation.evaluation import Choice, OnDone
    from bitvla_ros.evaluation.film import Film

    from .episode import Episode

EXAMPLES = """\
  bitvla eval nano                                        the shipped model on tabletop_object, 50 episodes, in process
  bitvla eval nano --through ros --output outputs/eval    through simulator, controller and policy node, with videos and a page
  bitvla eval nano --through arm --episodes 20            as on a real arm: time runs on, the arm is led by poses at 100 Hz, in live mode
  bitvla eval CHECKPOINT --suite tabletop_object --suite tabletop_goal --workers 2
  bitvla eval PATH_OR_HUB_ID --suite libero_goal --control-hz 20 --device cuda
  bitvla eval expert --episodes 20 --json                 what the scripted expert reaches, as JSON"""

CONTROL_HZ = 20.0
READ = {
    "a network": ("norm_key", "control_hz", "threads", "device", "image_size"),
    "--output": ("image_size",),
    "--through process": ("workers",),
}
GRAPHS = {"ros": "through a ROS graph, in lockstep", "realtime": "through a ROS graph, in realtime", "arm": "on the simulated arm, live"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", help="nano (the shipped model), a packed model's or a checkpoint's folder, a hub id, random:nano (untrained), or expert"
    )
    parser.add_argument("--suite", action="append", help="suite of tasks; may be repeated (default: tabletop_object)")
    parser.add_argument("--episodes", type=COUNT, default=50, help="of each suite; they go round its tasks (default: %(default)s)")
    parser.add_argument(
        "--through", choices=("process", *GRAPHS), default="process", help="in this process; or a graph: ros in lockstep, realtime where "
        "time runs on, arm where besides the simulator is an arm behind a driver (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=NATURAL, default=0, help="tabletop: episodes have the seeds 10000 + SEED, 10001 + SEED, ..., which no training "
        "sees; LIBERO: index of the first initial state (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="folder for a video of each episode and a report page, index.html")
    parser.add_argument("--workers", type=COUNT, default=1, help="processes that play side by side, without a graph (default: 1)")
    parser.add_argument(
        "--threads", type=COUNT, default=2, help="of the network; the same number gives the same actions (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="where the network runs: cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument(
        "--image-size", type=COUNT, default=256, help="edge of the rendered pictures, as in the training data (default: %(default)s)"
    )
    parser.add_argument("--norm-key", help="which of the checkpoint's statistics to use, where it has several")
    parser.add_argument("--control-hz", type=POSITIVE, help="rate of the model's actions, where it does not say (LIBERO: 20)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from bitvla_ros.evaluation import episodes
    from bitvla_ros.evaluation.evaluation import EXPERT, Choice, evaluate, number_of_tasks
    from bitvla_ros.evaluation.film import Film

    policy = "the expert" if arguments.model == EXPERT else "a network"
    films = ["--output"] if arguments.output else []
    require_read(arguments.given, READ, policy, *films, f"--through {arguments.through}")
    choice = Choice(arguments.model, arguments.threads, arguments.device, arguments.norm_key, arguments.control_hz)
    film = Film(arguments.output, choice.label) if arguments.output else None
    suites = list(dict.fromkeys(arguments.suite or ["tabletop_object"]))
    plans = {suite: episodes.trials(suite, number_of_tasks(suite), arguments.episodes, arguments.seed) for suite in suites}
    console = Console(stderr=True, highlight=False)
    attempts: dict[str, list[Attempt]] = {}
    words = TextColumn("{task.description}"), TextColumn("{task.fields[numbers]}")
    columns = (words[0], BarColumn(28), MofNCompleteColumn(), words[1], TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        for suite, plan in plans.items():
            on_done = _progress(bars, suite, len(plan))
            if arguments.through == "process":
                size = arguments.image_size
                attempts[suite] = evaluate(choice, suite, plan, workers=arguments.workers, image_size=size, film=film, on_done=on_done)
            else:
                attempts[suite] = through_ros(choice, suite, plan, arguments, film, on_done)
    results = [episodes.summary(suite, played) for suite, played in attempts.items()]
    if arguments.output:
        _report(arguments, choice, results, attempts, console)
    result = results[0] if len(results) == 1 else {"suites": results}
    if problem := _problem(attempts):
        result["error"] = problem
    return result


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for suite in result.get("suites", [result]):
        table = Table(title=suite["suite"], title_justify="left")
        table.add_column("task")
        for name in ("successes", "rate", "95 % interval"):
            table.add_column(name, justify="right")
        for task in suite["by_task"].values():
            table.add_row(task["instruction"], *_cells(task))
        table.add_section()
        table.add_row("[bold]all[/]", *(f"[bold]{cell}[/]" for cell in _cells(suite)))
        console.print(table)
        latency = suite["latency_ms"]
        words = "" if latency["p50"] is None else f"; latency of a chunk, p50 / p99: {latency['p50']:.0f} / {latency['p99']:.0f} ms"
        console.print(f"{suite['mean_steps']:.0f} steps an episode in the mean{words}")


def through_ros(
    choice: Choice, suite: str, trials: list[Trial], arguments: argparse.Namespace, film: Film | None, on_done: OnDone
) -> list[Attempt]:
    """The same attempts through simulator, controller and policy node. Raises what keeps the graph from playing."""
    from bitvla_ros.evaluation.evaluation import CAMERAS, EXPERT

    from .modes import ARM, LOCKSTEP, parameters
    from .processes import Graph
    from .recorder import Recorder

    mode = LOCKSTEP if arguments.through == "ros" else arguments.through
    rendered = CAMERAS if film is not None or choice.model != EXPERT else ()
    told = parameters(mode, suite)
    attempts: list[Attempt] = []
    with _logs(arguments.output) as logs, Graph(logs) as graph:
        scene = {**told.simulation, "cameras": rendered or ("",), "image_size": arguments.image_size}
        graph.start("simulation", "bitvla_ros.nodes.simulation", scene)
        graph.start("controller", "bitvla_ros.nodes.controller", told.controller)
        graph.start("policy", "bitvla_ros.nodes.policy", {**told.policy, **policy_parameters(choice, suite)})
        with Recorder(CAMERAS if film is not None else (), lockstep=mode == LOCKSTEP, check=graph.check) as recorder:
            for name in ("simulation", "controller", "policy"):
                recorder.wait_until_active(name, patience=600.0)  # a large model takes minutes to load
            for trial in trials:
                if attempts and attempts[-1].outcome == "fault":
                    recorder.reset_fault()
                if mode == ARM:
                    recorder.go_live()
                episode = recorder.run(
                    trial.task, trial.seed, steps=None, step_duration=round(1e9 / CONTROL_HZ), on_progress=lambda *_: None
                )
                attempts.append(_attempt(suite, trial, episode, film))
                on_done(attempts[-1])
    return attempts


def policy_parameters(choice: Choice, suite: str) -> dict[str, Any]:
    """What the policy node is told of the model, so that it loads what `choice.load` loads."""
    from bitvla_ros.evaluation.evaluation import EXPERT
    from bitvla_ros.simulation import LIBERO_SUITES

    if choice.model == EXPERT:
        return {"policy": "expert", "suite": suite}
    network: dict[str, Any] = {"policy": "bitvla", "model": choice.model, "threads": choice.threads, "device": choice.device}
    if choice.is_checkpoint:
        network["jpeg"] = suite in LIBERO_SUITES
    given = {"norm_key": choice.norm_key, "control_hz": choice.control_hz}
    return {**network, **{name: value for name, value in given.items() if value is not None}}


def _attempt(suite: str, trial: Trial, episode: Episode, film: Film | None) -> Attempt:
    from bitvla_ros.evaluation.episodes import Attempt

    attempt = Attempt(
        task=trial.task,
        seed=trial.seed,
        instruction=episode.instruction,
        outcome=episode.outcome,
        reason=episode.reason,
        steps=episode.steps,
        latencies=tuple(episode.latencies),
        model_hash=episode.chunks[0][1].model_hash if episode.chunks else "",
    )
    if film is None:
        return attempt
    moments, _ = episode.moments()
    return film.write(suite, attempt, moments, step_limit=episode.step_limit, fps=CONTROL_HZ)


@contextlib.contextmanager
def _logs(output: Path | None) -> Iterator[Path]:
    """Where the nodes' logs go: they are kept with the rest, or not at all."""
    if output is not None:
        yield output / "logs"
        return
    with tempfile.TemporaryDirectory(prefix="bitvla-eval-") as folder:
        yield Path(folder)


def _progress(bars: Progress, suite: str, episodes: int) -> OnDone:
    bar = bars.add_task(suite, total=episodes, numbers="starting")
    done = successes = 0

    def on_done(attempt: Attempt) -> None:
        nonlocal done, successes
        done, successes = done + 1, successes + attempt.success
        bars.update(bar, completed=done, numbers=f"{successes} of {done} succeeded")
        if not attempt.success:
            words = f"{suite}, task {attempt.task}, seed {attempt.seed}: {attempt.outcome.replace('_', ' ')}, {attempt.reason}"
            bars.console.print(words, style="yellow", soft_wrap=True, markup=False)

    return on_done


def _report(
    arguments: argparse.Namespace, choice: Choice, results: list[dict[str, Any]], attempts: dict[str, list[Attempt]], console: Console
) -> None:
    from bitvla_ros.evaluation.machine import machine
    from bitvla_ros.evaluation.report import write_report

    hashes = {attempt.model_hash for played in attempts.values() for attempt in played} - {""}
    facts = {
        "model": arguments.model,
        "model hash": ", ".join(sorted(hashes)) or "–",
        "played": GRAPHS.get(arguments.through, "in process"),
        "first seed": str(next(iter(attempts.values()))[0].seed),
        "pictures": f"{arguments.image_size} pixels",
        "threads": str(arguments.threads),
        "device": arguments.device,
        "machine": machine(),
    }
    path = write_report(arguments.output, choice.label, facts, list(zip(results, attempts.values(), strict=True)))
    console.print(f"report: {path}", soft_wrap=True)


def _problem(attempts: dict[str, list[Attempt]]) -> str | None:
    """What makes the whole evaluation worthless: a policy that cannot act at all has no success rate."""
    for suite, played in attempts.items():
        if all(attempt.outcome == "fault" for attempt in played):
            return f"every episode of {suite} ended with a fault, the first one so: {played[0].reason}"
    return None


def _cells(rate: dict[str, Any]) -> tuple[str, str, str]:
    low, high = rate["interval"]
    return f"{rate['successes']} of {rate['episodes']}", f"{rate['success_rate']:.1%}", f"{low:.1%} to {high:.1%}"
