"""The simulation node: an Environment behind ROS topics, in lockstep or in realtime.

lockstep: a tick is published, and then time stands still until the command with its number arrives. Reproducible on any machine.
realtime: system time; control steps at the environment's rate with the newest command, holding where none comes; or, with the
parameter interface, the arm behaves as one behind its own driver does (simulated_driver.py), and a control step is a tick of 50 ms.
Ticks and stamps only ever grow, over resets too. The environment lives in the executor's one thread, as its OpenGL context must.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.publisher import Publisher
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState

from bitvla_ros.msg import EndEffectorCommand, SimulationState
from bitvla_ros.simulation import SUITES, Environment, Snapshot, make
from bitvla_ros.srv import ResetEpisode

from . import simulated_driver
from .clock import claim_clock, sources
from .conversions import image_to_msg, joint_state_to_msg, ns_to_stamp, pose_to_msg, poses_to_msg
from .diagnostics import ERROR, OK, WARN, Status
from .lifecycle import ManagedNode, run
from .parameters import Parameter
from .qos import COMMAND, LATCHED, SENSOR, TICK
from .simulated_driver import SimulatedDriver

PARAMETERS = (
    Parameter("suite", "tabletop_object", "Suite of tasks", choices=SUITES),
    Parameter("mode", "lockstep", "lockstep: a tick waits for its command; realtime: time runs on", choices=("lockstep", "realtime")),
    Parameter("task", 0, "Task of the first episode, by its index in the suite", minimum=0, maximum=10_000),
    Parameter("seed", 0, "Seed of the first episode's initial state", minimum=0, maximum=2**31 - 1),
    Parameter("cameras", ("scene", "wrist"), "Cameras to render, by role; [''] renders none", topic="camera/{}/image_raw", optional=True),
    Parameter("image_size", 256, "Edge of the square images", unit="pixels", minimum=8, maximum=2048),
    Parameter(
        "interface",
        "end_effector_command",
        "What moves the arm: our own command, or in realtime target_pose or target_twist, as for a real arm's driver",
        choices=("end_effector_command", *simulated_driver.INTERFACES),
    ),
    Parameter("interface_hz", 100.0, "pose, twist: rate of the physics, of pose and joints", "Hz", choices=simulated_driver.RATES),
)

_PATIENCE = 2  # control steps for which realtime repeats a command that has no successor


class SimulationNode(ManagedNode):
    def __init__(self, **options: Any) -> None:
        super().__init__("simulation", PARAMETERS, **options)
        self._created = time.monotonic()
        self._environment: Environment | None = None
        self._snapshot: Snapshot | None = None
        self._entities: list = []
        self._driver: SimulatedDriver | None = None
        self._time: Publisher | None = None

    # Lifecycle

    def configure(self, p: SimpleNamespace) -> None:
        self._lockstep = p.mode == "lockstep"
        self._interface, self._hz = p.interface, p.interface_hz
        if p.interface in simulated_driver.INTERFACES:
            simulated_driver.check(p.interface, self._lockstep, p.suite)
        cameras = [role for role in p.cameras if role]
        self._environment = make(p.suite, cameras=cameras, image_size=p.image_size)
        self._period = round(1e9 / self._environment.control_hz)
        self._tick = self._episode = self._step = 0
        self._stamp = 0
        self._gripper = 0.0  # last one commanded
        self._command: EndEffectorCommand | None = None
        self._unrefreshed = 0  # steps since the last command came
        self._ignored = 0
        self._begin(p.task, p.seed)
        qos = TICK if self._lockstep else SENSOR
        self._images = {role: self.create_publisher(Image, f"camera/{role}/image_raw", qos) for role in cameras}
        self._joints = self.create_publisher(JointState, "joint_states", qos)
        self._pose = self.create_publisher(PoseStamped, "end_effector_pose", qos)
        self._state = self.create_publisher(SimulationState, "simulation_state", TICK if self._lockstep else LATCHED)

    def activate(self) -> None:
        self._time = claim_clock(self, self._created) if self._lockstep else None
        self._since = (time.monotonic(), self._tick)
        self._rate = 0.0
        self._entities = [(self.destroy_service, self.create_service(ResetEpisode, "reset_episode", self._on_reset))]
        if self._interface in simulated_driver.INTERFACES:
            self._driver = SimulatedDriver(self, self._environment, self._interface, self._hz)
            self._entities.append((self.destroy_timer, self.steady_timer(1.0 / self._hz, self._on_driver)))
        else:
            commands = self.create_subscription(EndEffectorCommand, "end_effector_command", self._on_command, COMMAND)
            self._entities.append((self.destroy_subscription, commands))
            if not self._lockstep:
                self._entities.append((self.destroy_timer, self.steady_timer(self._period / 1e9, self._on_timer)))
        self._publish(self._next_stamp())

    def deactivate(self) -> None:
        while self._entities:
            destroy, entity = self._entities.pop()
            destroy(entity)
        if self._driver is not None:
            self._driver.close()
            self._driver = None
        if self._time is not None:
            self.destroy_publisher(self._time)
            self._time = None

    def cleanup(self) -> None:
        for name in ("_joints", "_pose", "_state"):
            if getattr(self, name, None) is not None:
                self.destroy_publisher(getattr(self, name))
                setattr(self, name, None)
        for publisher in getattr(self, "_images", {}).values():
            self.destroy_publisher(publisher)
        self._images = {}
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def status(self) -> Status:
        now, tick = time.monotonic(), self._tick
        if now - self._since[0] >= 1.0:
            self._rate = (tick - self._since[1]) / (now - self._since[0])
            self._since = now, tick
        values = {
            "suite": self._environment.suite,
            "mode": "lockstep" if self._lockstep else "realtime",
            "task": self._task,
            "seed": self._seed,
            "episode": self._episode,
            "step": self._step,
            "tick": tick,
            "ticks_per_second": f"{self._rate:.1f}",
            "commands_ignored": self._ignored + (self._driver.ignored if self._driver is not None else 0),
        }
        if self._lockstep and (found := sources(self)) > 1:
            return Status(ERROR, f"{found} nodes publish /clock: stop all but one", values)
        if not self._lockstep and 0 < self._rate < 0.9 * self._environment.control_hz:
            rates = f"{self._rate:.1f} steps/s of {self._environment.control_hz:g}"
            return Status(WARN, f"{rates}: too slow for realtime; use lockstep, fewer cameras or smaller images", values)
        return Status(OK, "active", values)

    # Time

    def _begin(self, task: int, seed: int) -> None:
        self._snapshot = self._environment.reset(task, seed)
        self._task, self._seed = task, seed
        self._episode += 1
        self._step = 0
        self._command = None
        self._gripper = 0.0
        if self._driver is not None:
            self._driver.reset()

    def _advance(self, action: np.ndarray, stamp: int) -> None:
        """One control step; its outcome is the next tick."""
        self._snapshot = self._environment.step(action)
        self._gripper = float(action[6])
        self._step += 1
        self._tick += 1
        self._publish(stamp)

    def _next_stamp(self) -> int:
        """Lockstep: exactly one step later; the first is the system's time, so that a restarted simulator does not go back."""
        if self._lockstep and self._stamp:
            return self._stamp + self._period
        return max(self.get_clock().now().nanoseconds if not self._lockstep else time.time_ns(), self._stamp + 1)

    def _on_command(self, command: EndEffectorCommand) -> None:
        if not self._lockstep:
            self._command, self._unrefreshed = command, 0
        elif command.tick != self._tick:
            self._ignored += 1
        else:
            self._play(command, self._next_stamp())

    def _on_timer(self) -> None:
        if self._unrefreshed >= _PATIENCE:
            self._command = None
        self._unrefreshed += 1
        self._play(self._command, self._next_stamp())

    def _on_driver(self) -> None:
        moved = self._driver.advance(self._snapshot)
        if moved is None:
            return
        self._snapshot, ended = moved
        if ended:
            self._step += 1
            self._tick += 1
            self._publish(self._next_stamp())
        else:
            self._stamp = self._next_stamp()
            self._publish_arm(self._stamp)

    def _play(self, command: EndEffectorCommand | None, stamp: int) -> None:
        action = np.zeros(7, np.float32)  # a hold
        action[6] = self._gripper
        if command is not None:
            action[6] = command.gripper
            if not command.hold:
                action[:6] = command.offset
        try:
            self._advance(action, stamp)
        except ValueError as error:  # nonsense from whoever else publishes commands
            self._ignored += 1
            self._command = None
            self.get_logger().error(f"command ignored: {error}", throttle_duration_sec=1.0)

    def _on_reset(self, request: ResetEpisode.Request, response: ResetEpisode.Response) -> ResetEpisode.Response:
        try:
            self._begin(request.task, request.seed)
        except Exception as error:  # whatever a simulator says to a wrong task or seed; the episode before goes on
            response.message = str(error) or repr(error)
            self.get_logger().error(f"no new episode: {response.message}")
            return response
        self._tick += 1
        self._publish(self._next_stamp())
        response.success = True
        response.tick = self._tick
        response.instruction = self._environment.tasks[self._task]
        response.step_limit = self._environment.step_limit
        return response

    # Messages

    def _publish(self, stamp: int) -> None:
        """Everything of one tick under one stamp; simulation_state last, so that whoever sees it has been sent the rest."""
        self._stamp = stamp
        seen, environment = self._snapshot, self._environment
        if self._time is not None:
            self._time.publish(Clock(clock=ns_to_stamp(stamp)))
        for role, image in seen.images.items():
            self._images[role].publish(image_to_msg(image, stamp, f"{role}_camera"))
        pose = self._publish_arm(stamp)
        names, poses = poses_to_msg(seen.object_poses)
        self._state.publish(
            SimulationState(
                header=pose.header,
                tick=self._tick,
                episode=self._episode,
                step=self._step,
                suite=environment.suite,
                task=self._task,
                seed=self._seed,
                instruction=environment.tasks[self._task],
                step_limit=environment.step_limit,
                lockstep=self._lockstep,
                success=bool(seen.success),
                object_names=names,
                object_poses=poses,
            )
        )

    def _publish_arm(self, stamp: int) -> PoseStamped:
        seen, environment = self._snapshot, self._environment
        joints = (*environment.joint_names, *environment.gripper_joint_names)
        self._joints.publish(joint_state_to_msg(joints, np.concatenate([seen.joint_positions, seen.gripper]), stamp))
        pose = pose_to_msg(seen.position, seen.orientation, stamp, environment.frame)
        self._pose.publish(pose)
        return pose


def main(args: Sequence[str] | None = None) -> int:
    return run(SimulationNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
