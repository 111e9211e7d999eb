"""The launch files, as far as they can be checked without `launch`, which only a ROS installation brings (test_launch_real.py)."""

from __future__ import annotations

import re
import runpy
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from bitvla_ros.nodes import controller, launching, parameter_files, policy, simulation
from bitvla_ros.nodes.launching import LIBERO, REAL_ARM, TABLETOP, ArgumentError, NodeSpec, real_arm_graph, simulation_graph
from bitvla_ros.nodes.lifecycle import AUTOSTART, EXIT_NOT_STARTED, EXIT_ON_FAILURE, parameter_rules
from bitvla_ros.nodes.missing import MissingPackage
from bitvla_ros.nodes.parameter_files import ParameterFileError
from bitvla_ros.nodes.parameters import Parameter

REPOSITORY = Path(__file__).resolve().parents[1]
TABLES: dict[str, tuple[Parameter, ...]] = {
    "simulation": (AUTOSTART, *simulation.PARAMETERS),
    "controller": (AUTOSTART, *controller.PARAMETERS),
    "policy": (AUTOSTART, *policy.PARAMETERS),
}
FILES = {"tabletop": TABLETOP, "libero_sim": LIBERO}
PROFILES = sorted(path.stem for path in (REPOSITORY / "config" / "profiles").glob("*.yaml"))


def simulated(name: str = "tabletop", **given: str) -> dict[str, dict[str, Any]]:
    return values(simulation_graph(FILES[name], f"{name}.yaml", given))


def real(**given: str) -> dict[str, dict[str, Any]]:
    return values(real_arm_graph(REAL_ARM, given))


def values(nodes: tuple[NodeSpec, ...]) -> dict[str, dict[str, Any]]:
    """What each node is told, as a parameter file says it."""
    return {node.name: {name: yaml.safe_load(text) for name, text in node.parameters.items()} for node in nodes}


def check(parameter: Parameter, value: object) -> None:
    assert type(value) is (list if isinstance(parameter.default, tuple) else type(parameter.default)), parameter.name
    assert parameter.problem(tuple(value) if isinstance(value, list) else value) is None
    if parameter.minimum is not None:
        assert parameter.minimum <= value <= parameter.maximum


def write(path: Path, content: str) -> str:
    path.write_text(content)
    return str(path)


@pytest.mark.parametrize("name", FILES)
def test_a_launch_file_describes_its_own_graph(name: str, monkeypatch) -> None:
    described = []
    monkeypatch.setattr(launching, "describe", lambda *graph: described.append(graph))
    file = runpy.run_path(str(REPOSITORY / "launch" / f"{name}.launch.py"))
    file["generate_launch_description"]()
    assert described == [(FILES[name], f"{name}.yaml")]


def test_the_launch_file_of_a_real_arm_describes_its_own_graph(monkeypatch) -> None:
    described = []
    monkeypatch.setattr(launching, "describe_graph", lambda *graph: described.append(graph))
    runpy.run_path(str(REPOSITORY / "launch" / "real_arm.launch.py"))["generate_launch_description"]()
    assert described == [(launching.REAL_ARM, launching.real_arm_graph)]


def test_without_launch_the_package_that_brings_it_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "launch.actions", None)  # also where a ROS installation has it
    with pytest.raises(MissingPackage, match=r"apt install ros-.*-launch"):
        launching.describe(TABLETOP, "tabletop.yaml")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("choice", [{}, {"mode": "realtime"}, {"policy": "expert"}, {"policy": "bitvla", "model": "random:nano"}])
def test_every_executable_and_parameter_that_is_named_exists(name: str, choice: dict) -> None:
    executables = (REPOSITORY / "CMakeLists.txt").read_text()
    nodes = simulation_graph(FILES[name], f"{name}.yaml", choice)
    assert [node.name for node in nodes] == ["simulation", "controller", "policy"]
    for node in nodes:
        assert re.search(rf"bitvla_executable\({node.executable} ", executables)
        table = {parameter.name: parameter for parameter in TABLES[node.name]}
        for parameter, value in values((node,))[node.name].items():
            if parameter != "use_sim_time":
                check(table[parameter], value)


@pytest.mark.parametrize("table", [TABLETOP, LIBERO, REAL_ARM])
def test_an_argument_sets_parameters_that_exist_and_its_default_is_one_of_its_choices(table: tuple) -> None:
    for argument in table:
        for node in argument.nodes:
            assert argument.name in {*(parameter.name for parameter in TABLES[node]), "use_sim_time"}
        if argument.default:
            argument.read(argument.default)


def test_lockstep_synchronises_the_inputs_and_realtime_does_not() -> None:
    for mode in ("lockstep", "realtime"):
        told = simulated(mode=mode)
        assert told["simulation"]["mode"] == mode
        assert told["policy"]["synchronised"] == told["policy"]["use_sim_time"] == (mode == "lockstep")
        assert told["controller"]["use_sim_time"] == (mode == "lockstep")


