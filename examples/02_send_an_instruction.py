"""Ask a running graph to carry out an instruction, and watch it.

    ros2 launch bitvla_ros tabletop.launch.py        # or any graph with our controller in it
    python examples/02_send_an_instruction.py "pick up the red block and place it in the basket"
"""

import sys

import rclpy
from rclpy.action import ActionClient

from bitvla_ros.action import ExecuteInstruction


def main(instruction: str) -> int:
    rclpy.init()
    node = rclpy.create_node("send_an_instruction")
    client = ActionClient(node, ExecuteInstruction, "execute_instruction")
    if not client.wait_for_server(timeout_sec=10.0):
        print("no controller answers on `execute_instruction`: is the graph running, in this ROS_DOMAIN_ID?", file=sys.stderr)
        return 1

    def show(message: ExecuteInstruction.Impl.FeedbackMessage) -> None:
        feedback = message.feedback
        age = feedback.chunk_age.sec * 1e3 + feedback.chunk_age.nanosec / 1e6
        print(f"\rstep {feedback.step}, the observation behind it is {age:.0f} ms old", end="", flush=True)

    sending = client.send_goal_async(ExecuteInstruction.Goal(instruction=instruction), feedback_callback=show)
    rclpy.spin_until_future_complete(node, sending)
    goal = sending.result()
    if not goal.accepted:
        print("the controller refused the goal; /diagnostics says why", file=sys.stderr)
        return 1
    waiting = goal.get_result_async()
    try:
        rclpy.spin_until_future_complete(node, waiting)
    except KeyboardInterrupt:
        rclpy.spin_until_future_complete(node, goal.cancel_goal_async())
        rclpy.spin_until_future_complete(node, waiting)
    result = waiting.result().result
    outcome = {0: "success", 1: "time limit", 2: "cancelled", 3: "fault"}[result.outcome]
    print(f"\n{outcome} after {result.steps} steps and {result.chunks} chunks. {result.reason}")
    return result.outcome


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:]) or "pick up the red block and place it in the basket"))
