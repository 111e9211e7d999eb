"""smoke.py PREFIX: does the installation in PREFIX work? Run it with the interpreter of the environment, outside the checkout.

It imports every interface from PREFIX, sends an ActionChunk from one process to another, starts every executable, and runs the demo:
three nodes, one episode with the expert and one with BitVLA. Exits 0 or says what failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

NODES = ("policy_node", "controller_node", "simulation_node")


def check(condition: object, complaint: str) -> None:
    if not condition:
        sys.exit(f"smoke test failed: {complaint}")


def check_interfaces(prefix: Path) -> None:
    import bitvla_ros.action
    import bitvla_ros.msg
    import bitvla_ros.policy.chunk
    import bitvla_ros.srv

    for module in (bitvla_ros.msg, bitvla_ros.policy.chunk):
        check(prefix in Path(module.__file__).parents, f"{module.__name__} comes from {module.__file__}, not from {prefix}")
    for names, module in (
        (("ActionChunk", "EndEffectorCommand", "SimulationState", "Task"), bitvla_ros.msg),
        (("ResetEpisode",), bitvla_ros.srv),
        (("ExecuteInstruction",), bitvla_ros.action),
    ):
        for name in names:
            check(hasattr(module, name), f"{module.__name__} has no {name}")
    share = prefix / "share" / "bitvla_ros"
    check((prefix / "share/ament_index/resource_index/packages/bitvla_ros").is_file(), f"{prefix} has no bitvla_ros in its ament index")
    for folder, pattern in (("launch", "*.launch.py"), ("config", "*.yaml")):
        check(any((share / folder).glob(pattern)), f"{share / folder} holds no {pattern}")


def receive(topic: str) -> None:
    """The second process: waits for one chunk and prints its actions."""
    import rclpy

    from bitvla_ros.msg import ActionChunk

    rclpy.init()
    node = rclpy.create_node("receiver")
    received = []
    node.create_subscription(ActionChunk, topic, received.append, 1)
    end = time.monotonic() + 30
    while not received and time.monotonic() < end:
        rclpy.spin_once(node, timeout_sec=0.1)
    print(json.dumps([list(message.actions) for message in received]))
    node.destroy_node()
    rclpy.shutdown()


def check_crossing() -> None:
    import rclpy

    from bitvla_ros.msg import ActionChunk

    topic = "action_chunk"
    receiver = subprocess.Popen([sys.executable, __file__, "--receive", topic], stdout=subprocess.PIPE, text=True)
    rclpy.init()
    node = rclpy.create_node("sender")
    publisher = node.create_publisher(ActionChunk, topic, 1)
    actions = [0.5 * index for index in range(56)]
    while receiver.poll() is None:
        publisher.publish(ActionChunk(horizon=8, action_dimension=7, actions=actions))
        rclpy.spin_once(node, timeout_sec=0.05)
    node.destroy_node()
    rclpy.shutdown()
    output, _ = receiver.communicate()
    check(output and json.loads(output) == [actions], f"no chunk crossed from one process to another: {output!r}")


def check_executables(prefix: Path) -> None:
    folder = prefix / "lib" / "bitvla_ros"
    bitvla = subprocess.run([folder / "bitvla", "--help"], capture_output=True, text=True, timeout=60)
    check(bitvla.returncode == 0 and "demo" in bitvla.stdout, f"{folder / 'bitvla'} --help: {bitvla.stderr}")
    for name in NODES:
        process = subprocess.Popen([folder / name], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        with contextlib.suppress(subprocess.TimeoutExpired):  # it runs on, as a node should
            process.wait(timeout=4)
        alive = process.poll() is None
        process.kill()
        _, errors = process.communicate()
        check(alive or process.returncode == 0, f"{folder / name} ended with {process.returncode}: {errors[-2000:]}")


def check_demo(prefix: Path) -> None:
    command = [prefix / "lib" / "bitvla_ros" / "bitvla", "demo", "--json"]
    demo = subprocess.run(command, capture_output=True, text=True, timeout=300)
    check(demo.returncode == 0, f"bitvla demo ended with {demo.returncode}: {demo.stderr[-4000:]}")
    episodes = {episode["policy"]: episode for episode in json.loads(demo.stdout)["episodes"]}
    check(episodes["expert"]["success"], f"the expert failed: {episodes['expert']}")
    check(episodes["bitvla"]["chunks"] > 0, f"BitVLA sent nothing: {episodes['bitvla']}")
    for name, episode in episodes.items():
        print(f"  {name}: success {episode['success']}, {episode['steps']} steps, {episode['chunks']} chunks", file=sys.stderr)


def main() -> None:
    if sys.argv[1] == "--receive":
        receive(sys.argv[2])
        return
    os.environ.setdefault("ROS_DOMAIN_ID", "97")
    prefix = Path(sys.argv[1]).resolve()
    for step in (lambda: check_interfaces(prefix), check_crossing, lambda: check_executables(prefix), lambda: check_demo(prefix)):
        step()
    print(f"smoke test passed: {prefix}", file=sys.stderr)


if __name__ == "__main__":
    main()
