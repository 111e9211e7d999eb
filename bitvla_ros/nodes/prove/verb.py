"""The verb `prove`: what is promised about safety, proven by breaking a real graph; with a report of distributions and plots."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitvla_ros.arguments import COUNT, NATURAL, require_read

if TYPE_CHECKING:  # what needs ROS or a library is imported where it is used: --help must work everywhere
    from bitvla_ros.evaluation.proofs.findings import Advance, Finding

FULL = 300  # of --trials: with it every proof has its full length


class ProveError(Exception):
    """The proofs cannot be run as was asked."""


Run = Callable[[int, int, Path, "Advance"], "Finding"]
"""trials, seed, folder for logs, advance"""


@dataclass(frozen=True)
class Proof:
    """full: its trials with --trials 300; other numbers are in proportion. unit: of the trials. what: it does, in a line. needs: a package
    that comes only with a ROS installation; empty: none."""

    full: int
    unit: str
    what: str
    run: Run
    needs: str = ""


def _fault(name: str) -> Run:
    def run(trials: int, seed: int, logs: Path, advance: Advance) -> Finding:
        from .faults import prove_fault

        return prove_fault(name, trials, seed, logs, advance)

    return run


def _of(module: str, name: str) -> Run:
    """prove_<name> of a module here."""

    def run(trials: int, seed: int, logs: Path, advance: Advance) -> Finding:
        prove: Run = getattr(import_module(f".{module}", __package__), f"prove_{name}")
        return prove(trials, seed, logs, advance)

    return run


def _last_setpoint(sink: str) -> Run:
    def run(trials: int, seed: int, logs: Path, advance: Advance) -> Finding:
        from .last_setpoint import prove_last_setpoint

        return prove_last_setpoint(sink, trials, seed, logs, advance)

    return run


def _stale(trials: int, seed: int, logs: Path, advance: Advance) -> Finding:
    from bitvla_ros.evaluation.proofs.stale import prove_stale

    return prove_stale(trials, seed, advance)


def _session(trials: int, seed: int, logs: Path, advance: Advance) -> Finding:
    from bitvla_ros.evaluation.proofs.session_fuzz import prove_session

    return prove_session(trials, seed, advance)


def _seam(trials: int, seed: int, logs: Path, advance: Advance) -> Finding:
    from bitvla_ros.evaluation.proofs.seam import prove_seam

    return prove_seam(trials, seed, advance)


PROOFS = {
    "policy_sigkill": Proof(300, "trials", "SIGKILL to the policy's process while the arm moves", _fault("policy_sigkill")),
    "policy_sigstop": Proof(300, "trials", "SIGSTOP to the policy's process while the arm moves", _fault("policy_sigstop")),
    "policy_sigkill_live": Proof(100, "trials", "SIGKILL, for an arm that is driven by poses at 100 Hz", _fault("policy_sigkill_live")),
    "inference_hang": Proof(100, "trials", "an inference that does not end, in a process that lives", _fault("inference_hang")),
    "camera_loss": Proof(100, "trials", "no images any more", _fault("camera_loss")),
    "camera_delay": Proof(100, "trials", "images 0.4 s late", _fault("camera_delay")),
    "frozen_camera": Proof(100, "trials", "the same image with new stamps", _fault("frozen_camera")),
    "camera_corruption": Proof(100, "trials", "images that are cut off, empty, wrongly encoded or too narrow", _fault("camera_corruption")),
    "clock_jump": Proof(100, "trials", "the cameras' clock leaps by a second, back or forth, or gives no stamps", _fault("clock_jump")),
    "cancel_mid_chunk": Proof(100, "trials", "a cancel while a chunk is played", _fault("cancel_mid_chunk")),
    "instruction_change": Proof(100, "trials", "another instruction while a chunk is played", _fault("instruction_change")),
    "stale_refused": Proof(10_000, "faults", "stale, silent, frozen, zero, backward and future inputs, at streams and gate", _stale),
    "seam": Proof(1_000_000, "setpoints", "steps between successive setpoints, on a virtual clock with seeded latencies", _seam),
    "session": Proof(1_000_000, "events", "goals, cancels, faults, resets, bad poses and more between setpoints, at 7 to 500 Hz", _session),
    "fuzz": Proof(1_000_000, "messages", "malformed messages through conversions, inputs, gate, player and guard", _of("fuzz", "fuzz")),
    "old_epoch": Proof(1_000, "cancels", "commands of a task after its cancel was answered", _of("promises", "old_epoch")),
    "second_publisher": Proof(30, "trials", "somebody else publishes on the arm's topic", _of("promises", "second_publisher")),
    "last_setpoint_pose": Proof(300, "stops", "the last pose that arrives after any kind of stop", _last_setpoint("pose")),
    "last_setpoint_twist_stamped": Proof(300, "stops", "the last TwistStamped after any kind of stop", _last_setpoint("twist_stamped")),
    "last_setpoint_twist": Proof(300, "stops", "the last Twist after any kind of stop", _last_setpoint("twist")),
    "last_setpoint_servo": Proof(300, "stops", "the last TwistStamped to MoveIt Servo after any kind of stop", _last_setpoint("servo")),
    "take_over": Proof(
        300, "trials", "a goal that takes over while the arm moves, and ends before its first setpoint", _of("last_setpoint", "take_over")
    ),
    "first_pose": Proof(300, "trials", "poses that glitch when a task begins", _of("last_setpoint", "first_pose")),
    "second_policy": Proof(300, "trials", "a second node that publishes chunks", _of("last_setpoint", "second_policy")),
    "second_controller": Proof(300, "trials", "a second controller in the namespace", _of("last_setpoint", "second_controller")),
    "gripper_aborts": Proof(
        300,
        "commands",
        "a gripper's server that aborts, stalls, refuses, is silent or vanishes",
        _of("gripper", "gripper_aborts"),
        needs="control_msgs",
    ),
    "guests": Proof(300, "guests", "other nodes that join while the arm moves, listen, and leave or are killed", _of("promises", "guests")),
    "lifecycle": Proof(1_000, "loops", "configure, activate, deactivate, clean up", _of("lifecycle", "lifecycle")),
    "player_rate": Proof(600, "s", "setpoints at 100 Hz while a network infers on the same processors", _of("promises", "player_rate")),
    "false_stop": Proof(3_600, "s", "stops without a reason, while a network infers, and memory that grows", _of("promises", "false_stop")),
}

READ = {name: ("seed",) for name in PROOFS if name != "lifecycle"}

EXAMPLES = """\
  bitvla prove                                     every proof, a thirtieth of its full length
  bitvla prove --trials 300                        full length, hours: what docs/safety.md shows
  bitvla prove --only policy_sigkill --trials 300  one proof; into the same folder, so that the report shows it beside the others
  bitvla prove --json > prove.json                 the figures as JSON

