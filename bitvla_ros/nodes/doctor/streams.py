"""Checks of every topic that policy and controller read: is it there, of the right type and QoS, often enough, well stamped."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..sinks.parameters import SIMULATOR
from .facts import Expected, Finding, Graph, Level, Stream, Wanted

MS = 1_000_000
REMAP = "remap it: --remap {}:=/THE/TOPIC here, the same in the launch file"


def wanted(expected: Expected) -> tuple[Wanted, ...]:
    """The topics that policy and controller read, cameras first."""
    policy = expected.policy
    compressed = policy["camera_transport"] == "compressed"
    kind, suffix = ("sensor_msgs/msg/CompressedImage", "/compressed") if compressed else ("sensor_msgs/msg/Image", "")
    topics = [Wanted(f"camera {role}", f"camera/{role}/image_raw", kind, role, suffix=suffix) for role in expected.cameras]
    topics.append(Wanted("joint_states", "joint_states", "sensor_msgs/msg/JointState"))
    if "pose" in (policy["state_source"], expected.controller["state_source"]):
        topics.append(Wanted("end_effector_pose", "end_effector_pose", "geometry_msgs/msg/PoseStamped"))
    if expected.simulator:
        topics.append(Wanted("simulation_state", "simulation_state", "bitvla_ros/msg/SimulationState", latched=True))
    return tuple(topics)


def check_graph(graph: Graph) -> Iterator[Finding]:
    where = f"ROS domain {graph.domain}" + (f", discovery {graph.discovery}" if graph.discovery else "")
    if not graph.nodes:
        remedy = (
            "start the drivers first; if they run, give all of them the same ROS_DOMAIN_ID, RMW_IMPLEMENTATION and discovery range "
            "(ROS_AUTOMATIC_DISCOVERY_RANGE; on Humble ROS_LOCALHOST_ONLY), and let multicast through between machines"
        )
        yield Finding("graph", "fail", f"no other node in {where}", remedy)
        return
    yield Finding("graph", "ok", f"{_count(len(graph.nodes), 'node')} in {where}")
    if graph.lockstep:
        yield Finding("clock", "ok", "a simulator in lockstep sets the time")
    elif graph.clock and not graph.clock_runs:
        yield Finding("clock", "fail", "/clock has a publisher and says nothing", "let the bag or simulator play, or stop it")
    elif graph.clock > 1:
        yield Finding("clock", "fail", f"{graph.clock} publishers of /clock: time will jump back and forth", "stop all but one")
    elif graph.clock:
        yield Finding("clock", "ok", "simulated time on /clock: every node needs use_sim_time:=true")
    else:
        yield Finding("clock", "ok", "system time")


def check_stream(stream: Stream, graph: Graph, expected: Expected) -> Iterator[Finding]:
    """The lines of one topic; later ones only where the earlier leave something to look at."""
    yield _topic(stream)
    fitting = [endpoint for endpoint in stream.publishers if endpoint.type == stream.type]
    if not fitting:
        return
    yield _qos(stream)
    yield _rate(stream, graph, expected)
    if stream.arrivals:
        yield _stamps(stream, graph, expected)


def check_clocks(graph: Graph, expected: Expected) -> Iterator[Finding]:
    """Offset of the clocks that stamp: the quickest message of each stream cannot be older than its journey, nor younger than now."""
    fastest = {stream.name: int(stream.ages.min()) for stream in graph.streams.values() if len(stream.arrivals) > 1}
    if graph.lockstep or not fastest:
        return
    name = "clock offsets"
    seen = "age of the quickest message: " + ", ".join(f"{stream} {age / MS:.1f} ms" for stream, age in fastest.items())
    remedy = (
        "where another machine stamps, synchronise the clocks: `chronyc tracking` on both (offsets below 1 ms), or PTP (ptp4l, phc2sys) "
        "for network cameras; else let the driver stamp at capture"
    )
    limit = float(expected.policy["max_future"])
    ahead = [stream for stream, age in fastest.items() if age < -2 * MS]
    behind = [stream for stream, age in fastest.items() if age > limit * 1e9]
    if ahead:
        yield Finding(name, "warn", f"{_and(ahead)} ahead of this machine's clock; {seen}", remedy)
    elif behind:
        yield Finding(
            name, "warn", f"{_and(behind)} never younger than {limit * 1e3:.0f} ms: slow, or a clock that is behind; {seen}", remedy
        )
    else:
        yield Finding(name, "ok", seen)


def check_skew(graph: Graph, expected: Expected) -> Iterator[Finding]:
    """Inputs of one observation must have been captured close together."""
    ages = {stream.name: float(np.median(stream.ages)) / 1e9 for stream in graph.streams.values() if len(stream.arrivals) > 1}
    if graph.lockstep or len(ages) < 2:
        return
    oldest, newest = max(ages, key=ages.__getitem__), min(ages, key=ages.__getitem__)
    skew, limit = ages[oldest] - ages[newest], float(expected.policy["max_skew"])
    found = f"{oldest} is {skew * 1e3:.0f} ms behind {newest}; {limit * 1e3:.0f} ms are allowed"
    if skew > limit:
        yield Finding("skew", "fail", found, f"make {oldest} quicker, synchronise the clocks, or raise the policy's max_skew knowingly")
    else:
        yield Finding("skew", "ok", found)


def check_gate(graph: Graph) -> Iterator[Finding]:
    """The policy node's own inputs and gate, run on what came."""
    gated = graph.gated
    if gated is None or not all(stream.arrivals for stream in graph.streams.values()):
        return
    refused = sum(gated.refused.values())
    total = gated.accepted + refused
    if not total:
        remedy = gated.messages.get("missing_stream") or "look at the lines above, or listen longer (--seconds)"
        yield Finding("gate", "fail", "no observation was whole", remedy)
        return
    found = f"{gated.accepted} of {total} observations would be acted upon"
    if not refused:
        yield Finding("gate", "ok", found)
        return
    reasons = ", ".join(f"{reason} {count}" for reason, count in gated.refused.most_common())
    worst = gated.messages[gated.refused.most_common(1)[0][0]]
    level: Level = "fail" if not gated.accepted else "warn" if refused > 0.05 * total else "ok"
    yield Finding("gate", level, f"{found}; refused: {reasons}", "" if level == "ok" else worst)


