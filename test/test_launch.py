"""The launch files, as far as they can be checked without `launch`, which only a ROS installation brings."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from bitvla_ros.nodes import controller, launching, policy, simulation
from bitvla_ros.nodes.launching import LIBERO, TABLETOP, simulation_graph
from bitvla_ros.nodes.lifecycle import AUTOSTART
from bitvla_ros.nodes.missing import MissingPackage
from bitvla_ros.nodes.parameters import Parameter

REPOSITORY = Path(__file__).resolve().parents[1]
TABLES: dict[str, tuple[Parameter, ...]] = {
    "simulation": (AUTOSTART, *simulation.PARAMETERS),
    "controller": (AUTOSTART, *controller.PARAMETERS),
    "policy": (AUTOSTART, *policy.PARAMETERS),
}
FILES = {"tabletop": TABLETOP, "libero_sim": LIBERO}


def defaults(arguments) -> dict[str, str]:
    return {argument.name: argument.default for argument in arguments}


def check(parameter: Parameter, value: object) -> None:
    assert type(value) is (list if isinstance(parameter.default, tuple) else type(parameter.default)), parameter.name
    assert parameter.problem(tuple(value) if isinstance(value, list) else value) is None
    if parameter.minimum is not None:
        assert parameter.minimum <= value <= parameter.maximum


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
def test_every_executable_file_and_parameter_that_is_named_exists(name: str, choice: dict) -> None:
    executables = (REPOSITORY / "CMakeLists.txt").read_text()
    nodes = simulation_graph({**defaults(FILES[name]), **choice}, f"{name}.yaml")
    assert [node.name for node in nodes] == ["simulation", "controller", "policy"]
    for node in nodes:
        assert re.search(rf"bitvla_executable\({node.executable} ", executables)
        for config in node.configs:
            assert (REPOSITORY / "config" / config).is_file()
        table = {parameter.name: parameter for parameter in TABLES[node.name]}
        for parameter, value in node.parameters.items():
            if parameter != "use_sim_time":
                check(table[parameter], value)


def test_lockstep_synchronises_the_inputs_and_realtime_does_not() -> None:
    for mode in ("lockstep", "realtime"):
        simulation_, controller, policy_ = simulation_graph({**defaults(TABLETOP), "mode": mode}, "tabletop.yaml")
        assert simulation_.parameters["mode"] == mode
        assert policy_.parameters["synchronised"] == policy_.parameters["use_sim_time"] == (mode == "lockstep")
        assert controller.parameters["use_sim_time"] == (mode == "lockstep")


def test_random_weights_are_told_nothing_of_a_dataset() -> None:
    policy_ = simulation_graph({**defaults(LIBERO), "model": "random:nano"}, "libero_sim.yaml")[2].parameters
    assert not {"jpeg", "norm_key", "control_hz"} & set(policy_)
    policy_ = simulation_graph({**defaults(LIBERO), "model": "somewhere"}, "libero_sim.yaml")[2].parameters
    assert policy_["jpeg"] and policy_["control_hz"] == 20.0


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


@pytest.mark.ros
def test_a_node_takes_its_files_in_the_order_of_the_launch_file(tmp_path: Path) -> None:
    from graph import TestGraph
    from rcl_interfaces.srv import GetParameters

    spec = simulation_graph(defaults(TABLETOP), "tabletop.yaml")[1]
    files = [argument for config in spec.configs for argument in ("--params-file", str(REPOSITORY / "config" / config))]
    with TestGraph(tmp_path) as graph:
        graph.start("controller", "bitvla_ros.nodes.controller", spec.parameters, "--ros-args", *files)
        names = ["limits.workspace_max", "use_sim_time", "limits.speed"]
        found = graph.call(GetParameters, "controller/get_parameters", GetParameters.Request(names=names)).values
        assert list(found[0].double_array_value) == [1.0, 1.0, 1.5]
        assert found[1].bool_value and found[2].double_value == 0.5