def test_random_weights_are_told_of_a_dataset_only_what_was_said() -> None:
    told = simulated("libero_sim", model="random:nano")["policy"]
    assert not told["jpeg"] and told["control_hz"] == 0.0
    told = simulated("libero_sim", model="somewhere")["policy"]
    assert told["jpeg"] and told["control_hz"] == 20.0
    assert simulated("libero_sim", model="random:nano", control_hz="20")["policy"]["control_hz"] == 20.0, "which the node refuses"


# What is said is what holds.


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("mode", ["shadow", "dry", "live"])
def test_an_argument_beats_the_profile(profile: str, mode: str) -> None:
    assert real(profile=profile, mode=mode)["controller"]["mode"] == mode
    assert real(profile=profile)["controller"]["mode"] == "shadow", "as all profiles say"


KEYS = ["/**", "/**/controller", "/controller", "controller", "/**/*"]


@pytest.mark.parametrize("key", KEYS)
def test_a_file_of_ones_own_beats_the_profile_and_loses_to_an_argument_whatever_its_key(key: str, tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.yaml", f"{key}:\n  ros__parameters:\n    mode: dry\n    limits: {{speed: 1e-1}}\n")
    told = real(profile="fr3_crisp", params_file=mine)["controller"]
    assert told["mode"] == "dry" and told["limits.acceleration"] == 2.0
    nodes = real_arm_graph(REAL_ARM, {"profile": "fr3_crisp", "params_file": mine, "mode": "live"})
    assert nodes[0].parameters["limits.speed"] == "1e-1", "for rcl a number, for PyYAML a text"
    assert values(nodes)["controller"]["mode"] == "live"


@pytest.mark.parametrize("key", ["/left/controller", "left: {controller", "/*/controller", "/**/controller"])
def test_a_file_of_ones_own_may_name_the_namespace(key: str, tmp_path: Path) -> None:
    end = "}" if "{" in key else ""
    inside = f"{key}: {{ros__parameters: {{mode: dry}}}}{end}"
    mine = write(tmp_path / "mine.yaml", inside)
    assert real(profile="ur5e", params_file=mine, namespace="/left")["controller"]["mode"] == "dry"
    if key != "/**/controller":
        with pytest.raises(ParameterFileError, match=r"says nothing to /controller, /policy, only to /.*controller"):
            real(profile="ur5e", params_file=mine)


def test_a_namespace_stands_inside_that_of_the_launch_file_which_includes_ours() -> None:
    joined = {("", ""): "", ("", "left"): "/left", ("/robot", "left/"): "/robot/left", ("robot", ""): "/robot", ("/a", "/left"): "/left"}
    assert {pair: launching._absolute(*pair) for pair in joined} == joined


def test_what_follows_from_a_parameter_follows_from_a_file_too(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.yaml", "/**/simulation: {ros__parameters: {mode: realtime, suite: tabletop_goal}}")
    told = simulated(params_file=mine)
    assert told["simulation"]["mode"] == "realtime" and not told["policy"]["use_sim_time"] and not told["controller"]["use_sim_time"]
    assert told["policy"]["suite"] == "tabletop_goal"
    assert simulated(params_file=mine, mode="lockstep")["policy"]["synchronised"]
    mine = write(tmp_path / "mine.yaml", "/**/policy: {ros__parameters: {policy: replay, model: somewhere}}")
    assert simulated("libero_sim", params_file=mine)["policy"]["policy"] == "replay", "no default beats a file"


def test_a_default_of_the_launch_file_loses_to_a_profile(tmp_path: Path) -> None:
    mine = write(tmp_path / "arm.yaml", "/**/controller: {ros__parameters: {mode: live}}\n/**/policy: {ros__parameters: {policy: replay}}")
    told = real(profile=mine)
    assert told["controller"]["mode"] == "live" and told["policy"]["policy"] == "replay"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"task": "two"}, "task:=two: give a whole number"),
        ({"control_hz": "fast"}, "control_hz:=fast: give a number"),
        ({"autostart": "maybe"}, "autostart:=maybe: give true or false"),
        ({"mode": "live"}, "mode:=live: give one of lockstep, realtime"),
        ({"suite": "tabletop"}, "suite:=tabletop: give one of tabletop_"),
    ],
)
def test_an_argument_that_cannot_be_read_is_refused_in_one_line(given: dict[str, str], complaint: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{re.escape(complaint)}[^\n]*$"):
        simulated(**given)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("a: [", "cannot be read"),
        ("- a list", "expected NODE, under it ros__parameters"),
        ("/**/controller: {mode: live}", "expected NODE, under it ros__parameters"),
        ("/**/controller: {ros__parameters: }", "holds no parameters"),
        ("/**/controller: {ros__parameters: {mode: }}", "mode has no value"),
        ("/**/camera: {ros__parameters: {rate: 30}}", "says nothing to /controller, /policy, only to /[*][*]/camera"),
    ],
)
def test_a_file_that_says_nothing_is_refused_in_one_line(content: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterFileError, match=f"^[^\n]*{complaint}[^\n]*$"):
        real(profile="ur5e", params_file=write(tmp_path / "mine.yaml", content))
    with pytest.raises(ParameterFileError, match=r"cannot be read: .*No such file"):
        real(profile="ur5e", params_file=str(tmp_path / "absent.yaml"))


