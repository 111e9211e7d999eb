"""What the launch files start, computed where it can be tested: `launch` comes only with a ROS installation.

Of what is said about a parameter the last in this order holds: config/NODE.yaml, defaults of the launch arguments, the launch file's own
file or the profile, what follows from other parameters, params_file, launch arguments. Each node gets one file with the outcome.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bitvla_ros.profiles import ProfileError, load_profile
from bitvla_ros.share import share_folder
from bitvla_ros.simulation import LIBERO_SUITES, TABLETOP_SUITES

from . import parameter_files
from .lifecycle import EXIT_NOT_STARTED, EXIT_ON_FAILURE
from .missing import need
from .parameter_files import ParameterFileError
from .processes import parameter
from .sinks.parameters import MODES

RESPAWN_DELAY = 2.0  # s


class ArgumentError(ValueError):
    """A launch argument that cannot be read; the message says what would do."""


@dataclass(frozen=True)
class Argument:
    """A launch argument; all are text, an empty one says nothing. nodes: those whose parameter of this name it sets, as a `kind`."""

    name: str
    default: str
    description: str
    choices: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    kind: type = str

    def read(self, text: str) -> Any:
        """The value of the parameter. Raises ArgumentError."""
        if self.choices and text not in self.choices:
            raise ArgumentError(f"{self.name}:={text}: give one of {', '.join(self.choices)}")
        try:
            return {"true": True, "false": False}[text.lower()] if self.kind is bool else self.kind(text)
        except (KeyError, ValueError) as error:
            kinds = {bool: "true or false", int: "a whole number", float: "a number"}
            raise ArgumentError(f"{self.name}:={text}: give {kinds[self.kind]}") from error


@dataclass(frozen=True)
class NodeSpec:
    """A node to start. parameters: all that it is told, in YAML, by name. remappings: (from, to). enclave: of SROS2, empty for none."""

    executable: str
    name: str
    parameters: Mapping[str, str]
    remappings: tuple[tuple[str, str], ...] = ()
    enclave: str = ""


def _everywhere(*nodes: str) -> tuple[Argument, ...]:
    return (
        Argument("autostart", "true", "configure and activate the nodes; false: something else does", nodes=nodes, kind=bool),
        Argument("respawn", "false", f"true: a node that died starts again after {RESPAWN_DELAY:g} s; false: the launch ends", kind=bool),
        Argument("namespace", "", "of the nodes and of all their relative names"),
        Argument("params_file", "", "parameters of your own: a file that wins over the package's and the profile, and loses to arguments"),
        Argument("log_level", "info", "of the nodes", ("debug", "info", "warn", "error", "fatal")),
        Argument("record", "", "folder of a rosbag2 recording of all topics"),
    )


_MODEL = (
    Argument("model", "", "bitvla: directory or hub id of a checkpoint, or random:nano; replay: the recording", nodes=("policy",)),
    Argument("norm_key", "", "bitvla: which of the checkpoint's statistics, where it has several", nodes=("policy",)),
)
_SIMULATED = (
    Argument(
        "mode",
        "lockstep",
        "lockstep: reproducible, a tick waits for its command; realtime: time runs on",
        ("lockstep", "realtime"),
        ("simulation",),
    ),
    Argument("task", "0", "task of the first episode, by its index in the suite", nodes=("simulation",), kind=int),
    Argument("seed", "0", "seed of the first episode's initial state", nodes=("simulation",), kind=int),
    *_MODEL,
    *_everywhere("simulation", "controller", "policy"),
)

TABLETOP = (
    Argument("suite", "tabletop_object", "suite of tasks", TABLETOP_SUITES, ("simulation", "policy")),
    Argument("policy", "expert", "what infers", ("expert", "bitvla", "replay"), ("policy",)),
    Argument("control_hz", "", "bitvla: rate that the checkpoint was trained at, where it does not say so", nodes=("policy",), kind=float),
    *_SIMULATED,
)

LIBERO = (
    Argument("suite", "libero_object", "suite of tasks", LIBERO_SUITES, ("simulation", "policy")),
    Argument("policy", "bitvla", "what infers", ("bitvla", "expert", "replay"), ("policy",)),
    Argument("control_hz", "", "bitvla: rate that the checkpoint was trained at; 20 unless given", nodes=("policy",), kind=float),
    *_SIMULATED,
)

REAL_ARM = (
    Argument("profile", "", "the arm: a name in config/profiles, or a file"),
    Argument(
        "mode",
        "shadow",
        "shadow: never moves; dry: speaks to topics under dry/; live: moves, once the service enable is called",
        MODES,
        ("controller",),
    ),
    Argument("policy", "bitvla", "what infers", ("bitvla", "replay", "expert"), ("policy",)),
    Argument("control_hz", "", "bitvla: rate that the checkpoint was trained at, where it does not say so", nodes=("policy",), kind=float),
    *_MODEL,
    Argument("use_sim_time", "false", "true: time is what a simulator publishes on /clock", nodes=("controller", "policy"), kind=bool),
    Argument("enclaves", "", "SROS2: the nodes run in ENCLAVES/controller and ENCLAVES/policy; else in none of their own"),
    *_everywhere("controller", "policy"),
)


def simulation_graph(arguments: Sequence[Argument], config: str, given: Mapping[str, str]) -> tuple[NodeSpec, ...]:
    """Simulator, controller and policy. config: the launch file's own file in config/. given: values of the arguments that were given.

    Raises ArgumentError or ParameterFileError."""
    nodes = ("simulation", "controller", "policy")
    _check_params_file(given, nodes)

    def told(node: str, **derived: Any) -> dict[str, str]:
        return _told(node, arguments, given, share_folder("config") / config, derived)

    simulation = told("simulation")
    lockstep, suite = _value(simulation, "mode") == "lockstep", _value(simulation, "suite")
    follows: dict[str, Any] = {"suite": suite, "synchronised": lockstep, "use_sim_time": lockstep}
    policy = told("policy", **follows)
    if suite in LIBERO_SUITES and _value(policy, "policy") == "bitvla" and not _value(policy, "model").startswith("random:"):
        # Its datasets went through JPEG, and so did training; published checkpoints do not say its rate.
        policy = told("policy", **follows, jpeg=True, control_hz=20.0)
    parameters = (simulation, told("controller", use_sim_time=lockstep), policy)
    return tuple(NodeSpec(f"{node}_node", node, values) for node, values in zip(nodes, parameters, strict=True))


def real_arm_graph(arguments: Sequence[Argument], given: Mapping[str, str]) -> tuple[NodeSpec, ...]:
    """Controller and policy for a real arm. Cameras and the arm's driver run already. given: values of the arguments that were given.

    Raises ArgumentError, ParameterFileError or ProfileError."""
    if not given.get("profile"):
        raise ProfileError("give a profile: profile:=NAME of config/profiles, or a file")
    profile = load_profile(given["profile"])
    nodes, enclaves = ("controller", "policy"), given.get("enclaves")
    _check_params_file(given, nodes)
    return tuple(
        NodeSpec(
            f"{node}_node",
            node,
            _told(node, arguments, given, profile.path, {}),
            profile.remappings,
            f"{enclaves}/{node}" if enclaves else "",
        )
        for node in nodes
    )


def _told(node: str, arguments: Sequence[Argument], given: Mapping[str, str], config: Path, derived: Mapping[str, Any]) -> dict[str, str]:
    """What a node is told, in the order of this file's head."""
    name = f"{given.get('namespace', '').rstrip('/')}/{node}"
    defaults = {argument.name: argument.default for argument in arguments if argument.default}
    return {
        **parameter_files.read(share_folder("config") / f"{node}.yaml", name),
        **_said(arguments, defaults, node),
        **parameter_files.read(config, name),
        **{key: parameter(value) for key, value in derived.items()},
        **(parameter_files.read(Path(given["params_file"]), name) if given.get("params_file") else {}),
        **_said(arguments, given, node),
    }


