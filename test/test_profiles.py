"""Every profile against the nodes' parameters, the checks of the sinks, and the message definitions that are installed."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from bitvla_ros.nodes import control_parameters, policy, sinks
from bitvla_ros.nodes.control_parameters import control_config
from bitvla_ros.nodes.launching import REAL_ARM, real_arm_graph
from bitvla_ros.nodes.lifecycle import AUTOSTART
from bitvla_ros.nodes.parameters import Parameter
from bitvla_ros.profiles import Profile, ProfileError, load_profile
from bitvla_ros.share import share_folder

REPOSITORY = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (REPOSITORY / "config" / "profiles").glob("*.yaml"))
ARMS = [name for name in NAMES if name != "simulated_arm"]
TABLES = {"policy": (AUTOSTART, *policy.PARAMETERS), "controller": (AUTOSTART, *control_parameters.PARAMETERS, *sinks.PARAMETERS)}

# What each kind of sink and gripper speaks.
INTERFACES = {
    "pose": "geometry_msgs/msg/PoseStamped",
    "twist_stamped": "geometry_msgs/msg/TwistStamped",
    "twist": "geometry_msgs/msg/Twist",
    "float64": "std_msgs/msg/Float64",
    "gripper_command": "control_msgs/action/GripperCommand",
    "parallel_gripper": "control_msgs/action/ParallelGripperCommand",
}
SERVO = "moveit_msgs/srv/ServoCommandType"


def interfaces(profile: Profile) -> set[str]:
    given = profile.controller
    spoken = {INTERFACES[given["sink.kind"]], INTERFACES[given["gripper.kind"]]}
    return spoken | ({SERVO} if given.get("sink.servo_node") else set())


def parameters(profile: Profile, node: str) -> SimpleNamespace:
    """As the node reads them: the defaults, and the profile over them."""
    values = {p.name: p.default for p in TABLES[node]} | dict(getattr(profile, node))
    return SimpleNamespace(**{name.replace(".", "_"): tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def check(table: tuple[Parameter, ...], given: dict[str, object]) -> None:
    known = {parameter.name: parameter for parameter in table}
    for name, value in given.items():
        parameter = known[name]
        assert type(value) is (list if isinstance(parameter.default, tuple) else type(parameter.default)), name
        assert parameter.problem(tuple(value) if isinstance(value, list) else value) is None
        if parameter.minimum is not None:
            assert parameter.minimum <= value <= parameter.maximum, name


def test_the_promised_arms_are_there() -> None:
    assert set(NAMES) == {"fr3_crisp", "fr3_servo", "ur5e", "gen3", "xarm7", "simulated_arm"}
    assert share_folder("config") == REPOSITORY / "config"


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_says_only_what_the_nodes_understand(name: str) -> None:
    profile = load_profile(name)
    for node, table in TABLES.items():
        check(table, dict(getattr(profile, node)))
    control_config(parameters(profile, "controller"))
    sinks.check(parameters(profile, "controller"))
    heard = {"end_effector_pose", "joint_states", "success", "camera/scene/image_raw", "camera/wrist/image_raw"}
    assert {start for start, _ in profile.remappings} <= heard


@pytest.mark.parametrize("name", NAMES)
def test_policy_and_controller_see_the_arm_alike_and_in_the_frame_that_the_sink_wants(name: str) -> None:
    profile = load_profile(name)
    policy_, controller_ = parameters(profile, "policy"), parameters(profile, "controller")
    assert policy_.state_source == controller_.state_source
    assert bool(controller_.sink_frame) == (controller_.sink_kind != "twist")  # which names no frame
    if policy_.state_source == "tf":
        assert (policy_.base_frame, policy_.ee_frame) == (controller_.base_frame, controller_.ee_frame)
        assert controller_.sink_frame in ("", controller_.base_frame)
    else:
        assert name == "simulated_arm" or any(start == "end_effector_pose" for start, _ in profile.remappings)


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_starts_in_shadow_mode_slowly_and_inside_a_box_of_its_own(name: str) -> None:
    p = parameters(load_profile(name), "controller")
    assert p.mode == "shadow" and not p.simulator and p.time_limit > 0
    assert p.limits_speed <= 0.25  # m/s, ISO 10218-1's reduced speed
    assert p.limits_angular_speed <= 1.0 and p.limits_acceleration <= 2.0
    size = [high - low for low, high in zip(p.limits_workspace_min, p.limits_workspace_max, strict=True)]
    assert all(0.1 < edge <= 1.5 for edge in size) and p.limits_workspace_min[2] >= 0.0
    assert 50 <= p.sink_rate <= 250
    assert len(p.joints) == len(p.limits_joint_min) or p.limits_joint_min == (0.0,)


@pytest.mark.parametrize("name", NAMES)
def test_an_arm_without_a_time_out_is_not_accepted_in_advance(name: str) -> None:
    p = parameters(load_profile(name), "controller")
    assert not p.sink_accept_no_timeout, "whoever drives the arm accepts it, no file of ours"
    assert (p.sink_silence_timeout > 0) == (name not in ("fr3_crisp", "gen3"))


@pytest.mark.parametrize("name", NAMES)
def test_the_gripper_state_is_half_the_width_twice_with_opposite_signs(name: str) -> None:
    profile = load_profile(name)
    p, command = parameters(profile, "policy"), parameters(profile, "controller")
    if command.gripper_kind == "float64":
        return  # the simulated arm's fingers are the training data's
    for position, half in ((command.gripper_open, 0.04), (command.gripper_closed, 0.0)):
        fingers = [scale * position + offset for scale, offset in zip(p.gripper_scale, p.gripper_offset, strict=True)]
        assert fingers[0] == pytest.approx(-fingers[1], abs=1e-6)
        assert fingers[0] == pytest.approx(half, abs=0.003)
    assert len(p.gripper_joints) in (1, 2)


@pytest.mark.parametrize("interface", sorted({interface for name in NAMES for interface in interfaces(load_profile(name))}))
def test_an_interface_has_the_fields_that_are_written(interface: str) -> None:
    package, kind, name = interface.split("/")
    try:
        found = getattr(importlib.import_module(f"{package}.{kind}"), name)
    except ModuleNotFoundError:
        pytest.skip(f"untested: {interface} is not installed here")
    message = found.Goal() if kind == "action" else found.Request() if kind == "srv" else found()
    fields = set(message.get_fields_and_field_types())
    wanted = {
        "PoseStamped": {"header", "pose"},
        "TwistStamped": {"header", "twist"},
        "Twist": {"linear", "angular"},
        "Float64": {"data"},
        "GripperCommand": {"command"},
        "ParallelGripperCommand": {"command"},
        "ServoCommandType": {"command_type"},
    }
    assert wanted[name] <= fields


@pytest.mark.parametrize("name", NAMES)
def test_the_launch_file_starts_both_nodes_with_the_profile(name: str) -> None:
    given = {"profile": name, "model": "somewhere", "control_hz": "20"}
    nodes, profile = real_arm_graph(REAL_ARM, given), load_profile(name)
    assert [node.name for node in nodes] == ["controller", "policy"]
    for node in nodes:
        told = {key: yaml.safe_load(text) for key, text in node.parameters.items()}
        assert told.pop("use_sim_time") is False
        check(TABLES[node.name], told)
        said = getattr(profile, node.name)
        assert {key: told[key] for key in said} == said
        assert node.remappings == profile.remappings and node.enclave == ""
    assert nodes[1].parameters["control_hz"] == "20.0"
    simulated = real_arm_graph(REAL_ARM, {**given, "use_sim_time": "true"})
    assert all(node.parameters["use_sim_time"] == "true" for node in simulated)
    secured = real_arm_graph(REAL_ARM, {**given, "enclaves": "/bitvla"})
    assert [node.enclave for node in secured] == ["/bitvla/controller", "/bitvla/policy"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("/**/controller: {ros__parameters: {}}\n/**/gripper: {ros__parameters: {}}", "expected the sections"),
        ("- a list", "expected the sections"),
        ("/**/launch: {ros__parameters: {remappings: ['a=b']}}", "remappings"),
        ("/**/launch: {ros__parameters: {remapings: ['a:=b']}}", "remappings"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "arm.yaml"
    path.write_text(content)
    with pytest.raises(ProfileError, match=complaint):
        load_profile(str(path))


def test_a_profile_that_is_not_there_is_refused_with_what_is() -> None:
    with pytest.raises(ProfileError, match=r"ur5e.*did you mean 'fr3_crisp'"):
        load_profile("fr3_crips")
    with pytest.raises(ProfileError, match="there is no file"):
        load_profile("somewhere/arm.yaml")
    with pytest.raises(ProfileError, match="profile:=NAME"):
        real_arm_graph(REAL_ARM, {})


def test_a_profile_of_ones_own_is_a_file_with_nested_names_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    content = {"/**/controller": {"ros__parameters": {"sink": {"kind": "pose"}, "limits.speed": 0.1}}}
    path.write_text(yaml.safe_dump(content))
    profile = load_profile(str(path))
    assert profile.controller == {"sink.kind": "pose", "limits.speed": 0.1} and profile.policy == {} and profile.remappings == ()


def permissions(node: str) -> dict[str, set[str]]:
    """What config/sros2/real_arm.policy.xml allows a node: names by what may be done with them."""
    tree = ElementTree.parse(REPOSITORY / "config" / "sros2" / "real_arm.policy.xml")
    profile = tree.find(f"./enclaves/enclave/profiles/profile[@node='{node}'][@ns='/']")
    assert profile is not None
    allowed: dict[str, set[str]] = {}
    for group in profile:
        for what, word in group.attrib.items():
            assert word == "ALLOW"
            allowed.setdefault(f"{group.tag} {what}", set()).update(str(entry.text) for entry in group)
    return allowed


def opened(node: Any, name: str) -> dict[str, set[str]]:
    """The same of a node that runs."""
    found: dict[str, set[str]] = {}
    lists = {
        "topics publish": node.get_publisher_names_and_types_by_node,
        "topics subscribe": node.get_subscriber_names_and_types_by_node,
        "services reply": node.get_service_names_and_types_by_node,
        "services request": node.get_client_names_and_types_by_node,
    }
    for what, listed in lists.items():
        names = {entry for entry, _ in listed(name, "/")}
        found[what] = {entry for entry in names if "/_action/" not in entry}
        actions = {entry.partition("/_action/")[0] for entry in names if "/_action/" in entry}
        if what == "services reply":
            found["actions execute"] = actions
    return found


@pytest.mark.ros
def test_the_security_policy_allows_what_the_nodes_open_and_nothing_else(tmp_path: Path) -> None:
    from graph import TestGraph
    from robot import recording

    profile = load_profile("fr3_crisp")
    arguments = [
        "--ros-args",
        "--params-file",
        str(profile.path),
        *(part for rule in profile.remappings for part in ("-r", ":=".join(rule))),
    ]
    with TestGraph(tmp_path) as graph:
        graph.start("controller", "bitvla_ros.nodes.controller", {}, *arguments)
        given = {"policy": "replay", "model": str(recording(tmp_path / "recording.npz"))}
        graph.start("policy", "bitvla_ros.nodes.policy", given, *arguments)
        graph.wait(lambda: {"controller", "policy"} <= set(graph.node.get_node_names()), "both nodes")
        graph.wait(lambda: "/execute_instruction" in opened(graph.node, "controller")["actions execute"], "an active controller")
        chunks = "_policy_sender"
        graph.wait(lambda: chunks in graph.node.get_node_names(), "the policy's second participant")
        graph.wait(lambda: "/action_chunk" in opened(graph.node, chunks)["topics publish"], "an active policy")

        describes = "/test/get_type_description" in opened(graph.node, "test")["services reply"]  # Humble's nodes do not
        types = {name: set() if describes else {f"/{name}/get_type_description"} for name in ("controller", "policy")}
        unopened = {"topics publish": {"/target_pose", "/dry/target_pose", "/dry/target_gripper"}, "services reply": types["controller"]}
        unopened["actions call"] = {"/franka_gripper/gripper_action"}  # live and dry mode open these
        check_permissions(opened(graph.node, "controller"), permissions("controller"), unopened)
        cameras = {"/camera/scene/image_raw", "/camera/wrist/image_raw"}  # a recording has no need of them
        check_permissions(
            opened(graph.node, "policy"), permissions("policy"), {"topics subscribe": cameras, "services reply": types["policy"]}
        )
        loading = {"topics publish": {"/policy_loading"}}  # it loads no more
        check_permissions(opened(graph.node, chunks), permissions(chunks), loading)


def check_permissions(used: dict[str, set[str]], allowed: dict[str, set[str]], unopened: dict[str, set[str]]) -> None:
    for what in used.keys() | allowed.keys():
        assert used.get(what, set()) | unopened.get(what, set()) == allowed.get(what, set()), what
