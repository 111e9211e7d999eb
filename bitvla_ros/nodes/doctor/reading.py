"""What rclpy tells of endpoints, pictures and the middleware, in the words of the facts."""

from __future__ import annotations

from copy import copy
from typing import Any

import cv2
import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.duration import Duration, Infinite
from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSDurabilityPolicy, QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy, qos_check_compatible
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import Empty

from ..conversions import ImageError, image_from_msg
from ..events import SubscriptionEventCallbacks, UnsupportedEventTypeError
from ..node_names import owner
from ..qos import CHUNK
from .facts import Camera, Endpoint


def reports_liveliness(node: Node) -> bool:
    """Whether the middleware reports that a publisher was lost: the controller depends on it."""
    events = SubscriptionEventCallbacks(liveliness=lambda event: None)
    try:
        node.create_subscription(Empty, "~/liveliness", lambda message: None, CHUNK, event_callbacks=events)
    except UnsupportedEventTypeError:
        return False
    return True


def describe(camera: Camera, message: Any) -> None:
    """The last picture of a role."""
    camera.bytes = len(message.data)
    camera.encoding = message.format if isinstance(message, CompressedImage) else message.encoding
    try:
        image = image_from_msg(message)
    except ImageError as error:
        camera.problem = str(error)
        return
    camera.height, camera.width = image.shape[:2]
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    camera.small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)


def numbers_of(message: Any) -> dict[str, Any]:
    """What a message says that can have one value at a time: positions of joints by name, or a pose."""
    if isinstance(message, JointState):
        return dict(zip(message.name, message.position, strict=False))
    if isinstance(message, PoseStamped):
        p, q = message.pose.position, message.pose.orientation
        return {"the pose": (p.x, p.y, p.z, q.x, q.y, q.z, q.w)}
    return {}


def endpoint(info: Any, offered: QoSProfile, asked: QoSProfile) -> Endpoint:
    """offered, asked: of the two sides that are to talk, one of them theirs."""
    compatible, reason = qos_check_compatible(_in_full(offered), asked)
    problems = [part.removeprefix("ERROR: ") for part in reason.split(";") if part.startswith("ERROR: ")]
    mismatch = ", ".join(problems) if compatible == QoSCompatibility.ERROR else ""
    return Endpoint(owner(info), info.topic_type, _words(info.qos_profile), mismatch)


def _in_full(ours: QoSProfile) -> QoSProfile:
    """With the durations that a profile leaves to the middleware as it then has them. Else qos_check_compatible takes an unspecified
    deadline (0) for one that a subscription's infinite one does not fit."""
    full = copy(ours)
    for name in ("deadline", "liveliness_lease_duration"):
        if getattr(full, name) == Duration():
            setattr(full, name, Infinite)
    return full


def _words(qos: QoSProfile) -> str:
    words = [qos.reliability.name.lower().replace("_", " "), qos.durability.name.lower().replace("_", " ")]
    if qos.history == QoSHistoryPolicy.KEEP_LAST and qos.depth:  # Fast DDS does not tell others the depth
        words.append(f"depth {qos.depth}")
    return ", ".join(words)


def is_latched(qos: QoSProfile) -> bool:
    return bool(qos.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL and qos.reliability == QoSReliabilityPolicy.RELIABLE)
