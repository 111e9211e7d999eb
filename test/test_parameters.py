"""A node's parameters: what is declared, and that a wrong one is refused in configure with the remedy."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

rclpy = pytest.importorskip("rclpy", reason="no rclpy: install with '.[ros]' or source a ROS installation")

from rclpy.context import Context  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter as RosParameter  # noqa: E402

from bitvla_ros.nodes.parameters import Parameter, ParameterError, Parameters  # noqa: E402
from bitvla_ros.nodes.processes import isolation, reserve_domain  # noqa: E402

TABLE = (
    Parameter("rate", 20.0, "Control rate", unit="Hz", minimum=1, maximum=100),
    Parameter("threads", 2, "Threads of the network", minimum=1, maximum=64),
    Parameter("mode", "pose", "Source of the state", choices=("pose", "tf")),
    Parameter("cameras", ("scene", "wrist"), "Roles"),
    Parameter("limits.speed", 0.25, "Cap", unit="m/s", minimum=0, maximum=1),
)


@pytest.fixture
def make(monkeypatch):
    domain, lock = reserve_domain()
    for name, value in isolation(domain).items():
        monkeypatch.setenv(name, value)
    context = Context()
    rclpy.init(context=context, domain_id=domain)
    nodes = []

    def _make(**overrides) -> tuple[Node, Parameters]:
        values = [RosParameter(name.replace("__", "."), value=value) for name, value in overrides.items()]
        node = Node(f"parameters_{len(nodes)}", context=context, parameter_overrides=values)
        nodes.append(node)
        return node, Parameters(node, TABLE)

    yield _make
    for node in nodes:
        node.destroy_node()
    context.try_shutdown()
    lock.close()


def test_defaults_and_overrides_are_read(make) -> None:
    _, parameters = make(rate=10.0, cameras=["front"])
    expected = SimpleNamespace(rate=10.0, threads=2, mode="pose", cameras=("front",), limits_speed=0.25)
    assert parameters.read() == expected


def test_descriptor_states_range_unit_and_description(make) -> None:
    node, _ = make()
    descriptor = node.describe_parameter("rate")
    assert descriptor.description == "Control rate [Hz]"
    assert (descriptor.floating_point_range[0].from_value, descriptor.floating_point_range[0].to_value) == (1.0, 100.0)
    assert node.describe_parameter("threads").integer_range[0].to_value == 64
    assert "'pose', 'tf'" in node.describe_parameter("mode").additional_constraints


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        ({"rate": 500.0}, "rate is 500.0: give number with a decimal point from 1 to 100, Hz"),
        ({"rate": 20}, r"rate is 20: .*\(write 20.0\)"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"threads": 0}, "threads is 0: give whole number from 1 to 64"),
        ({"mode": "pos"}, "mode is 'pos': give one of 'pose', 'tf'; did you mean 'pose'"),
        ({"cameras": "scene"}, "cameras is 'scene': give array of text"),
        ({"limits__sped": 0.1}, "there is no parameter 'limits.sped'; did you mean 'limits.speed'"),
    ],
)
def test_wrong_value_is_refused_with_the_remedy(make, overrides, remedy) -> None:
    _, parameters = make(**overrides)
    with pytest.raises(ParameterError, match=remedy):
        parameters.read()


def test_every_wrong_parameter_is_named_at_once(make) -> None:
    _, parameters = make(rate=0.0, mode="x", unknown=1)
    with pytest.raises(ParameterError, match=r"(?s)(?=.*rate)(?=.*mode)(?=.*unknown)"):
        parameters.read()


def test_wrong_value_can_be_put_right_and_a_wrong_change_is_refused(make) -> None:
    node, parameters = make(rate=500.0)
    refused = node.set_parameters([RosParameter("mode", value="ft")])[0]
    assert not refused.successful and "give one of" in refused.reason
    assert not node.set_parameters([RosParameter("rate", value=0.5)])[0].successful
    with pytest.raises(ParameterError):
        parameters.read()
    assert node.set_parameters([RosParameter("rate", value=50.0)])[0].successful
    assert parameters.read().rate == 50.0
