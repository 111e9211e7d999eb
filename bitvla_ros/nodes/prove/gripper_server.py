"""A gripper's action server that fails as it is told to.

python -m bitvla_ros.nodes.prove.gripper_server gripper_command|parallel_gripper

`gripper_script` (std_msgs/String, latched) names what becomes of one goal after the other, with commas between: see FATES; after the last
of them goals succeed. Each script is answered on `gripper_goals` (sensor_msgs/JointState) by its own text as a name, and so is each goal
when it comes, by what becomes of it and its position.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

import rclpy
from rclpy.action import ActionServer, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.task import Future
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from ..missing import need
from ..qos import LATCHED

ACTION = "fingers"
ACTIONS = {"gripper_command": "GripperCommand", "parallel_gripper": "ParallelGripperCommand"}
GONE = 0.5  # s for which a server that vanishes is not there
GOALS = QoSProfile(depth=1000)

# mute: the goal is never answered. endless: it never ends. vanish: the server is gone while the goal runs, and comes back without it.
FATES = ("succeed", "succeed_stalled", "abort", "abort_stalled", "refuse", "mute", "endless", "vanish")


class GripperServer(Node):
    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__("gripper_server", **options)
        self._kind = getattr(need("control_msgs.action"), ACTIONS[kind])
        self._script: deque[str] = deque()
        self._fates: dict[int, str] = {}  # of goals that were accepted, by their identity
        self._goals = self.create_publisher(JointState, "gripper_goals", GOALS)
        self.create_subscription(String, "gripper_script", self._on_script, LATCHED)
        self._timer = self.create_timer(GONE, self._toggle)
        self._timer.cancel()
        self._action: ActionServer | None = None
        self._toggle()

    def _toggle(self) -> None:
        """Vanish, or come back."""
        if self._action is None:
            self._timer.cancel()
            group = ReentrantCallbackGroup()  # a goal that is never answered holds up no other
            self._action = ActionServer(self, self._kind, ACTION, self._carry_out, goal_callback=self._decide, callback_group=group)
        else:
            self._action.destroy()
            self._action = None

    def _on_script(self, message: String) -> None:
        self._script = deque(message.data.split(","))
        self._tell(message.data)

    def _tell(self, name: str, *position: float) -> None:
        message = JointState(name=[name], position=list(position))
        message.header.stamp = self.get_clock().now().to_msg()
        self._goals.publish(message)

    async def _decide(self, goal: Any) -> GoalResponse:
        fate = self._script.popleft() if self._script else "succeed"
        position = goal.command.position if isinstance(goal.command.position, float) else goal.command.position[0]
        self._tell(fate, position)
        if fate == "mute":
            await Future()
        self._fates[id(goal)] = fate
        return GoalResponse.REJECT if fate == "refuse" else GoalResponse.ACCEPT

    async def _carry_out(self, handle: Any) -> Any:
        fate = self._fates.pop(id(handle.request))
        if fate == "vanish":
            self._timer.reset()
        if fate in ("vanish", "endless"):
            await Future()
        if fate.startswith("abort"):
            handle.abort()
        else:
            handle.succeed()
        return self._kind.Result(stalled=fate.endswith("stalled"), reached_goal=fate == "succeed")


def main(args: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv if args is None else args)
    rclpy.init(args=arguments)
    node = GripperServer(remove_ros_args(arguments)[1])
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        executor.spin()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
