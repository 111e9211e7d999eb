"""`bitvla VERB`: finds the verb, runs it, prints what it returns.

A verb is a module with four names:
    EXAMPLES: str                          command lines, shown at the end of its --help
    add_arguments(parser) -> None          its options
    run(arguments) -> dict                 the work; progress goes to stderr; returns what --json prints. `arguments.given` has the
                                           names of the options that were given, so that what nothing reads can be refused
    show(result) -> None                   the same result for people, on stdout
Only the chosen verb's module is imported, and it imports what is heavy (torch, mujoco, rclpy) inside `run`, so that --help is quick
and works everywhere.

Exit codes: 0 done; 1 the work was done and its result says that something failed (`result["error"]`); 2 refused, with the reason
on stderr; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType


@dataclass(frozen=True)
class Verb:
    summary: str
    module: str


VERBS = {
    "demo": Verb("watch the expert, then BitVLA, drive a simulated arm through a ROS graph", "bitvla_ros.nodes.demo"),
    "doctor": Verb("look at a graph before anything moves, and say what does not fit and what to do", "bitvla_ros.nodes.doctor"),
    "wiggle": Verb("test an arm by tiny motions: frame, handedness, scale and sign of every axis", "bitvla_ros.nodes.wiggle"),
    "eval": Verb("play a suite's tasks many times and say how often a policy succeeds", "bitvla_ros.nodes.evaluate"),
    "pack": Verb("turn a checkpoint into a packed model, two bits a weight, on disk", "bitvla_ros.evaluation.packing"),
    "inspect": Verb("show what a packed model or a checkpoint is made of, and whether it is whole", "bitvla_ros.evaluation.inspection"),
    "record": Verb("let the scripted expert show tasks in simulation, and keep them as a dataset", "bitvla_ros.training.recording"),
    "convert": Verb("make a dataset of rosbag2 recordings, LIBERO's HDF5 files or a LeRobot dataset", "bitvla_ros.training.conversion"),
    "train": Verb("fine-tune a ternary policy, or train a small one from nothing, on a dataset", "bitvla_ros.training.finetuning"),
    "distill": Verb("make a full-precision vision tower ternary by quantize-then-distill", "bitvla_ros.training.distill"),
    "ablate": Verb("train a policy at several precisions and compare them in one table", "bitvla_ros.evaluation.ablation"),
    "prove": Verb("break a running graph on purpose, and measure how soon the arm stops", "bitvla_ros.nodes.prove.verb"),
    "bench": Verb("time a chunk or the ternary kernels, and show where time and memory go", "bitvla_ros.evaluation.benchmark"),
}

# Module that is missing -> what brings it.
REMEDIES = {
    "rclpy": "source your ROS installation (source /opt/ros/<distro>/setup.bash), or on x86-64 without ROS: pip install '.[ros]'",
    "bitvla_ros.msg": "the package's messages are not built: colcon build and source install/setup.bash, or pip install '.[ros]'",
    "bitvla_ros.srv": "the package's services are not built: colcon build and source install/setup.bash, or pip install '.[ros]'",
    "bitvla_ros.action": "the package's actions are not built: colcon build and source install/setup.bash, or pip install '.[ros]'",
    "mujoco": "pip install '.[sim]'",
    "rich": "pip install 'rich>=13'",
    "imageio_ffmpeg": "pip install '.[sim]'",
    "matplotlib": "pip install '.[plot]'",
    "h5py": "pip install '.[data]'",
    "rosbags": "pip install '.[data]'",
    "accelerate": "pip install '.[distributed]'",
    "pyarrow": "pip install '.[train]'",
    "libero": "make test-libero sets up an environment with the LIBERO extra, .venv-libero",
}
# They come with rclpy, whichever way it was installed.
ROS_PACKAGES = {"action_msgs", "builtin_interfaces", "diagnostic_msgs", "geometry_msgs", "lifecycle_msgs", "rcl_interfaces"}
ROS_PACKAGES |= {"rosgraph_msgs", "rpyutils", "sensor_msgs", "std_msgs", "std_srvs"}


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    chosen = argv[0] if argv else ""
    parser = argparse.ArgumentParser(
        prog="bitvla",
        description="BitVLA, a vision-language-action model with ternary weights, in a ROS 2 graph.",
        epilog="bitvla VERB --help explains a verb and shows examples.",
    )
    parser.add_argument("--version", action="version", version=f"bitvla_ros {_version()}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    for name, verb in VERBS.items():
        module = importlib.import_module(verb.module) if name == chosen else None
        sub = verbs.add_parser(
            name,
            help=verb.summary,
            description=verb.summary[0].upper() + verb.summary[1:] + ".",
            epilog="examples:\n" + module.EXAMPLES if module else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if module:
            module.add_arguments(sub)
            sub.set_defaults(module=module)
        sub.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    if not arguments.verb:
        parser.print_help()
        return 0
    arguments.given = given(arguments.module, argv[1:])
    return _run(arguments)


def given(module: ModuleType, argv: Sequence[str]) -> frozenset[str]:
    """Names of a verb's options in its arguments, as attributes of what is parsed: not those that have their defaults."""
    parser = argparse.ArgumentParser(add_help=False)
    module.add_arguments(parser)
    for switch in ("--json", "--debug"):
        parser.add_argument(switch, action="store_true")
    default: list[object] = []  # known again by its identity; a list, because options that may be repeated append to a copy of it
    parser.set_defaults(**dict.fromkeys(vars(parser.parse_args(argv)), default))
    return frozenset(name for name, value in vars(parser.parse_args(argv)).items() if value is not default)


