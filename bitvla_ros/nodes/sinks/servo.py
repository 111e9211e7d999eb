"""MoveIt Servo from Jazzy on listens to one kind of command at a time, and a service says to which."""

from __future__ import annotations

from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from ..missing import MissingPackage, need

DISCOVERY, ANSWER = 1.0, 1.0  # s that Servo may take to be found, and then to answer

_NUMBERS = {"TWIST": 1, "POSE": 2}  # moveit_msgs/srv/ServoCommandType


class ServoError(OSError):
    """Servo does not take our commands; the message says why, and what to do."""


def select_command_type(node: Node, servo: str, kind: str) -> None:
    """Have Servo take commands of this kind ("POSE" or "TWIST"); returns when it has agreed. servo: its node's name.

    Without the switch Servo drops every command (servo_node.cpp: "Command type has not been set"), so the arm would stand still.
    Raises ServoError. Where the service's type is not installed, the log says how to call it by hand, and Servo is taken to be ready.
    """
    service = node.resolve_service_name(f"{servo}/switch_command_type")
    try:
        request_type = need("moveit_msgs.srv").ServoCommandType
    except (MissingPackage, AttributeError) as error:  # Humble's Servo has no such service: it is started with ~/start_servo
        by_hand = f"ros2 service call {service} moveit_msgs/srv/ServoCommandType '{{command_type: {_NUMBERS[kind]}}}'"
        node.get_logger().warning(f"MoveIt Servo was not switched to {kind} ({error}): call `{by_hand}`")
        return
    if not _ask(node, request_type, service, request_type.Request(command_type=_NUMBERS[kind])).success:
        raise ServoError(f"MoveIt Servo refuses to take {kind} commands: see the log of {servo}")


def _ask(node: Node, service_type: Any, service: str, request: Any) -> Any:
    """The response, waited for here: by a node of its own, since `node` may be in a callback. Raises ServoError."""
    asking = rclpy.create_node(
        f"{node.get_name()}_servo_client",
        context=node.context,
        use_global_arguments=False,
        enable_rosout=False,
        start_parameter_services=False,
    )
    executor = SingleThreadedExecutor(context=node.context)
    try:
        client = asking.create_client(service_type, service)
        if not client.wait_for_service(timeout_sec=DISCOVERY):
            raise ServoError(f"there is no service {service}: start MoveIt Servo, or correct sink.servo_node")
        future = client.call_async(request)
        executor.add_node(asking)
        executor.spin_until_future_complete(future, timeout_sec=ANSWER)
        if not future.done():
            raise ServoError(f"MoveIt Servo did not answer on {service} within {ANSWER:g} s: see its log, and try again")
        return future.result()
    finally:
        executor.shutdown()
        asking.destroy_node()