def _said(arguments: Sequence[Argument], values: Mapping[str, str], node: str) -> dict[str, str]:
    return {a.name: parameter(a.read(values[a.name])) for a in arguments if node in a.nodes and values.get(a.name)}


def _value(parameters: Mapping[str, str], name: str) -> Any:
    return yaml.safe_load(parameters[name])


def _check_params_file(given: Mapping[str, str], nodes: Sequence[str]) -> None:
    """A file that says nothing to any node was written for other names."""
    if not given.get("params_file"):
        return
    path, namespace = Path(given["params_file"]), given.get("namespace", "").rstrip("/")
    if not any(parameter_files.read(path, f"{namespace}/{node}") for node in nodes):
        names = ", ".join(f"{namespace}/{node}" for node in nodes)
        found = ", ".join(parameter_files.keys(path)) or "nothing"
        raise ParameterFileError(f"{path} says nothing to {names}, only to {found}: write its parameters under /**/controller or the like")


def describe(arguments: Sequence[Argument], config: str) -> Any:
    """The launch.LaunchDescription of simulation_graph. config: the launch file's own file in config/."""
    return describe_graph(arguments, lambda arguments, given: simulation_graph(arguments, config, given))


def describe_graph(arguments: Sequence[Argument], graph: Callable[[Sequence[Argument], Mapping[str, str]], Sequence[NodeSpec]]) -> Any:
    """The launch.LaunchDescription of the nodes that `graph` names for the arguments that are given."""
    actions, launch_ros = need("launch.actions"), need("launch_ros.actions")
    from launch.substitutions import LaunchConfiguration

    def start(context: Any) -> list[Any]:
        values = {argument.name: LaunchConfiguration(argument.name).perform(context) for argument in arguments}
        given = {name: value for name, value in values.items() if value}
        options = {a.name: a.read(given.get(a.name, a.default)) for a in arguments if not a.nodes}
        namespace = _absolute(context.launch_configurations.get("ros_namespace", ""), options["namespace"])
        specs = graph(arguments, {**given, "namespace": namespace})
        folder = _folder()
        started = [_recording(options["record"])] if options["record"] else []
        for spec in specs:
            parameter_files.write(folder / f"{spec.name}.yaml", spec.parameters)
            started.append(
                launch_ros.Node(
                    package="bitvla_ros",
                    executable=spec.executable,
                    name=spec.name,
                    namespace=namespace or None,
                    arguments=[EXIT_ON_FAILURE] if _value(spec.parameters, "autostart") else None,
                    parameters=[str(folder / f"{spec.name}.yaml")],
                    remappings=list(spec.remappings),
                    ros_arguments=["--log-level", options["log_level"], *(["--enclave", spec.enclave] if spec.enclave else [])],
                    respawn=options["respawn"],
                    respawn_delay=RESPAWN_DELAY,
                    output="screen",
                )
            )
        return [*(_watch(action, options["respawn"]) for action in started), *started]

    return need("launch").LaunchDescription([*map(_declare, arguments), actions.OpaqueFunction(function=start)])