@pytest.mark.parametrize("name", ["simulation", "controller"])
def test_a_nodes_parameter_file_shows_every_default(name: str) -> None:
    shown = yaml.safe_load((REPOSITORY / "config" / f"{name}.yaml").read_text())["/**"]["ros__parameters"]
    assert shown == {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in TABLES[name]}


@pytest.mark.parametrize("name", FILES)
def test_a_simulators_parameter_file_names_parameters_that_exist(name: str) -> None:
    content = yaml.safe_load((REPOSITORY / "config" / f"{name}.yaml").read_text())
    assert set(content) <= {f"/**/{node}" for node in TABLES}
    for node, values in content.items():
        known = {parameter.name: parameter for parameter in TABLES[node.removeprefix("/**/")]}
        for parameter, value in values["ros__parameters"].items():
            check(known[parameter], value)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    from graph import TestGraph

    with TestGraph(tmp_path_factory.mktemp("parameters")) as graph:
        yield graph


def running(graph: Any, node: str, names: list[str]) -> dict[str, Any]:
    """Parameters of a node that runs."""
    from rcl_interfaces.srv import GetParameters
    from rclpy.parameter import parameter_value_to_python

    found = graph.call(GetParameters, f"{node}/get_parameters", GetParameters.Request(names=names), seconds=60.0).values
    values = [list(value) if isinstance(value, array) else value for value in map(parameter_value_to_python, found)]
    return dict(zip(names, values, strict=True))


@pytest.mark.ros
def test_a_node_runs_with_what_the_launch_file_writes(world, tmp_path: Path) -> None:
    """Numbers that YAML libraries read as text, text that looks like a number, an empty text, lists, nested names."""
    mine = tmp_path / "mine.yaml"
    content = {"limits.speed": "1e-1", "joints": "['1', 'a, b']", "gripper": "{topic: '3'}", "sink.topic": '""', "time_limit": "6e1"}
    lines = "".join(f"    {name}: {value}\n" for name, value in content.items())
    write(mine, f"/**:\n  ros__parameters:\n    mode: dry\n{lines}/**/policy:\n  ros__parameters:\n    policy: expert\n")
    nodes = real_arm_graph(REAL_ARM, {"profile": "fr3_crisp", "params_file": str(mine), "mode": "live", "autostart": "false"})
    parameter_files.write(tmp_path / "controller.yaml", nodes[0].parameters)
    world.start("controller", "bitvla_ros.nodes.controller", {}, "--ros-args", "--params-file", str(tmp_path / "controller.yaml"))
    told = values(nodes)["controller"] | {"limits.speed": 0.1, "time_limit": 60.0}
    assert told["mode"] == "live" and told["joints"] == ["1", "a, b"] and told["gripper.topic"] == "3" and told["sink.topic"] == ""
    assert running(world, "controller", list(told)) == told
    world.stop("controller")


@pytest.mark.ros
@pytest.mark.parametrize("order", ["before", "after"])
def test_a_parameter_on_the_command_line_beats_every_file(world, order: str) -> None:
    files = [part for name in ("controller.yaml", "profiles/fr3_crisp.yaml") for part in ("--params-file", f"config/{name}")]
    rule = ["-p", "mode:=live", "--param", "controller:limits.speed:=0.05", "-p", "autostart:=false"]
    arguments = [*rule, *files] if order == "before" else [*files, *rule]
    world.start("controller", "bitvla_ros.nodes.controller", {}, "--ros-args", *arguments)
    found = running(world, "controller", ["mode", "limits.speed", "sink.kind"])
    world.stop("controller")
    assert found == {"mode": "live", "limits.speed": 0.05, "sink.kind": "pose"}


def test_rules_are_taken_from_the_part_of_the_command_line_that_is_ros() -> None:
    line = "-p a:=1 --ros-args -p b:=2 -r x:=y -- -p c:=3 --ros-args --param d:=4"
    assert parameter_rules(line.split()) == ["--ros-args", "-p", "b:=2", "-p", "d:=4"]
    assert parameter_rules(["--ros-args", "-r", "x:=y"]) == []


@pytest.mark.ros
@pytest.mark.parametrize("flags", [(), (EXIT_ON_FAILURE,)])
def test_a_node_that_cannot_be_configured_waits_to_be_put_right_or_ends_as_it_is_told(world, flags: tuple[str, ...]) -> None:
    wrong = {"simulator": False, "time_limit": 0.0}
    process = world.start("controller", "bitvla_ros.nodes.controller", wrong, *flags)
    if flags:
        world.expected_dead.add("controller")
        world.wait(lambda: process.popen.poll() is not None, "end of the controller", 60.0)
        assert process.popen.returncode == EXIT_NOT_STARTED
    else:
        assert running(world, "controller", ["time_limit"]) == {"time_limit": 0.0}
    assert "configure failed: time_limit is 0" in process.log.read_text()
    world.stop("controller")
    world.expected_dead.clear()
