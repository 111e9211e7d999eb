"""Checks of what moves the arm: does it listen, does anybody else command it, and does it stop when nobody does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..sinks.parameters import ACCEPTANCE, SIMULATOR
from .facts import Endpoint, Expected, Finding, Graph, Level, Outlet

CONTROLLER = "controller"
LONG_SILENCE = 0.5  # s
_TYPES = {
    SIMULATOR: "bitvla_ros/msg/EndEffectorCommand",
    "pose": "geometry_msgs/msg/PoseStamped",
    "twist_stamped": "geometry_msgs/msg/TwistStamped",
    "twist": "geometry_msgs/msg/Twist",
}


def outlets(expected: Expected) -> tuple[tuple[str, str, str, bool], ...]:
    """Name, topic before remapping, type, and whether it is latched, of what the controller commands on in live mode."""
    controller = expected.controller
    kind = controller["sink.kind"]
    if kind == SIMULATOR:
        return (("sink", "end_effector_command", _TYPES[kind], False),)
    topic = controller["sink.topic"] or ("target_pose" if kind == "pose" else "target_twist")
    gripper = (("gripper", controller["gripper.topic"], "std_msgs/msg/Float64", True),) if controller["gripper.kind"] == "float64" else ()
    return (("sink", topic, _TYPES[kind], False), *gripper)


def check_sink(graph: Graph, expected: Expected) -> Iterator[Finding]:
    """What only live mode needs is a warning in the others, in which somebody else may well drive the arm."""
    live = expected.controller["sink.kind"] == SIMULATOR or expected.controller["mode"] == "live"
    findings = [*_outlets(graph), *_silence(expected)]
    for finding in findings:
        yield finding if live or finding.level != "fail" else replace(finding, level="warn", found=f"{finding.found} (counts in live mode)")
    yield from _frame(graph, expected)
    if len(graph.policies) > 1:
        found = f"{len(graph.policies)} publishers of action_chunk: {', '.join(endpoint.node for endpoint in graph.policies)}"
        yield Finding("policy nodes", "fail", found, "stop all but one")


def _outlets(graph: Graph) -> Iterator[Finding]:
    for outlet in graph.outlets:
        yield _listener(outlet)
        yield _alone(outlet)
    if graph.missing_server:
        yield Finding("sink: server", "fail", graph.missing_server, "start it, or correct the profile's name of it")


def check_health(graph: Graph) -> Iterator[Finding]:
    """What our running nodes say of themselves."""
    for name, (level, message) in sorted(graph.health.items()):
        worst: Level = "ok" if level == 0 else "warn" if level == 1 else "fail"
        yield Finding(f"node {name}", worst, message, "" if worst == "ok" else "see its log and ros2 topic echo /diagnostics")


def _listener(outlet: Outlet) -> Finding:
    name = f"{outlet.name}: listener"
    fitting = [endpoint for endpoint in outlet.subscriptions if endpoint.type == outlet.type]
    if not fitting:
        other = ", ".join(f"{endpoint.node} ({endpoint.type})" for endpoint in outlet.subscriptions)
        found = f"nobody listens to {outlet.topic} ({outlet.type})" + (f"; there is {other}" if other else "")
        return Finding(name, "fail", found, "start and activate the arm's controller (or the simulator), or correct the profile's sink")
    unfit = [endpoint for endpoint in fitting if endpoint.mismatch]
    if unfit:
        found = "; ".join(f"{endpoint.node} asks for {endpoint.qos}: {endpoint.mismatch}" for endpoint in unfit)
        return Finding(name, "fail", found, "set the QoS of the arm's controller: ours is reliable and volatile (a gripper's: latched)")
    return Finding(name, "ok", f"{', '.join(endpoint.node for endpoint in fitting)} listens to {outlet.topic}")


def _alone(outlet: Outlet) -> Finding:
    """A second publisher fights with ours, and some arms (crisp_controllers) then listen to neither."""
    name = f"{outlet.name}: publishers"
    others = [endpoint for endpoint in outlet.publishers if not _is_ours(endpoint)]
    ours = len(outlet.publishers) - len(others)
    if others or ours > 1:
        nodes = ", ".join(endpoint.node for endpoint in outlet.publishers)
        return Finding(
            name,
            "fail",
            f"{outlet.topic} has {len(outlet.publishers)}: {nodes}",
            "only our controller may command the arm: stop the others",
        )
    return Finding(name, "ok", f"{outlet.topic} has {outlet.publishers[0].node if ours else 'none yet'}")


def _is_ours(endpoint: Endpoint) -> bool:
    return endpoint.node.rpartition("/")[2] == CONTROLLER


def _silence(expected: Expected) -> Iterator[Finding]:
    name, controller = "sink: silence", expected.controller
    if controller["sink.kind"] == SIMULATOR:
        yield Finding(name, "ok", "the simulator holds where no command comes")
        return
    timeout, rate = float(controller["sink.silence_timeout"]), float(controller["sink.rate"])
    found = f"the arm stops {timeout * 1e3:.0f} ms after the last setpoint; they come every {1e3 / rate:.0f} ms"
    if timeout == 0:
        found = "the arm does not stop by itself when setpoints cease"
        if controller["sink.accept_no_timeout"] == ACCEPTANCE:
            yield Finding(name, "warn", f"{found}, and the profile accepts that", "keep a hand on the emergency stop")
        else:
            remedy = f"set the time-out of the arm's own controller and sink.silence_timeout, or sink.accept_no_timeout: '{ACCEPTANCE}'"
            yield Finding(name, "fail", f"{found}: live mode is refused", remedy)
    elif timeout < 2 / rate:
        yield Finding(name, "fail", found, "one late setpoint would stop it: raise sink.rate or the time-out of the arm's own controller")
    elif timeout > LONG_SILENCE:
        yield Finding(name, "warn", found, "shorten the time-out of the arm's own controller: so long does it move on unguided")
    else:
        yield Finding(name, "ok", found)


def _frame(graph: Graph, expected: Expected) -> Iterator[Finding]:
    frame = expected.controller["sink.frame"]
    measured = expected.controller["base_frame"] if expected.controller["state_source"] == "tf" else None
    if measured is None and graph.poses:
        measured = graph.poses[-1].frame
    if not frame or measured is None:
        return
    if frame != measured:
        found = f"the pose is measured in {measured!r}, the arm takes targets in {frame!r}"
        remedy = "let both be one frame: with state_source: tf, set base_frame to the arm's"
        yield Finding("sink: frame", "fail", found, remedy)
    else:
        yield Finding("sink: frame", "ok", f"pose and targets are in {frame!r}")
