"""The one node of the doctor: it listens for some seconds, asks the graph who is there, and fills in the facts."""

from __future__ import annotations

import importlib.util
import os
import threading
import time
import zlib
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image, JointState

from bitvla_ros.msg import SimulationState
from bitvla_ros.policy.gate import Gate, GateConfig, Reason, Refused
from bitvla_ros.policy.policy import PolicySpec

from ..conversions import pose_from_msg, stamp_to_ns
from ..frames import Frames, NoTransform, TfFrames
from ..inputs import Inputs, suffixed
from ..log_folder import log_arguments
from ..missing import MissingPackage
from ..node_names import full_name
from ..processes import discovery_range
from ..qos import CHUNK, COMMAND, LATCHED, SENSOR, state_qos
from ..schedule import Schedule
from .facts import Arrival, Camera, Expected, Gated, Graph, Outlet, Pose, Stream, Wanted
from .reading import describe, endpoint, is_latched, numbers_of, reports_liveliness
from .sink import outlets
from .streams import wanted

DISCOVERY = 5.0  # s that what is wanted may take to show up before the listening begins: a busy machine needs more than two
POLL = 0.05  # s between two looks at the graph, and at an observation
OURS = ("policy", "controller", "simulation")
_KINDS = {
    "sensor_msgs/msg/Image": Image,
    "sensor_msgs/msg/CompressedImage": CompressedImage,
    "sensor_msgs/msg/JointState": JointState,
    "geometry_msgs/msg/PoseStamped": PoseStamped,
    "bitvla_ros/msg/SimulationState": SimulationState,
}


class GraphError(ValueError):
    """The graph cannot be joined as asked, e.g. because of a malformed remapping."""


def gather(expected: Expected, seconds: float, remaps: Sequence[str] = ()) -> tuple[Graph, str, bool]:
    """Listen for `seconds`, after at most DISCOVERY. remaps: FROM:=TO. Returns the graph, the RMW's name, and whether it reports
    liveliness. Raises GraphError."""
    context = rclpy.Context()
    arguments = ["--ros-args", *(part for remap in remaps for part in ("-r", remap))] if remaps else []
    try:
        rclpy.init(args=[*arguments, *log_arguments()], context=context, signal_handler_options=SignalHandlerOptions.NO)
        node = Node("bitvla_doctor", context=context)
    except Exception as error:  # rcl tells a malformed remapping in an error of no class of its own
        raise GraphError(f"cannot join the graph: {error}") from error
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    spinning = threading.Thread(target=executor.spin, name="executor")
    listener = Listener(node, expected)
    spinning.start()
    try:
        listener.listen(seconds)
        return listener.graph, rclpy.get_rmw_implementation_identifier(), reports_liveliness(node)
    finally:
        executor.shutdown(timeout_sec=1.0)
        spinning.join()
        listener.close()
        node.destroy_node()
        context.try_shutdown()


