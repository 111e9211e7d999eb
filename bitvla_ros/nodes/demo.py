"""The verb `demo`: one episode with the scripted expert and one with BitVLA, through a real ROS graph, with a video of each."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitvla_ros.arguments import NATURAL, POSITIVE, require_read

from . import simulated_arm
from .modes import ARM, LOCKSTEP, MODES, parameters

if TYPE_CHECKING:  # what needs ROS or a library is imported where it is used: --help must work everywhere
    from rich.console import Console
    from rich.table import Table

    from bitvla_ros.evaluation.proofs.stopping import Target

    from .episode import Episode
    from .processes import Graph
    from .recorder import Recorder

EXAMPLES = """\
  bitvla demo                                        the expert, then BitVLA, on a task of tabletop_spatial
  bitvla demo --policy expert --task 2 --seed 7      one episode, another task
  bitvla demo --mode realtime                        time runs on, as on a robot
  bitvla demo --mode arm                             the arm has a driver of its own and is led by poses at 100 Hz, as a real one
  bitvla demo --model PATH_OR_HUB_ID --control-hz 20 BitVLA from a checkpoint
  bitvla demo --json > demo.json                     the figures as JSON"""

CAMERAS = ("scene", "wrist")
CONTROL_HZ = 20.0
POLICIES = ("expert", "bitvla")
READ = {"bitvla": ("model", "norm_key", "control_hz")}
RANDOM = "random:"  # and a preset: weights that were never trained


class DemoError(Exception):
    """The demo cannot do what was asked."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", default="tabletop_spatial", help="suite of tasks (default: %(default)s)")
    parser.add_argument("--task", type=NATURAL, default=1, help="index of the task in its suite (default: %(default)s)")
    parser.add_argument("--seed", type=NATURAL, default=0, help="seed of the initial state (default: %(default)s)")
    parser.add_argument(
        "--mode",
        choices=MODES,
        default=LOCKSTEP,
        help="lockstep: reproducible at any speed; realtime: time runs on; arm: so it does, and the simulator is an arm behind a driver",
    )
    parser.add_argument("--policy", choices=POLICIES, action="append", help="run only this one; may be repeated (default: both)")
    parser.add_argument(
        "--model",
        default="nano",
        help="BitVLA: nano (the shipped model), a model's folder or hub id, random:nano (untrained) (default: %(default)s)",
    )
    parser.add_argument("--norm-key", help="which of the checkpoint's statistics to use, where it has several")
    parser.add_argument(
        "--control-hz", type=POSITIVE, help="rate that the checkpoint's actions are meant for, where it does not say (LIBERO: 20)"
    )
    parser.add_argument("--steps", type=NATURAL, help="stop an episode after so many control steps (default: the suite's limit)")
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"), help="folder of videos and logs (default: %(default)s)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from rich.console import Console

    from bitvla_ros.evaluation.video import require_encoder

    from .processes import Graph
    from .recorder import Recorder

    require_read(arguments.given, READ, *(arguments.policy or POLICIES))
    require_encoder()
    console = Console(stderr=True, highlight=False)
    output: Path = arguments.output
    results: list[dict[str, Any]] = []
    seen: list[tuple[Any, Any]] = []
    with Graph(output / "logs") as graph:
        console.print(f"a graph of its own: ROS domain {graph.domain}, this machine only; logs in {output / 'logs'}", soft_wrap=True)
        told = parameters(arguments.mode, arguments.suite)
        graph.start("simulation", "bitvla_ros.nodes.simulation", told.simulation)
        graph.start("controller", "bitvla_ros.nodes.controller", told.controller)
        with Recorder(CAMERAS, lockstep=arguments.mode == LOCKSTEP, check=graph.check) as recorder:
            for policy in arguments.policy or POLICIES:
                label = policy_label(policy, arguments.model)
                console.print(f"[bold]{label}[/]" + (": untrained, it moves the arm and solves no task" if "random" in label else ""))
                with _policy_node(graph, recorder, policy, {**told.policy, **policy_parameters(policy, arguments)}, console):
                    episode = _play(recorder, arguments, console)
                caption, moments, missing = _film(episode, label, output / f"{policy}.mp4", console)
                if moments:
                    seen.append((caption, moments))
                report = _report(policy, label, episode, arguments)
                if arguments.mode == ARM:
                    report |= setpoint_report(episode.targets)
                report |= {"video": str(output / f"{policy}.mp4") if moments else None, "frames": len(moments), "frames_missing": missing}
                results.append(report)
                if episode.outcome == "fault":  # latched: the controller moves nothing more
                    break
    poster = _poster(output / "demo.png", seen)
    return {"episodes": results, "poster": poster, "error": failure(results, arguments)}


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    first = result["episodes"][0]
    words = f"{first['suite']}, task {first['task']}, seed {first['seed']}, {first['mode']}: [bold]{first['instruction']}[/]"
    table = Table(title=words, title_justify="left", title_style="")
    table.add_column("policy")
    table.add_column("outcome")
    for name in ("steps", "steps\nper s", "chunks", "chunk age\np50 / p99, ms", "latency\np50 / p99, ms"):
        table.add_column(name, justify="right")
    for e in result["episodes"]:
        outcome = "[bold green]success[/]" if e["success"] else f"[yellow]{e['outcome'].replace('_', ' ')}[/]"
        ages = _pair(e["chunk_age_ms"]), _pair(e["latency_ms"])
        table.add_row(e["model"], outcome, str(e["steps"]), _number(e["steps_per_second"]), str(e["chunks"]), *ages)
    console = Console(highlight=False)
    console.print()
    console.print(table)
    if "setpoints" in first:
        console.print(_setpoint_table(result["episodes"]))
    for path in (*(e["video"] for e in result["episodes"]), result["poster"]):
        if path:
            console.print(path, soft_wrap=True)