def _declare(argument: Argument) -> Any:
    """What is not given stays empty: a default must not win over a file, as what is given does."""
    choices = f" ({', '.join(argument.choices)})" if argument.choices else ""
    default = f"; default: {argument.default}" if argument.default else ""
    description = f"{argument.description}{choices}{default}"
    return need("launch.actions").DeclareLaunchArgument(argument.name, default_value="", description=description)


def _watch(action: Any, respawn: bool) -> Any:
    """A process that ends takes the launch with it, with a result other than 0, unless it is started again and that may help."""

    def ended(event: Any, context: Any) -> None:
        if context.is_shutdown or (respawn and event.returncode != EXIT_NOT_STARTED):
            return
        raise RuntimeError(f"{event.process_name} has ended with exit code {event.returncode}, so the launch ends; its last lines say why")

    handler = need("launch.event_handlers").OnProcessExit(target_action=action, on_exit=ended)
    return need("launch.actions").RegisterEventHandler(handler)


def _recording(folder: str) -> Any:
    need("ros2bag")
    return need("launch.actions").ExecuteProcess(cmd=["ros2", "bag", "record", "--all", "--output", folder], output="screen")


def _absolute(outer: str, namespace: str) -> str:
    """A namespace inside another, as launch_ros joins them; empty for none."""
    joined = namespace if namespace.startswith("/") else f"{outer}/{namespace}"
    parts = [part for part in joined.split("/") if part]
    return "/" + "/".join(parts) if parts else ""


def _folder() -> Path:
    """A folder that is there as long as this process."""
    folder = tempfile.mkdtemp(prefix="bitvla_ros_launch_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
