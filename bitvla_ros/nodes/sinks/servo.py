"""MoveIt Servo from Jazzy on listens to one kind of command at a time, and a service says to which."""

from __future__ import annotations

from typing import Any

from rclpy.node import Node

from ..missing import MissingPackage, need

_NUMBERS = {"TWIST": 1, "POSE": 2}  # moveit_msgs/srv/ServoCommandType


def select_command_type(node: Node, servo: str, kind: str) -> None:
    """Ask Servo for commands of this kind ("POSE" or "TWIST"). servo: its node's name. What goes wrong is logged, with the remedy:
    without the switch Servo drops every command (servo_node.cpp: "Command type has not been set"), so the arm stands still.
    """
    service = f"{servo}/switch_command_type"
    by_hand = f"ros2 service call {service} moveit_msgs/srv/ServoCommandType '{{command_type: {_NUMBERS[kind]}}}'"
    try:
        services = need("moveit_msgs.srv")
        request_type = services.ServoCommandType
    except (MissingPackage, AttributeError) as error:  # Humble's Servo has no such service: it is started with ~/start_servo
        node.get_logger().warning(f"MoveIt Servo was not switched to {kind} ({error}): call `{by_hand}`")
        return
    client = node.create_client(request_type, service)
    if not client.wait_for_service(timeout_sec=1.0):
        node.destroy_client(client)
        node.get_logger().warning(f"nobody offers {service}: start MoveIt Servo, then call `{by_hand}`")
        return

    def answered(future: Any) -> None:
        node.destroy_client(client)
        if not future.result().success:
            node.get_logger().error(f"MoveIt Servo refuses {kind} commands: look at its log")

    client.call_async(request_type.Request(command_type=_NUMBERS[kind])).add_done_callback(answered)