proofs, and how long they are with --trials 300:
""" + "\n".join(f"  {name:19} {proof.full:>9,} {proof.unit:9}  {proof.what}" for name, proof in PROOFS.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trials", type=COUNT, default=10, help=f"how thorough: {FULL} is the full length of every proof (default: %(default)s)"
    )
    parser.add_argument("--only", action="append", choices=tuple(PROOFS), metavar="NAME", help="this proof alone; may be repeated")
    parser.add_argument("--seed", type=NATURAL, default=0, help="of everything that is drawn (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/prove"), help="folder for findings, report, logs (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    import matplotlib  # noqa: F401, for the report: its lack is known before hours are spent
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from bitvla_ros.evaluation.machine import OtherLoad
    from bitvla_ros.evaluation.proofs.findings import result_of
    from bitvla_ros.evaluation.proofs.report import Measured, write_report
    from bitvla_ros.evaluation.revision import revision

    from ..processes import NodeDied
    from ..recorder import GraphError

    console = Console(stderr=True, highlight=False)
    names = list(dict.fromkeys(arguments.only or _possible(console.print)))
    require_read(arguments.given, READ, *names)
    findings: list[Finding] = []
    broken: list[str] = []
    code = revision()
    words = TextColumn("{task.description}"), TextColumn("{task.fields[unit]}")
    with Progress(words[0], BarColumn(28), MofNCompleteColumn(), words[1], TimeRemainingColumn(), console=console) as bars:
        for name in names:
            proof = PROOFS[name]
            trials = max(1, math.ceil(proof.full * arguments.trials / FULL))
            bar = bars.add_task(name, total=trials, unit=proof.unit)
            load = OtherLoad()
            try:
                finding = proof.run(
                    trials, arguments.seed, arguments.output / "logs" / name, lambda count, bar=bar: bars.advance(bar, count)
                )
            except (GraphError, NodeDied) as error:  # the other proofs may still go well
                broken.append(f"{name} broke off: {error}")
                console.print(broken[-1], style="red", soft_wrap=True, markup=False)
                continue
            findings.append(finding)
            Measured(finding, proof.what, proof.unit, arguments.seed, load.share(), code).save(arguments.output)
            if finding.problem:
                console.print(finding.problem, style="yellow", soft_wrap=True, markup=False)
            write_report(arguments.output, tuple(PROOFS))  # after each: a long run may be broken off
    console.print(f"findings and report: {arguments.output}", soft_wrap=True)
    result = result_of(findings)
    if broken:
        result["error"] = "; ".join([*broken, *([result["error"]] if "error" in result else [])])
    return result


def _possible(say: Callable[[str], None]) -> Iterator[str]:
    """The proofs whose packages are installed; what is left out is said."""
    for name, proof in PROOFS.items():
        if not proof.needs or find_spec(proof.needs):
            yield name
        else:
            say(f"{name} is left out: it needs {proof.needs}, which comes with ROS, not from PyPI")


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if result["faults"]:
        table = Table(title="until the first stopping command, ms", title_justify="left")
        for name in ("fault", "trials", "stopped", "p50", "p99", "max", "violations"):
            table.add_column(name, justify="left" if name == "fault" else "right")
        for fault in result["faults"]:
            times = ("–" if value is None else f"{value:.0f}" for value in fault["stop_ms"].values())
            table.add_row(fault["name"], str(fault["trials"]), str(fault["stopped"]), *times, str(fault["violations"]))
        console.print(table)
    if result["promises"]:
        table = Table("promise", "trials", "violations", "value", "target", "kept")
        for promise in result["promises"]:
            value = f"{promise['value']:g} {promise['unit']}"
            kept = "[green]yes[/]" if promise["met"] else "[red]no[/]"
            table.add_row(promise["name"], f"{promise['trials']:,}", str(promise["violations"]), value, f"{promise['target']:g}", kept)
        console.print(table)
    if fuzz := result["fuzz"]:
        counts = f"{fuzz['crashes']} crashes, {fuzz['nonfinite_out']} not finite, {fuzz['outside']} beyond a limit"
        console.print(f"fuzz: {fuzz['messages']:,} messages, {counts}")
