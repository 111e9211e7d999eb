"""What a policy looks at, as subscriptions: cameras, joints, the end effector's pose (topic or TF), and for the expert the truth."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image, JointState

from bitvla_ros.msg import SimulationState

from ..action_convention import ActionConvention
from ..policy.gate import Reason, Refused
from ..policy.observation import Observation
from ..policy.policy import PolicySpec
from ..policy.streams import GRIPPER, POSE, PRIVILEGED, Streams
from .conversions import ImageError, image_from_msg, pose_from_msg, privileged_from_msg, stamp_to_ns
from .frames import Frames, NoTransform
from .parameters import Parameter, ParameterError
from .polled import Polled
from .qos import LATCHED, STATES, state_qos
from .schedule import Schedule

PARAMETERS = (
    Parameter("camera_transport", "raw", "Images as sensor_msgs/Image or CompressedImage", choices=("raw", "compressed")),
    Parameter("synchronised", False, "Inputs are reliable and latched, as a simulator in lockstep publishes them; else sensor data"),
    Parameter("state_source", "pose", "Pose of the end effector from the topic end_effector_pose or from TF", choices=("pose", "tf")),
    Parameter("base_frame", "base", "With TF: frame of the pose, and of the chunks"),
    Parameter("ee_frame", "panda_hand", "With TF: frame of the end effector"),
    Parameter("gripper_joints", ("panda_finger_joint1", "panda_finger_joint2"), "The two finger joints in joint_states, or the only one"),
    Parameter("gripper_scale", (1.0, 1.0), "Finger i of the state is gripper_scale[i] * joint + gripper_offset[i]"),
    Parameter("gripper_offset", (0.0, 0.0), "See gripper_scale", unit="m"),
    Parameter(
        "orientation_branch",
        (0.0, 0.0, 0.0, 0.0),
        "A quaternion xyzw on the training data's branch: of q and -q, the orientation nearer to it is taken. Zeros: taken as it comes",
    ),
)


CAMERA_TRANSPORTS: dict[str, tuple[Any, str]] = {"raw": (Image, ""), "compressed": (CompressedImage, "/compressed")}


def suffixed(node: Node, topic: str, suffix: str) -> str:
    """What to subscribe to for the image_transport of this suffix: as in ROS, the base topic is remapped, and the suffix follows it. The
    whole name may be remapped as well. Without a suffix the topic itself, whose remapping is the subscription's."""
    return node.resolve_topic_name(topic) + suffix if suffix else topic


