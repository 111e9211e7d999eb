"""The verb `doctor`: looks at a graph before anything moves, and says of each thing what was found and what to do."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitvla_ros.arguments import require_read, within

if TYPE_CHECKING:
    from .facts import Expected, Finding, Graph, Machine, Model

EXAMPLES = """\
  bitvla doctor                                          our simulator, with the parameters' defaults
  bitvla doctor --profile fr3_crisp --model goal-packed  an arm, and the model that is to drive it
  bitvla doctor --profile ur5e --remap camera/scene/image_raw:=/front/color/image_raw
  bitvla doctor --profile my_cell.yaml --seconds 10 --json > doctor.json

It publishes nothing and moves nothing. Exit code 1: something failed. A check that cannot be made is shown as skipped."""

READ = {"a policy that is the network": ("model",)}


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
    from .expected import load_expected
    from .gather import gather

    expected = load_expected(arguments.profile)
    policy = str(expected.policy["policy"])
    require_read(arguments.given, READ, *(READ if policy == "bitvla" else [f"the profile's policy {policy!r}"]))
    model, problem = _model(arguments.model or str(expected.policy["model"]), expected)
    if model is not None and model.cameras is not None:
        expected = replace(expected, policy={**expected.policy, "cameras": model.cameras})
    print(f"listening for {arguments.seconds:g} s", file=sys.stderr)
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


_COLOURS = {"ok": "32", "warn": "33", "fail": "1;31", "skip": "2"}  # of a terminal
_WORDS = {"ok": "ok", "warn": "to look at", "fail": "failed", "skip": "skipped"}


def show(result: dict[str, Any]) -> None:
    """In plain text: on the machine that is examined, a library may be what is missing."""
    indent = 8 + max(len(check["check"]) for check in result["checks"])
    width = max(40, shutil.get_terminal_size().columns - indent)
    for check in result["checks"]:
        found = _lines(check["found"], width)
        remedy = [_coloured(line, check["level"]) for line in _lines(f"→ {check['remedy']}", width)] if check["remedy"] else []
        print(_coloured(f"{check['level']:<6}", check["level"]) + f"{check['check']:<{indent - 6}}" + found[0])
        for line in found[1:] + remedy:
            print(" " * indent + line)
    counts = result["counts"]
    print("\n" + ", ".join(f"{counts[level]} {word}" for level, word in _WORDS.items() if counts[level]))


def _lines(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def _coloured(text: str, level: str) -> str:
    return f"\x1b[{_COLOURS[level]}m{text}\x1b[0m" if sys.stdout.isatty() else text


def _model(name: str, expected: Expected) -> tuple[Model | None, str]:
    """What the model's files say, and why they cannot be used."""
    from bitvla_ros.evaluation.readiness import needs
    from bitvla_ros.stated import agreed

    from .facts import Model

    if not name or expected.policy["policy"] != "bitvla":
        return None, ""
    given = {option: expected.policy[option] or None for option in ("norm_key", "prompt", "attention", "chunk")}
    given["use_proprio"] = None if expected.policy["use_proprio"] else False
    try:
        found = needs(name, **given)
        fields = found._asdict()
        fields["cameras"] = agreed("cameras", tuple(filter(None, expected.policy["cameras"])) or None, found.cameras, name)
        fields["cameras"] = fields["cameras"] or fields["usual_cameras"]
        del fields["usual_cameras"]
    except (ValueError, OSError) as error:
        return None, str(error)
    return Model(name if name.startswith("random:") else Path(name).name, **fields), ""


def _machine(expected: Expected, rmw: str, liveliness: bool) -> Machine:
    import os

    from bitvla_ros.evaluation import readiness
    from bitvla_ros.share import share_folder

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
        profile_for_images=str(share_folder("config") / "fastdds.xml"),
        dds_profile=os.environ.get("FASTDDS_DEFAULT_PROFILES_FILE") or os.environ.get("FASTRTPS_DEFAULT_PROFILES_FILE", ""),
    )