def _run(arguments: argparse.Namespace) -> int:
    try:
        with _stdout_to_stderr() if arguments.json else contextlib.nullcontext():
            result = arguments.module.run(arguments)
    except KeyboardInterrupt:
        print("bitvla: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        message = _explain(arguments.verb, error)
        if message is None:  # a mistake of ours: nothing explains it better than the traceback
            raise
        if arguments.debug:
            traceback.print_exc()
        print(f"bitvla {arguments.verb}: {message}", file=sys.stderr)
        if arguments.json:
            print(json.dumps({"error": message}))
        return 2
    if not arguments.json:
        try:
            arguments.module.show(result)
        except ImportError as error:  # the work is done: its result must not be lost for want of a library that draws tables
            print(f"bitvla {arguments.verb}: {_explain('a table', error)}. The result as JSON:", file=sys.stderr)
            arguments.json = True
    if arguments.json:
        print(json.dumps(result, allow_nan=False))
    if result.get("error"):
        print(f"bitvla {arguments.verb}: {result['error']}", file=sys.stderr)
        return 1
    return 0


def _explain(verb: str, error: Exception) -> str | None:
    """One clear message for an error that the package raises on purpose, or that the machine causes; None for any other."""
    if isinstance(error, ImportError) and error.name:
        name = error.name
        if name.startswith("bitvla_ros"):
            name = ".".join(name.split(".")[:2])
        elif name.startswith("_rclpy") or name.partition(".")[0] in ROS_PACKAGES:
            name = "rclpy"
        else:
            name = name.partition(".")[0]
        if name in REMEDIES:
            return f"{verb} needs {name}: {REMEDIES[name]} ({error})"
        if not name.startswith("bitvla_ros"):
            return f"{verb} needs the Python package {name}, which is not installed here: pip install '.' brings it ({error})"
        return None
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] == "bitvla_ros":
        return str(error) or type(error).__name__
    return None


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Whatever prints meanwhile, be it a C library, does not spoil the JSON."""
    sys.stdout.flush()
    keep = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(keep, 1)
        os.close(keep)


def _version() -> str:
    try:
        return metadata.version("bitvla_ros")
    except metadata.PackageNotFoundError:
        return "(run from its source tree)"


if __name__ == "__main__":
    sys.exit(main())
