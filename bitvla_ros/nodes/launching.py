"""What the launch files start, computed where it can be tested: `launch` comes only with a ROS installation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitvla_ros.simulation import LIBERO_SUITES, TABLETOP_SUITES

from .missing import need
from .profiles import ProfileError, load_profile
from .sinks.parameters import MODES


@dataclass(frozen=True)
class Argument:
    """A launch argument; all are text."""

    name: str
    default: str
    description: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodeSpec:
    """A node to start. configs: files in config/, or with their whole path, later ones win; parameters win over all.
    remappings: (from, to). enclave: of SROS2, empty for none."""

    executable: str
    name: str
    configs: tuple[str, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    remappings: tuple[tuple[str, str], ...] = ()
    enclave: str = ""


_COMMON = (
    Argument("mode", "lockstep", "lockstep: reproducible, a tick waits for its command; realtime: time runs on", ("lockstep", "realtime")),
    Argument("task", "0", "task of the first episode, by its index in the suite"),
    Argument("seed", "0", "seed of the first episode's initial state"),
    Argument("model", "", "bitvla: directory or hub id of a checkpoint, or random:nano; replay: the recording"),
    Argument("norm_key", "", "bitvla: which of the checkpoint's statistics; empty where it has only one"),
)

TABLETOP = (
    Argument("suite", "tabletop_object", "suite of tasks", TABLETOP_SUITES),
    Argument("policy", "expert", "what infers", ("expert", "bitvla", "replay")),
    *_COMMON,
    Argument("control_hz", "0.0", "bitvla: rate the checkpoint was trained at; 0: as it says itself"),
)

LIBERO = (
    Argument("suite", "libero_object", "suite of tasks", LIBERO_SUITES),
    Argument("policy", "bitvla", "what infers", ("bitvla", "expert", "replay")),
    *_COMMON,
    Argument("control_hz", "20.0", "bitvla: rate the checkpoint was trained at; LIBERO's is 20"),
)

REAL_ARM = (
    Argument("profile", "", "the arm: a name in config/profiles, or a file"),
    Argument(
        "mode", "shadow", "shadow: never moves; dry: speaks to topics under dry/; live: moves, once the service enable is called", MODES
    ),
    Argument("policy", "bitvla", "what infers", ("bitvla", "replay", "expert")),
    Argument("model", "", "bitvla: directory or hub id of a checkpoint, or random:nano; replay: the recording"),
    Argument("norm_key", "", "bitvla: which of the checkpoint's statistics; empty where it has only one"),
    Argument("control_hz", "0.0", "bitvla: rate the checkpoint was trained at; 0: as it says itself"),
    Argument("use_sim_time", "false", "true: time is what a simulator publishes on /clock", ("true", "false")),
    Argument("enclaves", "", "SROS2: the nodes run in ENCLAVES/controller and ENCLAVES/policy; empty: in none of their own"),
)


def simulation_graph(arguments: Mapping[str, str], config: str) -> tuple[NodeSpec, ...]:
    """Simulator, controller and policy for the values of the arguments. config: the launch file's own file in config/."""
    lockstep = arguments["mode"] == "lockstep"
    checkpoint = arguments["policy"] == "bitvla" and not arguments["model"].startswith("random:")
    policy: dict[str, Any] = {"policy": arguments["policy"], "model": arguments["model"], "suite": arguments["suite"]}
    policy |= {"synchronised": lockstep, "use_sim_time": lockstep}
    if checkpoint:
        policy |= {"control_hz": float(arguments["control_hz"]), "norm_key": arguments["norm_key"]}
        policy["jpeg"] = arguments["suite"] in LIBERO_SUITES  # its datasets went through JPEG, and so did training
    simulation = {name: arguments[name] for name in ("suite", "mode")} | {name: int(arguments[name]) for name in ("task", "seed")}
    return (
        NodeSpec("simulation_node", "simulation", ("simulation.yaml", config), simulation),
        NodeSpec("controller_node", "controller", ("controller.yaml", config), {"use_sim_time": lockstep}),
        NodeSpec("policy_node", "policy", ("policy.yaml", config), policy),
    )


def real_arm_graph(arguments: Mapping[str, str]) -> tuple[NodeSpec, ...]:
    """Controller and policy for a real arm. Cameras and the arm's driver run already. Raises ProfileError."""
    if not arguments["profile"]:
        raise ProfileError("give a profile: profile:=NAME of config/profiles, or a file")
    profile = load_profile(arguments["profile"])
    policy: dict[str, Any] = {"policy": arguments["policy"], "model": arguments["model"]}
    if arguments["policy"] == "bitvla" and not arguments["model"].startswith("random:"):
        policy |= {"control_hz": float(arguments["control_hz"]), "norm_key": arguments["norm_key"]}
    clock = {"use_sim_time": True} if arguments["use_sim_time"] == "true" else {}
    policy |= clock
    controller = {"mode": arguments["mode"], **clock}
    described = (("controller", controller), ("policy", policy))
    return tuple(
        NodeSpec(
            f"{name}_node",
            name,
            (f"{name}.yaml", str(profile.path)),
            parameters,
            profile.remappings,
            f"{arguments['enclaves']}/{name}" if arguments["enclaves"] else "",
        )
        for name, parameters in described
    )


def describe(arguments: Sequence[Argument], config: str) -> Any:
    """The launch.LaunchDescription of simulation_graph. config: the launch file's own file in config/."""
    return describe_graph(arguments, lambda values: simulation_graph(values, config))


def describe_graph(arguments: Sequence[Argument], graph: Callable[[Mapping[str, str]], Sequence[NodeSpec]]) -> Any:
    """The launch.LaunchDescription of the nodes that `graph` names for the values of the arguments."""
    actions, launch_ros = need("launch.actions"), need("launch_ros.actions")
    from ament_index_python.packages import get_package_share_directory
    from launch.substitutions import LaunchConfiguration

    folder = Path(get_package_share_directory("bitvla_ros")) / "config"

    def nodes(context: Any) -> list[Any]:
        return [
            launch_ros.Node(
                package="bitvla_ros",
                executable=spec.executable,
                name=spec.name,
                parameters=[*(str(folder / name) for name in spec.configs), dict(spec.parameters)],
                remappings=list(spec.remappings),
                ros_arguments=["--enclave", spec.enclave] if spec.enclave else None,
                output="screen",
            )
            for spec in graph({argument.name: LaunchConfiguration(argument.name).perform(context) for argument in arguments})
        ]

    declared = [
        actions.DeclareLaunchArgument(a.name, default_value=a.default, description=a.description, choices=a.choices or None)
        for a in arguments
    ]
    return need("launch").LaunchDescription([*declared, actions.OpaqueFunction(function=nodes)])