class Listener:
    """Subscribes to what is wanted as it shows up, and keeps what the checks need of it."""

    def __init__(self, node: Node, expected: Expected) -> None:
        self.graph = Graph(
            domain=os.environ.get("ROS_DOMAIN_ID", "0"),
            discovery=discovery_range(os.environ),
        )
        self._node, self._expected = node, expected
        self._wanted = {item.name: item for item in wanted(expected)}
        for item in self._wanted.values():
            topic = node.resolve_topic_name(suffixed(node, item.topic, item.suffix))
            self.graph.streams[item.name] = Stream(item.name, item.topic, topic, item.type)
            if item.role:
                self.graph.cameras[item.role] = Camera(item.role)
        self._pictures: dict[str, Any] = {}  # the last message of each role
        self._said: dict[tuple[str, str], tuple[int, Any]] = {}  # of a stream's joint or pose, the newest stamp and value
        self._heard: set[str] = set()  # streams that are subscribed to
        self._simulated_time = False
        self._frames: Frames | None = None
        self._inputs: Inputs | None = None
        self._seen = -1  # stamp of the newest observation that the gate was asked about
        node.create_subscription(DiagnosticArray, "/diagnostics", self._take_health, 10)
        if expected.transforms:
            self.graph.tf_problem = "no transform of {1} in {0} came".format(*expected.transforms[0])
            try:
                self._frames = TfFrames(node)
            except MissingPackage as error:
                self.graph.tf_problem = str(error)

    def listen(self, seconds: float) -> None:
        graph = self.graph
        deadline = time.monotonic() + DISCOVERY
        while time.monotonic() < deadline and not self._complete():
            self._subscribe()
            time.sleep(POLL)
        self._choose_time()
        self._open_inputs()
        graph.began = time.monotonic_ns()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._subscribe()
            time.sleep(POLL)
            self._look_up()
            self._ask_gate()
        graph.ended = time.monotonic_ns()
        self._finish()

    def close(self) -> None:
        if self._inputs is not None:
            self._inputs.close()  # and the frames
        elif self._frames is not None:
            self._frames.close()

    # What is there

    def _complete(self) -> bool:
        """All that is wanted is subscribed to, and where a simulator is among it, it has said how it keeps time."""
        return len(self._heard) == len(self._wanted) and (not self._expected.simulator or self.graph.tick > 0)

    def _subscribe(self) -> None:
        """Listen to whatever has a publisher of the right type: as it offers, so that everything is heard. What our own nodes would ask
        for is compared apart from this."""
        for name, stream in self.graph.streams.items():
            offers = [info.qos_profile for info in self._publishers(stream.topic) if info.topic_type == stream.type]
            if name in self._heard or not offers:
                continue
            latched = all(is_latched(offer) for offer in offers)
            callback = partial(self._take, self._wanted[name], stream)
            topic = suffixed(self._node, stream.asked, self._wanted[name].suffix)
            self._node.create_subscription(_KINDS[stream.type], topic, callback, LATCHED if latched else SENSOR)
            self._heard.add(name)

    def _publishers(self, topic: str) -> list[Any]:
        return [info for info in self._node.get_publishers_info_by_topic(topic) if not self._own(info)]

    def _own(self, info: Any) -> bool:
        return bool((info.node_namespace, info.node_name) == (self._node.get_namespace(), self._node.get_name()))

    def _choose_time(self) -> None:
        """Simulated time where somebody publishes it; a simulator in lockstep needs none, its ticks say all."""
        self.graph.clock = self._node.count_publishers("/clock")
        if self.graph.clock and not self.graph.lockstep:
            self._simulated_time = True
            self._node.set_parameters([Parameter("use_sim_time", value=True)])
            for stream in self.graph.streams.values():
                stream.arrivals.clear()

    def _open_inputs(self) -> None:
        """The policy node's own inputs, with its own QoS, and its gate."""
        policy = dict(self._expected.policy)
        if policy["state_source"] == "tf" and self._frames is None:
            return
        policy["synchronised"] = self._synchronised
        p = SimpleNamespace(**{name.replace(".", "_"): value for name, value in policy.items()})
        spec = PolicySpec("doctor", self._expected.cameras, 1, float(self._expected.controller["control_hz"]), False, "")
        frames = self._frames if policy["state_source"] == "tf" else None
        self.graph.gated = Gated()
        self._inputs = Inputs(self._node, p, spec, frames, lambda: None, self._refuse)
        limits = {name: round(float(policy[name]) * 1e9) for name in ("max_age", "max_future", "max_skew")}
        shape = (int(policy["image_height"]), int(policy["image_width"]))
        self._gate = Gate(GateConfig(spec.cameras, image_shape=shape if all(shape) else None, **limits))
        self._schedule = Schedule("look", lockstep=self.graph.lockstep)

    @property
    def _synchronised(self) -> bool:
        """As the launch files set it: inputs are latched where a simulator runs in lockstep."""
        return bool(self._expected.policy["synchronised"]) or self.graph.lockstep

    # What comes

    def _take(self, item: Wanted, stream: Stream, message: Any) -> None:
        steady, received, stamp = time.monotonic_ns(), self._node.get_clock().now().nanoseconds, stamp_to_ns(message.header.stamp)
        if self._simulated_time and not received:
            return  # /clock has said nothing yet
        stream.arrivals.append(Arrival(stamp, received, steady))
        for what, value in numbers_of(message).items():
            before = self._said.get((item.name, what))
            if before is not None and before[0] == stamp and before[1] != value:
                stream.contradictions.append(what)
            self._said[item.name, what] = stamp, value
        if item.role:
            self._pictures[item.role] = message
            self.graph.cameras[item.role].digests.append((stamp, zlib.crc32(message.data)))
        elif isinstance(message, PoseStamped):
            self.graph.poses.append(Pose(stamp, *pose_from_msg(message), message.header.frame_id))
        elif isinstance(message, JointState):
            self.graph.joints.update(zip(message.name, message.position, strict=False))
        elif isinstance(message, SimulationState):
            self.graph.tick, self.graph.lockstep = stamp, message.lockstep

    def _take_health(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.rpartition("/")[2] in OURS:
                self.graph.health[status.name] = (ord(status.level), status.message)

    def _look_up(self) -> None:
        """The pose of the end effector, by TF."""
        if self._frames is None:
            return
        base, end = self._expected.transforms[0]
        try:
            found = self._frames.newest(base, end)
        except NoTransform as error:
            self.graph.tf_problem = str(error)
            return
        self.graph.tf_problem = ""
        self.graph.tf_ages.append(self._node.get_clock().now().nanoseconds - found.stamp)
        if "end_effector_pose" not in self._wanted:
            self.graph.poses.append(Pose(found.stamp, found.position, found.orientation, base))

    def _ask_gate(self) -> None:
        if self._inputs is None:
            return
        try:
            observation = self._inputs.observe(self._schedule)
        except Refused as refusal:
            self._refuse(refusal)
            return
        if observation is None or observation.stamp == self._seen:
            return
        self._seen = observation.stamp
        now = observation.stamp if self._schedule.lockstep else self._node.get_clock().now().nanoseconds
        try:
            self._gate.check(Inputs.decode(observation), now)
        except Refused as refusal:
            self._refuse(refusal)
            if max(observation.stamps.values()) - now > self._gate.config.max_future:
                self._inputs.clear()  # as the policy node does
            return
        assert self.graph.gated is not None
        self.graph.gated.accepted += 1

    def _refuse(self, error: Exception) -> None:
        gated = self.graph.gated
        assert gated is not None
        if isinstance(error, Refused):
            gated.messages[error.reason.value] = str(error)
            if error.reason is not Reason.MISSING_STREAM:  # until everything has come once
                gated.refused[error.reason.value] += 1

    # At the end

    def _finish(self) -> None:
        graph, node = self.graph, self._node
        names = node.get_node_names_and_namespaces()
        graph.nodes = tuple(sorted(full_name(space, name) for name, space in names if name != node.get_name() and not name.startswith("_")))
        graph.clock_runs = not self._simulated_time or node.get_clock().now().nanoseconds > 0
        topics = [(name, types) for name, types in node.get_topic_names_and_types() if self._publishers(name)]
        for item in self._wanted.values():
            stream = graph.streams[item.name]
            asked = LATCHED if item.latched else state_qos(self._synchronised)
            stream.publishers = tuple(endpoint(info, info.qos_profile, asked) for info in self._publishers(stream.topic))
            stream.alike = tuple(name for name, types in topics if stream.type in types and name != stream.topic)
        for role, message in self._pictures.items():
            describe(graph.cameras[role], message)
        graph.outlets = tuple(self._outlet(*outlet) for outlet in outlets(self._expected))
        graph.missing_server = self._missing_server()
        chunks = self._publishers(node.resolve_topic_name("action_chunk"))
        graph.policies = tuple(endpoint(info, info.qos_profile, CHUNK) for info in chunks)

    def _outlet(self, name: str, topic: str, kind: str, latched: bool) -> Outlet:
        topic, ours = self._node.resolve_topic_name(topic), LATCHED if latched else COMMAND
        readers = [info for info in self._node.get_subscriptions_info_by_topic(topic) if not self._own(info)]
        return Outlet(
            name,
            topic,
            kind,
            tuple(endpoint(info, info.qos_profile, info.qos_profile) for info in self._publishers(topic)),
            tuple(endpoint(info, ours, info.qos_profile) for info in readers),
        )

    def _missing_server(self) -> str:
        """An action or service that the sink calls and that nobody offers."""
        controller, node = self._expected.controller, self._node
        if controller["gripper.kind"] in ("gripper_command", "parallel_gripper") and controller["sink.kind"] != "simulator":
            if importlib.util.find_spec("control_msgs") is None:
                distro = os.environ.get("ROS_DISTRO", "$ROS_DISTRO")
                return f"gripper.kind needs control_msgs, which is not installed: sudo apt install ros-{distro}-control-msgs"
            action = node.resolve_service_name(controller["gripper.action"])
            if not self._publishers(f"{action}/_action/status"):
                return f"nobody offers the gripper's action {action}"
        if controller["sink.servo_node"]:
            service = node.resolve_service_name(f"{controller['sink.servo_node']}/switch_command_type")
            if service not in dict(node.get_service_names_and_types()):
                return f"nobody offers {service}: MoveIt Servo does not run, or is Humble's (then leave sink.servo_node empty)"
        return ""