def _topic(stream: Stream) -> Finding:
    name, endpoints = f"{stream.name}: topic", stream.publishers
    if not endpoints:
        others = f"; of this type there are {', '.join(stream.alike)}" if stream.alike else ""
        remedy = "start its driver"
        if stream.name == "simulation_state":
            remedy = "start simulation_node, or give the arm's --profile where it is a real one"
        elif stream.alike:
            remedy += f", or {REMAP.format(stream.asked)}"
            if stream.type.endswith("/CompressedImage"):
                remedy += " (without /compressed, which is appended)"
        return Finding(name, "fail", f"nobody publishes {stream.topic} ({stream.type}){others}", remedy)
    wrong = [endpoint for endpoint in endpoints if endpoint.type != stream.type]
    if wrong:
        return Finding(
            name,
            "fail",
            f"{_and([e.node for e in wrong])} publishes {wrong[0].type} on {stream.topic}; expected {stream.type}",
            "remap to the right topic (camera_transport: compressed reads .../compressed)",
        )
    nodes = _and([endpoint.node for endpoint in endpoints])
    if len(endpoints) > 1 and stream.name != "joint_states":  # an arm and its gripper may share joint_states
        return Finding(
            name, "fail", f"{len(endpoints)} publishers on {stream.topic}: {nodes}", "stop all but one: they contradict each other"
        )
    return Finding(name, "ok", f"{stream.topic} from {nodes}")


def _qos(stream: Stream) -> Finding:
    name = f"{stream.name}: QoS"
    unfit = [endpoint for endpoint in stream.publishers if endpoint.mismatch]
    if not unfit:
        return Finding(name, "ok", "; ".join(sorted({endpoint.qos for endpoint in stream.publishers})))
    found = "; ".join(f"{endpoint.node} offers {endpoint.qos}, and we cannot listen: {endpoint.mismatch}" for endpoint in unfit)
    remedy = (
        "let the publisher offer reliable and transient local, or set synchronised: false (only a simulator in lockstep needs it)"
        if stream.name != "simulation_state"
        else "only our simulation node publishes this: is it an old build?"
    )
    return Finding(name, "fail", found, remedy)


