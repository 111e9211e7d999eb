"""The verb `doctor`: looks at a graph before anything moves, and says of each thing what was found and what to do."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitvla_ros.arguments import within

if TYPE_CHECKING:
    from .facts import Expected, Finding, Graph, Machine, Model

EXAMPLES = """\
  bitvla doctor                                          our simulator, with the parameters' defaults
  bitvla doctor --profile fr3_crisp --model goal-packed  an arm, and the model that is to drive it
  bitvla doctor --profile ur5e --remap camera/scene/image_raw:=/front/color/image_raw
  bitvla doctor --profile my_cell.yaml --seconds 10 --json > doctor.json

It publishes nothing and moves nothing. Exit code 1: something failed. A check that cannot be made is shown as skipped."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", help="name in config/profiles, or a ROS parameter file of policy and controller (default: none)")
    parser.add_argument("--model", help="packed model, checkpoint, Hugging Face id or random:PRESET (default: the profile's)")
    parser.add_argument("--seconds", type=within(float, 0.5, 600), default=3.0, help="how long to listen (default: %(default)g)")
    parser.add_argument(
        "--remap",
        action="append",
        default=[],
        metavar="FROM:=TO",
        help="as the launch file remaps; may be repeated (__ns:=/NAME: a namespace)",
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from rich.console import Console

    from .expected import load_expected
    from .gather import gather

    expected = load_expected(arguments.profile)
    console = Console(stderr=True)
    with console.status("reading the model"):
        model, problem = _model(arguments.model or str(expected.policy["model"]), expected)
    with console.status(f"listening for {arguments.seconds:g} s"):
        graph, rmw, liveliness = gather(expected, arguments.seconds, (*arguments.remap, *expected.remappings))
    findings = list(examine(expected, graph, _machine(expected, rmw, liveliness), model, problem))
    counts = {level: sum(finding.level == level for finding in findings) for level in ("ok", "warn", "fail", "skip")}
    failed = ", ".join(finding.check for finding in findings if finding.level == "fail")
    return {
        "profile": arguments.profile,
        "seconds": arguments.seconds,
        "checks": [vars(finding) for finding in findings],
        "counts": counts,
        "error": f"failed: {failed}" if failed else None,
    }


def examine(expected: Expected, graph: Graph, machine: Machine, model: Model | None, problem: str = "") -> Iterator[Finding]:
    """Every finding, in the order of the way from camera to arm. problem: why the model cannot be read."""
    from . import arm, cameras, sink, streams
    from . import machine as computer

    yield from streams.check_graph(graph)
    for stream in graph.streams.values():
        yield from streams.check_stream(stream, graph, expected)
    yield from streams.check_clocks(graph, expected)
    yield from streams.check_skew(graph, expected)
    for role, camera in graph.cameras.items():
        if graph.streams[f"camera {role}"].arrivals:
            yield from cameras.check_camera(camera, graph, expected, model)
    yield from cameras.check_distinct(list(graph.cameras.values()))
    yield from arm.check_frames(graph, expected)
    yield from arm.check_joints(graph, expected)
    yield from arm.check_gripper(graph, expected)
    yield from arm.check_pose(graph, expected)
    yield from arm.check_training_range(graph, expected, model)
    yield from streams.check_gate(graph)
    yield from sink.check_sink(graph, expected)
    yield from sink.check_health(graph)
    yield from computer.check_model(model, problem, expected)
    yield from computer.check_machine(machine, model, expected)
    yield from computer.check_transports(machine, graph)


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}
    table = Table(box=None, padding=(0, 1), show_header=False)
    for fixed in (True, True, False):
        table.add_column(no_wrap=fixed, overflow="fold")
    for check in result["checks"]:
        style = styles[check["level"]]
        words = Text(check["found"])
        if check["remedy"]:
            words.append(f"\n→ {check['remedy']}", style)
        table.add_row(Text(check["level"], style), check["check"], words)
    console = Console(highlight=False)
    console.print(table)
    counts = result["counts"]
    console.print("\n" + ", ".join(f"{counts[level]} {word}" for level, word in _WORDS.items() if counts[level]))


_WORDS = {"ok": "ok", "warn": "to look at", "fail": "failed", "skip": "skipped"}


def _model(name: str, expected: Expected) -> tuple[Model | None, str]:
    """What the model's files say, and why they cannot be read."""
    from bitvla_ros.evaluation.readiness import needs

    from .facts import Model

    if not name or expected.policy["policy"] != "bitvla":
        return None, ""
    try:
        found = needs(name, str(expected.policy["norm_key"]))
    except (ValueError, OSError) as error:
        return None, str(error)
    return Model(name if name.startswith("random:") else Path(name).name, **found._asdict()), ""


def _machine(expected: Expected, rmw: str, liveliness: bool) -> Machine:
    import os

    from bitvla_ros.evaluation import readiness

    from ..profiles import config_folder
    from .facts import Machine

    kernels = readiness.kernels()
    device, gpu, problem = str(expected.policy["device"]), None, ""
    if device != "cpu":
        try:
            gpu = readiness.gpu_memory(device)
        except ValueError as error:
            problem = str(error)
    return Machine(
        rmw=rmw,
        liveliness=liveliness,
        isa=kernels.isa,
        kernel_problem=kernels.problem,
        available=readiness.available_memory(),
        gpu=gpu,
        gpu_problem=problem,
        shm=readiness.shared_memory(),
        transports=os.environ.get("FASTDDS_BUILTIN_TRANSPORTS", ""),
        profile_for_images=str(config_folder() / "fastdds.xml"),
        dds_profile=os.environ.get("FASTDDS_DEFAULT_PROFILES_FILE") or os.environ.get("FASTRTPS_DEFAULT_PROFILES_FILE", ""),
    )