def _setpoint_table(episodes: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(title="setpoints on target_pose, by their stamps", title_justify="left", title_style="")
    table.add_column("policy")
    for name in ("setpoints", "Hz", "missed", "jitter\np99, ms", "largest\nshare of\na limit", "seams\nbroken"):
        table.add_column(name, justify="right")
    for e in episodes:
        seams = f"[{'red' if e['seam_violations'] else 'green'}]{e['seam_violations']}[/]"
        rhythm = _number(e["rate_hz"], 1), _number(e["misses"]), _number(e["jitter_ms"]["p99"], 2)
        table.add_row(e["model"], str(e["setpoints"]), *rhythm, f"{e['largest_share']:.0%}", seams)
    return table


def policy_parameters(policy: str, arguments: argparse.Namespace) -> dict[str, Any]:
    if policy == "expert":
        return {"policy": policy, "suite": arguments.suite}
    given = {"control_hz": arguments.control_hz, "norm_key": arguments.norm_key}  # never a guess: the checkpoint's own where not given
    return {"policy": policy, "model": arguments.model, **{name: value for name, value in given.items() if value is not None}}


def policy_label(policy: str, model: str) -> str:
    if policy == "expert":
        return "scripted expert"
    return f"BitVLA {model.removeprefix(RANDOM)}, random weights" if model.startswith(RANDOM) else f"BitVLA {Path(model).name}"


@contextlib.contextmanager
def _policy_node(graph: Graph, recorder: Recorder, policy: str, told: dict[str, Any], console: Console) -> Iterator[None]:
    """The policy's node while the body runs. Simulation and controller stay, as they would on a robot."""
    graph.start("policy", "bitvla_ros.nodes.policy", told)
    with console.status("starting the nodes"):
        for name in ("simulation", "controller", "policy"):
            recorder.wait_until_active(name, patience=120.0)
    try:
        yield
    finally:
        (graph.logs / "policy.log").rename(graph.logs / f"policy_{policy}.log")
        graph.stop("policy")
        recorder.forget("policy")


def _play(recorder: Recorder, arguments: argparse.Namespace, console: Console) -> Episode:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(28), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"))
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task("", total=None, numbers="waiting for the first tick")

        def on_progress(progress: Any, episode: Episode) -> None:
            numbers = f"chunk age {1e3 * progress.chunk_age:3.0f} ms · latency {1e3 * progress.latency:.0f} ms"
            if progress.silence > 3.0:
                numbers = f"waiting for {progress.silence:.0f} s; {recorder.health()}"
            bars.update(bar, total=episode.step_limit, completed=progress.step, numbers=numbers)

        if arguments.mode == ARM:
            recorder.go_live()
        episode = recorder.run(
            arguments.task, arguments.seed, steps=arguments.steps, step_duration=round(1e9 / CONTROL_HZ), on_progress=on_progress
        )
    words = f"{episode.outcome.replace('_', ' ')} after {episode.steps} steps: {episode.reason}"
    console.print(words, style="green" if episode.success else "yellow", soft_wrap=True)
    return episode


def _report(policy: str, label: str, episode: Episode, arguments: argparse.Namespace) -> dict[str, Any]:
    from bitvla_ros.evaluation.episodes import percentiles

    return {
        "policy": policy,
        "model": label,
        "suite": arguments.suite,
        "task": arguments.task,
        "instruction": episode.instruction,
        "seed": arguments.seed,
        "mode": arguments.mode,
        "success": episode.success,
        "outcome": episode.outcome,
        "reason": episode.reason,
        "steps": episode.steps,
        "chunks": episode.accepted,
        "steps_per_second": round(episode.steps / episode.seconds, 1) if episode.seconds else None,
        "latency_ms": percentiles(episode.latencies),
        "chunk_age_ms": percentiles(episode.chunk_ages),
    }


def setpoint_report(targets: Sequence[Target]) -> dict[str, Any]:
    """What the arm was told in an episode, judged by the limits of the controller that told it."""
    from bitvla_ros.evaluation.proofs.steps import figures

    return figures(targets, simulated_arm.limits(), simulated_arm.rate())


def _film(episode: Episode, label: str, path: Path, console: Console) -> tuple[Any, list[Any], int]:
    """Write the video; its caption, its frames, and how many ticks lacked an image."""
    from bitvla_ros.evaluation.video import Caption, write_video

    caption = Caption(episode.instruction, label, episode.step_limit)
    moments, missing = episode.moments()
    if moments:
        words = f"{episode.outcome.replace('_', ' ')} after {episode.steps} steps"
        moments[-1] = replace(moments[-1], outcome=words, success=episode.success)
        with console.status(f"writing {path}"):
            write_video(path, caption, moments, fps=CONTROL_HZ)
        console.print(f"video: {path}", soft_wrap=True)
    return caption, moments, missing


def _poster(path: Path, seen: list[tuple[Any, Any]]) -> str | None:
    from bitvla_ros.evaluation.video import poster

    if not seen:
        return None
    poster(path, seen, fps=CONTROL_HZ)
    return str(path)


def failure(results: list[dict[str, Any]], arguments: argparse.Namespace) -> str | None:
    """What makes the demo as a whole a failure. An untrained policy may miss its goal; the expert may not where time waits for it.
    Setpoints may never jump."""
    for result in results:
        if result["outcome"] in ("fault", "cancelled"):
            return f"the episode of {result['model']} ended with {result['outcome']}: {result['reason']}"
        if violations := result.get("seam_violations"):
            return f"{violations} setpoints of {result['model']} broke a limit, the first: {result['seam_problems'][0]}"
        if result["policy"] == "expert" and not result["success"] and arguments.mode == LOCKSTEP and arguments.steps is None:
            return f"the expert did not succeed: {result['reason']}"
    return None


def _pair(percentiles: dict[str, float | None]) -> str:
    return " / ".join(map(_number, percentiles.values()))


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