class Inputs:
    """Keeps the newest inputs and makes observations of them.

    Callbacks run on the executor's thread and only keep messages; images are decoded, transforms looked up and, in realtime, the arm's
    states taken in `observe`, on the thread that needs them: a driver at 1 kHz would keep the executor from everything else. on_news:
    there may be a new observation. on_refusal: an input was refused, or its message made no sense.
    """

    def __init__(
        self,
        node: Node,
        p: SimpleNamespace,
        spec: PolicySpec,
        frames: Frames | None,
        on_news: Callable[[], None],
        on_refusal: Callable[[Exception], None],
    ) -> None:
        if len(p.gripper_joints) not in (1, 2) or len(p.gripper_scale) != 2 or len(p.gripper_offset) != 2 or len(p.orientation_branch) != 4:
            raise ParameterError("give gripper_joints 1 or 2 names, gripper_scale and gripper_offset 2 numbers, orientation_branch 4")
        given = tuple(p.orientation_branch) if any(p.orientation_branch) else None
        for name, stated, own in spec.convention.differences(ActionConvention(orientation_branch=given)):
            raise ParameterError(f"{name} is {own}, but the model was trained with {stated}, the opposite side: set it so")
        branch = None if given is None else np.array(given)
        self.frame = p.base_frame if frames else ""
        self._node, self._p, self._frames = node, p, frames
        self._on_news, self._on_refusal = on_news, on_refusal
        self._cameras = spec.cameras
        self._pushed = [*spec.cameras]  # streams that call back
        self._moment = 0  # of these, when there was news last
        self._jumped = False
        qos = state_qos(p.synchronised)
        kind, suffix = CAMERA_TRANSPORTS[p.camera_transport]
        topics = {role: suffixed(node, f"camera/{role}/image_raw", suffix) for role in spec.cameras}
        named = {POSE: "end_effector_pose", GRIPPER: "joint_states", PRIVILEGED: "simulation_state"} | topics
        resolved = {name: node.resolve_topic_name(topic) for name, topic in named.items() if frames is None or name != POSE}
        self._streams = Streams(spec.cameras, privileged=spec.privileged, branch=branch, topics=resolved)
        self._subscriptions = [self._subscribe(kind, topics[role], partial(self._take_image, role), qos) for role in spec.cameras]
        states = [(GRIPPER, JointState, "joint_states", self._take_joints), (POSE, PoseStamped, "end_effector_pose", self._take_pose)]
        polled = bool(spec.cameras) and not p.synchronised
        self._polled: list[Polled] = []
        for name, kind, topic, take in states if frames is None else states[:1]:
            if polled:
                self._polled.append(Polled(node, kind, topic, partial(self._accept, take), STATES))
            else:
                self._pushed.append(name)
                self._subscriptions.append(self._subscribe(kind, topic, take, qos))
        if spec.privileged:
            self._pushed.append(PRIVILEGED)
            self._subscriptions.append(self._subscribe(SimulationState, "simulation_state", self._take_truth, LATCHED))

    def close(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        for polled in self._polled:
            polled.close()
        if self._frames is not None:
            self._frames.close()

    def clear(self) -> None:
        """Forget every input."""
        self._streams.clear()

    def jump(self) -> None:
        """Time has jumped back."""
        self._jumped = bool(self._polled)
        self.clear()

    @property
    def behind(self) -> bool:
        """The images are of a later moment than the arm's state, which may be on its way: look again soon."""
        return bool(self._polled) and self._streams.moment() < self._streams.moment(self._cameras)

    def observe(self, schedule: Schedule) -> Observation | None:
        """The newest observation, its images still as messages (see `decode`); None in lockstep while a tick is incomplete.

        Raises Refused where a stream or a transform is missing.
        """
        jumped, self._jumped = self._jumped, False
        for polled in self._polled:
            if jumped:  # what has waited is of before
                deque(polled.take(), maxlen=0)
            else:
                polled.deliver()
        if jumped:
            self.clear()
        if self._frames is not None:
            try:
                pose = self._frames.newest(self._p.base_frame, self._p.ee_frame)
            except NoTransform as error:
                raise Refused(Reason.MISSING_TRANSFORM, str(error)) from error
            self._streams.add_pose(pose.stamp, pose.position, pose.orientation)
        newest = self._streams.latest(schedule.instruction, schedule.epoch)
        return self._streams.at(newest.stamp, schedule.instruction, schedule.epoch) if schedule.lockstep else newest

    @staticmethod
    def decode(observation: Observation) -> Observation:
        """The observation with RGB arrays for images. Raises Refused where one does not decode."""
        images = {}
        for role, message in observation.images.items():
            try:
                images[role] = image_from_msg(message)
            except ImageError as error:
                reason = Reason.WRONG_SIZE if error.what == "size" else Reason.WRONG_ENCODING
                raise Refused(reason, f"camera {role}: {error}") from error
        return replace(observation, images=images)

    def _subscribe(self, kind: Any, topic: str, take: Callable[[Any], None], qos: Any) -> Any:
        def callback(message: Any) -> None:
            self._accept(take, message)
            moment = self._streams.moment(self._pushed)
            if moment != self._moment:
                self._moment = moment
                self._on_news()

        return self._node.create_subscription(kind, topic, callback, qos)

    def _accept(self, take: Callable[[Any], None], message: Any) -> None:
        try:
            take(message)
        except Exception as error:  # from a callback it would end the node
            self._on_refusal(error)

    def _take_image(self, role: str, message: Image | CompressedImage) -> None:
        self._streams.add_image(role, stamp_to_ns(message.header.stamp), message)

    def _take_pose(self, message: PoseStamped) -> None:
        self._streams.add_pose(stamp_to_ns(message.header.stamp), *pose_from_msg(message))
        self.frame = message.header.frame_id

    def _take_joints(self, message: JointState) -> None:
        positions = dict(zip(message.name, message.position, strict=False))
        names = self._p.gripper_joints
        if not any(name in message.name for name in names):
            return  # another publisher's joints
        missing = [name for name in names if name not in positions]
        if missing:
            raise Refused(Reason.MISSING_STREAM, f"joint_states gives no position of {', '.join(missing)}; see gripper_joints")
        joints = np.array([positions[names[0]], positions[names[-1]]])
        fingers = np.array(self._p.gripper_scale) * joints + np.array(self._p.gripper_offset)
        self._streams.add_gripper(stamp_to_ns(message.header.stamp), fingers)

    def _take_truth(self, message: SimulationState) -> None:
        names, poses = len(message.object_names), len(message.object_poses)
        if names != poses:
            raise Refused(Reason.WRONG_SIZE, f"simulation_state names {names} objects and gives {poses} poses; expected as many")
        self._streams.add_privileged(stamp_to_ns(message.header.stamp), privileged_from_msg(message))
