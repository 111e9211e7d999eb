"""The verb `wiggle`: a guided self-test of an arm in tiny motions, against frame, handedness, scale and sign."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what needs ROS or a library is imported where it is used: --help must work everywhere
    from rich.console import Console

    from bitvla_ros.control.wiggle import Seen

    from .wiggler import Wiggler

EXAMPLES = """\
  bitvla wiggle --simulator                     see it with the simulated arm: nothing to set up, nobody is asked
  bitvla wiggle --profile fr3_crisp             an arm that is up and running, one motion after another, each confirmed by you
  bitvla wiggle --profile ./my_arm.yaml --only x --only yaw --only gripper
  bitvla wiggle --simulator --json > wiggle.json"""

PARTS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
LAG_TOLERANCE = 0.015  # s
SIMULATED = "simulated_arm"  # the profile of the built-in one


class _Enough(Exception):
    """The person wants to stop."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arm = parser.add_mutually_exclusive_group(required=True)
    arm.add_argument("--profile", metavar="NAME|FILE", help="how the arm is driven: a name in config/profiles, or a file like those")
    arm.add_argument("--simulator", action="store_true", help="start the built-in simulated arm and try that")
    parser.add_argument("--only", choices=PARTS, action="append", help="try only this; may be repeated (default: all)")
    parser.add_argument("--yes", action="store_true", help="ask nothing: for simulators, and where nobody is in reach of the arm")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from rich.console import Console

    from bitvla_ros.profiles import load_profile

    from .processes import Graph
    from .wiggler import WiggleError

    asks = not (arguments.yes or arguments.simulator)
    if asks and not sys.stdin.isatty():
        raise WiggleError("nobody can be asked here: run it in a terminal beside the arm, or with --yes")
    console = Console(stderr=True, highlight=False)
    name = SIMULATED if arguments.simulator else arguments.profile
    profile = load_profile(name)
    with contextlib.ExitStack() as stack:
        check = None
        if arguments.simulator:
            graph = stack.enter_context(Graph(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bitvla-wiggle-")))))
            graph.start("simulation", "bitvla_ros.nodes.simulation", {"mode": "realtime", "interface": "pose", "cameras": [""]})
            check = graph.check
        arm = stack.enter_context(wiggler({**profile.policy, **profile.controller}, profile.remappings, check))
        with console.status("waiting for the arm"):
            arm.wait(patience=30.0 if arguments.simulator else 10.0)
        if "gripper" in (arguments.only or ()) and not arm.has_gripper:
            raise WiggleError(f"--only gripper: the profile {name} has none, its gripper.kind says so")
        person = _Person(console) if asks else None
        if person and not person.begins(arm):
            raise WiggleError("nothing was moved")
        with console.status("the arm is told to stay where it is"):
            arm.begin()
        examined = examine(arm, arguments.only or PARTS, person, console)
        written = float(profile.controller.get("lag", 0.0))
        return {"profile": name, "frame": arm.frame, "topics": arm.topics, **examined, "lag_of_profile": written}


@contextlib.contextmanager
def wiggler(
    parameters: Mapping[str, Any], remappings: Sequence[tuple[str, str]] = (), check: Callable[[], None] | None = None
) -> Iterator[Wiggler]:
    """A Wiggler on a node of its own. parameters: of a profile; what a self-test does not need of them is left out. check: called
    while it waits; may raise.

    Raises ParameterError for parameters that do not fit, WiggleError for an arm that must not be moved."""
    import rclpy
    from rclpy.context import Context
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.node import Node
    from rclpy.parameter import Parameter
    from rclpy.signals import SignalHandlerOptions

    from . import sinks
    from .log_folder import log_arguments
    from .parameters import Parameters
    from .wiggler import PARAMETERS, WiggleError, Wiggler

    known = {parameter.name for parameter in PARAMETERS}
    overrides = [Parameter(name, value=value) for name, value in parameters.items() if name in known]
    rules = [argument for source, target in remappings for argument in ("-r", f"{source}:={target}")]
    context = Context()
    rclpy.init(args=[*sys.argv, *log_arguments()], context=context, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = Node("wiggle", context=context, cli_args=["--ros-args", *rules], parameter_overrides=overrides)
        p = Parameters(node, PARAMETERS).read()
        try:
            sinks.check(p)
        except ValueError as error:
            raise WiggleError(str(error)) from error
        if not p.sink_silence_timeout and p.sink_accept_no_timeout != sinks.ACCEPTANCE:
            raise WiggleError(
                "sink.silence_timeout is 0, so nothing stops this arm when we fall silent: give its controller's own time-out, or set "
                f"sink.accept_no_timeout to '{sinks.ACCEPTANCE}'"
            )
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        arm = Wiggler(node, executor, p, check or (lambda: None))
        try:
            yield arm
        finally:
            arm.close()
            executor.shutdown(timeout_sec=1.0)
            node.destroy_node()
    finally:
        context.try_shutdown()


def examine(arm: Wiggler, parts: Sequence[str], person: _Person | None, console: Console) -> dict[str, Any]:
    """Move the arm, which has begun, and judge it: `motions`, `gripper`, `lag`, `problems` and `error` of the result."""
    from bitvla_ros.control.wiggle import MOTIONS, diagnose, judge_gripper

    from .wiggler import TooFar, WiggleError

    orientation = arm.pose[1]
    seen: list[Seen] = []
    broken: list[Seen] = []
    confirmed: dict[str, bool] = {}
    problems: list[str] = []
    gripper = None
    try:
        for motion in (motion for motion in MOTIONS if motion.axis_name in parts):
            if person is None or person.allows(f"{motion.name}: the hand {motion.words}"):
                with console.status(f"{motion.name}: the hand {motion.words}"):
                    seen.append(arm.perform(motion))
                if person:
                    confirmed[motion.name] = person.confirms()
        if "gripper" in parts and arm.has_gripper and (person is None or person.allows("the gripper opens, closes and opens again")):
            with console.status("the gripper opens, closes and opens again"):
                opened, closed = arm.try_gripper()
            problem = judge_gripper(opened, closed)
            gripper = {"opened": round(opened, 5), "closed": round(closed, 5), "ok": not problem, "problem": problem or None}
    except WiggleError as error:
        broken = [error.seen] if isinstance(error, TooFar) else []
        problems.append(f"{error}. Nothing more was tried")
    except _Enough:
        pass
    problems += diagnose(seen, orientation)
    if denied := [name for name, said in confirmed.items() if not said]:
        problems.append(
            f"{', '.join(denied)}: not what you saw; then {arm.frame!r}, the frame of the pose, is not x forwards, y left, z up, or the "
            "published pose is not the hand's"
        )
    if gripper and gripper["problem"]:
        problems.append(gripper["problem"])
    if not seen and not gripper and not problems:
        problems.append("nothing was tried")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return {
        "motions": [_row(one, confirmed.get(one.motion.name)) for one in seen + broken],
        "gripper": gripper,
        "lag": None if arm.lag is None or problems else round(arm.lag, 3),
        "problems": problems,
        "error": problems[0] + more if problems else None,
    }


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"[bold]{result['profile']}[/]: targets on {result['topics'][0]}, in {result['frame']!r}", title_justify="left")
    table.title_style = ""
    table.add_column("asked")
    for name in ("seen along", "moved", "of asked"):
        table.add_column(name, justify="right")
    table.add_column("")
    for number, row in enumerate(result["motions"]):
        moved = f"{1e3 * row['moved']:.1f} mm" if row["unit"] == "m" else f"{row['moved']:.3f} rad"
        ok = row["ok"] and row["confirmed"] is not False
        colour = "green" if ok else "red"
        along = row["along"] or "–"
        last = number + 1 < len(result["motions"]) and result["motions"][number + 1]["unit"] != row["unit"]
        table.add_row(row["motion"], f"[{colour}]{along}[/]", moved, f"{row['scale']:.0%}", _mark(ok), end_section=last)
    if gripper := result["gripper"]:
        table.add_section()
        between = f"{1e3 * gripper['opened']:.0f} to {1e3 * gripper['closed']:.0f} mm"
        table.add_row("gripper", "open, closed", between, "", _mark(gripper["ok"]))
    console = Console(highlight=False)
    console.print()
    console.print(table)
    for problem in result["problems"]:
        console.print(f"[red]✗[/] {escape(problem)}", soft_wrap=True)
    if not result["problems"]:
        whole = len(result["motions"]) == 12
        console.print("[green]✓[/] " + ("frame, handedness, scale and sign are right" if whole else "what was tried is right"))
    if result["lag"] is not None:
        console.print(_lag_in_words(result["lag"], result["lag_of_profile"]), soft_wrap=True)


class _Person:
    """Who stands beside the arm, and is asked on the terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begins(self, arm: Wiggler) -> bool:
        self._console.print(
            f"The hand will move by 2 cm and turn by 6 degrees, there and back, through {arm.topics[0]}.\n"
            "Stand behind the base, looking where the arm reaches; keep the emergency stop in your hand and 10 cm free around the hand.",
            soft_wrap=True,
        )
        return self._answer("Enter: begin   q: quit") != "q"

    def allows(self, what: str) -> bool:
        """False: skip it. Raises _Enough."""
        answer = self._answer(f"[bold]{what}[/]   Enter: do it   s: skip   q: enough")
        if answer == "q":
            raise _Enough
        return answer != "s"

    def confirms(self) -> bool:
        return self._answer("  did it?   Enter: yes   n: no") != "n"

    def _answer(self, question: str) -> str:
        try:
            return self._console.input(f"{question} > ").strip().lower()[:1]
        except EOFError:
            return "q"


def _row(seen: Seen, confirmed: bool | None) -> dict[str, Any]:
    import numpy as np

    from bitvla_ros.control.wiggle import judge

    finding = judge(seen)
    return {
        "motion": seen.motion.name,
        "unit": "rad" if seen.motion.turn else "m",
        "asked": seen.motion.vector.round(5).tolist(),
        "seen": seen.vector.round(5).tolist(),
        "moved": round(float(np.linalg.norm(seen.vector)), 5),
        "along": finding.along or None,
        "scale": round(finding.scale, 4),
        "confirmed": confirmed,
        "ok": finding.ok,
        "problem": finding.problem or None,
    }


def _lag_in_words(measured: float, written: float) -> str:
    found = f"the arm follows {measured:.3f} s behind its targets"
    if abs(measured - written) <= LAG_TOLERANCE:
        return f"[green]✓[/] {found}, as its profile says"
    return f"[yellow]![/] {found}; its profile says {written:g}: write lag: {max(measured, 0.0):.2f}, and setpoints go ahead by as much"


def _mark(ok: bool) -> str:
    return "[green]✓[/]" if ok else "[red]✗[/]"