def _rate(stream: Stream, graph: Graph, expected: Expected) -> Finding:
    name, arrivals = f"{stream.name}: rate", stream.arrivals
    seconds = (graph.ended - graph.began) / 1e9
    if not arrivals:
        big = "; if it does, images are lost on their way: see transports" if stream.name.startswith("camera") else ""
        return Finding(name, "fail", f"nothing came in {seconds:.1f} s", f"does its driver run (ros2 topic hz {stream.topic})?{big}")
    if graph.lockstep:
        return Finding(name, "ok", f"{_count(len(arrivals), 'message')} in lockstep: a tick waits for its command")
    needed, best = _needed(stream, expected)
    if len(arrivals) == 1:
        return Finding(
            name, "fail", f"one message in {seconds:.1f} s; at least {needed:.0f} Hz are needed", "let its driver publish steadily"
        )
    steady = np.array([arrival.steady for arrival in arrivals], np.int64)
    rate = (len(steady) - 1) / max((steady[-1] - steady[0]) / 1e9, 1e-9)
    silence = float(max(np.diff(steady).max(), graph.ended - steady[-1])) / 1e9
    found = f"{rate:.1f} Hz, longest gap {silence * 1e3:.0f} ms; {best:.0f} Hz are needed"
    faster = "raise its driver's rate; where the driver is faster than this, messages are lost on their way: see transports"
    if rate < needed:
        return Finding(name, "fail", found, faster)
    if rate < 0.9 * best:
        return Finding(name, "warn", found, faster)
    if silence > float(expected.policy["max_age"]):
        return Finding(name, "warn", found, "gaps longer than max_age make the policy refuse: look for a busy processor or network")
    return Finding(name, "ok", found)


def _needed(stream: Stream, expected: Expected) -> tuple[float, float]:
    """Rates, Hz: without the first the gate refuses; without the second it does so now and then, or the controller steers half blind."""
    least = 1.0 / min(float(expected.policy["max_age"]), float(expected.policy["max_skew"]))
    if stream.name == "end_effector_pose":  # the controller leads no arm that it has not seen for so long
        least = max(least, 1.0 / expected.unseen)
        return least, max(1.2 * least, float(expected.controller["control_hz"]))
    return least, 1.2 * least


def _stamps(stream: Stream, graph: Graph, expected: Expected) -> Finding:
    name, stamps, ages = f"{stream.name}: stamps", stream.stamps, stream.ages / 1e9
    limits = {key: float(expected.policy[key]) for key in ("max_age", "max_future", "max_skew")}
    if (stamps <= 0).any():
        remedy = "the driver must fill header.stamp with the time of capture (ROS time)"
        return Finding(name, "fail", f"{int((stamps <= 0).sum())} of {len(stamps)} are zero", remedy)
    if stream.contradictions:
        names, nodes = _and(sorted(set(stream.contradictions))), _and([endpoint.node for endpoint in stream.publishers])
        found = f"{_count(len(stream.contradictions), 'time')} two values of {names} at one stamp; {stream.topic} has publishers in {nodes}"
        return Finding(name, "fail", found, "stop all but one, or remap what is not the arm's to a topic of its own")
    steps = np.diff(stamps)
    if (steps < 0).any():
        found = f"{_count(int((steps < 0).sum()), 'stamp')} went back, by up to {-steps.min() / MS:.0f} ms"
        return Finding(name, "fail", found, "is there a second publisher, a bag in a loop, or a clock that is stepped?")
    if len(stamps) > 2 and not steps.any():
        return Finding(name, "fail", f"{len(stamps)} messages bear the same stamp", "the driver must stamp each at its capture")
    if graph.lockstep:
        apart = abs(int(stamps[-1]) - graph.tick) / 1e9
        if graph.tick and apart > limits["max_skew"]:
            remedy = "everything of a tick bears its stamp: does another simulator or driver publish this?"
            return Finding(name, "fail", f"{apart * 1e3:.0f} ms from the simulator's newest tick", remedy)
        return Finding(name, "ok", "of the simulator's tick")
    found = f"age {np.median(ages) * 1e3:.0f} ms, at most {ages.max() * 1e3:.0f} ms"
    if ages.min() < -limits["max_future"]:
        return Finding(
            name,
            "fail",
            f"up to {-ages.min() * 1e3:.0f} ms ahead of this machine's clock; {limits['max_future'] * 1e3:.0f} ms are allowed",
            "synchronise the clocks (chrony, PTP), and let all nodes agree on use_sim_time",
        )
    if stream.name == "end_effector_pose" and expected.controller["sink.kind"] != SIMULATOR:  # by which the controller leads an arm
        limits["max_age"] = min(limits["max_age"], expected.unseen)
    if np.median(ages) > limits["max_age"]:
        remedy = "is its driver or transport slow, its clock behind, or does it stamp in another time (device time, uptime)?"
        return Finding(name, "fail", f"{found}; {limits['max_age'] * 1e3:.0f} ms are allowed", remedy)
    if ages.max() > limits["max_age"]:
        return Finding(name, "warn", f"{found}; {limits['max_age'] * 1e3:.0f} ms are allowed", "look for a busy processor or network")
    return Finding(name, "ok", found)


def _and(names: list[str]) -> str:
    return " and ".join(dict.fromkeys(names))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
